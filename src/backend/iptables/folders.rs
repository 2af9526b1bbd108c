//! Where iptables' programs and what they read are on a node, for a sandbox that allows starting them
//! and reading little else.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use super::programs::USUAL;

/// Folders of programs and libraries, where they are folders and no links to another of
/// them: distributions keep everything below `/usr`, or in a store.
const SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/gnu/store"];
/// Where libraries are, and names of protocols and services, which rules may be written with.
const LISTS: [&str; 4] = ["/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/protocols", "/etc/services"];

/// The folders of `path` (a `PATH`; empty: the usual ones) and those of the system, with
/// what programs read besides. None of it holds a secret.
pub fn folders(path: &OsStr) -> Vec<PathBuf> {
    let is_covered = |target: PathBuf| ["usr", "/usr"].iter().any(|usr| target.starts_with(usr));
    let system = SYSTEM.map(PathBuf::from).into_iter().filter(|folder| !fs::read_link(folder).is_ok_and(is_covered));
    let mut all: Vec<PathBuf> = system.collect();
    let path = if path.is_empty() { OsStr::new(USUAL) } else { path };
    for folder in std::env::split_paths(path).filter(|folder| folder.is_absolute()) {
        // The root's would allow everything.
        if folder.parent().is_some() && !SYSTEM.iter().any(|system| folder.starts_with(system)) {
            all.push(folder);
        }
    }
    all.extend(LISTS.map(PathBuf::from));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_path_are_there_once_and_the_root_is_not() {
        let all = folders(OsStr::new("/opt/iptables/sbin:/usr/sbin:relative:/:/sbin"));
        let count = |path: &str| all.iter().filter(|folder| folder.as_os_str() == path).count();
        assert_eq!((count("/opt/iptables/sbin"), count("/usr"), count("/usr/sbin"), count("/")), (1, 1, 0, 0));
        assert!(folders(OsStr::new("")).contains(&"/etc/protocols".into()));
    }
}
