//! Expressions in words, for those that the model cannot follow: enough to know the rule
//! again in `nft -a list ruleset`. Names are nft's own, and raw payload is written as nft
//! writes it (`@nh,48,16`: 16 bits of the network header from bit 48 on).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::plan::effect::Effect;

use super::expr::{Expr, Op, Role, code, meta, payload};
use super::nfta::*;
use super::value::big_endian;
use super::wire::{Attr, find};

/// nft's names for meta keys (`enum nft_meta_keys`), from 0 on.
const META: &[&str] = &[
    "length",
    "protocol",
    "priority",
    "mark",
    "iif",
    "oif",
    "iifname",
    "oifname",
    "iiftype",
    "oiftype",
    "skuid",
    "skgid",
    "nftrace",
    "rtclassid",
    "secmark",
    "nfproto",
    "l4proto",
    "ibrname",
    "obrname",
    "pkttype",
    "cpu",
    "iifgroup",
    "oifgroup",
    "cgroup",
    "random",
    "ipsec",
    "iifkind",
    "oifkind",
    "ibrpvid",
    "ibrvproto",
    "time",
    "day",
    "hour",
    "sdif",
    "sdifname",
    "broute",
];
/// nft's names for ct keys (`enum nft_ct_keys`), from 0 on.
const CT: &[&str] = &[
    "state",
    "direction",
    "status",
    "mark",
    "secmark",
    "expiration",
    "helper",
    "l3proto",
    "saddr",
    "daddr",
    "protocol",
    "proto-src",
    "proto-dst",
    "label",
    "packets",
    "bytes",
    "avgpkt",
    "zone",
    "event",
    "saddr",
    "daddr",
    "saddr",
    "daddr",
    "id",
];

fn named(names: &[&str], key: u32) -> String {
    let name = usize::try_from(key).ok().and_then(|at| names.get(at));
    name.map_or_else(|| format!("key {key}"), |name| (*name).to_owned())
}

/// Expressions that only load a value, for a later comparison.
const LOADS: &[&str] =
    &["inner", "fib", "rt", "socket", "hash", "numgen", "osf", "tunnel", "xfrm", "bitwise", "byteorder", "lookup"];
/// Expressions that load, and the attribute that names their destination register. Without one
/// they change the packet: from a source register, or by taking an option out of it.
const LOADS_OR_WRITES: &[(&str, u16)] =
    &[("meta", NFTA_META_DREG), ("ct", NFTA_CT_DREG), ("payload", NFTA_PAYLOAD_DREG), ("exthdr", NFTA_EXTHDR_DREG)];
/// Expressions that end the rule or do not, and leave the packet as it is.
const CONDITIONS: &[&str] = &["cmp", "range", "limit", "quota", "connlimit", "dynset", "match"];
/// Expressions that note something and change nothing.
const NOTES: &[&str] = &["log", "counter", "last"];

/// An expression that has no variant of its own in [`Expr`]. One with an unknown name counts as a
/// decision: its effect on the packet is not known.
pub(super) fn unknown(name: &str, data: &[u8]) -> Expr {
    let number = |kind| find(data, kind).and_then(|a| a.u32());
    let role = match name {
        // A verdict that is none of the usual ones, such as one that queues.
        "immediate" if number(NFTA_IMMEDIATE_DREG) == Some(NFT_REG_VERDICT) => Role::Decision(Effect::Unknown),
        "immediate" => Role::Value,
        "objref" => object_role(number(NFTA_OBJREF_IMM_TYPE)),
        _ if LOADS_OR_WRITES.iter().any(|(load, register)| *load == name && number(*register).is_some()) => Role::Load,
        _ if LOADS.contains(&name) => Role::Load,
        _ if CONDITIONS.contains(&name) => Role::Condition,
        _ if NOTES.contains(&name) => Role::Nothing,
        "reject" => Role::Decision(Effect::Drops),
        "masq" => Role::Decision(Effect::Accepts),
        "nat" if number(NFTA_NAT_TYPE) == Some(NFT_NAT_SNAT) => Role::Decision(Effect::Accepts),
        _ => Role::Decision(Effect::Unknown),
    };
    Expr::Unknown { role, words: essentials(name, data).unwrap_or_else(|| name.to_owned()) }
}

