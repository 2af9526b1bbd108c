//! From text to typed value, one function per kind of option value. Each says
//! what is wrong with the text and what would be right.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::ranges::RangeList;
use crate::sys::text::shortened;

use super::types::{
    IdList, Interface, Mark, Mode, Networks, OlderConnections, Port, PortList, PortSelection, RangeSelection,
    RouteTable,
};

/// The most characters of an invalid text that a message quotes: it may have a million.
pub const LONGEST_QUOTE: usize = 80;

/// A piece of text that is no valid value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The offending piece: the whole value, or one item of a list.
    pub item: String,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub expected: &'static str,
}

impl Invalid {
    /// The message about an invalid value of an option, in the one form that all have: "invalid value
    /// 'x' for --probe-port: it is no port; expected …".
    pub fn of_option(&self, option: &str) -> String {
        let item = shortened(&self.item, LONGEST_QUOTE);
        format!("invalid value '{item}' for {option}: it {}; expected {}", self.problem, self.expected)
    }
}

/// A value, or why the text is none.
pub type Parsed<T> = Result<T, Invalid>;

fn invalid<T>(item: &str, problem: impl Into<String>, expected: &'static str) -> Parsed<T> {
    Err(Invalid { item: item.to_owned(), problem: problem.into(), expected })
}

/// The items of a comma separated list, trimmed; empty ones are skipped.
pub fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Decimal digits only: `u64::parse` would also take a leading plus.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

const ONE_PORT: &str = "one port from 1 to 65535, for example 15001";
const PORTS: &str = "ports from 1 to 65535 and ranges of them, comma separated, for example 80,8000-8100";
const INBOUND_PORTS: &str = "'*' for all, or ports from 1 to 65535 and ranges of them, comma separated, for example 80,8000-8100; empty for none";

/// What to do with connections that are older than the rules.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn older_connections(text: &str) -> Parsed<OlderConnections> {
    match text {
        "leave" => Ok(OlderConnections::Leave),
        "reset" => Ok(OlderConnections::Reset),
        _ => invalid(text, "is nothing that is done with connections", "leave or reset"),
    }
}

/// One port, 1 to 65535.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn port(text: &str) -> Parsed<Port> {
    match digits(text).and_then(|n| u16::try_from(n).ok()).and_then(Port::new) {
        Some(port) => Ok(port),
        None => invalid(text, "is not a port", ONE_PORT),
    }
}

/// From so many entries on the neighbours in a list of ports are put together: a backend
/// makes a rule, or an element of a set, of each.
const MANY_PORTS: usize = 300;

/// Ports and ranges of ports.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn port_list(text: &str) -> Parsed<PortList> {
    ports(text, PORTS)
}

fn ports(text: &str, expected: &'static str) -> Parsed<PortList> {
    let mut list = RangeList::default();
    for item in items(text) {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        match (port(first.trim()), port(last.trim())) {
            (Ok(first), Ok(last)) if first <= last => list.push(first.get(), last.get()),
            (Ok(_), Ok(_)) => return invalid(item, "is a range that ends before it starts", expected),
            _ if item.contains('*') => return invalid(item, "cannot stand in a list of ports", expected),
            _ => return invalid(item, "is not a port or range of ports", expected),
        }
    }
    Ok(if list.len() > MANY_PORTS { list.normalised() } else { list })
}

/// `*`, or ports.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn port_selection(text: &str) -> Parsed<PortSelection> {
    if text.trim() == "*" {
        return Ok(PortSelection::All);
    }
    ports(text, INBOUND_PORTS).map(PortSelection::Only)
}

const CIDRS: &str =
    "IP ranges in CIDR form, comma separated, for example 10.0.0.0/8,2001:db8::/32; a bare address means that host";
const INCLUDED_CIDRS: &str =
    "'*' for all, or IP ranges in CIDR form, comma separated, for example 10.0.0.0/8,2001:db8::/32; empty for none";

/// One IP range. The second value tells whether host bits were set (and have been masked off).
pub fn cidr(text: &str) -> Option<(IpNet, bool)> {
    let net = match text.split_once('/') {
        None => IpNet::from(text.parse::<IpAddr>().ok()?),
        Some((address, length)) => {
            // A leading zero makes a number octal to some programs and not to others.
            let plain = length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
            IpNet::new(address.parse().ok()?, length.parse().ok().filter(|_| plain)?).ok()?
        }
    };
    Some((net.trunc(), net.trunc() != net))
}

/// IP ranges of both families. `warn` is told of host bits that were masked off.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn networks(text: &str, warn: &mut dyn FnMut(String)) -> Parsed<Networks> {
    cidrs(text, CIDRS, warn)
}

fn cidrs(text: &str, expected: &'static str, warn: &mut dyn FnMut(String)) -> Parsed<Networks> {
    let mut list = Networks::default();
    for item in items(text) {
        match cidr(item) {
            Some((net, masked)) => {
                if masked {
                    warn(format!("'{item}' has host bits set; {net} is used"));
                }
                list.push(net);
            }
            None if item == "*" => return invalid(item, "cannot stand in a list of ranges", expected),
            None => return invalid(item, "is not an IP range", expected),
        }
    }
    Ok(list)
}

/// `*`, or IP ranges.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn range_selection(text: &str, warn: &mut dyn FnMut(String)) -> Parsed<RangeSelection> {
    if text.trim() == "*" {
        return Ok(RangeSelection::All);
    }
    cidrs(text, INCLUDED_CIDRS, warn).map(RangeSelection::Only)
}

