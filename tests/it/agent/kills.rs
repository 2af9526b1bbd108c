//! Agents that are killed while pods start: a start may take longer, and none ends without rules.

use std::time::Duration;

use super::{Node, Pod};
use crate::plugin::Plugin;

const ROUNDS: u32 = 20;
/// How many pods start in a round, one a millisecond, so that each is at another point of its way.
const AT_ONCE: u32 = 10;
/// How much later the agent is killed in each round: in the last one every start has been answered.
const LATER: Duration = Duration::from_micros(1500);

#[test]
fn two_hundred_starts_while_agents_are_killed_all_end_with_rules() {
    let pods: Vec<Pod> = (0..AT_ONCE).map(|number| Pod::new(&format!("web-{number}"), number)).collect();
    let mut node = Node::new();
    for pod in &pods {
        node.server.set(&pod.manifest);
    }
    // Only the plugin makes rules.
    let unhealed = ["--heal=false"];
    node.start(&unhealed);
    node.wait_until_ready();
    let calls: Vec<Plugin> = pods.iter().map(|pod| node.add(pod)).collect();
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0u64..)
                .zip(&calls)
                .map(|(at, call)| {
                    scope.spawn(move || {
                        std::thread::sleep(Duration::from_millis(at));
                        call.call()
                    })
                })
                .collect();
            std::thread::sleep(LATER * round);
            node.kill();
            node.start(&unhealed);
            for (start, pod) in starts.into_iter().zip(&pods) {
                let came = start.join().unwrap();
                assert!(came.status.success(), "round {round}: {came:?}; the agent said\n{}", node.log());
                assert!(pod.has_rules(), "round {round}, {}", pod.full_name());
            }
        });
        // What is left is what no start has made.
        for (call, pod) in calls.iter().zip(&pods) {
            if round + 1 < ROUNDS {
                call.clone().verb("DEL").call().ok();
                pod.namespace.print("nft", &["flush", "ruleset"]);
            }
        }
    }
    pods.iter().for_each(|pod| node.wait_for_state(pod, "intercepted"));
}
