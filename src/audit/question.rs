//! Questions: flows as people and machines write them, with what they leave out filled in;
//! and the other way round, the question that a flow is the answer to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::config::types::Family;
use crate::plan::model::protocol;
use crate::sys::text::printable;

use super::flow::{Direction, Flow, Surroundings, Taker};
use super::ruleset::Ruleset;

/// The defaults for what a question leaves out.
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

    /// The default destination of inbound flows: the pod's IPv4 address, or else its IPv6 address.
    fn own(&self) -> Option<IpAddr> {
        self.v4.or(self.v6)
    }
}

/// An owner in a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedOwner {
    Id(u32),
    /// No owner, as for packets that the kernel sends by itself.
    Nobody,
}

impl AskedOwner {
    /// What stands for no owner.
    const NOBODY: &'static str = "none";

    pub fn parse(text: &str) -> Option<Self> {
        if text == Self::NOBODY { Some(Self::Nobody) } else { text.parse().ok().map(Self::Id) }
    }

    fn id(self) -> Option<u32> {
        match self {
            Self::Id(id) => Some(id),
            Self::Nobody => None,
        }
    }
}

/// A protocol in a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The ICMP of the flow's family.
    Icmp,
    Number(u8),
}

impl Protocol {
    /// Parses a protocol's name or number.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "icmp" => Some(Self::Icmp),
            text => protocol::by_name(text).map(Self::Number),
        }
    }

    /// The text that parses as the protocol of a flow. IPv4's ICMP in an IPv6 flow is a number.
    fn text(flow: &Flow) -> String {
        match (flow.protocol, flow.family()) {
            (number @ protocol::ICMP, Family::V6) => number.to_string(),
            (number, _) => protocol::name(number),
        }
    }

    fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Icmp, Family::V4) => protocol::ICMP,
            (Self::Icmp, Family::V6) => protocol::ICMPV6,
            (Self::Number(number), _) => number,
        }
    }
}

/// A question before anything is filled in.
#[derive(Debug, Clone, Default)]
pub struct Question {
    pub direction: Option<Direction>,
    pub protocol: Option<Protocol>,
    pub uid: Option<AskedOwner>,
    pub gid: Option<AskedOwner>,
    pub source: Option<IpAddr>,
    pub source_port: Option<u16>,
    pub destination: Option<IpAddr>,
    pub port: Option<u16>,
    pub interface: Option<String>,
    pub mark: Option<u32>,
    /// The taker that the asker expects.
    pub expect: Option<Taker>,
}

/// The addresses that packets have when a program asks for these. An IPv4 address in an
/// IPv6 one is IPv4's (RFC 4291, 2.5.5.2). To connect to no address in particular is to
/// connect to oneself, to no source address to take the one the kernel chooses
/// (`ip_route_output_key_hash_rcu`, `tcp_v6_connect`).
fn on_the_wire(source: Option<IpAddr>, destination: IpAddr) -> (Option<IpAddr>, IpAddr) {
    let from = source.map(|address| address.to_canonical()).filter(|address| !address.is_unspecified());
    let to = match destination.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => from.filter(IpAddr::is_ipv4).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        // A socket bound to an IPv4 address speaks IPv4.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if from != source && from.is_some() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    (from, to)
}

/// The addresses that were asked for, if packets have others.
pub fn asked_as(question: &Question, flow: &Flow) -> Option<String> {
    let source = question.source.filter(|asked| flow.source != Some(*asked)).map(|asked| format!("from {asked}"));
    let to = question.destination.filter(|asked| flow.destination != *asked).map(|asked| format!("to {asked}"));
    let all: Vec<String> = [source, to].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(" "))
}

