//! `nft list ruleset` (nft(8)) as tables of expressions.

use std::collections::{HashMap, HashSet};

use crate::backend::hook::Base;
use crate::backend::nftables::table::{Devices, NftChain, NftTable};
use crate::backend::nftables::written::names;
use crate::backend::nftables::written::sets::WrittenSets;
use crate::config::types::Interface;

use super::items::{entries, items};
use super::tokens::{Token, Words};
use super::{rule, unknown};

/// Reads a listing. A problem comes with the line it is on.
///
/// # Errors
///
/// The number of the line and what is wrong there, or that there is more than the budget.
pub fn parse(text: &str, budget: usize) -> Result<Vec<NftTable>, (usize, String)> {
    let mut reader = TextRuleset { words: Words::new(text), budget, tables: Vec::new(), places: HashMap::new() };
    match reader.tables() {
        Ok(()) => Ok(reader.tables),
        Err(problem) => Err((reader.words.line(), problem)),
    }
}

struct TextRuleset<'a> {
    words: Words<'a>,
    budget: usize,
    tables: Vec<NftTable>,
    places: HashMap<(u8, String), usize>,
}

/// A rule's words, and its handle where the listing says it.
type TokenLine<'a> = (Vec<Token<'a>>, Option<u64>);

const CUT: &str = "the text ends in the middle: it is cut short";

impl<'a> TextRuleset<'a> {
    fn token(&mut self) -> Result<Token<'a>, String> {
        self.words.token()?.ok_or_else(|| CUT.to_owned())
    }

    fn name(&mut self) -> Result<&'a str, String> {
        self.token()?.text().ok_or_else(|| "a name is missing".to_owned())
    }

    fn expect(&mut self, sign: char) -> Result<(), String> {
        match self.token()? {
            Token::Sign(found) if found == sign => Ok(()),
            _ => Err(format!("'{sign}' is missing")),
        }
    }

    fn tables(&mut self) -> Result<(), String> {
        while let Some(token) = self.words.token()? {
            match token {
                Token::End | Token::Sign(';') => {}
                Token::Word("table") => self.table()?,
                // A script empties a table before it fills it.
                Token::Word("delete") => drop(self.line()?),
                other => {
                    let shown = other.text().unwrap_or("a sign").chars().take(40).collect::<String>();
                    return Err(format!(
                        "'{shown}' stands where a table should begin; is this nft list ruleset output?"
                    ));
                }
            }
        }
        Ok(())
    }

    fn table(&mut self) -> Result<(), String> {
        let first = self.name()?;
        // Without a family it is one of IPv4.
        let (family, name) = match self.token()? {
            Token::Sign('{') => ("ip", first),
            name => {
                if self.words.peek()? == Some(Token::End) {
                    return Ok(());
                }
                self.expect('{')?;
                (first, name.text().ok_or("a name is missing")?)
            }
        };
        let number = names::family(family)?;
        if self.places.insert((number, name.to_owned()), self.tables.len()).is_some() {
            return Err(format!("table {family} {name} stands here for the second time"));
        }
        let mut table = NftTable { family: number, name: name.to_owned(), ..NftTable::default() };
        let mut sets = WrittenSets::default();
        sets.budget = self.budget;
        // Rules may look into sets that stand behind them.
        let mut chains: Vec<(NftChain, Vec<TokenLine<'a>>)> = Vec::new();
        let mut names = HashSet::new();
        loop {
            match self.token()? {
                Token::End | Token::Sign(';') => {}
                Token::Sign('}') => break,
                Token::Word("flags") => table.dormant |= self.line()?.contains(&Token::Word("dormant")),
                Token::Word("comment") => {
                    self.line()?;
                }
                Token::Word("chain") => {
                    let chain = self.chain(number)?;
                    if !names.insert(chain.0.name.clone()) {
                        return Err(format!("chain {} stands here for the second time", chain.0.name));
                    }
                    chains.push(chain);
                }
                Token::Word("set") => self.set(false, &mut sets)?,
                Token::Word("map") => self.set(true, &mut sets)?,
                // Counters, quotas, flow tables and the like decide nothing by being there.
                Token::Word(_) => self.skip_object()?,
                _ => return Err("a table holds something else than chains and sets".into()),
            }
        }
        let changed = chains.iter().flat_map(|(_, rules)| rules).flat_map(|(words, _)| unknown::updated(words));
        changed.for_each(|name| sets.forget(name));
        let iptables = rule::may_hide_targets(number, name);
        for (mut chain, rules) in chains {
            let rule = |(words, handle): &TokenLine| rule::parse(words, *handle, iptables, &mut sets);
            chain.rules = rules.iter().map(rule).collect();
            table.chains.push(chain);
        }
        self.budget = sets.budget;
        sets.anonymous.into_table(&mut table);
        self.tables.push(table);
        Ok(())
    }

    /// Reads the words up to the end of a line or a semicolon, including whole braces.
    fn line(&mut self) -> Result<Vec<Token<'a>>, String> {
        let (mut out, mut depth) = (Vec::new(), 0usize);
        loop {
            match self.words.peek()?.ok_or(CUT)? {
                Token::End | Token::Sign(';') if depth == 0 => {
                    self.words.token()?;
                    return Ok(out);
                }
                // The end of what this line is in, on the line itself.
                Token::Sign('}') if depth == 0 => return Ok(out),
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                _ => {}
            }
            match self.token()? {
                Token::End => {}
                token => out.push(token),
            }
        }
    }

    fn skip_object(&mut self) -> Result<(), String> {
        let line = self.line()?;
        match line.last() {
            Some(_) => Ok(()),
            None => Err("a table holds something that is not understood".into()),
        }
    }

    fn chain(&mut self, family: u8) -> Result<(NftChain, Vec<TokenLine<'a>>), String> {
        let mut chain = NftChain { name: self.name()?.to_owned(), ..NftChain::default() };
        let mut rules = Vec::new();
        self.expect('{')?;
        loop {
            if self.words.peek()? == Some(Token::Sign('}')) {
                self.words.token()?;
                return Ok((chain, rules));
            }
            let line = self.line()?;
            let handle = self.words.take_handle();
            match line.first() {
                None => {}
                Some(Token::Word("type")) => {
                    let (base, devices) = base(family, &line)?;
                    (chain.base, chain.devices) = (Some(base), devices);
                }
                Some(Token::Word("policy")) => {
                    let drops = line.get(1) == Some(&Token::Word("drop"));
                    if let Some(base) = &mut chain.base {
                        base.drops = drops;
                    }
                }
                // To be done by the device itself where it can: the same rules apply.
                Some(Token::Word("comment" | "flags")) => {}
                Some(_) => rules.push((line, handle)),
            }
        }
    }

    fn set(&mut self, map: bool, sets: &mut WrittenSets) -> Result<(), String> {
        let name = self.name()?.to_owned();
        self.expect('{')?;
        let (mut elements, mut pairs) = (Some(Vec::new()), Some(Vec::new()));
        loop {
            if self.words.peek()? == Some(Token::Sign('}')) {
                self.words.token()?;
                break;
            }
            let line = self.line()?;
            if let [Token::Word("elements"), Token::Word("="), Token::Sign('{'), inner @ ..] = &line[..] {
                let inner = inner.strip_suffix(&[Token::Sign('}')]).unwrap_or(inner);
                match map {
                    true => pairs = entries(inner),
                    false => elements = items(inner),
                }
            }
        }
        match map {
            true => drop(sets.named_maps.insert(name, pairs)),
            false => drop(sets.named.insert(name, elements)),
        }
        Ok(())
    }
}

