//! `--print-config`: every option's effective value, and where it comes from.

use serde_json::{Map, Value, json};

use crate::config::given::Given;
use crate::config::options::OPTIONS;
use crate::config::settings::{Face, Settings, with_face_defaults};

use super::error::CliError;
use super::output;

/// Prints the options as a table, or as JSON.
pub(super) fn print(given: &Given, face: Face, settings: &Settings, as_json: bool) -> Result<(), CliError> {
    let rows = rows(given, face, settings);
    if as_json {
        let object: Map<String, Value> =
            rows.into_iter().map(|(name, value, source)| (name, json!({ "value": value, "source": source }))).collect();
        return output::print(&format!("{:#}\n", Value::Object(object)));
    }
    let width =
        |at: fn(&(String, String, String)) -> &String| rows.iter().map(|r| at(r).chars().count()).max().unwrap_or(0);
    let (names, values) = (width(|r| &r.0), width(|r| &r.1).min(60));
    let lines = rows.iter().map(|(name, value, source)| format!("{name:names$}  {value:values$}  {source}\n"));
    output::print(&lines.collect::<String>())
}

/// Name, value and source of each option.
fn rows(given: &Given, face: Face, settings: &Settings) -> Vec<(String, String, String)> {
    let given = with_face_defaults(given, face);
    let ids = |list: &[u32]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    OPTIONS
        .iter()
        .map(|spec| {
            use crate::config::options::Opt;
            let (origin, text) = given.text(spec.opt);
            let value = match spec.opt {
                Opt::ProxyUid => ids(&settings.interception.proxy_uids),
                Opt::ProxyGid => ids(&settings.interception.proxy_gids),
                Opt::IpFamilies => format!("{text} ({})", settings.interception.families),
                _ => text.to_owned(),
            };
            let name = if spec.long.is_empty() { spec.env[0].to_owned() } else { spec.long.to_owned() };
            (name, value, origin.to_string())
        })
        .collect()
}
