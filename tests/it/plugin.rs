//! Calling podweir as a container runtime calls a plugin.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::fixture::{Namespace, PODWEIR};

pub const KUBERNETES: &str =
    "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=6d1f;IgnoreUnknown=1";

/// The pod's.
pub const UID: &str = "6d1f";

/// The path by which a runtime would name a namespace.
pub fn path(namespace: &Namespace) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.net().as_raw_fd())
}

/// An agent's run directory; it goes with this.
pub struct RunDir(PathBuf);

impl RunDir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podweir-run-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.0.join("plugin.log")).unwrap_or_default()
    }

    /// The names of the states kept.
    pub fn states(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.0.join("attachments")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A pod with an injected sidecar and these annotations besides.
pub fn sidecar(annotations: Value) -> Value {
    let mut all = json!({ "sidecar.istio.io/status": "{}" });
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-0", "namespace": "shop", "uid": UID, "annotations": all },
        "spec": { "containers": [
            { "name": "app", "image": "x" },
            { "name": "istio-proxy", "image": "x", "args": ["proxy", "sidecar"], "env": [],
              "securityContext": { "runAsUser": 1337, "runAsGroup": 1337 } } ] },
    })
}

/// What came of a call.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// The error object's code and "msg; details", as a runtime shows them.
    pub fn error(&self) -> (u64, String) {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        let object = self.json();
        let text = |key: &str| object[key].as_str().unwrap_or_else(|| panic!("{key}: {self:?}")).to_owned();
        assert!(!text("cniVersion").is_empty() && !text("msg").is_empty());
        (object["code"].as_u64().unwrap(), format!("{}; {}", text("msg"), text("details")))
    }
}

/// A call to be made.
#[derive(Clone)]
pub struct Plugin {
    pub variables: Vec<(String, String)>,
    pub netconf: Map<String, Value>,
}

impl Plugin {
    /// An ADD as containerd sends it.
    pub fn add(netns: &str, run_dir: &Path) -> Self {
        let variables = [
            ("PATH", std::env::var("PATH").unwrap()),
            ("CNI_COMMAND", "ADD".into()),
            ("CNI_CONTAINERID", "abc".into()),
            ("CNI_NETNS", netns.to_owned()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", "/opt/cni/bin".into()),
            ("CNI_ARGS", KUBERNETES.into()),
        ];
        let netconf = json!({
            "cniVersion": "1.0.0", "name": "chain", "type": "podweir", "cni_agent_run_dir": run_dir,
            "pod_namespace": "istio-system",
        });
        let Value::Object(netconf) = netconf else { unreachable!() };
        Self { variables: variables.map(|(name, value)| (name.to_owned(), value)).into(), netconf }
    }

    /// Sets a variable; the empty text takes it away.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(n, _)| n != name);
        if !value.is_empty() {
            self.variables.push((name.into(), value.into()));
        }
        self
    }

    pub fn verb(self, verb: &str) -> Self {
        self.variable("CNI_COMMAND", verb)
    }

    /// Sets a key of the netconf; null takes it away.
    pub fn key(mut self, name: &str, value: Value) -> Self {
        match value {
            Value::Null => drop(self.netconf.remove(name)),
            value => drop(self.netconf.insert(name.into(), value)),
        }
        self
    }

    pub fn spawn(&self, input: &[u8]) -> Child {
        let mut command = Command::new(PODWEIR);
        command.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A plugin that has enough of its input closes it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child
    }

    pub fn input(&self) -> Vec<u8> {
        serde_json::to_vec(&self.netconf).unwrap()
    }

    pub fn call(&self) -> Outcome {
        self.feed(&self.input())
    }

    /// Calls with other words on standard input.
    pub fn feed(&self, input: &[u8]) -> Outcome {
        let output = self.spawn(input).wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Outcome { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// A pod that can be looked up: namespace, run directory and API server.
pub struct Cluster {
    pub namespace: Namespace,
    pub run_dir: RunDir,
    pub api: Api,
}

impl Cluster {
    pub fn new(pod: &Value) -> Self {
        Self::with(Api::with_pod(pod))
    }

    pub fn with(api: Api) -> Self {
        let (namespace, run_dir) = (Namespace::new(), RunDir::new());
        api.write_kubeconfig(run_dir.path());
        Self { namespace, run_dir, api }
    }

    pub fn add(&self) -> Plugin {
        Plugin::add(&path(&self.namespace), self.run_dir.path())
    }
}
