//! The gRPC interfaces that Akri and a node speak, generated from `proto/*.proto` at build time.
//!
//! Maps are ordered (`BTreeMap`), so that the same device always has the same bytes on the wire.
#![allow(missing_docs, reason = "generated from .proto files, whose comments are the documentation")]

/// Akri's discovery interface: `Registration`, which the Agent serves, and `DiscoveryHandler`, which we serve.
pub mod v0 {
    tonic::include_proto!("v0");
}
