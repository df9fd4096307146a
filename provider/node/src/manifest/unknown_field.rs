//! Fields that an object of the API does not have: mostly a slip of the pen, which would be ignored without a word.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;
use std::fmt;

/// A field that its object does not have.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownField {
    path: Vec<Step>,
    /// A field that it has, and that is much like it.
    likely: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown field ")?;
        for (index, step) in self.path.iter().enumerate() {
            match step {
                Step::Key(key) if index == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(item) => write!(f, "[{item}]")?,
            }
        }
        match self.likely {
            Some(likely) => write!(f, " (did you mean {likely}?)"),
            None => f.write_str(" (see `kubectl explain pod` for those that there are)"),
        }
    }
}

impl UnknownField {
    /// The first one in an object of this type.
    pub fn find<T: DeserializeOwned>(object: &Value) -> Option<Self> {
        find_in::<T>(object, &mut Vec::new())
    }

    /// The line of `document` that it stands in, counted from 0.
    pub fn line(&self, document: &str) -> Option<usize> {
        let mut place: Place = serde_saphyr::from_str(document).ok()?;
        let mut line = 1;
        for step in &self.path {
            place = match (step, place) {
                (Step::Key(key), Place::Mapping(members)) => {
                    let (name, value) = members.into_iter().find(|(name, _)| name.value == *key)?;
                    line = name.referenced.line();
                    value
                }
                (Step::Index(index), Place::List(items)) => items.into_iter().nth(*index)?,
                _ => return None,
            };
        }
        usize::try_from(line).ok()?.checked_sub(1)
    }
}

fn find_in<T: DeserializeOwned>(value: &Value, path: &mut Vec<Step>) -> Option<UnknownField> {
    let mut children: Vec<(Step, &Value)> = Vec::new();
    match value {
        Value::Object(members) => {
            // Of a map of labels and the like every key is known.
            let fields = T::deserialize(Probe(path)).err().and_then(|Found(fields)| fields);
            for (key, child) in members {
                if let Some(fields) = fields.filter(|fields| !fields.contains(&key.as_str())) {
                    path.push(Step::Key(key.clone()));
                    return Some(UnknownField { path: path.clone(), likely: likely(key, fields) });
                }
                children.push((Step::Key(key.clone()), child));
            }
        }
        Value::Array(items) => {
            children.extend(items.iter().enumerate().map(|(index, item)| (Step::Index(index), item)))
        }
        _ => return None,
    }
    for (step, child) in children {
        path.push(step);
        if let Some(found) = find_in::<T>(child, path) {
            return Some(found);
        }
        path.pop();
    }
    None
}

/// The name that is nearest to one that is not there, if it is near.
pub fn likely<'a>(key: &str, fields: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let distance = |field: &str| strsim::osa_distance(&plain(key), &plain(field));
    let (nearest, field) = fields.iter().map(|field| (distance(field), *field)).min()?;
    (nearest <= 1 + key.len() / 5).then_some(field)
}

/// Asks a type for the fields that it has at a path.
struct Probe<'a>(&'a [Step]);

/// What a [`Probe`] ends with: the fields, or that there is no object.
#[derive(Debug)]
struct Found(Option<&'static [&'static str]>);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Found {}

impl serde::de::Error for Found {
    fn custom<T: fmt::Display>(_message: T) -> Self {
        Self(None)
    }
}

impl IntoDeserializer<'_, Found> for Probe<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Found;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Found> {
        Err(Found(None))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Found> {
        if self.0.is_empty() {
            return Err(Found(Some(fields)));
        }
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        match self.0.split_first() {
            Some((Step::Key(key), rest)) => {
                visitor.visit_map(MapDeserializer::new(std::iter::once((key.as_str(), Probe(rest)))))
            }
            _ => Err(Found(None)),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        match self.0.split_first() {
            Some((Step::Index(_), rest)) => visitor.visit_seq(SeqDeserializer::new(std::iter::once(Probe(rest)))),
            _ => Err(Found(None)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

/// Where the fields of a document are.
enum Place {
    Leaf,
    List(Vec<Place>),
    Mapping(Vec<(Spanned<String>, Place)>),
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlaceVisitor)
    }
}

struct PlaceVisitor;

impl<'de> Visitor<'de> for PlaceVisitor {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Place, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Place::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Place, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Place::Mapping(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn unknown(pod: &Value) -> Option<String> {
        UnknownField::find::<Pod>(pod).map(|field| field.to_string())
    }

    #[test]
    fn unknown_fields_are_named_at_any_depth_with_a_likely_one() {
        for (pod, message) in [
            (
                json!({"spec": {"restartpolicy": "Never"}}),
                "unknown field spec.restartpolicy (did you mean restartPolicy?)",
            ),
            (json!({"specs": {}}), "unknown field specs (did you mean spec?)"),
            (json!({"metadata": {"label": {}}}), "unknown field metadata.label (did you mean labels?)"),
            (
                json!({"spec": {"containers": [{"name": "a"}, {"volume_mounts": []}]}}),
                "unknown field spec.containers[1].volume_mounts (did you mean volumeMounts?)",
            ),
            (
                json!({"spec": {"volumes": [{"configMap": {"items": [{"keys": "a"}]}}]}}),
                "unknown field spec.volumes[0].configMap.items[0].keys (did you mean key?)",
            ),
            (
                json!({"spec": {"containers": [{"env": [{"valueFrom": {"configMapkeyRef": {}}}]}]}}),
                "unknown field spec.containers[0].env[0].valueFrom.configMapkeyRef (did you mean configMapKeyRef?)",
            ),
            (
                json!({"spec": {"nonsense": 1}}),
                "unknown field spec.nonsense (see `kubectl explain pod` for those that there are)",
            ),
        ] {
            assert_eq!(unknown(&pod).as_deref(), Some(message));
        }
    }

    #[test]
    fn keys_of_maps_and_all_fields_of_a_pod_are_known() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "labels": {"any": "x"}, "annotations": {"a/b": "c"}},
            "spec": {
                "nodeSelector": {"disk": "ssd"},
                "containers": [{"resources": {"limits": {"akri.sh/x": 1}}, "ports": [{"containerPort": 80}],
                    "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1}}],
                "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "a", "labelSelector": {"matchLabels": {"x": "y"}}}]}},
                "volumes": [{"hostPath": {"path": "/x"}}, {"projected": {"sources": [{"serviceAccountToken": {}}]}}],
            },
            "status": {},
        });
        assert_eq!(unknown(&pod), None);
    }

    #[test]
    fn the_line_is_that_of_the_field() {
        let document = "spec:\n  containers:\n  - name: a\n  - name: b\n    # here\n    comand: [x]\n";
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "comand": ["x"]}]}});
        assert_eq!(UnknownField::find::<Pod>(&pod).unwrap().line(document), Some(5));
    }
}
