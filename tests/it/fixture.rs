//! A network namespace without a name, with its own resolv.conf and iptables lock, made
//! on a thread that ends at once; closures run in it on fresh threads.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use podweir::sys::lock::{self, Lock};

/// The podweir under test; for the demonstration the release build.
pub const PODWEIR: &str = match option_env!("CARGO_BIN_EXE_podweir") {
    Some(path) => path,
    None => concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/podweir"),
};

pub const V4: &str = "10.244.0.6/24";
pub const V6: &str = "fd00:10:244::6/64";
pub const RESOLV: &str = "nameserver 10.96.0.10\nsearch default.svc.cluster.local\n";

/// Where a program is that PATH leads to, and which stands for itself where it is a path.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A namespace with lo and eth0 up.
pub struct Namespace {
    net: File,
    mounts: File,
    directory: PathBuf,
}

impl Namespace {
    /// One IPv4 address, one name server.
    pub fn new() -> Self {
        Self::with(&[V4], RESOLV)
    }

    pub fn with(addresses: &[&str], resolv_conf: &str) -> Self {
        let namespace = Self::bare(resolv_conf);
        let mut batch = String::from("link add eth0 type veth peer name up0\n");
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            batch += &format!("addr add {address} dev eth0 {nodad}\n");
        }
        namespace.batch(&(batch + "link set eth0 up\nlink set up0 up\n"));
        namespace
    }

    /// Only lo, up.
    pub fn bare(resolv_conf: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("podweir-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let resolv = directory.join("resolv.conf");
        std::fs::write(&resolv, resolv_conf).unwrap();
        let (net, mounts) = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("making namespaces needs root");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(&resolv), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).unwrap();
            let open = |name: &str| File::open(format!("/proc/thread-self/ns/{name}")).unwrap();
            (open("net"), open("mnt"))
        })
        .join()
        .unwrap();
        let namespace = Self { net, mounts, directory };
        namespace.batch("link set lo up\n");
        namespace
    }

    /// The file that stands for the network namespace.
    pub fn net(&self) -> &File {
        &self.net
    }

    /// A directory of the test's own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs `ip` commands, one a line.
    pub fn batch(&self, commands: &str) {
        let output = self.feed("ip", &["-batch", "-"], &[], commands);
        assert!(output.status.success(), "{commands}{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a closure in the namespace, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS).unwrap();
                setns(&self.net, CloneFlags::CLONE_NEWNET).unwrap();
                setns(&self.mounts, CloneFlags::CLONE_NEWNS).unwrap();
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Takes podweir's lock of the namespace. One that this process just gave back may be held a
    /// moment longer by what other tests start: a child has copies of all sockets up to its exec(2).
    pub fn lock(&self) -> Lock {
        self.run(|| lock::acquire(Duration::from_secs(10)).unwrap())
    }

    /// Where this test's iptables locks.
    pub fn lock_file(&self) -> PathBuf {
        self.directory.join("xtables.lock")
    }

    /// Runs a program with only the variables given, PATH and the lock file.
    pub fn command(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.feed(program, arguments, variables, "")
    }

    pub fn feed(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
        let lock = self.lock_file();
        self.run(|| {
            // By its path: with a PATH of its own, a name would have all memory of this process copied by fork(2).
            let mut command = Command::new(self::program(program).unwrap_or_else(|| program.into()));
            command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
            command.env("XTABLES_LOCKFILE", lock).envs(variables.iter().copied());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
            // A program that has enough of its input closes it.
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
            child.wait_with_output().unwrap()
        })
    }

    pub fn podweir(&self, arguments: &[&str]) -> Output {
        self.command(PODWEIR, arguments, &[])
    }

    /// Runs podweir, which must succeed, and gives what it logged.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.podweir(arguments);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "podweir {arguments:?}: {}\n{log}", output.status);
        log
    }

    /// Runs a program, which must succeed, and gives what it printed.
    pub fn print(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments, &[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What a table holds: its own chains, and the rules of each chain in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    pub chains: Vec<String>,
    pub rules: HashMap<String, Vec<String>>,
}

/// What the kernel holds of an iptables variant, and next to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub ip4: HashMap<String, TableState>,
    pub ip6: HashMap<String, TableState>,
    /// Policy rules on marks, by family flag.
    pub rules: HashMap<String, Vec<String>>,
    /// Routes of the table given, by family flag.
    pub routes: HashMap<String, Vec<String>>,
    /// IPv6 addresses of lo.
    pub lo6: Vec<String>,
}

/// Takes iptables-save text apart; comments decide nothing and are left out, as are
/// empty tables.
pub fn tables(text: &str) -> HashMap<String, TableState> {
    let mut out: HashMap<String, TableState> = HashMap::new();
    let mut current = String::new();
    for line in text.lines().map(str::trim_end) {
        if let Some(table) = line.strip_prefix('*') {
            current = table.to_owned();
        } else if let Some(chain) = line.strip_prefix(':') {
            let words: Vec<&str> = chain.split_whitespace().collect();
            if words[1] == "-" {
                out.entry(current.clone()).or_default().chains.push(words[0].to_owned());
            }
        } else if line.starts_with("-A ") {
            let line = without_comment(line);
            let chain = line.split_whitespace().nth(1).unwrap().to_owned();
            out.entry(current.clone()).or_default().rules.entry(chain).or_default().push(line);
        }
    }
    out.values_mut().for_each(|table| table.chains.sort());
    out
}

fn without_comment(line: &str) -> String {
    let Some((before, after)) = line.split_once(" -m comment --comment ") else { return line.to_owned() };
    let rest = match after.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').map_or("", |(_, rest)| rest),
        None => after.split_once(' ').map_or("", |(_, rest)| rest),
    };
    format!("{before} {}", rest.trim_start())
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Namespace {
    /// What the kernel holds; `variant` is `legacy` or `nft`.
    pub fn state(&self, variant: &str, route_table: &str) -> State {
        let by_family = |work: &dyn Fn(&str) -> Vec<String>| {
            ["-4", "-6"].into_iter().map(|family| (family.to_owned(), work(family))).collect()
        };
        let rules = |family: &str| {
            let text = self.print("ip", &[family, "rule"]);
            let mut lines: Vec<String> = text
                .lines()
                .filter(|line| line.contains("fwmark"))
                .map(|line| squeeze(line.split_once(':').map_or(line, |(_, rest)| rest)))
                .collect();
            lines.sort();
            lines.dedup();
            lines
        };
        let routes = |family: &str| {
            // Fails where the table is not there.
            let output = self.command("ip", &[family, "route", "show", "table", route_table], &[]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let strip = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let mut kept = Vec::new();
                let mut words = words.into_iter();
                while let Some(word) = words.next() {
                    if matches!(word, "proto" | "metric" | "pref") {
                        words.next();
                    } else {
                        kept.push(word);
                    }
                }
                kept.join(" ")
            };
            let mut lines: Vec<String> = text.lines().map(strip).collect();
            lines.sort();
            lines
        };
        let lo6 = self.print("ip", &["-6", "addr", "show", "dev", "lo"]);
        let mut lo6: Vec<String> = lo6
            .lines()
            .filter_map(|line| line.trim().strip_prefix("inet6 ")?.split(' ').next().map(str::to_owned))
            .collect();
        lo6.sort();
        State {
            ip4: tables(&self.print(&format!("iptables-{variant}-save"), &[])),
            ip6: tables(&self.print(&format!("ip6tables-{variant}-save"), &[])),
            rules: by_family(&rules),
            routes: by_family(&routes),
            lo6,
        }
    }

    /// Everything that can be listed: both iptables variants, nft, routing and addresses.
    /// Two equal texts mean two equal states.
    pub fn everything(&self) -> String {
        self.rules() + &self.routing()
    }

    /// The rules of every backend.
    pub fn rules(&self) -> String {
        let mut out = without_empty_hooks(&self.print("nft", &["-s", "list", "ruleset"]));
        for program in ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"] {
            let text = self.print(program, &[]);
            // Counters of policies change with every packet; comments carry the time.
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let tables: Vec<String> = lines.map(|l| l.split(" [").next().unwrap_or(l).to_owned()).collect();
            // A table that is there without a rule or chain is as good as none.
            out += &format!("{program}\n{}", non_empty_tables(&tables));
        }
        out
    }

    /// Policy rules, routes, and the addresses of lo.
    pub fn routing(&self) -> String {
        let mut out = String::new();
        for arguments in [
            &["-4", "rule"][..],
            &["-6", "rule"],
            &["-4", "route", "show", "table", "all"],
            &["-6", "addr", "show", "dev", "lo"],
        ] {
            out += &self.print("ip", arguments);
        }
        // An interface's carrier comes a moment after it.
        let out = out.replace(" linkdown", "");
        let routes = self.print("ip", &["-6", "route", "show", "table", "all"]);
        let mut routes: Vec<&str> =
            routes.lines().filter(|line| line.contains(" lo ") || line.contains("table 1")).collect();
        routes.sort();
        out + &routes.join("\n")
    }
}

