//! A pod with a sidecar that really relays: as a TPROXY proxy (transparent, marking, with
//! the client's address towards the app) or as a REDIRECT proxy (original destination,
//! 127.0.0.6 and ::6 towards the app). Streams through it that never rest, both ways, and
//! what came of them; packets of the app that got outside past the proxy.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::fixture::Namespace;
use crate::pod::{OUTSIDE, connect, transparent};

/// The app's addresses, and those from which the proxy connects to the outside.
const APP: [&str; 2] = ["10.244.0.6", "fd00:10:244::6"];
const PROXY: [&str; 2] = ["10.244.0.7", "fd00:10:244::7"];
/// Where the app's streams go.
pub const AWAY: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const AWAY_PORT: u16 = 80;
pub const NAME_SERVER: &str = "198.51.100.53";
const APP_PORT: u16 = 8080;
/// Where the proxy listens.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// The class in the IP header of every packet that a socket of the app sends (CS1).
const CLASS: u32 = 0x20;
const MARK: u32 = 1337;
/// More than anything takes but what is broken.
const PATIENCE: Duration = Duration::from_secs(20);

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
struct Owner {
    uid: u32,
    gid: u32,
}

const ROOT: Owner = Owner { uid: 0, gid: 0 };
const THE_APP: Owner = Owner { uid: 1000, gid: 1000 };

/// A pod, its outside, and what runs in the two.
pub struct Busy {
    pub pod: Namespace,
    pub outside: Namespace,
    _servers: [Worker; 3],
}

impl Busy {
    /// Two addresses in each family; the app listens, the outside answers for everybody.
    pub fn new(mode: Mode) -> Self {
        let pod = Namespace::bare(&format!("nameserver {NAME_SERVER}\n"));
        let outside = Namespace::bare("");
        let address = |host: &&str| format!("{host}/{}", if host.contains(':') { 64 } else { 24 });
        let addresses: Vec<String> = APP.iter().chain(&PROXY).map(address).collect();
        connect(&pod, &outside, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
        count_escapes(&outside);
        let proxy = match mode {
            Mode::Redirect => Owner { uid: 1337, gid: 1337 },
            // A transparent socket takes CAP_NET_ADMIN: injectors let this proxy be root.
            Mode::Tproxy => Owner { uid: 0, gid: 1337 },
        };
        let servers = [
            Worker::start(&pod, proxy, move |stop| relay(mode, stop)),
            Worker::start(&pod, THE_APP, |stop| echo(APP_PORT, true, stop)),
            Worker::start(&outside, ROOT, |stop| echo(OUTSIDE, false, stop)),
        ];
        Self { pod, outside, _servers: servers }
    }

    /// Streams that never rest for longer than `pause`, each way so many, half of them in
    /// each family. They are open, and have been answered.
    pub fn streams(&self, each_way: usize, pause: Duration) -> Load {
        let load = self.load(each_way, move |end, stop, tally| stream(end, pause, stop, tally));
        load.until("the streams to be open", |tally| tally.opened.get() == 2 * each_way);
        load
    }

    /// Connections opened one after the other, each way in so many places at once.
    pub fn openers(&self, each_way: usize) -> Load {
        self.load(each_way, open)
    }

    fn load<F: Future<Output = ()> + Send + 'static>(
        &self,
        each_way: usize,
        task: impl Fn(End, Stop, Arc<Tally>) -> F + Clone + Send + 'static,
    ) -> Load {
        let tally = Arc::new(Tally::default());
        let start = |namespace, owner, ends: [End; 2]| {
            let (tally, task) = (tally.clone(), task.clone());
            Worker::start(namespace, owner, move |stop| {
                let each = (0..each_way).map(|n| tokio::spawn(task(ends[n % 2], stop.clone(), tally.clone())));
                let each: Vec<_> = each.collect();
                async move {
                    for task in each {
                        task.await.unwrap();
                    }
                }
            })
        };
        let workers = [start(&self.pod, THE_APP, End::of_the_app()), start(&self.outside, ROOT, End::of_clients())];
        Load { workers, tally }
    }

    /// Packets with the app's source address, of its own sockets, that got outside.
    pub fn escaped(&self) -> u64 {
        let text = self.outside.print("nft", &["list", "chain", "inet", "escapes", "prerouting"]);
        let packets = |line: &str| line.split_once("packets ")?.1.split(' ').next()?.parse::<u64>().ok();
        text.lines().filter_map(packets).sum()
    }

