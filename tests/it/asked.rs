//! What is asked is what the kernel would do when a program asks for it.

use std::os::fd::AsRawFd;

use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR, V4, V6};
use crate::pod::{Pod, Probe, Proxy};

const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };

fn explain(pod: &Pod, arguments: &[&str]) -> (Value, String) {
    let all =
        |more: &[&str]| pod.namespace.podweir(&[&["explain", "--live", "--uid", "1000"], more, arguments].concat());
    let (json, text) = (all(&["--json"]), all(&[]));
    let error = String::from_utf8_lossy(&json.stderr);
    (
        serde_json::from_slice(&json.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {error}")),
        String::from_utf8(text.stdout).unwrap(),
    )
}

/// Who answers, in the words of verdicts.
fn taker(who: &str) -> &str {
    match who {
        "out-proxy" => "outbound-proxy",
        "app" | "outside" => "direct",
        other => other,
    }
}

#[test]
fn addresses_that_no_packet_has_mean_what_the_kernel_makes_of_them() {
    let pod = Pod::new(&[V4, V6], "", PROXY);
    pod.namespace.ok(&["init", "-x", "198.51.100.0/24"]);
    for (source, to, flow) in [
        (None, "0.0.0.0", "127.0.0.1:8080"),
        (None, "::", "[::1]:8080"),
        (None, "::ffff:0.0.0.0", "127.0.0.1:8080"),
        (Some("10.244.0.6"), "0.0.0.0", "10.244.0.6:8080"),
        (Some("::ffff:10.244.0.6"), "::", "127.0.0.1:8080"),
        (Some("fd00:10:244::6"), "::", "[::1]:8080"),
        (None, "::ffff:203.0.113.7", "203.0.113.7:8080"),
        (None, "::ffff:198.51.100.7", "198.51.100.7:8080"),
        (Some("::ffff:10.244.0.6"), "::ffff:203.0.113.7", "203.0.113.7:8080"),
    ] {
        let from = source.map(|source| format!(" from {source}")).unwrap_or_default();
        let probe = Probe::parse(&format!("out tcp uid=1000 gid=1000{from} to {to} 8080"));
        let who = pod.probe(&[probe]).remove(0);
        let mut arguments = vec!["--destination", to, "--port", "8080"];
        arguments.extend(source.iter().flat_map(|source| ["--source", source]));
        let (json, text) = explain(&pod, &arguments);
        assert_eq!(json["verdict"], taker(&who), "{from} to {to}: {who}, {text}");
        assert!(text.lines().next().unwrap().contains(&format!("TCP to {flow} from ")), "{text}");
        assert!(text.contains(&format!("to {to}\n")) && text.contains("  asked for as "), "{text}");
        assert!(json["asked_as"].as_str().unwrap().ends_with(&format!("to {to}")), "{json}");
    }
    // Lines of --flows say the same; what is asked for as it is says nothing of it.
    let flows = "{\"destination\":\"::ffff:198.51.100.7\",\"port\":80,\"uid\":1000}\n{\"destination\":\"10.0.0.1\",\"port\":80}\n\
        {\"direction\":\"inbound\",\"destination\":\"::\",\"port\":80}\n";
    let output = pod.namespace.feed(PODWEIR, &["explain", "--live", "--flows", "-"], &[], flows);
    let lines: Vec<Value> =
        output.stdout.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!((&lines[0]["verdict"], &lines[0]["asked_as"]), (&"direct".into(), &"to ::ffff:198.51.100.7".into()));
    assert_eq!(lines[0]["flow"], "TCP to 198.51.100.7:80 from uid 1000");
    assert_eq!((&lines[1]["flow"], &lines[1]["asked_as"]), (&Value::Null, &Value::Null));
    assert!(lines[2]["error"].as_str().unwrap().contains("nothing comes in for ::"), "{}", lines[2]);
    // The pod's own addresses.
    let output = pod.namespace.podweir(&[
        "explain",
        "--pod-ip",
        "::ffff:10.9.0.1",
        "--direction",
        "inbound",
        "--port",
        "80",
        "--",
        "-b",
        "*",
    ]);
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("inbound-proxy: inbound TCP to 10.9.0.1:80\n"),
        "{output:?}"
    );
    let output = pod.namespace.podweir(&["audit", "--pod-ip", "0.0.0.0", "--", "-b", "*"]);
    assert_eq!(output.status.code(), Some(2));
}

