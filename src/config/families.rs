//! Which IP families to program, by options and by the pod's addresses.

use std::net::IpAddr;

use super::facts::{self, Facts};
use super::given::Origin;
use super::options::Opt;
use super::reader::{OptionReader, SettingsError};
use super::types::Families;
use super::value::Invalid;

/// Which IP families to program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FamilyChoice {
    /// Every family the pod has a global address in.
    Auto,
    /// What the first global address tells: IPv4 alone, or both when it is an IPv6 address.
    First,
    /// IPv4, and IPv6 where the pod has it.
    DualStack,
    Exactly(Families),
}

/// What the options say about the families.
pub(super) fn family_choice(reader: &OptionReader) -> Result<FamilyChoice, SettingsError> {
    let dual_stack = reader.flag(Opt::DualStack)?;
    let choice = reader.read(Opt::IpFamilies, |text| match text {
        "auto" => Ok(FamilyChoice::Auto),
        "first" => Ok(FamilyChoice::First),
        "ipv4" => Ok(FamilyChoice::Exactly(Families::V4)),
        "ipv6" => Ok(FamilyChoice::Exactly(Families::V6)),
        "both" => Ok(FamilyChoice::Exactly(Families::BOTH)),
        _ => Err(Invalid {
            item: text.into(),
            problem: "is no choice of families".into(),
            expected: "auto, first, ipv4, ipv6 or both",
        }),
    })?;
    let named = reader.given.get(Opt::IpFamilies).is_some_and(|(origin, _)| *origin != Origin::Default);
    Ok(if dual_stack && !named { FamilyChoice::DualStack } else { choice })
}

/// The families to program. Warns of families that the pod has and that are not programmed.
pub(super) fn families(
    choice: FamilyChoice,
    addresses: &[IpAddr],
    source: &dyn Facts,
    warnings: &mut Vec<String>,
) -> Result<Families, SettingsError> {
    let has = facts::families_of(addresses);
    let chosen = match choice {
        FamilyChoice::Exactly(families) => families,
        FamilyChoice::Auto if has.is_empty() => {
            warnings.push(format!("{}: both IP families are programmed", source.without_address()));
            Families::BOTH
        }
        FamilyChoice::Auto => has,
        FamilyChoice::DualStack => Families { v4: true, v6: has.v6 },
        FamilyChoice::First => match addresses.iter().find(|a| facts::is_global(a)) {
            None => return Err(SettingsError::NoAddress),
            Some(IpAddr::V4(_)) => Families::V4,
            Some(IpAddr::V6(_)) => Families::BOTH,
        },
    };
    for family in has.iter().filter(|&f| !chosen.has(f)) {
        let cure = match choice {
            FamilyChoice::First => "give --dual-stack (or --ip-families auto) to take it too",
            _ => "give --ip-families auto to take it too",
        };
        warnings.push(format!(
            "the pod has an {family} address, but {family} is not programmed: all its {family} traffic passes the proxy by; {cure}"
        ));
    }
    if !chosen.v6 && !has.v6 {
        warnings.extend(addresses.iter().find(|a| facts::is_link_local_v6(a)).map(|address| {
            format!(
                "the pod has IPv6 by link-local addresses only ({address}), so IPv6 is not programmed: what neighbours on its link send to the app by them, and the app to neighbours, passes the proxy by; taken, it would only break, since the proxy cannot connect by such an address; switch IPv6 off in the pod, or let a network policy drop fe80::/10"
            )
        }));
    }
    Ok(chosen)
}
