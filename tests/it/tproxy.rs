//! What the routing of marked packets does for TPROXY, and what `verify` says of a pod
//! that lacks it: the same as the kernel does.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, Socket, Type};

use crate::fixture::{Namespace, V4, V6};
use crate::plugin::{Cluster, sidecar};
use crate::pod::{Pod, Probe, Proxy, transparent};

const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };

/// Connects to the app as a proxy does that keeps the client's address.
fn relay(pod: &Pod, client: IpAddr, app: IpAddr) -> bool {
    relayed(pod, (0, 1337), client, app) == "app"
}

/// Who answers a proxy of this user and group that does so.
fn relayed(pod: &Pod, (uid, gid): (u32, u32), client: IpAddr, app: IpAddr) -> String {
    pod.namespace.run(|| {
        let domain = if app.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        setfsgid(Gid::from_raw(gid));
        setfsuid(Uid::from_raw(uid));
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
        transparent(&socket, app.is_ipv4());
        socket.set_mark(1337).unwrap();
        socket.bind(&SocketAddr::new(client, 0).into()).unwrap();
        let limit = Duration::from_millis(500);
        let connected = socket.connect_timeout(&SocketAddr::new(app, 8080).into(), limit);
        socket.set_read_timeout(Some(limit)).unwrap();
        let mut answer = String::new();
        match connected.and_then(|()| (&socket).read_to_string(&mut answer)) {
            Ok(_) => answer,
            Err(_) => "silent".into(),
        }
    })
}

