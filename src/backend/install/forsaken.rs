//! Connections that lose the mark by which their packets are routed. With TPROXY the proxy connects to
//! the app from its client's address, and the app's answers come back only by the mark that connection
//! tracking has for them. If the rules for a mark are removed, such an answer would leave the pod, past
//! the proxy, to a client that expects another one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::backend::connections::{self, Ended, Kernel, TcpConnection};
use crate::backend::routing;
use crate::config::types::Family;
use crate::plan::model::Plan;
use crate::sys::conntrack::Tracked;
use crate::sys::inet_diag::{TcpSocket, TcpState};
use crate::sys::netlink::Netlink;

/// The marks that rules set on packets and connections, by family, without the proxy's own.
pub(super) type Marks = BTreeSet<(Family, u32)>;

pub(super) fn marks<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> Marks {
    let of_one = |plan: &Plan| {
        let marks = plan.marks();
        plan.families.iter().flat_map(|family| marks.iter().map(move |mark| (family, mark.get()))).collect::<Vec<_>>()
    };
    plans.into_iter().flat_map(of_one).collect()
}

/// Marks for which there are no rules any more.
#[derive(Debug, Clone)]
pub(super) enum Lost {
    These(Marks),
    /// Every mark but these: it is not known which ones a killed run removed.
    AllBut(Marks),
}

impl Lost {
    /// The marks that were known before a change, and are not after it.
    pub(super) fn by_change(was: &Marks, is: &Marks) -> Self {
        Lost::These(was - is)
    }

    fn has(&self, address: SocketAddr, mark: u32) -> bool {
        let key = (if address.is_ipv4() { Family::V4 } else { Family::V6 }, mark);
        match self {
            Lost::These(marks) => marks.contains(&key),
            Lost::AllBut(marks) => mark != 0 && !marks.contains(&key),
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Lost::These(marks) if marks.is_empty())
    }
}

/// Ends the connections that need these marks, at both ends; returns what was ended and what could not
/// be, in words. A failure is no reason to undo the change.
pub(super) fn end(lost: &Lost, route: &mut Netlink) -> Option<String> {
    if lost.is_nothing() || !connections::possible() {
        return None;
    }
    let Ended { ended, breaks, left, problem } = match try_end(lost, route) {
        Ok(ended) => ended,
        Err(e) => {
            return Some(format!(
                "the proxy's connections to the app under the rules before cannot be looked for: {e}; they hang, and what the app still sends by them leaves the pod"
            ));
        }
    };
    let why = problem.map(|e| format!(" ({e})")).unwrap_or_default();
    let connections = |count: usize| if count == 1 { "1 connection".into() } else { format!("{count} connections") };
    match (ended + breaks, left) {
        (0, 0) => None,
        (over, 0) => Some(format!(
            "ended {} of the proxy to the app: no rule knows the mark any more by which the answers came back",
            connections(over)
        )),
        (_, left) => Some(format!(
            "{} of the proxy to the app cannot be ended{why}: what the app still sends by them leaves the pod",
            connections(left)
        )),
    }
}

fn try_end(lost: &Lost, route: &mut Netlink) -> io::Result<Ended> {
    let own: HashSet<IpAddr> = routing::addresses(route)?.into_iter().map(|(_, address)| address).collect();
    let mut kernel = Kernel::open()?;
    let tracked = kernel.all_tracked()?;
    let found = carried(lost, &own, &kernel.sockets()?, tracked);
    // Those that are closed at both ends send their last packets by the mark as well, but
    // nobody misses them.
    let (used, over): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|c| c.sockets.iter().any(|socket| socket.state != TcpState::Over));
    connections::end(&mut kernel, over.iter());
    Ok(connections::end(&mut kernel, used.iter()))
}

