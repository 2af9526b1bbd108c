//! Random options, random connections: who really answers under the rules that podweir
//! puts into the kernel is who `explain` says, from the options, from the kernel's rules
//! and from a dump of them.
//!
//! `PODWEIR_COMPARISONS` sets how many answers are compared, `PODWEIR_SEED` which.

use std::net::IpAddr;

use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::flow::Surroundings;
use podweir::audit::source::Source;

use crate::conformance::refs;
use crate::explain::{agrees, flow};
use crate::fixture::PODWEIR;
use crate::pod::{APP_PORTS, Pod, Probe, Proxy};
use crate::sources::dumped;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.next() as usize % items.len()]
    }

    /// Some of the items, comma separated.
    fn some(&mut self, items: &[&str], most: usize) -> String {
        let count = 1 + self.next() as usize % most;
        let mut out: Vec<&str> = (0..count).map(|_| self.pick(items)).collect();
        out.sort_unstable();
        out.dedup();
        out.join(",")
    }
}

const PORTS: &[&str] =
    &["22", "53", "80", "443", "3306", "8080", "9000", "15008", "15020", "25008", "80-443", "8000-9000"];
const RANGES: &[&str] = &[
    "10.0.0.0/8",
    "10.96.0.0/16",
    "203.0.113.0/24",
    "198.51.100.7",
    "10.244.0.6/32",
    "127.0.0.0/8",
    "0.0.0.0/1",
    "2001:db8::/32",
    "fd00::/8",
    "::/1",
    "2001:db8::7",
];
const IDS: &[&str] = &["0", "1000", "1337", "2000", "2001"];
const DNS: &str = "10.96.0.10";

/// What is installed: a pod, the proxy in it, and podweir's options.
struct Case {
    addresses: Vec<&'static str>,
    proxy: Proxy,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

fn case(random: &mut Random) -> Case {
    let addresses = match random.next() % 4 {
        0 => vec!["10.244.0.6/24"],
        1 => vec!["fd00:10:244::6/64"],
        _ => vec!["10.244.0.6/24", "fd00:10:244::6/64"],
    };
    let mut arguments: Vec<String> = Vec::new();
    let mut variables = Vec::new();
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    let outbound: u16 = if random.chance(20) { 16001 } else { 15001 };
    let inbound: u16 = if random.chance(20) { 16006 } else { 15006 };
    add("-p", outbound.to_string());
    add("-z", inbound.to_string());
    let uids = random.pick(&["1337", "1337", "1337,2000", "2000"]);
    add("-u", uids.to_owned());
    let gids = random.pick(&["1337", "1337", "2001", "1337,2001"]);
    add("-g", gids.to_owned());
    let first = |list: &str| list.split(',').next().unwrap().parse().unwrap();
    let proxy = Proxy { outbound, inbound, uid: first(uids), gid: first(gids) };
    if random.chance(40) {
        add("-m", "TPROXY".into());
    }
    match random.next() % 4 {
        0 => add("-b", random.some(PORTS, 4)),
        1 => {}
        _ => add("-b", "*".into()),
    }
    if random.chance(40) {
        add("-d", random.some(PORTS, 3));
    }
    match random.next() % 4 {
        0 => add("-i", random.some(RANGES, 4)),
        1 => {}
        _ => add("-i", "*".into()),
    }
    for (flag, percent, items) in [("-x", 40, RANGES), ("-q", 30, PORTS), ("-o", 40, PORTS)] {
        if random.chance(percent) {
            add(flag, random.some(items, 3));
        }
    }
    if random.chance(25) {
        add("--exclude-outbound-uids", random.some(&["0", "1000", "2000-2001"], 2));
    }
    if random.chance(8) {
        add("-c", random.pick(&["eth0", "lo", "eth+", "eth1"]).to_owned());
    }
    if random.chance(8) {
        add("-k", random.pick(&["eth0", "eth1,up0"]).to_owned());
    }
    for (flag, percent) in [("--redirect-dns", 40), ("--capture-all-dns", 20), ("--drop-invalid", 30)] {
        if random.chance(percent) {
            arguments.push(flag.to_owned());
        }
    }
    match random.next() % 5 {
        0 => variables.push(("ISTIO_OUTBOUND_OWNER_GROUPS", random.some(IDS, 3))),
        1 => variables.push(("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", random.some(IDS, 2))),
        2 => variables.push(("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8".to_owned())),
        _ => {}
    }
    Case { addresses, proxy, arguments, variables }
}

fn probe(random: &mut Random, case: &Case) -> Probe {
    let v4 = case.addresses[random.next() as usize % case.addresses.len()].contains('.');
    let own = if v4 { "10.244.0.6" } else { "fd00:10:244::6" };
    let inbound = random.chance(30);
    let others: &[&str] = match v4 {
        true => &["10.96.0.10", "10.0.0.1", "203.0.113.9", "198.51.100.7", "198.51.100.8", "192.0.2.200"],
        false => &["2001:db8::7", "2001:db8::8", "fd00:9::1", "fd00:10:96::a"],
    };
    let local: &[&str] = if v4 { &["10.244.0.6", "127.0.0.1", "127.0.0.9"] } else { &["fd00:10:244::6", "::1"] };
    let to = match inbound {
        true => own,
        false if random.chance(40) => random.pick(local),
        false => random.pick(others),
    };
    let is_local = local.contains(&to);
    // A server of UDP that is bound to all addresses answers from another one than it was
    // asked at, unless that is what the kernel would choose; and a proxy is no such server.
    let udp = random.chance(25) && to != "127.0.0.9";
    let from = match () {
        () if udp || inbound || !is_local || !random.chance(25) => None,
        () => Some(if v4 { "127.0.0.6" } else { "::6" }),
    };
    let port = match random.next() % 8 {
        0 | 1 if udp => 53,
        0 => case.proxy.inbound,
        1 if random.chance(50) => case.proxy.outbound,
        2 if !is_local => 1 + (random.next() % 65_535) as u16,
        _ => APP_PORTS[random.next() as usize % APP_PORTS.len()],
    };
    let mut id = || if inbound { 0 } else { random.pick(IDS).parse().unwrap() };
    let (uid, gid) = (id(), id());
    Probe { inbound, udp, uid, gid, from: from.map(|a| a.parse().unwrap()), to: to.parse().unwrap(), port }
}

impl Case {
    fn pod_ips(&self) -> String {
        self.addresses.iter().map(|a| a.split('/').next().unwrap()).collect::<Vec<_>>().join(",")
    }

