//! Questions: flows as people and machines write them, with what they leave out filled in.

use std::net::IpAddr;

use serde_json::Value;

use crate::config::types::Family;
use crate::plan::model::protocol;

use super::flow::{Direction, Flow, Surroundings, Taker};
use super::ruleset::Ruleset;

/// What is left out of a question means the same for every flow.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Whoever no rule names: the first id from 1000 up.
    pub anybody: u32,
    /// Where inbound flows go to: the pod's addresses.
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
}

impl Defaults {
    pub fn of(ruleset: &Ruleset, pod: &Surroundings) -> Self {
        let rules = Family::BOTH.into_iter().flat_map(|family| &ruleset.family(family).chains).flat_map(|c| &c.rules);
        let named = rules.flat_map(|rule| [&rule.matches.uid, &rule.matches.gid]).flatten();
        let mut all = crate::config::ranges::RangeList::default();
        named.for_each(|cond| all.extend(&cond.value));
        let free = all.complement().iter().find(|(_, last)| *last >= 1000);
        let global =
            |v4: bool| pod.addresses.iter().copied().find(|a| a.is_ipv4() == v4 && crate::config::facts::is_global(a));
        Self { anybody: free.map_or(1000, |(first, _)| first.max(1000)), v4: global(true), v6: global(false) }
    }

    /// The one address that inbound flows go to, if there is only one.
    fn own(&self) -> Option<IpAddr> {
        self.v4.or(self.v6)
    }
}

/// A question before anything is filled in.
#[derive(Debug, Clone, Default)]
pub struct Question {
    pub direction: Option<Direction>,
    pub protocol: Option<u8>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub source: Option<IpAddr>,
    pub source_port: Option<u16>,
    pub destination: Option<IpAddr>,
    pub port: Option<u16>,
    pub interface: Option<String>,
    pub mark: Option<u32>,
    /// Who should get it.
    pub expect: Option<Taker>,
}

impl Question {
    /// The flow that is asked about.
    pub fn flow(self, defaults: &Defaults) -> Result<Flow, String> {
        let direction = self.direction.unwrap_or(Direction::Outbound);
        let outbound = direction == Direction::Outbound;
        let destination = match self.destination {
            Some(destination) => destination,
            None if outbound => return Err("an outbound flow needs a destination".into()),
            None => {
                defaults.own().ok_or("an inbound flow needs a destination, since the pod's addresses are not known")?
            }
        };
        if self.source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
            return Err("source and destination are of different IP families".into());
        }
        if !outbound && (self.uid.is_some() || self.gid.is_some()) {
            return Err("an inbound flow has no owner here: leave uid and gid out".into());
        }
        let number = match (self.protocol.unwrap_or(protocol::TCP), destination) {
            // "icmp" means the one of the family.
            (protocol::ICMP, IpAddr::V6(_)) => protocol::ICMPV6,
            (number, _) => number,
        };
        let has_ports = protocol::WITH_PORTS.contains(&number);
        if has_ports && self.port.is_none() {
            return Err(format!("a flow of {} needs a port", protocol::name(number)));
        }
        Ok(Flow {
            direction,
            protocol: number,
            uid: outbound.then(|| self.uid.unwrap_or(defaults.anybody)),
            gid: outbound.then(|| self.gid.unwrap_or(defaults.anybody)),
            source: self.source,
            source_port: self.source_port,
            destination,
            port: self.port.unwrap_or(0),
            interface: self.interface.map(String::into_boxed_str),
            mark: self.mark.unwrap_or(0),
        })
    }

    /// Reads one line of JSON.
    pub fn from_json(line: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(line).map_err(|e| format!("it is no JSON: {e}"))?;
        let Value::Object(object) = value else { return Err("it is no JSON object".into()) };
        let mut out = Self::default();
        for (name, value) in &object {
            if value.is_null() {
                continue;
            }
            let text = value.as_str();
            let wrong = |expected: &str| format!("\"{name}\": {value} is not {expected}");
            match name.as_str() {
                "direction" => out.direction = Some(text.and_then(Direction::by_name).ok_or_else(|| wrong(DIRECTION))?),
                "proto" => out.protocol = Some(number(value).or(text.and_then(proto)).ok_or_else(|| wrong(PROTOCOL))?),
                "uid" => out.uid = Some(number(value).ok_or_else(|| wrong("an id"))?),
                "gid" => out.gid = Some(number(value).ok_or_else(|| wrong("an id"))?),
                "source" => out.source = Some(address(text).ok_or_else(|| wrong(ADDRESS))?),
                "destination" => out.destination = Some(address(text).ok_or_else(|| wrong(ADDRESS))?),
                "source_port" => out.source_port = Some(number(value).ok_or_else(|| wrong(PORT))?),
                "port" => out.port = Some(number(value).ok_or_else(|| wrong(PORT))?),
                "interface" => out.interface = Some(text.ok_or_else(|| wrong("the name of an interface"))?.to_owned()),
                "mark" => out.mark = Some(number(value).ok_or_else(|| wrong("a number"))?),
                "expect" => out.expect = Some(text.and_then(Taker::by_name).ok_or_else(|| wrong("a verdict"))?),
                _ => return Err(format!("\"{name}\" is nothing that a flow has")),
            }
        }
        Ok(out)
    }
}

pub const DIRECTION: &str = "inbound or outbound";
pub const PROTOCOL: &str = "tcp, udp, icmp or a protocol number";
const ADDRESS: &str = "an IP address";
const PORT: &str = "a port from 0 to 65535";

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn address(text: Option<&str>) -> Option<IpAddr> {
    text?.parse().ok()
}

/// A protocol by name or number.
pub fn proto(text: &str) -> Option<u8> {
    protocol::by_name(&text.to_ascii_lowercase())
}
