//! A sidecar that really relays: as a TPROXY proxy (transparent, marking, with the client's
//! address towards the app) or as a REDIRECT proxy (original destination, 127.0.0.6 and ::6
//! towards the app). An app and an outside that send everything back.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

use crate::fixture::Namespace;
use crate::pod::transparent;

/// From where the proxy connects to the outside.
pub const PROXY: [&str; 2] = ["10.244.0.7", "fd00:10:244::7"];
/// Where the proxy listens.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// The class in the IP header of every packet that a socket of the app sends (CS1).
const CLASS: u32 = 0x20;
pub const MARK: u32 = 1337;

/// How the sidecar takes inbound connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Redirect,
    Tproxy,
}

impl Mode {
    pub const BOTH: [Mode; 2] = [Mode::Redirect, Mode::Tproxy];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        if self == Mode::Tproxy { "TPROXY" } else { "REDIRECT" }
    }
}

/// Who a socket belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Set when a worker is to end.
pub type Stop = Arc<AtomicBool>;

pub fn stopped(stop: &Stop) -> bool {
    stop.load(Ordering::Relaxed)
}

async fn until(stop: Stop) {
    while !stopped(&stop) {
        sleep(Duration::from_millis(20)).await;
    }
}

/// A thread in a namespace, with an owner of its sockets; it ends when this is dropped.
pub struct Worker {
    pub stop: Stop,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Worker {
    /// `work` makes what is to be there at once, and gives what is left to do.
    pub fn start<F: Future<Output = ()>>(
        namespace: &Namespace,
        owner: Owner,
        work: impl FnOnce(Stop) -> F + Send + 'static,
    ) -> Self {
        let stop = Stop::default();
        let told = stop.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = namespace.run(move || {
            // Threads inherit the namespace from the one that makes them.
            std::thread::spawn(move || {
                setfsgid(Gid::from_raw(owner.gid));
                setfsuid(Uid::from_raw(owner.uid));
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let work = work(told);
                    ready.send(()).unwrap();
                    work.await;
                });
            })
        });
        is_ready.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("a worker panicked");
        }
    }
}

pub fn new_socket(family: IpAddr, kind: Type) -> Socket {
    let domain = if family.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    if family.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    if kind == Type::STREAM {
        socket.set_tcp_nodelay(true).unwrap();
    }
    socket
}

/// Lets a socket's packets be told from those of all others, wherever they get to.
pub fn classify(socket: &Socket, family: IpAddr) {
    if family.is_ipv4() { socket.set_tos_v4(CLASS).unwrap() } else { socket.set_tclass_v6(CLASS).unwrap() }
}

pub async fn send(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

pub async fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Moves bytes until there are no more.
async fn pump(from: Arc<TcpStream>, to: Arc<TcpStream>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = receive(&from, &mut buffer).await {
        if send(&to, &buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = SockRef::from(&*to).shutdown(Shutdown::Write);
}

fn listen(port: u16, prepare: impl Fn(&Socket, IpAddr)) -> [TcpListener; 2] {
    EVERYWHERE.map(|address| {
        let socket = new_socket(address, Type::STREAM);
        socket.set_reuse_address(true).unwrap();
        prepare(&socket, address);
        socket.bind(&SocketAddr::new(address, port).into()).unwrap();
        socket.listen(1024).unwrap();
        TcpListener::from_std(socket.into()).unwrap()
    })
}

const EVERYWHERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Sends everything back.
pub fn echo(port: u16, of_the_app: bool, stop: Stop) -> impl Future<Output = ()> {
    for listener in listen(port, |socket, family| {
        if of_the_app {
            classify(socket, family)
        }
    }) {
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream = Arc::new(stream);
                tokio::spawn(pump(stream.clone(), stream));
            }
        });
    }
    for any in EVERYWHERE {
        let socket = new_socket(any, Type::DGRAM);
        socket.bind(&SocketAddr::new(any, port).into()).unwrap();
        let socket = tokio::net::UdpSocket::from_std(socket.into()).unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        });
    }
    until(stop)
}

/// The sidecar. With TPROXY it takes what was redirected as well, so that it can go on when
/// the mode changes.
pub fn relay(mode: Mode, stop: Stop) -> impl Future<Output = ()> {
    for (port, inbound) in [(OUTBOUND, false), (INBOUND, true)] {
        let is_transparent = inbound && mode == Mode::Tproxy;
        let prepare = |socket: &Socket, family: IpAddr| {
            if is_transparent {
                transparent(socket, family.is_ipv4())
            }
        };
        for listener in listen(port, prepare) {
            tokio::spawn(async move {
                while let Ok((stream, client)) = listener.accept().await {
                    tokio::spawn(async move {
                        let Ok(upstream) = upstream(inbound, &stream, client).await else { return };
                        let (stream, upstream) = (Arc::new(stream), Arc::new(upstream));
                        tokio::spawn(pump(stream.clone(), upstream.clone()));
                        pump(upstream, stream).await;
                    });
                }
            });
        }
    }
    until(stop)
}

/// The sidecar's own connection for one that it has accepted.
async fn upstream(inbound: bool, stream: &TcpStream, client: SocketAddr) -> io::Result<TcpStream> {
    let local = stream.local_addr()?;
    let redirected = [INBOUND, OUTBOUND].contains(&local.port());
    let to = match redirected {
        // Taken by TPROXY: both addresses are as the client has them.
        false => local,
        true if local.is_ipv4() => SockRef::from(stream).original_dst_v4()?.as_socket().unwrap(),
        true => SockRef::from(stream).original_dst_v6()?.as_socket().unwrap(),
    };
    let family = usize::from(to.is_ipv6());
    let socket = new_socket(to.ip(), Type::STREAM);
    let from: IpAddr = match (inbound, redirected) {
        (true, false) => {
            transparent(&socket, to.is_ipv4());
            socket.set_mark(MARK)?;
            client.ip()
        }
        (true, true) => ["127.0.0.6", "::6"][family].parse().unwrap(),
        (false, _) => PROXY[family].parse().unwrap(),
    };
    socket.bind(&SocketAddr::new(from, 0).into())?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}
