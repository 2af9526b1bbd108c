//! `podweir audit` from the command line: sources, formats, what is accepted, verdicts.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::files::File;
use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};

const INIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pods/init.yaml");
const ANNOTATED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pods/annotated.yaml");
const SCHEMA: &[u8] = include_bytes!("../data/sarif-schema-2.1.0.json.gz");

/// Runs `podweir audit`, with something on standard input.
fn feed(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(PODWEIR)
        .arg("audit")
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that is wrong is refused before anything is read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn audit(arguments: &[&str]) -> Output {
    feed(arguments, "")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ids(report: &Value, list: &str) -> Vec<String> {
    let accepted = |item: &Value| if item["accepted"].is_null() { "" } else { " accepted" };
    let id = |item: &Value| format!("{}{}", item["id"].as_str().unwrap(), accepted(item));
    report[list].as_array().unwrap().iter().map(id).collect()
}

#[test]
fn a_manifest_with_an_init_container() {
    let report = json(&audit(&["--pod-manifest", INIT, "--format", "json"]));
    assert_eq!(report["about"], "manifest of store/shop");
    let escapes = ids(&report, "escapes");
    // Its arguments are IPv4 only, while the pod has an IPv6 address.
    assert_eq!(escapes[..2], ["outbound-family-left-open", "inbound-family-left-open"]);
    assert!(escapes.contains(&"outbound-excluded-range".into()), "{escapes:?}");
    let lints = report["lints"].as_array().unwrap();
    let of = |id: &str| -> Vec<&str> {
        lints.iter().filter(|lint| lint["id"] == id).map(|lint| lint["subject"].as_str().unwrap()).collect()
    };
    assert_eq!(of("shares-proxy-user"), ["container app"]);
    assert_eq!(of("can-become-proxy"), ["container tools", "container helper"]);
    // From standard input, in JSON.
    let pod = serde_json::json!({ "spec": { "initContainers": [ { "name": "istio-init", "args": ["-i", "*"] } ],
        "containers": [ { "name": "istio-proxy" } ], "hostNetwork": true }, "status": { "podIP": "10.0.0.1" } });
    let report = json(&feed(&["--pod-manifest", "-", "--format", "json"], &pod.to_string()));
    assert_eq!(ids(&report, "escapes")[0], "inbound-tcp-not-taken");
    assert!(ids(&report, "lints").contains(&"host-network".into()));
    // A container for debugging is added to a pod that runs.
    let pod = serde_json::json!({ "spec": { "initContainers": [ { "name": "istio-init", "args": ["-i", "*"] } ],
        "containers": [ { "name": "istio-proxy" } ],
        "ephemeralContainers": [ { "name": "debugger", "securityContext": { "runAsUser": 1337 } } ] },
        "status": { "podIP": "10.0.0.1" } });
    let report = json(&feed(&["--pod-manifest", "-", "--format", "json"], &pod.to_string()));
    let shares = report["lints"].as_array().unwrap().iter().find(|lint| lint["id"] == "shares-proxy-user").unwrap();
    assert_eq!(shares["subject"], "container debugger");
}

#[test]
fn a_manifest_beside_another_source_tells_about_the_pod() {
    let options = ["-b", "*", "-i", "*", "-d", "15090"];
    let head = ["render", "--pod-ip", "10.244.0.6", "--format", "iptables", "--"];
    let output = Command::new(PODWEIR).args(head).args(options).env_clear().output().unwrap();
    let dump = File::new("manifest.dump", &text(&output.stdout));
    let own = serde_json::json!(["10.244.0.6", "fd00:10:244::6"]);
    // The dump tells nothing of the rules that the pod's other family should have.
    let mut typed = vec!["--dump", dump.path(), "--", "-b", "*", "-i", "*", "-d", "15090"];
    let refused = audit(&[&["--pod-manifest", INIT], &typed[..]].concat());
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0));
    assert!(text(&refused.stderr).contains("rules of IPv6 are wanted"), "{}", text(&refused.stderr));
    typed.extend(["--ip-families", "ipv4"]);
    for (source, about, drift) in [
        (&["--dump", dump.path()][..], "rules of store/shop in ", true),
        (&["--", "-b", "80"], "options -b 80 for store/shop", false),
        (&["--"], "no options for store/shop", false),
        (&typed, "rules of store/shop in ", false),
    ] {
        let report = json(&audit(&[&["--pod-manifest", INIT, "--format", "json"], source].concat()));
        assert_eq!(report["pod"]["addresses"], own, "{source:?}");
        assert!(report["about"].as_str().unwrap().starts_with(about), "{}", report["about"]);
        // Options that are typed are what counts, not the manifest's.
        let drifted = report["drift"].as_array().is_some_and(|drift| !drift.is_empty());
        assert_eq!(drifted, drift, "{source:?} {}", report["drift"]);
    }
}

