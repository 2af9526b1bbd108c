//! The node agent: installs the plugin and keeps it installed, answers its requests without a call to
//! the API server, notices when a pod's rules are gone, repairs them, and reports all of this where
//! people look.
//!
//! ```text
//! API server ── one watch: this node's pods ──► cache ─┐
//!                                                      ▼
//! plugin ── socket: who is this? ──► decide ──► options ──► plugin programs ── socket: done ──► inventory
//!                                                                                                │
//! kernel ── told in the pod's namespace, or the timer ──► caretaker: look, mend ◄────────────────┘
//!                                                             └──► events, metrics, condition
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | `installer`, `installed`, `missed` | the plugin's binary and its entry in the chain; what is known of these, and whether the runtime uses them |
//! | `api`, `backoff`, `transport`, `watched`, `cache` | the watch and the pauses after what fails, the way to the API server, a pod as it comes, and what is known of each |
//! | `decide` | what is to be done with a pod: pure |
//! | `socket` | requests of the plugin and of people |
//! | `inventory`, `caretaker`, `look` | each pod's state; looking after it; comparing and repairing its rules |
//! | `facts` | the rules that the kernel has in pods' namespaces, for an audit of the cluster |
//! | `worker`, `places`, `processes`, `ears` | threads in pods' namespaces; finding these; subscribing to changes there |
//! | `pulse` | heartbeats, by which something that hangs shows |
//! | `events`, `metrics`, `http`, `guests`, `condition`, `noticed` | reports of what happens, and when it was noticed; who may ask for them |
//! | `reports` | findings, as objects that policy tools show |
//! | `ambient` | pods without a proxy of their own: telling ztunnel, and keeping that true |
//! | `preflight`, `on_failure` | what is checked at the start; what becomes of a pod that cannot be repaired |
//! | `kept_socket` | sockets that stay at their paths |
//! | `shared`, `agent`, `run`, `removal` | what the parts share; the agent's reactions; its start and end; whether it is being removed, and removing everything |
//!
//! # A cluster of 5,000 nodes and 150,000 pods
//!
//! Each agent has one watch of pods with a field selector (`spec.nodeName`) and bookmarks, and one of
//! its own DaemonSet, of which only the metadata is asked for. Each lists once,
//! at its start, from the API server's memory (`resourceVersion=0`, and whole: pages come from its
//! database), and again only when that has forgotten its version (410): never because nothing
//! happened, or because a watch was dropped.
//! With pods of 20 KiB, watches that end after 290 s, and 10 changes in the life of a pod, which
//! is a day, all agents together ask for, and are sent, by calculation:
//!
//! | what | requests a second | bytes a second |
//! |---|---:|---:|
//! | watches begun again: 2 × 5,000 / 290 s, some 2 KiB of headers and token each | 34 | 70 KiB |
//! | changes of pods: 150,000 × 10 / day, 20 KiB each | – | 350 KiB |
//! | bookmarks, one a minute and watch, 300 bytes | – | 50 KiB |
//! | a roll-out: the DaemonSet's status changes some 3 times a node, here each 30 s, 2 KiB to each agent | – | 1 MiB |
//! | the node's condition, told every 300 s; the answer is the node, some 15 KiB | 17 | 250 KiB |
//! | an agent's start: one list of 30 pods, 600 KiB; `maxUnavailable: 1` has them one by one | – | – |
//!
//! When an API server ends, all its watches end together. Those cut off in the middle of their
//! life are begun again spread over 5 s; whatever is refused, a list or a watch, is followed by
//! pauses that grow from 0.8 s to 30 s, each with as much again by chance, until the API server
//! has told something (`backoff`). Simulated with these pauses (`herd`, one of the unit tests) for
//! the watches of pods; those of the DaemonSet are as many again:
//!
//! | all 5,000 cut off, the API server is away for | requests in the busiest second after its return | all watch again after |
//! |---|---:|---:|
//! | 0 s (another one takes over) | 1,055 | 5 s |
//! | 15 s | 708 | 40 s |
//!
//! While it is away some 3,000 connections are refused in the busiest second. Nobody lists
//! because of that. An event that is not taken asks again after the same pauses, one at a time on each
//! node (`events`). But a server that restarted knows no version from before its start, and
//! answers 410 to who has heard of nothing since (seen: 1.36, "too old resource version"): each of
//! these lists once, from the server's memory and spread as above, up to 5,000 × 600 KiB in 40 s. Where
//! another server takes over, which has been there all the time, there is no list. Where lists
//! are refused for minutes, all agents together ask for some 160 a second at last.

mod accept;
mod agent;
pub mod ambient;
pub mod api;
mod backoff;
mod budget;
mod cache;
mod caretaker;
mod condition;
pub mod credentials;
mod decide;
mod ears;
mod error;
mod events;
pub mod facts;
mod guests;
#[cfg(test)]
mod herd;
pub mod http;
mod installed;
pub mod installer;
mod inventory;
mod kept_socket;
mod labels;
mod look;
mod metrics;
mod missed;
mod noticed;
mod on_failure;
mod places;
mod preflight;
mod processes;
mod pulse;
mod removal;
mod reports;
mod run;
pub mod settings;
mod shared;
mod socket;
mod transport;
mod watched;
mod worker;

pub use decide::{Policy, ReadInit};
pub use error::RunError;
pub use removal::uninstall;
pub use run::run;