impl Question {
    /// The flow that is asked about.
    ///
    /// # Errors
    ///
    /// A part that neither the question nor the defaults tell, or that contradicts another.
    pub fn flow(&self, defaults: &Defaults) -> Result<Flow, String> {
        let direction = self.direction.unwrap_or(Direction::Outbound);
        let outbound = direction == Direction::Outbound;
        let destination = match self.destination {
            Some(to) if !outbound && to.to_canonical().is_unspecified() => {
                return Err(format!("nothing comes in for {to}: give an address of the pod's"));
            }
            Some(destination) => destination,
            None if outbound => return Err("an outbound flow needs a destination".into()),
            None => {
                defaults.own().ok_or("an inbound flow needs a destination, since the pod's addresses are not known")?
            }
        };
        let (source, destination) = on_the_wire(self.source, destination);
        if source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
            return Err("source and destination are of different IP families".into());
        }
        if !outbound && (self.uid.is_some() || self.gid.is_some()) {
            return Err("an inbound flow has no owner here: leave uid and gid out".into());
        }
        let family = if destination.is_ipv4() { Family::V4 } else { Family::V6 };
        let number = self.protocol.map_or(protocol::TCP, |protocol| protocol.number(family));
        let owner =
            |owner: Option<AskedOwner>| owner.map_or(Some(defaults.anybody), AskedOwner::id).filter(|_| outbound);
        let has_ports = protocol::WITH_PORTS.contains(&number);
        if has_ports && self.port.is_none() {
            return Err(format!("a flow of {} needs a port", protocol::name(number)));
        }
        Ok(Flow {
            direction,
            protocol: number,
            uid: owner(self.uid),
            gid: owner(self.gid),
            source,
            source_port: self.source_port,
            destination,
            port: self.port.unwrap_or(0),
            // Names of rules' interfaces are told in this form.
            interface: self.interface.as_deref().map(|name| printable(name).into()),
            mark: self.mark.unwrap_or(0),
        })
    }

    /// Reads one line of JSON.
    ///
    /// # Errors
    ///
    /// That the line is no JSON, or which field of it is wrong.
    pub fn from_json(line: &[u8]) -> Result<Self, String> {
        let members: QuestionMembers = serde_json::from_slice(line).map_err(|e| match e.is_data() {
            true => "it is no JSON object".into(),
            false => format!("it is no JSON: {e}"),
        })?;
        let mut out = Self::default();
        for (at, (name, value)) in members.0.iter().enumerate() {
            if !MEMBERS.contains(&name.as_str()) {
                return Err(format!("\"{name}\" is nothing that a flow has"));
            }
            if members.0.iter().take(at).any(|(before, _)| before == name) {
                return Err(format!("\"{name}\" is there twice: say it once"));
            }
            if value.is_null() {
                continue;
            }
            let text = value.as_str();
            let wrong = |expected: &str| format!("\"{name}\": {value} is not {expected}");
            match name.as_str() {
                "direction" => out.direction = Some(text.and_then(Direction::by_name).ok_or_else(|| wrong(DIRECTION))?),
                "proto" => out.protocol = Some(protocol(value).ok_or_else(|| wrong(PROTOCOL))?),
                "uid" => out.uid = Some(owner(value).ok_or_else(|| wrong(OWNER))?),
                "gid" => out.gid = Some(owner(value).ok_or_else(|| wrong(OWNER))?),
                "source" => out.source = Some(address(text).ok_or_else(|| wrong(ADDRESS))?),
                "destination" => out.destination = Some(address(text).ok_or_else(|| wrong(ADDRESS))?),
                "source_port" => out.source_port = Some(number(value).ok_or_else(|| wrong(PORT))?),
                "port" => out.port = Some(number(value).ok_or_else(|| wrong(PORT))?),
                "interface" => out.interface = Some(text.ok_or_else(|| wrong("the name of an interface"))?.to_owned()),
                "mark" => out.mark = Some(number(value).ok_or_else(|| wrong("a number"))?),
                "expect" => out.expect = Some(text.and_then(Taker::by_name).ok_or_else(|| wrong("a verdict"))?),
                _ => {}
            }
        }
        Ok(out)
    }
}

/// The members that a line may have.
const MEMBERS: [&str; 11] =
    ["direction", "proto", "uid", "gid", "source", "source_port", "destination", "port", "interface", "mark", "expect"];

/// The members of an object, including doubles.
struct QuestionMembers(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for QuestionMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = QuestionMembers;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<QuestionMembers, A::Error> {
                let mut out = Vec::new();
                while let Some(member) = map.next_entry()? {
                    out.push(member);
                }
                Ok(QuestionMembers(out))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

pub const DIRECTION: &str = "inbound or outbound";
pub const PROTOCOL: &str = "tcp, udp, icmp or a protocol number";
pub const OWNER: &str = "an id or none";
const ADDRESS: &str = "an IP address";
const PORT: &str = "a port from 0 to 65535";

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn address(text: Option<&str>) -> Option<IpAddr> {
    text?.parse().ok()
}

fn owner(value: &Value) -> Option<AskedOwner> {
    value.as_str().map_or_else(|| number(value).map(AskedOwner::Id), AskedOwner::parse)
}

fn protocol(value: &Value) -> Option<Protocol> {
    value.as_str().map_or_else(|| number(value).map(Protocol::Number), Protocol::parse)
}

/// A member of a question: its name, and what it says as text and as JSON.
type QuestionMember = (&'static str, String, Value);

/// The members that a question needs to ask about just this flow. All others have their defaults.
fn members(flow: &Flow) -> Vec<QuestionMember> {
    let outbound = flow.direction == Direction::Outbound;
    let text = |text: String| (text.clone(), Value::from(text));
    let number = |number: u32| (number.to_string(), Value::from(number));
    let owner = |id: Option<u32>| outbound.then(|| id.map_or_else(|| text(AskedOwner::NOBODY.into()), number));
    let mark = |mark: u32| (format!("{mark:#x}"), Value::from(mark));
    let all = [
        ("direction", Some(text(flow.direction.name().into()))),
        ("proto", Some(text(Protocol::text(flow)))),
        ("uid", owner(flow.uid)),
        ("gid", owner(flow.gid)),
        ("source", flow.source.map(|address| text(address.to_string()))),
        ("source_port", flow.source_port.filter(|_| flow.has_ports()).map(|port| number(port.into()))),
        ("destination", Some(text(flow.destination.to_string()))),
        ("port", flow.has_ports().then(|| number(flow.port.into()))),
        ("interface", flow.interface.as_deref().map(|name| text(name.into()))),
        ("mark", (flow.mark != 0).then(|| mark(flow.mark))),
    ];
    all.into_iter().filter_map(|(name, said)| said.map(|(text, json)| (name, text, json))).collect()
}

/// The arguments of `podweir explain` that ask about a flow.
pub fn arguments(flow: &Flow) -> Vec<String> {
    let option = |name: &str| format!("--{}", name.replace('_', "-"));
    members(flow).into_iter().flat_map(|(name, text, _)| [option(name), text]).collect()
}

/// The command that asks about a flow, as it is typed into a shell. `rules`: the arguments of
/// `podweir explain` that name the rules to ask.
pub fn command(flow: &Flow, rules: &[String]) -> String {
    let words: Vec<String> = arguments(flow).iter().chain(rules).map(|word| quoted(word)).collect();
    format!("podweir explain {}", words.join(" "))
}

/// A line of `--flows` that asks about a flow.
pub fn json(flow: &Flow) -> Value {
    members(flow).into_iter().map(|(name, _, json)| (name.to_owned(), json)).collect()
}

/// A word as a shell reads it: names of interfaces may hold nearly anything.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:%,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}
