//! How often this process asks its allocator for memory: counted while somebody wants to know, as an author of what a step costs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

static IS_COUNTED: AtomicBool = AtomicBool::new(false);
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted; to be a program's `#[global_allocator]`.
#[derive(Clone, Copy, Debug)]
pub struct CountedAllocator;

/// From now on allocations are counted, those of all threads.
pub fn count() {
    IS_COUNTED.store(true, Relaxed);
}

/// Allocations, and blocks that became larger or smaller, since they are counted; none while they are not.
pub fn number() -> Option<u64> {
    IS_COUNTED.load(Relaxed).then(|| NUMBER.load(Relaxed))
}

fn one() {
    if IS_COUNTED.load(Relaxed) {
        NUMBER.fetch_add(1, Relaxed);
    }
}

#[allow(unsafe_code, reason = "the trait's methods are; each hands its call on as it is")]
// SAFETY: the system's allocator keeps the promises.
unsafe impl GlobalAlloc for CountedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        one();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        one();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        one();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountedAllocator = CountedAllocator;

    #[test]
    fn allocations_are_counted_from_then_on() {
        assert_eq!(number(), None);
        count();
        let before = number().unwrap();
        let mut blocks: Vec<_> = (0..100).map(|number: u8| vec![number]).collect();
        blocks[0].reserve_exact(1000);
        let made = number().unwrap() - before;
        // Other tests run beside it.
        assert!(made >= 102, "{made}");
    }
}
