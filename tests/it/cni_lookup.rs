//! Looking pods up: what the API server may answer, what a kubeconfig may be, and what
//! whoever reads a pod's events then learns.

use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Answer, Api, TOKEN, client_certificate, kubeconfig, other_authority};
use crate::plugin::{Cluster, Plugin, sidecar};

/// The error of an ADD that has a second and a half, after which nothing is programmed. That is time
/// for two tries, of thirty.
fn refusal(cluster: &Cluster) -> (u64, String) {
    let (before, asked) = (cluster.namespace.everything(), cluster.api.requests());
    let error = cluster.add().key("timeout", json!(1.5)).call().error();
    let asked = cluster.api.requests() - asked;
    assert!(asked <= 2, "{asked} requests");
    assert_eq!(cluster.namespace.everything(), before);
    assert!(error.1.contains("podweir cannot read pod shop/web-0: "), "{}", error.1);
    error
}

#[test]
fn an_expired_token_ends_the_tries_and_is_named() {
    let cluster = Cluster::with(Api::start(|_| Answer::Refuse(401, "Unauthorized")));
    let (code, message) = cluster.add().call().error();
    assert_eq!((code, cluster.api.requests()), (101, 1));
    assert!(
        message.contains("podweir cannot read pod shop/web-0: Unauthorized; the token or certificate in ")
            && message.contains("has expired or was revoked; make it anew"),
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
        (Answer::Text(404, "<html>"), 11, ["HTTP status 404", "an API server, and the path"]),
        (Answer::Text(200, "<html>"), 101, ["makes no sense: it is no JSON at line 1, column 1", "an API server"]),
        (Answer::Long(8 << 20), 101, ["makes no sense", "longer than any pod may be"]),
        (Answer::HalfClosed(sidecar(json!({}))), 11, ["is the API server up", "tries"]),
        (Answer::Closed, 11, ["is the API server up", "tries"]),
        (Answer::Slow(Duration::from_secs(5), sidecar(json!({}))), 11, ["nothing came within", "1 try in"]),
    ] {
        let answered = !matches!(answer, Answer::Refuse(..) | Answer::Text(404.., _));
        let cluster = Cluster::with(Api::start(move |_| answer.clone()));
        let (got, message) = refusal(&cluster);
        assert!(got == code && texts.iter().all(|text| message.contains(text)), "{got} {message}");
        // Who it was that did not answer, or not well.
        let server = format!("https://{}", cluster.api.address);
        assert!(!answered || message.contains(&server), "{message}");
        for_people(&message);
    }
}

/// There is no agent here to be told to restart, and nobody reads nanoseconds.
fn for_people(message: &str) {
    assert!(!message.contains("agent") && !message.contains("podweir-node"), "{message}");
    let (_, effort) = message.rsplit_once(" in ").unwrap_or_default();
    let (number, unit) = effort.split_once(' ').unwrap_or(("0", "s"));
    let decimals = number.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    assert!(decimals <= 1 && ["s", "ms"].contains(&unit), "{message}");
}

#[test]
fn only_the_pod_that_was_asked_for_is_believed() {
    let pod = sidecar(json!({}));
    let with = |pointer: &str, value: Value| {
        let mut other = pod.clone();
        *other.pointer_mut(pointer).unwrap() = value;
        other
    };
    for (answer, text) in [
        (json!({}), "it has no kind"),
        (json!([]), "it has no kind"),
        (json!(null), "it is no pod"),
        (json!("Pod"), "it is no pod"),
        (
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404 }),
            "its kind is another",
        ),
        (json!({ "kind": "PodList", "apiVersion": "v1", "items": [pod] }), "its kind is another"),
        (json!({ "kind": "Pod", "apiVersion": "v1" }), "it has no namespace"),
        (with("/metadata/name", json!("web-1")), "its name is another than web-0"),
        (with("/metadata/namespace", json!("bank")), "its namespace is another than shop"),
        (with("/metadata/uid", json!(null)), "it has no uid"),
        (with("/spec/containers", json!("secret-of-the-pod")), "it is no pod at line 1"),
    ] {
        let shown = answer.to_string();
        let cluster = Cluster::with(Api::start(move |_| Answer::Json(answer.clone())));
        let (code, message) = refusal(&cluster);
        assert!(code == 101 && message.contains("makes no sense") && message.contains(text), "{shown}: {message}");
        assert!(!message.contains("secret-of-the-pod") && message.contains("tr"), "{message}");
    }
    // What passes for one for a moment only is waited for.
    let cluster = Cluster::with(Api::start(move |n| match n {
        0 => Answer::Json(json!({})),
        _ => Answer::Pod(pod.clone()),
    }));
    cluster.add().call().ok();
    assert!(cluster.namespace.rules().contains("istio-proxy-nat"));
}

