//! `verify`, `render` and `explain` from the command line.

use podweir::audit::explain::{NoTrace, explain as ask};
use podweir::audit::flow::Surroundings;
use podweir::config::settings::Face;
use serde_json::Value;

use crate::conformance::{refs, strings, variables};
use crate::explain::{agrees, flow, settings};
use crate::fixture::{Namespace, PODWEIR, V4, V6};
use crate::pod::Probe;
use crate::sources::dumped;
use crate::traffic::{COMPATIBLE, proxy, recorded};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

/// Standard output and the exit status.
fn run(namespace: &Namespace, arguments: &[&str]) -> (String, i32) {
    let output = namespace.podweir(arguments);
    let log = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {log}"));
    (String::from_utf8(output.stdout).unwrap() + &log, status)
}

#[test]
fn the_plan_is_the_same_and_has_one_digest_on_every_backend() {
    let options = [
        "-b",
        "*",
        "-m",
        "TPROXY",
        "-i",
        "10.0.0.0/8,fd00::/8",
        "-o",
        "3306,5000-5010",
        "--capture-all-dns",
        "--redirect-dns",
    ];
    let mut digests = Vec::new();
    for backend in BACKENDS {
        let namespace = Namespace::with(&[V4, V6], "");
        namespace.ok(&[&["init", "--backend", backend], &options[..]].concat());
        let (text, status) = run(&namespace, &[&["verify", "--live", "--"], &options[..]].concat());
        assert_eq!(status, 0, "{backend}: {text}");
        assert!(text.contains(&format!("same: {backend} holds")), "{text}");
        digests.push(namespace.print(PODWEIR, &["render", "--live", "--hash"]));
    }
    let namespace = Namespace::new();
    let wanted = [&["render", "--hash", "--pod-ip", "10.244.0.6,fd00:10:244::6", "--"], &options[..]].concat();
    digests.push(namespace.print(PODWEIR, &wanted));
    assert!(digests.iter().all(|digest| digest == &digests[0] && digest.starts_with("sha256:")), "{digests:?}");
    let other = [&wanted[..], &["-r", "134"]].concat();
    assert_ne!(namespace.print(PODWEIR, &other), digests[0]);
}

#[test]
fn differences_tell_which_traffic_they_affect() {
    for backend in BACKENDS {
        let namespace = Namespace::new();
        namespace.ok(&["init", "--backend", backend, "-b", "*", "-i", "*", "-o", "3306,8443"]);
        // An exclusion too many.
        let (text, status) = run(&namespace, &["verify", "--live", "--", "-b", "*", "-i", "*", "-o", "3306"]);
        assert_eq!(status, 1, "{text}");
        assert!(text.contains("IPv4 nat ISTIO_OUTPUT: found, not expected: tcp,udp port 8443: return"), "{text}");
        assert!(text.contains(":8443 from uid 1000 now escapes the proxy's outbound port"), "{text}");
        // One too few, in JSON.
        let (text, status) =
            run(&namespace, &["verify", "--live", "--json", "--", "-b", "*", "-i", "*", "-o", "3306,8443,9999"]);
        assert_eq!(status, 1, "{text}");
        let value: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
        assert_eq!((&value["same"], &value["findings"][0]["kind"]), (&Value::from(false), &Value::from("missing")));
        let effect = value["findings"][0]["effects"][0].as_u64().unwrap() as usize;
        assert_eq!(value["effects"][effect]["found"], "outbound-proxy");
        let arguments = strings(&value["effects"][effect]["example"]["explain"]);
        let mut explain = vec!["explain", "--live", "--expect", "outbound-proxy"];
        explain.extend(refs(&arguments));
        assert_eq!(run(&namespace, &explain).1, 0);
    }
}

#[test]
fn a_difference_that_changes_nothing_says_so() {
    let namespace = Namespace::new();
    namespace.ok(&["init", "--backend", "nftables", "-b", "*", "-i", "*"]);
    namespace.print("nft", &["add", "rule", "inet", "istio-proxy-nat", "istio-output", "tcp", "dport", "80", "return"]);
    let (text, status) = run(&namespace, &["verify", "--live", "--", "-b", "*", "-i", "*"]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains(": tcp port 80: return (not part of the plan: somebody else's)\n    no effect"), "{text}");
    assert!(text.contains("different: 1 difference, 1 of them without effect"), "{text}");
}

