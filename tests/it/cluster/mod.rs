//! A real Kubernetes of one node: API server with RBAC, kubelet, containerd, in namespaces of
//! its own. The programs are found through `KUBEBUILDER_ASSETS`, as the ecosystem of
//! controllers has it: a folder with etcd, kube-apiserver and kubectl, here also with
//! kube-controller-manager, kube-scheduler, kubelet, containerd, its shim and ctr.
//!
//! One cluster serves all tests of a run: it starts with the first of them and ends with the
//! process. A test asks for it with [`shared`], works in a Kubernetes namespace of its own
//! and touches nothing that others use; or with [`alone`], and then it may stop components
//! and change the node, as nobody else is there.

mod by_hand;
mod components;
mod images;
mod keys;
mod kubectl;
mod machine;
mod pods;

mod agent;
mod ambient;
mod audit;
mod host_network;
mod recreated;
mod reports;
mod rights;
mod sidecar;
mod status;
mod turmoil;
mod validation;

use std::collections::HashMap;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use components::{ALL, Component};
use machine::{Machine, Running};

/// How long something may take that is going to happen.
pub const PATIENCE: Duration = Duration::from_secs(90);
const PLUGINS: &str = "/usr/lib/cni";
/// Debian's plugins know no CNI 1.1.0: in front of them stands what does.
const NEWER: &str = r#"#!/bin/sh
case $CNI_COMMAND in
STATUS | GC) ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
*)
	input=$(cat)
	version=1.0.0
	case $input in *'"cniVersion":"1.1.0"'*) version=1.1.0 ;; esac
	output=$(printf %s "$input" | sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/g' | PLUGIN)
	status=$?
	printf '%s\n' "$output" | sed "s/\"cniVersion\": \"1.0.0\"/\"cniVersion\": \"$version\"/"
	exit $status
	;;
esac
"#;

pub struct Cluster {
    machine: Machine,
    running: Mutex<HashMap<&'static str, Running>>,
}

static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
static USE: RwLock<()> = RwLock::new(());

/// The cluster, together with others.
pub fn shared() -> Guard<RwLockReadGuard<'static, ()>> {
    Guard { _lock: USE.read().unwrap_or_else(PoisonError::into_inner), cluster: cluster() }
}

/// The cluster, with nobody else; when this is dropped every component runs again.
pub fn alone() -> Alone {
    let guard = Guard { _lock: USE.write().unwrap_or_else(PoisonError::into_inner), cluster: cluster() };
    Alone(guard)
}

pub struct Guard<L> {
    _lock: L,
    cluster: &'static Cluster,
}

impl<L> Deref for Guard<L> {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

pub struct Alone(Guard<RwLockWriteGuard<'static, ()>>);

impl Deref for Alone {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Err(error) = ALL.into_iter().try_for_each(|component| self.start(component)).and_then(|()| self.ready())
        {
            eprintln!("the cluster is not what it was: {error}");
        }
    }
}

fn cluster() -> &'static Cluster {
    let started = CLUSTER.get_or_init(|| {
        let cluster = Cluster::new();
        // SAFETY: the function touches nothing but statics that are never dropped.
        unsafe { libc::atexit(at_exit) };
        cluster
    });
    started.as_ref().unwrap_or_else(|error| panic!("there is no cluster: {error}"))
}

/// When the tests are over nothing may be left.
extern "C" fn at_exit() {
    if let Some(Ok(cluster)) = CLUSTER.get() {
        cluster.machine.end();
    }
}

impl Cluster {
    fn new() -> Result<Self, String> {
        if let Some(missing) = components::missing() {
            return Err(missing);
        }
        let cluster = Self { machine: Machine::start()?, running: Mutex::default() };
        let begun = cluster.begin();
        if begun.is_err() {
            cluster.machine.end();
        }
        begun.map(|()| cluster)
    }

    fn begin(&self) -> Result<(), String> {
        let folder = self.machine.folder();
        keys::write(folder);
        components::write_settings(folder, images::BUSYBOX);
        for plugin in ["host-local", "loopback"] {
            symlink(Path::new(PLUGINS).join(plugin), folder.join("bin").join(plugin)).map_err(|e| e.to_string())?;
        }
        for plugin in ["bridge", "portmap"] {
            let path = folder.join("bin").join(plugin);
            std::fs::write(&path, NEWER.replace("PLUGIN", &format!("{PLUGINS}/{plugin}"))).unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        self.write_chain(&crate::containerd::bridge_and_portmap());
        for component in [Component::Etcd, Component::Containerd, Component::ApiServer] {
            self.start(component)?;
        }
        images::load_own(self)?;
        self.wait_for_api_server()?;
        for component in [Component::ControllerManager, Component::Scheduler, Component::Kubelet] {
            self.start(component)?;
        }
        self.ready()
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn running(&self) -> MutexGuard<'_, HashMap<&'static str, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a component, unless it runs.
    pub fn start(&self, component: Component) -> Result<(), String> {
        let mut running = self.running();
        if running.get_mut(component.name()).is_some_and(|program| !program.ended()) {
            return Ok(());
        }
        let words = component.command(&self.machine);
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let started = self.machine.spawn(component.name(), &words[0], &arguments);
        running.insert(component.name(), started.map_err(|e| format!("{}: {e}", component.name()))?);
        Ok(())
    }

    /// Ends a component: `Signal::SIGTERM` as an administrator does, `Signal::SIGKILL` as a
    /// crash does.
    pub fn end(&self, component: Component, signal: Signal) {
        let program = self.running().remove(component.name());
        if let Some(program) = program {
            program.end(signal);
        }
    }

    /// Waits until the node is ready and pods can be made.
    pub fn ready(&self) -> Result<(), String> {
        self.wait_for_api_server()?;
        self.wait("the node to be ready", || {
            let ready = self.try_kubectl(&["get", "node", "node1", "-o", NODE_READY]);
            (ready.as_deref() == Ok("True")).then_some(())
        })?;
        self.wait("the default account", || self.try_kubectl(&["get", "serviceaccount", "default"]).ok())?;
        Ok(())
    }

    pub fn wait_for_api_server(&self) -> Result<(), String> {
        self.wait("the API server to be ready", || self.try_kubectl(&["get", "--raw", "/readyz"]).ok()).map(drop)
    }

    /// Waits until there is something; fails with what the components said last.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, String> {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if begin.elapsed() > PATIENCE {
                let logs = [Component::ApiServer, Component::Containerd, Component::Kubelet].map(|component| {
                    let name = component.name();
                    format!("{name}: {}", self.machine.log(name, 5))
                });
                return Err(format!("no waiting any longer for {what}; the logs end with\n{}", logs.join("\n")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Puts a chain of plugins in place, in one step, as the runtime wants it.
    pub fn write_chain(&self, chain: &serde_json::Value) {
        let folder = self.machine.folder().join("net.d");
        std::fs::write(folder.join("10-pods.new"), serde_json::to_vec_pretty(chain).unwrap()).unwrap();
        std::fs::rename(folder.join("10-pods.new"), folder.join("10-pods.conflist")).unwrap();
    }
}

const NODE_READY: &str = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
