//! Measures podweir as whole processes in fresh network namespaces, interleaved with
//! what it is compared against, and prints medians and ratios. Run by `scripts/bench`.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

const RUNS: usize = 100;
const SEED: &[&str] = &[
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
    "-d",
    "15090,15021,15020",
];

/// A fresh namespace with lo up and eth0 holding one IPv4 address.
fn namespace() -> File {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
        let batch = "link set lo up\nlink add eth0 type veth peer name up0\naddr add 10.244.0.6/24 dev eth0\nlink set eth0 up\nlink set up0 up\n";
        let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
        ip.stdin.take().expect("piped").write_all(batch.as_bytes()).expect("ip");
        assert!(ip.wait().expect("ip").success());
        File::open("/proc/thread-self/ns/net").expect("proc")
    })
    .join()
    .expect("namespace")
}

/// Runs a command in a namespace: wall time, and peak memory in KiB.
fn run(namespace: &File, command: &[&str], input: &str) -> (Duration, i64) {
    let namespace = namespace.try_clone().expect("dup");
    let (command, input): (Vec<String>, String) = (command.iter().map(|s| s.to_string()).collect(), input.into());
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).expect("setns");
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let start = Instant::now();
        #[expect(clippy::zombie_processes, reason = "waited for with wait4, which also tells the peak memory")]
        let mut child = Command::new(&command[0])
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
    .join()
    .expect("run")
}

struct Case<'a> {
    name: &'a str,
    command: Vec<&'a str>,
    input: String,
    /// Run first in the same namespace, not measured.
    before: Option<Vec<&'a str>>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let podweir = std::env::args().nth(1).expect("path of podweir");
    let podweir = podweir.as_str();
    let dry = |face: &[&str]| {
        let output = Command::new(podweir)
            .args(face)
            .args(SEED)
            .args(["--dry-run", "--ip-families", "ipv4"])
            .output()
            .expect("dry-run");
        String::from_utf8(output.stdout).expect("utf-8")
    };
    let with = |face: &[&'static str]| -> Vec<&str> { [&[podweir], face, SEED].concat() };
    let native = with(&["init"]);
    let legacy = with(&["istio-iptables", "--force-iptables-binary", "legacy"]);
    let nft = with(&["istio-iptables", "--force-iptables-binary", "nft"]);
    // On a first installation there is nothing to remove; nft would wait for the kernel to.
    let ruleset: String =
        dry(&["init"]).lines().filter(|l| !l.starts_with("delete table")).map(|l| format!("{l}\n")).collect();
    let restore = dry(&["istio-iptables", "--force-iptables-binary", "legacy"]);
    let cases = [
        Case { name: "/bin/true", command: vec!["/bin/true"], input: String::new(), before: None },
        Case { name: "nft -f (same rules)", command: vec!["nft", "-f", "-"], input: ruleset, before: None },
        Case { name: "podweir native, first", command: native.clone(), input: String::new(), before: None },
        Case {
            name: "podweir native, nothing to change",
            command: native.clone(),
            input: String::new(),
            before: Some(native.clone()),
        },
        Case {
            name: "iptables-legacy-restore",
            command: vec!["iptables-legacy-restore", "--noflush"],
            input: restore.clone(),
            before: None,
        },
        Case { name: "podweir legacy, first", command: legacy.clone(), input: String::new(), before: None },
        Case {
            name: "iptables-nft-restore",
            command: vec!["iptables-nft-restore", "--noflush"],
            input: restore,
            before: None,
        },
        Case { name: "podweir iptables-nft, first", command: nft, input: String::new(), before: None },
        Case {
            name: "podweir legacy, nothing to change",
            command: legacy.clone(),
            input: String::new(),
            before: Some(legacy),
        },
    ];
    let mut times = vec![Vec::new(); cases.len()];
    let mut memory = vec![0; cases.len()];
    for _ in 0..RUNS {
        for (at, case) in cases.iter().enumerate() {
            let ns = namespace();
            if let Some(before) = &case.before {
                run(&ns, before, "");
            }
            let (took, rss) = run(&ns, &case.command, &case.input);
            times[at].push(took.as_secs_f64() * 1e3);
            memory[at] = memory[at].max(rss);
        }
    }
    for (at, case) in cases.iter().enumerate() {
        println!("{:40} {:8.3} ms {:8} KiB", case.name, median(times[at].clone()), memory[at]);
    }
}
