//! What rules of a table refer to by name or number.

use super::sets::{Elements, VerdictMap};

/// The sets and maps of a table, and the interfaces that its rules mean by number.
pub trait TableContents {
    /// The elements of a set, `None` for one that is not known or not of plain keys.
    fn elements(&self, name: &str) -> Option<&Elements>;

    /// A map of verdicts, `None` for one that is not known or not of plain keys.
    fn verdicts(&self, name: &str) -> Option<&VerdictMap>;

    /// The name of the interface with an index, `None` where none has it.
    fn interface(&self, index: u32) -> Option<&str>;
}
