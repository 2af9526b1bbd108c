//! The result of `verify`: differences, and their effects on traffic.

use std::fmt::{Display, Formatter};

use crate::backend::Strange;
use crate::backend::listing::Holder;
use crate::config::types::Family;
use crate::plan::diff::Difference;

use super::flow::{Flow, Taker};
use super::space::Scope;

/// The result of comparing what was found with what was wanted.
#[derive(Debug)]
pub struct Verification {
    /// The backends that hold parts of an interception; more than one is drift.
    pub holders: Vec<Holder>,
    pub findings: Vec<Finding>,
    /// The affected traffic.
    pub effects: Vec<TrafficChange>,
    /// Why the effects are not known, if so.
    pub blind: Option<String>,
    pub notes: Vec<String>,
}

/// One difference, with its effects.
#[derive(Debug)]
pub struct Finding {
    pub holder: Option<Holder>,
    pub what: What,
    /// The effects of the difference, by index; none if it changes nothing for traffic.
    pub effects: Vec<usize>,
    /// An effect that is not about who gets a flow.
    pub consequence: Option<&'static str>,
}

/// A difference between what was found and what is wanted.
#[derive(Debug)]
pub enum What {
    Difference(Box<Difference>),
    Strange(Strange),
    /// Another holder has rules of an interception as well.
    Second(Holder),
    /// There are no rules of an interception.
    Nothing,
}

impl Display for What {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        match self {
            Self::Difference(difference) => f.write_str(&difference.what),
            Self::Strange(strange) => strange.fmt(f),
            Self::Second(holder) => write!(f, "rules of an interception in {holder} as well"),
            Self::Nothing => f.write_str("no rule of an interception is there"),
        }
    }
}

/// Flows that somebody else gets than should.
#[derive(Debug)]
pub struct TrafficChange {
    pub family: Family,
    pub scope: Scope,
    pub wanted: Taker,
    pub found: Taker,
    /// In words, a line for each set.
    pub flows: Vec<String>,
    pub example: Flow,
    /// The rules that decide, where there are some.
    pub wanted_rule: Option<String>,
    pub found_rule: Option<String>,
    /// Whether the effect goes away with the differences; otherwise foreign rules cause it.
    pub ours: bool,
}

impl TrafficChange {
    /// Whether traffic gets past the proxy that should not.
    pub fn escapes(&self) -> bool {
        self.found == Taker::Direct && !matches!(self.wanted, Taker::Direct | Taker::Dropped)
    }

    /// What happens to it, in a few words.
    pub fn outcome(&self) -> String {
        match (self.wanted, self.found) {
            _ if self.escapes() => format!("now escapes {}", named(self.wanted)),
            (_, Taker::Dropped) => "is now dropped".into(),
            (_, Taker::Unknown) => "may now go elsewhere".into(),
            (_, Taker::Direct) => "now goes where it is addressed".into(),
            (_, found) => format!("now goes to {}", named(found)),
        }
    }
}

fn named(taker: Taker) -> &'static str {
    match taker {
        Taker::OutboundProxy => "the proxy's outbound port",
        Taker::InboundProxy => "the proxy's inbound port",
        Taker::DnsProxy => "the proxy's DNS",
        _ => "where it should go",
    }
}

impl Verification {
    /// Whether what was found differs from the plan. Drops by foreign rules (a network policy) are no
    /// drift.
    pub fn drift(&self) -> bool {
        !self.findings.is_empty() || self.effects.iter().any(|effect| effect.found != Taker::Dropped)
    }
}