    /// Connections of the pod to the outside that have the mark of taken ones.
    pub fn wrongly_marked(&self) -> Vec<String> {
        let text = self.pod.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap());
        let hosts = AWAY.map(|host| host.parse::<IpAddr>().unwrap());
        let is_away = |line: &&str| {
            let to = line.split(' ').find_map(|word| word.strip_prefix("dst=")?.parse::<IpAddr>().ok());
            to.is_some_and(|to| hosts.contains(&to))
        };
        let away: Vec<&str> = text.lines().filter(is_away).collect();
        assert!(!away.is_empty(), "no connection to the outside is tracked:\n{text}");
        let marked = format!(" mark={MARK} ");
        away.into_iter().filter(|line| line.contains(&marked)).map(str::to_owned).collect()
    }
}

fn count_escapes(outside: &Namespace) {
    let rules = format!(
        "table inet escapes {{ chain prerouting {{ type filter hook prerouting priority -450;\n\
         iifname up0 ip saddr {} ip dscp cs1 meta l4proto tcp counter\n\
         iifname up0 ip6 saddr {} ip6 dscp cs1 meta l4proto tcp counter\n}}; }}",
        APP[0], APP[1]
    );
    let output = outside.feed("nft", &["-f", "-"], &[], &rules);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Set when a worker is to end.
type Stop = Arc<AtomicBool>;

fn stopped(stop: &Stop) -> bool {
    stop.load(Ordering::Relaxed)
}

async fn until(stop: Stop) {
    while !stopped(&stop) {
        sleep(Duration::from_millis(20)).await;
    }
}

/// A thread in a namespace, with an owner of its sockets; it ends when this is dropped.
struct Worker {
    stop: Stop,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Worker {
    /// `work` makes what is to be there at once, and gives what is left to do.
    fn start<F: Future<Output = ()>>(
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

/// A number that goes up.
#[derive(Debug, Default)]
pub struct Count(AtomicUsize);

impl Count {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What came of a load.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that were answered.
    pub opened: Count,
    /// Blocks that came back.
    pub rounds: Count,
    /// What went wrong: one entry for each connection.
    pub broken: Mutex<Vec<String>>,
}

/// Connections that are being used.
pub struct Load {
    workers: [Worker; 2],
    pub tally: Arc<Tally>,
}

impl Load {
    /// Waits for what comes unless something is broken.
    fn until(&self, what: &str, holds: impl Fn(&Tally) -> bool) {
        let broken = || self.tally.broken.lock().unwrap().len();
        let waits = PATIENCE.as_millis() / 5;
        for _ in 0..waits {
            if holds(&self.tally) || broken() > 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited for {what}: {:?}", self.tally);
    }

    /// Waits until so many more connections have been answered.
    pub fn opened(&self, more: usize) {
        let before = self.tally.opened.get();
        self.until("connections", |tally| tally.opened.get() >= before + more);
    }

    /// Waits until so many more blocks have come back.
    pub fn rounds(&self, more: usize) {
        let before = self.tally.rounds.get();
        self.until("answers", |tally| tally.rounds.get() >= before + more);
    }

    /// Ends it: every connection has to be answered once more. Gives those that are broken.
    pub fn finish(self) -> Vec<String> {
        let Self { workers, tally } = self;
        workers.iter().for_each(|worker| worker.stop.store(true, Ordering::Relaxed));
        drop(workers);
        std::mem::take(&mut tally.broken.lock().unwrap())
    }
}

/// Where a connection comes from and goes to.
#[derive(Debug, Clone, Copy)]
struct End {
    from: Option<IpAddr>,
    to: SocketAddr,
    of_the_app: bool,
}

impl End {
    /// To the outside.
    fn of_the_app() -> [Self; 2] {
        [0, 1].map(|n| Self {
            from: APP[n].parse().ok(),
            to: SocketAddr::new(AWAY[n].parse().unwrap(), AWAY_PORT),
            of_the_app: true,
        })
    }

    /// To the app.
    fn of_clients() -> [Self; 2] {
        [0, 1].map(|n| Self { from: None, to: SocketAddr::new(APP[n].parse().unwrap(), APP_PORT), of_the_app: false })
    }

    async fn connect(self) -> io::Result<TcpStream> {
        let socket = new_socket(self.to.ip(), Type::STREAM);
        if self.of_the_app {
            classify(&socket, self.to.ip());
        }
        if let Some(from) = self.from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        TcpSocket::from_std_stream(socket.into()).connect(self.to).await
    }
}

fn new_socket(family: IpAddr, kind: Type) -> Socket {
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
fn classify(socket: &Socket, family: IpAddr) {
    if family.is_ipv4() { socket.set_tos_v4(CLASS).unwrap() } else { socket.set_tclass_v6(CLASS).unwrap() }
}

/// One stream: a block, its answer, a pause; once more after it has been told to stop.
async fn stream(end: End, pause: Duration, stop: Stop, tally: Arc<Tally>) {
    let result = async {
        let stream = patiently(end.connect()).await?;
        let mut number = 0;
        loop {
            let last = stopped(&stop);
            let at = |e: io::Error| io::Error::other(format!("round {number}: {e}"));
            patiently(round(&stream, number)).await.map_err(at)?;
            if number == 0 {
                tally.opened.add();
            }
            tally.rounds.add();
            number += 1;
            if last {
                return Ok::<_, io::Error>(());
            }
            sleep(pause).await;
        }
    };
    if let Err(error) = result.await {
        tally.broken.lock().unwrap().push(format!("to {}: {error}", end.to));
    }
}

/// Connections one after the other, each asked once.
async fn open(end: End, stop: Stop, tally: Arc<Tally>) {
    while !stopped(&stop) {
        let result = async {
            let stream = patiently(end.connect()).await?;
            patiently(round(&stream, 0)).await
        };
        match result.await {
            Ok(()) => tally.opened.add(),
            Err(error) => tally.broken.lock().unwrap().push(format!("to {}: {error}", end.to)),
        }
        sleep(Duration::from_millis(1)).await;
    }
}

async fn patiently<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::Error::other("no answer")))
}

/// Sends a block and expects it back.
async fn round(stream: &TcpStream, number: u64) -> io::Result<()> {
    let block = [number.to_be_bytes(); 16].concat();
    send(stream, &block).await?;
    let mut answer = vec![0; block.len()];
    let mut have = 0;
    while have < answer.len() {
        match receive(stream, &mut answer[have..]).await? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            more => have += more,
        }
    }
    if answer == block { Ok(()) } else { Err(io::Error::other("another block came back")) }
}

async fn send(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
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

async fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
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

/// Who asks whom by UDP, one datagram after the other.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// Its group has the same number.
    pub uid: u32,
    /// One of each family.
    pub hosts: [&'static str; 2],
    pub port: u16,
}

/// What came of asking.
#[derive(Debug, Default)]
pub struct Asked {
    pub sent: usize,
    /// The kernel did not take them.
    pub refused: usize,
    pub unanswered: usize,
}

impl Busy {
    /// Asks by UDP until `work` is done, but each asker at least so many times.
    pub fn ask(&self, askers: &[Asker], least: usize, work: impl FnOnce()) -> Vec<Asked> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ask = |asker: Asker| {
                scope.spawn({
                    let done = &done;
                    move || self.pod.run(|| ask_by_udp(asker, least, done))
                })
            };
            let asking: Vec<_> = askers.iter().copied().map(ask).collect();
            work();
            done.store(true, Ordering::Relaxed);
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        })
    }
}

