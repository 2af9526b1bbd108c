//! Who answered real connections of ambient pods under a real istio: under podweir's rules
//! the same party answers. A slice of the recording: what an app sends, what comes in from
//! the node, and what ztunnel itself sends, in the configurations without virtual machines.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::flow::{Direction, Flow, Taker};
use podweir::audit::source::Source;
use podweir::audit::source::options::{self, KnownPod};
use podweir::config::ambient::AmbientOptions;
use podweir::config::types::Families;
use podweir::plan::model::protocol;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use socket2::{Domain, Socket, Type};

use crate::ambient::BACKENDS;
use crate::conformance::{refs, strings};
use crate::fixture::{Namespace, PODWEIR};
use crate::pod::{OUTSIDE, Server, connect, serve, serve_marked, transparent};
use crate::traffic::recorded;

const VERDICTS: &[u8] = include_bytes!("../data/ambient-verdicts.json.gz");
/// What ztunnel marks its packets with, and what routing sends back into the pod.
const MARK: u32 = 0x539;
const ANSWER_MARK: u32 = 0x111;
const TIMEOUT: Duration = Duration::from_millis(700);
const APP_PORTS: [u16; 8] = [53, 80, 443, 8080, 9000, 15020, 15021, 15090];
const ZTUNNEL: [(&str, u16); 4] =
    [("ztunnel-outbound", 15001), ("ztunnel-inbound", 15006), ("ztunnel-hbone", 15008), ("ztunnel-dns", 15053)];

pub struct Pod {
    pub namespace: Namespace,
    node: Namespace,
    _servers: Vec<Server>,
}

impl Pod {
    pub fn new(addresses: &[&str]) -> Self {
        let (namespace, node) = (Namespace::bare(""), Namespace::bare(""));
        connect(&namespace, &node, addresses);
        let mut own = String::new();
        for address in ["203.0.113.7", "2001:db8:77::7", "169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"] {
            own += &format!("addr add {address} dev lo {}\n", if address.contains(':') { "nodad" } else { "" });
        }
        node.batch(&own);
        for place in [&namespace, &node] {
            place.print("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=0"]);
        }
        let mut servers = vec![node.run(|| serve(&[("outside", OUTSIDE)], 0, 0))];
        servers.extend(namespace.run(|| {
            let app: Vec<(&'static str, u16)> = APP_PORTS.iter().map(|&port| ("app", port)).collect();
            [serve_marked(&ZTUNNEL, MARK), serve(&app, 1000, 1000)]
        }));
        Self { namespace, node, _servers: servers }
    }

    pub fn ask(&self, probe: &Probe) -> String {
        let place = if probe.inbound { &self.node } else { &self.namespace };
        // A lost packet is no verdict.
        place.run(|| match ask(probe) {
            verdict if verdict == "silent" => ask(probe),
            verdict => verdict,
        })
    }
}

/// One connection or datagram.
#[derive(Debug, Clone)]
pub struct Probe {
    pub inbound: bool,
    pub udp: bool,
    pub mark: u32,
    pub transparent: bool,
    pub from: Option<IpAddr>,
    pub from_port: u16,
    pub to: IpAddr,
    pub port: u16,
}

impl Probe {
    /// Reads the recording's notation, such as `app tcp mark=0x539 to 10.1.2.3 80`. `None`: of a
    /// part of the recording that is left out here.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let at = |word: &str| words.iter().position(|w| *w == word);
        let after = |word: &str| at(word).and_then(|at| words.get(at + 1).copied());
        let to: IpAddr = after("to")?.parse().ok()?;
        let udp = words[1] == "udp";
        let transparent = at("transparent").is_some();
        let odd_loopback = to.is_loopback() && to != IpAddr::from([127, 0, 0, 1]) && to.is_ipv4();
        // The stand-in here does not go on by itself, and an answer leaves from one address only.
        let left_out = at("say").is_some() || (udp && (transparent || odd_loopback)) || text.contains(" port ");
        let of_machines = ["10.0.2.1", "fd10:0:2::1"].contains(&after("to")?);
        if left_out || of_machines || !["app", "in"].contains(&words[0]) {
            return None;
        }
        let mark = words.iter().find_map(|word| word.strip_prefix("mark=0x"));
        Some(Self {
            inbound: words[0] == "in",
            udp,
            mark: mark.map_or(0, |mark| u32::from_str_radix(mark, 16).unwrap()),
            transparent,
            from: after("from").map(|from| from.parse().unwrap()),
            from_port: 0,
            to,
            port: words.last()?.parse().ok()?,
        })
    }
}

