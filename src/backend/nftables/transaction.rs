//! An nf_tables transaction: the kernel carries out all messages at once, or none.

use std::io;

use crate::backend::hook::Base;
use crate::config::types::Families;
use crate::plan::model::{Chain, Plan, Table};
use crate::sys::netlink::Netlink;

use super::comment::comment;
use super::encode::{ANONYMOUS, Encoder, NewSet, NftRule, SetKey};
use super::errors;
use super::expr_bytes;
use super::frame::Frame;
use super::names;
use super::nfta::*;
use super::raw::{RawAttributes, RawTable};
use super::sets;
use super::wire::{
    Attr, Attrs, Messages, Msg, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL,
    NfFamily, TYPE_MASK,
};

/// `NFNL_SUBSYS_NFTABLES`, the resource id of a batch.
const SUBSYSTEM: u16 = 10;
/// Attributes hold at most 64 KiB; a set with more elements takes several messages.
const ELEMENTS_PER_MESSAGE: usize = 700;
/// The most elements with a comment, of up to 250 bytes, that one message holds.
const COMMENTED_PER_MESSAGE: usize = 200;

/// Why the kernel did not take a transaction. It then holds what it held before.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// Somebody else changed the rules between reading and writing.
    #[error("the rules changed while they were being replaced")]
    Raced,
    #[error("the kernel refused {what}: {source}{detail}")]
    Refused { what: String, source: io::Error, detail: String },
    #[error("cannot talk to nf_tables: {0}")]
    Socket(#[from] io::Error),
}

/// The object of a message, for the error if the kernel refuses it.
enum About {
    Transaction,
    RemovedTable(String),
    Cleared { table: &'static str },
    Table(&'static str),
    Chain { table: &'static str, chain: String, kind: &'static str },
    Set { table: &'static str, elements: usize },
    Rule { table: &'static str, chain: String, comment: String, module: Option<&'static str> },
    Restored,
}

impl std::fmt::Display for About {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            About::Transaction => f.write_str("the transaction"),
            About::RemovedTable(table) => write!(f, "removing table {table}"),
            About::Cleared { table } => write!(f, "taking away what table inet {table} holds"),
            About::Table(table) => write!(f, "table inet {table}"),
            About::Chain { table, chain, kind: "" } => write!(f, "chain {chain} of table inet {table}"),
            About::Chain { table, chain, kind } => write!(f, "chain {chain} (a {kind} chain) of table inet {table}"),
            About::Set { table, elements } => write!(f, "a set of {elements} elements in table inet {table}"),
            About::Rule { table, chain, comment, .. } => {
                write!(f, "the rule \"{comment}\" of chain {chain} in table inet {table}")
            }
            About::Restored => f.write_str("what was there before"),
        }
    }
}

impl About {
    /// The kernel's module that the object needs.
    fn module(&self) -> Option<&'static str> {
        match self {
            About::Table(_) => Some("nf_tables"),
            About::Chain { kind, .. } => errors::module_of_chain(kind),
            About::Rule { module, .. } => *module,
            _ => None,
        }
    }
}

/// A transaction being written.
pub struct Transaction {
    messages: Messages,
    /// The objects of the messages, by sequence number.
    about: Vec<About>,
    next_set: u32,
}

/// nft's note to itself on a set (libnftnl's `NFTNL_UDATA_SET_KEYBYTEORDER`, 0, 4 bytes
/// long): the keys are in host order, 1. Without it nft shows other numbers.
const HOST_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};

impl Transaction {
    /// A transaction that the kernel takes only while the rules are as they were at
    /// generation `generation`.
    pub fn new(generation: Option<u32>) -> Self {
        let mut messages = Messages::default();
        messages.push(NFNL_MSG_BATCH_BEGIN, 0, NfFamily::UNSPEC, SUBSYSTEM, |a| {
            if let Some(generation) = generation {
                a.u32(1, generation); // NFNL_BATCH_GENID
            }
        });
        Self { messages, about: vec![About::Transaction], next_set: 1 }
    }

    pub fn is_empty(&self) -> bool {
        self.about.len() == 1
    }

    fn push(&mut self, msg: Msg, flags: u16, about: About, attributes: impl FnOnce(&mut Attrs)) {
        self.push_in(NfFamily::INET, msg, flags, about, attributes);
    }

