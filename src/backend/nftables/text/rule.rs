//! One rule in nft's words. What is not understood becomes an unknown condition, and
//! where nothing says what happens then, an unknown verdict.

use crate::backend::effect::of_statement;
use crate::backend::nftables::decode::Listed;
use crate::backend::nftables::expr::{Expr, Op, Role, UpdateVerb, code};
use crate::backend::nftables::names;

use crate::backend::nftables::written::fields::{self, Field, Right};
use crate::backend::nftables::written::sets::{self, Verdicts, WrittenSets};
use crate::backend::nftables::written::statements::{self, MarkOf};
use crate::backend::nftables::written::{conditions, values};

use crate::plan::effect::Effect;

use super::items::{entries, item, items};
use super::tokens::{Token, written};
use super::unknown::{BINDING, DECIDING, OPENING, STATEMENTS, headers};

/// Whether nft may have left a target out: it prints nothing for some that iptables-nft made.
pub fn may_hide_targets(family: u8, table: &str) -> bool {
    matches!(family, 2 | 10) && names::is_of_iptables(table)
}

/// Reads a rule's words. `may_hide`: see [`may_hide_targets`].
pub fn parse(words: &[Token], handle: Option<u64>, may_hide: bool, sets: &mut WrittenSets) -> Listed {
    let mut reader = RuleText { words, at: 0, sets, out: Vec::new(), comment: None, decided: false };
    while reader.at < reader.words.len() {
        let start = reader.at;
        if reader.part().is_none() {
            reader.at = start;
            reader.unknown();
        }
    }
    if !reader.decided && may_hide {
        reader.out.push(Expr::Unknown { role: Role::Hidden, words: "a target that nft does not show".into() });
    }
    Listed { exprs: reader.out, comment: reader.comment, handle, text: Some(written(words).into()) }
}

struct RuleText<'a, 's> {
    words: &'a [Token<'a>],
    at: usize,
    sets: &'s mut WrittenSets,
    out: Vec<Expr>,
    comment: Option<String>,
    /// Whether a verdict, or another statement with an effect, was read.
    decided: bool,
}

