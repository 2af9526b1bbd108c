//! What targets and statements do that the model does not know, by their names.

use crate::plan::effect::Effect;

/// What a target of iptables-extensions(8) does.
pub fn of_target(name: &str) -> Effect {
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
    match name {
        "REJECT" => Effect::Drops,
        "MASQUERADE" | "SNAT" => Effect::Accepts,
        name if GOES_ON.contains(&name) => Effect::None,
        _ => Effect::Unknown,
    }
}

/// What a statement of nft(8) does.
pub fn of_statement(name: &str) -> Effect {
    match name {
        "reject" => Effect::Drops,
        "masquerade" | "snat" => Effect::Accepts,
        _ => Effect::Unknown,
    }
}
