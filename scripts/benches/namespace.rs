//! Fresh network namespaces, and processes in them.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

/// A fresh namespace with lo up and eth0 holding one IPv4 address and the default route.
pub fn fresh() -> File {
    let batch = "link set lo up\nlink add eth0 type veth peer name up0\naddr add 10.244.0.6/24 dev eth0\nlink set eth0 up\nlink set up0 up\nroute add default via 10.244.0.1\n";
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
        let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
        ip.stdin.take().expect("piped").write_all(batch.as_bytes()).expect("ip");
        assert!(ip.wait().expect("ip").success());
        File::open("/proc/thread-self/ns/net").expect("proc")
    })
    .join()
    .expect("namespace")
}

/// Runs a closure in a namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        });
        entered.join().expect("thread")
    })
}

/// Runs a command in a namespace: wall time, and peak memory in KiB.
pub fn run(namespace: &File, command: &[&str], input: &str) -> (Duration, i64) {
    within(namespace, || {
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let start = Instant::now();
        #[expect(clippy::zombie_processes, reason = "waited for with wait4, which also tells the peak memory")]
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", command[0]));
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(input.as_bytes()).expect("stdin");
        }
        let mut status = 0;
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: a child of ours, waited for once; both pointers are to locals.
        unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
        let took = start.elapsed();
        assert_eq!(status, 0, "{command:?}");
        (took, usage.ru_maxrss)
    })
}
