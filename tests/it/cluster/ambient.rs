//! Ambient mode in a real cluster, from the plain manifests of `cni-conf` that have it on, with a
//! real ztunnel in a pod of its own: pods join and leave by labels, their traffic is HBONE,
//! and the kubelet's probes pass where plain text is refused.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::agent::{NAMESPACE, flush};
use super::images::BUSYBOX;
use super::kubectl::Project;
use super::pods::Running;
use super::{Cluster, alone};
use crate::agent::ambient::{MODE, REDIRECTION};
use crate::archive;
use crate::ztunnel::place::program;

const MANIFESTS: &str = include_str!("../../../cni-conf/node-ambient.yaml");
const ZTUNNEL_IMAGE: &str = "localhost/ztunnel:test";
const TIMEOUT: Duration = Duration::from_secs(5);
const PORT: u16 = 8080;
/// A user of the node's who is not the kubelet's.
const SOMEBODY: u32 = 1000;

/// Answers requests of HTTP with its name.
fn web(name: &str, labels: &Value) -> Value {
    let answer = format!(
        r#"while read -r line; do [ "$line" = "$(printf "\r")" ] && break; done; printf "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{name}""#,
        name.len()
    );
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
        "spec": { "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "app", "image": BUSYBOX,
            "command": ["/bin/busybox", "nc", "-ll", "-p", PORT.to_string(), "-e", "/bin/busybox", "sh", "-c", answer],
            "readinessProbe": { "httpGet": { "path": "/", "port": PORT }, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20 },
        }] },
    })
}

/// The libraries that a program needs, none if it is linked statically.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(|word| word.trim_end_matches(':').into()).collect()
}

/// Brings the image of ztunnel in.
fn load_ztunnel(cluster: &Cluster) {
    let libraries = libraries(program());
    let mut files = vec![("usr/local/bin/ztunnel", program())];
    files.extend(libraries.iter().map(|path| (path.to_str().unwrap(), path.as_path())));
    let config = json!({ "Entrypoint": ["/usr/local/bin/ztunnel", "proxy", "ztunnel"] });
    cluster.load(&archive::image(&cluster.machine().folder().join("ztunnel"), ZTUNNEL_IMAGE, &files, config)).unwrap();
}

/// What ztunnel knows of pods, since there is no control plane; plain text from outside of the
/// mesh is refused.
fn knowledge(pods: &[(&str, IpAddr)]) -> Value {
    let workload = |(name, address): &(&str, IpAddr)| {
        json!({ "uid": format!("Kubernetes//Pod/mesh/{name}"), "name": name, "namespace": "mesh",
            "serviceAccount": "default", "trustDomain": "cluster.local", "workloadName": name, "canonicalName": name,
            "clusterId": "Kubernetes", "workloadIps": [address], "protocol": "HBONE", "node": "node1", "network": "",
            "services": {} })
    };
    let workloads: Vec<Value> = pods.iter().map(workload).collect();
    let text = format!(
        "workloads: {}\npolicies:\n- {{name: strict, namespace: mesh, scope: Namespace, action: Allow, dryRun: false, \
         rules: [[[{{principals: [!Prefix \"cluster.local/\"]}}]]]}}\nservices: []\n",
        json!(workloads)
    );
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "knowledge" }, "data": { "xds.yaml": text } })
}

/// ztunnel as its own chart runs it, but for the control plane.
fn ztunnel() -> Value {
    let variables = [
        ("PROXY_MODE", "shared"),
        ("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock"),
        ("FAKE_CA", "true"),
        ("XDS_ADDRESS", ""),
        ("LOCAL_XDS_PATH", "/knowledge/xds.yaml"),
        ("NODE_NAME", "node1"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "1"),
        ("RUST_LOG", "info"),
    ];
    let variables: Vec<Value> =
        variables.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "ztunnel", "labels": { "app": "ztunnel" } },
        "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "ztunnel", "image": ZTUNNEL_IMAGE, "env": variables,
                "readinessProbe": { "httpGet": { "path": "/healthz/ready", "port": 15021 }, "periodSeconds": 1 },
                "securityContext": {
                    "runAsUser": 0, "allowPrivilegeEscalation": true, "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "NET_RAW"] },
                },
                "volumeMounts": [
                    { "name": "knowledge", "mountPath": "/knowledge" },
                    { "name": "socket", "mountPath": "/var/run/ztunnel" },
                ],
            }],
            "volumes": [
                { "name": "knowledge", "configMap": { "name": "knowledge" } },
                { "name": "socket", "hostPath": { "path": "/var/run/ztunnel", "type": "DirectoryOrCreate" } },
            ],
        },
    })
}

