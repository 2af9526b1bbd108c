//! The files in cni-conf/ are what their page says, and its steps work as they are written.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::api::{Answer, Api, TOKEN};
use crate::containerd::bridge_and_portmap;
use crate::fixture::PODWEIR;
use crate::node::Node;
use crate::plugin::sidecar;
use crate::pod::{Probe, ask, serve};

/// The complete chain.
pub const EXAMPLE: &str = include_str!("../../cni-conf/10-bridge-podweir.conflist");
const WITHOUT_KUBERNETES: &str = include_str!("../../cni-conf/without-kubernetes.conflist");
const ENTRY: &str = include_str!("../../cni-conf/podweir.json");
const PAGE: &str = include_str!("../../cni-conf/by-hand.md");
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cni-conf");

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(FOLDER).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The documents of a YAML file.
fn documents(name: &str) -> Vec<Value> {
    let text = read(name);
    let parse = |document| serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{name}: {e}"));
    text.split("\n---\n").map(parse).collect()
}

#[test]
fn every_file_parses_and_has_its_place() {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(FOLDER).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // The chart has checks of its own (scripts/chart), and the manifests are made from it; whom
        // agents answer is nothing that is done by hand.
        if entry.file_type().unwrap().is_dir()
            || ["node.yaml", "node-ambient.yaml", "auditor.yaml"].contains(&name.as_str())
        {
            continue;
        }
        match Path::new(&name).extension().and_then(|extension| extension.to_str()) {
            Some("json" | "conflist") => drop(json(&read(&name))),
            Some("yaml") => assert!(documents(&name).iter().all(|document| document["kind"].is_string()), "{name}"),
            Some("md") => continue,
            _ => panic!("what is {name}?"),
        }
        assert!(PAGE.contains(&format!("| `{name}` |")), "the page does not say where {name} goes");
        found.insert(name);
    }
    let named = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    for (name, _) in named.filter(|(name, _)| name.contains('.') && !name.contains(' ')) {
        assert!(found.contains(name), "the page names {name}");
    }
    assert_eq!(json(EXAMPLE)["plugins"][2], json(ENTRY));
}

#[test]
fn the_account_may_get_pods_and_nothing_more() {
    let documents = documents("rbac.yaml");
    let of = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap();
    assert!(documents.iter().all(|d| !["Role", "RoleBinding"].contains(&d["kind"].as_str().unwrap())));
    assert_eq!(of("ClusterRole")["rules"], json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]));
    let (binding, account) = (of("ClusterRoleBinding"), &of("ServiceAccount")["metadata"]);
    assert_eq!(binding["roleRef"]["name"], of("ClusterRole")["metadata"]["name"]);
    let subject = json!([{ "kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"] }]);
    assert_eq!(binding["subjects"], subject);
    let secret = &of("Secret")["metadata"];
    assert_eq!(secret["annotations"]["kubernetes.io/service-account.name"], account["name"]);
    assert_eq!(secret["namespace"], account["namespace"]);
}

#[test]
fn the_network_attachment_is_a_netconf() {
    let documents = documents("network-attachment-definition.yaml");
    let config = json(documents[0]["spec"]["config"].as_str().unwrap());
    let mut entry = json(ENTRY);
    // Multus hands no annotations over.
    entry.as_object_mut().unwrap().remove("capabilities");
    entry["cniVersion"] = json!("1.0.0");
    entry["name"] = documents[0]["metadata"]["name"].clone();
    assert_eq!(config, entry);
}

/// What the page says an error looks like is somewhere in the plugin.
#[test]
fn the_messages_explained_are_those_of_the_program() {
    let mut source = String::new();
    for folder in ["src/cni", "src/config/pod", "src/backend", "src/sys"] {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
            source += &std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        }
    }
    let (_, errors) = PAGE.split_once("\n## What an error means\n").unwrap();
    let (errors, _) = errors.split_once("\n## ").unwrap();
    let rows: Vec<&str> = errors.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next()).collect();
    assert!(rows.len() > 10);
    for row in rows.iter().filter(|row| !row.contains("failed to find plugin")) {
        for piece in row.split(['`', '…', '(', ';']).map(|piece| piece.trim_matches([' ', ':'])) {
            // The API server's own word.
            if piece.len() > 6 && piece != "Unauthorized" {
                assert!(source.contains(piece), "no message of the plugin has {piece:?}");
            }
        }
    }
}