#[test]
fn a_manifest_with_annotations() {
    let report = json(&audit(&[
        "--pod-manifest",
        ANNOTATED,
        "--pod-ip",
        "10.244.0.6",
        "--format",
        "json",
        "--dns-server",
        "none",
    ]));
    let escapes = ids(&report, "escapes");
    assert!(escapes.contains(&"outbound-excluded-port".into()), "{escapes:?}");
    assert!(!escapes.contains(&"outbound-dns".into()), "{escapes:?}");
    let own = report["escapes"].as_array().unwrap().iter().find(|e| e["id"] == "outbound-proxy-own").unwrap();
    assert_eq!(own["example"]["uid"], 1400);
    assert!(!ids(&report, "lints").iter().any(|id| id == "can-become-proxy"));
}

#[test]
fn what_is_accepted_no_longer_counts_and_the_rest_does() {
    let known = File::new(
        "known.yaml",
        "accept:\n\
         - {class: inbound-excluded-port, reason: health checks, only: {ports: [15020-15021]}}\n\
         - {class: outbound-quic, reason: no HTTP/3 here, expires: 2999-12-31}\n\
         - {class: outbound-proxy-own, reason: too late, expires: 2020-01-01}\n\
         - {class: outbound-excluded-user, reason: nobody is}\n\
         - {class: rule-never-matches, reason: as upstream}\n",
    );
    let options = ["--", "-i", "*", "-b", "*", "-d", "15020,15021,15090"];
    let accept = ["--pod-ip", "10.244.0.6", "--accept", known.path()];
    let report = json(&audit(&[&accept[..], &["--format", "json"], &options].concat()));
    let escapes = ids(&report, "escapes");
    for line in
        ["inbound-excluded-port", "inbound-excluded-port accepted", "outbound-quic accepted", "outbound-proxy-own"]
    {
        assert!(escapes.iter().any(|id| id == line), "{line}: {escapes:?}");
    }
    let ports = |accepted: bool| {
        let is_it = |e: &&Value| e["id"] == "inbound-excluded-port" && e["accepted"].is_null() != accepted;
        report["escapes"].as_array().unwrap().iter().find(is_it).unwrap()["flows"][0]["port"].clone()
    };
    assert_eq!((ports(true), ports(false)), (serde_json::json!(["15020-15021"]), serde_json::json!(["15090"])));
    assert!(ids(&report, "lints").iter().all(|id| id == "rule-never-matches accepted"));
    let notices = report["notices"].to_string();
    assert!(notices.contains("outbound-proxy-own: accepted until 2020-01-01, which is over"), "{notices}");
    assert!(notices.contains("outbound-excluded-user: accepted, but not found"), "{notices}");
    // 15090 and the proxy's user still count.
    let failed = audit(&[&accept[..], &["--fail-on", "medium"], &options].concat());
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("2 findings are of severity medium or worse"), "{}", text(&failed.stderr));
    assert!(text(&failed.stdout).contains("MEDIUM    outbound-proxy-own"));
    assert!(audit(&[&accept[..], &["--fail-on", "high"], &options].concat()).status.success());
}

