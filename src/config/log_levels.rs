//! Levels of logs by their names, as the netconf and the command line give them.

use tracing::level_filters::LevelFilter;

use super::value::{Invalid, Parsed};

/// A level by its name.
fn by_name(name: &str) -> Parsed<LevelFilter> {
    Ok(match name {
        "none" | "off" => LevelFilter::OFF,
        "fatal" | "error" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => {
            return Err(Invalid {
                item: name.into(),
                problem: "is no level".into(),
                expected: "none, error, warn, info or debug, for example default:info",
            });
        }
    })
}

/// The levels of `SCOPE:LEVEL,…`, each with its scope; a level by itself is that of `default`.
///
/// # Errors
/// When one of them is no level.
pub fn by_scope(text: &str) -> Parsed<Vec<(&str, LevelFilter)>> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pairs = items.map(|item| item.split_once(':').unwrap_or(("default", item)));
    pairs.map(|(scope, level)| Ok((scope, by_name(level)?))).collect()
}
