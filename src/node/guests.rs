//! Limits who is connected to a port that every pod reaches: no address takes the places of others, and
//! none takes those of the node itself, whose probes decide whether the agent is restarted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sys::mutex::lock;

/// The most connections of the node itself.
const OWN: usize = 8;
/// The most connections of all foreign addresses together.
const OTHERS: usize = 32;
/// The most connections of one foreign address.
const OF_ONE: usize = 4;
/// Places reserved for addresses with none open.
const FOR_NEW: usize = 8;

/// Counts the open connections, by their peers' addresses.
#[derive(Debug, Default)]
pub(super) struct Guests(Mutex<Connected>);

#[derive(Debug, Default)]
struct Connected {
    own: usize,
    others: HashMap<IpAddr, usize>,
}

/// A connection that counts until this is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    all: Arc<Guests>,
    /// The peer's address; `None` if the peer is the node itself.
    peer: Option<IpAddr>,
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Connected> {
        lock(&self.0)
    }

    /// Counts a connection of `peer` to the node's address `here`; `None` if there is no place for it. A
    /// peer with the address that it connects to is the node itself: nobody else would get an answer
    /// there.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, here: IpAddr) -> Option<Guest> {
        let (peer, here) = (peer.to_canonical(), here.to_canonical());
        let peer = (peer != here).then_some(peer);
        let mut connected = self.lock();
        match peer {
            None if connected.own == OWN => return None,
            None => connected.own += 1,
            Some(peer) => {
                let all: usize = connected.others.values().sum();
                let of_one = connected.others.entry(peer).or_default();
                let places = if *of_one == 0 { OTHERS } else { OTHERS - FOR_NEW };
                if all >= places || *of_one >= OF_ONE {
                    // One that has none is not kept.
                    connected.others.retain(|_, count| *count > 0);
                    return None;
                }
                *of_one += 1;
            }
        }
        Some(Guest { all: self.clone(), peer })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut connected = self.all.lock();
        match self.peer {
            None => connected.own -= 1,
            Some(peer) => {
                if let Some(count) = connected.others.get_mut(&peer) {
                    *count -= 1;
                }
                connected.others.retain(|_, count| *count > 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    /// The connections that are admitted of `tries` tries of each of these addresses.
    fn fill(guests: &Arc<Guests>, addresses: &[IpAddr], tries: usize) -> Vec<Guest> {
        let each = addresses.iter().flat_map(|address| std::iter::repeat_n(*address, tries));
        each.filter_map(|address| guests.admit(address, NODE)).collect()
    }

    fn pods(numbers: std::ops::Range<u8>) -> Vec<IpAddr> {
        numbers.map(|number| Ipv4Addr::new(10, 244, 0, number).into()).collect()
    }

    #[test]
    fn no_address_takes_the_places_of_others_and_nobody_those_of_the_node() {
        let guests = Arc::<Guests>::default();
        let one = fill(&guests, &pods(1..2), 100);
        assert_eq!(one.len(), OF_ONE);
        // It is the same one, however its address is written.
        assert!(guests.admit("::ffff:10.244.0.1".parse().unwrap(), NODE).is_none());
        let many = fill(&guests, &pods(2..10), 2);
        assert_eq!(many.len(), 16);
        // Of the last places nobody gets a second one.
        let more: Vec<Guest> = fill(&guests, &pods(10..60), 3);
        assert_eq!(one.len() + many.len() + more.len(), OTHERS);
        let of = |guest: &Guest| guest.peer.unwrap();
        assert!(FOR_NEW <= more.iter().map(of).collect::<std::collections::HashSet<_>>().len());
        assert!(guests.admit(pods(100..101)[0], NODE).is_none());
        let own = fill(&guests, &[NODE], 100);
        assert_eq!(own.len(), OWN);
        // Whoever goes leaves a place, and nothing is kept of who has gone.
        drop(one);
        assert!(guests.admit(pods(100..101)[0], NODE).is_some());
        drop((many, more, own));
        let left = guests.lock();
        assert!(left.own == 0 && left.others.is_empty(), "{left:?}");
    }
}