/// What comes of a request, from the calling thread's network namespace.
fn get(to: IpAddr) -> Result<String, String> {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = asked().map_err(|e| e.to_string())?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or_else(|| format!("no answer: {text:?}"))
}

/// Asks a pod from the node, as one of its users.
fn get_as(cluster: &Cluster, user: u32, to: IpAddr) -> Result<String, String> {
    cluster.machine().network().run(|| {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(user));
        get(to)
    })
}

/// What a program says in a pod's network namespace.
fn said(pod: &Running, program: &str, arguments: &[&str]) -> String {
    pod.run(|| {
        let output = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// Whether a pod has rules of ambient mode, and whether it has its routing.
fn traces(pod: &Running) -> [bool; 2] {
    [said(pod, "nft", &["list", "tables"]).contains("istio-ambient"), said(pod, "ip", &["rule"]).contains("fwmark")]
}

const IN: [bool; 2] = [true; 2];
const OUT: [bool; 2] = [false; 2];

/// Which of these pods the node's own rules let probes by to.
fn probed(cluster: &Cluster, pods: &[&Running]) -> Vec<String> {
    // Other plugins have rules with pods' addresses as well.
    let table = ["list", "table", "inet", "istio-ambient-nat"];
    let output = cluster.machine().network().run(|| Command::new("nft").args(table).output().unwrap());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split(|c: char| !(c.is_ascii_digit() || c == '.')).collect();
    let has = |pod: &&&Running| words.contains(&pod.address.to_string().as_str());
    pods.iter().filter(has).map(|pod| pod.name.clone()).collect()
}

/// How many of a pod's probes the kubelet has seen to succeed, and to fail.
fn probes(cluster: &Cluster, pod: &str) -> [u64; 2] {
    let text = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node1/proxy/metrics/probes"]);
    ["successful", "failed"].map(|result| {
        let of = |line: &&str| {
            ["prober_probe_total{", &format!("pod=\"{pod}\""), &format!("result=\"{result}\""), "\"mesh\""]
                .iter()
                .all(|part| line.contains(part))
        };
        let line = text.lines().find(of).and_then(|line| line.rsplit(' ').next());
        line.map_or(0, |count| count.parse::<f64>().unwrap() as u64)
    })
}

impl Project<'_> {
    fn wait_for_redirection(&self, pod: &str, wanted: Option<&str>) {
        let is = || self.get(&["pod", pod])["metadata"]["annotations"][REDIRECTION].as_str().map(str::to_owned);
        let as_wanted = || (is().as_deref() == wanted).then_some(());
        self.cluster.wait(&format!("{pod} to be {wanted:?}"), as_wanted).unwrap_or_else(|e| {
            let why = self.cluster.ask_agent(&["why", &format!("{}/{pod}", self.name)]);
            panic!("{e}\nit is {:?}\n{why:?}\nztunnel: {}", is(), self.kubectl(&["logs", "ztunnel", "--tail=20"]))
        });
    }

    fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        self.cluster.wait(what, || holds().then_some(())).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
#[ignore = "needs Kubernetes and a ztunnel: set KUBEBUILDER_ASSETS and PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn labels_put_running_pods_into_the_mesh_of_a_real_ztunnel_and_take_them_out() {
    let cluster = alone();
    load_ztunnel(&cluster);
    cluster.install_agent_by(MANIFESTS, &[]);
    let mesh = cluster.project("mesh");
    for (name, labels) in [("one", json!({})), ("two", json!({})), ("out", json!({ MODE: "none" }))] {
        mesh.apply(web(name, &labels));
    }
    let [one, two, out] = ["one", "two", "out"].map(|name| mesh.wait_for_pod(name));
    let all = [&one, &two, &out];
    // A pod that is going to start: ztunnel knows its name.
    let later = "192.0.2.3".parse().unwrap();
    mesh.apply(knowledge(&[("one", one.address), ("two", two.address), ("out", out.address), ("later", later)]));
    mesh.apply(ztunnel());
    mesh.wait_for_pod("ztunnel");
    let label = |value: &str| {
        cluster.kubectl(&["label", "namespace", "mesh", "--overwrite", &format!("{MODE}{value}")]);
    };
    assert_eq!(one.run(|| get(two.address)), Ok("two".into()));
    assert_eq!(get_as(&cluster, SOMEBODY, one.address), Ok("one".into()));

    // Two of the three join, while they run.
    label("=ambient");
    for pod in ["one", "two"] {
        mesh.wait_for_redirection(pod, Some("enabled"));
    }
    let described = mesh.kubectl(&["describe", "pod", "one"]);
    assert!(described.contains(&format!("{REDIRECTION}: enabled")), "{described}");
    assert_eq!(all.map(traces), [IN, IN, OUT]);
    assert_eq!(probed(&cluster, &all), ["one", "two"]);
    let log = || mesh.kubectl(&["logs", "ztunnel"]);
    let before = log().matches("dst.hbone_addr").count();
    assert_eq!(one.run(|| get(two.address)), Ok("two".into()), "{}", log());
    mesh.wait_until("a connection by HBONE", || log().matches("dst.hbone_addr").count() > before);
    // Whoever is outside of the mesh is refused, but for the kubelet.
    assert!(get_as(&cluster, SOMEBODY, one.address).is_err(), "{}", log());
    assert!(out.run(|| get(one.address)).is_err(), "{}", log());
    assert_eq!(get_as(&cluster, 0, one.address), Ok("one".into()));
    let [succeeded, failed] = probes(&cluster, "one");
    mesh.wait_until("three probes of the kubelet's", || probes(&cluster, "one")[0] >= succeeded + 3);
    assert_eq!(probes(&cluster, "one")[1], failed, "no probe has failed");
    let status = cluster.ask_agent(&["status"]).unwrap();
    assert!(status.contains("1 ztunnels connected, 1 know of every pod; 2 pods"), "{status}");

    // What somebody takes away comes back.
    flush(&one);
    mesh.wait_until("the pod's rules", || traces(&one) == IN);
    cluster.machine().network().print("nft", &["delete", "table", "inet", "istio-ambient-nat"]);
    mesh.wait_until("the node's rules", || probed(&cluster, &all) == ["one", "two"]);
    assert_eq!(one.run(|| get(two.address)), Ok("two".into()));
    let told = || mesh.events("one").iter().any(|event| event.starts_with("InterceptionDrifted"));
    mesh.wait_until("the pod's event", told);

    // While the agent is replaced traffic and probes go on; the next one knows what there is.
    cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=node", "--wait=false"]);
    for _ in 0..10 {
        assert_eq!(one.run(|| get(two.address)), Ok("two".into()));
    }
    cluster.wait_for_agent();
    let whole = || cluster.ask_agent(&["status"]).is_ok_and(|s| s.contains("1 know of every pod; 2 pods"));
    mesh.wait_until("ztunnel to know of every pod again", whole);

    // While ztunnel is away nothing escapes, and a pod that starts waits for the next one.
    mesh.kubectl(&["delete", "pod", "ztunnel"]);
    assert!(one.run(|| get(two.address)).is_err());
    mesh.apply(web("later", &json!({})));
    mesh.apply(ztunnel());
    let later = mesh.wait_for_pod("later");
    assert_eq!(traces(&later), IN);
    mesh.wait_for_redirection("later", Some("enabled"));
    mesh.wait_until("traffic by the next ztunnel", || one.run(|| get(two.address)) == Ok("two".into()));

    // A pod's own label beats its namespace's, both ways.
    mesh.kubectl(&["label", "pod", "out", "--overwrite", &format!("{MODE}=ambient")]);
    mesh.wait_for_redirection("out", Some("enabled"));
    label("-");
    for pod in ["one", "two", "later"] {
        mesh.wait_for_redirection(pod, None);
    }
    assert_eq!(all.map(traces), [OUT, OUT, IN]);
    mesh.wait_until("the node's sets", || probed(&cluster, &all) == ["out"]);
    assert_eq!(get_as(&cluster, SOMEBODY, one.address), Ok("one".into()));
    mesh.kubectl(&["label", "pod", "out", "--overwrite", &format!("{MODE}=none")]);
    mesh.wait_for_redirection("out", None);
    assert_eq!(out.run(|| get(one.address)), Ok("one".into()));
    for pod in all {
        assert_eq!(traces(pod), OUT, "{}", pod.name);
        mesh.wait_until("ztunnel's listeners to go", || !said(pod, "ss", &["-Hltn"]).contains(":15008"));
    }
    // With the agent the node's rules go: nobody needs them any more.
    assert!(cluster.machine().network().rules().contains("istio-ambient-nat"));
    cluster.remove_agent();
    let left = cluster.machine().network().rules();
    assert!(!left.contains("istio-ambient"), "{left}");
}