#[test]
fn what_is_lost_without_the_routing_of_marked_packets() {
    for backend in ["nftables", "iptables-legacy"] {
        let pod = Pod::new(&[V4, V6], "", PROXY);
        pod.namespace.ok(&["init", "--backend", backend, "-m", "TPROXY"]);
        pod.outside.batch("route add 198.51.100.0/24 via 10.244.0.6\nroute add 2001:db8:5::/48 via fd00:10:244::6\n");
        let own = Probe::parse("in tcp to 10.244.0.6 8080");
        let other = Probe::parse("in tcp to 198.51.100.9 8080");
        let v6 = [Probe::parse("in tcp to fd00:10:244::6 8080"), Probe::parse("in tcp to 2001:db8:5::9 8080")];
        let all = [own, other, v6[0].clone(), v6[1].clone()];
        let relays = || {
            let pair = |client: &str, app: &str| relay(&pod, client.parse().unwrap(), app.parse().unwrap());
            [pair("10.244.0.1", "10.244.0.6"), pair("fd00:10:244::1", "fd00:10:244::6")]
        };
        assert_eq!(pod.probe(&all), ["in-proxy"; 4], "{backend}");
        assert_eq!(relays(), [true, true], "{backend}");
        for family in ["-4", "-6"] {
            pod.namespace.print("ip", &[family, "rule", "del", "fwmark", "1337"]);
        }
        assert_eq!(pod.probe(&all), ["in-proxy", "silent", "in-proxy", "silent"], "{backend}");
        assert_eq!(relays(), [false, false], "{backend}");
        let output = pod.namespace.podweir(&["verify", "--live", "--", "-m", "TPROXY"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let words = "expected, not found: the IPv4 rule 'fwmark 0x539 lookup 133'\n    effect: connections to the pod reach the proxy all the same; \
            where it connects to the app with the client's address the app's answers leave the pod, so that it gets none; \
            connections to addresses that are not the pod's own are dropped\n";
        assert!(text.contains(words), "{text}");
    }
}

const CLASS: &str = "tproxy-proxy-user";

/// The severities of the finding about the proxy's user.
fn found(pod: &Pod) -> Vec<String> {
    findings(pod, CLASS)
}

fn findings(pod: &Pod, class: &str) -> Vec<String> {
    let output = pod.namespace.podweir(&["audit", "--live", "--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lints = report["lints"].as_array().unwrap().iter().filter(|lint| lint["id"] == class);
    lints.map(|lint| lint["severity"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_proxy_that_runs_as_the_user_of_the_rules_gets_its_own_connections() {
    let (client, app) = ("10.244.0.1".parse().unwrap(), "10.244.0.6".parse().unwrap());
    for backend in ["nftables", "iptables-legacy"] {
        for (uid, answers, severities) in [(1337, "silent", &["medium"][..]), (0, "app", &[])] {
            let pod = Pod::new(&[V4, V6], "", Proxy { uid, ..PROXY });
            let said = |face: &str, mode: &str| {
                let log =
                    pod.namespace.ok(&[face, "--backend", backend, "-b", "*", "-i", "*", "-m", mode, "--reconcile"]);
                log.contains("inbound connections hang or loop")
            };
            for face in ["init", "istio-iptables"] {
                assert_eq!((said(face, "REDIRECT"), found(&pod)), (false, vec![]), "{backend}");
                assert_eq!(said(face, "TPROXY"), uid == 1337, "{backend} {face}");
            }
            assert_eq!(relayed(&pod, (uid, 1337), client, app), answers, "{backend}");
            assert_eq!(found(&pod), severities, "{backend}");
        }
    }
}

/// Why they should not: `envoy::source_ports_that_meet_stop_a_stream_behind_tproxy_whoever_made_the_rules`.
#[test]
fn source_ports_that_clients_use_as_well_are_found() {
    let pod = Pod::new(&[V4], "", Proxy { uid: 0, ..PROXY });
    for (mode, ports, severities) in [
        ("TPROXY", "32768 60999", &["info"][..]),
        ("TPROXY", "1024 65535", &["info"]),
        ("TPROXY", "20000 32767", &[]),
        ("REDIRECT", "32768 60999", &[]),
    ] {
        pod.namespace.print("sysctl", &["-qw", &format!("net.ipv4.ip_local_port_range={ports}")]);
        pod.namespace.ok(&["init", "-m", mode]);
        assert_eq!(findings(&pod, "tproxy-source-ports"), severities, "{mode} {ports}");
    }
}

#[test]
fn before_the_proxy_is_there_init_says_whom_it_has_to_run_as() {
    let namespace = Namespace::new();
    let words = "with TPROXY the proxy has to be another user than rules call its own";
    assert!(!namespace.ok(&["istio-iptables", "-m", "TPROXY", "-b", "*", "--native-nftables"]).contains(words));
    let log = namespace.ok(&["init", "-m", "TPROXY"]);
    assert!(log.contains(words) && log.contains("user 0 with group 1337"), "{log}");
    assert!(namespace.ok(&["init", "-m", "TPROXY", "-u", "0"]).contains("inbound connections hang or loop"));
}

#[test]
fn the_plugin_warns_of_a_proxy_that_the_pod_runs_as_the_user_of_the_rules() {
    let pod = |uid: u32| {
        let mut pod = sidecar(json!({ "sidecar.istio.io/interceptionMode": "TPROXY" }));
        pod["spec"]["containers"][1]["securityContext"]["runAsUser"] = json!(uid);
        pod
    };
    for (uid, warns) in [(1337, true), (0, false)] {
        let cluster = Cluster::new(&pod(uid));
        cluster.add().call().ok();
        assert_eq!(
            cluster.run_dir.log().contains("inbound connections hang or loop"),
            warns,
            "{}",
            cluster.run_dir.log()
        );
        let manifest = cluster.run_dir.path().join("pod.yaml");
        std::fs::write(&manifest, serde_json::to_vec(&pod(uid)).unwrap()).unwrap();
        let arguments =
            ["audit", "--pod-manifest", manifest.to_str().unwrap(), "--pod-ip", "10.244.0.6", "--format", "json"];
        let output = cluster.namespace.podweir(&arguments);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut lints = report["lints"].as_array().unwrap().iter();
        assert_eq!(lints.any(|lint| lint["id"] == CLASS && lint["severity"] == "medium"), warns, "{report:#}");
    }
}

#[test]
fn the_tunnel_port_is_left_alone_by_redirect_only() {
    let tunnel = [Probe::parse("in tcp to 10.244.0.6 15008"), Probe::parse("in tcp to fd00:10:244::6 15008")];
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let pod = Pod::new(&[V4, V6], "", Proxy { uid: 0, ..PROXY });
        for (options, answers) in [
            (&["-m", "REDIRECT"][..], "app"),
            (&["-m", "TPROXY"], "in-proxy"),
            (&["-m", "TPROXY", "-b", "*", "-d", "15008"], "app"),
        ] {
            let init = ["init", "--backend", backend, "--reconcile"];
            pod.namespace.ok(&[&init[..], options].concat());
            assert_eq!(pod.probe(&tunnel), [answers; 2], "{backend} {options:?}");
        }
    }
}
