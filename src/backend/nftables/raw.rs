//! Podweir's tables as listed, including what the model does not know, so that they can be restored.

use crate::sys::netlink::Received;

use super::frame::Frame;
use super::nfta::*;
use super::wire::{Msg, NfMessage, TYPE_MASK, flagged_attributes};

/// Attributes by kind, with flags.
pub type RawAttributes = Vec<(u16, Vec<u8>)>;

/// Messages that would make a table again, attributes as listed.
#[derive(Debug, Clone, Default)]
pub struct RawTable {
    pub messages: Vec<(Msg, RawAttributes)>,
    pub frame: Frame,
}

impl RawTable {
    /// Keeps of a listed object what making it takes: not its handle, use count and the like.
    pub(super) fn keep(&mut self, msg: Msg, message: &Received) {
        let wanted: &[u16] = match msg {
            Msg::NewTable => &[NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_USERDATA],
            Msg::NewChain => &[
                NFTA_CHAIN_TABLE,
                NFTA_CHAIN_NAME,
                NFTA_CHAIN_HOOK,
                NFTA_CHAIN_POLICY,
                NFTA_CHAIN_TYPE,
                NFTA_CHAIN_FLAGS,
                NFTA_CHAIN_USERDATA,
            ],
            Msg::NewSet => &[
                NFTA_SET_TABLE,
                NFTA_SET_NAME,
                NFTA_SET_FLAGS,
                NFTA_SET_KEY_TYPE,
                NFTA_SET_KEY_LEN,
                NFTA_SET_DATA_TYPE,
                NFTA_SET_DATA_LEN,
                NFTA_SET_POLICY,
                NFTA_SET_DESC,
                NFTA_SET_TIMEOUT,
                NFTA_SET_GC_INTERVAL,
                NFTA_SET_USERDATA,
                NFTA_SET_OBJ_TYPE,
                NFTA_SET_EXPR,
                NFTA_SET_EXPRESSIONS,
            ],
            Msg::NewSetElem => &[NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS],
            _ => &[NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA],
        };
        let kept = flagged_attributes(message.attributes()).filter(|a| wanted.contains(&(a.kind & TYPE_MASK)));
        self.messages.push((msg, kept.map(|a| (a.kind, a.value.to_vec())).collect()));
    }
}
