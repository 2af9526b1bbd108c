//! Looking pods up: what the API server may answer, what a kubeconfig may be, and what
//! whoever reads a pod's events then learns.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Answer, Api, TOKEN, client_certificate, kubeconfig, other_authority};
use crate::plugin::{Cluster, Plugin, sidecar};

/// The error of an ADD that has a second and a half, after which nothing is programmed.
fn refusal(cluster: &Cluster) -> (u64, String) {
    let before = cluster.namespace.everything();
    let started = Instant::now();
    let error = cluster.add().key("timeout", json!(1.5)).call().error();
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert_eq!(cluster.namespace.everything(), before);
    assert!(error.1.contains("podweir cannot read pod shop/web-0: "), "{}", error.1);
    error
}

#[test]
fn an_expired_token_ends_the_tries_and_is_named() {
    let cluster = Cluster::with(Api::start(|_| Answer::Refuse(401, "Unauthorized")));
    let started = Instant::now();
    let (code, message) = cluster.add().call().error();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!((code, cluster.api.requests()), (101, 1));
    assert!(
        message.contains("podweir cannot read pod shop/web-0: Unauthorized; the agent's token has expired – is the podweir-node pod on this node running?"),
        "{message}"
    );
}

#[test]
fn refusals_name_cause_and_cure() {
    for (answer, code, texts) in [
        (Answer::Refuse(403, "Forbidden"), 101, ["Forbidden", "cluster role"]),
        (Answer::Refuse(404, "NotFound"), 11, ["NotFound", "deleted"]),
        (Answer::Refuse(500, "InternalError"), 11, ["InternalError", "tries"]),
        (Answer::Text(502, "bad gateway"), 11, ["502", "tries"]),
        (Answer::Text(200, "<html>"), 101, ["makes no sense", "does the kubeconfig point to an API server"]),
        (Answer::HalfClosed(sidecar(json!({}))), 11, ["the API server", "tries"]),
        (Answer::Closed, 11, ["the API server", "tries"]),
        (Answer::Slow(Duration::from_secs(5), sidecar(json!({}))), 11, ["not answered within", "1 try"]),
    ] {
        let cluster = Cluster::with(Api::start(move |_| answer.clone()));
        let (got, message) = refusal(&cluster);
        assert!(got == code && texts.iter().all(|text| message.contains(text)), "{got} {message}");
    }
}

#[test]
fn what_passes_is_waited_for() {
    let pod = sidecar(json!({}));
    let cluster = Cluster::with(Api::start(move |n| match n {
        0 => Answer::Refuse(500, "InternalError"),
        1 => Answer::HalfClosed(pod.clone()),
        _ => Answer::Pod(pod.clone()),
    }));
    cluster.add().call().ok();
    assert_eq!(cluster.api.requests(), 3);
    assert!(cluster.namespace.rules().contains("istio-proxy-nat"));
    assert!(cluster.run_dir.log().contains("trying again"));
}

#[test]
fn the_token_is_read_again_for_every_try() {
    let cluster = Cluster::with(Api::start({
        let pod = sidecar(json!({}));
        move |n| if n == 0 { Answer::Refuse(503, "ServiceUnavailable") } else { Answer::Pod(pod.clone()) }
    }));
    let token = cluster.run_dir.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let path = cluster.run_dir.path().join("kubeconfig");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["users"][0]["user"] = json!({ "tokenFile": "token" });
    // Paths start from where the kubeconfig is.
    std::fs::write(cluster.run_dir.path().join("ca.crt"), Api::authority()).unwrap();
    config["clusters"][0]["cluster"] =
        json!({ "server": config["clusters"][0]["cluster"]["server"], "certificate-authority": "ca.crt" });
    std::fs::write(&path, config.to_string()).unwrap();
    cluster.add().call().ok();
    std::fs::write(&token, "old").unwrap();
    let (code, message) = cluster.add().call().error();
    assert!(code == 101 && message.contains("Unauthorized"), "{message}");
}

