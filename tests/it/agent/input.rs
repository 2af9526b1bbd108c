//! What makes no sense: a clear error, nothing lost, and the agent goes on where it can.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Fault, What};
use super::{LIST, Node, Pod, uid};

/// Nothing was installed.
fn is_untouched(node: &Node) -> bool {
    let chain = std::fs::read_to_string(node.path("net.d/10-pods.conflist")).unwrap();
    chain == LIST && std::fs::read_dir(node.path("bin")).unwrap().count() == 0
}

fn not_ready(node: &Node, words: &[&str]) {
    node.wait(&format!("{words:?}"), || {
        let (status, text) = node.ask("/readyz")?;
        (status == 503 && words.iter().all(|word| text.contains(word))).then_some(())
    });
}

#[test]
fn flags_that_make_no_sense_are_a_usage_error_before_anything_is_touched() {
    let node = Node::new();
    let long = format!("--run-dir={}", node.path(&"x".repeat(110)).display());
    for (flag, status, words) in [
        ("--chian=merge", 2, "--chian"),
        ("--chain=bogus", 2, "bogus"),
        ("--verify-interval=soon", 2, "soon"),
        ("--heal=maybe", 2, "maybe"),
        ("--listen=here", 2, "here"),
        ("--interception={", 2, "for --interception: expected a JSON object"),
        ("--interception={\"istio-inbound-ports\":\"99999\"}", 2, "99999"),
        ("--daemon-set=x", 2, "NAMESPACE/NAME"),
        ("--agent-timeout=", 2, "--agent-timeout"),
        ("--plugin-log-level=loud", 2, "invalid value 'loud' for --plugin-log-level"),
        ("--ambient-backend=x", 2, "invalid value 'x' for --ambient-backend"),
        ("--kubelet-uid=kubelet", 2, "expected the number of a user"),
        ("--kubeconfig=/nonexistent", 1, "/nonexistent"),
        // Of a socket's path 107 bytes are the most.
        (&long, 1, "at most 107 bytes"),
    ] {
        let output = node.run_to_end(&[flag]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{flag}: {text}");
        assert!(text.contains(words), "{flag}: {text}");
        assert!(is_untouched(&node), "{flag}");
    }
}

#[test]
fn a_node_that_the_api_server_does_not_know_is_named() {
    let mut node = Node::new();
    node.start(&["--node-name=elsewhere"]);
    not_ready(&node, &["knows no node elsewhere", "--node-name"]);
    node.wait_for_log("knows no node elsewhere");
    // It goes on: the chain is kept, and a pod that asks is looked up.
    let pod = Pod::new("web", 1);
    node.server.set(&pod.manifest);
    node.add(&pod).call().ok();
    assert!(node.has_entry() && pod.has_rules() && node.runs());
}

#[test]
fn a_folder_that_is_not_there_is_waited_for() {
    let mut node = Node::new();
    std::fs::remove_dir_all(node.path("net.d")).unwrap();
    node.start(&[]);
    not_ready(&node, &["waiting for the folder", "net.d"]);
    std::fs::create_dir(node.path("net.d")).unwrap();
    not_ready(&node, &["waiting for a network configuration"]);
    std::fs::write(node.path("net.d/10-pods.conflist"), LIST).unwrap();
    node.wait_until_ready();
    assert!(node.has_entry());
}

#[test]
fn a_first_file_that_cannot_be_used_is_named_and_left_and_no_other_is_taken_for_it() {
    for (name, text, words) in [
        ("05-first.conflist", "{", "no JSON object"),
        ("05-first.conflist", "", "no JSON object"),
        ("05-first.conf", r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#, "\"type\""),
        ("05-first.conflist", r#"{"cniVersion":"0.2.0","name":"x","plugins":[{"type":"bridge"}]}"#, "older than 0.3.0"),
        ("05-first.json", r#"{"name":"x","type":"bridge"}"#, "older than 0.3.0"),
    ] {
        let mut node = Node::new();
        let first = node.path("net.d").join(name);
        std::fs::write(&first, text).unwrap();
        node.start(&[]);
        not_ready(&node, &[name, words]);
        assert_eq!(std::fs::read_to_string(&first).unwrap(), text);
        assert_eq!(std::fs::read_to_string(node.path("net.d/10-pods.conflist")).unwrap(), LIST);
        std::fs::remove_file(&first).unwrap();
        node.wait_until_ready();
        assert!(node.has_entry());
    }
}

#[test]
fn of_two_agents_one_waits_and_takes_over() {
    let pod = Pod::new("web", 1);
    let mut node = Node::running(&[&pod]);
    let mut second = node.spawn(&["--listen=127.0.0.1:15015"]);
    node.wait_for_log("another agent works on this node");
    node.add(&pod).call().ok();
    assert_eq!(node.person(&["status"]).0, Some(0));
    // A pod that starts just then waits for the second.
    node.kill();
    let late = Pod::new("late", 2);
    node.server.set(&late.manifest);
    node.add(&late).call().ok();
    assert!(late.has_rules() && second.try_wait().unwrap().is_none());
    second.kill().unwrap();
    second.wait().unwrap();
}

fn line(node: &Node, text: &[u8]) -> Value {
    let mut stream = UnixStream::connect(node.run_dir().join("node.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // It need not hear all of it to refuse it.
    let _ = stream.write_all(text);
    let mut answer = String::new();
    let _ = BufReader::new(stream).read_line(&mut answer);
    serde_json::from_str(&answer).unwrap_or_default()
}

/// The plugin of the first release wrote these lines, byte for byte, and read these answers:
/// they are not to be changed, but added to.
#[test]
fn the_plugin_of_an_older_release_is_understood() {
    let pod = Pod::new("web", 1);
    let node = Node::running(&[&pod]);
    let decide = |name: &str| {
        format!(
            r#"{{"version":1,"request":"decide","namespace":"shop","name":"{name}","uid":"{}","container":"c1","interface":"eth0","netns":"/var/run/netns/cni-1"}}"#,
            uid(1)
        ) + "\n"
    };
    let answer = line(&node, decide("web").as_bytes());
    assert_eq!((&answer["version"], &answer["answer"]), (&json!(1), &json!("intercept")), "{answer}");
    assert_eq!(answer["options"]["istio-inbound-ports"]["value"], "*", "{answer}");
    assert!(answer["options"]["istio-inbound-ports"]["source"].is_string() && answer["why"].is_string());
    let done = br#"{"version":1,"request":"done","container":"c1","interface":"eth0","namespace":"shop","name":"web","netns":"/var/run/netns/cni-1","action":"left alone","why":"x"}
"#;
    assert_eq!(line(&node, done)["answer"], "heard");
    let forget = br#"{"version":1,"request":"forget","container":"c1","interface":"eth0"}
"#;
    assert_eq!(line(&node, forget)["answer"], "heard");
    let unknown = line(&node, decide("gone").as_bytes());
    assert!(unknown["answer"] == "error" && unknown["code"].is_number() && unknown["message"].is_string(), "{unknown}");
    // And one of a later release.
    let later = decide("web").replace("\"netns\"", "\"colour\":{\"blue\":[1]},\"netns\"");
    assert_eq!(line(&node, later.as_bytes())["answer"], "intercept");
    let other = line(&node, b"{\"version\":2,\"request\":\"divine\"}\n");
    assert!(other["message"].as_str().unwrap().contains("version 2"), "{other}");
}

#[test]
fn a_thousand_pods_with_long_names_are_listed_and_audited_and_an_older_program_is_not_told_half_of_them() {
    let mut node = Node::new();
    let name = |number: u32| format!("{}-{number:04}", "x".repeat(70));
    for number in 0..1000 {
        node.server.set_unseen(&json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name(number), "namespace": "shop", "uid": uid(number) },
            "spec": { "containers": [{ "name": "app", "image": "x" }] }, "status": { "phase": "Running" } }));
    }
    node.start(&[]);
    node.wait_until_ready();
    let (status, text) = node.person(&["list"]);
    let wanted: Vec<String> = (0..1000).map(|number| format!("{:<14} shop/{}", "left-alone", name(number))).collect();
    assert_eq!(status, Some(0), "{text}");
    assert!(text.lines().eq(wanted.iter().map(String::as_str)), "{} lines", text.lines().count());
    let (status, text) = node.person(&["list", "--json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    crate::schemas::hold("node-list", &list);
    assert_eq!((status, list["pods"].as_array().unwrap().len(), &list["next"]), (Some(0), 1000, &Value::Null));
    let (status, text) = node.person(&["audit", &format!("--host-proc={}", node.path("proc").display())]);
    let facts: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((status, &facts.last().unwrap()["end"]["pods"]), (Some(0), &json!(1000)));
    assert!(facts.iter().filter_map(|fact| fact["name"].as_str()).eq((0..1000).map(name)));
    // Who knows of no pages is told all or nothing.
    let old = line(&node, b"{\"version\":1,\"request\":\"list\"}\n");
    assert!(old["answer"] == "error" && old["message"].as_str().unwrap().contains("longer than 65536"), "{old}");
    let page = line(&node, b"{\"version\":1,\"request\":\"list\",\"from\":\"\"}\n");
    assert!(page["report"]["next"].is_string(), "{page}");
    for number in 100..1000 {
        node.server.delete("shop", &name(number));
    }
    let old = node.wait("the others to go", || {
        let old = line(&node, b"{\"version\":1,\"request\":\"list\"}\n");
        old["report"]["pods"].as_array().filter(|pods| pods.len() == 100).map(|_| old.clone())
    });
    assert_eq!(old["report"]["next"], Value::Null);
}

#[test]
fn garbage_and_silence_on_the_socket_keep_no_pod_from_starting() {
    let pod = Pod::new("web", 1);
    let mut node = Node::running(&[&pod]);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\xff\n", b"{}\n", &[b'x'; 200_000]] {
        assert_eq!(line(&node, garbage)["answer"], "error");
    }
    // All places are taken by who says nothing, or does not read.
    let socket = node.run_dir().join("node.sock");
    let silent: Vec<UnixStream> = (0..300).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    node.add(&pod).call().ok();
    assert!(pod.has_rules() && node.runs());
    drop(silent);
    assert_eq!(node.person(&["status"]).0, Some(0));
}

#[test]
fn only_root_is_answered() {
    let node = Node::running(&[]);
    let socket = node.run_dir().join("node.sock");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    // Somebody opened it to everybody.
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(node.run_dir(), PermissionsExt::from_mode(0o755)).unwrap();
    let answer = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            // SAFETY: the raw call changes this thread alone, which ends after its one question.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, -1, 1000, -1) }, 0);
            line(&node, b"{\"version\":1,\"request\":\"list\"}\n")
        });
        other.join().unwrap()
    });
    assert_eq!((&answer["answer"], &answer["message"]), (&json!("error"), &json!("only root may ask the agent")));
    assert_eq!(line(&node, b"{\"version\":1,\"request\":\"list\"}\n")["answer"], "report");
}

#[test]
fn a_token_that_is_revoked_keeps_no_known_pod_from_starting_and_is_named() {
    let pod = Pod::new("web", 1);
    let node = Node::running(&[&pod]);
    node.server.fault(|_, _| Some(Fault::Refuse(401, "Unauthorized")));
    node.server.end_watches();
    node.wait_for_log("the agent's token is not accepted any more");
    node.add(&pod).call().ok();
    assert!(pod.has_rules());
    let stranger = Pod::new("stranger", 2);
    node.server.set(&stranger.manifest);
    let (code, message) = node.add(&stranger).call().error();
    assert!(code == 11 && message.contains("Unauthorized"), "{code} {message}");
    node.server.behave();
    node.wait("the stranger to be known", || (!node.state(&stranger).is_empty()).then_some(()));
    assert_eq!(node.server.count(What::List), 1);
}
