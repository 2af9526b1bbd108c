//! What the kernel's refusals mean, and what to do about them.

use nix::libc;

use crate::sys::netns;

use super::expr::Expr;

/// The text behind "the kernel refused …": the cause and the cure, where they are known. `module`: the
/// one that the refused object needs; `kernel`: the kernel's own message.
pub(super) fn hint(errno: i32, module: Option<&str>, kernel: Option<String>) -> String {
    let mut out = kernel.map(|words| format!(" ({words})")).unwrap_or_default();
    match (errno, module) {
        (libc::EPERM, _) => {
            let cause = netns::net_admin_hint().unwrap_or(
                "the process has CAP_NET_ADMIN: the table may belong to another program alone (nft's flag owner, see nft list tables), which has to end first",
            );
            out += &format!("; {cause}");
        }
        (libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT, Some(module)) => {
            out += &format!(
                "; the kernel has no module {module}: load it on the node (modprobe {module}), or use --backend iptables-legacy"
            );
        }
        _ => {}
    }
    out
}

/// The module that has the rarest of a rule's expressions, where one is not part of
/// nf_tables itself (each registers its expressions as `nft-expr-NAME`).
pub(super) fn module_of(expressions: &[Expr]) -> Option<&'static str> {
    let mut modules = expressions.iter().filter_map(|expression| match expression {
        Expr::Tproxy { .. } => Some("nft_tproxy"),
        Expr::Redir => Some("nft_redir"),
        Expr::Ct(_) | Expr::CtSet(_) => Some("nft_ct"),
        _ => None,
    });
    // A target is the rarer kind, and stands last.
    modules.next_back()
}

/// The module that registers a kind of base chain.
pub(super) fn module_of_chain(kind: &str) -> Option<&'static str> {
    (kind == "nat").then_some("nft_chain_nat")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::encode::Encoder;
    use crate::config::types::{Families, Mark, Port};
    use crate::plan::model::{Cond, CtStates, Matches, Rule, Verdict};
    use crate::plan::why::Why;

    #[test]
    fn a_module_is_told_by_what_is_in_a_rule_and_not_by_its_words() {
        let module = |matches: Matches, verdict: Verdict, comment: &str| {
            let why = Why::Foreign(comment.into());
            let rule = Rule { families: Families::V4, matches, verdict, why, counters: None, origin: None };
            let rules = Encoder::starting_at(Families::V4, 1).rule(&rule, false);
            rules.iter().map(|rule| module_of(&rule.exprs)).collect::<Vec<_>>()
        };
        let any = Matches::default;
        let known = Matches { connection_state: Some(Cond::is(CtStates::ESTABLISHED)), ..any() };
        let port = Port::literal(15001);
        let to_proxy = Verdict::Tproxy { port, mark: Mark::new(1), closed: false };
        for (matches, verdict, wanted) in [
            (any(), Verdict::Redirect(port), Some("nft_redir")),
            (known.clone(), Verdict::Redirect(port), Some("nft_redir")),
            (known.clone(), to_proxy, Some("nft_tproxy")),
            (known, Verdict::Drop, Some("nft_ct")),
            (any(), Verdict::CtZone(1), Some("nft_ct")),
            (any(), Verdict::Return, None),
        ] {
            // Reasons for rules of other kinds, and words of the kind that a table's name has.
            for comment in ["to-inbound-proxy: x", "tproxy-hand-over: y", "a nat chain in table inet"] {
                let modules = module(matches.clone(), verdict.clone(), comment);
                assert!(modules.iter().all(|module| *module == wanted), "{verdict:?} {comment}: {modules:?}");
            }
        }
    }

    #[test]
    fn a_missing_module_is_named_with_its_cure() {
        let missing = hint(libc::ENOENT, Some("nft_redir"), None);
        assert!(missing.contains("modprobe nft_redir"), "{missing}");
        // What nothing is known to be missing for, and what is no matter of modules.
        assert_eq!((hint(libc::ENOENT, None, None), hint(libc::EEXIST, Some("nft_redir"), None)), Default::default());
        assert_eq!(hint(libc::EINVAL, None, Some("words".into())), " (words)");
    }
}
