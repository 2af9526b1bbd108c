//! Targets that the model does not know, by what they do to a packet.

/// What a target does that the model does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Unknown,
    /// Refused is not delivered.
    Drops,
    /// Changes where a packet comes from, not where it goes.
    Accepts,
    /// Changes something that decides nothing here, and lets the packet go on.
    None,
}

pub fn effect(words: &str) -> Effect {
    const GOES_ON: &[&str] = &[
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "CONNSECMARK",
        "DSCP",
        "ECN",
        "HL",
        "IDLETIMER",
        "LED",
        "RATEEST",
        "SECMARK",
        "SET",
        "TCPMSS",
        "TCPOPTSTRIP",
        "TEE",
        "TOS",
        "TTL",
    ];
    let words = words.strip_prefix("-j ").or_else(|| words.strip_prefix("xt target ")).unwrap_or(words);
    match words.split(' ').next().unwrap_or_default() {
        "REJECT" | "reject" => Effect::Drops,
        "MASQUERADE" | "SNAT" | "masq" | "masquerade" | "snat" => Effect::Accepts,
        name if GOES_ON.contains(&name) => Effect::None,
        _ => Effect::Unknown,
    }
}
