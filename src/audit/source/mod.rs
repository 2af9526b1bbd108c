//! Where the rules come from that are looked at: options, the kernel or a dump. All three
//! give the same: what packets meet, what is there of an interception, and what is known
//! about the pod.
//!
//! | source | what it needs |
//! |---|---|
//! | [`options`] | nothing; the pod's addresses and name servers are told |
//! | [`live`] | the network namespace, and CAP_NET_ADMIN in it |
//! | [`dump`] | text that iptables-save, nft or podweir printed |

pub mod dump;
pub mod live;
pub mod options;

use std::io;

use crate::backend::dump::DumpError;
use crate::backend::everything::ListingError;
use crate::backend::iptables::programs::ProgramError;
use crate::backend::routing::RoutingError;
use crate::config::given::Given;
use crate::config::settings::{Settings, SettingsError};
use crate::config::types::Families;
use crate::plan::canon::Canon;
use crate::plan::model::{Dataplane, Plan, Routing};
use crate::plan::why::Why;
use crate::sys::netns;

use super::flow::Surroundings;
use super::ruleset::Ruleset;
use crate::backend::listing::{ListedTable, Listing};
use crate::backend::opaque;
use crate::backend::ours::{self, Holding};

/// Rules to be audited, and what is known of their pod.
#[derive(Debug, Clone)]
pub struct Source {
    /// All tables that were found, whoever made them, with counters and comments.
    pub tables: Vec<ListedTable>,
    /// The rules of the tables in the form that packets are walked through.
    pub ruleset: Ruleset,
    /// What each holder has of an interception.
    pub held: Vec<Holding>,
    /// Routing and addresses of an interception; `None` where the source does not tell.
    pub routing: Option<Routing>,
    /// The families that the source covers. Nothing is known of the other one.
    pub told: Families,
    pub pod: Surroundings,
    /// The settings that options give; only of options.
    pub settings: Option<Settings>,
    /// The texts of options with their origins; only of options.
    pub given: Option<Given>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl Source {
    /// What somebody listed, of a pod of which nothing else is known.
    pub fn of_listing(listing: Listing) -> Self {
        Self {
            ruleset: Ruleset::of_tables(&listing.tables),
            held: ours::holdings(&listing.tables),
            tables: listing.tables,
            routing: None,
            told: listing.told,
            pod: Surroundings::of(Vec::new()),
            settings: None,
            given: None,
            notes: listing.notes,
        }
    }

    /// What to say where nft does not show all of a rule that may be the interception's.
    pub fn opaque_rule(&self) -> Option<String> {
        opaque::in_interception(&self.tables).filter(|_| !self.held.is_empty())
    }

    /// The interception in the source as a plan, of all holders together, with routing.
    pub fn plan(&self) -> Plan {
        let dataplane = self.held.first().map_or(Dataplane::Sidecar, |held| held.plan.dataplane);
        let mut plan = Plan::nothing_of(dataplane);
        for held in &self.held {
            plan.families = plan.families.union(held.plan.families);
            for chain in &held.plan.chains {
                match plan.chains.iter_mut().find(|known| known.table == chain.table && known.name == chain.name) {
                    Some(known) => known.rules.extend(chain.rules.iter().cloned()),
                    None => plan.chains.push(chain.clone()),
                }
            }
        }
        plan.routing = self.routing.clone().unwrap_or_default();
        plan
    }

    /// The owners whose traffic the rules let out as the proxy's own.
    pub fn proxy_owners(&self) -> (Vec<u32>, Vec<u32>) {
        let plan = self.plan();
        let rules = plan.chains.iter().flat_map(|chain| &chain.rules).filter(|rule| rule.why == Why::ProxyOwn);
        let (mut uids, mut gids) = (Vec::new(), Vec::new());
        for rule in rules {
            for (cond, into) in [(&rule.matches.uid, &mut uids), (&rule.matches.gid, &mut gids)] {
                let single = cond.iter().filter(|cond| !cond.negated).flat_map(|cond| cond.value.iter());
                into.extend(single.map(|(first, _)| first));
            }
        }
        (uids, gids)
    }

    /// What the source holds of an interception, in the form in which plans are compared.
    pub fn canon(&self) -> Canon {
        Canon::of(&self.plan())
    }
}

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What was given makes no sense: a usage error.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(
        "the pod's IP families are not known: give its addresses with --pod-ip, or --ip-families ipv4, ipv6 or both among the options"
    )]
    NoAddress,
    #[error("cannot read {what}: {source}{hint}")]
    Kernel { what: String, source: io::Error, hint: String },
    #[error(transparent)]
    Routing(#[from] RoutingError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("cannot read {name}: {source}")]
    File { name: String, source: io::Error },
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The source has too many rules; says which, how many, and the limit.
    #[error(
        "{0}; what so many do to traffic is not told, and a pod's own network namespace has none so many: look at that one (--pid, --netns) and not at its node's, or leave out of the dump the tables that the pod's packets do not meet"
    )]
    TooMany(String),
}

impl From<ListingError> for SourceError {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::Kernel { what, source } => Self::kernel(what, source),
            ListingError::Program(error) => Self::Program(error),
            error @ ListingError::TooMany { .. } => Self::TooMany(error.to_string()),
        }
    }
}

impl SourceError {
    /// Whether what was typed is at fault (exit status 2) rather than the surroundings (1).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) | Self::NoAddress | Self::Dump(_) => true,
            Self::Settings(error) => error.is_usage(),
            _ => false,
        }
    }

    fn kernel(what: &str, source: io::Error) -> Self {
        let hint = netns::hint_of_refusal(&source).map(|hint| format!("; {hint}")).unwrap_or_default();
        Self::Kernel { what: what.into(), source, hint }
    }
}