fn ask_by_udp(asker: Asker, least: usize, done: &AtomicBool) -> Asked {
    setfsgid(Gid::from_raw(asker.uid));
    setfsuid(Uid::from_raw(asker.uid));
    let sockets = asker.hosts.map(|host| {
        let to = SocketAddr::new(host.parse().unwrap(), asker.port);
        let socket = UdpSocket::bind((any(to.ip()), 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    });
    let mut out = Asked::default();
    while out.sent < least || !done.load(Ordering::Relaxed) {
        let socket = &sockets[out.sent % 2];
        out.sent += 1;
        let number = out.sent.to_be_bytes();
        if socket.send(&number).is_err() {
            out.refused += 1;
        } else {
            let mut answer = [0; 8];
            // One that comes late answers another question.
            let mut answers = std::iter::repeat_with(|| socket.recv(&mut answer).is_ok().then_some(answer));
            let of_this = answers.by_ref().take(4).take_while(Option::is_some).any(|answer| answer == Some(number));
            out.unanswered += usize::from(!of_this);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    out
}

/// All addresses of a family.
fn any(family: IpAddr) -> IpAddr {
    if family.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

const EVERYWHERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Sends everything back.
fn echo(port: u16, of_the_app: bool, stop: Stop) -> impl Future<Output = ()> {
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
fn relay(mode: Mode, stop: Stop) -> impl Future<Output = ()> {
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
