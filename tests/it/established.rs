//! Connections that are older than the rules: what becomes of them, what is said about
//! them, and that they can be ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use podweir::sys::caps::has;
use podweir::sys::privilege::{CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE};
use socket2::{Domain, Socket, Type};

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};
use crate::plugin::{Cluster, Plugin, path, sidecar};
use crate::pod::{transparent, wire};

/// How long what should come may take, and what should not is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const IMPATIENCE: Duration = Duration::from_millis(300);
const BOTH: [&str; 2] = ["10.244.0.6", "fd00:10:244::6"];
/// Where a server of the outside is.
const SERVER: [&str; 2] = ["10.244.0.1", "fd00:10:244::1"];

/// A pod and what is around it, without anybody in it.
struct Place {
    pod: Namespace,
    outside: Namespace,
}

/// Both ends of a connection.
struct Pair {
    /// In the pod.
    near: TcpStream,
    far: TcpStream,
}

impl Place {
    fn new() -> Self {
        let (pod, outside) = (Namespace::bare(RESOLV), Namespace::bare(""));
        wire(&pod, &outside, &[V4, V6]);
        Self { pod, outside }
    }

    /// A process of the pod, of this user, connects to a server outside.
    fn outbound(&self, uid: u32, family: usize, port: u16) -> Pair {
        let listener = self.outside.run(|| TcpListener::bind((SERVER[family], port)).unwrap());
        let near = self.pod.run(|| connect_as(uid, 0, listener.local_addr().unwrap()));
        let (far, _) = listener.accept().unwrap();
        Pair { near, far }
    }

    /// Somebody outside connects to a server of the pod, which goes on listening.
    fn inbound(&self, family: usize, port: u16) -> (Pair, TcpListener) {
        let listener = self.pod.run(|| TcpListener::bind((BOTH[family], port)).unwrap());
        let far = self.outside.run(|| connect_as(0, 0, listener.local_addr().unwrap()));
        let (near, _) = listener.accept().unwrap();
        (Pair { near, far }, listener)
    }

    /// Makes connection tracking begin, as a rule of anybody's may do.
    fn track(&self) {
        let rules = "table inet other { chain c { type filter hook input priority 0; ct state established counter; }; chain d { type filter hook output priority 0; ct state established counter; }; }";
        let output = self.pod.feed("nft", &["-f", "-"], &[], rules);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn connect_as(uid: u32, gid: u32, to: SocketAddr) -> TcpStream {
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    socket.into()
}

/// What comes of sending a word from one end to the other.
fn sent(from: &TcpStream, to: &TcpStream, patience: Duration) -> &'static str {
    to.set_read_timeout(Some(patience)).unwrap();
    let mut word = [0; 4];
    match (&*from).write_all(b"word").and_then(|()| (&*to).read_exact(&mut word)) {
        Ok(()) => "arrives",
        Err(e) => match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "is lost",
            _ => "is refused",
        },
    }
}

/// Whether an end knows that the connection is over.
fn is_reset(end: &TcpStream, patience: Duration) -> bool {
    end.set_read_timeout(Some(patience)).unwrap();
    let error = (&*end).read(&mut [0; 4]).map_err(|e| e.kind());
    matches!(error, Err(ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted))
}

impl Pair {
    fn works(&self) -> bool {
        sent(&self.near, &self.far, PATIENCE) == "arrives" && sent(&self.far, &self.near, PATIENCE) == "arrives"
    }

    fn is_reset_at_both_ends(&self) -> bool {
        is_reset(&self.near, PATIENCE) && is_reset(&self.far, PATIENCE)
    }
}

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