    fn push_in(&mut self, family: NfFamily, msg: Msg, flags: u16, about: About, attributes: impl FnOnce(&mut Attrs)) {
        self.messages.nft(msg, flags, family, attributes);
        self.about.push(about);
    }

    /// Removes a table, which must exist, with all that is in it.
    pub fn delete_table(&mut self, table: &str) {
        self.delete_table_in(NfFamily::INET, table);
    }

    pub fn delete_table_in(&mut self, family: NfFamily, table: &str) {
        self.push_in(family, Msg::DelTable, 0, About::RemovedTable(table.to_owned()), |a| {
            a.string(NFTA_TABLE_NAME, table)
        });
    }

    pub fn add_table(&mut self, table: &'static str) {
        self.push(Msg::NewTable, NLM_F_CREATE | NLM_F_EXCL, About::Table(table), |a| a.string(NFTA_TABLE_NAME, table));
    }

    /// Adds a base chain.
    pub fn add_base(&mut self, table: &'static str, chain: &str, base: Base) {
        let about = About::Chain { table, chain: chain.to_owned(), kind: base.kind.name() };
        self.push(Msg::NewChain, NLM_F_CREATE | NLM_F_EXCL, about, |a| {
            a.string(NFTA_CHAIN_TABLE, table);
            a.string(NFTA_CHAIN_NAME, chain);
            a.nested(NFTA_CHAIN_HOOK, |a| {
                a.u32(NFTA_HOOK_HOOKNUM, base.hook as u32);
                a.u32(NFTA_HOOK_PRIORITY, base.priority as u32);
            });
            a.u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
            a.string(NFTA_CHAIN_TYPE, base.kind.name());
        });
    }

    fn add_chain(&mut self, table: &'static str, chain: &str) {
        let about = About::Chain { table, chain: chain.to_owned(), kind: "" };
        self.push(Msg::NewChain, NLM_F_CREATE | NLM_F_EXCL, about, |a| {
            a.string(NFTA_CHAIN_TABLE, table);
            a.string(NFTA_CHAIN_NAME, chain);
        });
    }

    /// Takes all rules of a table away, and the chains that are not wanted.
    fn clear(&mut self, table: &'static str, stands: &Frame, wanted: &Frame) {
        self.push(Msg::DelRule, 0, About::Cleared { table }, |a| a.string(NFTA_RULE_TABLE, table));
        for (chain, _) in stands.chains.iter().filter(|(name, _)| !wanted.has(name)) {
            self.push(Msg::DelChain, 0, About::Cleared { table }, |a| {
                a.string(NFTA_CHAIN_TABLE, table);
                a.string(NFTA_CHAIN_NAME, chain);
            });
        }
    }

    /// Lets one of our tables hold what a plan wants of it. `stands`: the table that is there.
    pub fn set_plan_table(&mut self, plan: &Plan, table: Table, stands: Option<&Frame>) {
        let name = names::table(plan.dataplane, table);
        let chains: &[&Chain] = &plan.chains_of(table);
        let wanted = Frame::of(table, chains);
        let stays = stands.filter(|stands| stands.fits(&wanted) && !chains.is_empty());
        match (stands, stays) {
            (_, Some(stays)) => self.clear(name, stays, &wanted),
            (Some(_), None) => self.delete_table(name),
            (None, None) => {}
        }
        if chains.is_empty() {
            return;
        }
        if stays.is_none() {
            self.add_table(name);
        }
        self.add_chains(plan, table, stays);
    }

    /// Fills a new table with what a plan has in it.
    pub fn fill(&mut self, plan: &Plan, table: Table) {
        self.add_chains(plan, table, None);
    }

    /// Adds chains, then their rules, which may jump to any chain. `stays`: chains that exist.
    fn add_chains(&mut self, plan: &Plan, table: Table, stays: Option<&Frame>) {
        let name = names::table(plan.dataplane, table);
        let chains = plan.chains_of(table);
        for chain in &chains {
            let chain_name = names::chain(&chain.name);
            match names::base(table, &chain.name) {
                _ if stays.is_some_and(|stays| stays.has(&chain_name)) => {}
                Some(base) => self.add_base(name, &chain_name, base),
                None => self.add_chain(name, &chain_name),
            }
        }
        self.add_rules(name, &chains, plan.families);
    }

