//! What a drawing shows, whichever way it is written: chains as boxes, rules as rows, both
//! families in one row where they say the same.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::audit::escapes::kind::Severity;
use crate::audit::escapes::{Escape, scope_name};
use crate::audit::flow::Taker;
use crate::audit::ruleset::{Base, ChainRules, Hook, Order, Ruleset, TableId, redirect_taker};
use crate::backend::hook::ChainKind;
use crate::config::types::{Families, Family};
use crate::plan::canon::{Addresses, CanonMatches, CanonRule, all_addresses};
use crate::plan::effect::Effect;
use crate::plan::model::{ChainName, Verdict};
use crate::plan::words;

/// The most rows of a box that are drawn.
const ROWS: usize = 80;
/// The most rules of a chain, of either family, that rows are made of.
const RULES: usize = 4 * ROWS;
/// The most reasons that a row tells.
const REASONS: usize = 6;
/// How many jumps away from a hook a chain may be: as far as flows are followed, and more.
const DEEPEST: usize = 64;

const NO_RULES: &str = "no rules";

/// A drawing: boxes, the chains of hooks first.
#[derive(Debug, Clone, Default)]
pub struct Drawing {
    pub boxes: Vec<ChainBox>,
}

/// A chain, drawn as a box.
#[derive(Debug, Clone)]
pub struct ChainBox {
    pub table: TableId,
    pub name: ChainName,
    /// The chain's hook and priority; `None` if rules only jump to it.
    pub base: Option<Base>,
    /// How many jumps away from a hook it is, at most.
    pub depth: usize,
    pub rows: Vec<Row>,
}

impl ChainBox {
    /// Stands for a hook that has no chain.
    fn without_rules(hook: Hook, row: Row) -> Self {
        Self {
            table: TableId { source: NO_RULES.into(), name: NO_RULES.into() },
            name: if hook == Hook::Output { ChainName::Output } else { ChainName::Prerouting },
            base: Some(Base::accepting(ChainKind::Filter, hook, 0)),
            depth: 0,
            rows: vec![row],
        }
    }

    pub fn title(&self) -> String {
        match self.table.source.as_ref() {
            NO_RULES => format!("{NO_RULES} in {}", self.name),
            "plan" => format!("{} {}", self.table.name, self.name),
            source => format!("{source} {} {}", self.table.name, self.name),
        }
    }
}

/// A rule, or what happens at the end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub families: Families,
    pub conditions: String,
    /// Conditions on addresses, by family.
    addresses: Vec<(Family, String)>,
    pub why: String,
    pub fate: RowEnd,
}

impl Row {
    /// The conditions of the row in words; "everything" if there are none.
    pub fn text(&self, all: Families) -> String {
        let mut parts: Vec<String> = Vec::new();
        if self.families != all && !self.is_end() {
            parts.push(format!("{}:", self.families));
        }
        parts.extend((!self.conditions.is_empty()).then(|| self.conditions.clone()));
        let mut said: Vec<&str> = self.addresses.iter().map(|(_, text)| text.as_str()).collect();
        said.dedup();
        parts.extend((!said.is_empty()).then(|| said.join(" or ")));
        if parts.iter().all(|part| part.ends_with(':')) {
            parts.push("everything".into());
        }
        parts.join(" ")
    }
}

/// Where a rule sends the packets that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowEnd {
    /// The rule leads to the box with this number.
    Chain(usize),
    Proxy {
        taker: Taker,
        port: u16,
    },
    /// The packets get past the proxy and out of the pod.
    Escapes(Severity, Vec<String>),
    /// The packets get past the proxy, but not out of the pod.
    Inside,
    /// It is not known whether the packets escape.
    CannotTell,
    Dropped,
    /// The packets return to the calling chain, or go on to the next one; in the rule's word.
    Back(&'static str),
    /// The packets go on to the next rule, with something changed.
    Changed(String),
}

impl RowEnd {
    /// The end of the row in a word or two.
    pub fn label(&self) -> String {
        match self {
            RowEnd::Chain(_) => String::new(),
            RowEnd::Proxy { taker, port } => format!("{taker} :{port}"),
            RowEnd::Escapes(severity, _) => format!("escapes ({severity})"),
            RowEnd::Inside => "stays in the pod".into(),
            RowEnd::CannotTell => "cannot tell".into(),
            RowEnd::Dropped => "dropped".into(),
            RowEnd::Back(word) => (*word).into(),
            RowEnd::Changed(what) => what.clone(),
        }
    }
}