#[test]
fn a_network_policy_is_no_drift_and_a_foreign_accept_is() {
    let namespace = Namespace::new();
    namespace.ok(&["init", "--backend", "nftables"]);
    let drops = "table ip np { chain entry { type filter hook input priority 0; tcp dport 22 drop; }; }";
    assert!(namespace.feed("nft", &["-f", "-"], &[], drops).status.success());
    let (text, status) = run(&namespace, &["verify", "--live", "--"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("rules of others") && text.contains("is now dropped"), "{text}");
    let redirects =
        "table ip another { chain leaving { type nat hook output priority -150; tcp dport 81 redirect to :15001; }; }";
    assert!(namespace.feed("nft", &["-f", "-"], &[], redirects).status.success());
    // The app's connections go to the proxy all the same; the proxy's own ones loop.
    let (text, status) = run(&namespace, &["verify", "--live", "--"]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains(":81 from uid 1337 gid 1000 now goes to the proxy's outbound port"), "{text}");
    for rule in
        [&["tcp", "dport", "82", "dnat", "to", "10.0.0.9:80"][..], &["tcp", "dport", "83", "redirect", "to", ":7000"]]
    {
        namespace.print("nft", &["flush", "chain", "ip", "another", "leaving"]);
        namespace.print("nft", &[&["add", "rule", "ip", "another", "leaving"], rule].concat());
        let (text, status) = run(&namespace, &["verify", "--live", "--"]);
        assert_eq!(status, 1, "{text}");
        assert!(text.contains("may now go elsewhere"), "{text}");
    }
}

#[test]
fn nothing_there_and_twice_there_are_drift() {
    let namespace = Namespace::new();
    let (text, status) = run(&namespace, &["verify", "--live", "--"]);
    assert_eq!(status, 1);
    assert!(text.contains("no rule of an interception is there"), "{text}");
    assert!(text.contains("inbound TCP to 10.244.0.6:8080 now escapes the proxy's inbound port"), "{text}");
    namespace.ok(&["init", "--backend", "nftables"]);
    let saved = namespace.print(PODWEIR, &["render", "--live", "--format", "iptables"]);
    assert!(namespace.feed("iptables-nft-restore", &["--noflush"], &[], &saved).status.success());
    let (text, status) = run(&namespace, &["verify", "--live", "--"]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("rules of an interception in iptables-nft as well"), "{text}");
}

#[test]
fn a_dump_of_one_family_does_not_answer_for_the_other() {
    let namespace = Namespace::with(&[V4, V6], "");
    namespace.ok(&["init", "--backend", "iptables-nft"]);
    let v4 = namespace.print("iptables-nft-save", &[]);
    let feed = |arguments: &[&str]| {
        let output = namespace.feed(PODWEIR, arguments, &[], &v4);
        (
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
            output.status.code(),
        )
    };
    let (text, status) = feed(&["verify", "--dump", "-", "--pod-ip", "10.244.0.6,fd00:10:244::6", "--"]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("rules of IPv6 are wanted, of which the dump says nothing"), "{text}");
    let (text, status) = feed(&["verify", "--dump", "-", "--pod-ip", "10.244.0.6", "--"]);
    assert_eq!(status, Some(0), "{text}");
    let (text, status) = feed(&["explain", "--dump", "-", "--destination", "fd00::1", "--port", "80"]);
    assert_eq!(status, Some(0));
    assert!(text.contains("unknown: ") && text.contains("does not tell the rules of IPv6"), "{text}");
}

#[test]
fn flows_are_answered_in_order_and_expectations_decide_the_status() {
    let namespace = Namespace::new();
    let flows = "{\"destination\":\"10.0.0.1\",\"port\":443}\n\n{\"direction\":\"inbound\",\"port\":15090}\n{\"proto\":\"udp\",\"destination\":\"10.0.0.1\",\"port\":443,\"expect\":\"direct\"}\n";
    let feed = |flows: &str, more: &[&str]| {
        let arguments = [&["explain", "--flows", "-", "--pod-ip", "10.244.0.6"], more].concat();
        let output = namespace.feed(PODWEIR, &arguments, &[], flows);
        let answers: Vec<Value> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (answers, output.status.code())
    };
    let (answers, status) = feed(flows, &["--", "-b", "*", "-d", "15090", "-i", "*"]);
    let verdicts: Vec<&str> = answers.iter().map(|a| a["verdict"].as_str().unwrap()).collect();
    assert_eq!((verdicts, status), (vec!["outbound-proxy", "direct", "direct"], Some(0)));
    assert_eq!(answers[1]["why"], "inbound port is left alone");
    let (answers, status) = feed(flows, &["--expect", "outbound-proxy", "--", "-b", "*", "-i", "*"]);
    assert_eq!((answers[1]["expected"].as_str(), status), (Some("outbound-proxy"), Some(1)));
    for (wrong, words) in [
        ("x", "no JSON"),
        ("[]", "no JSON object"),
        ("{\"destination\":\"10.0.0.1\"}", "needs a port"),
        ("{\"port\":80}", "needs a destination"),
        ("{\"destination\":\"10.0.0.1\",\"port\":80,\"colour\":1}", "\"colour\""),
        ("{\"destination\":\"10.0.0.1\",\"port\":70000}", "70000"),
        ("{\"destination\":\"10.0.0.1\",\"port\":80,\"proto\":\"quic\"}", "quic"),
        ("{\"destination\":\"10.0.0.1\",\"port\":80,\"source\":\"::1\"}", "different IP families"),
        ("{\"direction\":\"inbound\",\"port\":80,\"uid\":5}", "no owner"),
        ("{\"destination\":\"10.0.0.1\",\"port\":80,\"port\":443}", "\"port\" is there twice"),
        ("{\"destination\":\"10.0.0.1\",\"port\":null,\"port\":443}", "\"port\" is there twice"),
    ] {
        let (answers, status) = feed(&format!("{wrong}\n{flows}"), &["--"]);
        assert_eq!((answers.len(), status), (4, Some(2)), "{wrong}");
        assert!(answers[0]["error"].as_str().unwrap().contains(words), "{wrong}: {}", answers[0]);
    }
}

#[test]
fn the_walk_shows_hooks_marks_and_the_second_pass() {
    let namespace = Namespace::new();
    let flow = ["--uid", "1337", "--destination", "10.244.0.6", "--port", "80", "--pod-ip", "10.244.0.6"];
    let all = [&["explain", "-v"], &flow[..], &["--", "-m", "TPROXY", "-b", "*", "-i", "*"]].concat();
    let (text, status) = run(&namespace, &all);
    assert_eq!(status, 0);
    let mut rest = text.as_str();
    for part in [
        "output: mangle OUTPUT",
        "the packet is marked 0x53a",
        "output: nat OUTPUT",
        "ISTIO_OUTPUT: tcp to not 127.0.0.1/32",
        "comes in again on lo",
        "prerouting: mangle PREROUTING",
        "inbound-proxy: TCP to 10.244.0.6:80 from uid 1337",
        "because the app called its own service",
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("no '{part}' in the rest of:\n{text}"));
        rest = &rest[at..];
    }
}