#[test]
fn sarif_is_valid() {
    let mut schema = String::new();
    GzDecoder::new(SCHEMA).read_to_string(&mut schema).unwrap();
    let mut schema: Value = serde_json::from_str(&schema).unwrap();
    // An expression that only JavaScript reads, about a property that is not used here.
    for of in ["run", "toolComponent"] {
        schema["definitions"][of]["properties"]["language"].as_object_mut().unwrap().remove("pattern");
    }
    let schema = jsonschema::validator_for(&schema).unwrap();
    let known = File::new("sarif.yaml", "accept: [{class: outbound-quic, reason: known}]\n");
    let dump =
        File::new("odd name.v4", "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -m odd --odd 1 -j ACCEPT\nCOMMIT\n");
    let dump_name = format!("ipv4={}", dump.path());
    let runs: [&[&str]; 3] = [
        &["--pod-manifest", INIT, "--accept", known.path()],
        &["--dump", &dump_name, "--pod-ip", "10.0.0.1"],
        &["--dump", &dump_name, "--pod-ip", "10.0.0.1", "--", "-i", "*", "--ip-families", "ipv4"],
    ];
    for arguments in runs {
        let report = json(&audit(&[&["--format", "sarif"], arguments].concat()));
        let errors: Vec<String> = schema.iter_errors(&report).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{arguments:?}: {}", errors.join("\n"));
        // A result names a rule that is there.
        let run = &report["runs"][0];
        let rules: Vec<&Value> =
            run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|rule| &rule["id"]).collect();
        let results = run["results"].as_array().unwrap();
        assert!(!results.is_empty() && results.iter().all(|result| rules.contains(&&result["ruleId"])));
        let uri = results[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].as_str().unwrap();
        assert!(!uri.contains(' '), "{uri}");
    }
    let report = json(&audit(&["--format", "sarif", "--pod-manifest", INIT, "--accept", known.path()]));
    let results = report["runs"][0]["results"].as_array().unwrap();
    let quic = results.iter().find(|result| result["ruleId"] == "outbound-quic").unwrap();
    assert_eq!(quic["suppressions"][0]["justification"], "known");
}

