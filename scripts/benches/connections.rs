//! What a connection costs as lists grow: an app's connection that meets no entry of the
//! list and is taken by the proxy, from `connect` until both ends are closed.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::median;
use crate::namespace::{fresh, run, within};
use crate::plot::{self, Line};

const LENGTHS: [usize; 4] = [5, 50, 500, 5000];
const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];
/// Rounds of this many connections each, interleaved over all lengths and backends.
const ROUNDS: usize = 60;
const CONNECTIONS: usize = 100;
/// Not in any list.
const TARGET: ([u8; 4], u16) = ([198, 51, 100, 7], 80);

/// What is excluded.
#[derive(Clone, Copy)]
enum List {
    Ranges,
    Ports,
}

impl List {
    fn options(self, length: usize) -> [String; 2] {
        match self {
            List::Ranges => {
                let ranges = (0..length).map(|n| format!("100.{}.{}.0/25", 64 + n / 200, n % 200));
                ["-x".into(), ranges.collect::<Vec<_>>().join(",")]
            }
            List::Ports => {
                let ports = (0..length).map(|n| (1001 + 3 * n).to_string());
                ["-o".into(), ports.collect::<Vec<_>>().join(",")]
            }
        }
    }
}

/// A pod whose proxy takes connections, and a measurement for each round.
struct Pod {
    namespace: File,
    microseconds: Vec<f64>,
}

impl Pod {
    fn new(podweir: &str, backend: &str, options: &[String]) -> Self {
        let namespace = fresh();
        let init = [podweir, "init", "--backend", backend, "-b", "*", "-i", "*"];
        let all: Vec<&str> = init.into_iter().chain(options.iter().map(String::as_str)).collect();
        run(&namespace, &all, "");
        Self { namespace, microseconds: Vec::new() }
    }

    fn measure(&mut self) {
        let took = within(&self.namespace, || {
            let proxy = TcpListener::bind("127.0.0.1:15001").expect("the proxy's port");
            let start = Instant::now();
            for _ in 0..CONNECTIONS {
                let target = SocketAddr::from(TARGET);
                let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).expect("diverted");
                // Closing with a reset leaves no port behind.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
                drop(proxy.accept().expect("accept"));
            }
            start.elapsed()
        });
        self.microseconds.push(took.as_secs_f64() * 1e6 / CONNECTIONS as f64);
    }
}

pub fn measure(podweir: &str, plot: &str) {
    let mut lines = Vec::new();
    for (list, name) in [(List::Ranges, "excluded CIDRs"), (List::Ports, "excluded ports")] {
        let mut pods: Vec<Vec<Pod>> = BACKENDS
            .iter()
            .map(|backend| LENGTHS.iter().map(|&n| Pod::new(podweir, backend, &list.options(n))).collect())
            .collect();
        for _ in 0..ROUNDS {
            pods.iter_mut().flatten().for_each(Pod::measure);
        }
        println!("\n| µs for a connection, {name} | {} |", LENGTHS.map(|n| n.to_string()).join(" | "));
        println!("|---|{}", "---:|".repeat(LENGTHS.len()));
        for (backend, pods) in BACKENDS.iter().zip(pods) {
            let medians: Vec<f64> = pods.into_iter().map(|pod| median(pod.microseconds)).collect();
            let cells: Vec<String> = medians.iter().map(|m| format!("{m:.1} ({:.2})", m / medians[0])).collect();
            println!("| {backend} | {} |", cells.join(" | "));
            let points = LENGTHS.into_iter().zip(medians).map(|(n, m)| (n as f64, m)).collect();
            lines.push(Line { name: format!("{backend}, {name}"), points });
        }
    }
    std::fs::write(plot, plot::draw(&lines)).expect("the plot");
}
