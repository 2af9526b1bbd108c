//! Connections that are older than the rules, and that no rule sees any more.

use crate::audit::escapes::kind::Severity;
use crate::audit::established::words::groups;
use crate::audit::established::{Established, Fate};

use super::Lint;

/// Lints about connections that pass the proxy by although rules would take them.
pub fn lints(found: &Established) -> Vec<Lint> {
    let lint = |group: crate::audit::established::words::ConnectionGroup| {
        Lint {
        severity: Severity::High,
        id: "established-past-proxy",
        subject: group.what,
        message: match group.count {
            1 => "1 established connection is older than the rules: it passes the proxy by until it ends".into(),
            count => {
                format!("{count} established connections are older than the rules: they pass the proxy by until they end")
            }
        },
        advice: "podweir init --established reset, with the options that it was run with, ends them; so does restarting the process".into(),
    }
    };
    groups(found, Fate::Passes).into_iter().map(lint).collect()
}
