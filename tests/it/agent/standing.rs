//! What the agent says of itself: the node's condition, readiness and `status` at the start, while
//! others work against it, and while its sockets are lost.

use serde_json::Value;

use super::server::What;
use super::{LIST, Node};

/// What was told of the condition, in order, without the questions what there is.
fn told(node: &Node) -> Vec<Value> {
    let bodies = node.server.asked(What::Condition).into_iter().map(|asked| asked.body);
    bodies.map(|body| body["status"]["conditions"][0].clone()).filter(|one| !one.is_null()).collect()
}

#[test]
fn while_another_program_has_its_way_nobody_says_that_the_entry_is_there() {
    let node = Node::running(&[]);
    let list = node.path("net.d/10-pods.conflist");
    let says = || {
        let (code, text) = node.ask("/readyz")?;
        (code == 503 && text.contains("was taken out of")).then_some(text)
    };
    // It takes the entry out whenever it is there, and the pauses grow.
    let text = node.wait("a pause", || {
        if node.has_entry() {
            std::fs::write(&list, LIST).unwrap();
        }
        says()
    });
    assert!(text.contains("by another program") && text.contains("written again within"), "{text}");
    node.wait("the condition", || {
        if node.has_entry() {
            std::fs::write(&list, LIST).unwrap();
        }
        told(&node).into_iter().find(|one| one["status"] == "False" && one["reason"] == "TakenOut")
    });
    let at_last = node.wait("a longer pause", || {
        if node.has_entry() {
            std::fs::write(&list, LIST).unwrap();
        }
        says().filter(|text| text.contains("within 8 s"))
    });
    assert!(at_last.contains("cni.exclusive=false"), "{at_last}");
    // In it the binary is kept, and everybody says the same.
    assert_eq!(node.metric("podweir_chain_effective"), 0.0);
    let (_, status) = node.person(&["status"]);
    assert!(status.contains("was taken out of") && !status.contains("ready    yes"), "{status}");
    std::fs::remove_file(node.path("bin/podweir")).unwrap();
    node.wait("the binary", || node.path("bin/podweir").exists().then_some(()));
    node.wait("the entry", || node.has_entry().then_some(()));
    node.wait_until_ready();
}
