//! Names of nodes (part 6 of the specification, 5.3.1.10): `i=2258`, `ns=2;s=Temperature`.

use opcua_codec::Writer;
use std::fmt;
use std::str::FromStr;

/// A node of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId {
    namespace: u16,
    identifier: Identifier,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Identifier {
    Number(u32),
    Text(String),
}

impl NodeId {
    pub fn named(namespace: u16, identifier: &str) -> Self {
        Self { namespace, identifier: Identifier::Text(identifier.to_owned()) }
    }

    pub fn write(&self, writer: Writer) -> Writer {
        let namespace = self.namespace.to_le_bytes();
        match &self.identifier {
            Identifier::Number(number) => writer.bytes(&[2]).bytes(&namespace).u32(*number),
            Identifier::Text(text) => writer.bytes(&[3]).bytes(&namespace).string(text),
        }
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, rest) = match text.strip_prefix("ns=").and_then(|rest| rest.split_once(';')) {
            Some((number, rest)) => {
                (number.parse().map_err(|_| format!("namespace {number:?} is no number up to 65535"))?, rest)
            }
            None => (0, text),
        };
        let identifier = match rest.split_once('=') {
            Some(("i", number)) => {
                Identifier::Number(number.parse().map_err(|_| format!("{number:?} is no number of a node"))?)
            }
            Some(("s", text)) if !text.is_empty() => Identifier::Text(text.to_owned()),
            _ => return Err("expected a node as i=2258, ns=2;i=7 or ns=2;s=Temperature".to_owned()),
        };
        Ok(Self { namespace, identifier })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace != 0 {
            write!(formatter, "ns={};", self.namespace)?;
        }
        match &self.identifier {
            Identifier::Number(number) => write!(formatter, "i={number}"),
            Identifier::Text(text) => write!(formatter, "s={text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_as_opc_ua_writes_them() {
        for text in ["i=2258", "ns=2;i=7", "ns=2;s=Temperature", "s=a;b=c"] {
            assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        }
        assert_eq!("ns=2;s=T".parse(), Ok(NodeId::named(2, "T")));
        let written = NodeId::named(2, "T").write(Writer::default()).0;
        assert_eq!(written, [3, 2, 0, 1, 0, 0, 0, b'T']);
        assert_eq!("i=2258".parse::<NodeId>().unwrap().write(Writer::default()).0, [2, 0, 0, 0xd2, 8, 0, 0]);
        for (text, what) in [
            ("", "expected a node"),
            ("Temperature", "expected a node"),
            ("ns=2;s=", "expected a node"),
            ("ns=70000;i=1", "namespace \"70000\""),
            ("i=x", "\"x\" is no number"),
            ("g=00000000-0000-0000-0000-000000000000", "expected a node"),
        ] {
            let error = text.parse::<NodeId>().unwrap_err();
            assert!(error.contains(what), "{text:?}: {error}");
        }
    }
}