/// A second interface, as Multus gives one, with an outside of its own behind it.
fn second_interface(pod: &Pod) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), pod.outside.net().as_raw_fd());
    pod.namespace.print("ip", &["link", "add", "net1", "type", "veth", "peer", "name", "up1", "netns", &path]);
    pod.namespace.batch("addr add 10.55.0.2/24 dev net1\naddr add fd55::2/64 dev net1 nodad\nlink set net1 up\nroute add 192.0.2.0/25 via 10.55.0.1\n");
    pod.outside.batch("addr add 10.55.0.1/24 dev up1\naddr add fd55::1/64 dev up1 nodad\nlink set up1 up\n");
    let redirect = ["iifname", "up1", "meta", "l4proto", "tcp", "redirect", "to", ":9"];
    pod.outside.print("nft", &[&["add", "rule", "inet", "anyone", "prerouting"], &redirect[..]].concat());
}

#[test]
fn flows_go_by_the_interface_that_routing_says() {
    let pod = Pod::new(&[V4, V6], "", PROXY);
    second_interface(&pod);
    pod.namespace.ok(&["init", "-c", "net1"]);
    let dump = pod.namespace.directory().join("pod.json");
    std::fs::write(&dump, pod.namespace.print(PODWEIR, &["render", "--live", "--format", "json"])).unwrap();
    let mut seen = Vec::new();
    for (inbound, to) in [
        (false, "10.55.0.1"),
        (false, "fd55::1"),
        (false, "192.0.2.7"),
        (false, "192.0.2.200"),
        (false, "10.244.0.1"),
        (false, "2001:db8::7"),
        (true, "10.55.0.2"),
        (true, "fd55::2"),
        (true, "10.244.0.6"),
        (true, "fd00:10:244::6"),
    ] {
        let way = if inbound { "in tcp" } else { "out tcp uid=1000 gid=1000" };
        let who = pod.probe(&[Probe::parse(&format!("{way} to {to} 8080"))]).remove(0);
        let who = if who == "in-proxy" { "inbound-proxy".to_owned() } else { taker(&who).to_owned() };
        let direction = if inbound { "inbound" } else { "outbound" };
        for source in [&["--live"][..], &["--dump", dump.to_str().unwrap()]] {
            let flow = ["explain", "--direction", direction, "--destination", to, "--port", "8080", "--expect", &who];
            let output = pod.namespace.podweir(&[&flow[..], source].concat());
            assert!(
                output.status.success(),
                "{direction} {to} {source:?}: {who}, {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
        seen.push(who);
    }
    let direct = seen.iter().filter(|who| *who == "direct").count();
    assert_eq!((direct, seen.len()), (5, 10), "{seen:?}");
    // Rules of policy routing may say otherwise, which is told where it matters.
    pod.namespace.print("ip", &["rule", "add", "from", "10.55.0.2", "lookup", "100"]);
    let told = |namespace: &Namespace| {
        let output = namespace.podweir(&["explain", "--live", "--destination", "10.55.0.1", "--port", "80"]);
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(
        told(&pod.namespace).contains("policy routing of others is not looked at (1 of ip rule)"),
        "{}",
        told(&pod.namespace)
    );
    pod.namespace.ok(&["clean"]);
    pod.namespace.ok(&["init"]);
    assert!(!told(&pod.namespace).contains("policy routing"), "{}", told(&pod.namespace));
}

/// Where routes are not known the way to others is one interface, which can be named.
#[test]
fn options_and_dumps_may_be_told_the_uplink() {
    let namespace = Namespace::new();
    let explain = |more: &[&str]| {
        let flow = ["explain", "--pod-ip", "10.244.0.6", "--destination", "10.0.0.1", "--port", "80"];
        let output = namespace.podweir(&[&flow[..], more, &["--", "-i", "*", "-c", "net1"]].concat());
        String::from_utf8(output.stdout).unwrap().split(':').next().unwrap().to_owned()
    };
    assert_eq!(explain(&[]), "outbound-proxy");
    assert_eq!(explain(&["--uplink", "net1"]), "direct");
    let audit =
        ["audit", "--pod-ip", "10.244.0.6", "--uplink", "ens3", "--format", "json", "--", "-i", "*", "-c", "net1"];
    let report: Value = serde_json::from_str(&namespace.print(PODWEIR, &audit)).unwrap();
    assert_eq!(report["pod"]["uplink"], "ens3");
    let live =
        namespace.podweir(&["explain", "--live", "--uplink", "net1", "--destination", "10.0.0.1", "--port", "80"]);
    assert_eq!(live.status.code(), Some(2));
}