fn ask(probe: &Probe) -> String {
    let domain = if probe.to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, if probe.udp { Type::DGRAM } else { Type::STREAM }, None).unwrap();
    if probe.mark != 0 {
        socket.set_mark(probe.mark).unwrap();
    }
    if probe.transparent {
        transparent(&socket, probe.to.is_ipv4());
    }
    let result = (|| {
        if let Some(from) = probe.from {
            socket.bind(&SocketAddr::new(from, probe.from_port).into())?;
        }
        socket.set_read_timeout(Some(TIMEOUT))?;
        let to = SocketAddr::new(probe.to, probe.port).into();
        if probe.udp {
            socket.connect(&to)?;
            socket.send(b"?")?;
        } else {
            socket.connect_timeout(&to, TIMEOUT)?;
        }
        let mut buffer = [0; 64];
        let length = std::io::Read::read(&mut &socket, &mut buffer)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })();
    use std::io::ErrorKind as E;
    match result {
        Ok(tag) => tag,
        Err(e) => match e.kind() {
            E::ConnectionRefused | E::ConnectionReset => "refused".into(),
            E::WouldBlock | E::TimedOut => "silent".into(),
            _ => "unroutable".into(),
        },
    }
}

fn check(backend: &str) {
    let (mut wrong, mut asked) = (Vec::new(), 0);
    for case in recorded(VERDICTS) {
        let steps = case["steps"].as_array().unwrap();
        let virtual_machines = steps.iter().any(|step| strings(step).iter().any(|word| word.contains("tap")));
        if case.get("host").is_some() || virtual_machines {
            continue;
        }
        let pod = Pod::new(&refs(&strings(&case["addresses"])));
        for step in steps {
            let step = strings(step);
            let arguments: Vec<&str> = [step[0].as_str(), "--backend", backend]
                .into_iter()
                .chain(step[1..].iter().map(String::as_str))
                .collect();
            let output = pod.namespace.command(PODWEIR, &arguments, &[]);
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let verdicts = case["verdicts"].as_object().unwrap();
        // Every ninth one, and every third of what bears a mark that rules or routing ask for.
        for (at, (key, want)) in verdicts.iter().enumerate() {
            let of_slice = |probe: &Probe| at % if [MARK, ANSWER_MARK].contains(&probe.mark) { 3 } else { 9 } == 0;
            let Some(probe) = Probe::parse(key).filter(of_slice) else { continue };
            let who = |verdict: &str| match verdict.split(' ').next().unwrap() {
                // By which error an app hears that routing by its mark leads nowhere is the kernel's to say.
                "refused" | "unroutable" | "silent" if probe.mark == ANSWER_MARK => "nobody".to_owned(),
                who => who.to_owned(),
            };
            let (want, got) = (who(want.as_str().unwrap()), who(&pod.ask(&probe)));
            asked += 1;
            if want != got {
                wrong.push(format!("{}: {key}: expected {want}, got {got}", case["name"]));
            }
        }
    }
    assert!(asked > 300, "{asked}");
    assert!(wrong.is_empty(), "{} of {asked} probes:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn recorded_verdicts_natively() {
    check(BACKENDS[0]);
}

#[test]
fn recorded_verdicts_on_iptables_nft() {
    check(BACKENDS[1]);
}

#[test]
fn recorded_verdicts_on_iptables_legacy() {
    check(BACKENDS[2]);
}

/// What is wanted of the pod by the arguments of a recorded step.
fn wanted(step: &[String]) -> AmbientOptions {
    let value = |name: &str| step.iter().position(|word| word == name).map(|at| step[at + 1].as_str());
    AmbientOptions {
        families: if value("--ip-families") == Some("ipv4") { Families::V4 } else { Families::BOTH },
        dns: !step.iter().any(|word| word == "--dns-capture=false"),
        ingress: step.iter().any(|word| word == "--ingress-mode"),
        virtual_interfaces: Vec::new(),
    }
}

/// Who audit says gets a connection.
fn told(source: &Source, probe: &Probe) -> Taker {
    let owner = (!probe.inbound).then_some(0);
    let flow = Flow {
        direction: if probe.inbound { Direction::Inbound } else { Direction::Outbound },
        protocol: if probe.udp { protocol::UDP } else { protocol::TCP },
        uid: owner,
        gid: owner,
        source: probe.from,
        source_port: None,
        destination: probe.to,
        port: probe.port,
        interface: None,
        mark: probe.mark,
    };
    explain(&source.ruleset, &source.pod, &flow, &mut NoTrace).taker
}

/// Who answered, in audit's words; `None`: nobody, so that rules do not tell who would have.
fn taker(answer: &str, probe: &Probe, own: &[IpAddr]) -> Option<Taker> {
    let to_others = !probe.inbound && !probe.to.is_loopback() && !own.contains(&probe.to);
    Some(match answer {
        "ztunnel-outbound" => Taker::OutboundProxy,
        "ztunnel-inbound" => Taker::InboundProxy,
        "ztunnel-dns" => Taker::DnsProxy,
        // The pod's own app is not whom it was for.
        "app" if to_others => Taker::Dropped,
        "app" | "outside" => Taker::Direct,
        // Everything else has a route, and everybody outside answers.
        "unroutable" | "refused" if to_others && probe.mark & 0xfff == ANSWER_MARK => Taker::Dropped,
        _ => return None,
    })
}

const IPS: [&str; 2] = ["10.244.0.6/24", "fd00:10:244::6/64"];

fn probes() -> impl Strategy<Value = Probe> {
    let address = |texts: &'static [&'static str]| select(texts).prop_map(|text| text.parse::<IpAddr>().unwrap());
    let out = address(&["198.51.100.7", "10.1.2.3", "2001:db8::7", "10.244.0.6", "fd00:10:244::6", "127.0.0.1", "::1"]);
    let own = address(&["10.244.0.6", "fd00:10:244::6"]);
    // From anywhere, and from where the kubelet's probes come.
    let from = (any::<bool>(), any::<bool>()).prop_map(|(probe, far)| match (probe, far) {
        (true, _) => ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"],
        (false, true) => ["203.0.113.7", "2001:db8:77::7"],
        (false, false) => ["", ""],
    });
    // Ports of ztunnel's own tell nothing of who was meant.
    let port = select(&[53u16, 80, 443, 8080, 9000][..]);
    let mark = prop_oneof![3 => Just(0u32), 1 => select(vec![MARK, 0x1539, 0x53a, 0x100_0539, 0x112])];
    let mark = prop_oneof![3 => mark, 1 => select(vec![ANSWER_MARK, 0x1111])];
    (any::<bool>(), any::<bool>(), out, own, from, port, mark).prop_map(|(inbound, udp, out, own, from, port, mark)| {
        let to = if inbound { own } else { out };
        let from = from[usize::from(to.is_ipv6())].parse().ok().filter(|_| inbound);
        // A mark is the sender's machine's own: it does not come in from outside.
        let mark = if inbound { 0 } else { mark };
        Probe { inbound, udp, mark, transparent: false, from, from_port: 0, to, port }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(12)))]

    /// Random flows of an ambient pod, with random options: audit says of each what the kernel does.
    #[test]
    fn random_flows_are_told_as_the_kernel_takes_them(
        dns in any::<bool>(), ingress in any::<bool>(), both in any::<bool>(), backend in select(&BACKENDS[..]),
        probes in vec(probes(), 12),
    ) {
        let pod = Pod::new(&IPS);
        let dns_capture = format!("--dns-capture={dns}");
        let mut arguments = vec!["ambient", "--backend", backend, &dns_capture];
        arguments.extend(ingress.then_some("--ingress-mode"));
        arguments.extend(if both { ["--ip-families", "both"] } else { ["--ip-families", "ipv4"] });
        let output = pod.namespace.command(PODWEIR, &arguments, &[]);
        prop_assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let options = AmbientOptions {
            families: if both { Families::BOTH } else { Families::V4 },
            dns,
            ingress,
            virtual_interfaces: Vec::new(),
        };
        let own: Vec<IpAddr> = IPS.iter().map(|ip| ip.split('/').next().unwrap().parse().unwrap()).collect();
        let source = options::of_ambient(&options, &KnownPod { addresses: own.clone(), ..KnownPod::default() });
        for probe in probes {
            let answer = pod.ask(&probe);
            let Some(taker) = taker(&answer, &probe, &own) else { continue };
            prop_assert_eq!(told(&source, &probe), taker, "{:?}: {} answered; {:?}", probe, answer, arguments);
        }
    }
}

