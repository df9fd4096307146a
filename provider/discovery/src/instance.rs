//! The names that Akri gives to Instances.

use blake2::digest::consts::U3;
use blake2::{Blake2b, Digest as _};

/// The name of the Instance that Akri makes of a device: the Configuration's name and 24 bits of BLAKE2b over the device's
/// id, followed by the node's name if other nodes cannot see the device.
pub fn name(configuration: &str, device_id: &str, shared: bool, node: &str) -> String {
    let mut hash = Blake2b::<U3>::new();
    hash.update(device_id);
    if !shared {
        hash.update(node);
    }
    let hash = hash.finalize();
    format!("{configuration}-{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_akri_gives() {
        // Observed with Akri 0.13.26 for a shared device.
        assert_eq!(name("akri-debug-echo", "foo0", true, "node-a"), "akri-debug-echo-8120fe");
        // The 2021 proxy's ids carried quotes.
        assert_eq!(name("akri-debug-echo", "\"foo0\"", true, "node-a"), "akri-debug-echo-aae70c");
        assert_ne!(name("c", "foo0", false, "node-a"), name("c", "foo0", false, "node-b"));
        assert_eq!(name("c", "foo0node-a", true, ""), name("c", "foo0", false, "node-a"));
    }
}
