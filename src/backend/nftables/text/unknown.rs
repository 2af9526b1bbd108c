//! Words of a rule that are not understood: where they end, whether they decide about a packet, and the
//! conditions under which a packet has the fields that they name.

use crate::backend::nftables::expr::Expr;
use crate::backend::nftables::written::fields;

use super::tokens::Token;

/// The conditions under which a packet has the fields that words compare or load. A header within
/// another one (`vxlan ip saddr`), or of another direction, is not the packet's own.
pub(super) fn headers(words: &[Token]) -> Vec<Expr> {
    let mut out = Vec::new();
    let mut depth = 0usize;
    for (at, token) in words.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| words[before]);
        let is_first = match before {
            None => true,
            Some(Token::Word(before)) => matches!(before, "." | "set" | "jhash" | "name" | "to" | ":"),
            Some(_) => false,
        };
        match (token, words.get(at + 1)) {
            (Token::Sign('{'), _) => depth += 1,
            (Token::Sign('}'), _) => depth = depth.saturating_sub(1),
            (Token::Word(header), Some(Token::Word(field))) if depth == 0 && is_first && *field != "option" => {
                out.extend(fields::of_header(header));
            }
            _ => {}
        }
    }
    out
}

/// The sets and maps that a rule changes.
pub fn updated<'a>(words: &[Token<'a>]) -> impl Iterator<Item = &'a str> {
    words.windows(2).filter_map(|two| match two {
        [Token::Word("add" | "update" | "delete"), Token::Word(set)] => set.strip_prefix('@'),
        [Token::Word("meter"), name] => name.text(),
        _ => None,
    })
}

/// Words that begin conditions with plain values, unlike `ipsec in ip saddr` or `vxlan tcp dport`, whose
/// values look like conditions.
pub(super) const OPENING: &[&str] = &[
    "ip",
    "ip6",
    "tcp",
    "udp",
    "udplite",
    "sctp",
    "dccp",
    "th",
    "icmp",
    "icmpv6",
    "igmp",
    "ether",
    "vlan",
    "ah",
    "esp",
    "comp",
    "frag",
    "hbh",
    "fib",
    "limit",
    "quota",
    "ct",
    "meta",
    "socket",
    "rt",
    "numgen",
    "osf",
    "iif",
    "oif",
    "iifname",
    "oifname",
    "iifgroup",
    "oifgroup",
    "iiftype",
    "oiftype",
    "pkttype",
    "skuid",
    "skgid",
    "mark",
    "cpu",
    "cgroup",
    "rtclassid",
    "day",
    "hour",
    "time",
    "protocol",
];

/// Words that are followed by a field that belongs to them.
pub(super) const BINDING: &[&str] = &[
    ".", "meta", "ct", "to", "map", "vmap", "mod", "&", "|", "^", "and", "or", "xor", "==", "!=", "<", "<=", ">", ">=",
    "/",
];

/// Words that begin statements which are understood by themselves.
pub(super) const STATEMENTS: &[&str] =
    &["counter", "comment", "log", "accept", "drop", "return", "continue", "jump", "goto", "redirect", "reject"];

/// Words that say that a packet is being decided about or changed.
pub(super) const DECIDING: &[&str] = &[
    "redirect",
    "tproxy",
    "dnat",
    "snat",
    "masquerade",
    "reject",
    "queue",
    "vmap",
    "dup",
    "fwd",
    "notrack",
    "set",
    "synproxy",
    "flow",
    "xt",
    "accept",
    "drop",
    "return",
    "continue",
    "jump",
    "goto",
    "add",
    "update",
    "reset",
];
