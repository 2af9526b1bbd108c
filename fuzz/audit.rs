//! What can be read can be audited: every flow is in one part and shares its fate with
//! what `explain` says, and every report can be written. Seeds: tests/data/dumps.

use std::net::IpAddr;

use jiff::civil::date;
use podweir::audit::accept::Accepted;
use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::flow::{Direction, Surroundings};
use podweir::audit::question::{Defaults, Protocol, Question};
use podweir::audit::report::{Input, Report, html, json, sarif, text};
use podweir::audit::source::dump::{self, Text};
use podweir::audit::source::options::{self, KnownPod};
use podweir::audit::space::Space;
use podweir::audit::verify::verify;
use podweir::config::given::Given;
use podweir::config::settings::Face;
use podweir::config::types::Family;

/// Destinations on both sides of what rules tell apart most often.
const DESTINATIONS: [&str; 6] = ["203.0.113.10", "127.0.0.1", "10.244.0.6", "2001:db8::10", "::1", "fd00:10:244::6"];

pub fn run(bytes: &[u8]) {
    let text = Text { name: "fuzz".into(), bytes: bytes.to_vec(), family: None };
    let Ok(mut source) = dump::read(&[text]) else { return };
    let addresses: Vec<IpAddr> = ["10.244.0.6", "fd00:10:244::6"].map(|a| a.parse().expect("an address")).into();
    source.pod = Surroundings::of(addresses.clone());
    let space = Space::of(&[&source.ruleset], &source.pod);
    let defaults = Defaults::of(&source.ruleset, &source.pod);
    for family in Family::BOTH {
        let Ok(parts) = space.parts(&source.ruleset, family) else { continue };
        for part in parts.iter().take(50) {
            assert!(!part.flows.destination.is_empty() && !part.flows.protocol.is_empty());
        }
        for destination in DESTINATIONS.map(|a| a.parse::<IpAddr>().expect("an address")) {
            for direction in [Direction::Outbound, Direction::Inbound] {
                if destination.is_ipv4() != (family == Family::V4)
                    || (direction == Direction::Inbound && destination.is_loopback())
                {
                    continue;
                }
                for (protocol, port) in [(6, 443), (6, 15006), (17, 53), (1, 0)] {
                    let question = Question {
                        direction: Some(direction),
                        protocol: Some(Protocol::Number(protocol)),
                        destination: Some(destination),
                        port: Some(port),
                        ..Question::default()
                    };
                    let flow = question.flow(&defaults).expect("a flow");
                    let (scope, point) = space.point(&flow);
                    let mut homes = parts.iter().filter(|part| part.scope == scope && part.flows.holds(&point));
                    let (home, second) = (homes.next().expect("a part"), homes.next());
                    assert!(second.is_none(), "{flow:?} is in two parts");
                    let answer = explain(&source.ruleset, &source.pod, &flow, &mut NoTrace);
                    assert_eq!(answer.taker, home.taker, "{flow:?}");
                }
            }
        }
    }
    let known = KnownPod { addresses, ..KnownPod::default() };
    let wanted = options::read(&Given::default(), Face::Init, &known).expect("defaults");
    drop(verify(&wanted, &source));
    let input = Input {
        about: "fuzz".into(),
        file: None,
        source: &source,
        wanted: Some(&wanted),
        manifest: None,
        proxy_user: None,
        established: None,
        explain: None,
        accepted: &Accepted::default(),
        today: date(2026, 1, 1),
    };
    if let Ok(report) = Report::new(input, &space) {
        for written in [text::write(&report), json::write(&report), sarif::write(&report), html::write(&report)] {
            assert!(!written.is_empty());
        }
    }
}
