//! Waiting for packets that are on their way through netfilter's hooks.

#![allow(unsafe_code)]

use std::time::Duration;

use nix::libc;

/// How long packets are waited for where the kernel refuses membarrier(2). A packet may be sent by a
/// process that another one has taken the processor from.
const USUALLY_ENOUGH: Duration = Duration::from_millis(10);

/// Waits until every packet that is in a hook when this is called has left it.
///
/// The kernel walks a hook's chains under `rcu_read_lock` (`nf_hook`, linux/netfilter.h),
/// and membarrier(2) waits for all who hold that (`MEMBARRIER_CMD_GLOBAL`, which is
/// `synchronize_rcu`, kernel/sched/membarrier.c). Where it is refused (`nohz_full`, an old
/// seccomp profile) a moment has to do.
pub fn let_packets_pass() {
    let (command, flags, cpu) = (libc::MEMBARRIER_CMD_GLOBAL, 0u32, 0i32);
    // SAFETY: no pointers are involved, and nothing is changed by it.
    if unsafe { libc::syscall(libc::SYS_membarrier, command, flags, cpu) } != 0 {
        std::thread::sleep(USUALLY_ENOUGH);
    }
}
