//! iptables-save text to the model. What the model does not know is kept in iptables'
//! own words as an unknown condition or target, never dropped.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family, Interface, Mark, Networks, Port};
use crate::config::value;
use crate::plan::model::{ChainName, Cond, Counters, CtStates, Masked, Matches, Rule, Verdict, protocol};
use crate::plan::why::Why;

/// Text that is not what iptables-save prints.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {problem}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    pub problem: String,
}

/// One family's rules as iptables-save lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    pub tables: Vec<SavedTable>,
}

/// A table of an iptables-save listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedTable {
    pub name: String,
    /// Chain name to policy; `-` for a user's chain.
    pub chains: BTreeMap<String, String>,
    pub rules: Vec<SavedRule>,
}

/// A rule line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRule {
    pub chain: String,
    /// The line after `-A CHAIN `, word for word, without counters.
    pub words: String,
    pub rule: Rule,
}

impl Saved {
    pub fn table(&self, name: &str) -> Option<&SavedTable> {
        self.tables.iter().find(|t| t.name == name)
    }
}

/// Parses the output of iptables-save or ip6tables-save, with or without `-c`.
pub fn parse(text: &str, family: Family) -> Result<Saved, ParseError> {
    let mut saved = Saved::default();
    let mut open: Option<SavedTable> = None;
    for (at, line) in text.lines().enumerate() {
        let fail = |problem: String| ParseError { line: at + 1, problem };
        let line = line.trim();
        match (line.chars().next(), &mut open) {
            (None | Some('#'), _) => {}
            (Some('*'), None) => {
                let name = line[1..].trim().to_owned();
                if saved.table(&name).is_some() {
                    return Err(fail(format!("table {name} stands here for the second time")));
                }
                open = Some(SavedTable { name, ..SavedTable::default() });
            }
            (Some('*'), Some(table)) => {
                return Err(fail(format!("table {} is not closed by COMMIT", table.name)));
            }
            (Some(_), None) => {
                return Err(fail(format!("'{}' stands outside of a table; is this iptables-save output?", clip(line))));
            }
            (Some(':'), Some(table)) => {
                let mut words = line[1..].split_whitespace();
                let (Some(chain), Some(policy)) = (words.next(), words.next()) else {
                    return Err(fail("a chain needs a name and a policy".into()));
                };
                table.chains.insert(chain.to_owned(), policy.to_owned());
            }
            (Some(_), Some(_)) if line == "COMMIT" => saved.tables.extend(open.take()),
            (Some(_), Some(table)) => table.rules.push(rule_line(line, family).map_err(fail)?),
        }
    }
    match open {
        Some(table) => Err(ParseError {
            line: text.lines().count(),
            problem: format!("the text ends inside of table {}: it is cut short", table.name),
        }),
        None => Ok(saved),
    }
}

fn clip(line: &str) -> String {
    line.chars().take(40).collect()
}

fn rule_line(line: &str, family: Family) -> Result<SavedRule, String> {
    let (counters, rest) = counters(line)?;
    let rest = rest.strip_prefix("-A ").ok_or_else(|| format!("'{}' is no rule", clip(line)))?;
    let (chain, words) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
    let rule = Rule { counters, ..rule(words, family)? };
    Ok(SavedRule { chain: chain.to_owned(), words: words.trim().to_owned(), rule })
}

/// `[packets:bytes] ` in front of a rule.
fn counters(line: &str) -> Result<(Option<Counters>, &str), String> {
    let Some(inner) = line.strip_prefix('[') else { return Ok((None, line)) };
    let parsed = inner.split_once("] ").and_then(|(numbers, rest)| {
        let (packets, bytes) = numbers.split_once(':')?;
        Some((Counters { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? }, rest))
    });
    match parsed {
        Some((counters, rest)) => Ok((Some(counters), rest)),
        None => Err(format!("'{}' has no valid counters", clip(line))),
    }
}

