//! A stub API server over TLS, with a certificate authority of its own and a token, that
//! answers as told; and the kubeconfig that leads to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

pub const TOKEN: &str = "the-plugin's-token";

/// What a request gets.
#[derive(Clone)]
pub enum Answer {
    /// A pod, whatever its name is: the one that was asked for.
    Pod(Value),
    /// A pod that is there by this name; there is no other.
    Named(&'static str, Value),
    /// These words.
    Json(Value),
    /// A refusal as the API server words it.
    Refuse(u16, &'static str),
    /// A status with a body that is no JSON.
    Text(u16, &'static str),
    /// Nothing for a while, then the pod.
    Slow(Duration, Value),
    /// Half of the pod, then the end of the connection.
    HalfClosed(Value),
    /// An answer of so many bytes.
    Long(usize),
    /// The end of the connection.
    Closed,
}

/// A certificate authority, and a server's certificate from it for 127.0.0.1 and localhost.
struct Authority {
    pem: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
    config: Arc<ServerConfig>,
}

fn make_authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "api.cluster.test".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = clients.allow_unauthenticated().build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(clients);
    let config = config.with_single_cert(vec![certificate.der().clone()], private).unwrap();
    Authority { pem: issuer.pem(), issuer, config: Arc::new(config) }
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(make_authority)
}

/// How a server of the authority's talks TLS.
pub fn tls() -> Arc<ServerConfig> {
    authority().config.clone()
}

/// The certificate of an authority that nobody has a certificate from.
pub fn other_authority() -> String {
    make_authority().pem
}

/// A client's certificate from the authority, and its key, as a kubeconfig holds them.
pub fn client_certificate() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(Vec::new()).unwrap().signed_by(&key, &authority().issuer).unwrap();
    (base64(&certificate.pem()), base64(&key.serialize_pem()))
}

/// A running server; it ends when this is dropped.
pub struct Api {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    paths: Arc<Mutex<Vec<String>>>,
}

impl Api {
    /// Answers the n-th request, counted from 0, with what the closure gives. Whoever
    /// shows neither the token nor a certificate is refused.
    pub fn start(answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, paths) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counter, seen, answer) = (requests.clone(), paths.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (counter, seen, answer) = (counter.clone(), seen.clone(), answer.clone());
                std::thread::spawn(move || {
                    // A client that goes away is no failure of the server's.
                    let _ = serve(stream, &counter, &seen, &*answer);
                });
            }
        });
        Self { address, requests, paths }
    }

    /// Knows one pod, whoever asks.
    pub fn with_pod(pod: &Value) -> Self {
        let pod = pod.clone();
        Self::start(move |_| Answer::Pod(pod.clone()))
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }

    /// Writes the kubeconfig into a run directory.
    pub fn write_kubeconfig(&self, run_dir: &Path) {
        let server = format!("https://{}", self.address);
        let path = run_dir.join("kubeconfig");
        std::fs::write(&path, kubeconfig(&server, &authority().pem, TOKEN)).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    pub fn authority() -> &'static str {
        &authority().pem
    }
}

pub fn kubeconfig(server: &str, authority: &str, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "local", "cluster": { "server": server, "certificate-authority-data": base64(authority) } }],
        "users": [{ "name": "plugin", "user": { "token": token } }],
        "contexts": [{ "name": "c", "context": { "cluster": "local", "user": "plugin" } }],
    });
    format!("{config:#}\n")
}

pub fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0u32, |all, &b| all << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let letter = char::from(LETTERS[(bits >> (18 - 6 * at) & 63) as usize]);
            out.push(if at <= chunk.len() { letter } else { '=' });
        }
    }
    out
}

/// A pod with the names that a path asks for.
fn called_by(path: &str, mut pod: Value) -> Value {
    if let ["", "api", "v1", "namespaces", namespace, "pods", name] = path.split('/').collect::<Vec<_>>()[..] {
        pod["metadata"]["namespace"] = json!(namespace);
        pod["metadata"]["name"] = json!(name);
    }
    pod
}

fn serve(
    stream: TcpStream,
    counter: &AtomicUsize,
    paths: &Mutex<Vec<String>>,
    answer: &dyn Fn(usize) -> Answer,
) -> std::io::Result<()> {
    let socket = stream.try_clone()?;
    let connection = ServerConnection::new(authority().config.clone()).unwrap();
    let mut tls = BufReader::new(StreamOwned::new(connection, stream));
    let (mut first, mut token) = (String::new(), String::new());
    tls.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if tls.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("authorization:") {
            token = value.trim().to_owned();
        }
    }
    let n = counter.fetch_add(1, Ordering::SeqCst);
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    paths.lock().unwrap().push(path.clone());
    let allowed = token == format!("bearer {TOKEN}") || tls.get_ref().conn.peer_certificates().is_some();
    let answer = match allowed.then(|| answer(n)) {
        None => Answer::Refuse(401, "Unauthorized"),
        Some(Answer::Named(name, _)) if !path.ends_with(&format!("/pods/{name}")) => Answer::Refuse(404, "NotFound"),
        Some(answer) => answer,
    };
    let (status, body, sent) = match answer {
        Answer::Pod(pod) => (200, called_by(&path, pod).to_string(), usize::MAX),
        Answer::Named(_, pod) => (200, called_by(&path, pod).to_string(), usize::MAX),
        Answer::Json(words) => (200, words.to_string(), usize::MAX),
        Answer::Long(bytes) => (200, format!("{{\"x\":\"{}\"}}", "x".repeat(bytes)), usize::MAX),
        Answer::Refuse(code, reason) => {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": reason, "reason": reason, "code": code });
            (code, status.to_string(), usize::MAX)
        }
        Answer::Text(code, text) => (code, text.to_owned(), usize::MAX),
        Answer::Slow(time, pod) => {
            std::thread::sleep(time);
            (200, called_by(&path, pod).to_string(), usize::MAX)
        }
        Answer::HalfClosed(pod) => {
            let body = pod.to_string();
            let half = body.len() / 2;
            (200, body, half)
        }
        Answer::Closed => return socket.shutdown(Shutdown::Both),
    };
    let mut tls = tls.into_inner();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    tls.write_all(head.as_bytes())?;
    tls.write_all(&body.as_bytes()[..sent.min(body.len())])?;
    tls.flush()?;
    tls.conn.send_close_notify();
    tls.flush()?;
    socket.shutdown(Shutdown::Write)?;
    // Until the other side is done as well, or what was sent may be lost.
    let _ = tls.read(&mut [0; 64]);
    Ok(())
}