/// Which classes of escapes leave by a rule.
#[derive(Default)]
struct Exits {
    severity: Option<Severity>,
    classes: Vec<String>,
    undecided: bool,
}

impl Exits {
    fn add(&mut self, escape: &Escape) {
        self.undecided |= escape.is_undecided();
        self.severity = self.severity.max(Some(escape.severity));
        let id = format!("{}-{}", scope_name(escape.scope), escape.kind.id());
        if escape.severity > Severity::Info && !self.classes.contains(&id) {
            self.classes.push(id);
        }
    }

    fn fate(&self) -> Option<RowEnd> {
        match self.severity? {
            _ if self.undecided => Some(RowEnd::CannotTell),
            Severity::Info => Some(RowEnd::Inside),
            severity => Some(RowEnd::Escapes(severity, self.classes.clone())),
        }
    }
}

/// What the rows of a box depend on.
struct Context {
    exits: BTreeMap<RuleId, Exits>,
    /// The rules that jump to a chain.
    through: BTreeMap<(TableId, ChainName), Vec<RuleId>>,
    places: BTreeMap<(TableId, ChainName), usize>,
}

fn through(ruleset: &Ruleset) -> BTreeMap<(TableId, ChainName), Vec<RuleId>> {
    let mut out: BTreeMap<(TableId, ChainName), Vec<RuleId>> = BTreeMap::new();
    for chain in Family::BOTH.iter().flat_map(|&family| &ruleset.family(family).chains) {
        for rule in &chain.rules {
            if let Verdict::Jump(to) | Verdict::Goto(to) = &rule.verdict {
                out.entry((chain.table.clone(), to.clone())).or_default().push(rule);
            }
        }
    }
    out
}

/// The rule an escape leaves by; rules are told apart by where they are.
type RuleId = *const CanonRule;

impl Drawing {
    pub fn of(ruleset: &Ruleset, escapes: &[Escape]) -> Self {
        let mut exits: BTreeMap<RuleId, Exits> = BTreeMap::new();
        let mut by_no_rule: BTreeMap<Hook, Exits> = BTreeMap::new();
        for escape in escapes {
            for part in &escape.parts {
                match part.decider {
                    Some((decider, _)) => exits.entry(decider.rule).or_default().add(escape),
                    None => {
                        let hook = if escape.scope.is_outbound() { Hook::Output } else { Hook::Prerouting };
                        by_no_rule.entry(hook).or_default().add(escape);
                    }
                }
            }
        }
        let mut boxes = Self::boxes(ruleset);
        let places: BTreeMap<(TableId, ChainName), usize> =
            boxes.iter().enumerate().map(|(at, b)| ((b.table.clone(), b.name.clone()), at)).collect();
        let context = Context { exits, through: through(ruleset), places };
        // Of a table of both families one may get no further than the hook.
        let entered = Family::BOTH.map(|family| {
            let rules = ruleset.family(family);
            let chains = rules.chains.iter().zip(rules.entered()).filter(|(_, entered)| *entered);
            chains.map(|(chain, _)| ((&chain.table, &chain.name), chain)).collect::<HashMap<_, _>>()
        });
        for chain_box in &mut boxes {
            let chains = [0, 1].map(|at: usize| entered[at].get(&(&chain_box.table, &chain_box.name)));
            let left_out = chains.map(|chain| chain.map_or(0, |chain| chain.rules.len().saturating_sub(RULES)));
            let rows = |family: Family| -> Vec<Row> {
                let rules = chains[usize::from(family == Family::V6)].into_iter();
                let rules = rules.flat_map(|chain| chain.rules.iter().take(RULES).map(move |rule| (chain, rule)));
                rules.map(|(chain, rule)| row(chain, rule, family, &context)).collect()
            };
            let mut rows = zipped(rows(Family::V4), rows(Family::V6));
            // What is not looked at is taken for the same in both families.
            let more = rows.len().saturating_sub(ROWS) + left_out[0].max(left_out[1]);
            if more > 0 {
                rows.truncate(ROWS);
                rows.push(Row::end(format!("{more} more rules"), RowEnd::Changed("not drawn".into())));
            }
            chain_box.rows = rows;
        }
        for b in boxes.iter_mut().filter(|b| b.base.is_some_and(|base| base.drops)) {
            b.rows.push(Row::end("everything else, by policy".into(), RowEnd::Dropped));
        }
        for (hook, exits) in by_no_rule {
            let Some(fate) = exits.fate() else { continue };
            let row = Row::end("what no rule takes".into(), fate);
            let of_hook = |b: &ChainBox| b.base.filter(|base| base.hook == hook && !b.rows.is_empty());
            // Where it would have been redirected, or else where it is seen last.
            let last = boxes.iter().rposition(|b| of_hook(b).is_some_and(|base| base.is_nat()));
            match last.or(boxes.iter().rposition(|b| of_hook(b).is_some())) {
                Some(at) => boxes[at].rows.push(row),
                None => boxes.push(ChainBox::without_rules(hook, row)),
            }
        }
        let mut drawing = Self { boxes };
        drawing.reach();
        drawing
    }