/// `type nat hook output priority -100`; the policy is another line.
fn base(family: u8, line: &[Token]) -> Result<(Base, Option<Devices>), String> {
    // A device may be called like a keyword; it is in quotes then.
    let words: Vec<&str> =
        line.iter().filter_map(|token| if let Token::Word(word) = token { Some(*word) } else { None }).collect();
    let after = |word: &str| words.iter().position(|w| *w == word).and_then(|at| words.get(at + 1)).copied();
    let (kind, at) = (after("type").ok_or("a chain has no type")?, after("hook").ok_or("a chain has no hook")?);
    let from = words.iter().position(|w| *w == "priority").ok_or("a chain has a hook and no priority")?;
    let named = words.get(from + 1).copied().unwrap_or_default();
    let named = named.parse().ok().or_else(|| names::priority(named));
    let named: i32 = named.ok_or_else(|| format!("'{}' is no priority", words[from..].join(" ")))?;
    let offset: i32 = match words.get(from + 2..from + 4) {
        Some(["+", n]) => n.parse().map_err(|_| format!("'{n}' is no number"))?,
        Some(["-", n]) => n.parse::<i32>().map_err(|_| format!("'{n}' is no number"))?.saturating_neg(),
        _ => 0,
    };
    names::base(family, at, kind, named.saturating_add(offset), devices(line))
}

/// `device "lo"`, or `devices = { lo, eth0 }`.
fn devices(line: &[Token]) -> Option<Vec<Interface>> {
    let at = line.iter().position(|token| matches!(token, Token::Word("device" | "devices")))?;
    match line.get(at + 1..)? {
        [Token::Word("="), Token::Sign('{'), list @ ..] => {
            let close = list.iter().position(|token| *token == Token::Sign('}'))?;
            names::devices(list[..close].iter().filter_map(|token| token.text()))
        }
        [name, ..] => names::devices([name.text()?]),
        [] => None,
    }
}
