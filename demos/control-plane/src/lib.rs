//! A Kubernetes control plane of a machine's own: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as plain
//! processes on free loopback ports, with a CA of their own; and, for who is root, an ordinary Linux node beside it. For demos and
//! tests; nothing here is fit to be exposed.
//!
//! [`Programs`] finds or builds the programs, [`Cluster`] lays out a directory for one cluster, and [`Cluster::start`]
//! runs it for as long as the returned [`Running`] lives. [`Running::add_linux_node`] starts the node.

mod cluster;
pub mod linux_node;
mod pki;
pub mod port;
mod programs;
mod running;

pub use cluster::Cluster;
pub use linux_node::LinuxNode;
pub use programs::Programs;
pub use running::Running;
