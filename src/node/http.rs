//! The port for kubelet and Prometheus: `/metrics`, `/readyz`, `/healthz`. Of a request only method and
//! path are used.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use super::accept;
use super::guests::{Guest, Guests};

/// How long a client may take to send its request, and to send it and be answered.
const ASKS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Address(SocketAddr),
    /// On every address of the node.
    Port(u16),
}

impl Listen {
    /// Reads an address such as `10.0.0.1:15014`, or `:15014` for every address.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).map(Self::Port),
            None => text.parse().ok().map(Self::Address),
        }
    }
}

/// The source of the port's answers.
pub trait Metered: Send + Sync + 'static {
    /// The metrics in OpenMetrics' text.
    fn metrics(&self) -> String;
    /// What keeps pods from being set up; empty when nothing does.
    fn not_ready(&self) -> Vec<String>;
    /// What hangs, so that only a restart helps; empty when nothing does.
    fn not_healthy(&self) -> Vec<String>;
}

/// Listens on the port.
///
/// # Errors
/// The operating system's, naming the address.
pub async fn bind(listen: Listen) -> io::Result<TcpListener> {
    let addresses = match listen {
        Listen::Address(address) => vec![address],
        // One socket for both families, or IPv4 alone on a node without IPv6.
        Listen::Port(port) => vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()],
    };
    let listener = TcpListener::bind(&addresses[..]).await;
    listener.map_err(|e| {
        let shown = addresses.last().map(ToString::to_string).unwrap_or_default();
        io::Error::new(
            e.kind(),
            format!("cannot listen on {shown} for metrics and probes: {e}; choose another with --listen"),
        )
    })
}

/// Answers requests for ever.
pub async fn serve(listener: TcpListener, told: Arc<dyn Metered>) {
    let guests = Arc::<Guests>::default();
    loop {
        let stream = accept::next(&listener, "for metrics and probes").await;
        // Who has no place is let go at once: while it waited, others would wait behind it.
        let Some(guest) = admit(&guests, &stream) else { continue };
        let told = told.clone();
        tokio::spawn(async move {
            // Who asks and goes is not missed.
            let _ = tokio::time::timeout(PATIENCE, connection(stream, told)).await;
            drop(guest);
        });
    }
}

fn admit(guests: &Arc<Guests>, stream: &TcpStream) -> Option<Guest> {
    // One without addresses has gone already.
    let (peer, here) = (stream.peer_addr().ok()?, stream.local_addr().ok()?);
    let guest = guests.admit(peer.ip(), here.ip());
    if guest.is_none() {
        debug!(%peer, "too many ask for metrics and probes: this one is let go");
    }
    guest
}

async fn connection(stream: TcpStream, told: Arc<dyn Metered>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let answer = answer(&request, &*told);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(ASKS).max_buf_size(16 << 10).keep_alive(false);
    server.serve_connection(TokioIo::new(stream), service).await
}

fn answer(request: &Request<Incoming>, told: &dyn Metered) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let problems = |problems: Vec<String>| match problems.is_empty() {
        true => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, problems.join("\n") + "\n"),
    };
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, OPENMETRICS, told.metrics()),
        (&Method::GET | &Method::HEAD, "/readyz") => problems(told.not_ready()),
        (&Method::GET | &Method::HEAD, "/healthz") => problems(told.not_healthy()),
        (_, "/metrics" | "/readyz" | "/healthz") => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, PLAIN, "there are /metrics, /readyz and /healthz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Fixed(Vec<String>);

    impl Metered for Fixed {
        fn metrics(&self) -> String {
            "# EOF\n".into()
        }

        fn not_ready(&self) -> Vec<String> {
            self.0.clone()
        }

        fn not_healthy(&self) -> Vec<String> {
            Vec::new()
        }
    }

    /// Connects from an address of this computer.
    async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        ask_from([127, 0, 0, 1], address, request).await
    }

    async fn ask_from(from: [u8; 4], address: SocketAddr, request: &str) -> String {
        let mut stream = connect(from, address).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test(flavor = "current_thread")]
    async fn paths_are_answered_and_nonsense_is_refused() {
        let listener = bind(Listen::parse("127.0.0.1:0").unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(Fixed(vec!["the chain has no entry".into()]))));
        let get = |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").leak()[..]);
        assert!(get("/metrics").await.contains("# EOF"));
        let ready = get("/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("the chain has no entry"), "{ready}");
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/etc/passwd").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        assert!(ask(address, "\0\0\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let taken = bind(Listen::Address(address)).await.unwrap_err().to_string();
        assert!(taken.contains(&address.to_string()) && taken.contains("--listen"), "{taken}");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn requests_that_do_not_end_keep_nobody_else_from_being_answered() {
        // Time stands still as long as this waits, which is until the test is over.
        let (over, stands_still) = std::sync::mpsc::channel::<()>();
        let hung = tokio::task::spawn_blocking(move || stands_still.recv_timeout(Duration::from_secs(120)));
        let listener = bind(Listen::parse("127.0.0.1:0").unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(Fixed(Vec::new()))));
        let test = async {
            let mut held = Vec::new();
            for _ in 0..200 {
                let mut stream = connect([127, 0, 0, 2], address).await;
                // One that was let go already cannot be written to.
                let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n").await;
                held.push(stream);
            }
            let request = "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
            for from in [[127, 0, 0, 1], [127, 0, 0, 3]] {
                assert!(ask_from(from, address, request).await.starts_with("HTTP/1.1 200"), "{from:?}");
            }
            // Those that were let go have ended; four are still waited for.
            let mut waiting = Vec::new();
            for mut stream in held {
                match stream.try_read(&mut [0; 64]) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => waiting.push(stream),
                    _ => drop(stream.shutdown().await),
                }
            }
            assert_eq!(waiting.len(), 4);
            tokio::time::advance(ASKS + Duration::from_millis(1)).await;
            for mut stream in waiting {
                let mut text = Vec::new();
                // With an answer or without one: it ends.
                let _ = stream.read_to_end(&mut text).await;
            }
            assert!(ask_from([127, 0, 0, 2], address, request).await.starts_with("HTTP/1.1 200"));
        };
        tokio::select! {
            () = test => {}
            _ = hung => panic!("somebody was not answered"),
        }
        drop(over);
    }
}
