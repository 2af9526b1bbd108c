//! podweir puts a weir across a pod's traffic: inside the pod's network namespace it
//! diverts connections to a sidecar proxy, and it can say exactly what it diverts, what
//! escapes, and whether the kernel still agrees.
//!
//! # The house in one drawing
//!
//! ```text
//!  flags, variables ──┐                                                ┌──► backend::nftables ──┐
//!  a netconf ─────────┼─► config ─► Interception ─► plan::build ─► Plan┼──► backend::iptables ──┼─► kernel
//!  a pod's annotations┘                                             │  └──► backend::routing ───┘     │
//!                                                                   │                                 │
//!   audit: explain, escapes, lints, verify, drawings ◄── Listing ◄──┴──────── backend reads ◄─────────┘
//!      ▲                                                                      (a kernel, or a dump)
//!   cli: init, render, verify, explain, audit, clean        cni: ADD, CHECK, DEL        node: the agent
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`sys`] | the operating system: sockets, namespaces, locks; every `unsafe` |
//! | [`config`] | what the user asked for, typed and checked; the only place that reads the environment, and pods |
//! | [`plan`] | the model of what a kernel must hold, and the one place that decides it; canonical form, differences, words |
//! | [`backend`] | translation of plans to and from nftables and iptables; listings of anybody's rules; installing and removing |
//! | [`audit`] | traffic: one walk for a packet or for a set of flows, escapes, findings, comparing, drawing |
//! | [`probe`] | a token sent through the rules, to prove them |
//! | [`cni`] | the plugin that a container runtime executes |
//! | [`node`] | the agent of a node: installer, cache, socket, inventory, verifying and repairing; async, as are the sockets of `sys` that it waits on and the plugin's lookup of a pod in `cni` |
//! | [`cli`] | what is typed: one file per subcommand |
//!
//! Each uses those above it in this table and none below (`audit` and `probe`, and `cni`, `node` and `cli`, know
//! of each other only where one calls the other).
//!
//! # How a flag becomes a rule
//!
//! `-d 15090` is a row of `OPTIONS` in [`config::options`]. `config::settings` takes the value of the source that
//! beats the others (flag, variable, annotation, netconf, default), and `config::value` makes a `PortList` of the text or an error that
//! names flag and value. It is the field `inbound_ports_exclude` of
//! [`Interception`](config::interception::Interception). `plan::build` decides: `tcp dport {15090}: return` in
//! ISTIO_INBOUND, with the reason `ExcludedInboundPort`. A backend translates: natively one rule with a set for
//! both families, with iptables a rule for each port and family (`plan::lower`). Read back, both are the same canonical
//! rule ([`plan::canon`]), by which plans are compared; its reason, written or recovered by building the plan again from what
//! was read (`plan::recover`), is what `explain`, `verify` and `audit` print.
//!
//! # Where to add something
//!
//! Each of these was tried; the files are those that it touched.
//!
//! | what | files | the compiler or a test says what is missing |
//! |---|---|---|
//! | an option | `config/options.rs` (its row), `config/interception.rs` (its field), `config/settings.rs` (how it is read), `plan/build/` (what it decides), `plan/why.rs` (the reason), `plan/recover.rs` and `plan/infer.rs` (the way back from rules), `config/pod/annotations.rs` if pods may say it | the struct's literals; `bad_input` and `readme` walk all options, `reasons` the way back |
//! | a match | `plan/model.rs` (`Matches`), `plan/{canon_rule,lower,fold,words}.rs`, `backend/nftables/{encode,condition,script}.rs` and its readers of text and JSON, `backend/iptables/{render,rule}.rs`, `audit/schema/`, `audit/space/dimensions.rs` and `audit/digest.rs` if flows differ by it | not the compiler: the tests `properties` and `dumps`, which render and parse every variant, once `tests/it/arbitrary.rs` makes it |
//! | a backend | a variant of [`backend::BackendKind`] and a module beside `backend/nftables` that implements `backend::Backend` (six functions); `backend/install/`, `backend/host.rs` (the node's sets in ambient mode) and `cli/dry_run.rs` | the compiler: ten places in five files |
//! | a finding about traffic | a variant in `audit/escapes/kind.rs`, with severity, sentence and cure, and where it belongs in `audit/escapes/classify.rs` | the compiler; `escapes` demands an example that the kernel agrees with |
//! | a finding of another kind | a file in `audit/lints/`, its row in `LINTS`, one line in `audit/report/mod.rs` | `--accept` knows it by its row; `lints` has a pod for each |

#![deny(unsafe_code)]
// What only this crate uses is not public, so that the compiler sees what nobody uses.
#![warn(unreachable_pub)]

pub mod audit;
pub mod backend;
pub mod cli;
pub mod cni;
pub mod config;
pub mod node;
pub mod plan;
pub mod probe;
pub mod sys;
