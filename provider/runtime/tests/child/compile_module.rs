//! The compile child for the tests of this crate.

fn main() {
    akri_krustlet_runtime::compile::child_main(std::env::args_os().skip(1))
}
