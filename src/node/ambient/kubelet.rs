//! The user that the kubelet runs as, by which its probes are told from other traffic.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The names of the kubelet's process: its own, that of microk8s, and those of k3s, which renames
/// itself.
const NAMES: [&str; 5] = ["kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"];

/// The user that owns the kubelet's sockets; `None` if no kubelet is seen. Only processes in the node's
/// own network namespace count, since whole clusters may run in containers of the node; of several, the
/// one with the lowest process id.
///
/// `proc`: where the node's proc(5) is mounted.
pub fn uid(proc: &Path) -> Option<u32> {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let host = identity(&proc.join("1/ns/net"));
    let mut found: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir(proc).ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes come and go: what cannot be read has gone.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        if !NAMES.contains(&name.trim_end()) || identity(&entry.path().join("ns/net")) != host {
            continue;
        }
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        found.extend(file_system_uid(&status).map(|uid| (pid, uid)));
    }
    found.into_iter().min().map(|(_, uid)| uid)
}

/// The user who owns what a process makes: the last of the four that proc(5) shows.
fn file_system_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_is_found_by_its_name_in_the_nodes_namespace() {
        let top = std::env::temp_dir().join(format!("podweir-kubelet-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let process = |pid: &str, name: &str, uid: &str, netns: &str| {
            let folder = top.join(pid);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
            fs::write(folder.join("status"), format!("Name:\t{name}\nUid:\t1\t2\t3\t{uid}\nGid:\t0\n")).unwrap();
            fs::write(top.join(netns), "").unwrap();
            std::os::unix::fs::symlink(top.join(netns), folder.join("ns/net")).unwrap();
        };
        assert_eq!(uid(&top), None);
        process("1", "systemd", "0", "host");
        process("7", "kubelets", "8", "host");
        assert_eq!(uid(&top), None);
        process("30", "kubelet", "5", "another");
        assert_eq!(uid(&top), None);
        process("200", "kubelite", "7", "host");
        assert_eq!(uid(&top), Some(7));
        process("100", "k3s-server", "6", "host");
        assert_eq!(uid(&top), Some(6));
        fs::remove_dir_all(&top).unwrap();
    }
}
