//! A pod with a real Envoy, an app and an outside. Whoever is connected to says in one line
//! who it is, under which address it was reached and whom it sees, and then sends back what
//! it is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, Protocol, Socket, Type};

use super::config::{Family, V4, V6};
use super::proxy::Envoy;
use crate::fixture::Namespace;
use crate::pod::mac;

/// Those of the app, which speaks HTTP on the first.
const APP: [u16; 6] = [8080, 9000, 3306, 15008, 15020, 15090];
/// Those outside, HTTP on the first.
const OUTSIDE: [u16; 4] = [80, 9000, 5432, 9443];
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Place {
    pub envoy: Envoy,
    pub app: Answers,
    pub pod: Namespace,
    pub outside: Namespace,
    _answers: Answers,
}

impl Place {
    pub fn new(families: &[Family], tproxy: bool, threads: u32) -> Self {
        let (pod, outside) = (Namespace::bare("nameserver 10.96.0.10\n"), Namespace::bare(""));
        connect(&pod, &outside, families);
        let answers = outside.run(|| Answers::start("outside", &OUTSIDE, 0));
        let app = pod.run(|| Answers::start("app", &APP, 1000));
        let envoy = Envoy::start(&pod, families, tproxy, threads);
        Self { envoy, app, pod, outside, _answers: answers }
    }
}

/// A veth pair, and an outside that has every address of its ranges.
fn connect(pod: &Namespace, outside: &Namespace, families: &[Family]) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), outside.net().as_raw_fd());
    pod.print("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "up0", "netns", &path]);
    // No waiting for neighbour discovery.
    let [inside, gateway] = [mac(pod, "eth0"), mac(outside, "up0")];
    let (mut inner, mut outer) = (String::from("link set eth0 up\n"), String::from("link set up0 up\n"));
    for family in families {
        let (length, flag) = if family.is_v4() { (24, "") } else { (64, "nodad") };
        inner += &format!("addr add {}/{length} dev eth0 {flag}\n", family.pod);
        // Deprecated: never chosen unless it is asked for.
        inner += &format!("addr add {}/{length} dev eth0 {flag} preferred_lft 0\n", family.proxy);
        inner += &format!("route add default via {}\n", family.client);
        inner += &format!("neigh replace {} lladdr {gateway} dev eth0 nud permanent\n", family.client);
        outer += &format!("addr add {}/{length} dev up0 {flag}\n", family.client);
        for address in [family.pod, family.proxy] {
            outer += &format!("neigh replace {address} lladdr {inside} dev up0 nud permanent\n");
        }
    }
    pod.batch(&inner);
    outside.batch(&outer);
    // Others than the clients have, which choose from those behind them: see ports.rs.
    pod.print("sysctl", &["-qw", "net.ipv4.ip_local_port_range=20000 32767"]);
    for family in families {
        let ranges: &[&str] = if family.is_v4() {
            &["198.51.100.0/24", "203.0.113.0/24", "10.96.0.0/24"]
        } else {
            &["2001:db8::/32", "fd00:10:96::/64"]
        };
        for range in ranges {
            outside.print("ip", &["route", "add", "local", range, "dev", "lo"]);
        }
    }
}

/// Sockets are made, and connections accepted, by a thread of this user and group: the
/// kernel's owner matches go by it.
fn become_user(uid: u32, gid: u32) {
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
}

/// Somebody who answers on ports, in both families, until it is dropped.
pub struct Answers {
    accepted: Arc<AtomicU64>,
    _stop: OwnedFd,
}

impl Answers {
    /// On the first port it speaks HTTP.
    fn start(name: &'static str, ports: &[u16], user: u32) -> Self {
        become_user(user, user);
        let mut listeners: Vec<(Socket, bool)> = Vec::new();
        for (at, &port) in ports.iter().enumerate() {
            listeners.extend([V4, V6].map(|family| (listen(&family, port), at == 0)));
        }
        let (stopped, stop) = nix::unistd::pipe().unwrap();
        let accepted = Arc::new(AtomicU64::new(0));
        let count = accepted.clone();
        std::thread::spawn(move || {
            let mut fds: Vec<PollFd> =
                listeners.iter().map(|(s, _)| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
            fds.push(PollFd::new(stopped.as_fd(), PollFlags::POLLIN));
            loop {
                poll(&mut fds, PollTimeout::NONE).unwrap();
                if fds[listeners.len()].any().unwrap_or(true) {
                    return;
                }
                for (listener, http) in &listeners {
                    while let Ok((connection, _)) = listener.accept() {
                        count.fetch_add(1, Ordering::Relaxed);
                        let http = *http;
                        std::thread::spawn(move || answer(name, &connection.into(), http));
                    }
                }
            }
        });
        Self { accepted, _stop: stop }
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

fn listen(family: &Family, port: u16) -> Socket {
    let domain = if family.is_v4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    if !family.is_v4() {
        socket.set_only_v6(true).unwrap();
    }
    let any: IpAddr = if family.is_v4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    socket.bind(&SocketAddr::new(any, port).into()).unwrap_or_else(|e| panic!("port {port}: {e}"));
    socket.listen(512).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn answer(name: &str, mut connection: &TcpStream, http: bool) -> Option<()> {
    connection.set_nonblocking(false).ok()?;
    connection.set_read_timeout(Some(6 * PATIENCE)).ok()?;
    let who = format!("{name} {} {}\n", connection.local_addr().ok()?, connection.peer_addr().ok()?.ip());
    if http {
        let mut lines = BufReader::new(connection).lines();
        while !lines.next()?.ok()?.is_empty() {}
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", who.len());
        return connection.write_all((head + &who).as_bytes()).ok();
    }
    connection.write_all(who.as_bytes()).ok()?;
    let mut buffer = [0; 256];
    loop {
        match connection.read(&mut buffer).ok()? {
            0 => return Some(()),
            length => connection.write_all(&buffer[..length]).ok()?,
        }
    }
}

/// A connection as a user; what is sent on it goes by the same owner.
pub fn open(user: (u32, u32), to: &str, port: u16) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    become_user(user.0, user.1);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None);
    become_user(0, 0);
    let socket = socket?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Who answers: the line that it says, or what came in its place. With a host the question
/// is HTTP.
pub fn ask(user: (u32, u32), to: &str, port: u16, host: Option<&str>) -> String {
    let asked = (|| {
        let mut stream = open(user, to, port)?;
        if let Some(host) = host {
            write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            return Ok(answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_owned()));
        }
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok::<_, std::io::Error>(line)
    })();
    match asked {
        Ok(line) if line.is_empty() => "closed".into(),
        Ok(line) => line.trim_end().to_owned(),
        Err(e) => e.kind().to_string(),
    }
}
