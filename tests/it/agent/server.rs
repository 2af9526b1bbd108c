//! An API server for what a real one cannot be made to do: it lists and watches pods, takes
//! events and conditions, and misbehaves as told. Everything that is asked of it is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::api::{TOKEN, tls};

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    List,
    Watch,
    Get,
    Event,
    Condition,
    Review,
    DaemonSet,
    /// A list or watch of the agent's DaemonSet.
    DaemonSets,
    /// A list or watch of the namespaces in ambient mode.
    Namespaces,
    /// A change of a pod's annotations.
    Annotate,
    /// A change of a pod's labels.
    Label,
    Evict,
    Other,
}

/// What a request gets instead of its answer.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A refusal as the API server words it.
    Refuse(u16, &'static str),
    /// Nothing, until the test lets go.
    Hang,
    /// The end of the connection.
    Close,
    /// A watch: an event that says so, as a server sends it that has forgotten the version.
    Gone,
    /// A watch or a list: half of what there is, and nothing more, until the test lets go.
    Half,
}

#[derive(Debug, Clone)]
pub struct Asked {
    pub what: What,
    pub method: String,
    pub uri: String,
    pub body: Value,
}

type Plan = Box<dyn Fn(&Asked, usize) -> Option<Fault> + Send + Sync>;

struct Inner {
    world: Mutex<World>,
    changed: Condvar,
    faults: RwLock<Plan>,
}

