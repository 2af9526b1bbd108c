//! Names of interfaces that rules mean by number: `iif` and `oif` compare the index that
//! an interface has in its network namespace.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::decode::Listed;
use super::expr::{Expr, meta};

/// Interfaces by index, as they were when the rules were read.
#[derive(Debug, Clone, Default)]
pub struct Links(Arc<HashMap<u32, String>>);

impl Links {
    /// The interfaces of the namespace that the calling thread is in; they are listed only if one of the
    /// rules refers to an index.
    ///
    /// # Errors
    ///
    /// The kernel does not list its interfaces.
    pub fn for_rules<'a>(mut rules: impl Iterator<Item = &'a Listed>) -> io::Result<Self> {
        let by_index = |expr: &Expr| matches!(expr, Expr::Meta(meta::IIF | meta::OIF));
        if !rules.any(|rule| rule.exprs.iter().any(by_index)) {
            return Ok(Self::default());
        }
        let listed = nix::net::if_::if_nameindex()?;
        let named = listed.iter().filter_map(|link| {
            let name = link.name().to_str().ok()?;
            Some((link.index(), name.to_owned()))
        });
        Ok(Self(Arc::new(named.collect())))
    }

    /// The name of the interface with this index, if there is one.
    pub fn name(&self, index: u32) -> Option<&str> {
        self.0.get(&index).map(String::as_str)
    }
}
