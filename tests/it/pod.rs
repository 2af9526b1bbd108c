//! A pod with an outside that answers for every address, a stand-in proxy and an app.
//! A probe is one connection or datagram; its verdict is who answered.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, Protocol, Socket, Type};

use crate::fixture::Namespace;

pub const APP_PORTS: [u16; 12] = [22, 53, 80, 443, 3306, 8080, 9000, 15008, 15020, 15021, 15090, 25008];
/// Where everything sent to the outside is answered.
pub const OUTSIDE: u16 = 9;
const TIMEOUT: Duration = Duration::from_millis(700);

/// A thread that answers; it ends when this is dropped.
pub struct Server {
    _stop: OwnedFd,
}

pub struct Pod {
    pub namespace: Namespace,
    pub outside: Namespace,
    servers: Vec<Server>,
}

/// Who runs as what, and where the proxy listens.
#[derive(Debug, Clone, Copy)]
pub struct Proxy {
    pub outbound: u16,
    pub inbound: u16,
    pub uid: u32,
    pub gid: u32,
}

/// One connection or datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub inbound: bool,
    pub udp: bool,
    pub uid: u32,
    pub gid: u32,
    pub from: Option<IpAddr>,
    pub to: IpAddr,
    pub port: u16,
}

impl Pod {
    pub fn new(addresses: &[&str], resolv_conf: &str, proxy: Proxy) -> Self {
        let namespace = Namespace::bare(resolv_conf);
        let outside = Namespace::bare("");
        connect(&namespace, &outside, addresses);
        Self::between(namespace, outside, proxy)
    }

