//! The walk that `explain -v` prints, of a connection's first packet, of those that follow
//! and of the replies, is what the kernel did: the rules on it are those that counted.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::fixture::{Namespace, PODWEIR};
use crate::pod::{Pod, Probe, Proxy, transparent};

const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };
const DNS: &str = "10.96.0.10";

/// Table, chain and text of every rule that a packet of IPv4 has met.
fn counted(pod: &Namespace) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let (mut table, mut chain) = (String::new(), String::new());
    for line in pod.print(PODWEIR, &["render", "--live", "--format", "table"]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let indent = line.len() - line.trim_start().len();
        match (indent, &words[..]) {
            (0, [name, ..]) => table = (*name).to_owned(),
            (2, [name, ..]) => chain = (*name).to_owned(),
            (4.., [_, packets, "packets", ..]) => {
                let text = line.split_once(" packets").unwrap().1.split("  # ").next().unwrap().trim();
                let v4 = text.strip_prefix("IPv4: ").unwrap_or(text);
                if *packets != "0" && !v4.starts_with("IPv6: ") {
                    out.insert(without_protocols(&format!("{table} {chain}: {v4}")));
                }
            }
            _ => {}
        }
    }
    out
}

/// The rules that podweir's walk of a packet names, and what it said.
fn walked(pod: &Namespace, question: &[&str]) -> (BTreeSet<String>, String) {
    let text = pod.print(PODWEIR, &[&["explain", "--live", "-v", "--dns-server", DNS], question].concat());
    let mut table = "";
    let mut out = BTreeSet::new();
    for line in text.lines() {
        if let Some(rule) = line.strip_prefix("    ") {
            out.insert(without_protocols(&format!("{table} {}", rule.split("   # ").next().unwrap().trim())));
        } else if line.contains(", priority ") {
            table = line.split_whitespace().find(|word| word.starts_with("istio-")).unwrap();
        }
    }
    (out, text)
}

/// Two rules for TCP and UDP are one on a walk.
fn without_protocols(rule: &str) -> String {
    rule.replacen(" tcp,udp ", " ", 1).replacen(" tcp ", " ", 1).replacen(" udp ", " ", 1)
}

const UNOWNED: &str = "istio-proxy-mangle ISTIO_INBOUND: in by lo not marked 0x53a: return";

fn same(options: &[&str], question: &[&str], connect: impl FnOnce(&Pod)) -> String {
    let resolv_conf = format!("nameserver {DNS}\n");
    let pod = Pod::new(&["10.244.0.6/24"], &resolv_conf, PROXY);
    pod.namespace.ok(&[&["init", "--backend", "nftables"], options].concat());
    connect(&pod);
    let (walked, text) = walked(&pod.namespace, question);
    let mut counted = counted(&pod.namespace);
    // The last acknowledgement of a connection to itself belongs to no socket any more.
    if !walked.contains(UNOWNED) && walked.iter().any(|rule| rule.contains("out by lo of user")) {
        counted.remove(UNOWNED);
    }
    assert!(!walked.is_empty());
    assert_eq!(walked, counted, "{options:?} {question:?}\n{text}");
    text
}

/// Who answered a connection or datagram is what the walk ends with.
fn probe(pod: &Pod, probe: &str, answer: &str) {
    assert_eq!(pod.probe(&[Probe::parse(probe)]), [answer], "{probe}");
}

#[test]
fn packets_handed_over_by_tproxy_and_those_that_follow() {
    let question = ["--direction", "inbound", "--destination", "10.244.0.6", "--port", "8080"];
    let text = same(&["-m", "TPROXY"], &question, |pod| probe(pod, "in tcp to 10.244.0.6 8080", "in-proxy"));
    let (first, after) = text.split_once("then the packets after the first:\n").unwrap();
    assert!(first.contains("handed to the proxy's socket") && !first.contains("ISTIO_DIVERT"), "{text}");
    assert!(after.contains("ISTIO_DIVERT: accept"), "{text}");
}

#[test]
fn replies_to_the_proxy_are_diverted() {
    let peer = "203.0.113.9";
    let question = ["--destination", "10.244.0.6", "--port", "8080", "--source", peer, "--mark", "1337"];
    let owner = ["--uid", "0", "--gid", "0"];
    let text = same(&["-m", "TPROXY"], &[&question[..], &owner].concat(), |pod| {
        // As a proxy does that shows the app its peer's address.
        let answer = pod.namespace.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            transparent(&socket, true);
            socket.set_mark(1337).unwrap();
            socket.bind(&SocketAddr::new(peer.parse().unwrap(), 0).into()).unwrap();
            let to = SocketAddr::new("10.244.0.6".parse().unwrap(), 8080);
            socket.connect_timeout(&to.into(), Duration::from_secs(2)).unwrap();
            let mut answer = String::new();
            (&socket).read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(answer, "app");
    });
    let (_, replies) = text.split_once("then the replies:\n").unwrap();
    assert!(replies.contains("restore the mark") && replies.contains("routed to the pod itself"), "{text}");
}

#[test]
fn connections_of_the_pod_under_tproxy() {
    let outbound = |uid: &'static str, to: &'static str, port: &'static str| {
        ["--uid", uid, "--gid", uid, "--destination", to, "--port", port]
    };
    for (uid, to, port, answer) in [
        ("1000", "198.51.100.7", "80", "out-proxy"),
        ("1337", "198.51.100.7", "80", "outside"),
        ("1000", "10.244.0.6", "8080", "app"),
        ("1337", "10.244.0.6", "8080", "in-proxy"),
        ("1000", "127.0.0.1", "8080", "app"),
        ("1337", "127.0.0.1", "8080", "app"),
    ] {
        same(&["-m", "TPROXY", "--drop-invalid"], &outbound(uid, to, port), |pod| {
            probe(pod, &format!("out tcp uid={uid} gid={uid} to {to} {port}"), answer);
        });
    }
}

#[test]
fn dns_and_its_answers() {
    for (uid, answer) in [("1000", "dns-proxy"), ("1337", "outside")] {
        let question = ["--proto", "udp", "--uid", uid, "--gid", uid, "--destination", DNS, "--port", "53"];
        let text = same(&["--redirect-dns"], &question, |pod| {
            probe(pod, &format!("out udp uid={uid} gid={uid} to {DNS} 53"), answer);
        });
        assert!(text.contains("then the replies:\n"), "{text}");
        // A packet is tracked in the zone that the first rule gives it.
        let (mut zones, section) = (BTreeSet::new(), text.split("then ").next().unwrap());
        zones.extend(section.lines().filter(|line| line.contains("> tracked apart")));
        assert_eq!(zones.len(), 1, "{text}");
    }
}

#[test]
fn what_drops_replies_is_told() {
    let pod = Namespace::new();
    pod.ok(&["init", "--backend", "nftables"]);
    let drops = "table inet strict { chain out { type filter hook output priority 0; policy drop; meta skuid 1000 tcp dport 80 accept; oifname lo ct state new accept; }; }\n";
    let output = pod.feed("nft", &["-f", "-"], &[], drops);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let question = ["explain", "--live", "-v", "--uid", "1000", "--destination", "198.51.100.7", "--port", "80"];
    let text = pod.print(PODWEIR, &question);
    let (_, replies) = text.split_once("then the replies:\n").unwrap();
    assert!(replies.contains("> dropped"), "{text}");
    // Nobody asked for more than the answer.
    assert!(!pod.print(PODWEIR, &[&question[..2], &question[3..]].concat()).contains("then"));
}
