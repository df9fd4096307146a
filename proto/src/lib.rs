//! The gRPC interfaces that Akri and a node speak, generated from `proto/*.proto` at build time.
//!
//! Maps are ordered (`BTreeMap`), so that the same device always has the same bytes on the wire.
#![allow(missing_docs, reason = "generated from .proto files, whose comments are the documentation")]

mod codec;

/// Akri's discovery interface: `Registration`, which the Agent serves, and `DiscoveryHandler`, which we serve.
pub mod v0 {
    tonic::include_proto!("v0");
}

/// The device plugin interface of a kubelet: `Registration`, which we serve, and `DevicePlugin`, which plugins serve.
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// The pod resources interface of a kubelet, which we serve.
pub mod v1 {
    tonic::include_proto!("v1");
}
