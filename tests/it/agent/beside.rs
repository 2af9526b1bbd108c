//! An agent, and a kubeconfig for the plugin beside it, as a node has that is moving from the one
//! to the other.

use serde_json::json;

use super::server::What;
use super::{Node, Pod};

/// Puts the kubeconfig where the plugin looks for its own.
fn with_kubeconfig(node: &Node) {
    let (from, to) = (node.path("kubeconfig"), node.run_dir().join("kubeconfig"));
    let mode = std::fs::metadata(&from).unwrap().permissions();
    std::fs::write(&to, std::fs::read(&from).unwrap()).unwrap();
    std::fs::set_permissions(&to, mode).unwrap();
}

#[test]
fn the_agent_is_asked_first_and_the_api_server_where_the_agent_is_away() {
    let pod = Pod::new("web", 1);
    let mut node = Node::running(&[&pod]);
    with_kubeconfig(&node);
    // The plugin calls from the network namespace of the node.
    node.namespace.run(|| node.add(&pod).call()).ok();
    assert!(pod.has_rules());
    assert_eq!(node.server.count(What::Get), 0);
    node.kill();
    drop(pod.namespace.print("nft", &["flush", "ruleset"]));
    node.namespace.run(|| node.add(&pod).call()).ok();
    assert!(pod.has_rules());
    assert_eq!(node.server.count(What::Get), 1);
}

#[test]
fn in_ambient_mode_nobody_but_the_agent_decides() {
    let pod = Pod::new("web", 1);
    let mut node = Node::running(&[&pod]);
    with_kubeconfig(&node);
    node.kill();
    let add = node.add(&pod).key("ambient", json!(true)).key("agent_timeout", json!("1s"));
    let (code, message) = node.namespace.run(|| add.call()).error();
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("does not answer"), "{message}");
    assert_eq!(node.server.count(What::Get), 0);
    assert!(!pod.has_rules());
}
