//! Who holds a socket, as far as proc(5) shows their processes. sock_diag(7) tells a
//! socket's user, but not its group, which rules ask for too (iptables-extensions(8), owner).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process's user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOwner {
    pub uid: u32,
    pub gid: u32,
    /// Whether the process lives in a user namespace other than ours. The numbers are those
    /// of that namespace, as rules in a network namespace that it owns see them.
    pub foreign: bool,
}

/// The owners of sockets of the calling thread's network namespace, by inode. What cannot
/// be seen is left out: other PID namespaces, other users' processes without
/// CAP_SYS_PTRACE.
pub fn owners(wanted: &HashSet<u32>) -> HashMap<u32, SocketOwner> {
    let mut out = HashMap::new();
    let namespace = |path: &Path| fs::metadata(path).ok().map(|meta| meta.ino());
    let (net, user) = (namespace(Path::new("/proc/thread-self/ns/net")), namespace(Path::new("/proc/self/ns/user")));
    let Ok(processes) = fs::read_dir("/proc") else { return out };
    for process in processes.flatten().map(|entry| entry.path()) {
        if out.len() == wanted.len() {
            break;
        }
        let is_process = process.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        if !is_process || net.is_none() || namespace(&process.join("ns/net")) != net {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { continue };
        let inodes = descriptors.flatten().filter_map(|entry| inode(&fs::read_link(entry.path()).ok()?));
        let inodes: Vec<u32> = inodes.filter(|inode| wanted.contains(inode)).collect();
        if !inodes.is_empty()
            && let Some(owner) = owner(&process, namespace(&process.join("ns/user")) != user)
        {
            out.extend(inodes.into_iter().map(|inode| (inode, owner)));
        }
    }
    out
}

/// The inode in the text of a link such as `socket:[12345]`.
fn inode(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn owner(process: &Path, foreign: bool) -> Option<SocketOwner> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let id = |name: &str, map: &str| {
        // Real, effective, saved, and the one that sockets are made as.
        let ids = status.lines().find_map(|line| line.strip_prefix(name))?;
        let id = ids.split_whitespace().nth(3)?.parse().ok()?;
        if foreign { inside(&fs::read_to_string(process.join(map)).ok()?, id) } else { Some(id) }
    };
    Some(SocketOwner { uid: id("Uid:", "uid_map")?, gid: id("Gid:", "gid_map")?, foreign })
}

/// What a user namespace calls an id of ours (user_namespaces(7)).
fn inside(map: &str, outside: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (first, theirs, length) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = outside.checked_sub(theirs).filter(|offset| *offset < length)?;
        first.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_owner_of_a_socket_of_our_own_is_found() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = inode(&link).unwrap();
        let owner = owners(&[inode].into())[&inode];
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        assert_eq!(owner, SocketOwner { uid, gid, foreign: false });
    }

    #[test]
    fn ids_are_those_of_the_namespace_they_live_in() {
        let map = "         0     100000      65536\n     70000    1000000          1\n";
        assert_eq!(inside(map, 101_337), Some(1337));
        assert_eq!(inside(map, 1_000_000), Some(70_000));
        assert_eq!(inside(map, 99_999), None);
        assert_eq!(inside(map, 165_536), None);
    }
}