/// A listing by nft in which the chains of a table stand in one order, which decides nothing,
/// and the tables of iptables-nft have no hooks without a rule, which it never takes away.
fn without_empty_hooks(text: &str) -> String {
    let mut out = Vec::new();
    for table in text.split_inclusive("\n}\n") {
        let by_iptables = table.starts_with("table ip ") || table.starts_with("table ip6 ");
        let (head, body) = table.split_once('\n').unwrap();
        let Some(body) = body.strip_suffix("}\n") else {
            out.push(table.to_owned());
            continue;
        };
        let mut chains: Vec<&str> = body.split_inclusive("\t}\n").map(str::trim_start).collect();
        let empty_hook = |chain: &str| chain.lines().count() == 3 && chain.contains("policy accept;");
        chains.retain(|chain| !(chain.is_empty() || by_iptables && empty_hook(chain)));
        chains.sort();
        if !chains.is_empty() || !by_iptables {
            out.push(format!("{head}\n{}", chains.concat()));
        }
    }
    out.sort();
    out.concat()
}

fn non_empty_tables(lines: &[String]) -> String {
    let mut out = Vec::new();
    for table in lines.split(|line| line == "COMMIT") {
        let counts = |line: &&String| line.starts_with("-A") || (line.starts_with(':') && line.ends_with('-'));
        if table.iter().any(|line| counts(&line)) {
            let (mut chains, rules): (Vec<&String>, Vec<&String>) = table.iter().partition(|l| l.starts_with(':'));
            chains.sort();
            let lines: Vec<&str> = rules.iter().chain(&chains).map(|l| l.as_str()).collect();
            out.push(lines.join("\n") + "\n");
        }
    }
    out.sort();
    out.concat()
}