impl<'a> RuleText<'a, '_> {
    fn peek(&self) -> Option<Token<'a>> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.peek()?;
        self.at += 1;
        Some(token)
    }

    fn word(&mut self) -> Option<&'a str> {
        self.next()?.text()
    }

    /// Reads these words, if they come next.
    fn take(&mut self, words: &[&str]) -> bool {
        let ahead = self.words.get(self.at..self.at + words.len());
        let same = ahead.is_some_and(|ahead| ahead.iter().zip(words).all(|(token, word)| *token == Token::Word(word)));
        if same {
            self.at += words.len();
        }
        same
    }

    fn decide(&mut self, exprs: impl IntoIterator<Item = Expr>) -> Option<()> {
        self.decided = true;
        self.out.extend(exprs);
        Some(())
    }

    /// One condition or statement; `None` where it is not understood.
    fn part(&mut self) -> Option<()> {
        let verdict = |code, chain| [Expr::Verdict { code, chain }];
        match self.word()? {
            "counter" => self.counter(),
            verb @ ("add" | "update" | "delete") => self.update(UpdateVerb::by_name(verb)?),
            "meter" => self.meter(),
            "comment" => {
                self.comment = Some(self.word()?.to_owned());
                Some(())
            }
            "log" => self.log(),
            "accept" => self.decide(verdict(code::ACCEPT, None)),
            "drop" => self.decide(verdict(code::DROP, None)),
            "return" => self.decide(verdict(code::RETURN, None)),
            "continue" => self.decide([]),
            "jump" => {
                let chain = self.word()?.to_owned();
                self.decide(verdict(code::JUMP, Some(chain)))
            }
            "goto" => {
                let chain = self.word()?.to_owned();
                self.decide(verdict(code::GOTO, Some(chain)))
            }
            "redirect" => {
                let port = self.port()?;
                self.decide(statements::redirect(port))
            }
            "snat" => {
                let _ = self.take(&["ip"]) || self.take(&["ip6"]);
                let to = self.take(&["to"]).then(|| self.word())??.parse().ok()?;
                let whole = self.is_at_statement();
                whole.then(|| self.decide(statements::snat(to)))?
            }
            "tproxy" => {
                let _ = self.take(&["ip"]) || self.take(&["ip6"]);
                let port = self.port()?;
                self.decide(statements::tproxy(port))
            }
            "xt" => {
                let target = match self.word()? {
                    "match" => false,
                    "target" => true,
                    _ => return None,
                };
                let name = self.word()?.trim_matches('"').to_owned();
                self.decided |= target;
                self.out.push(Expr::Xt { target, name, revision: u32::MAX, info: Vec::new() });
                Some(())
            }
            "meta" if self.take(&["mark", "set"]) => self.set_mark(MarkOf::Packet),
            "meta" if self.take(&["nftrace", "set"]) || self.take(&["priority", "set"]) => {
                self.word()?;
                self.decide([])
            }
            "ct" if self.take(&["mark", "set"]) => self.set_mark(MarkOf::Connection),
            "ct" if self.take(&["zone", "set"]) => {
                let zone = self.word()?.parse().ok()?;
                self.decide(statements::set_zone(zone))
            }
            "meta" => {
                let field = fields::meta_field(self.word()?)?;
                self.condition(field)
            }
            "ct" => {
                let field = fields::ct_field(self.word()?)?;
                self.condition(field)
            }
            key => match fields::meta_field(key) {
                Some(field) => self.condition(field),
                None => {
                    let field = fields::payload_field(key, self.word()?)?;
                    self.condition(field)
                }
            },
        }
    }

    fn counter(&mut self) -> Option<()> {
        if self.take(&["packets"]) {
            let packets = self.word()?.parse().ok()?;
            let bytes = self.take(&["bytes"]).then(|| self.word())??.parse().ok()?;
            self.out.push(Expr::Counter { packets, bytes });
        } else if self.take(&["name"]) {
            // One from a map, without quotes, is there for some packets only.
            return matches!(self.next()?, Token::Quoted(_)).then_some(());
        }
        Some(())
    }

    /// Reads what follows `add`, `update` or `delete`: `@set { ip saddr timeout 1m }`.
    fn update(&mut self, verb: UpdateVerb) -> Option<()> {
        let set = self.word()?.strip_prefix('@')?.to_owned();
        self.element(verb, set)
    }

    /// Reads what follows `meter`: `name size 100 { ip saddr limit rate 5/second }`, a set made by the
    /// rule.
    fn meter(&mut self) -> Option<()> {
        let set = self.word()?.to_owned();
        if self.take(&["size"]) {
            self.word()?;
        }
        self.element(UpdateVerb::Add, set)
    }

    fn element(&mut self, verb: UpdateVerb, set: String) -> Option<()> {
        (self.next()? == Token::Sign('{')).then_some(())?;
        let inner = self.braces()?;
        // What is counted for each element may end the rule.
        self.decide(headers(inner).into_iter().chain([Expr::Update { verb, set }]))
    }

    fn log(&mut self) -> Option<()> {
        while let Some(Token::Word("prefix" | "group" | "snaplen" | "queue-threshold" | "level" | "flags")) =
            self.peek()
        {
            self.next();
            self.word()?;
            while self.peek() == Some(Token::Sign(',')) {
                self.next();
                self.word()?;
            }
        }
        Some(())
    }

    /// Reads the port of `to :15001`.
    fn port(&mut self) -> Option<u16> {
        let port = self.take(&["to"]).then(|| self.word())??.strip_prefix(':')?.parse().ok()?;
        self.is_at_statement().then_some(port)
    }

    /// Whether the next word begins a new part, and does not change the one before.
    fn is_at_statement(&self) -> bool {
        !matches!(
            self.peek(),
            Some(Token::Word(
                "random" | "fully-random" | "persistent" | "&" | "|" | "^" | "and" | "or" | "xor" | "<<" | ">>" | "map"
            ))
        )
    }

    /// Reads `meta mark` or `ct mark`, on the right side of `set`. `mark` alone is the packet's.
    fn take_mark(&mut self, of: MarkOf) -> bool {
        self.take(&[of.word(), "mark"]) || (of == MarkOf::Packet && self.take(&["mark"]))
    }

    fn set_mark(&mut self, of: MarkOf) -> Option<()> {
        if self.take_mark(of.other()) {
            let whole = self.is_at_statement();
            return whole.then(|| self.decide(statements::copy_mark(of)))?;
        }
        if !self.take_mark(of) {
            let value = values::number(self.word()?)?;
            let whole = self.is_at_statement();
            return whole.then(|| self.decide(statements::set_mark(of, value)))?;
        }
        let (mut keep, mut flip) = (u32::MAX, 0u32);
        while !self.is_at_statement() {
            let operator = self.word()?;
            let value = values::number(self.word()?)?;
            (keep, flip) = match operator {
                "&" | "and" => (keep & value, flip & value),
                "|" | "or" => (keep & !value, flip & !value | value),
                "^" | "xor" => (keep, flip ^ value),
                _ => return None,
            };
        }
        self.decide(statements::change_mark(of, keep, flip))
    }

    fn condition(&mut self, field: Field) -> Option<()> {
        if self.take(&["vmap"]) {
            let map = match self.next()? {
                Token::Sign('{') => Verdicts::Among(entries(self.braces()?)?),
                Token::Word(name) => Verdicts::Named(name.strip_prefix('@')?.to_owned()),
                _ => return None,
            };
            let exprs = sets::vmap(field, &map, self.sets)?;
            return self.decide(exprs);
        }
        let mask = if self.take(&["&"]) || self.take(&["and"]) { Some(self.word()?) } else { None };
        let op = match self.peek()? {
            Token::Word("==") => Some(Op::Eq),
            Token::Word("!=") => Some(Op::Neq),
            Token::Word("<") => Some(Op::Other(2)),
            Token::Word("<=") => Some(Op::Other(3)),
            Token::Word(">") => Some(Op::Other(4)),
            Token::Word(">=") => Some(Op::Other(5)),
            _ => None,
        };
        self.at += usize::from(op.is_some());
        let right = self.right(field)?;
        let exprs = conditions::condition(field, mask, op.unwrap_or(Op::Eq), &right, self.sets)?;
        self.out.extend(exprs);
        Some(())
    }

    /// Reads the words up to a closing brace, and the brace.
    fn braces(&mut self) -> Option<&'a [Token<'a>]> {
        let ahead = self.words.get(self.at..)?;
        let close = ahead.iter().position(|token| *token == Token::Sign('}'))?;
        self.at += close + 1;
        ahead.get(..close)
    }

    fn right(&mut self, field: Field) -> Option<Right> {
        let first = self.at;
        match self.next()? {
            Token::Sign('{') => items(self.braces()?).map(Right::Among),
            Token::Word(name) if name.starts_with('@') => Some(Right::Named(name[1..].to_owned())),
            Token::Word("vmap" | "map" | "." | "/") => None,
            Token::Word(_) | Token::Quoted(_) => {
                let mut all = vec![item(&self.words[first..first + 1])?];
                // `ct state established,related`.
                while field == Field::ConnectionState && self.peek() == Some(Token::Sign(',')) {
                    self.next();
                    let at = self.at;
                    self.next()?;
                    all.push(item(&self.words[at..at + 1])?);
                }
                match (field, &all[..]) {
                    (Field::ConnectionState, _) => Some(Right::Among(all)),
                    (_, [only]) => Some(Right::One(only.clone())),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether a condition begins here that has nothing to do with the words from `start` on.
    fn begins_condition(&self, start: usize) -> bool {
        let word = |at: usize| match self.words.get(at) {
            Some(Token::Word(word)) => Some(*word),
            _ => None,
        };
        let opens = word(start).is_some_and(|word| OPENING.contains(&word) || word.starts_with('@'));
        let bound = match self.at.checked_sub(1).filter(|before| *before > start).and_then(|at| self.words.get(at)) {
            None | Some(Token::Sign(',' | '{' | '(')) => true,
            // `ct original ip saddr`, but not `ct direction original`.
            Some(Token::Word("original" | "reply")) => word(self.at - 2) == Some("ct"),
            Some(Token::Word(before)) => BINDING.contains(before),
            Some(_) => false,
        };
        let field = match (word(self.at), word(self.at + 1)) {
            (Some("iifname" | "oifname"), _) => true,
            (Some("meta"), Some(key)) => fields::meta_field(key).is_some(),
            (Some("ct"), Some(key)) => fields::ct_field(key).is_some(),
            (Some(header), Some(field)) => fields::payload_field(header, field).is_some(),
            _ => false,
        };
        opens && !bound && field
    }

    /// Passes words up to a part that can be understood; they are an unknown condition,
    /// or an unknown verdict when one of them decides something.
    fn unknown(&mut self) {
        let start = self.at;
        let mut depth = 0usize;
        let mut decides = false;
        while let Some(token) = self.peek() {
            match token {
                Token::Sign('{' | '(') => depth += 1,
                Token::Sign('}' | ')') => depth = depth.saturating_sub(1),
                Token::Word(word) if depth == 0 && self.at > start && STATEMENTS.contains(&word) => break,
                Token::Word(_) if depth == 0 && !decides && self.begins_condition(start) => break,
                Token::Word(word) if depth == 0 => decides |= DECIDING.contains(&word),
                _ => {}
            }
            self.at += 1;
        }
        let words = written(&self.words[start..self.at]);
        self.decided |= decides;
        let effect = || self.words.get(start).and_then(|word| word.text()).map_or(Effect::Unknown, of_statement);
        let role = if decides { Role::Decision(effect()) } else { Role::Condition };
        self.out.extend(headers(&self.words[start..self.at]));
        self.out.push(Expr::Unknown { role, words });
    }
}
