//! Which pod has which address in the node's sets of probed addresses: pure. An address that two pods
//! claim belongs to the newer one, in whichever order they are reported; when that one goes, the address
//! belongs to the other.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The sets' entries: addresses and the UIDs of their pods.
pub type Entries = BTreeMap<IpAddr, String>;

#[derive(Debug)]
struct Claim {
    addresses: BTreeSet<IpAddr>,
    /// When the pod was made, in seconds since 1970, and the order of claims within one second.
    age: (Option<i64>, u64),
}

/// Entries to be added to the sets and deleted from them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EntryChanges {
    pub add: Vec<(IpAddr, String)>,
    pub delete: Vec<(IpAddr, String)>,
}

impl EntryChanges {
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.delete.is_empty()
    }
}

/// The addresses that every pod claims, and the entries that follow.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pods: HashMap<String, Claim>,
    count: u64,
    entries: Entries,
}

impl Claims {
    /// The addresses that a pod claims.
    pub(super) fn of(&self, uid: &str) -> BTreeSet<IpAddr> {
        self.pods.get(uid).map(|claim| claim.addresses.clone()).unwrap_or_default()
    }

    /// The entries that the sets should have.
    pub(super) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Makes exactly these the addresses that a pod claims; gives how the entries change. `created`:
    /// when the pod was made, in seconds since 1970.
    pub(super) fn set(&mut self, uid: &str, created: Option<i64>, addresses: BTreeSet<IpAddr>) -> EntryChanges {
        let before = self.of(uid);
        if addresses.is_empty() {
            self.pods.remove(uid);
        } else {
            self.count += 1;
            let age = self.pods.get(uid).map_or((created, self.count), |claim| claim.age);
            self.pods.insert(uid.to_owned(), Claim { addresses: addresses.clone(), age });
        }
        let mut difference = EntryChanges::default();
        for address in before.union(&addresses) {
            let owner = self.owner(address).map(str::to_owned);
            let old = self.entries.get(address).cloned();
            if owner == old {
                continue;
            }
            match owner {
                // What is there is replaced.
                Some(owner) => {
                    self.entries.insert(*address, owner.clone());
                    difference.add.push((*address, owner));
                }
                None => {
                    self.entries.remove(address);
                    difference.delete.extend(old.map(|old| (*address, old)));
                }
            }
        }
        difference
    }

    fn owner(&self, address: &IpAddr) -> Option<&str> {
        let newest = |one: &(&String, &Claim), other: &(&String, &Claim)| -> Ordering { one.1.age.cmp(&other.1.age) };
        let claimants = self.pods.iter().filter(|(_, claim)| claim.addresses.contains(address));
        claimants.max_by(newest).map(|(uid, _)| uid.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn words(difference: &EntryChanges) -> Vec<String> {
        let add = difference.add.iter().map(|(address, uid)| format!("+{address} {uid}"));
        add.chain(difference.delete.iter().map(|(address, uid)| format!("-{address} {uid}"))).collect()
    }

    #[test]
    fn entries_follow_the_addresses_of_a_pod() {
        let mut claims = Claims::default();
        assert_eq!(
            words(&claims.set("a", Some(1), addresses(&["10.0.0.1", "fd00::1"]))),
            ["+10.0.0.1 a", "+fd00::1 a"]
        );
        assert!(claims.set("a", Some(1), addresses(&["10.0.0.1", "fd00::1"])).is_empty());
        assert_eq!(
            words(&claims.set("a", Some(1), addresses(&["10.0.0.2", "fd00::1"]))),
            ["+10.0.0.2 a", "-10.0.0.1 a"]
        );
        assert_eq!(claims.of("a"), addresses(&["10.0.0.2", "fd00::1"]));
        assert_eq!(words(&claims.set("a", Some(1), addresses(&[]))), ["-10.0.0.2 a", "-fd00::1 a"]);
        assert!(claims.entries().is_empty() && claims.of("a").is_empty());
    }

    #[test]
    fn an_address_that_comes_back_belongs_to_the_newer_pod() {
        let one = || addresses(&["10.0.0.1"]);
        // Told of in either order.
        for order in [["old", "new"], ["new", "old"]] {
            let mut claims = Claims::default();
            for uid in order {
                claims.set(uid, Some(if uid == "old" { 100 } else { 200 }), one());
            }
            assert_eq!(claims.entries()[&"10.0.0.1".parse::<IpAddr>().unwrap()], "new");
            // The older one's address is claimed, so it is not claimed again and again.
            assert_eq!(claims.of("old"), one());
            assert!(claims.set("old", Some(100), one()).is_empty());
            // It goes late, and takes nothing from the newer one.
            assert!(claims.set("old", Some(100), addresses(&[])).is_empty());
            assert_eq!(words(&claims.set("new", Some(200), addresses(&[]))), ["-10.0.0.1 new"]);
        }
        // Within one second the later one is the newer one; what is left has it back.
        let mut claims = Claims::default();
        claims.set("a", Some(1), one());
        assert_eq!(words(&claims.set("b", Some(1), one())), ["+10.0.0.1 b"]);
        assert_eq!(words(&claims.set("b", Some(1), addresses(&[]))), ["+10.0.0.1 a"]);
    }
}
