//! The effect of statements that the model does not know, as far as it decides where a packet goes.

/// What an unknown statement does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing is known of the statement's effect.
    Unknown,
    /// The packet is not delivered, be it dropped or refused.
    Drops,
    /// The packet is delivered to its destination; at most its source is changed.
    Accepts,
    /// The packet goes on to the next rule, unchanged in all that decides here.
    None,
}

impl Effect {
    pub const ALL: [Effect; 4] = [Effect::Unknown, Effect::Drops, Effect::Accepts, Effect::None];

    pub fn name(self) -> &'static str {
        match self {
            Effect::Unknown => "unknown",
            Effect::Drops => "drops",
            Effect::Accepts => "accepts",
            Effect::None => "none",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effect| effect.name() == name)
    }
}

/// A statement that the model does not know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unmodelled {
    /// In the words of the backend that it was read from.
    pub words: Box<str>,
    pub effect: Effect,
}

impl Unmodelled {
    pub fn new(words: impl Into<Box<str>>, effect: Effect) -> Self {
        Self { words: words.into(), effect }
    }
}