/// What the kernel did with these connections is what audit says of them, by the rules alone.
#[test]
fn audit_tells_who_answered_in_the_kernel() {
    let (mut wrong, mut asked, mut back) = (Vec::new(), 0, 0);
    for case in recorded(VERDICTS) {
        let steps = case["steps"].as_array().unwrap();
        let Some(last) = steps.last().map(strings) else { continue };
        if case.get("host").is_some() || last.iter().any(|word| word.contains("tap") || word == "--remove") {
            continue;
        }
        let addresses: Vec<IpAddr> = strings(&case["addresses"])
            .iter()
            .map(|address| address.split('/').next().unwrap().parse().unwrap())
            .collect();
        let pod = KnownPod { addresses: addresses.clone(), ..KnownPod::default() };
        let source = options::of_ambient(&wanted(&last), &pod);
        for (key, want) in case["verdicts"].as_object().unwrap() {
            // Where rules do not tell who listens is not looked at.
            let counts = |probe: &Probe| ![15006, 15053].contains(&probe.port);
            let Some(probe) = Probe::parse(key).filter(counts) else { continue };
            let want = match want.as_str().unwrap().split(' ').next().unwrap() {
                "silent" => continue,
                answer => taker(answer, &probe, &addresses).unwrap_or(Taker::Direct),
            };
            let got = told(&source, &probe);
            asked += 1;
            back += usize::from(probe.mark == ANSWER_MARK && got == Taker::Dropped);
            if got != want {
                wrong.push(format!("{}: {key}: expected {want}, got {got}", case["name"]));
            }
        }
    }
    assert!(asked > 1000 && back > 50, "{asked}, {back} of them routed back into the pod");
    assert!(wrong.is_empty(), "{} of {asked} flows:\n{}", wrong.len(), wrong.join("\n"));
}
