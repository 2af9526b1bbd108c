//! Fresh network namespaces, and processes in them.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};
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
        let mut process = Command::new(command[0]);
        process.args(&command[1..]);
        execute(process, input)
    })
}

/// Runs a command that must succeed: wall time, and peak memory in KiB.
pub fn execute(mut command: Command, input: &str) -> (Duration, i64) {
    let start = Instant::now();
    let child = spawn(&mut command, input);
    let usage = wait(child);
    (start.elapsed(), usage)
}

/// Starts a command and feeds it.
pub fn spawn(command: &mut Command, input: &str) -> Child {
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    if let Some(mut pipe) = child.stdin.take() {
        // A program that has enough of its input closes it.
        let _ = pipe.write_all(input.as_bytes());
    }
    child
}

/// Waits for a command that must succeed: its peak memory in KiB.
pub fn wait(child: Child) -> i64 {
    let mut status = 0;
    // SAFETY: numbers only, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a child of ours, waited for once; both pointers are to locals.
    unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(status, 0, "a measured command failed");
    usage.ru_maxrss
}