/// The role of a reference to an object, by the object's type (`NFTA_OBJREF_IMM_TYPE`, `NFT_OBJECT_*`).
/// `None`: the object comes from a map, and the rule ends if the map has none.
fn object_role(kind: Option<u32>) -> Role {
    const COUNTER: u32 = 1;
    const QUOTA: u32 = 2;
    const LIMIT: u32 = 4;
    const CONNLIMIT: u32 = 5;
    match kind {
        Some(COUNTER) => Role::Nothing,
        None | Some(QUOTA | LIMIT | CONNLIMIT) => Role::Condition,
        // A helper, a tunnel, a SYN proxy and the like take part in where the packet goes.
        Some(_) => Role::Decision(Effect::Unknown),
    }
}

/// An expression's name and main attributes in words; `None` if nothing is known about it.
fn essentials(name: &str, data: &[u8]) -> Option<String> {
    let attribute = |kind| find(data, kind);
    let number = |kind| attribute(kind).and_then(|a: Attr| a.u32());
    let long = |kind| attribute(kind).and_then(|a: Attr| a.u64());
    let byte = |kind| attribute(kind).and_then(|a: Attr| a.value.first().copied());
    let choice = |names: &[&str], kind| Some(named(names, number(kind)?));
    Some(match name {
        // What is set comes from a source register.
        "meta" if number(NFTA_META_SREG).is_some() => format!("meta {} set", named(META, number(NFTA_META_KEY)?)),
        "meta" => format!("meta {}", named(META, number(NFTA_META_KEY)?)),
        "ct" if number(NFTA_CT_SREG).is_some() => format!("ct {} set", named(CT, number(NFTA_CT_KEY)?)),
        "ct" => {
            let direction =
                byte(NFTA_CT_DIRECTION).map_or("", |direction| if direction == 0 { "original " } else { "reply " });
            format!("ct {direction}{}", named(CT, number(NFTA_CT_KEY)?))
        }
        "payload" => {
            let set = if number(NFTA_PAYLOAD_SREG).is_some() { " set" } else { "" };
            raw(number(NFTA_PAYLOAD_BASE)?, number(NFTA_PAYLOAD_OFFSET)?, number(NFTA_PAYLOAD_LEN)?) + set
        }
        "exthdr" => {
            let header = if number(NFTA_EXTHDR_OP) == Some(NFT_EXTHDR_OP_TCPOPT) { "tcp option" } else { "exthdr" };
            let (before, behind) = match (number(NFTA_EXTHDR_DREG), number(NFTA_EXTHDR_SREG)) {
                (None, None) => ("reset ", ""),
                (None, Some(_)) => ("", " set"),
                _ => ("", ""),
            };
            format!("{before}{header} {}{behind}", byte(NFTA_EXTHDR_TYPE)?)
        }
        "fib" => {
            let flags = number(NFTA_FIB_FLAGS)?;
            let by = [(1, "saddr"), (2, "daddr"), (4, "mark"), (8, "iif"), (16, "oif")];
            let by: Vec<&str> = by.into_iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| name).collect();
            format!("fib {} {}", by.join(" . "), choice(&["", "oif", "oifname", "type"], NFTA_FIB_RESULT)?)
        }
        "rt" => format!("rt {}", choice(&["classid", "ip nexthop", "ip6 nexthop", "mtu", "ipsec"], NFTA_RT_KEY)?),
        "socket" => format!("socket {}", choice(&["transparent", "mark", "wildcard", "cgroupv2"], NFTA_SOCKET_KEY)?),
        "numgen" => format!("numgen {} mod {}", choice(&["inc", "random"], NFTA_NG_TYPE)?, number(NFTA_NG_MODULUS)?),
        "limit" => {
            let over = if number(NFTA_LIMIT_FLAGS).unwrap_or(0) & NFT_LIMIT_F_INV != 0 { "over " } else { "" };
            let unit = match long(NFTA_LIMIT_UNIT)? {
                1 => "second".to_owned(),
                60 => "minute".to_owned(),
                3600 => "hour".to_owned(),
                86_400 => "day".to_owned(),
                seconds => format!("{seconds} seconds"),
            };
            let what = if number(NFTA_LIMIT_TYPE) == Some(NFT_LIMIT_PKT_BYTES) { " bytes" } else { "" };
            format!("limit rate {over}{}{what}/{unit}", long(NFTA_LIMIT_RATE)?)
        }
        "quota" => {
            let over = if number(NFTA_QUOTA_FLAGS).unwrap_or(0) & NFT_QUOTA_F_INV != 0 { "over " } else { "" };
            format!("quota {over}{} bytes", long(NFTA_QUOTA_BYTES)?)
        }
        "connlimit" => {
            let over = if number(NFTA_CONNLIMIT_FLAGS).unwrap_or(0) & NFT_CONNLIMIT_F_INV != 0 { "over " } else { "" };
            format!("ct count {over}{}", number(NFTA_CONNLIMIT_COUNT)?)
        }
        "lookup" if attribute(NFTA_LOOKUP_DREG).is_some() => format!("map @{}", attribute(NFTA_LOOKUP_SET)?.string()),
        "lookup" => {
            let not = if number(NFTA_LOOKUP_FLAGS).unwrap_or(0) & NFT_LOOKUP_F_INV != 0 { "!= " } else { "" };
            format!("{not}@{}", attribute(NFTA_LOOKUP_SET)?.string())
        }
        "objref" => format!("object {}", attribute(NFTA_OBJREF_IMM_NAME).or(attribute(NFTA_OBJREF_SET_NAME))?.string()),
        "nat" => choice(&["snat", "dnat"], NFTA_NAT_TYPE)?,
        // A value, or a verdict by its number.
        "immediate" => {
            let data = attribute(NFTA_IMMEDIATE_DATA)?;
            match (find(data.value, NFTA_DATA_VALUE), find(data.value, NFTA_DATA_VERDICT)) {
                (Some(value), _) => plain(value.value),
                (None, Some(verdict)) => format!("verdict {}", find(verdict.value, NFTA_VERDICT_CODE)?.u32()? as i32),
                _ => return None,
            }
        }
        _ => return None,
    })
}

