//! XML of strangers, as a small tree: names without prefixes, texts, and bounds on everything.

use quick_xml::events::Event;
use quick_xml::reader::Reader;

/// Longest document, in bytes.
const MOST_BYTES: usize = 256 << 10;
/// Most elements, and deepest nesting.
const MOST_ELEMENTS: usize = 4096;
const MOST_DEPTH: usize = 32;

/// An element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Without its prefix: devices of different makers write different ones.
    pub name: String,
    /// The text between its tags, without blanks at its ends.
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The first child of that name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The first element below that is found by these names.
    pub fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// All elements of a name, wherever they are below.
    pub fn all<'a>(&'a self, name: &str) -> Vec<&'a Element> {
        let mut found = Vec::new();
        self.visit(&mut |element| {
            if element.name == name {
                found.push(element);
            }
        });
        found
    }

    fn visit<'a>(&'a self, see: &mut impl FnMut(&'a Element)) {
        for child in &self.children {
            see(child);
            child.visit(see);
        }
    }
}

/// Reads a document; the element that is returned has no name, and the document's as its child. Entities that a document defines
/// are not replaced.
pub fn read(bytes: &[u8]) -> Option<Element> {
    if bytes.len() > MOST_BYTES {
        return None;
    }
    let text = String::from_utf8_lossy(bytes);
    let mut reader = Reader::from_str(&text);
    let mut open = vec![Element::default()];
    let mut elements = 0;
    loop {
        let event = reader.read_event().ok()?;
        match event {
            Event::Start(_) | Event::Empty(_) => {
                elements += 1;
                if elements > MOST_ELEMENTS || open.len() > MOST_DEPTH {
                    return None;
                }
                let is_empty = matches!(event, Event::Empty(_));
                let (Event::Start(start) | Event::Empty(start)) = event else { return None };
                let name = String::from_utf8_lossy(start.local_name().as_ref().as_ref()).into_owned();
                let element = Element { name, ..Element::default() };
                if is_empty { open.last_mut()?.children.push(element) } else { open.push(element) }
            }
            Event::End(_) => {
                let mut closed = open.pop()?;
                closed.text = closed.text.trim().to_owned();
                open.last_mut()?.children.push(closed);
            }
            Event::Text(text) => open.last_mut()?.text.push_str(text.as_ref()),
            Event::CData(text) => open.last_mut()?.text.push_str(text.as_ref()),
            Event::GeneralRef(reference) => {
                let letter = match reference.as_ref() {
                    "amp" => "&",
                    "lt" => "<",
                    "gt" => ">",
                    "quot" => "\"",
                    "apos" => "'",
                    number => {
                        open.last_mut()?.text.extend(numbered(number));
                        ""
                    }
                };
                open.last_mut()?.text.push_str(letter);
            }
            Event::Eof => break,
            _ => {}
        }
    }
    // What was opened was closed.
    (open.len() == 1).then(|| open.swap_remove(0)).filter(|document| !document.children.is_empty())
}

/// The letter of a reference like `#38` or `#x26`; none for an entity.
fn numbered(reference: &str) -> Option<char> {
    let number = reference.strip_prefix('#')?;
    let number = match number.strip_prefix('x') {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16),
        None => number.parse(),
    };
    char::from_u32(number.ok()?)
}

/// A text as it stands in XML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_without_its_prefixes() {
        let document = read(
            b"<?xml version=\"1.0\"?><a:x xmlns:a=\"u\"><y><b:z> 1 &#38;\n2</b:z></y><z/><z><![CDATA[<3>]]></z></a:x>",
        )
        .unwrap();
        assert_eq!(document.at(&["x", "y", "z"]).unwrap().text, "1 &\n2");
        let all: Vec<_> = document.all("z").iter().map(|element| element.text.as_str()).collect();
        assert_eq!(all, ["1 &\n2", "", "<3>"]);
    }

    #[test]
    fn what_is_no_document_is_nothing() {
        let deep = "<a>".repeat(100);
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;\">]><x>&b;</x>";
        assert_eq!(read(bomb.as_bytes()).unwrap().child("x").unwrap().text, "", "entities are not replaced");
        let many = format!("<x>{}</x>", "<y/>".repeat(5000));
        for text in ["", "no xml", "<x>", "</x>", "<x></y>", &deep, &many, &" ".repeat(300 << 10)] {
            assert_eq!(read(text.as_bytes()), None, "{}", &text[..text.len().min(20)]);
        }
    }
}
