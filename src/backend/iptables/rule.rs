//! One rule in iptables' words to the model. What the model does not know is kept in
//! those words as an unknown condition or target, never dropped.

use ipnet::IpNet;

use crate::backend::effect::of_target;
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family, Interface, Mark, Networks, Port};
use crate::config::value;
use crate::plan::effect::{Effect, Unmodelled};
use crate::plan::model::{ChainName, Cond, CtStates, Masked, Matches, Rule, Verdict, protocol};
use crate::plan::why::Why;

/// Parses a rule's words, the part after `-A CHAIN`.
///
/// # Errors
///
/// The word that makes no rule.
pub fn rule(words: &str, family: Family) -> Result<Rule, String> {
    let words = split(words)?;
    let mut reader = RuleWords { words: &words, at: 0, matches: Matches::default(), verdict: None, comment: None };
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
        origin: None,
    })
}

struct RuleWords<'a> {
    words: &'a [String],
    at: usize,
    matches: Matches,
    verdict: Option<Verdict>,
    comment: Option<String>,
}

impl<'a> RuleWords<'a> {
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

    /// Reads `-m MODULE` with its options; `false` if not all of them are known.
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
            ("owner", "--socket-exists") if self.matches.uid.is_none() => {
                self.matches.uid = Some(Cond { negated, value: RangeList::full() });
                Ok(true)
            }
            ("set", "--match-set") if self.matches.destination_set.is_none() => {
                let name = self.value(flag)?;
                if self.peek() != Some("dst") {
                    return Ok(false);
                }
                self.at += 1;
                self.matches.destination_set = Some(Cond { negated, value: name.into() });
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
            (_, "SNAT", ["--to-source", to]) => to.parse().ok().map(Verdict::Snat),
            (_, "TPROXY", ["--on-port", port, "--on-ip", "0.0.0.0" | "::", "--tproxy-mark", mark]) => {
                let port = port.parse().ok().and_then(Port::new);
                let mark = masked(mark).filter(|m| m.mask == u32::MAX);
                port.zip(mark).map(|(port, m)| Verdict::Tproxy { port, mark: Mark::new(m.value), closed: true })
            }
            (_, "MARK", [option, mark]) => set_mark(option, mark).map(Verdict::SetMark),
            (_, "CONNMARK", ["--save-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"]) => {
                Some(Verdict::SaveMark)
            }
            (_, "CONNMARK", ["--restore-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"]) => {
                Some(Verdict::RestoreMark)
            }
            (
                _,
                "CONNMARK",
                [option @ ("--set-xmark" | "--set-mark" | "--or-mark" | "--and-mark" | "--xor-mark"), mark],
            ) => set_mark(option, mark).map(Verdict::SetConnectionMark),
            (_, "CT", ["--zone", zone]) => zone.parse().ok().map(Verdict::CtZone),
            // These look at a packet and let it go on.
            (_, "LOG" | "NFLOG" | "TRACE", _) => Some(Verdict::Continue),
            // A target in capitals without options may still be an extension's.
            (_, _, []) if !EXTENSION_TARGETS.contains(&name) => Some(Verdict::Jump(chain())),
            _ => None,
        };
        let words = || self.words[start..].iter().map(|w| requote(w)).collect::<Vec<_>>().join(" ");
        let effect = if flag == "-j" { of_target(name) } else { Effect::Unknown };
        self.verdict = Some(verdict.unwrap_or_else(|| Verdict::Unknown(Unmodelled::new(words(), effect))));
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

/// What an option of `MARK` or `CONNMARK` does to a mark: `(mark & !mask) ^ value`. iptables-save prints
/// the first one for all of them.
fn set_mark(option: &str, text: &str) -> Option<Masked> {
    let given = masked(text)?;
    let bits = given.value;
    let bare = || (!text.contains('/')).then_some(());
    Some(match option {
        "--set-xmark" => given,
        "--set-mark" => Masked { value: bits, mask: given.mask | bits },
        "--or-mark" => bare().map(|()| Masked { value: bits, mask: bits })?,
        "--and-mark" => bare().map(|()| Masked { value: 0, mask: !bits })?,
        "--xor-mark" => bare().map(|()| Masked { value: bits, mask: 0 })?,
        _ => return None,
    })
}

fn states(text: &str) -> Option<CtStates> {
    text.split(',').try_fold(CtStates(0), |all, name| {
        let (state, _) = CtStates::NAMED.iter().find(|(_, known)| *known == name)?;
        Some(all.union(*state))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_it_does_not_know_are_kept() {
        let odd = "-p tcp -m string --string \"a b\" --algo bm -m tcp --dport 80 -j DNAT --to-destination 1.2.3.4";
        let rule = rule(odd, Family::V4).unwrap();
        assert_eq!(rule.matches.unknown, ["-m string --string \"a b\" --algo bm"]);
        assert_eq!(rule.matches.destination_port.unwrap().value, RangeList::of([80]));
        assert_eq!(
            rule.verdict,
            Verdict::Unknown(Unmodelled::new("-j DNAT --to-destination 1.2.3.4", Effect::Unknown))
        );
        let refuses = super::rule("-j REJECT --reject-with tcp-reset", Family::V4).unwrap();
        assert_eq!(
            refuses.verdict,
            Verdict::Unknown(Unmodelled::new("-j REJECT --reject-with tcp-reset", Effect::Drops))
        );
    }
}
