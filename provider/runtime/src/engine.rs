//! The one engine of the process.

use wasmtime::{Config, Engine};

/// Length of an epoch, the longest that a guest runs before the host looks at it: 10 milliseconds.
pub const EPOCH: std::time::Duration = std::time::Duration::from_millis(10);

/// Makes an engine. The node and its compile child call this same function: an AOT file is only accepted by an engine
/// of the configuration that made it.
///
/// On-demand allocation with a small reservation: guests live for days, so instantiation speed does not pay for the
/// pooling allocator's slots, and 64 MiB instead of 4 GiB of address space for each memory keeps small machines
/// (39-bit address spaces) working and halves the page tables.
///
/// Which instruction of a module each machine instruction comes from is left out of AOT files: a trap's backtrace has the
/// functions' names. So is what debuggers of the host would find their way through its frames by: the engine has its own way.
pub fn new() -> wasmtime::Result<Engine> {
    of(Counting::No)
}

/// Whether what guests do is counted, which makes them slower and their AOT files others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// Nobody counts.
    #[default]
    No,
    /// In fuel: about a unit for each instruction, nothing for those that only give the code its form.
    Fuel,
}

/// The same, for whoever wants to know what a guest does.
pub fn of(counting: Counting) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(counting == Counting::Fuel)
        .concurrency_support(false)
        .memory_reservation(64 << 20)
        .memory_guard_size(64 << 10)
        .memory_reservation_for_growth(0)
        .generate_address_map(false)
        .native_unwind_info(false)
        .async_stack_size(768 << 10)
        .max_wasm_stack(512 << 10);
    Engine::new(&config)
}