struct World {
    node: &'static str,
    pods: BTreeMap<String, Value>,
    version: u64,
    /// Those in ambient mode.
    namespaces: BTreeSet<String>,
    /// Every event with its version.
    log: Vec<(u64, Value)>,
    /// Watches of an older turn end.
    turn: u64,
    /// Whoever hangs goes on when this is another.
    released: u64,
    /// How many hang.
    hanging: usize,
    asked: Vec<Asked>,
    /// Each event of a watch comes in two pieces.
    halves: bool,
    /// What the agent's DaemonSet is, or the refusal.
    daemon_set: Result<Value, (u16, &'static str)>,
    /// The node's condition.
    condition: Value,
    /// Who shows another token is refused.
    token: String,
}

/// A server; clones are the same one.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

impl Server {
    /// Starts in the network namespace of the calling thread, and knows one node.
    pub fn start(node: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let world = World {
            node,
            pods: BTreeMap::new(),
            namespaces: BTreeSet::new(),
            version: 100,
            log: Vec::new(),
            turn: 0,
            released: 0,
            hanging: 0,
            asked: Vec::new(),
            halves: false,
            daemon_set: Ok(daemon_set()),
            condition: Value::Null,
            token: TOKEN.into(),
        };
        let inner = Arc::new(Inner {
            world: Mutex::new(world),
            changed: Condvar::new(),
            faults: RwLock::new(Box::new(|_, _| None)),
        });
        let server = Self { address, inner };
        let accepting = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let server = accepting.clone();
                // A client that goes away is no failure of the server's.
                std::thread::spawn(move || server.serve(stream).is_ok());
            }
        });
        server
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Misbehaves from now on: the closure is told of a request, and how many of its kind
    /// there have been before.
    pub fn fault(&self, plan: impl Fn(&Asked, usize) -> Option<Fault> + Send + Sync + 'static) {
        *self.inner.faults.write().unwrap() = Box::new(plan);
    }

    /// Behaves from now on, and whoever hangs is let go with the end of the connection.
    pub fn behave(&self) {
        self.fault(|_, _| None);
        self.world().released += 1;
        self.inner.changed.notify_all();
    }

    /// How many requests hang.
    pub fn hanging(&self) -> usize {
        self.world().hanging
    }

    /// Creates or changes a pod, and gives its version.
    pub fn set(&self, pod: &Value) -> u64 {
        let mut world = self.world();
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = world.node.into();
        let key = key(&pod);
        let kind = if world.pods.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        let version = world.tell(kind, pod.clone());
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        world.pods.insert(key, pod);
        drop(world);
        self.inner.changed.notify_all();
        version
    }

    pub fn delete(&self, namespace: &str, name: &str) {
        let mut world = self.world();
        if let Some(pod) = world.pods.remove(&format!("{namespace}/{name}")) {
            world.tell("DELETED", pod);
        }
        drop(world);
        self.inner.changed.notify_all();
    }

    /// Puts a namespace in ambient mode, or takes it out.
    pub fn set_ambient(&self, name: &str, ambient: bool) {
        let mut world = self.world();
        let kind = match ambient {
            true if world.namespaces.insert(name.into()) => "ADDED",
            false if world.namespaces.remove(name) => "DELETED",
            _ => return,
        };
        world.tell(kind, namespace(name));
        drop(world);
        self.inner.changed.notify_all();
    }

    /// Gives a pod a label, or takes it away.
    pub fn label(&self, namespace: &str, pod: &str, name: &str, value: Option<&str>) {
        let pod = self.world().pods.get(&format!("{namespace}/{pod}")).cloned();
        let Some(mut pod) = pod else { return };
        match value {
            Some(value) => pod["metadata"]["labels"][name] = value.into(),
            None => drop(pod["metadata"]["labels"].as_object_mut().and_then(|labels| labels.remove(name))),
        }
        self.set(&pod);
    }

    /// A pod as it is.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        self.world().pods.get(&format!("{namespace}/{name}")).cloned()
    }

    /// The value of a pod's annotation.
    pub fn annotation(&self, namespace: &str, pod: &str, name: &str) -> Option<String> {
        let world = self.world();
        let pod = world.pods.get(&format!("{namespace}/{pod}"))?;
        pod["metadata"]["annotations"][name].as_str().map(str::to_owned)
    }

    /// Changes pods without telling a watch: they show in the next list.
    pub fn set_unseen(&self, pod: &Value) {
        let mut world = self.world();
        world.version += 1;
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = world.node.into();
        pod["metadata"]["resourceVersion"] = world.version.to_string().into();
        world.pods.insert(key(&pod), pod);
    }

    /// A version that no pod has.
    pub fn bookmark(&self) -> u64 {
        let mut world = self.world();
        let version = world.tell("BOOKMARK", json!({ "kind": "Pod", "apiVersion": "v1", "metadata": {} }));
        drop(world);
        self.inner.changed.notify_all();
        version
    }

    /// Ends every watch that goes on, in good order.
    pub fn end_watches(&self) {
        self.world().turn += 1;
        self.inner.changed.notify_all();
    }

    pub fn in_halves(&self, halves: bool) {
        self.world().halves = halves;
    }

    pub fn daemon_set(&self, answer: Result<Value, (u16, &'static str)>) {
        self.world().daemon_set = answer;
    }

    /// Deletes the agent's DaemonSet, or makes it again, and tells whoever watches it. Who asks for
    /// it is answered as before.
    pub fn tell_of_daemon_set(&self, kind: &str) {
        self.world().tell(kind, daemon_set());
        self.inner.changed.notify_all();
    }

    /// What an agent has told of the node, or what one before it has.
    pub fn condition(&self) -> Value {
        self.world().condition.clone()
    }

    pub fn set_condition(&self, condition: Value) {
        self.world().condition = condition;
    }

    /// From now on this is the token, in the form in which a request shows it.
    pub fn set_token(&self, token: &str) {
        self.world().token = token.into();
    }

    pub fn asked(&self, what: What) -> Vec<Asked> {
        self.world().asked.iter().filter(|asked| asked.what == what).cloned().collect()
    }

    pub fn count(&self, what: What) -> usize {
        self.asked(what).len()
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let socket = stream.try_clone()?;
        let mut tls = BufReader::new(StreamOwned::new(ServerConnection::new(tls()).unwrap(), stream));
        let Some((method, uri, body, token)) = read(&mut tls)? else { return Ok(()) };
        let mut out = Out(tls.into_inner());
        let asked = Asked { what: what(&method, &uri), method, uri, body };
        let before = self.count(asked.what);
        self.world().asked.push(asked.clone());
        let fault = match token == format!("bearer {}", self.world().token.to_lowercase()) {
            true => self.inner.faults.read().unwrap()(&asked, before),
            false => Some(Fault::Refuse(401, "Unauthorized")),
        };
        match fault {
            Some(Fault::Refuse(code, reason)) => out.answer(code, &refusal(code, reason).to_string())?,
            Some(Fault::Hang) => self.hang(),
            Some(Fault::Close) => {}
            Some(Fault::Gone) => {
                let gone = json!({ "type": "ERROR", "object": refusal(410, "Expired") });
                out.answer(200, &format!("{gone}\n"))?;
            }
            half if is_watch(&asked.uri) => self.watch(&asked, &mut out, half.is_some())?,
            half => {
                let (code, text) = self.answer(&asked);
                if half.is_some() {
                    out.head(code, Some(text.len()))?;
                    out.send(&text.as_bytes()[..text.len() / 2])?;
                    self.hang();
                } else {
                    out.answer(code, &text)?;
                }
            }
        }
        out.0.conn.send_close_notify();
        let _ = out.0.flush();
        socket.shutdown(Shutdown::Write)?;
        // Until the other side is done as well, or what was sent may be lost.
        let _ = out.0.read(&mut [0; 64]);
        Ok(())
    }

    /// Waits until the test lets go.
    fn hang(&self) {
        let mut world = self.world();
        let released = world.released;
        world.hanging += 1;
        while world.released == released {
            world = self.inner.changed.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        world.hanging -= 1;
    }

    fn watch(&self, asked: &Asked, out: &mut Out, half: bool) -> io::Result<()> {
        let mut seen: u64 = parameter(&asked.uri, "resourceVersion").and_then(|v| v.parse().ok()).unwrap_or_default();
        out.head(200, None)?;
        let turn = self.world().turn;
        loop {
            let (events, halves) = {
                let mut world = self.world();
                loop {
                    if world.turn != turn {
                        return Ok(());
                    }
                    let kind = match asked.what {
                        What::Namespaces => "Namespace",
                        What::DaemonSets => "DaemonSet",
                        _ => "Pod",
                    };
                    let mine = |event: &Value| event["object"]["kind"] == kind;
                    let new = world.log.iter().filter(|(version, event)| *version > seen && mine(event));
                    let events: Vec<(u64, Value)> = new.cloned().collect();
                    if !events.is_empty() {
                        break (events, world.halves);
                    }
                    world = self.inner.changed.wait(world).unwrap_or_else(PoisonError::into_inner);
                }
            };
            for (version, event) in events {
                let line = format!("{event}\n");
                if half {
                    out.send(&line.as_bytes()[..line.len() / 2])?;
                    self.hang();
                    return Ok(());
                }
                if halves {
                    let (first, second) = line.as_bytes().split_at(line.len() / 2);
                    out.send(first)?;
                    std::thread::sleep(Duration::from_millis(20));
                    out.send(second)?;
                } else {
                    out.send(line.as_bytes())?;
                }
                seen = version;
            }
        }
    }

    fn answer(&self, asked: &Asked) -> (u16, String) {
        let mut world = self.world();
        match asked.what {
            What::Namespaces => {
                let items: Vec<Value> = world.namespaces.iter().map(|name| namespace(name)).collect();
                let list = json!({ "kind": "NamespaceList", "apiVersion": "v1",
                    "metadata": { "resourceVersion": world.version.to_string() }, "items": items });
                (200, list.to_string())
            }
            What::Annotate | What::Label | What::Evict => {
                let parts: Vec<&str> = asked.uri.split(['/', '?']).collect();
                let key = format!("{}/{}", parts[4], parts[6]);
                let answer = match asked.what {
                    What::Evict => world.evict(&key, &asked.body),
                    _ => world.patch(&key, &asked.body),
                };
                drop(world);
                self.inner.changed.notify_all();
                answer
            }
            What::List => {
                let items: Vec<&Value> = world.pods.values().collect();
                let list = json!({ "kind": "PodList", "apiVersion": "v1",
                    "metadata": { "resourceVersion": world.version.to_string() }, "items": items });
                (200, list.to_string())
            }
            What::Get => {
                let path = asked.uri.split('?').next().unwrap();
                let parts: Vec<&str> = path.split('/').collect();
                match world.pods.get(&format!("{}/{}", parts[4], parts[6])) {
                    Some(pod) => (200, pod.to_string()),
                    None => (404, refusal(404, "NotFound").to_string()),
                }
            }
            What::Condition if !asked.uri.contains(&format!("/nodes/{}/", world.node)) => {
                (404, refusal(404, "NotFound").to_string())
            }
            What::Condition => {
                // Merged by their type, of which there is one.
                for (name, value) in asked.body["status"]["conditions"][0].as_object().into_iter().flatten() {
                    world.condition[name] = value.clone();
                }
                let conditions: Vec<&Value> = Some(&world.condition).filter(|one| !one.is_null()).into_iter().collect();
                let node = json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": world.node },
                    "status": { "conditions": conditions } });
                (200, node.to_string())
            }
            What::Event => (201, asked.body.to_string()),
            What::Review => {
                let mut review = asked.body.clone();
                review["status"] = json!({ "allowed": true });
                (201, review.to_string())
            }
            What::DaemonSet => match &world.daemon_set {
                Ok(set) => (200, set.to_string()),
                Err((code, reason)) => (*code, refusal(*code, reason).to_string()),
            },
            What::DaemonSets => {
                let items: Vec<&Value> = world.daemon_set.iter().collect();
                let list = json!({ "kind": "DaemonSetList", "apiVersion": "apps/v1",
                    "metadata": { "resourceVersion": world.version.to_string() }, "items": items });
                (200, list.to_string())
            }
            What::Watch | What::Other => (404, refusal(404, "NotFound").to_string()),
        }
    }
}