fn raw(base: u32, offset: u32, len: u32) -> String {
    match (base, offset, len) {
        (payload::TRANSPORT, 0, 2) => "th sport".into(),
        (payload::TRANSPORT, 2, 2) => "th dport".into(),
        _ => {
            let base = named(&["ll", "nh", "th", "ih"], base);
            format!("@{base},{},{}", u64::from(offset) * 8, u64::from(len) * 8)
        }
    }
}

/// A value by itself: an address by its length, else a number in network order.
fn plain(bytes: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(v4).to_string();
    }
    if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        return Ipv6Addr::from(v6).to_string();
    }
    big_endian(bytes).map_or_else(|| format!("{} bytes", bytes.len()), |number| number.to_string())
}

/// How a value is written, by what it is compared with: most are numbers in host order.
#[derive(Clone, Copy, PartialEq)]
enum Written {
    Host,
    Index,
    Name,
    Network,
}

fn value(bytes: &[u8], written: Written) -> String {
    let host = || bytes.iter().rev().fold(0u128, |n, &b| n << 8 | u128::from(b));
    let network = || big_endian(bytes).unwrap_or_default();
    let number = if cfg!(target_endian = "little") { host() } else { network() };
    match written {
        _ if bytes.len() > 16 => format!("{} bytes", bytes.len()),
        Written::Name => String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap_or_default()).into_owned(),
        Written::Index => number.to_string(),
        Written::Host => format!("{number:#x}"),
        Written::Network => format!("{:#x}", network()),
    }
}

fn relation(op: Op) -> &'static str {
    match op {
        Op::Eq => "",
        Op::Neq => "!= ",
        Op::Other(2) => "< ",
        Op::Other(3) => "<= ",
        Op::Other(4) => "> ",
        Op::Other(5) => ">= ",
        Op::Other(_) => "? ",
    }
}

fn verdict(code: i32, chain: Option<&str>) -> String {
    match (code, chain) {
        (code::DROP, None) => "drop".into(),
        (code::ACCEPT, None) => "accept".into(),
        (code::RETURN, None) => "return".into(),
        (code::JUMP, Some(chain)) => format!("jump {chain}"),
        (code::GOTO, Some(chain)) => format!("goto {chain}"),
        _ => format!("verdict {code}"),
    }
}

/// The statement at `at` in words, with the loads from `from` on: fields stand before it, constants
/// behind it.
pub(super) fn statement(exprs: &[Expr], from: usize, at: usize) -> String {
    let is_value = |expr: &Expr| matches!(expr, Expr::Immediate(_) | Expr::Unknown { role: Role::Value, .. });
    let name = phrase(&exprs[at..=at]);
    match &exprs[from..at] {
        [] => name,
        before @ [Expr::Immediate(_)] if matches!(exprs[at], Expr::MetaSet(_) | Expr::CtSet(_)) => {
            phrase(&[&exprs[at..=at], before].concat())
        }
        values if values.iter().all(is_value) && name.ends_with(" set") => format!("{name} {}", phrase(values)),
        values if values.iter().all(is_value) => format!("{name} to {}", phrase(values)),
        loads => format!("{} {name}", phrase(loads)),
    }
}