/// The API server is away while the pod is deleted and made again under its name.
#[test]
fn a_pod_made_later_under_the_same_name_does_not_decide() {
    let mut later = sidecar(json!({ "traffic.sidecar.istio.io/excludeInboundPorts": "8080" }));
    later["metadata"]["uid"] = json!("7e20");
    let cluster = Cluster::with(Api::start({
        let later = later.clone();
        move |n| if n == 0 { Answer::Closed } else { Answer::Pod(later.clone()) }
    }));
    let before = cluster.namespace.everything();
    let (code, message) = cluster.add().call().error();
    assert!(code == 11 && message.contains("there is no such pod any more"), "{code} {message}");
    assert!(message.contains("6d1f") && !message.contains(" tr"), "{message}");
    assert_eq!((cluster.api.requests(), cluster.namespace.everything()), (2, before));
    // Who is not told which one it is cannot tell them apart; a pod from a file on the
    // node has a uid of its own, which the API server's copy tells.
    let bare = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
    cluster.add().variable("CNI_ARGS", bare).call().ok();
    later["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("6d1f");
    Cluster::new(&later).add().call().ok();
}

#[test]
fn what_is_forbidden_may_be_allowed_in_a_moment() {
    let cluster = Cluster::with(Api::start(move |n| match n {
        // As an API server that has just started: its cache of roles is empty.
        0..3 => Answer::Refuse(403, "Forbidden"),
        _ => Answer::Pod(sidecar(json!({}))),
    }));
    cluster.add().call().ok();
    assert_eq!(cluster.api.requests(), 4);
}

/// Waits for a line of the log while a call is still waiting for something else.
fn say_while_waiting(cluster: &Cluster, child: &mut Child, text: &str) {
    let begin = Instant::now();
    while !cluster.run_dir.log().contains(text) {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a word: {}", cluster.run_dir.log());
        assert!(begin.elapsed() < Duration::from_secs(20), "{}", cluster.run_dir.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_waited_for_is_said_after_the_first_try() {
    let allowed = Arc::new(AtomicBool::new(false));
    let answer = allowed.clone();
    let cluster = Cluster::with(Api::start(move |_| match answer.load(Ordering::SeqCst) {
        true => Answer::Pod(sidecar(json!({}))),
        false => Answer::Refuse(403, "Forbidden"),
    }));
    let path = cluster.run_dir.path().join("kubeconfig");
    std::fs::rename(&path, path.with_extension("away")).unwrap();
    let add = cluster.add();
    let mut child = add.spawn(&add.input());
    say_while_waiting(&cluster, &mut child, "there is no kubeconfig in");
    std::fs::rename(path.with_extension("away"), &path).unwrap();
    // Another reason is news.
    say_while_waiting(&cluster, &mut child, "Forbidden; the account that");
    allowed.store(true, Ordering::SeqCst);
    assert!(child.wait_with_output().unwrap().status.success());
    let log = cluster.run_dir.log();
    assert_eq!(log.matches("trying again").count(), 2, "{log}");
}

#[test]
fn proxies_of_the_node_are_no_business_of_the_plugins() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let mut add = cluster.add();
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        add = add.variable(name, "not an address at all");
    }
    add.call().ok();
}

#[test]
fn no_text_of_others_can_play_on_a_terminal() {
    const ODD: &str = "80\u{9b}2J\u{1b}[2J\u{202e}\u{061c}\u{2066}\n\u{85}x";
    let cluster = Cluster::new(&sidecar(json!({ "traffic.sidecar.istio.io/excludeInboundPorts": ODD })));
    let outcome = cluster.add().call();
    assert_eq!(outcome.error().0, 102);
    for text in [&outcome.stdout, &outcome.stderr, &cluster.run_dir.log()] {
        let special = text.chars().find(|&c| (c.is_control() && c != '\n') || "\u{202e}\u{061c}\u{2066}".contains(c));
        assert!(special.is_none() && !text.is_empty(), "{special:?} in {text}");
        // Nor in what the JSON means.
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            let all = ["msg", "details"].map(|key| value[key].as_str().unwrap_or_default().to_owned()).concat();
            assert!(!all.chars().any(|c| c.is_control()) && !all.contains('\u{202e}'), "{all:?}");
        }
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
    assert!(code == 101 && message.contains("can be written by others than root (mode 0602)"), "{message}");
    let (_, message) = with("{ no: [yaml", 0o600);
    assert!(message.contains("is no usable kubeconfig: it is no YAML at line 1, column "), "{message}");
    let (_, message) = with("a: b\n", 0o600);
    assert!(message.contains("is no usable kubeconfig: current-context is missing"), "{message}");
    let authority = Api::authority();
    let (code, message) = with(&kubeconfig("https://127.0.0.1:1", authority, TOKEN), 0o600);
    assert!(code == 11 && message.contains("https://127.0.0.1:1 gives no answer: tcp connect error: "), "{message}");
    assert!(message.contains("refused") && message.contains("is the API server up"), "{message}");
    let (_, message) = with(&kubeconfig("https://no-such-host.invalid", authority, TOKEN), 0o600);
    assert!(message.contains("https://no-such-host.invalid gives no answer"), "{message}");
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
        code == 101 && message.contains("there is no kubeconfig in") && message.contains("cni-conf/by-hand.md"),
        "{message}"
    );
    for_people(&message);
    std::fs::create_dir(&path).unwrap();
    let (code, message) = refusal(&cluster);
    assert!(code == 101 && message.contains("is no regular file"), "{message}");
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

/// What takes a node away takes pods without a sidecar along: only what is wrong on the
/// node itself may.
#[test]
fn status_is_answered_by_what_the_node_alone_knows() {
    let status =
        |plugin: Plugin| plugin.verb("STATUS").key("cniVersion", json!("1.1.0")).variable("CNI_NETNS", "").call();
    let fails = |plugin: Plugin, text: &str| {
        let (code, message) = status(plugin).error();
        assert!(code == 50 && message.contains(text), "{message}");
    };
    for answer in [Answer::Refuse(403, "Forbidden"), Answer::Refuse(401, "Unauthorized"), Answer::Closed] {
        let cluster = Cluster::with(Api::start(move |_| answer.clone()));
        assert_eq!(status(cluster.add()).ok().stdout, "");
        assert_eq!(cluster.api.requests(), 0, "a thousand nodes ask every five seconds");
    }
    let cluster = Cluster::new(&sidecar(json!({})));
    let kubeconfig = cluster.run_dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, "{ damaged").unwrap();
    status(cluster.add()).ok();
    std::fs::remove_file(kubeconfig).unwrap();
    status(cluster.add()).ok();
    status(cluster.add().key("cni_agent_run_dir", json!("/nonexistent/podweir"))).ok();
    fails(
        cluster.add().key("backend", json!("iptables-legacy")).variable("PATH", "/nonexistent"),
        "iptables-legacy-restore",
    );
    std::fs::set_permissions(cluster.run_dir.path(), PermissionsExt::from_mode(0o757)).unwrap();
    fails(cluster.add(), &format!("chmod go-w {}", cluster.run_dir.path().display()));
    std::fs::set_permissions(cluster.run_dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Without the capabilities nothing works, whatever else does.
    let add = cluster.add().key("interception", json!({})).verb("STATUS").key("cniVersion", json!("1.1.0"));
    let input = String::from_utf8(add.input()).unwrap();
    let variables = [("CNI_COMMAND", "STATUS")];
    let arguments = ["--bounding-set=-net_admin", "--inh-caps=-net_admin", crate::fixture::PODWEIR];
    let output = cluster.namespace.feed("setpriv", &arguments, &variables, &input);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("CAP_NET_ADMIN"), "{text}");
}
