//! `podweir audit --manifests`: everything that a repository would put into a cluster.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::files::File;
use crate::fixture::PODWEIR;
use crate::schemas;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/manifests");
const SARIF: &[u8] = include_bytes!("../data/sarif-schema-2.1.0.json.gz");

fn feed(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(PODWEIR)
        .args(["audit", "--manifests"])
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
    feed(&[&[MANIFESTS], arguments].concat(), "")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// A workload's standing, and its findings that are of medium severity or worse.
fn workload(report: &Value, name: &str) -> (String, Vec<String>) {
    let of = report["workloads"].as_array().unwrap().iter().find(|w| w["name"] == name).unwrap();
    let standings: Vec<&str> =
        of["variants"].as_array().unwrap().iter().map(|v| v["standing"].as_str().unwrap()).collect();
    let worse = |found: &&Value| ["high", "medium"].contains(&found["severity"].as_str().unwrap());
    let name = |found: &Value| {
        let items: Vec<&str> = found["items"].as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect();
        [&[found["id"].as_str().unwrap()], &items[..]].concat().join(" ")
    };
    (standings.join(" "), of["findings"].as_array().unwrap().iter().filter(worse).map(name).collect())
}

#[test]
fn every_workload_has_its_place_and_its_findings() {
    let output = audit(&["--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    schemas::hold("cluster-audit", &report);
    let (standing, findings) = workload(&report, "web");
    assert_eq!(standing, "intercepted");
    assert!(findings.contains(&"outbound-excluded-port 3306".to_owned()), "{findings:?}");
    assert!(findings.contains(&"outbound-quic".to_owned()), "{findings:?}");
    let (_, findings) = workload(&report, "db");
    assert!(findings.contains(&"can-become-proxy container app".to_owned()), "{findings:?}");
    for (name, standing) in [("tidy", "left-alone"), ("logs", "host-network"), ("once", "ambient")] {
        assert_eq!(workload(&report, name), (standing.into(), vec![]));
    }
    assert_eq!(workload(&report, "bad"), ("refused".into(), vec!["refused".into()]));
    assert_eq!(workload(&report, "alone").0, "intercepted");
    // Two workloads ask for the same, and one for what everybody gets who asks for nothing.
    assert_eq!((&report["summary"]["interceptions"], &report["summary"]["passed_over"]), (&2.into(), &1.into()));
    let shared =
        report["findings"].as_array().unwrap().iter().find(|f| f["items"] == serde_json::json!(["3306"])).unwrap();
    assert_eq!(shared["workloads"].as_array().unwrap().len(), 2, "{shared:#}");
    // Nobody says what the namespace of the pod alone is labelled.
    assert!(
        report["notices"][0].as_str().unwrap().starts_with("1 workload, of which no document"),
        "{}",
        report["notices"]
    );
}

#[test]
fn a_chart_on_standard_input_and_what_the_mesh_was_told() {
    let pod = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app}]}\n";
    let values = File::new("values.yaml", "global: {proxy: {excludeIPRanges: 10.9.0.0/16}}\n");
    let output = feed(&["-", "--injector-values", values.path(), "--namespace", "ours", "--format", "json"], pod);
    let report = json(&output);
    assert_eq!(report["workloads"][0]["namespace"], "ours");
    let (_, findings) = workload(&report, "a");
    assert!(findings.contains(&"outbound-excluded-range 10.9.0.0/16".to_owned()), "{findings:?}");
    let ranges = report["interceptions"].as_array().unwrap().len();
    assert_eq!(ranges, 1);
}

#[test]
fn what_is_broken_is_named_and_does_not_pass_a_gate() {
    let pod = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app}]}\n";
    let both = format!("{pod}---\nkind: [\n");
    let output = feed(&["-"], &both);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("standard input, document 2 (line 5): is no YAML"), "{output:?}");
    let output = feed(&["-", "--fail-on", "high"], &both);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("document 2"), "{output:?}");
    for (input, problem) in
        [("", "no workload"), ("kind: Service\nmetadata: {name: s}\n", "1 documents that make no pods")]
    {
        let output = feed(&["-"], input);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(problem), "{output:?}");
    }
    for (arguments, problem) in [
        (&["/nonexistent"][..], "cannot read /nonexistent"),
        (&["-", "--injector-values", "-"], "give - once"),
        (&["-", "--pid", "1"], "cannot be used with"),
        (&["-", "--injector-values", "/dev/null"], "istio-sidecar-injector"),
    ] {
        let output = feed(arguments, pod);
        assert_ne!(output.status.code(), Some(0));
        assert!(text(&output.stderr).contains(problem), "{arguments:?}: {output:?}");
    }
}

