//! TPROXY: inbound connections are handed to the proxy's socket with both addresses
//! as they are. Marks, kept with the connection, bring every later packet of it to the
//! same socket: incoming ones by the routing table for marked packets, the app's
//! answers because they get the connection's mark back.

use crate::config::types::{Interface, Mark, PortSelection};
use crate::plan::model::{ChainName, Cond, CtStates, Matches, Table, Verdict};
use crate::plan::why::Why;

use super::{Draft, Owner, loopback, mesh_source, nat};

fn mangle_rule(draft: &mut Draft, chain: ChainName, matches: Matches, verdict: Verdict, why: Why) {
    draft.rule(Table::Mangle, chain, matches, verdict, why);
}

/// The rules for excluded interfaces, which stand before those that drop INVALID packets.
pub(super) fn before_invalid(draft: &mut Draft) {
    nat::excluded_interfaces(draft, Table::Mangle);
}

pub(super) fn mangle(draft: &mut Draft) {
    loop_guards(draft);
    if draft.interception.takes_inbound() {
        inbound(draft);
    }
    connection_marks(draft);
}

/// The first rules of ISTIO_INBOUND: packets that have been through the proxy, or never need it.
fn loop_guards(draft: &mut Draft) {
    let i = draft.interception;
    let lo = || vec![Interface::lo()];
    let chain = ChainName::Inbound;
    let marked = Matches::tcp().marked(i.mark);
    mangle_rule(draft, chain.clone(), marked, Verdict::Return, Why::TproxyMarked);
    let from_proxy = Matches::tcp().from(mesh_source()).in_by(lo());
    mangle_rule(draft, chain.clone(), from_proxy, Verdict::Return, Why::TproxyProxyToApp);
    let local = Matches::tcp().in_by(lo()).not_marked(Mark::OUTBOUND);
    mangle_rule(draft, chain, local, Verdict::Return, Why::TproxyLocal);
}

fn inbound(draft: &mut Draft) {
    let i = draft.interception;
    let entry = Verdict::Jump(ChainName::Inbound);
    mangle_rule(draft, ChainName::Prerouting, Matches::tcp(), entry, Why::InboundEntry);
    let taken = match &i.inbound_ports {
        PortSelection::All => {
            nat::excluded_inbound_ports(draft, Table::Mangle);
            Matches::tcp()
        }
        PortSelection::Only(ports) => Matches::tcp().ports(ports.clone()),
    };
    // Packets of a connection the proxy already has go to its socket; asking for a
    // listener again would find none for them.
    let known = CtStates::RELATED.union(CtStates::ESTABLISHED);
    let established = Matches { connection_state: Some(Cond::is(known)), ..taken.clone() };
    let divert = Verdict::Jump(ChainName::Divert);
    mangle_rule(draft, ChainName::Inbound, established, divert, Why::TproxyEstablished);
    mangle_rule(draft, ChainName::Inbound, taken, Verdict::Jump(ChainName::Tproxy), Why::TproxyNew);

    let set = Verdict::SetMark(i.mark.into());
    mangle_rule(draft, ChainName::Divert, Matches::any(), set, Why::TproxyDivertMark);
    mangle_rule(draft, ChainName::Divert, Matches::any(), Verdict::Accept, Why::TproxyDivertAccept);
    let hand_over = Verdict::Tproxy { port: i.inbound_port, mark: i.mark, closed: true };
    let outside = Matches::tcp().not_to(loopback(i));
    mangle_rule(draft, ChainName::Tproxy, outside, hand_over, Why::TproxyHandOver);
}

fn connection_marks(draft: &mut Draft) {
    let i = draft.interception;
    let lo = || vec![Interface::lo()];
    let marked = Matches::tcp().marked(i.mark);
    mangle_rule(draft, ChainName::Prerouting, marked.clone(), Verdict::SaveMark, Why::TproxySaveMark);
    // The proxy marks its connection to the app; that one must reach the app.
    let to_app = marked.out_by(lo());
    mangle_rule(draft, ChainName::Output, to_app, Verdict::Return, Why::TproxyProxyMarked);
    for owner in Owner::of_proxy(i) {
        let itself = Matches::tcp().not_to(loopback(i)).out_by(lo()).owned_by(owner);
        let set = Verdict::SetMark(Mark::OUTBOUND.into());
        mangle_rule(draft, ChainName::Output, itself, set, Why::TproxyProxyOut);
    }
    let answers = Matches { connection_mark: Some(Cond::is(i.mark.into())), ..Matches::tcp() };
    mangle_rule(draft, ChainName::Output, answers, Verdict::RestoreMark, Why::TproxyRestoreMark);
}