/// The connections that a process in the pod has opened from an address that is not the pod's: with a
/// lost mark, or without one because their first packet is dropped by the guard.
fn carried(lost: &Lost, own: &HashSet<IpAddr>, sockets: &[TcpSocket], tracked: Vec<Tracked>) -> Vec<TcpConnection> {
    let by_ends: HashMap<_, &TcpSocket> = sockets
        .iter()
        .filter(|socket| !matches!(socket.state, TcpState::Listening | TcpState::Remembered))
        .map(|socket| ((socket.local, socket.remote), socket))
        .collect();
    let is_lost = |from: SocketAddr, mark| lost.has(from, mark) && !own.contains(&from.ip());
    let mut out = Vec::new();
    for tracked in tracked {
        let (from, to) = (tracked.original.from, tracked.original.to);
        // A client's own connection with the proxy begins outside, and needs no mark.
        let Some(of_proxy) = by_ends.get(&(from, to)) else { continue };
        if is_lost(from, tracked.mark) {
            // The app's end first: as long as the proxy's is there, a killed run leaves word of both.
            let sockets = [by_ends.get(&(to, from)), Some(of_proxy)].into_iter().flatten();
            out.push(TcpConnection {
                sockets: sockets.map(|socket| (*socket).clone()).collect(),
                tracked: Some(tracked),
            });
        }
    }
    let begins = |socket: &&TcpSocket| socket.state == TcpState::Opening && is_lost(socket.local, socket.mark);
    let unanswered = sockets.iter().filter(begins).filter(|s| !by_ends.contains_key(&(s.remote, s.local)));
    out.extend(unanswered.map(|socket| TcpConnection { sockets: vec![socket.clone()], tracked: None }));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::conntrack::Ends;
    use crate::sys::inet_diag::tests::socket;

    const CLIENT: &str = "10.244.0.1:40000";
    const APP: &str = "10.244.0.6:8080";

    fn tracked(from: &str, to: &str, mark: u32) -> Tracked {
        let ends = |from: &str, to: &str| Ends { from: from.parse().unwrap(), to: to.parse().unwrap() };
        Tracked::of(ends(from, to), ends(to, from), mark)
    }

    #[test]
    fn what_only_a_lost_mark_carries_is_found_and_nothing_else() {
        let own = HashSet::from(["10.244.0.6".parse().unwrap()]);
        let pair = |state, from: &str, to: &str| {
            [socket(state, from, to, 0, Some(true)), socket(state, to, from, 1000, Some(false))]
        };
        let count = |lost: &Lost, sockets: &[TcpSocket], from: &str, mark| {
            carried(lost, &own, sockets, vec![tracked(from, APP, mark)]).len()
        };
        let lost = Lost::These(Marks::from([(Family::V4, 1337)]));
        let open = pair(TcpState::Established, CLIENT, APP);
        assert_eq!(count(&lost, &open, CLIENT, 1337), 1);
        assert_eq!(count(&lost, &open, CLIENT, 1), 0);
        assert_eq!(count(&Lost::These(Marks::from([(Family::V6, 1337)])), &open, CLIENT, 1337), 0);
        // Not known any more what there was.
        let all_but = Lost::AllBut(Marks::from([(Family::V4, 7)]));
        assert_eq!([1337, 7, 0].map(|mark| count(&all_but, &open, CLIENT, mark)), [1, 0, 0]);
        // A client's own connection with the proxy, marked by mistake: it leaves the pod.
        assert_eq!(count(&lost, &open[1..], CLIENT, 1337), 0);
        // The app's end is gone already.
        assert_eq!(count(&lost, &open[..1], CLIENT, 1337), 1);
        // Both addresses are the pod's: it needs no mark.
        let within = "10.244.0.6:40000";
        assert_eq!(count(&lost, &pair(TcpState::Established, within, APP), within, 1337), 0);
        // What is only remembered sends nothing by itself.
        assert_eq!(count(&lost, &pair(TcpState::Remembered, CLIENT, APP), CLIENT, 1337), 0);
        assert_eq!(count(&lost, &pair(TcpState::Over, CLIENT, APP), CLIENT, 1337), 1);
    }

    #[test]
    fn what_begins_is_told_by_its_socket() {
        let lost = Lost::These(Marks::from([(Family::V4, 1337)]));
        let begins = |local: &str, mark| {
            let mut begins = socket(TcpState::Opening, local, APP, 0, Some(true));
            begins.mark = mark;
            carried(&lost, &HashSet::from(["10.244.0.6".parse().unwrap()]), &[begins], Vec::new()).len()
        };
        assert_eq!((begins(CLIENT, 1337), begins(CLIENT, 0), begins("10.244.0.6:40000", 1337)), (1, 0, 0));
    }

    #[test]
    fn marks_are_a_familys() {
        let (one, both) = (Marks::from([(Family::V4, 1337)]), [Family::V4, Family::V6].map(|f| (f, 1337)).into());
        assert!(Lost::by_change(&one, &both).is_nothing());
        let lost = Lost::by_change(&both, &one);
        assert!(lost.has("[fd00::1]:1".parse().unwrap(), 1337) && !lost.has(CLIENT.parse().unwrap(), 1337));
    }
}