impl World {
    /// Evicts a pod, unless it is another one than is meant.
    fn evict(&mut self, key: &str, eviction: &Value) -> (u16, String) {
        let Some(pod) = self.pods.get(key).cloned() else { return (404, refusal(404, "NotFound").to_string()) };
        let meant = &eviction["deleteOptions"]["preconditions"]["uid"];
        if meant.is_string() && *meant != pod["metadata"]["uid"] {
            return (409, refusal(409, "Conflict").to_string());
        }
        self.pods.remove(key);
        self.tell("DELETED", pod);
        (201, json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }).to_string())
    }

    /// Changes a pod's annotations and labels as a merge patch says.
    fn patch(&mut self, key: &str, patch: &Value) -> (u16, String) {
        let Some(mut pod) = self.pods.get(key).cloned() else { return (404, refusal(404, "NotFound").to_string()) };
        let meta = &patch["metadata"];
        if meta["uid"].is_string() && meta["uid"] != pod["metadata"]["uid"] {
            return (409, refusal(409, "Conflict").to_string());
        }
        for which in ["annotations", "labels"] {
            for (name, value) in meta[which].as_object().into_iter().flatten() {
                let all = &mut pod["metadata"][which];
                match value.is_null() {
                    true => drop(all.as_object_mut().and_then(|all| all.remove(name))),
                    false => all[name] = value.clone(),
                }
            }
        }
        let version = self.tell("MODIFIED", pod.clone());
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        self.pods.insert(key.to_owned(), pod.clone());
        (200, pod.to_string())
    }

    fn tell(&mut self, kind: &str, mut object: Value) -> u64 {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log.push((self.version, json!({ "type": kind, "object": object })));
        self.version
    }
}

