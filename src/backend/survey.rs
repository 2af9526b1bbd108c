//! Which backends have tables at all, found out before anything is read. This changes nothing: no table
//! is made, and no program is started.

use std::io;

use crate::config::types::{Families, Family};
use crate::plan::model::Table;
use crate::sys::netlink::Netlink;
use crate::sys::proc_net;

use super::nftables::survey::{self as nftables, Tables};

/// The backends in which there is something to read.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// nf_tables' tables; `None` where the kernel has no nf_tables.
    pub nftables: Option<Tables>,
    /// An interception's chains are in the tables of iptables-nft.
    pub iptables_nft: bool,
    /// Families in which the kernel has tables of iptables-legacy.
    pub iptables_legacy: Families,
}

/// Whether an error says that the kernel has no nf_tables.
pub fn is_unsupported(error: &io::Error) -> bool {
    use nix::libc::{EAFNOSUPPORT, EINVAL, EOPNOTSUPP, EPROTONOSUPPORT};
    // nfnetlink answers EINVAL for a subsystem it does not know.
    matches!(error.raw_os_error(), Some(EPROTONOSUPPORT | EOPNOTSUPP | EAFNOSUPPORT | EINVAL))
}

/// Finds out which backends have tables. `netfilter`: an open netfilter socket, if the kernel has one.
///
/// # Errors
///
/// The kernel does not list its tables, or proc(5) cannot be read.
pub fn survey(netfilter: Option<&mut Netlink>) -> io::Result<Survey> {
    let mut out = Survey { iptables_legacy: legacy_tables()?, ..Survey::default() };
    if let Some(netlink) = netfilter {
        match nftables::tables(netlink) {
            Ok(tables) => {
                out.iptables_nft = tables.of_iptables() && nftables::iptables_nft_has_ours(netlink)?;
                out.nftables = Some(tables);
            }
            Err(e) if is_unsupported(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// The families in which iptables-legacy made tables of an interception's kinds.
///
/// # Errors
///
/// proc(5)'s `net/ip_tables_names` is there and cannot be read.
pub fn legacy_tables() -> io::Result<Families> {
    legacy_families(|table| Table::by_name(table).is_some())
}

/// The families in which iptables-legacy made any table: a packet meets `filter` and
/// `security` as well.
///
/// # Errors
///
/// proc(5)'s `net/ip_tables_names` is there and cannot be read.
pub fn any_legacy_tables() -> io::Result<Families> {
    legacy_families(|_| true)
}

/// The families whose file in proc(5) names such a table. The kernel lists tables there as soon as the
/// module is loaded; without the file there is no iptables-legacy.
fn legacy_families(counts: impl Fn(&str) -> bool) -> io::Result<Families> {
    let lists = |name: &str| match proc_net::read(name) {
        Ok(text) => Ok(text.lines().any(&counts)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io::Error::new(e.kind(), format!("cannot read /proc/net/{name}: {e}"))),
    };
    Ok(Families { v4: lists("ip_tables_names")?, v6: lists("ip6_tables_names")? })
}

impl Survey {
    /// Families in which iptables-nft has tables.
    pub fn iptables_nft_tables(&self) -> Families {
        let has = |family| self.nftables.as_ref().is_some_and(|tables| tables.of_iptables_in(family));
        Families { v4: has(Family::V4), v6: has(Family::V6) }
    }
}
