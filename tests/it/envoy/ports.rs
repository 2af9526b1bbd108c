//! With TPROXY two connections of the pod have the client's address and the app's: the
//! client's with the proxy, and the proxy's with the app. They are told apart by the source
//! port alone, which the client's kernel chooses for the one and the pod's for the other.
//! Where it is the same, the proxy's first packet counts as one of the client's connection,
//! which gets the mark that brings answers back into the pod: that client hears nothing any
//! more. No change of rules is needed for it, and whoever made them makes no difference.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::config::V4;
use super::place::{Place, ask};

const PORT: u16 = 9000;
/// The client's source port.
const SOURCE: u16 = 25000;
/// Fewer than the source ports that the proxy is left with.
const CONNECTIONS: usize = 12;

/// From which ports the pod's own connections come.
fn choose_from(place: &Place, [first, last]: [u16; 2]) {
    place.pod.print("sysctl", &["-qw", &format!("net.ipv4.ip_local_port_range={first} {last}")]);
}

fn goes_on(stream: &TcpStream) -> bool {
    let mut reader = stream;
    let mut back = [0; 4];
    let turn = (&*stream).write_all(b"turn").and_then(|()| reader.read_exact(&mut back));
    turn.is_ok() && &back == b"turn"
}

/// A stream of a client's, whose part behind the proxy has another port, and as many connections of that client's as meet it. Whether the
/// stream goes on then, and the mark of its connection.
pub fn meet(place: &Place, ports: [u16; 2]) -> (bool, Option<String>) {
    choose_from(place, APART);
    let stream = place.outside.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(V4.client.parse().unwrap(), SOURCE).into()).unwrap();
        socket.connect(&SocketAddr::new(V4.pod.parse().unwrap(), PORT).into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        TcpStream::from(socket)
    });
    BufReader::new(&stream).read_line(&mut String::new()).unwrap();
    assert!(goes_on(&stream));
    choose_from(place, ports);
    place.outside.run(|| (0..CONNECTIONS).for_each(|_| drop(ask((0, 0), V4.pod, PORT, None))));
    let tracked = place.pod.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap());
    let ends = format!("src={} dst={} sport={SOURCE} dport={PORT} ", V4.client, V4.pod);
    let of_stream = tracked.lines().find(|line| line.contains(&ends));
    let mark = of_stream.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("mark=")));
    (goes_on(&stream), mark.map(str::to_owned))
}

/// Ports next to the client's, and its own among them or not.
pub const MEETING: [u16; 2] = [SOURCE - 10, SOURCE + 9];
pub const APART: [u16; 2] = [SOURCE + 10, SOURCE + 29];