#[test]
fn a_change_of_options_is_shown_with_what_it_changes() {
    let namespace = Namespace::new();
    let diff = |format: &str, a: &[&str], b: &[&str]| {
        let head = ["render", "--diff", "--format", format, "--pod-ip", "10.244.0.6", "--"];
        run(&namespace, &[&head, a, &["--against", "--"], b].concat())
    };
    let (text, status) = diff("table", &["-b", "*"], &["-b", "*", "-d", "9090"]);
    assert_eq!(status, 0);
    assert!(
        text.contains("new: tcp port 9090: return") && text.contains("now escapes the proxy's inbound port"),
        "{text}"
    );
    assert_eq!(diff("table", &["-b", "80"], &["-b", "80"]), ("no change\n".into(), 0));
    assert_eq!(diff("nft", &["-b", "80"], &["-b", "80"]).1, 2);
    for wrong in [&["--", "-b", "80"][..], &["--against", "--", "-b", "80"]] {
        let output = namespace.command(PODWEIR, &[&["render", "--diff"], wrong].concat(), &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("--diff -- A... --against -- B..."));
    }
    // What is not known of a pod that is not here is told by what would tell it.
    let output = namespace.command(PODWEIR, &["render", "--", "--redirect-dns"], &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("give --dns-server"));
    let output = namespace.command(PODWEIR, &["render", "--dns-server", "none", "--", "--redirect-dns"], &[]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("(--pod-ip tells them)"), "{told}");
    assert!(told.contains("--dns-server names no server"), "{told}");
}