/// Words of a line; quotes and backslashes as iptables-save writes them.
fn split(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => word.extend(chars.next()),
            '"' => (quoted, any) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// Parses a rule's words, the part after `-A CHAIN`.
pub fn rule(words: &str, family: Family) -> Result<Rule, String> {
    let words = split(words)?;
    let mut reader = Reader { words: &words, at: 0, matches: Matches::default(), verdict: None, comment: None };
    while reader.at < words.len() {
        reader.condition_or_target(family)?;
    }
    let why = reader.comment.map_or(Why::Foreign("".into()), |c| Why::from_comment(&c));
    Ok(Rule {
        families: Families::only(family),
        matches: reader.matches,
        verdict: reader.verdict.unwrap_or(Verdict::Continue),
        why,
        counters: None,
    })
}

struct Reader<'a> {
    words: &'a [String],
    at: usize,
    matches: Matches,
    verdict: Option<Verdict>,
    comment: Option<String>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn value(&mut self, flag: &str) -> Result<&'a str, String> {
        self.next().ok_or_else(|| format!("{flag} has no value"))
    }

    fn condition_or_target(&mut self, family: Family) -> Result<(), String> {
        let start = self.at;
        let negated = self.peek() == Some("!");
        if negated {
            self.at += 1;
        }
        let flag = self.value("!")?;
        let known = match flag {
            "-s" | "-d" => self.network(flag, negated, family)?,
            "-i" | "-o" => self.interface(flag, negated)?,
            "-p" => self.protocol(negated)?,
            "-m" if !negated => self.module(start)?,
            "-j" | "-g" if !negated => {
                self.target(flag)?;
                true
            }
            _ => false,
        };
        if !known {
            self.unknown(start);
        }
        Ok(())
    }

    /// Keeps the words from `start` to where the next condition or target begins.
    fn unknown(&mut self, start: usize) {
        self.at = self.at.max(start + 1);
        while self.peek().is_some_and(|w| !starts_part(w)) {
            self.at += 1;
        }
        let words: Vec<String> = self.words[start..self.at].iter().map(|w| requote(w)).collect();
        self.matches.unknown.push(words.join(" "));
    }

    fn network(&mut self, flag: &str, negated: bool, family: Family) -> Result<bool, String> {
        let text = self.value(flag)?;
        let Some((net, _)) = value::cidr(text) else { return Ok(false) };
        if matches!(net, IpNet::V4(_)) != (family == Family::V4) {
            return Err(format!("{text} is no {family} range"));
        }
        let slot = if flag == "-s" { &mut self.matches.source } else { &mut self.matches.destination };
        if slot.is_some() {
            return Ok(false);
        }
        *slot = Some(Cond { negated, value: Networks::from_iter([net]) });
        Ok(true)
    }

    fn interface(&mut self, flag: &str, negated: bool) -> Result<bool, String> {
        let text = self.value(flag)?;
        let bare = text.strip_suffix('+').unwrap_or(text);
        let slot = if flag == "-i" { &mut self.matches.in_interface } else { &mut self.matches.out_interface };
        if slot.is_some() {
            return Ok(false);
        }
        *slot = Some(Cond { negated, value: vec![Interface::new(bare, bare.len() != text.len())] });
        Ok(true)
    }

    fn protocol(&mut self, negated: bool) -> Result<bool, String> {
        let text = self.value("-p")?;
        let Some(number) = protocol::by_name(text) else { return Ok(false) };
        self.matches.protocol = Some(Cond { negated, value: RangeList::of([number]) });
        Ok(true)
    }

    /// `-m MODULE` with its options, up to the next part. All of it known, or none.
    fn module(&mut self, start: usize) -> Result<bool, String> {
        let module = self.value("-m")?;
        let before = self.matches.clone();
        let mut any = false;
        loop {
            let negated = self.peek() == Some("!");
            let flag_at = self.at + usize::from(negated);
            let Some(flag) = self.words.get(flag_at).filter(|w| w.starts_with("--")) else { break };
            self.at = flag_at + 1;
            any = true;
            if !self.option(module, flag, negated)? {
                self.matches = before;
                self.at = start + 2;
                return Ok(false);
            }
        }
        // `-m tcp` alone says nothing that `-p tcp` has not said; others without options are unknown.
        Ok(any || matches!(module, "tcp" | "udp"))
    }

    fn option(&mut self, module: &str, flag: &str, negated: bool) -> Result<bool, String> {
        let m = &mut self.matches;
        match (module, flag) {
            ("tcp" | "udp" | "sctp" | "dccp" | "udplite", "--sport" | "--dport")
            | ("multiport", "--sports" | "--dports") => {
                let slot = if flag.starts_with("--s") { &mut m.source_port } else { &mut m.destination_port };
                let free = slot.is_none();
                match ports(self.value(flag)?) {
                    Some(value) if free => {
                        let cond = Some(Cond { negated, value });
                        match flag.starts_with("--s") {
                            true => self.matches.source_port = cond,
                            false => self.matches.destination_port = cond,
                        }
                        Ok(true)
                    }
                    _ => Ok(false),
                }
            }
            ("mark" | "connmark", "--mark") => {
                let text = self.value(flag)?;
                let slot = if module == "mark" { &mut self.matches.mark } else { &mut self.matches.connection_mark };
                match masked(text) {
                    Some(value) if slot.is_none() => {
                        *slot = Some(Cond { negated, value });
                        Ok(true)
                    }
                    _ => Ok(false),
                }
            }
            ("conntrack", "--ctstate") | ("state", "--state") => {
                let text = self.value(flag)?;
                match states(text) {
                    Some(value) if self.matches.connection_state.is_none() => {
                        self.matches.connection_state = Some(Cond { negated, value });
                        Ok(true)
                    }
                    _ => Ok(false),
                }
            }
            ("owner", "--uid-owner" | "--gid-owner") => {
                let text = self.value(flag)?;
                let slot = if flag == "--uid-owner" { &mut self.matches.uid } else { &mut self.matches.gid };
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let (Some(first), Some(last)) = (first.parse().ok(), last.parse().ok()) else { return Ok(false) };
                match slot {
                    None => *slot = Some(Cond { negated, value: RangeList::new([(first, last)]) }),
                    // "Not this group, and not that one either": none of these.
                    Some(cond) if cond.negated && negated => cond.value.push(first, last),
                    Some(_) => return Ok(false),
                }
                Ok(true)
            }
            ("comment", "--comment") if !negated => {
                self.comment = Some(self.value(flag)?.to_owned());
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn target(&mut self, flag: &str) -> Result<(), String> {
        let start = self.at - 1;
        let name = self.value(flag)?;
        let options: Vec<&str> = self.words[self.at..].iter().map(String::as_str).collect();
        self.at = self.words.len();
        let chain = || ChainName::by_name(name);
        let verdict = match (flag, name, &options[..]) {
            ("-g", _, []) => Some(Verdict::Goto(chain())),
            (_, "RETURN", []) => Some(Verdict::Return),
            (_, "ACCEPT", []) => Some(Verdict::Accept),
            (_, "DROP", []) => Some(Verdict::Drop),
            (_, "REDIRECT", ["--to-ports", port]) => port.parse().ok().and_then(Port::new).map(Verdict::Redirect),
            (_, "TPROXY", ["--on-port", port, "--on-ip", "0.0.0.0" | "::", "--tproxy-mark", mark]) => {
                let port = port.parse().ok().and_then(Port::new);
                let mark = masked(mark).filter(|m| m.mask == u32::MAX);
                port.zip(mark).map(|(port, m)| Verdict::Tproxy { port, mark: Mark::new(m.value), closed: true })
            }
            (_, "MARK", ["--set-xmark", mark]) => masked(mark).map(Verdict::SetMark),
            (_, "CONNMARK", ["--save-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"]) => {
                Some(Verdict::SaveMark)
            }
            (_, "CONNMARK", ["--restore-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"]) => {
                Some(Verdict::RestoreMark)
            }
            (_, "CT", ["--zone", zone]) => zone.parse().ok().map(Verdict::CtZone),
            // These look at a packet and let it go on.
            (_, "LOG" | "NFLOG" | "TRACE", _) => Some(Verdict::Continue),
            // A target in capitals without options may still be an extension's.
            (_, _, []) if !EXTENSION_TARGETS.contains(&name) => Some(Verdict::Jump(chain())),
            _ => None,
        };
        let words = || self.words[start..].iter().map(|w| requote(w)).collect::<Vec<_>>().join(" ");
        self.verdict = Some(verdict.unwrap_or_else(|| Verdict::Unknown(words().into())));
        Ok(())
    }
}

/// Targets of iptables-extensions(8) that can stand without options and are no chains.
const EXTENSION_TARGETS: &[&str] = &[
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CLUSTERIP",
    "CT",
    "HMARK",
    "IDLETIMER",
    "LED",
    "MASQUERADE",
    "MIRROR",
    "NETMAP",
    "NFQUEUE",
    "NOTRACK",
    "QUEUE",
    "REDIRECT",
    "REJECT",
    "SYNPROXY",
    "TEE",
    "ULOG",
];

fn starts_part(word: &str) -> bool {
    matches!(word, "!" | "-m" | "-j" | "-g" | "-s" | "-d" | "-i" | "-o" | "-p" | "-f")
}

fn requote(word: &str) -> String {
    let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == '"' || c == '\\');
    if plain { word.to_owned() } else { format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")) }
}

fn ports(text: &str) -> Option<RangeList<u16>> {
    let mut list = RangeList::default();
    for item in text.split(',') {
        let (first, last) = item.split_once(':').unwrap_or((item, item));
        list.push(first.parse().ok()?, last.parse().ok()?);
    }
    Some(list)
}

fn masked(text: &str) -> Option<Masked> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some(Masked { value: number(value)?, mask: number(mask)? }),
        None => Some(Masked { value: number(text)?, mask: u32::MAX }),
    }
}

