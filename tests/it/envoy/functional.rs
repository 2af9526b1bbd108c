//! Who answers each kind of connection, under which address, whom it sees, and how many
//! requests each cluster of Envoy counted on the way: no more and no fewer.

use std::collections::BTreeMap;

use super::config::Family;
use super::place::{Place, ask};
use super::proxy::since;

const APP: (u32, u32) = (1000, 1000);
const ROOT: (u32, u32) = (0, 0);
/// How often each question is asked; a multiple of the servers behind one service.
const TIMES: usize = 4;

/// What an injector writes, with a port and a range more that are left alone.
pub const OPTIONS: &[&str] = &[
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-g",
    "1337",
    "-i",
    "*",
    "-x",
    "203.0.113.0/24,2001:db8:113::/48",
    "-b",
    "*",
    "-d",
    "15090,15021,15020,3306",
    "-o",
    "9443",
];

struct Check {
    name: &'static str,
    from_outside: bool,
    user: (u32, u32),
    to: &'static str,
    port: u16,
    host: Option<&'static str>,
    /// Those who answer in turn, each as often as the others.
    answers: Vec<String>,
    /// The clusters that each question passes, by how many of TIMES.
    clusters: Vec<(&'static str, usize)>,
}

/// The line of somebody who answers.
fn line(name: &str, address: &str, port: u16, peer: &str) -> String {
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("{name} {address}:{port} {peer}")
}

impl Check {
    fn run(&self, place: &Place, of: &str) -> Option<String> {
        let before = place.envoy.counts();
        let namespace = if self.from_outside { &place.outside } else { &place.pod };
        let mut found: Vec<String> =
            namespace.run(|| (0..TIMES).map(|_| ask(self.user, self.to, self.port, self.host)).collect());
        let counted = since(&before, &place.envoy.counts());
        found.sort();
        let mut expected: Vec<String> = self.answers.iter().cycle().take(TIMES).cloned().collect();
        expected.sort();
        let clusters: BTreeMap<String, u64> =
            self.clusters.iter().map(|(name, times)| ((*name).to_owned(), *times as u64)).collect();
        (found != expected || counted != clusters).then(|| {
            let (name, to, port) = (self.name, self.to, self.port);
            format!(
                "{of}: {name} ({to} {port}):\n  expected {expected:?} {clusters:?}\n  found    {found:?} {counted:?}"
            )
        })
    }
}

/// What the app and others of the pod ask for.
fn outbound(family: &Family, all: &[Family], tproxy: bool) -> Vec<Check> {
    let Family { pod, proxy, client, server, .. } = *family;
    let check = |name, user, to, port, answers: Vec<String>, clusters: Vec<(&'static str, usize)>| Check {
        name,
        from_outside: false,
        user,
        to,
        port,
        host: None,
        answers,
        clusters,
    };
    let passed = || vec![("PassthroughCluster", TIMES)];
    let outside = |port, peer| vec![line("outside", server, port, peer)];
    let backends = |port| {
        let hosts = all.iter().flat_map(|family| family.backends.map(|host| (host, family.proxy)));
        hosts.map(|(host, proxy)| line("outside", host, port, proxy)).collect::<Vec<_>>()
    };
    // The pod's own service leads out to the proxy, back in to it, and from there to the app.
    let own = |port| {
        // With TPROXY the app sees whom the proxy's inbound side saw: its outbound side.
        let peer = |family: &Family| if tproxy { family.pod } else { family.passthrough };
        all.iter().map(|family| line("app", family.pod, port, peer(family))).collect::<Vec<_>>()
    };
    let mut own_passthrough = vec![("outbound|9000||own", TIMES)];
    own_passthrough.extend(all.iter().map(|family| (family.inbound_passthrough(), TIMES / all.len())));
    let web =
        |name, host, answers, clusters| Check { host: Some(host), ..check(name, APP, server, 80, answers, clusters) };
    let to_itself = |to, port| vec![line("app", to, port, to)];
    vec![
        check("the app, to a port nobody declared", APP, server, 9000, outside(9000, proxy), passed()),
        check("root in the app's container", ROOT, server, 9000, outside(9000, proxy), passed()),
        web("HTTP to a host nobody declared", "elsewhere", outside(80, proxy), passed()),
        web("HTTP to a service", "web.shop", backends(80), vec![("outbound|80||web", TIMES)]),
        check("TCP to a service", APP, family.service, 5432, backends(5432), vec![("outbound|5432||db", TIMES)]),
        web(
            "HTTP to the own service",
            "own.shop",
            own(8080),
            vec![("outbound|80||own", TIMES), ("inbound|8080||", TIMES)],
        ),
        check("TCP to the own service", APP, family.own_service, 9000, own(9000), own_passthrough),
        check("the app, to itself by its address", APP, pod, 9000, to_itself(pod, 9000), vec![]),
        check("the app, to itself by localhost", APP, family.loopback, 9000, to_itself(family.loopback, 9000), vec![]),
        check("an excluded port", APP, server, 9443, outside(9443, pod), vec![]),
        check(
            "an excluded range",
            APP,
            family.excluded,
            9000,
            vec![line("outside", family.excluded, 9000, pod)],
            vec![],
        ),
        check("the proxy's user", (1337, 1000), server, 9000, outside(9000, pod), vec![]),
        check("the proxy's group", (1000, 1337), server, 9000, outside(9000, pod), vec![]),
        check(
            "the proxy's user, to localhost",
            (1337, 1337),
            family.loopback,
            9000,
            to_itself(family.loopback, 9000),
            vec![],
        ),
        check("the gateway's port that is the proxy's", APP, client, 15001, vec!["closed".into()], vec![]),
    ]
}

/// What clients of the pod ask for.
fn inbound(family: &Family, tproxy: bool) -> Vec<Check> {
    let Family { pod, client, .. } = *family;
    let peer = if tproxy { client } else { family.passthrough };
    let check = |name, port, answers: Vec<String>, clusters: Vec<(&'static str, usize)>| Check {
        name,
        from_outside: true,
        user: ROOT,
        to: pod,
        port,
        host: None,
        answers,
        clusters,
    };
    let app = |port, peer| vec![line("app", pod, port, peer)];
    let passed = || vec![(family.inbound_passthrough(), TIMES)];
    let http = |check: Check| Check { host: Some("web-0"), ..check };
    // The tunnel's port is left alone where REDIRECT would hide whom it was meant for.
    let tunnel = if tproxy {
        check("the tunnel's port", 15008, app(15008, client), passed())
    } else {
        check("the tunnel's port", 15008, app(15008, client), vec![])
    };
    vec![
        http(check("HTTP to a declared port", 8080, app(8080, peer), vec![("inbound|8080||", TIMES)])),
        check("a port nobody declared", 9000, app(9000, peer), passed()),
        check("a port excluded by an annotation", 3306, app(3306, client), vec![]),
        check("the agent's port", 15020, app(15020, client), vec![]),
        check("the metrics' port", 15090, app(15090, client), vec![]),
        http(check("the proxy's health", 15021, vec!["ready".into()], vec![])),
        tunnel,
        check("the proxy's own port", 15006, vec!["closed".into()], vec![]),
    ]
}

/// Every check of a pod with these families, under the rules that are in place; gives how
/// many there were, and what was not as it should be.
pub fn check(place: &Place, families: &[Family], tproxy: bool, of: &str) -> (usize, Vec<String>) {
    let mut checks = Vec::new();
    for family in families {
        checks.extend(outbound(family, families, tproxy));
        checks.extend(inbound(family, tproxy));
    }
    (checks.len(), checks.iter().filter_map(|check| check.run(place, of)).collect())
}