    /// Adds a set that rules look into by its name.
    pub fn add_named_set(&mut self, table: &'static str, name: &str, key: SetKey) {
        let id = self.next_set;
        self.next_set += 1;
        self.push(Msg::NewSet, NLM_F_CREATE | NLM_F_EXCL, About::Set { table, elements: 0 }, |a| {
            a.string(1, table);
            a.string(2, name);
            a.u32(3, 0);
            a.u32(4, key.number());
            a.u32(5, key.length());
            a.u32(10, id);
        });
    }

    /// Adds elements, each with a comment, to a set with a name.
    pub fn add_elements(&mut self, table: &'static str, set: &str, elements: &[(Vec<u8>, String)]) {
        for part in elements.chunks(COMMENTED_PER_MESSAGE) {
            let about = About::Set { table, elements: elements.len() };
            self.push(Msg::NewSetElem, NLM_F_CREATE | NLM_F_EXCL, about, |a| {
                a.string(1, table);
                a.string(2, set);
                a.nested(3, |a| {
                    for (key, text) in part {
                        a.nested(1, |a| {
                            a.nested(1, |a| a.bytes(1, key));
                            a.bytes(6, &comment(text)); // NFTA_SET_ELEM_USERDATA
                        });
                    }
                });
            });
        }
    }

    /// Removes elements, which must exist, from a named set.
    pub fn delete_elements(&mut self, table: &'static str, set: &str, keys: &[Vec<u8>]) {
        for part in keys.chunks(ELEMENTS_PER_MESSAGE) {
            let about = About::Set { table, elements: keys.len() };
            self.push(Msg::DelSetElem, 0, about, |a| {
                a.string(1, table);
                a.string(2, set);
                a.nested(3, |a| {
                    for key in part {
                        a.nested(1, |a| a.nested(1, |a| a.bytes(1, key)));
                    }
                });
            });
        }
    }

    /// Adds rules to chains of a table.
    pub fn add_rules(&mut self, table: &'static str, chains: &[&Chain], families: Families) {
        let mut encoder = Encoder::starting_at(families, self.next_set);
        for chain in chains {
            let chain_name = names::chain(&chain.name);
            for rule in &chain.rules {
                for rule in encoder.rule(rule, chain.name.is_hook()) {
                    for set in encoder.take_sets() {
                        self.add_set(table, &set);
                    }
                    self.add_rule(table, &chain_name, &rule);
                }
            }
        }
        self.next_set = encoder.next_id();
    }

