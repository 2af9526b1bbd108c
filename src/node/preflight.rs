//! What is looked at once when the agent starts: everything that would keep it from its
//! work, each with its place and its cure. Nothing here ends the agent. The condition of the node is
//! False ([`Lack::keeps_pods`]) only for what is certain, keeps pods from being started as they
//! should be, and lasts as long as the agent's pod: controllers keep pods away from such a node, which
//! a guess must not do to a whole cluster. What else is found here shows where it does harm:
//! folders that cannot be written as an installation that fails, a runtime that uses other folders by the
//! first pod that was missed, and pods that cannot be looked at as failed, while the plugin,
//! which the runtime runs and not the agent, intercepts them all the same.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::backend::survey;
use crate::config::types::{Families, Family};
use crate::sys::caps;
use crate::sys::netlink::Netlink;

use super::settings::{AgentSettings, OnFailure};

/// Something that this node, or the agent on it, lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lack {
    /// In a sentence.
    pub text: String,
    /// Pods cannot be started as they should be, as long as this agent runs.
    pub keeps_pods: bool,
}

impl From<String> for Lack {
    fn from(text: String) -> Self {
        Self { text, keeps_pods: false }
    }
}

/// What this node lacks.
pub(super) fn node(settings: &AgentSettings) -> Vec<Lack> {
    let mut lacks: Vec<Lack> = Vec::new();
    match caps::missing_for_namespaces() {
        // In ambient mode it is the agent that makes the rules of pods, before they start.
        Ok(missing) => lacks.extend(missing_capabilities(&missing, settings.ambient.is_some())),
        Err(e) => lacks.push(format!("the agent's capabilities cannot be told: {e}").into()),
    }
    if let Some(ambient) = &settings.ambient {
        lacks.extend(missing_family(ambient.families, kernel_has).map(|text| Lack { text, keeps_pods: true }));
    }
    lacks.extend(of_folders_and_kernel(settings).into_iter().map(Lack::from));
    lacks
}

/// What is wrong where the agent lacks these capabilities.
fn missing_capabilities(missing: &[&str], keeps_pods: bool) -> Option<Lack> {
    let consequence = if keeps_pods { ", and pods in ambient mode cannot start" } else { "" };
    let text = format!(
        "the agent lacks {}{consequence}: add it to securityContext.capabilities of its container",
        missing.join(" and ")
    );
    (!missing.is_empty()).then_some(Lack { text, keeps_pods })
}

/// What is wrong with the node's folders and its kernel, in sentences.
fn of_folders_and_kernel(settings: &AgentSettings) -> Vec<String> {
    let mut problems = Vec::new();
    let nftables = Netlink::open(Netlink::NETFILTER)
        .is_ok_and(|mut netlink| survey::survey(Some(&mut netlink)).is_ok_and(|found| found.nftables.is_some()));
    if !nftables {
        problems.push("the kernel's nf_tables cannot be used: load the module nf_tables on the node, or set the backend iptables-legacy, whose programs have to be on the node".into());
    }
    let installation = &settings.installation;
    for (what, flag, path) in [
        ("the runtime's plugins", "--cni-bin-dir", &installation.bin_dir),
        ("network configurations", "--cni-conf-dir", &installation.conf_dir),
    ] {
        problems.extend(folder(what, flag, path, &settings.host_proc));
    }
    let init = settings.host_proc.join("1/ns/net");
    match fs::metadata(&init) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => problems.push(format!(
            "{} cannot be looked at: add SYS_PTRACE to securityContext.capabilities of the agent's container, and with AppArmor set its profile to Unconfined",
            init.display()
        )),
        Err(e) => problems.push(format!("{}: {e}; mount the node's /proc and name it with --host-proc", init.display())),
        Ok(_) => {}
    }
    problems.extend(selinux(&settings.host_proc));
    problems
}

/// The problem that SELinux causes for the agent, if there is one.
fn selinux(host_proc: &Path) -> Option<String> {
    let context = fs::read_to_string("/proc/self/attr/current").ok()?;
    // Containers have no /sys/fs/selinux of their own: the node's is seen by its first process.
    let mounted = [PathBuf::from("/sys/fs/selinux/enforce"), host_proc.join("1/root/sys/fs/selinux/enforce")];
    let enforce = mounted.iter().find_map(|path| fs::read_to_string(path).ok());
    confined(&context, enforce.as_deref())
}

/// The problem of a process with this context, if it is that of a container which SELinux keeps from the
/// node's folders. `enforce`: the text of selinuxfs; if there is none, SELinux is taken to be enforcing.
fn confined(context: &str, enforce: Option<&str>) -> Option<String> {
    // user:role:type:level, where other security modules have one word.
    let label = context.trim_matches(['\0', '\n', ' ']).split(':').nth(2)?;
    let is_of_containers = label == "svirt_lxc_net_t" || label.starts_with("container_");
    (is_of_containers && enforce.is_none_or(|text| text.trim() != "0")).then(|| {
        format!("SELinux is enforcing, and the agent runs as {label}, which may not write the node's folders nor enter pods' namespaces: set seLinuxOptions of the chart, or of its container's securityContext, to {{type: spc_t}}")
    })
}

