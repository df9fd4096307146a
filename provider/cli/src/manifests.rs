//! `manifests`: what a module is run with, made from what it says of itself.

use crate::check::Inspected;
use crate::discover::default_configuration;
use crate::output::{plain_name, spinner};
use crate::publish::{RegistryArguments, image, pulled, wait};
use akri_krustlet_discovery::settings;
use akri_krustlet_host::one_line;
use akri_krustlet_node::needs::{annotations, pod_lines};
use akri_krustlet_runtime::needs::VolumeNeed;
use akri_krustlet_runtime::{ModuleKind, Needs};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Print the manifests that a module is run with, made from what it says of itself: what it needs of its pod, and for a discovery
/// handler a Configuration with the details that its schema asks for. Made to be read and changed: narrow what it may reach.
#[derive(Debug, clap::Args)]
pub(crate) struct ManifestsArguments {
    /// The module's file, or an image REGISTRY/NAME:TAG
    #[arg(value_name = "MODULE|IMAGE")]
    module: String,
    /// Which ones
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// What they are called [default: by the handler's name, or the file's]
    #[arg(long, value_parser = object_name)]
    name: Option<String>,
    /// The image that they name [default: the given one; a file's own path]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The discovery handler that a module of preview 1 is; a component says it itself
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
    /// Take an image only if this policy lets a node run it (`run --image-policy`)
    #[arg(long, env = "KRUSTLET_IMAGE_POLICY", value_name = "FILE")]
    image_policy: Option<PathBuf>,
    #[command(flatten)]
    registries: RegistryArguments,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// A pod
    Pod,
    /// A pod on every node
    Daemonset,
    /// What Akri is told to look for
    Configuration,
    /// A DaemonSet, and the Configuration of a discovery handler
    #[default]
    All,
}

/// A name of objects; one of a pod gets a suffix.
fn object_name(text: &str) -> Result<String, String> {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=50).contains(&text.len()) && text.bytes().all(is_letter) && !text.starts_with('-');
    match fits && !text.ends_with('-') {
        true => Ok(text.to_owned()),
        false => Err("expected at most 50 lower-case letters, digits and `-`".to_owned()),
    }
}

/// Memory of a container, in bytes, whose module begins with little.
const LEAST_MEMORY: u64 = 64 << 20;

/// What the manifests are made of.
struct Subject {
    module: Inspected,
    name: String,
    image: String,
    /// What its Configuration is called, if that is said.
    configuration: Option<String>,
    /// The discovery handler that it is.
    handler: Option<String>,
    needs: Needs,
}

pub(crate) fn manifests(arguments: &ManifestsArguments) -> anyhow::Result<()> {
    let subject = Subject::of(arguments)?;
    let documents = match arguments.kind {
        Kind::Pod => vec![subject.pod()],
        Kind::Daemonset => vec![subject.daemon_set()],
        Kind::Configuration => vec![subject.configuration()?],
        Kind::All if subject.handler.is_some() => vec![subject.daemon_set(), subject.configuration()?],
        Kind::All => vec![subject.daemon_set()],
    };
    let texts = documents.iter().map(serde_saphyr::to_string).collect::<Result<Vec<_>, _>>()?;
    print!("{}", texts.join("---\n"));
    let lines = pod_lines(&subject.needs);
    if !lines.is_empty() {
        eprintln!(
            "Read them before you apply them, and narrow what you can. They give what the module asks for: {}",
            lines.join("; ")
        );
    }
    Ok(())
}

impl Subject {
    fn of(arguments: &ManifestsArguments) -> anyhow::Result<Self> {
        let path = Path::new(&arguments.module);
        let (module, own_image) = match path.exists() {
            true => (Inspected::read(path)?, format!("fs://{}", std::path::absolute(path)?.display())),
            false => pulled_module(arguments)?,
        };
        let of_component = module.info.as_ref().map(|info| info.name.clone());
        let handler = match (&arguments.handler, of_component, module.program.kind()) {
            (Some(name), None, ModuleKind::Component) => {
                bail!("--handler {name}: {} is a component, and no discovery handler", arguments.module)
            }
            (Some(name), ..) => {
                settings::check_name(name)?;
                Some(name.clone())
            }
            (None, of_component, _) => of_component,
        };
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("module");
        let name = arguments.name.clone().unwrap_or_else(|| plain_name(handler.as_deref().unwrap_or(stem)));
        let needs = match &module.program.metadata().needs {
            Ok(needs) => needs.clone().unwrap_or_default(),
            Err(error) => bail!("{}: {error}", arguments.module),
        };
        let image = arguments.image.clone().unwrap_or(own_image);
        Ok(Self { module, name, image, configuration: arguments.name.clone(), handler, needs })
    }

