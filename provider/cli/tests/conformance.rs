//! One table of requests, asked of every debugEcho there is: a module of the exchange contract and a component, and with
//! `NATIVE_DEBUG_ECHO` Akri's own. The same details in, the same devices and codes out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::{ByteData, DiscoverRequest};
use fixture::native::NativeAlone;
use fixture::{HandlerPod, Node};
use std::path::{Path, PathBuf};
use tonic::Code;

/// The ids of the first list, or the code of the refusal.
type Answer = Result<Vec<String>, Code>;

/// Details, and what an Agent gets for them.
fn cases() -> Vec<(&'static str, Answer)> {
    let ids = |ids: &[&str]| -> Answer {
        let mut ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
        ids.sort();
        ids.dedup();
        Ok(ids)
    };
    let refused = || -> Answer { Err(Code::InvalidArgument) };
    vec![
        // Lists of texts, as JSON and as YAML.
        (r#"{"descriptions":["foo0"]}"#, ids(&["foo0"])),
        (r#"{"descriptions":["foo0","foo1"]}"#, ids(&["foo0", "foo1"])),
        (r#"{"descriptions":["foo1","foo0"]}"#, ids(&["foo0", "foo1"])),
        ("descriptions:\n- foo0\n- foo1\n", ids(&["foo0", "foo1"])),
        ("descriptions: [foo0, foo1]", ids(&["foo0", "foo1"])),
        ("descriptions:\n  - \"foo 0\"\n  - 'foo 1'\n", ids(&["foo 0", "foo 1"])),
        ("# a comment\ndescriptions:\n- a # and another\n", ids(&["a"])),
        ("---\ndescriptions: [a]\n", ids(&["a"])),
        ("other: 1\ndescriptions: [a]\n", ids(&["a"])),
        ("descriptions:\n- |\n  a\n  b\n", ids(&["a\nb\n"])),
        ("descriptions:\n- >\n  a\n  b\n", ids(&["a b\n"])),
        ("descriptions: ['it''s']", ids(&["it's"])),
        (r#"descriptions: ["\u00fc", "日本"]"#, ids(&["ü", "日本"])),
        (r#"descriptions: ["tab\there"]"#, ids(&["tab\there"])),
        ("x: &a foo\ndescriptions: [*a]\n", ids(&["foo"])),
        // Plain scalars keep their text.
        ("descriptions: [no]", ids(&["no"])),
        ("descriptions: [yes, on, off, y, n]", ids(&["yes", "on", "off", "y", "n"])),
        ("descriptions: [10]", ids(&["10"])),
        ("descriptions: [-7]", ids(&["-7"])),
        ("descriptions: [0012345]", ids(&["0012345"])),
        ("descriptions: [5.10]", ids(&["5.10"])),
        ("descriptions: [1e3]", ids(&["1e3"])),
        ("descriptions: [1_000]", ids(&["1_000"])),
        ("descriptions: [0x1F]", ids(&["0x1F"])),
        ("descriptions: [true, false]", ids(&["true", "false"])),
        ("descriptions: [null]", ids(&["null"])),
        ("descriptions: [~]", ids(&["~"])),
        ("descriptions: [2026-11-26]", ids(&["2026-11-26"])),
        ("descriptions: ['10', \"no\"]", ids(&["10", "no"])),
        (r#"{"descriptions":["10","null"]}"#, ids(&["10", "null"])),
        // What is no list of texts.
        ("{}", refused()),
        ("[]", refused()),
        ("- a", refused()),
        ("a bare text", refused()),
        ("http://127.0.0.1/devices", refused()),
        ("", refused()),
        ("descriptions:", refused()),
        ("descriptions: foo0", refused()),
        ("descriptions: {a: b}", refused()),
        ("descriptions: [[a]]", refused()),
        ("descriptions: [{a: b}]", refused()),
        ("Descriptions: [a]", refused()),
        ("descriptions: [a", refused()),
        ("descriptions: \"[a]\"", refused()),
        ("\tdescriptions: [a]", ids(&["a"])),
        ("%", refused()),
    ]
}

/// Cases in which Akri's own handler does otherwise, and why ours does not.
const NATIVE_DIFFERS: &[(&str, &str)] = &[
    ("\tdescriptions: [a]", "a tab before the first key is clear enough to be read"),
    ("descriptions:", "the native handler takes no value for an empty list; ours tells whoever forgot it"),
];

async fn ask(socket: &Path, details: &str, properties: bool) -> Answer {
    let mut request = DiscoverRequest { discovery_details: details.to_owned(), ..Default::default() };
    if properties {
        request.discovery_properties.insert("PASSWORD".to_owned(), ByteData { vec: Some(b"\xff\0".to_vec()) });
        request.discovery_properties.insert("NONE".to_owned(), ByteData { vec: None });
    }
    let mut stream = agent::discover(socket.to_owned(), request).await.map_err(|status| status.code())?;
    let list = tokio::time::timeout(fixture::DEADLINE, stream.message()).await.expect("an answer");
    let list = list.map_err(|status| status.code())?.expect("a list");
    let properties = |device: &akri_proto::v0::Device| device.properties["DEBUG_ECHO_DESCRIPTION"] == device.id;
    assert!(list.devices.iter().all(properties), "{list:?}");
    let mut ids: Vec<_> = list.devices.into_iter().map(|device| device.id).collect();
    ids.sort();
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_debug_echo_answers_alike() {
    let node = Node::start();
    node.add(&HandlerPod::typed("typed", "typedEcho", "debug-echo-typed"));
    for handler in ["debugEcho", "typedEcho"] {
        node.wait_for_socket(handler);
    }
    let cases = cases();
    assert!(cases.len() >= 40);
    for (details, expected) in &cases {
        for handler in ["debugEcho", "typedEcho"] {
            for properties in [false, true] {
                let answer = ask(&node.socket(handler), details, properties).await;
                assert_eq!(&answer, expected, "{handler}, {details:?}, with properties: {properties}");
            }
        }
    }
    let Some(program) = std::env::var_os("NATIVE_DEBUG_ECHO").map(PathBuf::from) else {
        println!("NATIVE_DEBUG_ECHO is not set: Akri's own handler is not asked");
        return;
    };
    let (native, _) = NativeAlone::start(&program).await;
    let mut differences = Vec::new();
    for (details, expected) in &cases {
        let answer = ask(&native.socket(), details, false).await;
        let is_known = NATIVE_DIFFERS.iter().any(|(known, _)| known == details);
        if (answer != *expected) != is_known {
            differences.push(format!("{details:?}: native {answer:?}, ours {expected:?}, listed: {is_known}"));
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
}
