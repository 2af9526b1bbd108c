//! Users and groups: whose traffic is the proxy's own, and whose is taken.

use super::facts::{self, Facts};
use super::interception::{MAX_INCLUDED_GROUPS, OwnerGroups};
use super::options::Opt;
use super::reader::{OptionReader, SettingsError};
use super::value::{self, Invalid, Parsed};

/// The ids whose traffic is the proxy's own: those given, or the id of the proxy's user.
pub(super) fn proxy_owners(reader: &mut OptionReader, opt: Opt, facts: &dyn Facts) -> Result<Vec<u32>, SettingsError> {
    const EXPECTED: &str = "ids from 0 to 4294967294 or names known in the pod, comma separated, for example 1337";
    let by_name = |name: &str| match opt {
        Opt::ProxyGid => facts::gid_by_name(facts, name),
        _ => facts::uid_by_name(facts, name),
    };
    let what = if opt == Opt::ProxyGid { "group" } else { "user" };
    let owners: Vec<u32> = reader
        .read(opt, |text| value::items(text).map(|item| value::owner(item, what, EXPECTED, &by_name)).collect())?;
    if !owners.is_empty() {
        return Ok(owners);
    }
    let user = reader.given.envoy_user();
    let known = facts::uid_by_name(facts, user);
    if known.is_none() && reader.given.names_envoy_user() {
        let warning = format!("ENVOY_USER: '{user}' is no user of this container: the proxy is taken to run as 1337");
        reader.warnings.push(warning);
    }
    Ok(vec![known.unwrap_or(1337)])
}

/// Whose outbound traffic is taken.
pub(super) fn owner_groups(reader: &OptionReader, facts: &dyn Facts) -> Result<OwnerGroups, SettingsError> {
    const EXPECTED: &str = "'*' for all, or at most 64 group ids or names known in the pod, comma separated";
    let by_name = |name: &str| facts::gid_by_name(facts, name);
    let groups = |opt| {
        reader.read(opt, |text| {
            value::items(text).map(|item| value::owner(item, "group", EXPECTED, &by_name)).collect::<Parsed<Vec<_>>>()
        })
    };
    // The exclusions are checked even where they do not count.
    let excluded = groups(Opt::OwnerGroupsExclude)?;
    if reader.given.text(Opt::OwnerGroups).1.trim() == "*" {
        return Ok(OwnerGroups::Except(excluded));
    }
    reader.read(Opt::OwnerGroups, |text| match value::items(text).any(|item| item == "*") {
        true => Err(Invalid { item: text.into(), problem: "has '*' beside groups".into(), expected: EXPECTED }),
        false => Ok(()),
    })?;
    let included = groups(Opt::OwnerGroups)?;
    if included.len() > MAX_INCLUDED_GROUPS {
        return reader.read(Opt::OwnerGroups, |text| {
            Err(Invalid {
                item: text.to_owned(),
                problem: format!("names {} groups", included.len()),
                expected: EXPECTED,
            })
        });
    }
    Ok(OwnerGroups::Only(included))
}
