//! What becomes of memory that is not used any more. The C library keeps freed memory for
//! the next use: good for a program that ends in a millisecond, and not for one that reads
//! megabytes once, at its start, and then runs for months beside other people's pods.

/// The arenas of a process that does little at a time: a thread that finds none free waits
/// for one, and each would keep what its threads have freed.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 2;
/// Requests from so many bytes on get pages of their own, which go back when they are freed.
/// Given once, the threshold does not grow with what is freed (mallopt(3)).
#[cfg(target_env = "gnu")]
const PAGES_OF_THEIR_OWN: nix::libc::c_int = 64 << 10;

/// Has the allocator keep little of what is freed. To be called once, before there are threads.
#[allow(unsafe_code)]
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(nix::libc::M_ARENA_MAX, ARENAS), (nix::libc::M_MMAP_THRESHOLD, PAGES_OF_THEIR_OWN)] {
        // SAFETY: it takes two numbers and locks what it changes (mallopt(3)). One that is
        // refused leaves the default, which is right as well.
        unsafe { nix::libc::mallopt(parameter, value) };
    }
}

/// Gives the pages back that nothing is on any more, also those in the middle of the heap.
#[allow(unsafe_code)]
pub(crate) fn give_back() {
    // SAFETY: it takes a number, and locks each arena in its turn (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0)
    };
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    /// How much memory this process has resident, in bytes (proc(5), statm).
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn what_was_freed_below_something_that_stays_goes_back() {
        // 64 MiB of pieces that are too small for pages of their own, with some that stay.
        let mut stays = Vec::new();
        let pieces: Vec<Vec<u8>> = (0..16 << 10)
            .map(|n| {
                if n % 1024 == 0 {
                    stays.push(vec![1u8; 32]);
                }
                vec![1u8; 4000]
            })
            .collect();
        stays.push(vec![1; 4000]);
        let full = resident();
        drop(pieces);
        give_back();
        let after = resident();
        assert!(full - after > 32 << 20, "{full} {after}");
        assert_eq!(stays.len(), 17);
    }
}
