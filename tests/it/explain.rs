//! What `explain` predicts from options alone is what happened in the recordings.

use std::collections::HashMap;
use std::net::IpAddr;

use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::flow::{Direction, Flow, Surroundings, Taker};
use podweir::audit::ruleset::Ruleset;
use podweir::config::facts::Facts;
use podweir::config::given::Given;
use podweir::config::options::{OPTIONS, Takes};
use podweir::config::settings::{Face, Settings};
use podweir::plan::build;
use serde_json::Value;

use crate::conformance::{strings, variables};
use crate::pod::Probe;
use crate::traffic::{COMPATIBLE, NATIVE, proxy, recorded};

/// Facts as a recording had them.
struct Recorded {
    addresses: Vec<IpAddr>,
    resolv_conf: String,
}

impl Facts for Recorded {
    fn addresses(&self) -> std::io::Result<Vec<IpAddr>> {
        let mut all = self.addresses.clone();
        all.sort_by_key(|a| !a.is_ipv4());
        Ok(all)
    }

    fn resolv_conf(&self) -> std::io::Result<String> {
        Ok(self.resolv_conf.clone())
    }

    fn passwd(&self) -> std::io::Result<String> {
        Ok(String::new())
    }

    fn group(&self) -> std::io::Result<String> {
        Ok(String::new())
    }
}

/// The settings that a case's arguments and variables mean.
pub fn settings(case: &Value, face: Face) -> (Settings, Vec<IpAddr>) {
    let environment: HashMap<String, String> = variables(&case["env"]).into_iter().collect();
    let mut given = Given::from_environment(&|name| environment.get(name).cloned());
    let arguments = strings(&case["args"]);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let spec = OPTIONS.iter().find(|spec| match word.strip_prefix("--") {
            Some(long) => spec.long == long,
            None => spec.short.is_some_and(|s| *word == format!("-{s}")),
        });
        let spec = spec.unwrap_or_else(|| panic!("{word}"));
        let text = if spec.takes == Takes::Boolean { "true" } else { words.next().unwrap() };
        given.set(spec.opt, podweir::config::given::Origin::Flag, text);
    }
    let addresses: Vec<IpAddr> =
        strings(&case["addresses"]).iter().map(|a| a.split('/').next().unwrap().parse().unwrap()).collect();
    let facts = Recorded { addresses: addresses.clone(), resolv_conf: case["resolv_conf"].as_str().unwrap().into() };
    (Settings::resolve(&given, face, &facts).unwrap(), addresses)
}

pub fn flow(probe: &Probe) -> Flow {
    let own = |id| (!probe.inbound).then_some(id);
    Flow {
        direction: if probe.inbound { Direction::Inbound } else { Direction::Outbound },
        protocol: if probe.udp { 17 } else { 6 },
        uid: own(probe.uid),
        gid: own(probe.gid),
        source: probe.from,
        source_port: None,
        destination: probe.to,
        port: probe.port,
        interface: None,
        mark: 0,
    }
}

/// Whether a prediction is what a recording says. `nobody_listens`: the recording's
/// stand-in proxy, which knew its ports from -p and -z alone, was not at the port that
/// the connection was redirected to: then an intercepted connection was refused.
pub fn agrees(taker: Taker, verdict: &str, nobody_listens: bool) -> bool {
    match verdict {
        "out-proxy" => taker == Taker::OutboundProxy,
        "in-proxy" => taker == Taker::InboundProxy,
        "dns-proxy" => taker == Taker::DnsProxy,
        "outside" | "app" => taker == Taker::Direct,
        "refused" => taker == Taker::Direct || nobody_listens,
        "silent" => taker == Taker::Dropped,
        _ => false,
    }
}

fn check(recording: &[u8], face: Face) {
    let mut wrong = Vec::new();
    let mut asked = 0;
    for case in recorded(recording) {
        let (settings, addresses) = settings(&case, face);
        let ruleset = Ruleset::of_plan(&build(&settings.interception));
        let pod = Surroundings::of(addresses);
        let listening = proxy(&strings(&case["args"]));
        let nobody_listens = |taker: Taker| match taker {
            Taker::OutboundProxy => settings.interception.outbound_port.get() != listening.outbound,
            Taker::InboundProxy => settings.interception.inbound_port.get() != listening.inbound,
            _ => false,
        };
        for (key, verdict) in case["verdicts"].as_object().unwrap() {
            asked += 1;
            let flow = flow(&Probe::parse(key));
            let answer = explain(&ruleset, &pod, &flow, &mut NoTrace);
            if !agrees(answer.taker, verdict.as_str().unwrap(), nobody_listens(answer.taker)) {
                wrong.push(format!("{}: {key}: {verdict}, predicted {}", case["name"], answer.taker));
            }
        }
    }
    assert!(asked > 20_000, "{asked}");
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}

#[test]
fn predictions_equal_the_recorded_verdicts_of_the_compatible_face() {
    check(COMPATIBLE, Face::IstioIptables);
}

#[test]
fn predictions_equal_the_recorded_verdicts_of_the_native_face() {
    check(NATIVE, Face::Init);
}