/// Expressions that belong together, such as a load and what is done with it.
pub(super) fn phrase(exprs: &[Expr]) -> String {
    let (mut written, mut set) = (Written::Host, false);
    let mut out: Vec<String> = Vec::new();
    for expr in exprs {
        match expr {
            Expr::Meta(key) => {
                written = match *key {
                    meta::IIF | meta::OIF => Written::Index,
                    meta::IIFNAME | meta::OIFNAME => Written::Name,
                    _ => Written::Host,
                };
                out.push(format!("meta {}", named(META, *key)));
            }
            Expr::Ct(key) => {
                written = Written::Host;
                out.push(format!("ct {}", named(CT, *key)));
            }
            Expr::Payload { base, offset, len } => {
                written = Written::Network;
                out.push(raw(*base, *offset, *len));
            }
            Expr::MetaSet(key) => {
                set = true;
                out.push(format!("meta {} set", named(META, *key)));
            }
            Expr::CtSet(key) => {
                set = true;
                out.push(format!("ct {} set", named(CT, *key)));
            }
            Expr::Hton { .. } => written = Written::Network,
            Expr::Bitwise { mask, xor } => {
                out.push(format!("& {}", value(mask, written)));
                out.extend(xor.iter().any(|&b| b != 0).then(|| format!("^ {}", value(xor, written))));
            }
            Expr::Cmp { op, data } => out.push(format!("{}{}", relation(*op), value(data, written))),
            Expr::Range { op, from, to } if from == to => {
                out.push(format!("{}{}", relation(*op), value(from, written)));
            }
            Expr::Range { op, from, to } => {
                out.push(format!("{}{}-{}", relation(*op), value(from, written), value(to, written)));
            }
            Expr::Lookup { set, negated, .. } => {
                let not = if *negated { "!= " } else { "" };
                // One without a name in the kernel is a list of the rule's own.
                let set = if set.starts_with('\0') { "a list".to_owned() } else { format!("@{set}") };
                out.push(format!("{not}{set}"));
            }
            Expr::Vmap { set } => {
                out.push(if set.starts_with('\0') { "vmap".to_owned() } else { format!("vmap @{set}") });
            }
            // A field is set in the machine's order, an address or port is in the network's.
            Expr::Immediate(bytes) => out.push(if set { value(bytes, Written::Host) } else { plain(bytes) }),
            Expr::Verdict { code, chain } => out.push(verdict(*code, chain.as_deref())),
            Expr::Redir => out.push("redirect".into()),
            Expr::Snat { .. } => out.push("snat".into()),
            Expr::Tproxy { .. } => out.push("tproxy".into()),
            Expr::Xt { target, name, .. } => {
                out.push(format!("xt {} {name}", if *target { "target" } else { "match" }))
            }
            Expr::Update { verb, set } => out.push(format!("{} @{set}", verb.name())),
            Expr::Unknown { role, words } => {
                if *role == Role::Load && words.starts_with('@') {
                    written = Written::Network;
                }
                out.push(words.clone());
            }
            Expr::Counter { .. } => {}
        }
    }
    out.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::wire::{Messages, NfMessage};
    use crate::backend::nftables::wire::{Msg, NfFamily};
    use crate::sys::netlink::messages;

    fn read(name: &str, numbers: &[(u16, u32)]) -> Expr {
        let mut out = Messages::default();
        out.nft(Msg::NewRule, 0, NfFamily::INET, |a| numbers.iter().for_each(|(kind, n)| a.u32(*kind, *n)));
        let message = messages(out.bytes()).next().unwrap();
        unknown(name, message.attributes())
    }

    #[test]
    fn what_takes_its_value_from_a_register_or_takes_an_option_away_decides() {
        // A register that rules of ours do not use: 2.
        for (name, loads, writes) in [
            ("payload", &[(1, 2), (2, 1), (3, 16), (4, 4)][..], &[(5, 2), (2, 1), (3, 16), (4, 4)][..]),
            ("meta", &[(1, 2), (2, 3)], &[(3, 2), (2, 3)]),
            ("ct", &[(1, 2), (2, 17)], &[(4, 2), (2, 17)]),
            ("exthdr", &[(1, 2), (6, 1)], &[(7, 2), (6, 1)]),
            ("exthdr", &[(1, 2), (6, 0)], &[(6, 1)]),
        ] {
            let role = |numbers| if let Expr::Unknown { role, .. } = read(name, numbers) { Some(role) } else { None };
            assert_eq!(
                (role(loads), role(writes)),
                (Some(Role::Load), Some(Role::Decision(Effect::Unknown))),
                "{name}"
            );
        }
    }

    #[test]
    fn what_nobody_has_heard_of_decides() {
        assert!(matches!(read("teleport", &[]), Expr::Unknown { role: Role::Decision(Effect::Unknown), .. }));
    }
}
