//! The dimensions in which packets differ, declared once, and how a rule's conditions on
//! one of them are answered: for a single value, and for a set of values.

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{IdList, Interface};
use crate::plan::model::{Cond, CtStates, Masked};

use super::interfaces::{Interfaces, Kinds};

/// User or group ids; [`NOBODY`] stands for "no owner".
pub type Owners = RangeList<u64>;

/// The owner of a packet that no process sent: what the kernel itself sends (a reset by a port
/// where nobody listens, ICMP, the last packets of a closed connection), and what comes in.
pub const NOBODY: u64 = 1 << 32;

/// The owner of such a packet where native nftables asks for it, on any hook. The kernel has no
/// answer then (`nft_meta_get_eval_skugid`, nft_meta.c, breaks off the rule), so that the packet
/// meets no condition on owners, not even a negated one; to iptables it is "not owned by"
/// anybody (`owner_mt`, xt_owner.c).
pub(crate) const NO_ANSWER: u64 = NOBODY + 1;

/// The name of an interface; `None` for a packet without one, such as the output interface of an inbound
/// packet.
pub(crate) type Name<'n> = Option<&'n str>;

/// Calls a macro with the list of all dimensions, in the order in which a set is cut: what
/// makes short sentences comes first. A line of the list has the dimension's name, the name
/// that a rule's conditions have for it, and the types of a set of its values, of one such
/// value, and of the value as it is told to a rule.
macro_rules! each_dimension {
    ($do:ident) => {
        $do! {
            protocol, protocol, RangeList<u8>, u8, u8;
            in_interface, in_interface, Kinds, u32, Name<'n>;
            out_interface, out_interface, Kinds, u32, Name<'n>;
            uid, uid, Owners, u64, u64;
            gid, gid, Owners, u64, u64;
            destination, destination, Addresses, u128, u128;
            port, destination_port, PortList, u16, u16;
            source, source, Addresses, u128, u128;
            source_port, source_port, PortList, u16, u16;
            state, connection_state, RangeList<u8>, u8, CtStates;
        }
    };
}
pub(super) use each_dimension;

/// A condition on one dimension, for a single packet.
pub(super) trait Asks<V> {
    /// Whether a packet with this value meets the condition.
    fn admits(&self, value: V) -> bool;
}

/// A condition on one dimension, for a set of packets.
pub(super) trait Narrows<S> {
    /// The values of a set that meet the condition; `None` if none do.
    fn narrow(&self, set: &S, interfaces: &Interfaces) -> Option<S>;
}

impl<T: Discrete> Asks<T> for RangeList<T> {
    fn admits(&self, value: T) -> bool {
        self.holds(value)
    }
}

impl<T: Discrete> Narrows<RangeList<T>> for RangeList<T> {
    fn narrow(&self, set: &RangeList<T>, _: &Interfaces) -> Option<RangeList<T>> {
        set.overlaps(self).then(|| set.intersection(self))
    }
}

impl Asks<CtStates> for CtStates {
    fn admits(&self, state: CtStates) -> bool {
        self.0 & state.0 != 0
    }
}

impl Narrows<RangeList<u8>> for CtStates {
    fn narrow(&self, set: &RangeList<u8>, interfaces: &Interfaces) -> Option<RangeList<u8>> {
        states(*self).narrow(set, interfaces)
    }
}

/// Connection states as the numbers of their bits.
pub(crate) fn states(states: CtStates) -> RangeList<u8> {
    RangeList::of((0..8).filter(|bit| states.0 & (1 << bit) != 0)).normalised()
}

impl Asks<u64> for Option<Cond<IdList>> {
    fn admits(&self, owner: u64) -> bool {
        self.as_ref().is_none_or(|cond| match u32::try_from(owner) {
            Ok(id) => cond.value.holds(id) != cond.negated,
            // A packet without an owner meets only "not owned by".
            Err(_) => cond.negated && owner == NOBODY,
        })
    }
}

impl Narrows<Owners> for Option<Cond<IdList>> {
    fn narrow(&self, set: &Owners, interfaces: &Interfaces) -> Option<Owners> {
        match self {
            None => Some(set.clone()),
            Some(cond) => owners(cond).narrow(set, interfaces),
        }
    }
}

/// The owners that meet a condition: a packet without an owner meets only "not owned by".
pub fn owners(cond: &Cond<IdList>) -> Owners {
    let named = RangeList::new(cond.value.iter().map(|(a, b)| (u64::from(a), u64::from(b)))).normalised();
    if cond.negated { everyone().minus(&named) } else { named }
}

/// An owner as a number.
pub fn owner(id: Option<u32>) -> u64 {
    id.map_or(NOBODY, u64::from)
}

/// Every owner, and none.
pub fn everyone() -> Owners {
    RangeList::new([(0, NOBODY)])
}

/// Every owner that a process may have.
pub(crate) fn processes() -> Owners {
    RangeList::new([(0, NOBODY - 1)])
}

/// An owner as rules see it: "no owner" becomes `nobody`, which is [`NOBODY`] or [`NO_ANSWER`].
pub(crate) fn known_as(owner: u64, nobody: u64) -> u64 {
    if owner >= NOBODY { nobody } else { owner }
}

/// Replaces "no owner" in a set by `nobody`, which is [`NOBODY`] or [`NO_ANSWER`].
pub(crate) fn make_known_as(owners: &mut Owners, nobody: u64) {
    let other = if nobody == NOBODY { NO_ANSWER } else { NOBODY };
    if owners.holds(other) {
        *owners = owners.minus(&RangeList::of([other]));
        owners.push(nobody, nobody);
        *owners = owners.normalised();
    }
}

impl Asks<Name<'_>> for Option<Cond<Vec<Interface>>> {
    fn admits(&self, name: Name) -> bool {
        let Some(cond) = self else { return true };
        let is = name.is_some_and(|name| cond.value.iter().any(|interface| interface.matches(name)));
        is != cond.negated
    }
}

impl Narrows<Kinds> for Option<Cond<Vec<Interface>>> {
    fn narrow(&self, set: &Kinds, interfaces: &Interfaces) -> Option<Kinds> {
        match self {
            None => Some(set.clone()),
            Some(cond) => interfaces.meeting(cond).narrow(set, interfaces),
        }
    }
}

/// A condition on a packet's mark.
impl Asks<u32> for Option<Cond<Masked>> {
    fn admits(&self, mark: u32) -> bool {
        self.as_ref().is_none_or(|cond| (mark & cond.value.mask == cond.value.value) != cond.negated)
    }
}

/// A condition on the mark of a packet's connection. Without a connection nothing meets it, not even if
/// it is negated.
impl Asks<Option<u32>> for Option<Cond<Masked>> {
    fn admits(&self, mark: Option<u32>) -> bool {
        mark.map_or(self.is_none(), |mark| self.admits(mark))
    }
}
