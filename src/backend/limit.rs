//! How many rules are read for an audit. It cuts the packets that rules may meet into more and smaller
//! sets with every rule, and keeps these in memory: 20,000 rules of a node's services take an audit
//! seconds and 85 MB, 100,000 a minute and 400 MB. A pod's own namespace has tens of rules; one with
//! tens of thousands is a node's, or somebody made them to keep others from looking. So larger rule sets
//! are refused before they are parsed: rules and lines are counted first.

use std::fmt;

/// The most rules and elements of sets that are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Most {
    pub rules: usize,
    /// Elements of sets, which cost little: a lookup meets one of them.
    pub elements: usize,
}

impl Most {
    /// The limit for audits, which must say where traffic goes.
    pub const TO_UNDERSTAND: Most = Most { rules: 20_000, elements: 100_000 };
    /// For the node's agent, which looks at every pod of a node again and again: what a container
    /// with CAP_NET_ADMIN makes in its own pod must not take the agent's memory.
    pub const OF_A_POD: Most = Most { rules: 2_000, elements: 20_000 };
    /// For whoever reads what is its own.
    pub const ALL: Most = Most { rules: usize::MAX, elements: usize::MAX };
}

/// A listing exceeds its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    Rules { found: usize, most: usize },
    Elements { most: usize },
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Rules { found, most } => write!(f, "{found} rules are more than the {most} that are read"),
            Self::Elements { most } => write!(f, "there are more elements of sets than the {most} that are read"),
        }
    }
}

impl std::error::Error for TooMany {}

/// Counts the rules of a dump before anything else is done with it.
///
/// # Errors
///
/// There are more rules than the limit.
pub fn check(dump: &[u8], most: Most) -> Result<(), TooMany> {
    let is_json = dump.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| matches!(byte, b'{' | b'['));
    let found = if is_json { of_json(dump) } else { of_lines(dump) };
    if found > most.rules { Err(TooMany::Rules { found, most: most.rules }) } else { Ok(()) }
}

/// Counts the rules of a dump in JSON: nft has an object for each rule, podweir a verdict.
fn of_json(dump: &[u8]) -> usize {
    let names = |rest: &[u8], name: &[u8]| {
        let behind = rest.strip_prefix(name).and_then(|rest| rest.iter().find(|byte| !byte.is_ascii_whitespace()));
        behind == Some(&b':')
    };
    let quotes = dump.iter().enumerate().filter(|(_, byte)| **byte == b'"').map(|(at, _)| at);
    quotes
        .filter(|at| dump.get(*at..).is_some_and(|rest| names(rest, b"\"rule\"") || names(rest, b"\"verdict\"")))
        .count()
}

/// Counts the rules of a dump in text: iptables-save has a line for each rule, perhaps with its counters
/// in front; nft has one in a chain.
fn of_lines(dump: &[u8]) -> usize {
    let mut in_chain = false;
    let is_rule = |line: &[u8]| {
        let line = line.trim_ascii();
        if line.starts_with(b"-A ") || line.starts_with(b"-I ") || line.starts_with(b"[") {
            return true;
        }
        if line.starts_with(b"chain ") && line.ends_with(b"{") {
            in_chain = true;
            return false;
        }
        in_chain &= line != b"}";
        in_chain
            && !line.is_empty()
            && ![&b"type "[..], b"policy ", b"comment ", b"#"].iter().any(|head| line.starts_with(head))
    };
    dump.split(|byte| *byte == b'\n').map(is_rule).filter(|is| *is).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dump: &str) -> usize {
        match check(dump.as_bytes(), Most { rules: 0, elements: 0 }) {
            Ok(()) => 0,
            Err(TooMany::Rules { found, .. }) => found,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn rules_of_every_dialect_are_counted_and_nothing_else() {
        let iptables = "# Generated\n*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j X\n[3:4] -A OUTPUT -j ACCEPT\nCOMMIT\n";
        assert_eq!(found(iptables), 2);
        let nft = "table ip t {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 1.2.3.4 }\n\t}\n\n\tchain c {\n\t\ttype filter hook output priority 0; policy accept;\n\t\tip daddr @s accept\n\t\tdrop\n\t}\n\n\tchain empty {\n\t}\n}\n";
        assert_eq!(found(nft), 2);
        let json =
            r#"{"nftables": [{"metainfo": {}}, {"chain": {}}, {"rule" : {"comment": "a \"rule\": b"}}, {"rule":{}}]}"#;
        assert_eq!(found(json), 2);
        assert_eq!(found(r#"  {"format": "x", "rules": [{"verdict": {"type": "accept"}, "why": "verdict"}]}"#), 1);
        assert_eq!((found(""), found("}\n[")), (0, 1));
    }
}
