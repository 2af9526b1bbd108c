//! Who answered 46,080 real connections under a real istio-iptables: under podweir's
//! rules the same party answers.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::conformance::{refs, strings, variables};
use crate::fixture::PODWEIR;
use crate::pod::{Pod, Probe, Proxy};

pub fn recorded(bytes: &[u8]) -> Vec<Value> {
    let mut text = String::new();
    GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Where the proxy of a recorded case is, by its arguments, as the recording had it.
pub fn proxy(arguments: &[String]) -> Proxy {
    let option = |flag: &str, default: &str| {
        arguments.iter().position(|a| a == flag).map_or(default.to_owned(), |at| arguments[at + 1].clone())
    };
    let first = |text: String| text.split(',').next().unwrap().to_owned();
    let uid = first(option("-u", "1337"));
    Proxy {
        outbound: option("-p", "15001").parse().unwrap(),
        inbound: option("-z", "15006").parse().unwrap(),
        gid: first(option("-g", &uid)).parse().unwrap(),
        uid: uid.parse().unwrap(),
    }
}

fn check(recording: &[u8], face: &[&str], environment: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    let mut asked = 0;
    for case in &recorded(recording) {
        let (name, arguments) = (case["name"].as_str().unwrap(), strings(&case["args"]));
        let addresses = strings(&case["addresses"]);
        let pod = Pod::new(&refs(&addresses), case["resolv_conf"].as_str().unwrap(), proxy(&arguments));
        let variables = variables(&case["env"]);
        let mut all: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        all.extend(environment);
        let command: Vec<&str> = face.iter().copied().chain(refs(&arguments)).collect();
        let output = pod.namespace.command(PODWEIR, &command, &all);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let verdicts = case["verdicts"].as_object().unwrap();
        let probes: Vec<Probe> = verdicts.keys().map(|key| Probe::parse(key)).collect();
        asked += probes.len();
        for ((key, want), got) in verdicts.iter().zip(pod.probe(&probes)) {
            if want.as_str() != Some(got.as_str()) {
                wrong.push(format!("{name}: {key}: expected {want}, got {got}"));
            }
        }
    }
    assert!(asked > 20_000, "{asked}");
    assert!(wrong.is_empty(), "{} of {asked} probes:\n{}", wrong.len(), wrong.join("\n"));
}

pub const COMPATIBLE: &[u8] = include_bytes!("../data/verdicts.json.gz");
pub const NATIVE: &[u8] = include_bytes!("../data/verdicts-native.json.gz");

#[test]
fn recorded_verdicts_on_native_nftables() {
    check(NATIVE, &["init", "--backend", "nftables"], &[]);
}

#[test]
fn recorded_verdicts_on_iptables_nft() {
    check(COMPATIBLE, &["istio-iptables"], &[("FORCE_IPTABLES_BINARY", "nft")]);
}

#[test]
fn recorded_verdicts_on_iptables_legacy() {
    check(COMPATIBLE, &["istio-iptables"], &[("FORCE_IPTABLES_BINARY", "legacy")]);
}