fn states(text: &str) -> Option<CtStates> {
    text.split(',').try_fold(CtStates(0), |all, name| {
        let (state, _) = CtStates::NAMED.iter().find(|(_, known)| *known == name)?;
        Some(all.union(*state))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_it_does_not_know_are_kept() {
        let odd = "-p tcp -m string --string \"a b\" --algo bm -m tcp --dport 80 -j DNAT --to-destination 1.2.3.4";
        let rule = rule(odd, Family::V4).unwrap();
        assert_eq!(rule.matches.unknown, ["-m string --string \"a b\" --algo bm"]);
        assert_eq!(rule.matches.destination_port.unwrap().value, RangeList::of([80]));
        assert_eq!(rule.verdict, Verdict::Unknown("-j DNAT --to-destination 1.2.3.4".into()));
    }

    #[test]
    fn counters_and_comments() {
        let text = "*nat\n:OUTPUT ACCEPT [3:180]\n:ISTIO_OUTPUT - [0:0]\n[5:300] -A OUTPUT -m comment --comment \"all-inbound: x\" -j ISTIO_OUTPUT\nCOMMIT\n";
        let saved = parse(text, Family::V4).unwrap();
        let rule = &saved.tables[0].rules[0].rule;
        assert_eq!(rule.counters, Some(Counters { packets: 5, bytes: 300 }));
        assert_eq!(rule.why, Why::AllInbound);
        assert_eq!(rule.verdict, Verdict::Jump(ChainName::OutputMain));
        assert_eq!(saved.tables[0].chains["ISTIO_OUTPUT"], "-");
    }

    #[test]
    fn what_is_no_listing_is_refused_with_the_line() {
        for (text, line) in [
            ("*nat\n:OUTPUT ACCEPT [0:0]\n", 2),
            ("hello\n", 1),
            ("*nat\nCOMMIT\n*nat\nCOMMIT\n", 3),
            ("*nat\n-X OUTPUT\nCOMMIT\n", 2),
            ("*nat\n-A OUTPUT -m comment --comment \"x\nCOMMIT\n", 2),
            ("*nat\n-A OUTPUT -s\nCOMMIT\n", 2),
            ("*nat\n-A OUTPUT -s ::1/128 -j DROP\nCOMMIT\n", 2),
        ] {
            assert_eq!(parse(text, Family::V4).unwrap_err().line, line, "{text}");
        }
    }
}