/// Whether the kernel has a family at all: one that was started with `ipv6.disable=1` has no IPv6.
fn kernel_has(family: Family) -> bool {
    let family = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // Any other error says nothing of the family.
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).err() != Some(Errno::EAFNOSUPPORT)
}

/// The problem if pods in ambient mode are to get rules of a family that the kernel does not have.
fn missing_family(wanted: Families, has: impl Fn(Family) -> bool) -> Option<String> {
    let missing = wanted.iter().find(|&family| !has(family))?;
    let other = if missing == Family::V4 { "ipv6" } else { "ipv4" };
    Some(format!(
        "the kernel has no {missing}, and pods in ambient mode are to have rules for it, so that none of them can start: give --ambient-ip-families {other} (ambient.ipFamilies: {other} of the chart), or start the kernel with {missing}"
    ))
}

/// The problem of a folder of the node, if there is one.
fn folder(what: &str, flag: &str, path: &Path, host_proc: &Path) -> Option<String> {
    let shown = path.display();
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Some(format!(
                "the folder of {what}, {shown}, is not there: {flag} names it as it is mounted in the agent's container; it is waited for"
            ));
        }
        Err(e) => return Some(format!("the folder of {what}, {shown}, cannot be looked at: {e}")),
    };
    if !meta.is_dir() {
        return Some(format!("{shown}, which {flag} names, is no folder"));
    }
    let writable = nix::unistd::access(path, nix::unistd::AccessFlags::W_OK);
    if let Err(errno) = writable {
        return Some(format!(
            "the folder of {what}, {shown}, cannot be written ({errno}): mount it from the node for writing; where the node's own file system is read-only, name another folder with {flag}"
        ));
    }
    // A folder that nobody mounted is on the container's own root or on a tmpfs of the container's.
    let on_tmpfs = statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    let on_own_tmpfs = on_tmpfs && !is_mounted_on_node(meta.dev(), host_proc);
    let on_root = fs::metadata("/").is_ok_and(|root| root.dev() == meta.dev()) && is_container(host_proc);
    (on_own_tmpfs || on_root).then(|| {
        format!("the folder of {what}, {shown}, is not the node's: mount it with hostPath, or what is written there helps nobody")
    })
}

/// Whether the process runs in a container whose root is not the node's.
fn is_container(host_proc: &Path) -> bool {
    let root = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    root(&host_proc.join("1/root")).is_some_and(|of_node| Some(of_node) != root(Path::new("/")))
}

/// Whether the node has this file system mounted somewhere: a tmpfs has a device number of its own,
/// and some nodes keep everything in one (proc_pid_mountinfo(5), field 3).
fn is_mounted_on_node(device: u64, host_proc: &Path) -> bool {
    let number = format!("{}:{}", major(device), minor(device));
    let mounts = fs::read_to_string(host_proc.join("1/mountinfo"));
    // Where it cannot be told, nobody is accused.
    mounts.map_or(true, |mounts| mounts.lines().any(|line| line.split(' ').nth(2) == Some(&number)))
}

/// The rights that the agent's account lacks, in sentences.
///
/// # Errors
/// The API server cannot be asked, in words.
pub(super) async fn account(client: &kube::Client, settings: &AgentSettings) -> Result<Vec<String>, String> {
    let mut needed: Vec<(&str, &str, &str, &str)> = vec![
        ("", "pods", "list", ""),
        ("", "pods", "watch", ""),
        ("", "pods", "get", ""),
        ("events.k8s.io", "events", "create", ""),
        ("events.k8s.io", "events", "patch", ""),
    ];
    if settings.condition {
        needed.push(("", "nodes", "patch", "status"));
    }
    if settings.ambient.is_some() {
        needed.extend([
            ("", "namespaces", "list", ""),
            ("", "namespaces", "watch", ""),
            ("", "pods", "patch", "status"),
        ]);
    }
    if settings.policy_reports {
        needed.push(("", "nodes", "get", ""));
        needed.extend(["list", "create", "patch", "delete"].map(|verb| ("wgpolicyk8s.io", "policyreports", verb, "")));
    }
    match settings.on_failure {
        OnFailure::Leave => {}
        OnFailure::Evict => needed.push(("", "pods", "create", "eviction")),
        OnFailure::Label => needed.push(("", "pods", "patch", "")),
    }
    let mut needed: Vec<ResourceAttributes> = needed.into_iter().map(attributes).collect();
    if let Some(own) = &settings.daemon_set {
        needed.extend(["get", "list", "watch"].map(|verb| ResourceAttributes {
            namespace: Some(own.namespace.clone()),
            name: Some(own.name.clone()),
            ..attributes(("apps", "daemonsets", verb, ""))
        }));
    }
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for attributes in needed {
        let what = words(&attributes);
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
            ..Default::default()
        };
        let answered = reviews.create(&PostParams::default(), &review).await;
        let allowed = answered.map_err(|e| crate::cni::client::chain(&e))?.status.is_some_and(|status| status.allowed);
        if !allowed {
            missing.push(format!(
                "the agent's account may not {what}: apply the chart's ClusterRole and Role podweir-node again"
            ));
        }
    }
    Ok(missing)
}

