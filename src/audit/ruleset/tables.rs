//! Everything that was listed, ready for packets to be walked through.

use crate::backend::listing::{ListedChain, ListedTable};
use crate::config::types::Families;

use super::{FoundChain, Ruleset, TableId};

impl Ruleset {
    /// The rules that packets meet. Tables that are switched off are left out.
    pub fn of_tables(tables: &[ListedTable]) -> Self {
        let chains = |table: &ListedTable| {
            let id = id(table);
            let families = table.families;
            let found = move |chain: &ListedChain| FoundChain {
                table: id.clone(),
                name: chain.name.clone(),
                base: chain.base,
                families,
                rules: chain.rules.clone(),
            };
            table.chains.iter().map(found).collect::<Vec<_>>()
        };
        Self::new(tables.iter().filter(|table| !table.dormant).flat_map(chains))
    }
}

fn id(table: &ListedTable) -> TableId {
    // Tables of nftables may have one name in several families; of devices it is said.
    let family = match table.families {
        _ if !table.holder.is_nftables() || table.name.contains(' ') => "",
        Families { v4: true, v6: true } => "inet ",
        Families { v4: true, .. } => "ip ",
        _ => "ip6 ",
    };
    TableId { source: table.holder.name().into(), name: format!("{family}{}", table.name).into() }
}
