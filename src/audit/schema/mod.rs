//! podweir's own JSON for rules: everything a source holds, so that it can be looked at
//! elsewhere, without the kernel it comes from. What is written here is read here, and
//! nothing gets lost on the way.
//!
//! ```text
//! { "format": "podweir-rules", "version": 1,
//!   "told": ["IPv4", "IPv6"],                    families that the source tells about
//!   "pod": { "addresses": ["10.244.0.6"], "dns_servers": null, "uplink": "eth0",
//!            "routes": [ { "to": "10.55.0.0/24", "interface": "net1", "own": false } ] },
//!                                               own: an address of the interface's
//!   "tables": [ {
//!     "holder": "nftables",                      plan, nftables, iptables-nft, iptables-legacy, iptables
//!     "name": "istio-proxy-nat", "families": ["IPv4", "IPv6"], "dormant": false,
//!     "as_nft_shows": false,                     iptables-nft's, with what nft does not show left out
//!     "chains": [ {
//!       "name": "OUTPUT",                        an interception's by its name in iptables
//!       "hook": { "name": "output", "type": "nat", "priority": -100, "drops": false },   or null
//!       "rules": [ {
//!         "families": ["IPv4"],
//!         "match": { "destination": { "is": ["10.0.0.0/8"] }, "uid": { "is_not": [1337, "2000-2010"] } },
//!         "verdict": { "type": "jump", "chain": "ISTIO_REDIRECT" },
//!         "why": "included-range: destination is taken",
//!         "counters": { "packets": 1, "bytes": 60 },   or null
//!         "origin": { "number": 3, "handle": 12, "text": null,      or null: not read from anywhere
//!                     "incomplete": false }     true: the listing left a part of the rule out
//!       } ] } ] } ],
//!   "routing": { "rules": [ { "family": "IPv4", "mark": 1337, "table": 133 } ],
//!                "routes": [ { "family": "IPv4", "table": 133 } ],
//!                "mesh_address": true } }        or null: not told
//! ```
//!
//! A condition is on `source`, `destination` (networks), `in_interface`, `out_interface`
//! (names; a trailing `+` for any ending), `protocol`, `source_port`, `destination_port`,
//! `uid`, `gid` (numbers and ranges), `mark`, `connection_mark` (`"value/mask"`), or
//! `connection_state` (names); it says `is` or `is_not`. `unknown` lists conditions in
//! the holder's own words. A verdict's `type` is `continue`, `return`, `accept`, `drop`,
//! `jump` or `goto` (with `chain`), `redirect` (`port`), `tproxy` (`port`, `mark`,
//! `closed`), `set-mark` (`value`, `mask`), `save-mark`, `restore-mark`, `ct-zone`
//! (`zone`), or `unknown` (`text`, and `effect`: what becomes of the packet, `drops`, `accepts`,
//! `none` where it goes on to the next rule, or `unknown`, which is what it is if left out).

mod read;
mod write;

pub use read::read;
pub use write::{FORMAT, VERSION, source};