#[test]
fn kubeconfigs_that_are_no_good_are_told_apart() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let path = cluster.run_dir.path().join("kubeconfig");
    let good = std::fs::read_to_string(&path).unwrap();
    let with = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        refusal(&cluster)
    };
    let (code, message) = with(&good, 0o602);
    assert!(code == 101 && message.contains("can be written by anybody (mode 0602)"), "{message}");
    let (_, message) = with("{ no: [yaml", 0o600);
    assert!(message.contains("is no usable kubeconfig"), "{message}");
    let (_, message) = with("a: b\n", 0o600);
    assert!(message.contains("is no usable kubeconfig"), "{message}");
    let authority = Api::authority();
    let (code, message) = with(&kubeconfig("https://127.0.0.1:1", authority, TOKEN), 0o600);
    assert!(code == 11 && message.contains("refused") && message.contains("is the API server"), "{message}");
    let (_, message) = with(&kubeconfig("https://no-such-host.invalid", authority, TOKEN), 0o600);
    assert!(message.contains("no-such-host.invalid") || message.contains("not answered"), "{message}");
    let server = format!("https://{}", cluster.api.address);
    let (_, message) = with(&kubeconfig(&server, &other_authority(), TOKEN), 0o600);
    assert!(message.contains("certificate"), "{message}");
    for (what, change) in [
        (
            "insecure-skip-tls-verify",
            json!({ "clusters": [{ "name": "local", "cluster": { "server": server, "insecure-skip-tls-verify": true } }] }),
        ),
        (
            "proxy-url",
            json!({ "clusters": [{ "name": "local", "cluster": { "server": server, "proxy-url": "http://10.0.0.1:3128" } }] }),
        ),
        (
            "exec",
            json!({ "users": [{ "name": "plugin", "user": { "exec": { "command": "/bin/true", "apiVersion": "v1" } } }] }),
        ),
        ("tokenFile", json!({ "users": [{ "name": "plugin", "user": { "tokenFile": "nowhere" } }] })),
        ("client-key", json!({ "users": [{ "name": "plugin", "user": { "client-certificate-data": "eA==" } }] })),
    ] {
        let mut config: Value = serde_json::from_str(&good).unwrap();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (code, message) = with(&config.to_string(), 0o600);
        let named = format!("{} is no usable kubeconfig", path.display());
        assert!(code == 101 && message.contains(&named) && message.contains(what), "{what}: {message}");
        // What is not supported today is not supported in a second.
        let unsupported = ["insecure-skip-tls-verify", "proxy-url", "exec"].contains(&what);
        assert_eq!(message.contains(" tr"), !unsupported, "{what}: {message}");
    }
    assert_eq!(cluster.api.requests(), 0);
    std::fs::remove_file(&path).unwrap();
    let (code, message) = refusal(&cluster);
    assert!(
        code == 101 && message.contains("there is no kubeconfig in") && message.contains("podweir-node"),
        "{message}"
    );
    std::fs::create_dir(&path).unwrap();
    let (code, message) = refusal(&cluster);
    assert!(code == 101 && message.contains("cannot read"), "{message}");
    std::fs::remove_dir(&path).unwrap();
    // The other name, and a host name from /etc/hosts.
    let text = kubeconfig(&format!("https://localhost:{}", cluster.api.address.port()), authority, TOKEN);
    std::fs::write(cluster.run_dir.path().join("istio-cni-kubeconfig"), text).unwrap();
    cluster.add().call().ok();
}

#[test]
fn a_certificate_shows_who_asks_as_well_as_a_token() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let path = cluster.run_dir.path().join("kubeconfig");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let (certificate, key) = client_certificate();
    for (user, code) in [
        (json!({ "client-certificate-data": certificate, "client-key-data": key }), 0),
        (json!({}), 1),
        (json!({ "client-certificate-data": certificate, "client-key-data": certificate }), 1),
    ] {
        config["users"][0]["user"] = user;
        std::fs::write(&path, config.to_string()).unwrap();
        assert_eq!(cluster.add().key("timeout", json!(1.2)).call().status.code(), Some(code), "{config:#}");
    }
}

#[test]
fn a_pod_that_needs_nothing_costs_no_request() {
    let cluster = Cluster::new(&sidecar(json!({})));
    cluster.add().key("exclude_namespaces", json!(["kube-system", "shop"])).call().ok();
    assert_eq!(cluster.api.requests(), 0);
}

#[test]
fn status_fails_while_no_pod_could_be_set_up() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let status =
        |plugin: Plugin| plugin.verb("STATUS").key("cniVersion", json!("1.1.0")).variable("CNI_NETNS", "").call();
    let fails = |plugin: Plugin, text: &str| {
        let (code, message) = status(plugin).error();
        assert!(code == 50 && message.contains(text), "{message}");
    };
    // The stub knows one pod by any name; a real server says 404. Both are answers.
    assert_eq!(status(cluster.add()).ok().stdout, "");
    let missing = Cluster::with(Api::start(|_| Answer::Refuse(404, "NotFound")));
    status(missing.add()).ok();
    assert!(missing.api.paths()[0].starts_with("/api/v1/namespaces/istio-system/pods/"));
    let forbidden = Cluster::with(Api::start(|_| Answer::Refuse(403, "Forbidden")));
    fails(forbidden.add(), "Forbidden");
    let expired = Cluster::with(Api::start(|_| Answer::Refuse(401, "Unauthorized")));
    fails(expired.add(), "token has expired");
    fails(
        cluster.add().key("backend", json!("iptables-legacy")).variable("PATH", "/nonexistent"),
        "iptables-legacy-restore",
    );
    std::fs::remove_file(cluster.run_dir.path().join("kubeconfig")).unwrap();
    fails(cluster.add(), "there is no kubeconfig");
    status(cluster.add().key("interception", json!({}))).ok();
    // Without the capabilities nothing works, whatever else does.
    let add = cluster.add().key("interception", json!({})).verb("STATUS").key("cniVersion", json!("1.1.0"));
    let input = String::from_utf8(add.input()).unwrap();
    let variables = [("CNI_COMMAND", "STATUS")];
    let arguments = ["--bounding-set=-net_admin", "--inh-caps=-net_admin", crate::fixture::PODWEIR];
    let output = cluster.namespace.feed("setpriv", &arguments, &variables, &input);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("CAP_NET_ADMIN"), "{text}");
}