#[test]
fn ten_thousand_documents_are_audited_by_what_they_have_in_common() {
    let mut all = String::new();
    for number in 0..10_000 {
        all += &format!(
            "kind: Deployment\nmetadata: {{name: w{number}, namespace: n{}}}\nspec: {{template: {{metadata: {{annotations: \
             {{traffic.sidecar.istio.io/excludeOutboundPorts: \"{}\"}}}}, spec: {{containers: [{{name: app}}]}}}}}}\n---\n",
            number % 100,
            3000 + number % 3
        );
    }
    let screen = text(&feed(&["-"], &all).stdout);
    let first = screen.lines().next().unwrap();
    assert_eq!(first, "manifests in standard input: 10000 workloads, 100 namespaces, 3 distinct interceptions");
    assert!(screen.lines().count() < 80, "{screen}");
}

#[test]
fn what_is_accepted_is_accepted_of_those_it_names() {
    let count = |accept: &str, severity: &str| {
        let file = File::new(&format!("accept-{}", accept.len()), &format!("accept:\n{accept}"));
        let report = json(&audit(&["--format", "json", "--accept", file.path()]));
        let findings = report["findings"].as_array().unwrap().iter();
        let of = findings
            .filter(|f| f["items"] == serde_json::json!(["3306"]) && f["accepted"].is_null() == (severity == "counts"));
        of.map(|f| f["workloads"].as_array().unwrap().len()).sum::<usize>()
    };
    let entry = |rest: &str| format!("- {{class: outbound-excluded-port, reason: known, {rest}}}\n");
    for (rest, counts) in [
        ("namespaces: [shop]", 0),
        ("namespaces: [sho*]", 0),
        ("namespaces: [other]", 2),
        ("workloads: [Deployment/web]", 1),
        ("workloads: [db, web]", 0),
        ("workloads: [CronJob/web]", 2),
        ("labels: {tier: front}", 1),
        ("namespaces: [shop], workloads: [db], labels: {app: web}", 2),
        ("namespaces: [shop], only: {ports: [3306]}", 0),
        ("namespaces: [shop], only: {ports: [5432]}", 2),
    ] {
        assert_eq!((count(&entry(rest), "counts"), count(&entry(rest), "accepted")), (counts, 2 - counts), "{rest}");
    }
    // Of one pod, what is not known of it is not accepted by an entry that asks for it.
    let file = File::new("accept-one", &format!("accept:\n{}", entry("namespaces: [shop]")));
    let one = |namespace: &str| {
        let manifest = format!(
            "kind: Pod\nmetadata: {{name: a, namespace: {namespace}, annotations: {{sidecar.istio.io/status: '{{}}', \
             traffic.sidecar.istio.io/excludeOutboundPorts: \"3306\"}}}}\nspec: {{containers: [{{name: istio-proxy}}]}}\n"
        );
        let file_of = File::new(&format!("pod-{namespace}"), &manifest);
        let output = Command::new(PODWEIR)
            .args(["audit", "--format", "json", "--accept", file.path(), "--pod-manifest", file_of.path()])
            .output()
            .unwrap();
        json(&output)["summary"]["accepted"].as_u64().unwrap()
    };
    assert_eq!((one("shop"), one("other")), (1, 0));
}

#[test]
fn what_is_new_gone_or_worse_since_a_baseline() {
    let deployment = |name: &str, ports: &str| {
        format!(
            "kind: Deployment\nmetadata: {{name: {name}}}\nspec: {{template: {{metadata: {{annotations: \
             {{traffic.sidecar.istio.io/excludeOutboundPorts: \"{ports}\"}}}}, spec: {{containers: [{{name: app}}]}}}}}}\n---\n"
        )
    };
    let before = feed(
        &["-", "--format", "json"],
        &(deployment("a", "3306,8000-8010") + &deployment("b", "1") + &deployment("c", "1")),
    );
    let baseline = File::new("baseline.json", &text(&before.stdout));
    let now = deployment("a", "3306,8001") + &deployment("b", "1,2-3") + &deployment("d", "1");
    let since = ["-", "--baseline", baseline.path()];
    let output = feed(&[&since[..], &["--format", "json"]].concat(), &now);
    assert_eq!(output.status.code(), Some(0));
    let report = json(&output);
    schemas::hold("cluster-audit", &report);
    let rows = |list: &str| -> Vec<String> {
        let rows = report["comparison"][list].as_array().unwrap().iter();
        let rows = rows.filter(|row| row["id"] == "outbound-excluded-port");
        rows.map(|row| format!("{} {}", row["name"].as_str().unwrap(), row["items"])).collect()
    };
    assert_eq!(rows("new"), ["d [\"1\"]"]);
    assert_eq!(rows("worse"), ["b [\"1-3\"]"]);
    assert_eq!(rows("gone"), ["c [\"1\"]"]);
    // What was there before does not fail; one line says what does.
    let output = feed(&[&since[..], &["--fail-on", "medium"]].concat(), &now);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.lines().count() == 1 && said.contains("new or worse") && said.contains("Deployment default/d"),
        "{said}"
    );
    let same = deployment("a", "3306");
    assert_eq!(feed(&[&since[..], &["--fail-on", "medium"]].concat(), &same).status.code(), Some(0));
    assert_eq!(feed(&["-", "--fail-on", "medium"], &same).status.code(), Some(1));
}