#[test]
fn what_is_tracked_goes_on_past_the_proxy_and_is_said_and_ended() {
    for backend in BACKENDS {
        let place = Place::new();
        place.track();
        let out = [place.outbound(1000, 0, 5432), place.outbound(1000, 1, 5432)];
        let (inward, _listener) = place.inbound(0, 8080);
        let excluded = place.outbound(1000, 0, 3306);
        let of_proxy = place.outbound(1337, 0, 9000);
        let all = || out.iter().chain([&inward, &excluded, &of_proxy]);
        assert!(all().all(Pair::works));
        let init = ["init", "--backend", backend, "-o", "3306"];
        let log = place.pod.ok(&init);
        for words in [
            "3 established connections older than the rules pass the proxy by until they end",
            "outbound TCP of user 1000 to 10.244.0.1:5432",
            "outbound TCP of user 1000 to [fd00:10:244::1]:5432",
            "inbound TCP to 10.244.0.6:8080",
            "--established reset",
        ] {
            assert!(log.contains(words), "{backend}: no '{words}' in {log}");
        }
        assert!(!log.contains(":3306") && !log.contains(":9000"), "{backend}: {log}");
        assert!(all().all(Pair::works), "{backend}: {log}");
        // A run that finds nothing to change ends them as well.
        let log = place.pod.ok(&[&init[..], &["--established", "reset"]].concat());
        assert!(log.contains("unchanged") && log.contains("ended 3 established connections"), "{backend}: {log}");
        for pair in out.iter().chain([&inward]) {
            assert!(pair.is_reset_at_both_ends(), "{backend}: {log}");
        }
        assert!(excluded.works() && of_proxy.works(), "{backend}: {log}");
        assert!(!place.pod.ok(&init).contains("established"), "{backend}");
    }
}

#[test]
fn what_is_not_tracked_breaks_at_its_next_packet_and_is_said_and_ended() {
    for backend in BACKENDS {
        let make = || {
            let place = Place::new();
            let out = place.outbound(1000, 0, 5432);
            let (inward, listener) = place.inbound(1, 8080);
            (place, out, inward, listener)
        };
        let init = ["init", "--backend", backend];
        let (place, out, inward, _listener) = make();
        let log = place.pod.ok(&init);
        assert!(log.contains("2 established connections older than the rules will break"), "{backend}: {log}");
        for (from, to) in [(&out.near, &out.far), (&inward.far, &inward.near)] {
            assert_eq!(sent(from, to, IMPATIENCE), "is lost", "{backend}");
            assert!(is_reset(from, PATIENCE) && !is_reset(to, IMPATIENCE), "{backend}");
        }
        let (place, out, inward, _listener) = make();
        let log = place.pod.ok(&[&init[..], &["--established", "reset"]].concat());
        assert!(log.contains("ended 2 established connections"), "{backend}: {log}");
        assert!(out.is_reset_at_both_ends() && inward.is_reset_at_both_ends(), "{backend}: {log}");
    }
}

#[test]
fn what_rules_leave_alone_may_break_from_the_other_end_and_is_not_ended() {
    for backend in BACKENDS {
        let place = Place::new();
        let (first, second) = (place.outbound(1337, 0, 9000), place.outbound(1337, 0, 9001));
        let (excluded, _listener) = place.inbound(0, 15021);
        let log = place.pod.ok(&["init", "--backend", backend, "--established", "reset"]);
        let words = "3 established connections older than the rules will break if the end that did not begin it";
        assert!(log.contains(words) && !log.contains("ended"), "{backend}: {log}");
        assert!(first.works(), "{backend}");
        assert_eq!(sent(&second.far, &second.near, IMPATIENCE), "is lost", "{backend}");
        assert_eq!(sent(&excluded.near, &excluded.far, IMPATIENCE), "is lost", "{backend}");
    }
}