    fn metadata(&self) -> Value {
        let said: serde_json::Map<_, _> =
            annotations(&self.needs).into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
        let mut metadata = json!({"labels": {"app": self.name}});
        if !said.is_empty() {
            metadata["annotations"] = said.into();
        }
        metadata
    }

    fn spec(&self) -> Value {
        let begins_with = self.module.program.initial_sizes().map_or(0, |sizes| sizes.memory);
        let memory = (2 * begins_with).next_multiple_of(16 << 20).max(LEAST_MEMORY) >> 20;
        let mut container = json!({
            "name": self.name,
            "image": self.image,
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"},
                "limits": {"cpu": "200m", "memory": format!("{memory}Mi")},
            },
        });
        // A component says it itself, unless it is to have another name.
        let of_component = self.module.info.as_ref().map(|info| info.name.as_str());
        if let Some(handler) = self.handler.as_deref().filter(|handler| Some(*handler) != of_component) {
            container["env"] = json!([{"name": settings::NAME, "value": handler}]);
        }
        let volumes: Vec<_> = self.needs.volumes.iter().zip(0..).map(volume).collect();
        if !volumes.is_empty() {
            container["volumeMounts"] = volumes.iter().map(|(mount, _)| mount.clone()).collect();
        }
        let toleration = |effect: &str| json!({"key": "kubernetes.io/arch", "operator": "Equal", "value": "wasm32-wasi", "effect": effect});
        let mut spec = json!({
            "automountServiceAccountToken": false,
            "containers": [container],
            "nodeSelector": {"kubernetes.io/arch": "wasm32-wasi"},
            "tolerations": [
                toleration("NoExecute"), toleration("NoSchedule"),
                {"key": "node.kubernetes.io/network-unavailable", "operator": "Exists", "effect": "NoSchedule"},
            ],
        });
        if !(self.needs.network.is_empty() && self.needs.optional_network.is_empty()) {
            spec["hostNetwork"] = true.into();
        }
        if !volumes.is_empty() {
            spec["volumes"] = volumes.into_iter().map(|(_, volume)| volume).collect();
        }
        spec
    }

    fn pod(&self) -> Value {
        let mut metadata = self.metadata();
        metadata["name"] = self.name.as_str().into();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": self.spec()})
    }

    fn daemon_set(&self) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": self.name},
            "spec": {
                "selector": {"matchLabels": {"app": self.name}},
                "template": {"metadata": self.metadata(), "spec": self.spec()},
            },
        })
    }

    fn configuration(&self) -> anyhow::Result<Value> {
        let Some(handler) = &self.handler else {
            bail!(
                "it is no discovery handler, and Akri has no Configuration for it; a module of preview 1 is one by --handler NAME"
            )
        };
        let schema = self.module.info.as_ref().and_then(|info| info.schema.as_ref());
        let schema: Option<Value> = schema.and_then(|schema| serde_json::from_str(schema.text()).ok());
        Ok(json!({
            "apiVersion": "akri.sh/v0", "kind": "Configuration",
            "metadata": {"name": self.configuration.clone().unwrap_or_else(|| default_configuration(handler))},
            "spec": {
                "discoveryHandler": {"name": handler, "discoveryDetails": details(schema.as_ref())},
                "capacity": 1,
            },
        }))
    }
}

/// The module of an image, and the image's name.
fn pulled_module(arguments: &ManifestsArguments) -> anyhow::Result<(Inspected, String)> {
    let name = &arguments.module;
    let looks_like_a_file = name.starts_with(['.', '/']) || name.ends_with(".wasm");
    let reference = match image(name) {
        Ok(reference) if !looks_like_a_file => reference,
        _ => bail!("{name}: there is no such file, and it is no image's name (REGISTRY/REPOSITORY:TAG)"),
    };
    let credentials = arguments.registries.credentials()?;
    let scratch = tempfile::tempdir().context("no temporary directory to pull into")?;
    let images = arguments.registries.images(scratch.path(), arguments.image_policy.clone())?;
    let progress = spinner(format!("pulling {}", reference.whole()));
    let pulled = wait(pulled(&images, &reference, &credentials))?;
    progress.finish_and_clear();
    let (found, file) = pulled?;
    // What was looked at, whatever the tag is later.
    Ok((Inspected::read(&file)?, found.id))
}