#[test]
fn a_baseline_that_is_none_is_refused() {
    let pod = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app}]}\n";
    for (name, content, problem) in [
        ("b1", r#"{"format":"podweir-cluster-audit","version":2,"workloads":[]}"#, "is of version 2"),
        ("b2", r#"{"format":"podweir-audit","version":1}"#, "its format is 'podweir-audit'"),
        ("b3", "[]", "its format is nothing"),
        ("b4", "{", "is no JSON"),
        ("b5", r#"{"format":"podweir-cluster-audit","version":1,"workloads":[{"name":1}]}"#, "is damaged"),
    ] {
        let file = File::new(name, content);
        let output = feed(&["-", "--baseline", file.path()], pod);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(problem), "{output:?}");
    }
}

#[test]
fn every_format_is_what_its_readers_expect() {
    let sarif = json(&audit(&["--format", "sarif"]));
    let mut schema = String::new();
    GzDecoder::new(SARIF).read_to_string(&mut schema).unwrap();
    let mut schema: Value = serde_json::from_str(&schema).unwrap();
    // A pattern that no engine takes stands in the schema as published.
    for of in ["run", "toolComponent"] {
        schema["definitions"][of]["properties"]["language"].as_object_mut().unwrap().remove("pattern");
    }
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&sarif).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let run = &sarif["runs"][0];
    let rules: Vec<&str> =
        run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
    let results = run["results"].as_array().unwrap();
    assert!(results.iter().all(|result| rules.contains(&result["ruleId"].as_str().unwrap())));
    let port = results.iter().find(|result| result["ruleId"] == "outbound-excluded-port").unwrap();
    let place = &port["locations"][0]["physicalLocation"];
    assert!(place["artifactLocation"]["uri"].as_str().unwrap().ends_with("shop.yaml"), "{place}");
    assert!(place["region"]["startLine"].as_u64().unwrap() > 1);

    let html = text(&audit(&["--format", "html"]).stdout);
    roxmltree::Document::parse(
        &html
            .replacen("<!doctype html>\n", "", 1)
            .replace("<meta charset=\"utf-8\">", "")
            .replace("initial-scale=1\">", "initial-scale=1\"/>")
            .replace("light dark\">", "light dark\"/>")
            .replace("'unsafe-inline'\">", "'unsafe-inline'\"/>")
            .replace("<br>", "<br/>")
            .replace("<details open>", "<details>")
            .replace(" open>", ">"),
    )
    .unwrap_or_else(|e| panic!("{e}"));
    assert!(!html.contains("<script") && html.contains("Deployment shop/web") && html.contains("<svg"), "{html}");

    let metrics = text(&audit(&["--format", "prometheus"]).stdout);
    assert!(metrics.contains(
        "podweir_audit_findings{namespace=\"shop\",class=\"outbound-excluded-port\",severity=\"medium\",accepted=\"false\"} 2\n"
    ), "{metrics}");
    assert!(metrics.contains("podweir_audit_workloads{namespace=\"mesh\",standing=\"ambient\"} 1\n"), "{metrics}");
    let lines = metrics.lines().map(|line| Ok(line.to_owned()));
    let scraped = prometheus_parse::Scrape::parse(lines).unwrap();
    let written = metrics.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(scraped.samples.len(), written, "every line is a sample");
    let gauge = |sample: &prometheus_parse::Sample| matches!(sample.value, prometheus_parse::Value::Gauge(_));
    assert!(scraped.samples.iter().all(gauge) && scraped.docs.len() == metrics.matches("# HELP ").count());

    let screen = text(&audit(&[]).stdout);
    assert!(screen.contains("MEDIUM  outbound-excluded-port 3306: ") && screen.lines().count() < 60, "{screen}");
    assert!(text(&audit(&["-v"]).stdout).contains("  try   TCP to 203.0.113.10:"));
}