#[test]
fn bad_input_is_refused_with_nothing_on_stdout() {
    let proxy = "containers: [{name: istio-proxy}]";
    let cases: [(&str, String, &str); 14] = [
        ("--accept", "accept: [{class: outbound-nothing, reason: x}]".into(), "neither an escape nor a lint"),
        ("--accept", "accept: [{class: outbound-quic}]".into(), "reason"),
        ("--accept", "accept: [{class: outbound-quic, reason: ' '}]".into(), "the reason is empty"),
        ("--accept", "accept: [{class: outbound-quic, reason: x, expires: soon}]".into(), "is no date"),
        ("--accept", "accept: [{class: outbound-quic, reason: x, only: {ports: [0]}}]".into(), "only.ports: '0'"),
        ("--accept", "accept: [{class: outbound-quic, reason: x, only: {ports: []}}]".into(), "only.ports is empty"),
        ("--accept", "accept: [{class: outbound-quic, reason: x, only: {colour: [1]}}]".into(), "colour"),
        ("--accept", "accept: [{class: rule-never-matches, reason: x, only: {ports: [1]}}]".into(), "is a lint"),
        ("--accept", ": [".into(), "line 1"),
        ("--pod-manifest", "a: [".into(), "is no YAML"),
        ("--pod-manifest", "kind: Service".into(), "holds no pod"),
        ("--pod-manifest", "spec: {containers: [{name: app}]}".into(), "no container istio-proxy"),
        ("--pod-manifest", format!("spec: {{{proxy}}}\n---\nspec: {{{proxy}}}"), "holds 2 pods"),
        (
            "--pod-manifest",
            "spec: {initContainers: [{name: istio-init, args: [--no]}], containers: []}".into(),
            "the arguments of istio-init: unexpected argument '--no'",
        ),
    ];
    for (option, content, problem) in cases {
        let output = feed(&["--pod-ip", "10.0.0.1", option, "-"], &content);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{content}: {said}");
        assert!(said.contains(problem) && output.stdout.is_empty(), "{content}: {said}");
    }
    for (arguments, status) in [
        (&["--fail-on", "awful", "--pod-ip", "10.0.0.1"][..], 2),
        (&["--format", "pdf", "--pod-ip", "10.0.0.1"], 2),
        (&["--pod-manifest", "-", "--accept", "-"], 2),
        (&["--pod-ip", "10.0.0.1", "--accept", "/nowhere/at/all"], 1),
        (&[], 2),
    ] {
        let output = audit(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_live_pod_is_compared_with_what_it_should_be() {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    let options = ["-b", "*", "-i", "*", "-d", "15020,15021,15090"];
    let run = |arguments: &[&str]| namespace.command(PODWEIR, arguments, &[]);
    assert!(run(&[&["init"], &options[..]].concat()).status.success());
    let live = ["audit", "--live", "--format", "json"];
    let clean = json(&run(&[&live[..], &["--"], &options].concat()));
    assert_eq!(clean["drift"], serde_json::json!([]));
    assert_eq!(clean["summary"]["high"], 0);
    // The same escapes as of the options alone.
    let planned =
        json(&run(
            &[&["audit", "--pod-ip", "10.244.0.6,fd00:10:244::6", "--format", "json", "--"], &options[..]].concat()
        ));
    assert_eq!(ids(&clean, "escapes"), ids(&planned, "escapes"));
    // Somebody lets a port out, in both families.
    let rule = "insert rule inet istio-proxy-nat output tcp dport 9999 accept";
    assert!(namespace.feed("nft", &["-f", "-"], &[], rule).status.success());
    let changed = json(&run(&[&live[..], &["--"], &options].concat()));
    assert_eq!(changed["drift"].as_array().unwrap().len(), 2, "{}", changed["drift"]);
    assert_eq!(changed["drift"][0]["severity"], "high");
    let effect = changed["drift"][0]["effects"][0].as_str().unwrap();
    assert!(effect.contains("port 9999") && effect.ends_with("now escapes the proxy's outbound port"), "{effect}");
    assert_eq!(ids(&changed, "escapes")[0], "outbound-foreign-rule");
    assert_eq!(changed["escapes"][0]["flows"][0]["port"], serde_json::json!(["9999"]));
    assert!(ids(&changed, "lints").contains(&"foreign-rule-in-front".into()));
    assert_eq!(run(&[&live[..], &["--fail-on", "high"]].concat()).status.code(), Some(1));
}

/// The blocks of text in the README's section on audits are what the program prints.
#[test]
fn the_readme_shows_what_is_printed() {
    let readme = include_str!("../../README.md");
    let section = readme.split("\n## ").find(|section| section.starts_with("Audit a pod")).unwrap();
    let mut blocks = section.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap().1.trim_end());
    let options = ["--pod-ip", "10.244.0.6,fd00:10:244::6", "--", "-i", "*", "-b", "*", "-d", "15020,15021,15090"];
    let printed = text(&audit(&options).stdout);
    let is_head = |line: &&str| line.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_uppercase());
    let heads: Vec<&str> = printed.lines().filter(is_head).collect();
    let (command, shown) = blocks.next().unwrap().split_once('\n').unwrap();
    let words: Vec<String> =
        options.iter().map(|word| if *word == "*" { "'*'".into() } else { (*word).into() }).collect();
    assert_eq!(command, format!("$ podweir audit {} | grep '^[0-9A-Z]'", words.join(" ")));
    assert_eq!(shown, heads.join("\n"));
    assert!(printed.contains(&format!("{}\n\n", blocks.next().unwrap())), "{printed}");
    let accepted = File::new("readme.yaml", blocks.next().unwrap());
    let report = json(&audit(&[&["--accept", accepted.path(), "--format", "json"], &options[..]].concat()));
    assert!(ids(&report, "escapes").contains(&"inbound-excluded-port accepted".into()));
    let drawn = Command::new(PODWEIR).args(["render", "--format", "svg"]).args(options).output().unwrap();
    assert_eq!(text(&drawn.stdout), include_str!("../../scripts/typical-pod.svg"));
}

/// A bare `--` says the defaults, as it does to `verify`.
#[test]
fn nothing_behind_the_dashes_is_compared_with_the_defaults() {
    let namespace = Namespace::new();
    namespace.ok(&["init", "-p", "9999"]);
    let gate = ["audit", "--live", "--fail-on", "high"];
    assert!(namespace.podweir(&gate).status.success());
    assert_eq!(namespace.podweir(&[&gate[..], &["--"]].concat()).status.code(), Some(1));
    namespace.ok(&["init"]);
    assert!(namespace.podweir(&[&gate[..], &["--"]].concat()).status.success());
}
