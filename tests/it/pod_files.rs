//! The files of a pod that is looked at from its node: whoever is root there may put
//! anything in their place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::channel;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chroot, gettid, mkfifo};
use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR};

/// Looks at a namespace through a process (here: a thread) whose root is a directory.
fn look(namespace: &Namespace, root: &Path) -> Output {
    std::thread::scope(|scope| {
        let (tell, told) = channel();
        let (done, until) = channel::<()>();
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(namespace.net(), CloneFlags::CLONE_NEWNET).unwrap();
            chroot(root).unwrap();
            tell.send(gettid()).unwrap();
            let _ = until.recv();
        });
        let pid = told.recv().unwrap().to_string();
        let arguments = ["20", PODWEIR, "render", "--pid", &pid, "--format", "json"];
        let output = Command::new("timeout").args(arguments).output().unwrap();
        drop(done);
        output
    })
}

fn name_servers(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let servers = json["pod"]["dns_servers"].as_array().cloned().unwrap_or_default();
    servers.iter().map(|server| server.as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_stands_in_their_place_neither_hangs_nor_leads_out_of_the_pod() {
    let namespace = Namespace::new();
    let root = namespace.directory().join("root");
    let file = root.join("etc/resolv.conf");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(&file, "nameserver 10.96.0.10\n").unwrap();
    assert_eq!(name_servers(&look(&namespace, &root)), ["10.96.0.10"]);

    // A link is one of the pod's, wherever the same path leads on the node.
    let outside = namespace.directory().join("outside");
    fs::write(&outside, "nameserver 9.9.9.9\n").unwrap();
    fs::create_dir_all(root.join(outside.parent().unwrap().strip_prefix("/").unwrap())).unwrap();
    fs::write(root.join(outside.strip_prefix("/").unwrap()), "nameserver 10.96.0.11\n").unwrap();
    fs::remove_file(&file).unwrap();
    symlink(&outside, &file).unwrap();
    assert_eq!(name_servers(&look(&namespace, &root)), ["10.96.0.11"]);
    fs::remove_file(&file).unwrap();
    symlink("../../../outside", &file).unwrap();
    assert_eq!(name_servers(&look(&namespace, &root)), Vec::<String>::new());

    let zero = root.join("zero");
    let device = nix::sys::stat::makedev(1, 5);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&zero, nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
    let odd: [(&str, &dyn Fn()); 4] = [
        ("no regular file", &|| mkfifo(&file, mode).unwrap()),
        ("no regular file", &|| symlink("/zero", &file).unwrap()),
        ("no regular file", &|| fs::create_dir(&file).unwrap()),
        ("longer than 1024 KiB", &|| fs::File::create(&file).unwrap().set_len(1 << 40).unwrap()),
    ];
    for (problem, make) in odd {
        let _ = fs::remove_file(&file);
        let _ = fs::remove_dir(&file);
        make();
        let output = look(&namespace, &root);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(name_servers(&output), Vec::<String>::new(), "{problem}: {log}");
        assert!(log.contains("/etc/resolv.conf of process") && log.contains(problem), "{problem}: {log}");
    }
}