/// The kernel's rules and a dump of them answer as the recordings do, on each backend.
fn recorded_from_live_and_dump(variant: &str) {
    let mut wrong = Vec::new();
    let mut asked = 0;
    for case in recorded(COMPATIBLE).iter().step_by(3) {
        let (settings, addresses) = settings(case, Face::IstioIptables);
        let arguments = strings(&case["args"]);
        let namespace = Namespace::with(&refs(&strings(&case["addresses"])), case["resolv_conf"].as_str().unwrap());
        let variables = variables(&case["env"]);
        let mut all: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let forced = [("FORCE_IPTABLES_BINARY", variant), ("NATIVE_NFTABLES", "true")];
        all.push(if variant == "native" { forced[1] } else { forced[0] });
        let command: Vec<&str> = ["istio-iptables"].into_iter().chain(refs(&arguments)).collect();
        let output = namespace.command(PODWEIR, &command, &all);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let live = dumped(&[("live", &namespace.print(PODWEIR, &["render", "--live", "--format", "json"]))]);
        let dump = match variant {
            "native" => dumped(&[("nft", &namespace.print("nft", &["list", "ruleset"]))]),
            variant => {
                let names = [format!("iptables-{variant}-save"), format!("ip6tables-{variant}-save")];
                let texts = names.clone().map(|name| namespace.print(&name, &[]));
                dumped(&[(&names[0], &texts[0]), (&names[1], &texts[1])])
            }
        };
        let pod = Surroundings::of(addresses);
        let listening = proxy(&arguments);
        let elsewhere = settings.interception.outbound_port.get() != listening.outbound
            || settings.interception.inbound_port.get() != listening.inbound;
        for (key, verdict) in case["verdicts"].as_object().unwrap() {
            let flow = flow(&Probe::parse(key));
            for source in [&live, &dump] {
                asked += 1;
                let taker = ask(&source.ruleset, &pod, &flow, &mut NoTrace).taker;
                if !agrees(taker, verdict.as_str().unwrap(), elsewhere) {
                    wrong.push(format!("{}: {key}: {verdict}, {taker}", case["name"]));
                }
            }
        }
    }
    assert!(asked > 10_000 && wrong.is_empty(), "{} of {asked}: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
}

#[test]
fn the_kernels_rules_answer_as_recorded_on_native_nftables() {
    recorded_from_live_and_dump("native");
}

#[test]
fn the_kernels_rules_answer_as_recorded_on_iptables_nft() {
    recorded_from_live_and_dump("nft");
}

#[test]
fn the_kernels_rules_answer_as_recorded_on_iptables_legacy() {
    recorded_from_live_and_dump("legacy");
}

/// The proxy listens where the plan says: what is sent elsewhere does not reach it.
#[test]
fn a_redirection_to_another_port_is_an_escape() {
    for backend in BACKENDS {
        for mode in ["REDIRECT", "TPROXY"] {
            let namespace = Namespace::new();
            namespace.ok(&["init", "--backend", backend, "-m", mode, "-p", "9999", "-z", "8080"]);
            let (text, status) = run(&namespace, &["verify", "--live", "--", "-m", mode]);
            assert_eq!(status, 1, "{backend} {mode}: {text}");
            for words in ["now escapes the proxy's inbound port", "now escapes the proxy's outbound port"] {
                assert!(text.contains(words), "{backend} {mode}: {text}");
            }
            let gate = ["audit", "--live", "--fail-on", "high", "--", "-m", mode];
            assert_eq!(run(&namespace, &gate).1, 1, "{backend} {mode}");
            let same = ["verify", "--live", "--", "-m", mode, "-p", "9999", "-z", "8080"];
            assert_eq!(run(&namespace, &same).1, 0, "{backend} {mode}");
        }
    }
}
