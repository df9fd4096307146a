//! What a pod grants its containers beyond themselves, as its manifest says it.

use akri_krustlet_runtime::{Interface, Item};

/// The line of a manifest that grants an interface.
pub fn manifest_line(interface: Interface) -> &'static str {
    match interface {}
}

/// Why a component cannot be run: it is neither a discovery handler nor a program.
pub fn neither_handler_nor_command(exports: &[Item]) -> String {
    let is_proxy = exports.iter().any(|export| export.interface() == "wasi:http/incoming-handler");
    let what = if is_proxy {
        "it is an HTTP server (wasi:http/proxy), which would need a listener that the node does not have".to_owned()
    } else {
        let exports = exports.iter().map(|export| export.name.as_str()).collect::<Vec<_>>();
        format!("it exports {}", if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") })
    };
    format!(
        "{what}; a component is a discovery handler by exporting akri:discovery/handler@0.1.0; a program must be a module (wasm32-wasip1)"
    )
}
