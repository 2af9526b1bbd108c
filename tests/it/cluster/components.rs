//! Kubernetes' own programs, with the settings that a node in namespaces needs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::machine::{ADDRESS, Machine};
use crate::fixture::program;

/// What a cluster is made of, in the order in which it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Etcd,
    Containerd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
}

pub const ALL: [Component; 6] = [
    Component::Etcd,
    Component::Containerd,
    Component::ApiServer,
    Component::ControllerManager,
    Component::Scheduler,
    Component::Kubelet,
];

/// The folder of the programs, as the ecosystem of controllers names it.
pub fn programs() -> PathBuf {
    PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").unwrap_or_default())
}

/// What is missing for a cluster, in words.
pub fn missing() -> Option<String> {
    let programs = programs();
    let ours = [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kubectl",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
    ];
    let absent: Vec<&str> = ours.into_iter().filter(|name| !programs.join(name).is_file()).collect();
    if !absent.is_empty() {
        let folder =
            if programs.as_os_str().is_empty() { "is not set".into() } else { format!("is {}", programs.display()) };
        return Some(format!("KUBEBUILDER_ASSETS {folder}, which lacks {}", absent.join(", ")));
    }
    let absent: Vec<&str> = ["runc", "busybox", "unshare", "nsenter", "nft", "jq", "strip"]
        .into_iter()
        .filter(|name| program(name).is_none())
        .collect();
    (!absent.is_empty()).then(|| format!("{} not found: ./scripts/test installs what Debian has", absent.join(", ")))
}

impl Component {
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Containerd => "containerd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
        }
    }

    /// Its flags, `=` before each value.
    fn flags(self, folder: &Path) -> Vec<String> {
        let at = |name: &str| folder.join(name).display().to_string();
        let pki = |name: &str| at(&format!("pki/{name}"));
        match self {
            Self::Etcd => vec![
                format!("--data-dir={}", at("etcd")),
                "--listen-client-urls=http://127.0.0.1:2379".into(),
                "--advertise-client-urls=http://127.0.0.1:2379".into(),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                "--log-level=warn".into(),
                "--unsafe-no-fsync".into(),
            ],
            Self::Containerd => vec![format!("--config={}", at("containerd.toml"))],
            Self::ApiServer => vec![
                "--etcd-servers=http://127.0.0.1:2379".into(),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--allow-privileged".into(),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                format!("--advertise-address={ADDRESS}"),
                "--endpoint-reconciler-type=none".into(),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={}", pki("accounts.pub")),
                format!("--service-account-signing-key-file={}", pki("accounts.key")),
                format!("--client-ca-file={}", pki("ca.crt")),
                format!("--tls-cert-file={}", pki("apiserver.crt")),
                format!("--tls-private-key-file={}", pki("apiserver.key")),
                format!("--kubelet-certificate-authority={}", pki("ca.crt")),
                format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
                format!("--kubelet-client-key={}", pki("kubelet-client.key")),
                "--kubelet-preferred-address-types=InternalIP".into(),
                format!("--audit-policy-file={}", at("audit-policy.yaml")),
                format!("--audit-log-path={}", at("audit.log")),
                "--audit-log-mode=blocking".into(),
            ],
            Self::ControllerManager => vec![
                format!("--kubeconfig={}", at("controller-manager.conf")),
                format!("--root-ca-file={}", pki("ca.crt")),
                format!("--service-account-private-key-file={}", pki("accounts.key")),
                "--use-service-account-credentials".into(),
                "--leader-elect=false".into(),
                "--kube-api-qps=100".into(),
                "--kube-api-burst=200".into(),
            ],
            Self::Scheduler => vec![format!("--kubeconfig={}", at("scheduler.conf")), "--leader-elect=false".into()],
            Self::Kubelet => vec![
                format!("--config={}", at("kubelet.yaml")),
                format!("--kubeconfig={}", at("kubelet.conf")),
                "--hostname-override=node1".into(),
                format!("--node-ip={ADDRESS}"),
                "--v=2".into(),
            ],
        }
    }

    /// The program and its arguments.
    pub fn command(self, machine: &Machine) -> Vec<String> {
        let program = programs().join(self.name()).display().to_string();
        let flags = self.flags(machine.folder());
        let own = match self {
            Self::Kubelet => ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", KUBELET, &program]
                .map(str::to_owned)
                .to_vec(),
            _ => vec![program],
        };
        own.into_iter().chain(flags).collect()
    }
}

/// The kubelet insists on setting kernel parameters that are the whole machine's: it is shown
/// files of its own in their place.
const KUBELET: &str = r#"
mount --make-private /proc
for parameter in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
	file=/run/$(basename "${parameter%=*}")
	echo "${parameter#*=}" >"$file"
	mount --bind "$file" "/proc/sys/${parameter%=*}"
done
exec "$0" "$@"
"#;

/// Writes the components' configuration files; `pause` is the image of a pod's first container.
pub fn write_settings(folder: &Path, pause: &str) {
    let pki = |name: &str| folder.join("pki").join(name).display().to_string();
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true }, "x509": { "clientCAFile": pki("ca.crt") } },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki("kubelet-server.crt"), "tlsPrivateKeyFile": pki("kubelet-server.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs", "enforceNodeAllocatable": [], "failCgroupV1": false, "failSwapOn": false,
        // A machine may not allow to raise its own standing, and has other things on its disk.
        "oomScoreAdj": 0, "localStorageCapacityIsolation": false,
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "staticPodPath": folder.join("manifests"), "fileCheckFrequency": "1s",
        "clusterDNS": [super::machine::OUTSIDE], "clusterDomain": "cluster.local",
        "maxPods": 250, "eventRecordQPS": 0, "kubeAPIQPS": 100, "kubeAPIBurst": 200,
        // What a test waits for is seen sooner.
        "nodeStatusUpdateFrequency": "2s", "syncFrequency": "10s",
    });
    // Whatever an account of the cluster asks for is written down, and nothing else.
    let audit = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata", "userGroups": ["system:serviceaccounts"] }, { "level": "None" }],
    });
    let write = |name: &str, value: &Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    write("kubelet.yaml", &kubelet);
    write("audit-policy.yaml", &audit);
    let containerd = format!(
        r#"
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
"#
    );
    std::fs::write(folder.join("containerd.toml"), containerd).unwrap();
}
