//! What a rule does that the model does not know, as far as it decides where a packet goes.

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// It is not known.
    Unknown,
    /// It is not delivered: what is refused is not delivered either.
    Drops,
    /// It goes where it is addressed; at most it changes where it comes from.
    Accepts,
    /// It goes on to the next rule: what changes decides nothing here.
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

/// Something that a rule does and that the model does not know.
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
