//! What audit, explain and verify make of pods in ambient mode.

use serde_json::Value;

use crate::ambient::BACKENDS;
use crate::ambient_traffic::{Pod, Probe};
use crate::fixture::{Namespace, PODWEIR};

/// What audit finds of an ambient pod with addresses of both families, by its options alone.
fn audited(options: &[&str]) -> Value {
    let pod =
        ["audit", "--as", "ambient", "--pod-ip", "10.244.0.6", "--pod-ip", "fd00:10:244::6", "--format", "json", "--"];
    let output = std::process::Command::new(PODWEIR).args(pod).args(options).output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_mark_lets_out_all_that_it_does_in_both_families_and_none_that_is_routed_back() {
    for (options, dns) in [(&[][..], true), (&["--dns-capture=false"], false)] {
        let report = audited(options);
        let lints = report["lints"].as_array().unwrap().iter().filter(|lint| lint["id"] == "marked-packets-escape");
        let lints: Vec<_> = lints.collect();
        assert_eq!(lints.len(), 1, "{options:?}: {lints:#?}");
        let (subject, message) = (lints[0]["subject"].as_str().unwrap(), lints[0]["message"].as_str().unwrap());
        assert!(subject.starts_with("packets marked 0x539"), "{subject}");
        // All TCP, of both families; and DNS by UDP where that is captured.
        for family in ["IPv4: TCP to any address but 169.254.7.127/32", "IPv6: TCP to any address but fd16:9254:"] {
            assert!(message.contains(family), "{message}");
        }
        assert_eq!(message.contains("IPv4 and IPv6: UDP port 53"), dns, "{message}");
        assert!(message.contains("--port 443") && message.contains("--mark 0x539"), "{message}");
    }
}

#[test]
fn what_closes_an_escape_of_an_ambient_pod_is_there_for_ambient_pods() {
    let report = audited(&["--ingress-mode", "--dns-capture=false", "--ip-families", "ipv4"]);
    let escapes = report["escapes"].as_array().unwrap();
    let closes = |id: &str| {
        let found = escapes.iter().find(|escape| escape["id"] == id).unwrap_or_else(|| panic!("no {id}: {escapes:#?}"));
        found["closes"].as_str().unwrap().to_owned()
    };
    assert!(closes("inbound-tcp-not-taken").contains("ambient.istio.io/bypass-inbound-capture"));
    assert!(closes("outbound-dns").contains("ambient.istio.io/dns-capture"));
    assert!(closes("outbound-udp").contains("ztunnel"));
    assert!(closes("outbound-family-left-open").contains("--ambient-ip-families"));
    let default = audited(&[]);
    let sidecars =
        ["sidecar", "--istio-", "--inbound-tunnel-port", "--redirect-dns", "--dual-stack", "--capture-all-dns"];
    let all = escapes.iter().chain(default["escapes"].as_array().unwrap());
    for escape in all.clone() {
        let text = format!("{} {}", escape["meaning"], escape["closes"]);
        assert!(!sidecars.iter().any(|word| text.contains(word)), "{text}");
    }
    assert!(all.filter(|escape| escape["id"] == "inbound-tunnel-port").count() > 0, "{default:#}");
}

/// A rule of somebody else's that changes a mark changes the route as well.
#[test]
fn what_is_marked_on_its_way_out_is_routed_by_the_mark_that_it_has_then() {
    const OUT: &str = "198.51.100.7";
    let pod = Pod::new(&["10.244.0.6/24"]);
    pod.namespace.ok(&["ambient", "--backend", "nftables"]);
    let chain = "type route hook output priority -160;";
    let rules = "meta mark 0x111 tcp dport 8080 meta mark set 0; tcp dport 9000 meta mark set 0x111;";
    pod.namespace.print("nft", &[&format!("table inet other {{ chain o {{ {chain} {rules} }}; }}")]);
    for (mark, port, bound, answer, verdict) in [
        // Back to where it is addressed to; the chains on this hook still have it leave by lo, which lets it by.
        (0x111, 8080, true, "outside", "direct"),
        // Back into the pod, where nobody has the address that it is for, and not outside.
        (0, 9000, true, "silent", "dropped"),
        (0, 9000, false, "silent", "dropped"),
        (0x111, 80, true, "silent", "dropped"),
        // Who has no address yet gets none by that route.
        (0x111, 80, false, "unroutable", "dropped"),
        (0x111, 8080, false, "unroutable", "dropped"),
    ] {
        let own = "10.244.0.6";
        let from = bound.then(|| own.parse().unwrap());
        let to = OUT.parse().unwrap();
        let probe = Probe { inbound: false, udp: false, mark, transparent: false, from, from_port: 0, to, port };
        let answered = pod.ask(&probe);
        assert_eq!(answered.split(' ').next().unwrap(), answer, "{probe:?}");
        let (port, mark) = (port.to_string(), format!("{mark:#x}"));
        let mut explain = vec!["explain", "--live", "--destination", OUT, "--port", &port, "--mark", &mark];
        explain.extend(bound.then_some(["--source", own]).into_iter().flatten());
        let text = pod.namespace.print(PODWEIR, &explain);
        assert!(text.starts_with(&format!("{verdict}:")), "{probe:?}: {text}");
    }
}

/// What is there is understood whichever backend holds it, with comments or without.
#[test]
fn audit_explain_and_verify_know_an_ambient_pod() {
    for backend in BACKENDS {
        let namespace = Namespace::new();
        let asked = ["--virtual-interfaces", "tap0"];
        namespace.ok(&[&["ambient", "--backend", backend], &asked[..]].concat());
        let wanted = [&["--live", "--as", "ambient", "--"], &asked[..]].concat();
        namespace.print(PODWEIR, &[&["verify"], &wanted[..]].concat());
        for (flow, verdict, why) in [
            (&["--destination", "10.1.2.3", "--port", "80"][..], "outbound-proxy", "goes to ztunnel"),
            (&["--destination", "10.1.2.3", "--port", "80", "--mark", "0x539"], "direct", ""),
            (
                &["--destination", "10.1.2.3", "--port", "80", "--mark", "0x111"],
                "dropped",
                "routes it to the pod itself",
            ),
            (&["--destination", "2001:db8::5", "--port", "80", "--mark", "0x111"], "dropped", "routes it to the pod"),
            (&["--destination", "10.244.0.6", "--port", "80", "--mark", "0x111"], "direct", ""),
            (&["--destination", "10.96.0.10", "--port", "53", "--proto", "udp"], "dns-proxy", "DNS goes to ztunnel"),
            (
                &["--direction", "inbound", "--destination", "10.244.0.6", "--port", "80"],
                "inbound-proxy",
                "goes to ztunnel",
            ),
            (
                &["--direction", "inbound", "--source", "169.254.7.127", "--destination", "10.244.0.6", "--port", "80"],
                "direct",
                "kubelet's probes",
            ),
        ] {
            let text = namespace.print(PODWEIR, &[&["explain", "--live"], flow].concat());
            assert!(text.starts_with(verdict) && text.contains(why), "{backend}, {flow:?}: {text}");
        }
        // By which mark routing sends a packet back, be it an answer's or anybody's.
        let back = "routed to the pod itself, by the routing rule for this mark";
        let inbound = ["--direction", "inbound", "--source", "10.9.9.9", "--destination", "10.244.0.6", "--port", "80"];
        for (flow, routed) in [
            (&["--destination", "10.1.2.3", "--port", "80", "--mark", "0x111"][..], true),
            (&["--destination", "10.1.2.3", "--port", "80", "--mark", "0x112"], false),
            (&[&inbound[..], &["--mark", "0x539"]].concat(), true),
            (&inbound, false),
        ] {
            let text = namespace.print(PODWEIR, &[&["explain", "-v", "--live"], flow].concat());
            assert_eq!(text.contains(back), routed, "{backend}, {flow:?}: {text}");
        }
        // What is drawn from options is what is drawn from the kernel: the same chains, as many escapes.
        let drawn = |from: &[&str]| {
            let text = namespace.print(PODWEIR, &[&["render", "--format", "mermaid"], from].concat());
            assert!(text.contains("nat ISTIO_OUTPUT") && text.contains("escapes"), "{backend}: {text}");
            text.matches("escapes").count()
        };
        assert_eq!(drawn(&["--live"]), drawn(&[&["--as", "ambient", "--"], &asked[..]].concat()), "{backend}");
        let output = namespace.podweir(&["audit", "--live"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for word in ["marked-packets-escape", "0x539", "probe-source", "tunnel-port", "outbound-udp"] {
            assert!(text.contains(word), "{backend}: no {word}: {text}");
        }
        assert!(!text.contains("HIGH"), "{backend}: {text}");
        // Drift is told rule by rule.
        let (program, arguments): (&str, &[&str]) = match backend {
            "nftables" => ("nft", &["flush", "chain", "inet", "istio-ambient-mangle", "istio-prerouting"]),
            iptables => (iptables, &["-t", "mangle", "-F", "ISTIO_PRERT"]),
        };
        namespace.print(program, arguments);
        let output = namespace.podweir(&[&["verify"], &wanted[..]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{backend}: {text}");
        assert!(text.contains("0x111"), "{backend}: {text}");
    }
}
