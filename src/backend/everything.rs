//! All rules in the network namespace that the calling thread is in, whoever made them. Reading changes
//! nothing: no table is made, and no program is started unless iptables-legacy has tables, which only
//! its own program can list.

use std::io;
use std::time::Duration;

use crate::config::types::Families;
use crate::sys::netlink::Netlink;

use super::iptables::parse;
use super::iptables::programs::{ProgramEnvironment, ProgramError, Programs, Variant};
use super::limit::{self, Most};
use super::listing::{self, Holder, ListedTable, Listing};
use super::nftables::{list, tables};
use super::{BackendKind, survey};

/// How often reading is repeated when the rules change meanwhile.
const ATTEMPTS: usize = 20;

/// Why the kernel's rules cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// What could not be read, and the kernel's reason.
    #[error("cannot read {what}: {source}")]
    Kernel { what: &'static str, source: io::Error },
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// What has too many rules or elements, and how many.
    #[error("{what} in this network namespace: {many}")]
    TooMany { what: &'static str, many: String },
}

impl ListingError {
    fn of(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { what, source }
    }
}

/// Lists everything, unless there is more than `most`. `programs`: where iptables-legacy-save
/// is looked for.
///
/// # Errors
///
/// The kernel does not list its tables, or a program that has to does not.
pub fn listing(programs: &ProgramEnvironment, lock_timeout: Duration, most: Most) -> Result<Listing, ListingError> {
    let mut tables = nft_tables(most)?;
    let legacy = survey::any_legacy_tables().map_err(ListingError::of("the tables of iptables-legacy"))?;
    tables.extend(legacy_tables(programs, lock_timeout, legacy, most)?);
    Ok(Listing::new(tables, Families::BOTH))
}

fn nft_tables(most: Most) -> Result<Vec<ListedTable>, ListingError> {
    let failed = ListingError::of("nf_tables");
    let mut netlink = match Netlink::open(Netlink::NETFILTER) {
        Ok(netlink) => netlink,
        Err(e) if survey::is_unsupported(&e) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut attempt = 1;
    loop {
        match list::everything(&mut netlink, most) {
            Ok(tables) => return Ok(tables::listed(&tables)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted && attempt < ATTEMPTS => attempt += 1,
            Err(e) if survey::is_unsupported(&e) => return Ok(Vec::new()),
            Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
                return Err(ListingError::TooMany { what: "nf_tables", many: e.to_string() });
            }
            Err(e) => return Err(failed(e)),
        }
    }
}

fn legacy_tables(
    programs: &ProgramEnvironment,
    lock_timeout: Duration,
    families: Families,
    most: Most,
) -> Result<Vec<ListedTable>, ListingError> {
    let programs = Programs::new(Variant::Legacy, programs.clone(), lock_timeout);
    let mut out = Vec::new();
    for family in families.iter() {
        let text = programs.save(family)?;
        limit::check(text.as_bytes(), most).map_err(|many| ListingError::TooMany {
            what: BackendKind::IptablesLegacy.name(),
            many: many.to_string(),
        })?;
        let saved = parse::parse(&text, family).map_err(|source| {
            let program = format!("{}-save", BackendKind::IptablesLegacy);
            ProgramError::Parse { program, source }
        })?;
        out.extend(listing::of_saved(saved, family, Holder::Kernel(BackendKind::IptablesLegacy)));
    }
    Ok(out)
}
