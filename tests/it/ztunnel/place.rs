//! A node with pods that are connected, an agent in ambient mode, and ztunnels.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;

use crate::agent::ambient::{self, socket, status};
use crate::agent::{NODE, Node, Pod};
use crate::fixture::Namespace;
use crate::plugin;
use crate::pod::mac;

/// The node's own address, by which it reaches pods.
const GATEWAY: [&str; 2] = ["10.244.255.1", "fd00:10:244:ff::1"];
/// Where the pods' apps listen.
pub const PORT: u16 = 8080;
const TIMEOUT: Duration = Duration::from_secs(5);

/// The program, unpacked where that is needed.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let given = std::env::var_os("PODWEIR_ZTUNNEL").expect("PODWEIR_ZTUNNEL names a ztunnel");
        let given = PathBuf::from(given);
        let inside = ["ztunnel", "ztunnel.xz"].map(|name| given.join(name)).into_iter().find(|path| path.is_file());
        let found = if given.is_dir() { inside.expect("the folder has ztunnel or ztunnel.xz") } else { given };
        if found.extension().is_none_or(|extension| extension != "xz") {
            return found;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ztunnel");
        std::fs::create_dir_all(&folder).unwrap();
        let (new, path) = (folder.join(format!("new-{}", std::process::id())), folder.join("ztunnel"));
        let out = File::create(&new).unwrap();
        let unpacked = Command::new("xz").arg("-dkc").arg(&found).stdout(out).status().expect("xz");
        assert!(unpacked.success(), "xz -dkc {}: {unpacked}", found.display());
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    })
}

pub struct Place {
    pub node: Node,
    pub pods: Vec<Pod>,
    xds: PathBuf,
}

/// A ztunnel with a namespace of its own, as its DaemonSet's pod has.
pub struct Ztunnel {
    process: Child,
    _namespace: Namespace,
    log: PathBuf,
}

/// The addresses of a pod, by its number.
pub fn addresses(number: u32) -> [IpAddr; 2] {
    [format!("10.244.0.{}", number + 10).parse().unwrap(), format!("fd00:10:244::{:x}", number + 16).parse().unwrap()]
}

/// Connects a namespace to the node: no addresses are shared, everything goes by the node.
fn wire(node: &Namespace, other: &Namespace, device: &str, addresses: &[IpAddr; 2]) {
    let peer = plugin::path(node);
    other.print("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", device, "netns", &peer]);
    let (inside, outside) = (mac(other, "eth0"), mac(node, device));
    let (mut inner, mut outer) = ("link set eth0 up\n".to_owned(), format!("link set {device} up\n"));
    for (address, gateway) in addresses.iter().zip(GATEWAY) {
        let (bits, nodad) = if address.is_ipv4() { (32, "") } else { (128, "nodad") };
        writeln!(inner, "addr add {address}/{bits} dev eth0 {nodad}").unwrap();
        writeln!(inner, "neigh replace {gateway} lladdr {outside} dev eth0 nud permanent").unwrap();
        writeln!(inner, "route add {gateway} dev eth0\nroute add default via {gateway} dev eth0").unwrap();
        writeln!(outer, "neigh replace {address} lladdr {inside} dev {device} nud permanent").unwrap();
        writeln!(outer, "route add {address} dev {device}").unwrap();
    }
    other.batch(&inner);
    node.batch(&outer);
}

impl Place {
    /// A node with so many pods in ambient mode, each with an app; STRICT.
    pub fn new(count: u32) -> Self {
        let pods: Vec<Pod> = (0..count).map(pod).collect();
        let all: Vec<&Pod> = pods.iter().collect();
        let node = ambient::node(&all);
        node.namespace.batch(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n", GATEWAY[0], GATEWAY[1]));
        node.namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        for (number, pod) in pods.iter().enumerate() {
            wire(&node.namespace, &pod.namespace, &format!("pod{number}"), &addresses(number as u32));
            pod.namespace.run(|| app(&format!("web-{number}")));
        }
        // What goes from pod to pod, counted by port.
        let rules = "table inet wire { chain forward { type filter hook forward priority 0; \
            tcp dport 15008 counter comment \"hbone\"; tcp dport 8080 counter comment \"plain\"; }; }";
        let output = node.namespace.feed("nft", &["-f", "-"], &[], rules);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        node.server.set_ambient("shop", true);
        let xds = node.path("xds.yaml");
        std::fs::write(&xds, configuration(count)).unwrap();
        Self { node, pods, xds }
    }

    /// A place with these pods whose agent and ztunnel know everything.
    pub fn running(count: u32) -> (Self, Ztunnel) {
        let mut place = Self::new(count);
        ambient::start(&mut place.node, &[]);
        let ztunnel = place.ztunnel(0);
        place.wait_until_enrolled(1);
        (place, ztunnel)
    }

    /// Starts a ztunnel.
    pub fn ztunnel(&self, number: u32) -> Ztunnel {
        let namespace = Namespace::bare("nameserver 10.96.0.10\n");
        wire(&self.node.namespace, &namespace, &format!("zt{number}"), &addresses(100 + number));
        let log = self.node.path(&format!("ztunnel-{number}.log"));
        let out = File::create(&log).unwrap();
        let mut command = Command::new(program());
        command.args(["proxy", "ztunnel"]).env_clear().stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        for (name, value) in [
            ("PROXY_MODE", "shared"),
            ("INPOD_UDS", socket(&self.node).to_str().unwrap()),
            ("FAKE_CA", "true"),
            ("XDS_ADDRESS", ""),
            ("LOCAL_XDS_PATH", self.xds.to_str().unwrap()),
            ("NODE_NAME", NODE),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "6"),
            ("RUST_LOG", "info"),
        ] {
            command.env(name, value);
        }
        let process = namespace.run(|| command.spawn().unwrap());
        Ztunnel { process, _namespace: namespace, log }
    }