fn key(pod: &Value) -> String {
    let text = |name: &str| pod["metadata"][name].as_str().unwrap().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

fn namespace(name: &str) -> Value {
    json!({ "kind": "Namespace", "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "istio.io/dataplane-mode": "ambient" } } })
}

fn daemon_set() -> Value {
    json!({ "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "podweir-node" } })
}

fn is_watch(uri: &str) -> bool {
    parameter(uri, "watch") == Some("true")
}

fn refusal(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code })
}

/// A parameter of an address.
pub fn parameter<'a>(uri: &'a str, name: &str) -> Option<&'a str> {
    uri.split_once('?')?.1.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn what(method: &str, uri: &str) -> What {
    let path = uri.split('?').next().unwrap();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match (method, &parts[..]) {
        ("GET", ["api", "v1", "namespaces"]) => What::Namespaces,
        ("PATCH", ["api", "v1", "namespaces", _, "pods", _, "status"]) => What::Annotate,
        ("PATCH", ["api", "v1", "namespaces", _, "pods", _]) => What::Label,
        ("POST", ["api", "v1", "namespaces", _, "pods", _, "eviction"]) => What::Evict,
        ("GET", ["api", "v1", "pods"]) if is_watch(uri) => What::Watch,
        ("GET", ["api", "v1", "pods"]) => What::List,
        ("GET", ["api", "v1", "namespaces", _, "pods", _]) => What::Get,
        ("PATCH", ["api", "v1", "nodes", _, "status"]) => What::Condition,
        ("POST" | "PATCH", ["apis", "events.k8s.io", "v1", "namespaces", _, "events", ..]) => What::Event,
        ("POST", ["apis", "authorization.k8s.io", ..]) => What::Review,
        ("GET", ["apis", "apps", "v1", "namespaces", _, "daemonsets", _]) => What::DaemonSet,
        ("GET", ["apis", "apps", "v1", "namespaces", _, "daemonsets"]) => What::DaemonSets,
        _ => What::Other,
    }
}

type Request = (String, String, Value, String);

fn read(tls: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut first = String::new();
    if tls.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let (mut token, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if tls.read_line(&mut line)? <= 2 {
            break;
        }
        let line = line.to_lowercase();
        if let Some(value) = line.strip_prefix("authorization:") {
            token = value.trim().to_owned();
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    tls.read_exact(&mut body)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, uri) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Some((method, uri, serde_json::from_slice(&body).unwrap_or_default(), token)))
}

struct Out(StreamOwned<ServerConnection, TcpStream>);

impl Out {
    fn head(&mut self, status: u16, length: Option<usize>) -> io::Result<()> {
        let length = length.map(|length| format!("content-length: {length}\r\n")).unwrap_or_default();
        self.send(
            format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n{length}\r\n")
                .as_bytes(),
        )
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    fn answer(&mut self, status: u16, text: &str) -> io::Result<()> {
        self.head(status, Some(text.len()))?;
        self.send(text.as_bytes())
    }
}