    fn add_set(&mut self, table: &'static str, set: &NewSet) {
        let about = About::Set { table, elements: set.elements.len() };
        self.push(Msg::NewSet, NLM_F_CREATE | NLM_F_EXCL, about, |a| {
            a.string(NFTA_SET_TABLE, table);
            a.string(NFTA_SET_NAME, ANONYMOUS);
            let interval = if set.interval { NFT_SET_INTERVAL } else { 0 };
            a.u32(NFTA_SET_FLAGS, NFT_SET_ANONYMOUS | NFT_SET_CONSTANT | interval);
            a.u32(NFTA_SET_KEY_TYPE, set.key.number());
            a.u32(NFTA_SET_KEY_LEN, set.key.length());
            a.u32(NFTA_SET_ID, set.id);
            // A known size lets the kernel take a fixed hash.
            let size = if set.interval { set.elements.len() * 2 } else { set.elements.len() };
            a.nested(NFTA_SET_DESC, |a| a.u32(NFTA_SET_DESC_SIZE, size as u32));
            if set.in_host_order() {
                a.bytes(NFTA_SET_USERDATA, &HOST_ORDER);
            }
        });
        // An interval is its first key and, marked as an end, the one after its last.
        let mut keys: Vec<(Vec<u8>, bool)> = Vec::with_capacity(set.elements.len() * 2);
        for (first, last) in &set.elements {
            keys.push((first.clone(), false));
            if set.interval
                && let Some(end) = sets::after(last)
            {
                keys.push((end, true));
            }
        }
        for part in keys.chunks(ELEMENTS_PER_MESSAGE) {
            let about = About::Set { table, elements: set.elements.len() };
            self.push(Msg::NewSetElem, NLM_F_CREATE, about, |a| {
                a.string(NFTA_SET_ELEM_LIST_TABLE, table);
                a.string(NFTA_SET_ELEM_LIST_SET, ANONYMOUS);
                a.u32(NFTA_SET_ELEM_LIST_SET_ID, set.id);
                a.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |a| {
                    for (key, is_end) in part {
                        a.nested(NFTA_LIST_ELEM, |a| {
                            a.nested(NFTA_SET_ELEM_KEY, |a| a.bytes(NFTA_DATA_VALUE, key));
                            if *is_end {
                                a.u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
                            }
                        });
                    }
                });
            });
        }
    }

    fn add_rule(&mut self, table: &'static str, chain: &str, rule: &NftRule) {
        let module = errors::module_of(&rule.exprs);
        let about = About::Rule { table, chain: chain.to_owned(), comment: rule.comment.clone(), module };
        self.push(Msg::NewRule, NLM_F_CREATE | NLM_F_APPEND, about, |a| {
            a.string(NFTA_RULE_TABLE, table);
            a.string(NFTA_RULE_CHAIN, chain);
            a.nested(NFTA_RULE_EXPRESSIONS, |a| expr_bytes::write(&rule.exprs, a));
            a.bytes(NFTA_RULE_USERDATA, &comment(&rule.comment));
        });
    }

    /// Lets one of our tables hold what was listed of it, or makes it again. `stands`: the
    /// table that is there.
    pub fn restore(&mut self, table: &'static str, stands: Option<&Frame>, listed: &RawTable) {
        let stays = stands.filter(|stands| stands.fits(&listed.frame));
        match (stands, stays) {
            (_, Some(stays)) => self.clear(table, stays, &listed.frame),
            (Some(_), None) => self.delete_table(table),
            (None, None) => {}
        }
        for (msg, attributes) in &listed.messages {
            let is_there = match msg {
                Msg::NewTable => stays.is_some(),
                Msg::NewChain => stays.is_some_and(|stays| chain_of(attributes).is_some_and(|c| stays.has(&c))),
                _ => false,
            };
            if is_there {
                continue;
            }
            let flags = NLM_F_CREATE | if *msg == Msg::NewRule { NLM_F_APPEND } else { 0 };
            let id = self.next_set;
            self.push(*msg, flags, About::Restored, |a| {
                for (kind, value) in attributes {
                    a.bytes(*kind, value);
                }
                if *msg == Msg::NewSet {
                    a.u32(NFTA_SET_ID, id);
                }
            });
            self.next_set += u32::from(*msg == Msg::NewSet);
        }
    }

    /// Sends the transaction to the kernel.
    ///
    /// # Errors
    ///
    /// What the kernel refused, and of which object; then it has changed nothing.
    pub fn commit(mut self, netlink: &mut Netlink) -> Result<(), TransactionError> {
        if self.is_empty() {
            return Ok(());
        }
        // The last message asks for the acknowledgement: kernels before 6.10 give none for
        // the end of a batch. It comes only after everything has been committed.
        self.messages.acknowledge_last();
        let last = self.messages.last_sequence();
        self.messages.push(NFNL_MSG_BATCH_END, 0, NfFamily::UNSPEC, SUBSYSTEM, |_| ());
        let refused = netlink.transact(self.messages.bytes(), last)?;
        // What the first refusal causes (a chain that is not there …) is not worth telling.
        let Some(first) = refused.into_iter().min_by_key(|r| r.sequence) else { return Ok(()) };
        if first.errno == nix::libc::ERESTART {
            return Err(TransactionError::Raced);
        }
        let about = self.about.get(first.sequence as usize);
        let what = about.map(About::to_string).unwrap_or_default();
        let detail = errors::hint(first.errno, about.and_then(About::module), first.message);
        Err(TransactionError::Refused { what, source: io::Error::from_raw_os_error(first.errno), detail })
    }
}

/// The name of the chain that a listed message is about.
fn chain_of(attributes: &RawAttributes) -> Option<String> {
    let (kind, value) = attributes.iter().find(|(kind, _)| kind & TYPE_MASK == NFTA_CHAIN_NAME)?;
    Some(Attr { kind: *kind, value }.string())
}