    /// A command that tells the same.
    fn command(&self, probe: &Probe) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("{name}='{value}' ")).collect::<String>();
        let arguments = self.arguments.iter().map(|a| format!("'{a}'")).collect::<Vec<_>>().join(" ");
        let mut flow = format!(
            "--direction {} --proto {} --destination {} --port {}",
            if probe.inbound { "inbound" } else { "outbound" },
            if probe.udp { "udp" } else { "tcp" },
            probe.to,
            probe.port
        );
        if !probe.inbound {
            flow += &format!(" --uid {} --gid {}", probe.uid, probe.gid);
        }
        if let Some(from) = probe.from {
            flow += &format!(" --source {from}");
        }
        format!("{variables}podweir explain -v {flow} --pod-ip {} --dns-server {DNS} -- {arguments}", self.pod_ips())
    }

    fn options(&self, pod: &Pod) -> Source {
        let ips = self.pod_ips();
        let mut command = vec!["render", "--format", "json", "--pod-ip", &ips, "--dns-server", DNS, "--"];
        command.extend(refs(&self.arguments));
        let output = pod.namespace.command(PODWEIR, &command, &self.variables());
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        dumped(&[("options", &String::from_utf8(output.stdout).unwrap())])
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

/// Compares until enough has been compared, and gives what disagrees.
fn check(backend: &str, dumps: &[&str]) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    // A third each.
    let wanted = number("PODWEIR_COMPARISONS").unwrap_or(3000) / 3;
    let seed = number("PODWEIR_SEED").unwrap_or(1);
    let mut random = Random(seed ^ (backend.len() as u64) << 32);
    let (mut compared, mut wrong) = (0, Vec::new());
    while compared < wanted {
        let case = case(&mut random);
        let pod = Pod::new(&case.addresses, &format!("nameserver {DNS}\n"), case.proxy);
        let mut command = vec!["init", "--backend", backend];
        command.extend(refs(&case.arguments));
        let output = pod.namespace.command(PODWEIR, &command, &case.variables());
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let live = dumped(&[("live", &pod.namespace.print(PODWEIR, &["render", "--live", "--format", "json"]))]);
        let texts: Vec<String> = dumps
            .iter()
            .map(|program| {
                let words: Vec<&str> = program.split(' ').collect();
                pod.namespace.print(words[0], &words[1..])
            })
            .collect();
        let named: Vec<(&str, &str)> = dumps.iter().copied().zip(texts.iter().map(String::as_str)).collect();
        let sources = [("options", case.options(&pod)), ("live", live), ("dump", dumped(&named))];
        let addresses: Vec<IpAddr> = case.pod_ips().split(',').map(|a| a.parse().unwrap()).collect();
        let around = Surroundings::of(addresses);
        let probes: Vec<Probe> = (0..40).map(|_| probe(&mut random, &case)).collect();
        let (inbound, outbound): (Vec<_>, Vec<_>) = probes.into_iter().partition(|probe| probe.inbound);
        let probes: Vec<Probe> = inbound.into_iter().chain(outbound).collect();
        for (probe, verdict) in probes.iter().zip(pod.probe(&probes)) {
            let flow = flow(probe);
            for (name, source) in &sources {
                compared += 1;
                let answer = explain(&source.ruleset, &around, &flow, &mut NoTrace);
                if !agrees(answer.taker, &verdict, false) {
                    wrong.push(format!(
                        "{backend}, from {name}: {verdict} answers, explained as {}:\n  {}",
                        answer.taker,
                        case.command(probe)
                    ));
                }
            }
        }
    }
    let shown = wrong.iter().take(30).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "seed {seed}: {} of {compared} disagree:\n{shown}", wrong.len());
}

#[test]
fn explain_tells_who_answers_under_native_nftables() {
    check("nftables", &["nft -j list ruleset"]);
}

#[test]
fn explain_tells_who_answers_under_iptables_nft() {
    check("iptables-nft", &["iptables-nft-save", "ip6tables-nft-save"]);
}

#[test]
fn explain_tells_who_answers_under_iptables_legacy() {
    check("iptables-legacy", &["iptables-legacy-save", "ip6tables-legacy-save"]);
}
