//! What is asked is what the kernel would do when a program asks for it.

use serde_json::Value;

use crate::fixture::{V4, V6};
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
    let output = pod.namespace.feed(crate::fixture::PODWEIR, &["explain", "--live", "--flows", "-"], &[], flows);
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