fn volume((need, number): (&VolumeNeed, u32)) -> (Value, Value) {
    let VolumeNeed { path, source, writable } = need;
    let last = plain_name(path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("root"));
    let name = format!("{}-{number}", &last[..last.len().min(50)]);
    let mount = json!({"name": name, "mountPath": path, "readOnly": !writable});
    // A directory of the host is not made because a module says so.
    let volume = match (source, writable) {
        (None, true) => json!({"name": name, "emptyDir": {}}),
        (source, _) => {
            json!({"name": name, "hostPath": {"path": source.as_ref().unwrap_or(path), "type": "Directory"}})
        }
    };
    (mount, volume)
}

/// Details to begin with: what the schema asks for, and as comments what may be said besides.
fn details(schema: Option<&Value>) -> String {
    let properties = schema.and_then(|schema| Some((schema, schema.get("properties")?.as_object()?)));
    let Some((schema, properties)) = properties else {
        return "# What the handler takes; it does not say what that is.\n{}\n".to_owned();
    };
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let is_required = |name: &&String| required.contains(&name.as_str());
    let mut text = String::new();
    for name in properties.keys().filter(is_required).chain(properties.keys().filter(|name| !is_required(name))) {
        let property = resolved(schema, &properties[name]);
        for line in property["description"].as_str().into_iter().flat_map(|text| text.split(['\n', '\r'])) {
            text.push_str(&format!("# {}\n", one_line(line.trim(), 200)));
        }
        let value = json!({name: example(schema, property, 0)});
        let written = serde_saphyr::to_string(&value).unwrap_or_default();
        let mark = if is_required(&name) { "" } else { "# " };
        text.extend(written.lines().map(|line| format!("{mark}{line}\n")));
    }
    if required.is_empty() {
        text.push_str("{}\n");
    }
    text
}

/// Follows a reference within the schema.
fn resolved<'a>(schema: &'a Value, part: &'a Value) -> &'a Value {
    let pointer = part.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
    pointer.and_then(|pointer| schema.pointer(pointer)).unwrap_or(part)
}

/// A value that a schema takes, most often: what it gives as one, or the least of its type.
fn example(schema: &Value, part: &Value, depth: usize) -> Value {
    const MOST_DEPTH: usize = 3;
    let part = resolved(schema, part);
    let given = [part.get("default"), part.get("const"), part.pointer("/examples/0"), part.pointer("/enum/0")];
    if let Some(given) = given.into_iter().flatten().next() {
        return given.clone();
    }
    let choice = ["anyOf", "oneOf", "allOf"].iter().find_map(|name| part.get(name)?.get(0));
    if let Some(choice) = choice.filter(|_| depth < MOST_DEPTH) {
        return example(schema, choice, depth + 1);
    }
    let kind = part.get("type").map(|kind| kind.get(0).unwrap_or(kind)).and_then(Value::as_str);
    match kind {
        Some("integer" | "number") => part.get("minimum").cloned().unwrap_or_else(|| 0.into()),
        Some("boolean") => false.into(),
        Some("array") => match part.get("items").filter(|_| depth < MOST_DEPTH) {
            Some(items) => json!([example(schema, items, depth + 1)]),
            None => json!([]),
        },
        Some("object") => {
            let required = part["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let of = |name: &str| (name.to_owned(), example(schema, &part["properties"][name], depth + 1));
            Value::Object(required.filter(|_| depth < MOST_DEPTH).take(32).map(of).collect())
        }
        Some("null") => Value::Null,
        _ => "TEXT".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_have_what_a_schema_asks_for_and_say_what_else_there_is() {
        let schema = json!({
            "type": "object",
            "required": ["url", "list"],
            "properties": {
                "url": {"type": "string", "description": "Where.\nNot how."},
                "list": {"type": "array", "items": {"$ref": "#/$defs/item"}},
                "every": {"type": "integer", "minimum": 1, "default": 10},
            },
            "$defs": {"item": {"type": "object", "required": ["a"], "properties": {"a": {"enum": ["x", "y"]}}}},
        });
        let text = details(Some(&schema));
        // In the schema's order.
        assert_eq!(text, "# Where.\n# Not how.\nurl: TEXT\nlist:\n- a: x\n# every: 10\n");
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, json!({"url": "TEXT", "list": [{"a": "x"}]}));
        assert_eq!(serde_saphyr::from_str::<Value>(&details(None)).unwrap(), json!({}));
        let circular = json!({"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]});
        assert_eq!(details(Some(&circular)), "a: TEXT\n");
    }

    #[test]
    fn names_become_those_of_objects() {
        for (text, name) in [
            ("debugEcho", "debug-echo"),
            ("onvif", "onvif"),
            ("My_Handler.v2", "my-handler-v2"),
            ("--", "module"),
            ("OPCUA", "opcua"),
        ] {
            assert_eq!(plain_name(text), name, "{text}");
            assert!(object_name(name).is_ok());
        }
    }
}