/// What counts as the pod talking to itself: a loopback range, /8 to /32.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn loopback(text: &str, warn: &mut dyn FnMut(String)) -> Parsed<Ipv4Net> {
    const EXPECTED: &str = "an IPv4 loopback range from /8 to /32, for example 127.0.0.1/32";
    let Some((IpNet::V4(net), masked)) = cidr(text.trim()) else {
        return invalid(text, "is not an IPv4 range", EXPECTED);
    };
    if !net.network().is_loopback() || net.prefix_len() < 8 {
        return invalid(text, "is not within 127.0.0.0/8", EXPECTED);
    }
    if masked {
        warn(format!("'{text}' has host bits set; {net} is used"));
    }
    Ok(net)
}

const IDS: &str =
    "ids from 0 to 4294967294 and ranges of them, or user names, comma separated, for example 1000,2000-2010,backup";

/// One numeric user or group id. 4294967295 is no id: it means "none" to the kernel.
pub fn id(text: &str) -> Option<u32> {
    digits(text).and_then(|n| u32::try_from(n).ok()).filter(|&n| n != u32::MAX)
}

/// Ids, ranges of ids and names. `by_name` looks a name up.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn id_list(text: &str, by_name: &dyn Fn(&str) -> Option<u32>) -> Parsed<IdList> {
    let mut list = RangeList::default();
    for item in items(text) {
        if let Some(id) = id(item).or_else(|| by_name(item)) {
            list.push(id, id);
        } else if let Some((Some(first), Some(last))) = item.split_once('-').map(|(a, b)| (id(a.trim()), id(b.trim())))
        {
            if last < first {
                return invalid(item, "is a range that ends before it starts", IDS);
            }
            list.push(first, last);
        } else {
            return invalid(item, "is no id and no known name", IDS);
        }
    }
    Ok(list)
}

/// One owner: a numeric id, or a name that `by_name` knows.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn owner(item: &str, what: &str, expected: &'static str, by_name: &dyn Fn(&str) -> Option<u32>) -> Parsed<u32> {
    match id(item).or_else(|| by_name(item)) {
        Some(id) => Ok(id),
        None => invalid(item, format!("is no {what} id and no known {what}"), expected),
    }
}

/// Network interface names (netdevice(7)): at most 15 characters; a trailing `+` stands for any ending.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn interfaces(text: &str) -> Parsed<Vec<Interface>> {
    items(text).map(interface).collect()
}

fn interface(text: &str) -> Parsed<Interface> {
    const EXPECTED: &str = "interface names of at most 15 characters without spaces or slashes, comma separated, for example eth1,net1; a trailing + stands for any ending";
    let bare = text.strip_suffix('+').unwrap_or(text);
    if text.len() > 15 {
        return invalid(text, format!("has {} characters", text.len()), EXPECTED);
    }
    if matches!(text, "." | "..") || bare.is_empty() {
        return invalid(text, "is no interface name", EXPECTED);
    }
    // Only what a name may hold in every backend's syntax, so that no name needs quoting.
    match bare.chars().find(|&c| !(c.is_ascii_alphanumeric() || "_-.@%=".contains(c))) {
        Some(bad) => invalid(text, format!("has the character {bad:?}"), EXPECTED),
        None => Ok(Interface::new(bare, bare.len() != text.len())),
    }
}

/// REDIRECT or TPROXY.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn mode(text: &str) -> Parsed<Mode> {
    match text {
        "REDIRECT" => Ok(Mode::Redirect),
        "TPROXY" => Ok(Mode::Tproxy),
        _ => invalid(text, "is not an interception mode", "REDIRECT or TPROXY"),
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => digits(text).and_then(|n| u32::try_from(n).ok()),
    }
}

/// A packet mark. 0 (every unmarked packet) and the mark of the proxy's own packets are refused.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn mark(text: &str) -> Parsed<Mark> {
    const EXPECTED: &str = "a packet mark from 1 to 4294967295 other than 1338, for example 1337 or 0x539";
    match number(text) {
        Some(0) => invalid(text, "is the mark of every unmarked packet", EXPECTED),
        Some(n) if n == Mark::OUTBOUND.get() => invalid(text, "is the mark of the proxy's own packets", EXPECTED),
        Some(n) => Ok(Mark::new(n)),
        None => invalid(text, "is not a mark", EXPECTED),
    }
}

/// A routing table number that is neither "unspecified" (0) nor one the kernel keeps for itself.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn route_table(text: &str) -> Parsed<RouteTable> {
    const EXPECTED: &str = "a routing table from 1 to 4294967295 other than 253, 254 and 255, for example 133";
    match number(text) {
        Some(0) => invalid(text, "is not a routing table", EXPECTED),
        Some(n @ 253..=255) => {
            let name = ["default", "main", "local"][n as usize - 253];
            invalid(text, format!("is the kernel's own table '{name}'"), EXPECTED)
        }
        Some(n) => Ok(RouteTable::new(n)),
        None => invalid(text, "is not a routing table", EXPECTED),
    }
}

/// A boolean, in the spellings of Go's strconv.ParseBool, which injectors use.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => invalid(text, "is neither true nor false", "true or false (also 1, 0, t, f)"),
    }
}

/// A duration in Go's notation: decimal numbers with units, for example 5s, 1m30s or 500ms.
///
/// # Errors
///
/// What would be right (`expected …`), where the text is not.
pub fn duration(text: &str) -> Parsed<Duration> {
    const EXPECTED: &str = "a duration with a unit, for example 5s, 500ms or 1m30s";
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (amount, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return invalid(text, "is not a duration", EXPECTED),
        };
        match amount.parse::<f64>() {
            Ok(n) => total += n * seconds,
            Err(_) => return invalid(text, "is not a duration", EXPECTED),
        }
        rest = after;
    }
    if text.is_empty() || !(0.001..=86_400.0).contains(&total) {
        return invalid(text, "is not a duration from 1ms to 24h", EXPECTED);
    }
    Ok(Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests;
