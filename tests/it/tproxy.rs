//! What the routing of marked packets does for TPROXY, and what `verify` says of a pod
//! that lacks it: the same as the kernel does.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::fixture::{V4, V6};
use crate::pod::{Pod, Probe, Proxy, transparent};

const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };

/// Connects to the app as a proxy does that keeps the client's address.
fn relay(pod: &Pod, client: IpAddr, app: IpAddr) -> bool {
    pod.namespace.run(|| {
        let domain = if app.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        transparent(&socket, app.is_ipv4());
        socket.set_mark(1337).unwrap();
        socket.bind(&SocketAddr::new(client, 0).into()).unwrap();
        let limit = Duration::from_millis(500);
        let connected = socket.connect_timeout(&SocketAddr::new(app, 8080).into(), limit);
        socket.set_read_timeout(Some(limit)).unwrap();
        let mut answer = String::new();
        connected.is_ok() && (&socket).read_to_string(&mut answer).is_ok() && answer == "app"
    })
}

#[test]
fn what_is_lost_without_the_routing_of_marked_packets() {
    for backend in ["nftables", "iptables-legacy"] {
        let pod = Pod::new(&[V4, V6], "", PROXY);
        pod.namespace.ok(&["init", "--backend", backend, "-m", "TPROXY"]);
        pod.outside.batch("route add 198.51.100.0/24 via 10.244.0.6\nroute add 2001:db8:5::/48 via fd00:10:244::6\n");
        let own = Probe::parse("in tcp to 10.244.0.6 8080");
        let other = Probe::parse("in tcp to 198.51.100.9 8080");
        let v6 = [Probe::parse("in tcp to fd00:10:244::6 8080"), Probe::parse("in tcp to 2001:db8:5::9 8080")];
        let all = [own, other, v6[0].clone(), v6[1].clone()];
        let relays = || {
            let pair = |client: &str, app: &str| relay(&pod, client.parse().unwrap(), app.parse().unwrap());
            [pair("10.244.0.1", "10.244.0.6"), pair("fd00:10:244::1", "fd00:10:244::6")]
        };
        assert_eq!(pod.probe(&all), ["in-proxy"; 4], "{backend}");
        assert_eq!(relays(), [true, true], "{backend}");
        for family in ["-4", "-6"] {
            pod.namespace.print("ip", &[family, "rule", "del", "fwmark", "1337"]);
        }
        assert_eq!(pod.probe(&all), ["in-proxy", "silent", "in-proxy", "silent"], "{backend}");
        assert_eq!(relays(), [false, false], "{backend}");
        let output = pod.namespace.podweir(&["verify", "--live", "--", "-m", "TPROXY"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let words = "expected, not found: the IPv4 rule 'fwmark 0x539 lookup 133'\n    effect: connections to the pod reach the proxy all the same; \
            where it connects to the app with the client's address the app's answers leave the pod, so that it gets none; \
            connections to addresses that are not the pod's own are dropped\n";
        assert!(text.contains(words), "{text}");
    }
}