    /// A pod that has its interface already.
    pub fn between(namespace: Namespace, outside: Namespace, proxy: Proxy) -> Self {
        let mut pod = Self { namespace, outside, servers: Vec::new() };
        let outside = pod.outside.run(|| serve(&[("outside", OUTSIDE)], 0, 0));
        let ports = [("out-proxy", proxy.outbound), ("in-proxy", proxy.inbound), ("dns-proxy", 15053)];
        let in_pod = pod.namespace.run(|| {
            let app: Vec<(&'static str, u16)> = APP_PORTS.iter().map(|&port| ("app", port)).collect();
            [serve(&ports, proxy.uid, proxy.gid), serve(&app, 1000, 1000)]
        });
        pod.servers.push(outside);
        pod.servers.extend(in_pod);
        pod
    }

    /// Sends probes in order, all from one place, and tells who answered each.
    pub fn probe(&self, probes: &[Probe]) -> Vec<String> {
        let place = |inbound: bool| if inbound { &self.outside } else { &self.namespace };
        let mut out = Vec::new();
        for group in probes.chunk_by(|a, b| a.inbound == b.inbound) {
            out.extend(place(group[0].inbound).run(|| group.iter().map(ask_twice).collect::<Vec<_>>()));
        }
        out
    }
}

/// A veth pair between the two, routes, and an outside that takes every address for its own.
pub fn connect(pod: &Namespace, outside: &Namespace, addresses: &[&str]) {
    wire(pod, outside, addresses);
    be_everyone(outside, "up0");
}

/// The pair and the routes alone.
pub fn wire(pod: &Namespace, outside: &Namespace, addresses: &[&str]) {
    let file: &File = outside.net();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    pod.print("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "up0", "netns", &path]);
    let macs = [mac(pod, "eth0"), mac(outside, "up0")];
    let mut inside = String::new();
    let mut outer =
        String::from("addr add 10.244.0.1/24 dev up0\naddr add fd00:10:244::1/64 dev up0 nodad\nlink set up0 up\n");
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        inside += &format!("addr add {address} dev eth0 {nodad}\n");
        // No waiting for neighbour discovery.
        let host = address.split('/').next().unwrap();
        outer += &format!("neigh replace {host} lladdr {} dev up0 nud permanent\n", macs[0]);
    }
    inside += "link set eth0 up\n";
    for gateway in ["10.244.0.1", "fd00:10:244::1"] {
        if addresses.iter().any(|a| a.contains(':') == gateway.contains(':')) {
            inside += &format!("neigh replace {gateway} lladdr {} dev eth0 nud permanent\n", macs[1]);
            inside += &format!("route add default via {gateway}\n");
        }
    }
    pod.batch(&inside);
    outside.batch(&outer);
}

/// Makes a namespace answer for every address that is asked for through a device.
pub fn be_everyone(outside: &Namespace, device: &str) {
    for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        outside.print("ip", &[family, "route", "add", "local", all, "dev", "lo", "table", "100"]);
        outside.print("ip", &[family, "rule", "add", "iif", device, "lookup", "100"]);
    }
    let anyone = format!(
        "table inet anyone {{ chain prerouting {{ type nat hook prerouting priority -100; iifname \"{device}\" meta l4proto {{ tcp, udp }} redirect to :{OUTSIDE}; }}; }}"
    );
    let output = outside.feed("nft", &["-f", "-"], &[], &anyone);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The hardware address of a device.
pub fn mac(namespace: &Namespace, device: &str) -> String {
    let text = namespace.print("ip", &["-o", "link", "show", device]);
    let mut words = text.split_whitespace();
    words.find(|word| *word == "link/ether").unwrap();
    words.next().unwrap().to_owned()
}

/// Answers on the ports, TCP and UDP in both families, as a user and group of its own.
/// Sockets get their owner when they are made, so only that happens under the other ids.
pub fn serve(ports: &[(&'static str, u16)], uid: u32, gid: u32) -> Server {
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    let sockets: Vec<(&'static str, Socket, bool)> =
        ports.iter().flat_map(|&(tag, port)| listeners(tag, port)).collect();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    answering(sockets)
}

/// Answers on these ports by transparent sockets that mark what they send, as ztunnel's do. Of
/// datagrams only DNS is taken.
pub fn serve_marked(ports: &[(&'static str, u16)], mark: u32) -> Server {
    let mut sockets: Vec<(&'static str, Socket, bool)> =
        ports.iter().flat_map(|&(tag, port)| listeners(tag, port)).collect();
    sockets.retain(|(tag, _, udp)| !udp || tag.ends_with("dns"));
    for (_, socket, _) in &sockets {
        socket.set_mark(mark).unwrap();
        transparent(socket, socket.local_addr().unwrap().is_ipv4());
    }
    answering(sockets)
}

fn answering(sockets: Vec<(&'static str, Socket, bool)>) -> Server {
    let (stopped, stop) = nix::unistd::pipe().unwrap();
    std::thread::spawn(move || {
        let mut fds: Vec<PollFd> = sockets.iter().map(|(_, s, _)| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(stopped.as_fd(), PollFlags::POLLIN));
        loop {
            poll(&mut fds, PollTimeout::NONE).unwrap();
            let ready: Vec<usize> = (0..fds.len()).filter(|&i| fds[i].any().unwrap_or(true)).collect();
            if ready.contains(&sockets.len()) {
                return;
            }
            ready.into_iter().for_each(|i| answer(&sockets[i]));
        }
    });
    Server { _stop: stop }
}

fn answer((tag, socket, udp): &(&'static str, Socket, bool)) {
    if *udp {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(tag.as_bytes(), &from);
        }
    } else if let Ok((mut connection, _)) = socket.accept() {
        let _ = connection.write_all(tag.as_bytes());
    }
}

fn listeners(tag: &'static str, port: u16) -> Vec<(&'static str, Socket, bool)> {
    let mut out = Vec::new();
    // An agent's DNS proxy binds loopback only: an answer must leave from where it was asked.
    let any: [IpAddr; 2] = match tag {
        "dns-proxy" | "ztunnel-dns" => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    for address in any {
        for udp in [false, true] {
            let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let (kind, protocol) = if udp { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
            let socket = Socket::new(domain, kind, Some(protocol)).unwrap();
            socket.set_reuse_address(true).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            if tag.ends_with("proxy") {
                transparent(&socket, address.is_ipv4());
            }
            socket.bind(&SocketAddr::new(address, port).into()).unwrap_or_else(|e| panic!("{tag} {port}: {e}"));
            if !udp {
                socket.listen(256).unwrap();
            }
            socket.set_nonblocking(true).unwrap();
            out.push((tag, socket, udp));
        }
    }
    out
}

/// IP_TRANSPARENT, which TPROXY asks of a listener.
pub fn transparent(socket: &Socket, v4: bool) {
    let (level, name) =
        if v4 { (libc::SOL_IP, libc::IP_TRANSPARENT) } else { (libc::SOL_IPV6, libc::IPV6_TRANSPARENT) };
    let on: libc::c_int = 1;
    let size = std::mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the pointer is to a local of the size given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A lost packet is no verdict: two connections that are redirected to one port can meet
/// in one 5-tuple, and the kernel drops the later one's first packet.
fn ask_twice(probe: &Probe) -> String {
    match ask(probe) {
        verdict if verdict == "silent" => ask(probe),
        verdict => verdict,
    }
}

pub fn ask(probe: &Probe) -> String {
    setfsgid(Gid::from_raw(probe.gid));
    setfsuid(Uid::from_raw(probe.uid));
    let domain = if probe.to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, if probe.udp { Type::DGRAM } else { Type::STREAM }, None).unwrap();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    let to = SocketAddr::new(probe.to, probe.port);
    let result = (|| {
        if let Some(from) = probe.from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.set_read_timeout(Some(TIMEOUT))?;
        if probe.udp {
            socket.connect(&to.into())?;
            socket.send(b"?")?;
        } else {
            socket.connect_timeout(&to.into(), TIMEOUT)?;
        }
        let mut buffer = [0; 64];
        let length = (&socket).read(&mut buffer)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })();
    match result {
        Ok(tag) if tag.is_empty() => "closed".into(),
        Ok(tag) => tag,
        Err(e) => match e.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => "refused".into(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "silent".into(),
            _ => format!("unroutable ({e})"),
        },
    }
}

impl Probe {
    /// Reads the recordings' notation, such as
    /// `out tcp uid=1000 gid=1000 from 127.0.0.6 to 10.244.0.6 80` or `in udp to fd00::6 53`.
    pub fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let after = |word: &str| words.iter().position(|w| *w == word).map(|at| words[at + 1]);
        let number = |key: &str| words.iter().find_map(|w| w.strip_prefix(key)).map_or(0, |n| n.parse().unwrap());
        Self {
            inbound: words[0] == "in",
            udp: words[1] == "udp",
            uid: number("uid="),
            gid: number("gid="),
            from: after("from").map(|a| a.parse().unwrap()),
            to: after("to").unwrap().parse().unwrap(),
            port: words.last().unwrap().parse().unwrap(),
        }
    }
}