/// The shell code of a step.
fn code(step: &str) -> Vec<&'static str> {
    let (_, text) = PAGE.split_once(&format!("\n**{step}. ")).unwrap();
    let end = ["\n**", "\n## "].iter().filter_map(|next| text.find(next)).min().unwrap();
    text[..end].split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

#[test]
fn the_steps_of_the_page_install_the_plugin_and_take_it_away() {
    let node = Node::start(&bridge_and_portmap());
    let api = node.run(|| Api::start(|_| Answer::Named("web-0", sidecar(json!({})))));
    // What an engineer has at hand: the files, the binary, and kubectl for the administrator.
    let home = node.folder().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::copy(PODWEIR, home.join("podweir")).unwrap();
    for name in ["podweir.json", "kubeconfig.yaml"] {
        std::fs::write(home.join(name), read(name)).unwrap();
    }
    std::fs::write(home.join("ca.crt"), Api::authority()).unwrap();
    // Enough of a kubectl for the template: a secret's two values, and who it would be.
    let kubectl = format!(
        "kubectl() {{ case \"$*\" in *go-template-file=*) sed -e \"s|{{{{ index .data .* }}}}|$(base64 -w0 ca.crt)|\" -e \"s|{{{{ .data.token .* }}}}|{TOKEN}|\" \"${{*##*go-template-file=}}\" ;; 'config view'*) printf https://{} ;; *'auth can-i get pods'*) echo yes ;; *) return 1 ;; esac; }}\n",
        api.address
    );
    let home = home.to_str().unwrap();
    let run = |script: &str| {
        let script = format!("set -eu\ncd {home}\n{kubectl}{script}");
        let output = node.command("sh", &["-c", &script], &[("HOME", home)], "");
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{script}\n{stdout}{stderr}");
        stdout
    };
    let chain = || json(&std::fs::read_to_string(node.folder().join("net.d/10-pods.conflist")).unwrap());

    assert!(run(code("1")[0]).contains("\"1.1.0\""));
    let [fill_in, put] = code("3")[..] else { panic!("step 3 has two parts") };
    assert_eq!(run(fill_in), "yes\n");
    run(put);
    assert_eq!(node.print("stat", &["-c", "%a", "/var/lib/podweir", "/var/lib/podweir/kubeconfig"]), "700\n600\n");
    let trial = run(code("4")[0]);
    assert!(trial.starts_with("ready\n") && trial.contains("NotFound; there is no such pod"), "{trial}");
    run(code("5")[0]);
    assert_eq!(chain()["plugins"], json(EXAMPLE)["plugins"]);

    node.wait_for_plugin("podweir");
    let pod = node.run_sandbox("shop", "web-0", &[("sidecar.istio.io/status", "{}")], None).unwrap();
    let [log, explain] = code("7")[..] else { panic!("step 7 has two parts") };
    assert!(run(log).lines().any(|line| json(line)["decision"] == "intercepted"));
    assert!(run(explain).starts_with("outbound-proxy"));
    node.stop(&pod).unwrap();

    let (_, removal) = PAGE.split_once("\n2. Take the entry out of the chain:\n   `").unwrap();
    run(&format!("cd /etc/cni/net.d\n{}", removal.split('`').next().unwrap()));
    assert_eq!(chain(), bridge_and_portmap());
}

#[test]
fn a_container_without_kubernetes_is_intercepted_as_the_netconf_says() {
    let node = Node::start(&json(WITHOUT_KUBERNETES));
    std::os::unix::fs::symlink(PODWEIR, node.folder().join("bin/podweir")).unwrap();
    let pid = node.run_without_kubernetes("web-0");
    let netns = format!("/proc/{pid}/ns/net");
    let servers = node.run_in(&netns, || {
        let proxy = serve(&[("out-proxy", 15001), ("in-proxy", 15006)], 1337, 1337);
        [proxy, serve(&[("app", 8080)], 1000, 1000)]
    });
    let ask = |probe: &str| node.run_in(&netns, || ask(&Probe::parse(probe)));
    assert_eq!(ask("out tcp uid=1000 gid=1000 to 198.51.100.7 80"), "out-proxy");
    assert_eq!(ask("out tcp uid=1000 gid=1000 to 127.0.0.1 8080"), "app");
    drop(servers);
}