    /// Chains of both families, those of hooks first and in the order packets meet them.
    fn boxes(ruleset: &Ruleset) -> Vec<ChainBox> {
        let mut out: Vec<ChainBox> = Vec::new();
        let mut known = HashSet::new();
        for family in Family::BOTH {
            for chain in &ruleset.family(family).chains {
                if known.insert((&chain.table, &chain.name)) {
                    let ChainRules { table, name, base, .. } = chain;
                    let (table, name) = (table.clone(), name.clone());
                    out.push(ChainBox { table, name, base: *base, depth: 0, rows: Vec::new() });
                }
            }
        }
        let turn = |b: &ChainBox, base: Base| {
            let is_it = |chain: &ChainRules| chain.table == b.table && chain.name == b.name;
            Family::BOTH.iter().find_map(|&family| ruleset.family(family).on(base.hook, Order::First).position(is_it))
        };
        out.sort_by_cached_key(|b| b.base.map_or((1, None, None), |base| (0, Some(base.hook), turn(b, base))));
        out
    }

    /// Leaves only what packets can get to, and notes how far it is.
    fn reach(&mut self) {
        let is_start = |b: &ChainBox| b.base.is_some_and(|base| base.drops || !b.rows.is_empty());
        let mut depth: Vec<Option<usize>> = self.boxes.iter().map(|b| is_start(b).then_some(0)).collect();
        // No chain is further away than there are chains; the kernel refuses loops.
        for _ in 0..self.boxes.len().min(DEEPEST) {
            let before = depth.clone();
            for at in 0..self.boxes.len() {
                let Some(here) = depth[at] else { continue };
                for row in &self.boxes[at].rows {
                    if let RowEnd::Chain(to) = row.fate
                        && self.boxes[to].base.is_none()
                    {
                        depth[to] = depth[to].max(Some((here + 1).min(self.boxes.len())));
                    }
                }
            }
            if depth == before {
                break;
            }
        }
        let mut numbers = vec![0; self.boxes.len()];
        let mut kept = Vec::new();
        for (at, mut chain_box) in std::mem::take(&mut self.boxes).into_iter().enumerate() {
            if let Some(depth) = depth[at] {
                numbers[at] = kept.len();
                chain_box.depth = depth;
                kept.push(chain_box);
            }
        }
        for row in kept.iter_mut().flat_map(|b| &mut b.rows) {
            if let RowEnd::Chain(to) = &mut row.fate {
                *to = numbers[*to];
            }
        }
        self.boxes = kept;
    }

    /// The families that any row is about.
    pub fn families(&self) -> Families {
        let rows = self.boxes.iter().flat_map(|b| &b.rows);
        rows.filter(|row| !row.is_end()).fold(Families::NONE, |all, row| all.union(row.families))
    }
}

impl Row {
    fn end(conditions: String, fate: RowEnd) -> Self {
        Self { families: Families::NONE, conditions, addresses: Vec::new(), why: String::new(), fate }
    }

