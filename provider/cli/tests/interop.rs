//! Handlers in other languages than Rust, built by `make interop`: the same contract.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, next_ids};
use std::path::PathBuf;

/// The example in a language, if it was built.
fn example(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} does not name the example of that language (make interop builds it)");
    }
    path
}

async fn finds_words(language: &str, path: PathBuf) {
    let mut node = Node::start();
    let image = format!("fs://{}", path.display());
    node.add(&HandlerPod { image, limits: r#"{"memory": "128Mi"}"#, ..HandlerPod::typed(language, "", "udev") });
    // Its name is what it says of itself.
    let (_stream, ids) = node.first_list("words", r#"{"words": ["a", 10, "ä b"]}"#).await;
    assert_eq!(ids, ["10", "a", "ä b"]);
    // Each stream has an instance of its own.
    let mut other = node.discover("words", r#"{"words": ["other"]}"#).await.unwrap();
    assert_eq!(next_ids(&mut other).await, ["other"]);
    for (details, what) in [
        (r#"{"words": "none"}"#, "words"),
        (r#"{"words": ["nothing"]}"#, r#"words: "nothing" is none"#),
        ("{}", "words"),
    ] {
        let refused = node.discover("words", details).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{details}: {refused}");
        assert!(refused.message().contains(what), "{details}: {refused}");
    }
    let log = node.log_of(language);
    assert!(log.contains("INFO 3 words"), "{log}");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_in_python_answers_by_the_contract() {
    let Some(path) = example("HANDLER_IN_PYTHON") else { return };
    finds_words("python", path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_in_javascript_answers_by_the_contract() {
    let Some(path) = example("HANDLER_IN_JAVASCRIPT") else { return };
    finds_words("javascript", path).await;
}
