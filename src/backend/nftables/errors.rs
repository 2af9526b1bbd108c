//! What the kernel's refusals mean, and what to do about them.

use nix::libc;

use crate::sys::netns;

/// Words behind "the kernel refused …": the cause and the cure, where they can be told.
pub fn hint(errno: i32, what: &str, kernel: Option<String>) -> String {
    let mut out = kernel.map(|words| format!(" ({words})")).unwrap_or_default();
    let module = module(what);
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

/// The module that the kernel needs for a rule or chain of ours.
fn module(what: &str) -> Option<&'static str> {
    let modules = [
        ("a nat chain", "nft_chain_nat"),
        ("tproxy-hand-over", "nft_tproxy"),
        ("to-inbound-proxy", "nft_redir"),
        ("to-outbound-proxy", "nft_redir"),
        ("dns-to-agent", "nft_redir"),
        ("dns-zone", "nft_ct"),
        ("tproxy-", "nft_ct"),
        ("invalid-", "nft_ct"),
        ("table inet", "nf_tables"),
    ];
    modules.iter().find(|(part, _)| what.contains(part)).map(|(_, module)| *module)
}
