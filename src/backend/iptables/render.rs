//! Rules to iptables' words, in the form and order in which iptables-save prints them
//! (iptables-extensions(8)), so that what is written reads back as the same text.

use std::fmt::Write;

use crate::config::ranges::Discrete;
use crate::config::types::Family;
use crate::plan::model::{Cond, CtStates, Masked, Matches, Rule, Verdict, protocol};
use crate::plan::why::Why;

/// A lowered rule's conditions and target, without the `-A CHAIN` in front.
///
/// `comments`: whether the reason goes along as `-m comment`.
pub fn rule(rule: &Rule, family: Family, comments: bool) -> String {
    let mut words = WordList(String::with_capacity(120));
    conditions(&mut words, &rule.matches, family);
    // Nothing is asked by it, but so it is in the reference's kernel state.
    if matches!(rule.why, Why::ProbeIn | Why::ProbeAnswer) {
        words.push(format_args!("-m tcp"));
    }
    if comments {
        words.push(format_args!("-m comment --comment {}", quoted(&rule.why.comment())));
    }
    target(&mut words, &rule.verdict, family);
    words.0
}

/// The words of a rule, separated by spaces.
struct WordList(String);

impl WordList {
    fn push(&mut self, more: std::fmt::Arguments) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        // Writing to a string does not fail.
        let _ = self.0.write_fmt(more);
    }
}

/// `! ` in front of a negated condition.
fn not<T>(cond: &Cond<T>) -> &'static str {
    if cond.negated { "! " } else { "" }
}

fn conditions(words: &mut WordList, m: &Matches, family: Family) {
    for (flag, cond) in [("-s", &m.source), ("-d", &m.destination)] {
        if let Some(cond) = cond {
            // Lowered: at most one range; a negated condition may have none in this family.
            for net in cond.value.of(family) {
                words.push(format_args!("{}{flag} {net}", not(cond)));
            }
        }
    }
    for (flag, cond) in [("-i", &m.in_interface), ("-o", &m.out_interface)] {
        if let Some(cond) = cond {
            for interface in &cond.value {
                words.push(format_args!("{}{flag} {interface}", not(cond)));
            }
        }
    }
    if let Some(cond) = &m.protocol {
        for (number, _) in cond.value.iter() {
            words.push(format_args!("{}-p {}", not(cond), protocol::name(number)));
        }
    }
    // The order in which the reference asks: of UDP for the mark first.
    let udp = m.protocol.as_ref().and_then(|c| c.value.single()) == Some(protocol::UDP);
    if !udp {
        ports(words, m);
    }
    for (module, cond) in [("mark", &m.mark), ("connmark", &m.connection_mark)] {
        match cond {
            Some(cond) if cond.value.mask == u32::MAX => {
                words.push(format_args!("-m {module} {}--mark {:#x}", not(cond), cond.value.value));
            }
            Some(cond) => {
                let Masked { value, mask } = cond.value;
                words.push(format_args!("-m {module} {}--mark {value:#x}/{mask:#x}", not(cond)));
            }
            None => {}
        }
    }
    if udp {
        ports(words, m);
    }
    if let Some(cond) = &m.connection_state {
        words.push(format_args!("-m conntrack {}--ctstate {}", not(cond), states(cond.value)));
    }
    for (flag, cond) in [("--uid-owner", &m.uid), ("--gid-owner", &m.gid)] {
        if let Some(cond) = cond {
            for (first, last) in cond.value.iter() {
                // Any owner at all.
                if (first, last) == (0, u32::MAX) {
                    words.push(format_args!("-m owner {}--socket-exists", not(cond)));
                    continue;
                }
                words.push(format_args!("-m owner {}{flag} {}", not(cond), Span(first, last, '-')));
            }
        }
    }
    if let Some(cond) = &m.destination_set {
        words.push(format_args!("-m set {}--match-set {} dst", not(cond), cond.value));
    }
    for unknown in &m.unknown {
        words.push(format_args!("{unknown}"));
    }
}

fn ports(words: &mut WordList, m: &Matches) {
    let conds = [("s", &m.source_port), ("d", &m.destination_port)];
    for (letter, cond) in conds {
        let Some(cond) = cond else { continue };
        if let [(first, last)] = cond.value.iter().collect::<Vec<_>>()[..] {
            let protocol = m.protocol.as_ref().and_then(|c| c.value.single()).unwrap_or(protocol::TCP);
            let (module, span) = (protocol::name(protocol), Span(first, last, ':'));
            words.push(format_args!("-m {module} {}--{letter}port {span}", not(cond)));
        } else {
            let list: Vec<String> = cond.value.iter().map(|(a, b)| Span(a, b, ':').to_string()).collect();
            words.push(format_args!("-m multiport {}--{letter}ports {}", not(cond), list.join(",")));
        }
    }
}

/// A range in text: only the number if it has one, or both ends with a separator.
struct Span<T>(T, T, char);

impl<T: Discrete> std::fmt::Display for Span<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Span(first, last, between) = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}{between}{last}") }
    }
}

fn states(states: CtStates) -> String {
    let names: Vec<&str> =
        CtStates::NAMED.iter().filter(|(state, _)| states.has(*state)).map(|(_, name)| *name).collect();
    names.join(",")
}

fn target(words: &mut WordList, verdict: &Verdict, family: Family) {
    match verdict {
        Verdict::Continue => {}
        Verdict::Return => words.push(format_args!("-j RETURN")),
        Verdict::Accept => words.push(format_args!("-j ACCEPT")),
        Verdict::Drop => words.push(format_args!("-j DROP")),
        Verdict::Jump(chain) => words.push(format_args!("-j {chain}")),
        Verdict::Goto(chain) => words.push(format_args!("-g {chain}")),
        Verdict::Redirect(port) => words.push(format_args!("-j REDIRECT --to-ports {port}")),
        Verdict::Snat(to) => words.push(format_args!("-j SNAT --to-source {to}")),
        Verdict::Tproxy { port, mark, .. } => {
            let any = if family == Family::V4 { "0.0.0.0" } else { "::" };
            words.push(format_args!("-j TPROXY --on-port {port} --on-ip {any} --tproxy-mark {mark}/0xffffffff"));
        }
        Verdict::SetMark(m) => words.push(format_args!("-j MARK --set-xmark {:#x}/{:#x}", m.value, m.mask)),
        Verdict::SaveMark => {
            words.push(format_args!("-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"));
        }
        Verdict::RestoreMark => {
            words.push(format_args!("-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"));
        }
        Verdict::SetConnectionMark(m) => {
            words.push(format_args!("-j CONNMARK --set-xmark {:#x}/{:#x}", m.value, m.mask));
        }
        Verdict::CtZone(zone) => words.push(format_args!("-j CT --zone {zone}")),
        Verdict::Unknown(unknown) => words.push(format_args!("{}", unknown.words)),
    }
}

/// Text in quotes, the way iptables-save writes it and iptables-restore reads it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}