    /// Waits until so many ztunnels know of every pod.
    pub fn wait_until_enrolled(&self, ztunnels: u32) {
        self.node.wait("ztunnels to know of every pod", || {
            (status(&self.node)["ztunnelsWithEveryPod"] == json!(ztunnels)).then_some(())
        });
        for pod in &self.pods {
            self.node.wait_for_state(pod, "enrolled");
        }
    }

    /// What went by from pod to pod: HBONE, and plain text.
    pub fn wire(&self) -> [u64; 2] {
        let text = self.node.namespace.print("nft", &["list", "table", "inet", "wire"]);
        ["hbone", "plain"].map(|name| {
            let line = text.lines().find(|line| line.contains(name)).unwrap();
            line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
        })
    }

    /// What a pod gets from another.
    pub fn ask(&self, from: usize, to: IpAddr) -> Result<String, String> {
        self.pods[from].namespace.run(|| ask(to))
    }

    /// What a process of the node gets from a pod: as the kubelet's user, or as another one.
    pub fn probe(&self, uid: u32, to: IpAddr) -> Result<String, String> {
        self.node.namespace.run(|| {
            // The socket's owner is whoever makes it.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
            ask(to)
        })
    }
}

impl Ztunnel {
    /// Ends as the kubelet ends it: it drains.
    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("ztunnel said\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pod(number: u32) -> Pod {
    let mut pod = ambient::pod(number);
    // Its network is the node's.
    pod.namespace = Namespace::bare("nameserver 10.96.0.10\n");
    let ips: Vec<_> = addresses(number).iter().map(|address| json!({ "ip": address.to_string() })).collect();
    pod.manifest["status"]["podIPs"] = json!(ips);
    pod.manifest["spec"]["serviceAccountName"] = format!("sa-{number}").into();
    pod
}

/// Says who it is and whom it sees, and then what it is told; for as long as the test runs.
fn app(name: &str) {
    let listener = TcpListener::bind(("::", PORT)).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let name = name.clone();
            std::thread::spawn(move || {
                let Ok(peer) = stream.peer_addr() else { return };
                let mut stream = stream;
                let _ = stream.write_all(format!("{name} sees {}\n", peer.ip().to_canonical()).as_bytes());
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Connects, reads a line.
fn ask(to: IpAddr) -> Result<String, String> {
    first_line(&mut connect(to)?)
}

/// A connection to an app.
pub fn connect(to: IpAddr) -> Result<TcpStream, String> {
    let stream =
        TcpStream::connect_timeout(&SocketAddr::new(to, PORT), TIMEOUT).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    Ok(stream)
}

/// What an app says first.
pub fn first_line(stream: &mut TcpStream) -> Result<String, String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&line))),
            Ok(_) if byte[0] == b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            Ok(_) => line.push(byte[0]),
            Err(e) => return Err(format!("read: {e}")),
        }
    }
}

/// What ztunnel knows of pods, since there is no control plane.
fn configuration(count: u32) -> String {
    let mut text = "workloads:\n".to_owned();
    for number in 0..count {
        let [v4, v6] = addresses(number);
        writeln!(
            text,
            "- {{uid: Kubernetes//Pod/shop/web-{number}, name: web-{number}, namespace: shop, serviceAccount: sa-{number}, \
             trustDomain: cluster.local, workloadName: web-{number}, canonicalName: web-{number}, clusterId: Kubernetes, \
             workloadIps: [\"{v4}\", \"{v6}\"], protocol: HBONE, node: {NODE}, network: \"\", services: {{}}}}"
        )
        .unwrap();
    }
    text += "policies:\n- {name: strict, namespace: shop, scope: Namespace, action: Allow, dryRun: false, \
             rules: [[[{principals: [!Prefix \"cluster.local/\"]}]]]}\nservices: []\n";
    text
}
