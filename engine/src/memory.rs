//! Memory, measured: bytes that a piece of work allocates at its peak, and what the machine has
//! left.

#[cfg(feature = "allocator")]
use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};

#[cfg(feature = "allocator")]
#[global_allocator]
static ALLOCATOR: &PeakMemAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Runs `work` and returns the most bytes that were allocated above what was before; `None` in a
/// program with an allocator of its own. The whole process is counted, so nothing else may run.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, Option<usize>) {
    #[cfg(feature = "allocator")]
    {
        ALLOCATOR.reset_peak_memory();
        let out = work();
        (out, Some(ALLOCATOR.get_peak_memory()))
    }
    #[cfg(not(feature = "allocator"))]
    (work(), None)
}

/// Bytes that new allocations can have without swapping.
pub(crate) fn available() -> usize {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // Inside a container its own limit counts, where one is set.
    let group = system.cgroup_limits().map(|limits| limits.free_memory);
    let free = group.map_or(system.available_memory(), |g| {
        g.min(system.available_memory())
    });
    usize::try_from(free).unwrap_or(usize::MAX)
}

#[cfg(all(test, feature = "allocator"))]
mod tests {
    use super::*;

    #[test]
    fn a_peak_that_was_freed_is_still_seen() {
        let (_, peak) = peak_of(|| drop(std::hint::black_box(vec![1u8; 64 << 20])));
        assert!(peak.is_some_and(|p| p >= 64 << 20), "{peak:?}");
        assert!(available() > 0);
    }
}
