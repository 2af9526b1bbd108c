//! DNS of the app and of the agent that answers for it, from one port to one server: the
//! same 5-tuple, which two conntrack zones keep apart. Without them the second of the two
//! goes where the first one went.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, Socket, Type};

use crate::pod::{Pod, Proxy};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];
const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };
const RESOLV: &str = "nameserver 10.96.0.10\nnameserver fd00:10:96::10\n";
/// The pod's address and the server of each family.
const FAMILIES: [(&str, &str); 2] = [("10.244.0.6", "10.96.0.10"), ("fd00:10:244::6", "fd00:10:96::10")];
const APP: u32 = 1000;
const AGENT: u32 = 1337;

/// Who answers a query of a user from a port of the pod.
fn query(user: u32, from: IpAddr, port: u16, server: IpAddr) -> String {
    setfsgid(Gid::from_raw(user));
    setfsuid(Uid::from_raw(user));
    let domain = if server.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    // A process that another test starts holds the previous socket until it is another program.
    let bound = (0..200).any(|_| {
        let bound = socket.bind(&SocketAddr::new(from, port).into()).is_ok();
        bound || {
            std::thread::sleep(Duration::from_millis(5));
            false
        }
    });
    assert!(bound, "{from} {port}");
    socket.connect(&SocketAddr::new(server, 53).into()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.send(b"?").unwrap();
    let mut answer = [std::mem::MaybeUninit::uninit(); 64];
    match socket.recv(&mut answer) {
        // SAFETY: that many bytes were received.
        Ok(length) => answer[..length].iter().map(|byte| unsafe { byte.assume_init() } as char).collect(),
        Err(e) => e.kind().to_string(),
    }
}

/// The users' queries in this order, all on one 5-tuple.
fn answers(pod: &Pod, (from, server): (&str, &str), port: u16, users: &[u32]) -> Vec<String> {
    let [from, server] = [from, server].map(|address| address.parse().unwrap());
    pod.namespace.run(|| users.iter().map(|&user| query(user, from, port, server)).collect())
}

fn pod(backend: &str, options: &[&str]) -> Pod {
    let pod = Pod::new(&["10.244.0.6/24", "fd00:10:244::6/64"], RESOLV, PROXY);
    pod.namespace.ok(&[&["init", "--redirect-dns", "--backend", backend], options].concat());
    pod
}

#[test]
fn app_and_agent_are_told_apart_on_one_5_tuple() {
    for backend in BACKENDS {
        for options in [&[][..], &["--capture-all-dns"], &["-m", "TPROXY"]] {
            let pod = pod(backend, options);
            for family in FAMILIES {
                let first = answers(&pod, family, 40_001, &[APP, AGENT, APP, AGENT]);
                assert_eq!(first, ["dns-proxy", "outside", "dns-proxy", "outside"], "{backend} {options:?} {family:?}");
                let first = answers(&pod, family, 40_002, &[AGENT, APP, AGENT, APP]);
                assert_eq!(first, ["outside", "dns-proxy", "outside", "dns-proxy"], "{backend} {options:?} {family:?}");
            }
        }
    }
}

/// What the zones are for: without them one of the two is misled.
#[test]
fn without_zones_app_and_agent_are_mixed_up() {
    for backend in BACKENDS {
        let pod = pod(backend, &[]);
        match backend {
            "nftables" => drop(pod.namespace.print("nft", &["delete", "table", "inet", "istio-proxy-raw"])),
            _ => ["iptables", "ip6tables"].into_iter().for_each(|program| {
                let program = backend.replace("iptables", program);
                drop(pod.namespace.print(&program, &["-t", "raw", "-F"]));
            }),
        }
        for family in FAMILIES {
            let first = answers(&pod, family, 40_001, &[APP, AGENT]);
            assert_eq!(first, ["dns-proxy", "dns-proxy"], "{backend} {family:?}: the agent asks itself");
            let first = answers(&pod, family, 40_002, &[AGENT, APP]);
            assert_eq!(first, ["outside", "outside"], "{backend} {family:?}: the app's query escapes");
        }
    }
}
