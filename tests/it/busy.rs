//! A pod whose sidecar really relays, under load: streams that never rest, both ways, new
//! connections, datagrams, and what came of them; packets of the app that got outside past
//! the proxy.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::Type;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::fixture::Namespace;
use crate::pod::{OUTSIDE, connect};
use crate::relay::{MARK, Mode, Owner, PROXY, Stop, Worker, classify, echo, new_socket, receive, relay, send, stopped};

/// The app's addresses.
const APP: [&str; 2] = ["10.244.0.6", "fd00:10:244::6"];
/// Where the app's streams go.
pub const AWAY: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const AWAY_PORT: u16 = 80;
pub const NAME_SERVER: &str = "198.51.100.53";
const APP_PORT: u16 = 8080;
/// More than anything takes but what is broken. A guard with TPROXY drops every packet, and TCP sends
/// again after 0.2 s and then twice as long each time: where change follows on change for half a
/// minute, the next try may be 25 s away when they are over.
const PATIENCE: Duration = Duration::from_secs(90);
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
            let (tally, abandoned, task) = (tally.clone(), tally.clone(), task.clone());
            Worker::start(namespace, owner, move |stop| {
                let each = (0..each_way).map(|n| tokio::spawn(task(ends[n % 2], stop.clone(), tally.clone())));
                let each: Vec<_> = each.collect();
                async move {
                    let all = async {
                        for task in each {
                            task.await.unwrap();
                        }
                    };
                    tokio::select! {
                        () = all => {}
                        () = abandoned.abandoned.notified() => {}
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
    /// Nobody wants to know any more what comes of connections that are open.
    abandoned: Notify,
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

    /// Ends it, whatever becomes of its connections.
    pub fn abandon(self) {
        self.workers.iter().for_each(|worker| worker.stop.store(true, Ordering::Relaxed));
        self.tally.abandoned.notify_waiters();
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
