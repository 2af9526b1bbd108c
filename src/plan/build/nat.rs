//! The nat table: where connections are redirected.

use crate::config::interception::OwnerGroups;
use crate::config::ranges::RangeList;
use crate::config::types::{Interface, Mode, Port, PortSelection, RangeSelection};
use crate::plan::model::{ChainName, Cond, Matches, Table, Verdict};
use crate::plan::why::Why;

use super::{Draft, Owner, dns, loopback, mesh_source, reversed};

/// Short names for the jumps to the chains that redirect.
const TO_REDIRECT: Verdict = Verdict::Jump(ChainName::Redirect);
const TO_IN_REDIRECT: Verdict = Verdict::Jump(ChainName::InRedirect);

pub(super) fn build(draft: &mut Draft) {
    virtual_interfaces(draft);
    excluded_interfaces(draft, Table::Nat);
    redirections(draft);
    inbound(draft);
    draft.rule(Table::Nat, ChainName::Output, Matches::any(), Verdict::Jump(ChainName::OutputMain), Why::OutboundEntry);
    outbound(draft);
}

/// Adds a nat rule.
fn nat(draft: &mut Draft, chain: ChainName, matches: Matches, verdict: Verdict, why: Why) {
    draft.rule(Table::Nat, chain, matches, verdict, why);
}

/// The rules for virtual machines in the pod: their packets come in by an interface, but are on their
/// way out. They stand first in the hook, so that these packets never count as inbound.
fn virtual_interfaces(draft: &mut Draft) {
    let i = draft.interception;
    if i.virtual_interfaces.is_empty() {
        return;
    }
    let interfaces: Vec<Interface> = i.virtual_interfaces.iter().rev().cloned().collect();
    let from_vm = Matches::any().in_by(interfaces);
    match &i.outbound_ranges {
        RangeSelection::All => {
            nat(draft, ChainName::Prerouting, from_vm.clone(), TO_REDIRECT, Why::VirtualInterface);
        }
        RangeSelection::Only(ranges) => {
            let matches = from_vm.clone().to(reversed(ranges));
            nat(draft, ChainName::Prerouting, matches, TO_REDIRECT, Why::VirtualInterface);
        }
    }
    nat(draft, ChainName::Prerouting, from_vm, Verdict::Return, Why::VirtualInterfaceRest);
}

pub(super) fn excluded_interfaces(draft: &mut Draft, table: Table) {
    let interfaces = &draft.interception.exclude_interfaces;
    if interfaces.is_empty() {
        return;
    }
    let incoming = Matches::any().in_by(interfaces.clone());
    let outgoing = Matches::any().out_by(interfaces.clone());
    draft.rule(table, ChainName::Prerouting, incoming, Verdict::Return, Why::ExcludedInterface);
    draft.rule(table, ChainName::Output, outgoing, Verdict::Return, Why::ExcludedInterface);
}

fn redirections(draft: &mut Draft) {
    let i = draft.interception;
    let to_inbound = Verdict::Redirect(i.inbound_port);
    let to_outbound = Verdict::Redirect(i.outbound_port);
    nat(draft, ChainName::InRedirect, Matches::tcp(), to_inbound, Why::ToInboundProxy);
    nat(draft, ChainName::Redirect, Matches::tcp(), to_outbound, Why::ToOutboundProxy);
}

fn inbound(draft: &mut Draft) {
    let i = draft.interception;
    let tunnel = Matches::tcp().port(i.tunnel_port);
    nat(draft, ChainName::Inbound, tunnel, Verdict::Return, Why::TunnelPort);
    // With TPROXY inbound traffic is taken in the mangle table.
    if i.mode == Mode::Tproxy || !i.takes_inbound() {
        return;
    }
    let entry = Verdict::Jump(ChainName::Inbound);
    nat(draft, ChainName::Prerouting, Matches::tcp(), entry, Why::InboundEntry);
    match &i.inbound_ports {
        PortSelection::All => {
            excluded_inbound_ports(draft, Table::Nat);
            nat(draft, ChainName::Inbound, Matches::tcp(), TO_IN_REDIRECT, Why::AllInbound);
        }
        PortSelection::Only(ports) => {
            let matches = Matches::tcp().ports(ports.clone());
            nat(draft, ChainName::Inbound, matches, TO_IN_REDIRECT, Why::InboundPort);
        }
    }
}

pub(super) fn excluded_inbound_ports(draft: &mut Draft, table: Table) {
    let ports = &draft.interception.inbound_ports_exclude;
    if !ports.is_empty() {
        let matches = Matches::tcp().ports(ports.clone());
        draft.rule(table, ChainName::Inbound, matches, Verdict::Return, Why::ExcludedInboundPort);
    }
}