    fn is_end(&self) -> bool {
        self.families.is_empty()
    }
}

fn row(chain: &ChainRules, rule: &CanonRule, family: Family, context: &Context) -> Row {
    let all = all_addresses(family);
    let m = &rule.matches;
    let others = CanonMatches { source: all.clone(), destination: all.clone(), ..m.clone() };
    let word = |word: &str, set: &Addresses| {
        (*set != all).then(|| match words::networks(set, family, &all) {
            text if text.starts_with("not ") => text.replacen("not ", &format!("not {word} "), 1),
            text => format!("{word} {text}"),
        })
    };
    let addresses: Vec<String> = [word("from", &m.source), word("to", &m.destination)].into_iter().flatten().collect();
    // A packet accepted in a chain leaves by the rule that jumped there.
    let jumps = context.through.get(&(chain.table.clone(), chain.name.clone()));
    let accepted = jumps.filter(|_| rule.verdict == Verdict::Accept).into_iter().flatten().copied();
    let by = accepted.chain([std::ptr::from_ref(rule)]);
    let exit = by.filter_map(|place| context.exits.get(&place)).find_map(Exits::fate);
    let fate = match &rule.verdict {
        Verdict::Jump(to) | Verdict::Goto(to) => match context.places.get(&(chain.table.clone(), to.clone())) {
            Some(&at) => RowEnd::Chain(at),
            None => RowEnd::CannotTell,
        },
        Verdict::Redirect(port) => RowEnd::Proxy { taker: redirect_taker(&chain.name, *port), port: port.get() },
        Verdict::Tproxy { port, .. } => RowEnd::Proxy { taker: Taker::InboundProxy, port: port.get() },
        Verdict::Drop => RowEnd::Dropped,
        Verdict::Unknown(unknown) => match unknown.effect {
            Effect::Unknown => RowEnd::CannotTell,
            Effect::Drops => RowEnd::Dropped,
            Effect::Accepts => exit.unwrap_or(RowEnd::Back("accepted")),
            Effect::None => RowEnd::Changed(words::verdict(&rule.verdict)),
        },
        Verdict::Return => exit.unwrap_or(RowEnd::Back("returns")),
        Verdict::Accept | Verdict::Snat(_) => exit.unwrap_or(RowEnd::Back("accepted")),
        Verdict::Continue
        | Verdict::SetMark(_)
        | Verdict::SaveMark
        | Verdict::RestoreMark
        | Verdict::SetConnectionMark(_)
        | Verdict::CtZone(_) => RowEnd::Changed(words::verdict(&rule.verdict)),
    };
    let mut whys: Vec<&str> = rule.parts.iter().map(|(why, _)| why.sentence()).collect();
    whys.dedup();
    let number = rule.origin.as_ref().filter(|_| !rule.is_understood()).map(|origin| format!("rule {}", origin.number));
    whys.retain(|why| !why.is_empty());
    whys.extend(number.as_deref());
    let more = whys.len().saturating_sub(REASONS);
    whys.truncate(REASONS);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Row {
        families: Families::only(family),
        conditions: words::matches(&others, family),
        addresses: (!addresses.is_empty()).then(|| (family, addresses.join(" "))).into_iter().collect(),
        why: whys.join("; ") + &more,
        fate,
    }
}

/// The rows of both families in one list: where they say the same, one row for both.
fn zipped(v4: Vec<Row>, v6: Vec<Row>) -> Vec<Row> {
    let mut out = Vec::new();
    let mut rest = v6.into_iter();
    for mut row in v4 {
        let same = |a: &Row, b: &Row| {
            a.conditions == b.conditions
                && a.why == b.why
                && std::mem::discriminant(&a.fate) == std::mem::discriminant(&b.fate)
                && a.fate.label() == b.fate.label()
                && a.addresses.is_empty() == b.addresses.is_empty()
        };
        // Rules of IPv6 alone stand before its twin.
        if let Some(alone) = rest.clone().position(|other| same(&row, &other)) {
            out.extend(rest.by_ref().take(alone));
            if let Some(twin) = rest.next() {
                row.families = row.families.union(twin.families);
                row.addresses.extend(twin.addresses);
            }
        }
        out.push(row);
    }
    out.extend(rest);
    out
}