fn attributes((group, resource, verb, subresource): (&str, &str, &str, &str)) -> ResourceAttributes {
    ResourceAttributes {
        group: Some(group.into()),
        resource: Some(resource.into()),
        verb: Some(verb.into()),
        subresource: Some(subresource.into()).filter(|s: &String| !s.is_empty()),
        ..ResourceAttributes::default()
    }
}

/// A right in words, such as `patch nodes/status`.
fn words(right: &ResourceAttributes) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let slash = right.subresource.as_ref().map(|sub| format!("/{sub}")).unwrap_or_default();
    format!("{} {}{slash}", text(&right.verb), text(&right.resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selinux_is_told_of_where_it_keeps_a_container_from_the_node() {
        let container = "system_u:system_r:container_t:s0:c12,c34\0";
        for enforce in [Some("1"), None] {
            let told = confined(container, enforce).unwrap();
            assert!(told.contains("container_t") && told.contains("{type: spc_t}"), "{told}");
            assert!(confined("system_u:system_r:container_init_t:s0\n", enforce).is_some());
            for fine in [
                "system_u:system_r:spc_t:s0\0",
                "system_u:system_r:unconfined_service_t:s0",
                // Made for the agent by the node's administrator.
                "system_u:system_r:podweir.process:s0",
                // Of AppArmor, and of nobody.
                "cri-containerd.apparmor.d (enforce)\n",
                "unconfined\n",
                "",
            ] {
                assert_eq!(confined(fine, enforce), None, "{fine}");
            }
        }
        assert_eq!(confined(container, Some("0")), None, "it is permissive");
    }

    #[test]
    fn capabilities_that_are_missing_keep_pods_from_starting_only_where_the_agent_makes_their_rules() {
        let lack = |missing: &[&str], ambient| missing_capabilities(missing, ambient);
        assert_eq!((lack(&[], true), lack(&[], false)), (None, None));
        for ambient in [true, false] {
            let told = lack(&["CAP_NET_ADMIN", "CAP_SYS_ADMIN"], ambient).unwrap();
            assert_eq!((told.keeps_pods, told.text.contains("ambient mode")), (ambient, ambient), "{told:?}");
            assert!(told.text.contains("lacks CAP_NET_ADMIN and CAP_SYS_ADMIN"), "{told:?}");
        }
    }

    #[test]
    fn a_family_that_the_kernel_has_not_is_told_with_the_flag() {
        let without_v6 = |family| family == Family::V4;
        let told = missing_family(Families::BOTH, without_v6).unwrap();
        assert!(told.contains("no IPv6") && told.contains("--ambient-ip-families ipv4"), "{told}");
        assert_eq!(missing_family(Families::V4, without_v6), None);
        assert_eq!(missing_family(Families::BOTH, |_| true), None);
        // This kernel has what the tests use.
        assert!(kernel_has(Family::V4) && kernel_has(Family::V6));
    }

    #[test]
    fn a_folder_that_is_not_there_or_none_is_told_with_the_flag() {
        let top = std::env::temp_dir().join(format!("podweir-preflight-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let told = |path: &Path| folder("plugins", "--cni-bin-dir", path, "/proc".as_ref()).unwrap_or_default();
        assert!(told(&top).contains("is not there") && told(&top).contains("--cni-bin-dir"));
        fs::create_dir(&top).unwrap();
        fs::write(top.join("file"), "").unwrap();
        assert!(told(&top.join("file")).contains("is no folder"));
        assert_eq!(told(&top), "");
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn a_folder_on_a_tmpfs_is_the_node_s_where_the_node_has_that_mounted() {
        let top = std::env::temp_dir().join(format!("podweir-preflight-mounts-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("1")).unwrap();
        let memory = Path::new("/dev/shm");
        let meta = fs::metadata(memory).unwrap();
        assert_eq!(statfs(memory).unwrap().filesystem_type(), TMPFS_MAGIC);
        let told = || folder("plugins", "--cni-bin-dir", memory, &top);
        assert_eq!(told(), None, "nobody says what the node has");
        fs::write(top.join("1/mountinfo"), "21 1 254:1 / / rw - ext4 /dev/vda rw\n").unwrap();
        assert!(told().unwrap().contains("is not the node's"));
        let mount = format!("30 21 {}:{} / /run rw - tmpfs tmpfs rw\n", major(meta.dev()), minor(meta.dev()));
        fs::write(top.join("1/mountinfo"), mount).unwrap();
        assert_eq!(told(), None);
        fs::remove_dir_all(top).unwrap();
    }
}
