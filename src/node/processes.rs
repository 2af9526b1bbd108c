//! Finding the network namespace of a pod that runs already: by a process whose control
//! group carries the pod's UID. Addresses would be ambiguous: pods with `hostNetwork` and
//! jobs that have ended share them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys::file;

/// The most bytes of a cgroup file that is read.
const LONGEST: usize = 64 << 10;

/// The UID of a pod, as the kubelet writes it into the path of a control group: with the
/// cgroupfs driver `…/pod<uid>/…`, with systemd's `…-pod<uid with underscores>.slice/…`, in
/// both versions of control groups. `None` for a process that is in no pod.
pub(super) fn pod_uid(cgroup: &str) -> Option<String> {
    cgroup.lines().find_map(|line| {
        // "4:memory:/kubepods/…", in version 2 "0::/kubepods.slice/…".
        let path = line.splitn(3, ':').nth(2)?;
        path.split('/').find_map(|part| {
            let part = part.strip_suffix(".slice").unwrap_or(part);
            let uid = part.rsplit_once("-pod").map(|(_, uid)| uid).or_else(|| part.strip_prefix("pod"))?;
            let uid = uid.replace('_', "-");
            is_uid(&uid).then_some(uid)
        })
    })
}

/// Whether a text is a pod's UID: a UUID, or for a static pod the digest of its manifest.
fn is_uid(text: &str) -> bool {
    let hex = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split('-').collect();
    match parts[..] {
        [digest] => digest.len() == 32 && hex(digest),
        _ => parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|part| hex(part)),
    }
}

/// The network namespaces of the pods that have a process, by the pods' UIDs. Namespaces
/// are told by device and inode; that of the node itself is never among them.
///
/// `proc`: where the node's proc(5) is mounted.
pub(super) fn namespaces(proc: &Path) -> HashMap<String, PathBuf> {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let host = identity(&proc.join("1/ns/net"));
    let mut found = HashMap::new();
    // A node without processes to be seen has no pods to be found.
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // Processes come and go: what cannot be read has gone.
        let Ok(cgroup) = fs::read(entry.path().join("cgroup")) else { continue };
        let text = String::from_utf8_lossy(&cgroup[..cgroup.len().min(LONGEST)]).into_owned();
        let Some(uid) = pod_uid(&text) else { continue };
        let path = entry.path().join("ns/net");
        let own = identity(&path);
        if own.is_some() && host.is_some() && own != host {
            found.entry(uid).or_insert(path);
        }
    }
    found
}

/// The resolv.conf(5) of a pod, as the processes in its containers see it, by the path of the network
/// namespace of one of them, `…/<pid>/ns/net`. Links in it lead nowhere outside the pod.
///
/// # Errors
/// The file cannot be read, or the process has ended meanwhile, and another one may have its number.
pub(super) fn resolv_conf(netns: &Path, identity: (u64, u64)) -> io::Result<String> {
    let process = netns.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let text = file::read_below(&process.join("root"), Path::new("etc/resolv.conf"), LONGEST as u64)?;
    let meta = fs::metadata(netns)?;
    match (meta.dev(), meta.ino()) == identity {
        true => Ok(text),
        false => Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    #[test]
    fn the_uid_is_found_in_every_kind_of_path() {
        let underscores = UID.replace('-', "_");
        for path in [
            format!("11:memory:/kubepods/burstable/pod{UID}/abc"),
            format!("11:memory:/kubepods/pod{UID}/abc\n10:cpu:/"),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underscores}.slice/cri-containerd-abc.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{underscores}.slice/crio-abc.scope"),
            format!("0::/system.slice/containerd.service/kubepods-burstable-pod{underscores}.slice:cri-containerd:abc"),
            format!("1:name=systemd:/\n0::/kubelet/kubepods/besteffort/pod{UID}/abc"),
        ] {
            let found = pod_uid(&path);
            let wanted = (!path.contains(":cri-containerd:")).then(|| UID.to_owned());
            assert_eq!(found, wanted, "{path}");
        }
        let digest = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_uid(&format!("0::/kubepods/pod{digest}/abc")).as_deref(), Some(digest));
        for path in ["", "0::/", "0::/user.slice/pod", "0::/podman-1234", "0::/machine/podcast", "0::/kubepods/pod-x"] {
            assert_eq!(pod_uid(path), None, "{path}");
        }
    }

    #[test]
    fn a_process_of_the_nodes_own_namespace_is_nobodys() {
        let top = std::env::temp_dir().join(format!("podweir-proc-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let process = |pid: &str, cgroup: &str, netns: &str| {
            let folder = top.join(pid);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("cgroup"), cgroup).unwrap();
            fs::write(top.join(netns), "").unwrap();
            std::os::unix::fs::symlink(top.join(netns), folder.join("ns/net")).unwrap();
        };
        let other = "ffffffff-1111-2222-3333-444455556666";
        process("1", "0::/", "host");
        process("20", &format!("0::/kubepods/pod{UID}/a"), "pod");
        process("21", &format!("0::/kubepods/pod{UID}/b"), "pod");
        process("30", &format!("0::/kubepods/pod{other}/a"), "host");
        fs::create_dir_all(top.join("40")).unwrap();
        fs::write(top.join("uptime"), "").unwrap();
        let found = namespaces(&top);
        assert_eq!(found.len(), 1);
        assert!(found[UID].ends_with("ns/net"));
        fs::remove_dir_all(&top).unwrap();
        assert!(namespaces(&top).is_empty());
    }
}