/// A socket's group is its process's, which another user's process shows to who may see into it.
#[test]
fn what_an_excluded_group_has_is_left_alone() {
    let place = Place::new();
    place.track();
    let listener = place.outside.run(|| TcpListener::bind((SERVER[0], 5432)).unwrap());
    let mut client = place.pod.run(|| {
        let script = format!("exec 3<>/dev/tcp/{}/5432; cat <&3", SERVER[0]);
        let mut client = Command::new("setpriv");
        client.args(["--reuid", "1000", "--regid", "2000", "--clear-groups", "bash", "-c", &script]);
        client.stdout(Stdio::piped()).spawn().unwrap()
    });
    let (mut far, _) = listener.accept().unwrap();
    let groups = [("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "2000")];
    let output = place.pod.command(PODWEIR, &["init", "--established", "reset"], &groups);
    let log = String::from_utf8(output.stderr).unwrap();
    let sees = [CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH].into_iter().all(|capability| has(capability).unwrap());
    let said = log.contains("1 established");
    let arrived = far.write_all(b"word").is_ok();
    drop(far);
    let mut heard = String::new();
    let _ = client.stdout.take().unwrap().read_to_string(&mut heard);
    client.wait().unwrap();
    assert!(output.status.success() && log.contains("installed"), "{log}");
    // Who may not see into processes takes it for one that the rules would take.
    assert_eq!((said, arrived && heard == "word"), (!sees, sees), "{log}");
}

#[test]
fn what_stays_in_the_pod_is_left_alone() {
    let place = Place::new();
    let within: Vec<Pair> = ["127.0.0.1", "10.244.0.6", "::1", "fd00:10:244::6"]
        .map(|address| {
            place.pod.run(|| {
                let listener = TcpListener::bind((address, 8080)).unwrap();
                let near = connect_as(1000, 0, listener.local_addr().unwrap());
                Pair { near, far: listener.accept().unwrap().0 }
            })
        })
        .into();
    let log = place.pod.ok(&["init", "--established", "reset"]);
    assert!(!log.contains("established") && within.iter().all(Pair::works), "{log}");
}

/// What `audit` finds of a class, and its exit status when that counts.
fn audited(pod: &Namespace, class: &str, fail_on: &str) -> (Vec<serde_json::Value>, Option<i32>) {
    let output = pod.podweir(&["audit", "--live", "--format", "json", "--fail-on", fail_on]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lints = report["lints"].as_array().unwrap().iter().filter(|lint| lint["id"] == class);
    (lints.cloned().collect(), output.status.code())
}

#[test]
fn what_an_exclusion_let_out_once_is_found_when_it_is_no_more() {
    const CLASS: &str = "established-past-proxy";
    for backend in BACKENDS {
        let place = Place::new();
        let init = ["init", "--backend", backend, "--reconcile"];
        place.pod.ok(&[&init[..], &["-o", "5432", "-d", "8080"]].concat());
        let out = [place.outbound(1000, 0, 5432), place.outbound(1000, 1, 5432)];
        let (inward, _listener) = place.inbound(0, 8080);
        // A packet from each end: connection tracking knows them well.
        assert!(out.iter().chain([&inward]).all(Pair::works), "{backend}");
        assert_eq!(audited(&place.pod, CLASS, "high"), (vec![], Some(0)), "{backend}");
        let log = place.pod.ok(&init);
        assert!(log.contains("3 established connections older than the rules pass the proxy by"), "{backend}: {log}");
        let output = place.pod.podweir(&["verify", "--live", "--", "--backend", backend]);
        assert!(output.status.success(), "{backend}");
        let (found, status) = audited(&place.pod, CLASS, "high");
        let mut subjects: Vec<&str> = found.iter().map(|lint| lint["subject"].as_str().unwrap()).collect();
        subjects.sort();
        let expected = [
            "inbound TCP to 10.244.0.6:8080",
            "outbound TCP of user 1000 to 10.244.0.1:5432",
            "outbound TCP of user 1000 to [fd00:10:244::1]:5432",
        ];
        assert_eq!((subjects, status), (expected.to_vec(), Some(1)), "{backend}");
        place.pod.ok(&[&init[..], &["--established", "reset"]].concat());
        assert!(out.iter().chain([&inward]).all(Pair::is_reset_at_both_ends), "{backend}");
        assert_eq!(audited(&place.pod, CLASS, "high"), (vec![], Some(0)), "{backend}");
    }
}

#[test]
fn the_plugin_says_it_in_its_log_and_ends_them_if_the_netconf_says_so() {
    let place = Place::new();
    place.track();
    let cluster = Cluster::new(&sidecar(serde_json::json!({})));
    let add = Plugin::add(&path(&place.pod), cluster.run_dir.path());
    let pair = place.outbound(1000, 0, 5432);
    add.call().ok();
    let log = cluster.run_dir.log();
    let words = "1 established connection older than the rules passes the proxy by until it ends: outbound TCP of user 1000 to 10.244.0.1:5432";
    assert!(log.contains(words) && log.contains("netconf"), "{log}");
    assert!(pair.works());
    add.key("interception", serde_json::json!({ "established": "reset" })).call().ok();
    assert!(cluster.run_dir.log().contains("ended 1 established connection"), "{}", cluster.run_dir.log());
    assert!(pair.is_reset_at_both_ends());
}

/// A kernel without CONFIG_INET_DIAG_DESTROY answers EOPNOTSUPP. So does any to the request
/// to end a Unix socket, which strace makes of the one that podweir sends.
#[test]
fn a_kernel_that_cannot_end_sockets_is_said_to_be_one() {
    let make = |tracked: bool| {
        let place = Place::new();
        if tracked {
            place.track();
        }
        let pair = place.outbound(1000, 0, 5432);
        place.pod.ok(&["init"]);
        (place, pair)
    };
    for tracked in [true, false] {
        let (place, pair) = make(tracked);
        let run = [PODWEIR, "init", "--established", "reset"];
        // Which of the requests it is: the one of 72 bytes.
        let trace = place.pod.directory().join("trace");
        let file = trace.to_str().unwrap();
        let is_it = |line: &&str| line.contains(", 72, ") && line.contains("SOCK_DESTROY");
        let (twin, _pair) = make(tracked);
        let output = twin.pod.command("strace", &[&["-qq", "-o", file, "-e", "trace=sendto"], &run[..]].concat(), &[]);
        assert!(output.status.success());
        let lines = std::fs::read_to_string(&trace).unwrap();
        let number = lines.lines().position(|line| is_it(&line)).unwrap_or_else(|| panic!("{lines}")) + 1;
        // Length, type, flags, sequence, port; then the family.
        let unix = "4800000015000500000000000000000001";
        let inject = format!("inject=sendto:poke_enter=@arg2={unix}:when={number}");
        let strace = ["-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e", &inject];
        let output = place.pod.command("strace", &[&strace[..], &run[..]].concat(), &[]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && log.contains("CONFIG_INET_DIAG_DESTROY"), "{log}");
        assert!(!log.contains("ended 1"), "{log}");
        let words = "cannot end 1 established connection older than the rules: Operation not supported";
        assert!(log.contains(words) && log.contains("rules divert the next packet"), "{log}");
        // It does not go on past the proxy.
        assert_eq!(sent(&pair.near, &pair.far, IMPATIENCE), "is lost", "{log}");
    }
}

/// A virtual machine behind the pod, which reaches others in the pod's name.
#[test]
fn what_is_forwarded_for_a_virtual_machine_is_known_to_connection_tracking_alone() {
    for backend in BACKENDS {
        let place = Place::new();
        let machine = Namespace::bare("");
        let net = path(&machine);
        place.pod.print("ip", &["link", "add", "vm0", "type", "veth", "peer", "name", "eth0", "netns", &net]);
        place.pod.batch("addr add 10.9.0.1/24 dev vm0\nlink set vm0 up\n");
        machine.batch("addr add 10.9.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.9.0.1\n");
        place.pod.print("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        let rules = "table ip vm { chain c { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }";
        assert!(place.pod.feed("nft", &["-f", "-"], &[], rules).status.success());
        let listener = place.outside.run(|| TcpListener::bind((SERVER[0], 5432)).unwrap());
        let near = machine.run(|| connect_as(0, 0, listener.local_addr().unwrap()));
        let pair = Pair { near, far: listener.accept().unwrap().0 };
        assert!(pair.works());
        // A veth that stands for a machine's tap makes it look like a node.
        let init = ["init", "--backend", backend, "-k", "vm0", "--host-network"];
        let log = place.pod.ok(&init);
        let words = "1 established connection older than the rules passes the proxy by until it ends: inbound TCP by vm0 to 10.244.0.1:5432";
        assert!(log.contains(words), "{backend}: {log}");
        assert!(pair.works(), "{backend}");
        let (found, _) = audited(&place.pod, "established-past-proxy", "high");
        assert_eq!(found.len(), 1, "{backend}: {found:?}");
        assert_eq!(found[0]["subject"], "inbound TCP by vm0 to 10.244.0.1:5432", "{backend}");
        let log = place.pod.ok(&[&init[..], &["--established", "reset"]].concat());
        assert!(log.contains("ended 1 established connection"), "{backend}: {log}");
        assert_eq!(sent(&pair.near, &pair.far, IMPATIENCE), "is lost", "{backend}");
        assert!(is_reset(&pair.near, PATIENCE), "{backend}");
    }
}

/// Connections that the proxy has, in both directions and families.
struct Proxied {
    pairs: Vec<Pair>,
    _listeners: Vec<Socket>,
}

impl Proxied {
    /// The proxy listens in the pod and keeps what it gets.
    fn new(place: &Place, uid: u32) -> Self {
        let listen = |port: u16, v4: bool| {
            place.pod.run(|| {
                setfsuid(Uid::from_raw(uid));
                let socket = Socket::new(if v4 { Domain::IPV4 } else { Domain::IPV6 }, Type::STREAM, None).unwrap();
                setfsuid(Uid::from_raw(0));
                transparent(&socket, v4);
                let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                if !v4 {
                    socket.set_only_v6(true).unwrap();
                }
                socket.bind(&SocketAddr::new(any, port).into()).unwrap();
                socket.listen(16).unwrap();
                socket
            })
        };
        let (mut pairs, mut listeners) = (Vec::new(), Vec::new());
        for (family, v4) in [(0, true), (1, false)] {
            let outbound = listen(15001, v4);
            let near = place.pod.run(|| connect_as(1000, 0, SocketAddr::new(SERVER[family].parse().unwrap(), 5432)));
            let far = outbound.accept().unwrap().0.into();
            pairs.push(Pair { near, far });
            let inbound = listen(15006, v4);
            let near = place.outside.run(|| connect_as(0, 0, SocketAddr::new(BOTH[family].parse().unwrap(), 8080)));
            let far = inbound.accept().unwrap().0.into();
            pairs.push(Pair { near, far });
            listeners.extend([outbound, inbound]);
        }
        Self { pairs, _listeners: listeners }
    }
}

#[test]
fn what_the_proxy_has_is_not_older_and_clean_says_first_how_many_break() {
    for backend in BACKENDS {
        for (mode, uid) in [("REDIRECT", 1337), ("TPROXY", 0)] {
            let place = Place::new();
            let init = ["init", "--backend", backend, "-m", mode];
            place.pod.ok(&init);
            let proxied = Proxied::new(&place, uid);
            assert!(proxied.pairs.iter().all(Pair::works), "{backend} {mode}");
            for what in ["leave", "reset"] {
                let log = place.pod.ok(&[&init[..], &["--established", what]].concat());
                assert!(log.contains("unchanged") && !log.contains("established"), "{backend} {mode}: {log}");
            }
            assert_eq!(audited(&place.pod, "established-past-proxy", "high"), (vec![], Some(0)), "{backend} {mode}");
            assert!(proxied.pairs.iter().all(Pair::works), "{backend} {mode}");
            let log = match mode {
                "REDIRECT" => place.pod.ok(&["clean"]),
                _ => place.pod.ok(&["init", "--cleanup-only"]),
            };
            let lines: Vec<&str> = log.lines().collect();
            let words = "4 established connections go through the proxy: without the rules they are reset, or hang";
            assert!(lines.len() == 2 && lines[0].contains(words) && lines[1].contains("removed"), "{backend}: {log}");
            let works = |pair: &&Pair| sent(&pair.near, &pair.far, IMPATIENCE) == "arrives";
            // With TPROXY nothing of an inbound connection's addresses was rewritten.
            let left = if mode == "TPROXY" { 2 } else { 0 };
            assert_eq!(proxied.pairs.iter().filter(works).count(), left, "{backend} {mode}");
            assert!(!place.pod.ok(&["clean"]).contains("established"), "{backend} {mode}");
        }
    }
    let help = Namespace::bare("").print(PODWEIR, &["clean", "--help"]);
    assert!(help.contains("Connections that go through the proxy break"), "{help}");
}