fn outbound(draft: &mut Draft) {
    let i = draft.interception;
    let main = ChainName::OutputMain;
    // Before anything about the proxy, so that these ports are free for everyone,
    // calls of the pod to itself included.
    if !i.outbound_ports_exclude.is_empty() {
        let matches = Matches::tcp_and_udp().ports(i.outbound_ports_exclude.clone());
        nat(draft, main.clone(), matches, Verdict::Return, Why::ExcludedOutboundPort);
    }
    let to_app = Matches::any().from(mesh_source()).out_by(vec![Interface::lo()]);
    nat(draft, main.clone(), to_app, Verdict::Return, Why::ProxyToApp);
    for owner in Owner::of_proxy(i) {
        proxy(draft, owner);
    }
    owners(draft);
    // After the proxy's own rules: its queries to the real servers must get out.
    dns::redirect(draft);
    nat(draft, main.clone(), Matches::any().to(loopback(i)), Verdict::Return, Why::Loopback);
    // Exclusions before inclusions: a range inside an included one can be let out.
    if !i.outbound_ranges_exclude.is_empty() {
        let matches = Matches::any().to(i.outbound_ranges_exclude.clone());
        nat(draft, main.clone(), matches, Verdict::Return, Why::ExcludedRange);
    }
    if !i.outbound_ports.is_empty() {
        let matches = Matches::tcp().ports(i.outbound_ports.clone());
        nat(draft, main.clone(), matches, TO_REDIRECT, Why::IncludedPort);
    }
    match &i.outbound_ranges {
        RangeSelection::All => nat(draft, main, Matches::any(), TO_REDIRECT, Why::AllOutbound),
        RangeSelection::Only(ranges) => {
            nat(draft, main, Matches::any().to(ranges.clone()), TO_REDIRECT, Why::IncludedRange);
        }
    }
}

/// The three rules about one owner of the proxy.
fn proxy(draft: &mut Draft, owner: Owner) {
    let i = draft.interception;
    let main = ChainName::OutputMain;
    let lo = || vec![Interface::lo()];
    let dns = i.dns.is_some();
    // The app called its own service; the proxy picked its own pod as the target. The
    // call has to enter through the inbound side. DNS over TCP is exempt for users: the
    // agent asks a local server directly. For groups it never is.
    let exempt_dns = dns && matches!(owner, Owner::User(_));
    let ports = exempt_dns.then_some(Port::DNS).into_iter().chain([i.tunnel_port]);
    let itself = Matches::tcp().not_to(loopback(i)).out_by(lo()).not_ports(ports).owned_by(owner);
    nat(draft, main.clone(), itself, TO_IN_REDIRECT, Why::AppToItself);
    // Unless a loopback range is to be intercepted, what others send over lo is the pod's
    // own business. DNS over TCP to a local server may still have to be captured.
    let loopback_wanted = matches!(&i.outbound_ranges, RangeSelection::Only(ranges) if ranges.has_loopback());
    if !loopback_wanted {
        let others = if dns { Matches::tcp().not_ports([Port::DNS]) } else { Matches::any() };
        let others = others.out_by(lo()).not_owned_by(owner);
        nat(draft, main.clone(), others, Verdict::Return, Why::LocalTraffic);
    }
    nat(draft, main, Matches::any().owned_by(owner), Verdict::Return, Why::ProxyOwn);
}

/// The rules that exclude traffic by its sender. They stand behind the proxy's rules, which they must
/// not override.
fn owners(draft: &mut Draft) {
    let i = draft.interception;
    let by_gid = |negated, gids: &[u32]| Matches {
        gid: Some(Cond { negated, value: RangeList::of(gids.iter().copied()) }),
        ..Matches::any()
    };
    if !i.outbound_uids_exclude.is_empty() {
        let matches = Matches { uid: Some(Cond::is(i.outbound_uids_exclude.clone())), ..Matches::any() };
        nat(draft, ChainName::OutputMain, matches, Verdict::Return, Why::ExcludedUser);
    }
    match &i.owner_groups {
        OwnerGroups::Except(gids) if gids.is_empty() => {}
        OwnerGroups::Except(gids) => {
            nat(draft, ChainName::OutputMain, by_gid(false, gids), Verdict::Return, Why::ExcludedGroup);
        }
        OwnerGroups::Only(gids) => {
            // No group at all: nobody's traffic is taken, a rule without conditions.
            let matches = if gids.is_empty() { Matches::any() } else { by_gid(true, gids) };
            nat(draft, ChainName::OutputMain, matches, Verdict::Return, Why::NotIncludedGroup);
        }
    }
}
