//! Backends: what reads a plan from the kernel and makes the kernel hold one. They
//! translate and decide nothing; [`install`] decides what has to be done.

pub mod ambient;
pub mod conditions;
pub mod connections;
pub mod dump;
pub mod effect;
pub mod everything;
pub mod facts;
pub mod foreign_text;
pub mod guard;
pub mod held;
pub mod hook;
pub mod host;
pub mod install;
pub mod interference;
pub mod iptables;
pub mod limit;
pub mod listing;
pub mod nftables;
pub mod node;
pub mod opaque;
pub mod ours;
pub mod route_table;
pub mod routing;
pub mod survey;

use std::collections::HashMap;
use std::fmt;
use std::io;

use crate::config::settings::BackendChoice;
use crate::config::types::Family;
use crate::plan::canon::Canon;
use crate::plan::model::{ChainName, Plan, Table};
use crate::sys::privilege::{CAP_SYS_MODULE, Keep};

/// The three ways to program a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendKind {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl BackendKind {
    pub const ALL: [BackendKind; 3] = [BackendKind::Nftables, BackendKind::IptablesNft, BackendKind::IptablesLegacy];

    /// The backend's name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Nftables => "nftables",
            BackendKind::IptablesNft => "iptables-nft",
            BackendKind::IptablesLegacy => "iptables-legacy",
        }
    }
}

/// The capabilities that a backend needs in its namespace. iptables-legacy's program loads its kernel
/// module where it is missing, which takes one more; where iptables-legacy is chosen only because the
/// kernel has no nf_tables, the module must be loaded already.
pub fn capabilities(choice: BackendChoice) -> Keep {
    match choice {
        BackendChoice::Auto | BackendChoice::Nftables | BackendChoice::IptablesNft => Keep::RULES,
        BackendChoice::AutoIptables | BackendChoice::IptablesLegacy => Keep::RULES.and(CAP_SYS_MODULE),
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A finding that a plan cannot express: a table switched off, a foreign rule before an own one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strange {
    pub table: Table,
    /// The chain that it is about; `None`: the table as a whole.
    pub chain: Option<ChainName>,
    /// The family that it is about; `None`: both, or unknown.
    pub family: Option<Family>,
    pub what: String,
}

impl Strange {
    pub fn new(table: Table, chain: Option<ChainName>, what: String) -> Self {
        Self { table, chain, family: None, what }
    }
}

impl fmt::Display for Strange {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let family = self.family.map(|f| format!("{f} ")).unwrap_or_default();
        let chain = self.chain.as_ref().map(|c| format!(", chain {c}")).unwrap_or_default();
        write!(f, "{family}table {}{chain}: {}", self.table.name(), self.what)
    }
}

/// What one backend holds of an interception.
#[derive(Debug, Clone)]
pub struct Reading<B = Backup> {
    /// Whether the backend holds anything of an interception.
    pub present: bool,
    /// Rules only: routing is the same for every backend and read apart.
    pub plan: Plan,
    pub strange: Vec<Strange>,
    /// What restoring this state takes.
    pub backup: B,
}

impl Reading {
    /// The reading of a backend that holds nothing.
    pub fn nothing() -> Self {
        Reading { present: false, plan: Plan::empty(), strange: Vec::new(), backup: Backup::Nothing }
    }

    /// Whether both were read of the same rules, in chains that sit in the same places.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let frames = |reading: &Self| match &reading.backup {
            Backup::Nftables(tables) => tables.iter().map(|(table, raw)| (*table, raw.frame.clone())).collect(),
            _ => HashMap::new(),
        };
        self.strange == other.strange
            && frames(self) == frames(other)
            && Canon::of(&self.plan).same_rules(&Canon::of(&other.plan))
    }
}

/// A state as it was found, down to what the model does not know.
#[derive(Debug, Clone)]
pub enum Backup {
    Nothing,
    Nftables(HashMap<Table, nftables::raw::RawTable>),
    Iptables(HashMap<Family, iptables::parse::Saved>),
}

/// Why a backend could not do what it should. The kernel holds what it held before,
/// unless the message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    Nftables(#[from] nftables::transaction::TransactionError),
    #[error("cannot list the rules of {backend}: {source}{hint}")]
    List { backend: &'static str, source: io::Error, hint: String },
    #[error(transparent)]
    Iptables(#[from] iptables::programs::ProgramError),
}

impl BackendError {
    /// Whether the kernel itself said that it has changed nothing.
    fn changed_nothing(&self) -> bool {
        use nftables::transaction::TransactionError as E;
        matches!(self, Self::Nftables(E::Raced | E::Refused { .. }))
    }

    /// Whether somebody else changed the rules meanwhile, so that trying again may help.
    pub fn raced(&self) -> bool {
        match self {
            Self::Nftables(nftables::transaction::TransactionError::Raced) => true,
            Self::List { source, .. } => source.kind() == io::ErrorKind::Interrupted,
            _ => false,
        }
    }
}

/// A way to program the kernel's rules.
pub trait Backend {
    fn kind(&self) -> BackendKind;

    /// Reads what the backend holds of an interception.
    ///
    /// # Errors
    ///
    /// The kernel or the iptables program refused, or what it lists is not understood.
    fn read(&mut self) -> Result<Reading, BackendError>;

    /// Replaces what was found by the plan's rules: natively in one transaction, with iptables one table
    /// of one family after the other.
    ///
    /// # Errors
    ///
    /// The kernel or the iptables program refused. Native: nothing has changed; iptables: tables
    /// before the one that failed have.
    fn apply(&mut self, plan: &Plan, found: &Reading) -> Result<(), BackendError>;

    /// Removes what the backend holds of an interception.
    ///
    /// # Errors
    ///
    /// The kernel or the iptables program refused. Native: nothing has changed; iptables: tables
    /// before the one that failed have.
    fn remove(&mut self, found: &Reading) -> Result<(), BackendError>;

    /// Puts back what was found, whatever it holds now.
    ///
    /// # Errors
    ///
    /// The kernel or the iptables program refused; what was found is not back.
    fn restore(&mut self, found: &Reading) -> Result<(), BackendError>;

    /// How many separate steps, each visible to traffic, `apply` would take.
    fn steps(&self, plan: &Plan, found: &Reading) -> usize;
}
