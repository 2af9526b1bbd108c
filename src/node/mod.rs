//! The node agent: puts the plugin in place and keeps it there, answers it without a call
//! to the API server, notices when a pod's rules are gone, mends them, and says all of this
//! where people look.
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
//! | `installer` | the plugin's binary and its entry in the chain |
//! | `api`, `wire`, `cache` | the watch, the way to the API server, and what is known of each pod |
//! | `decide` | what is to be done with a pod: pure |
//! | `socket` | requests of the plugin and of people |
//! | `inventory`, `caretaker`, `look` | each pod's state; looking after it; looking and mending |
//! | `worker`, `processes`, `ears` | threads in pods' namespaces; finding these; hearing of changes there |
//! | `pulse` | heartbeats, by which something that hangs shows |
//! | `events`, `metrics`, `http`, `condition` | saying what happens |
//! | `ambient` | pods without a proxy of their own: telling ztunnel, and keeping that true |
//! | `preflight`, `on_failure` | what is looked at first; what becomes of a pod that cannot be repaired |
//! | `agent`, `run` | all of it together |

mod agent;
pub mod ambient;
pub mod api;
mod budget;
mod cache;
mod caretaker;
mod condition;
pub mod credentials;
mod decide;
mod ears;
mod events;
pub mod http;
pub mod installer;
mod inventory;
mod look;
mod metrics;
mod on_failure;
mod preflight;
mod processes;
mod pulse;
mod run;
pub mod settings;
mod socket;
mod wire;
mod worker;

use agent::Agent;

pub use decide::{Policy, ReadInit};
pub use run::{RunError, run, uninstall};
