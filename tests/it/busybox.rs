//! The image that stands for everybody else's programs, and for the pause container.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// Where the program is.
pub fn path() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("busybox")).find(|file| file.exists());
    found.expect("busybox not found: run ./scripts/packages busybox-static")
}

/// An image of one program, which sleeps if nothing else is asked of it: Docker's old
/// format, with the layer's digest where the configuration wants it.
pub fn image(folder: &Path, name: &str) -> PathBuf {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    std::fs::create_dir_all(folder.join("root/bin")).unwrap();
    std::fs::copy(path(), folder.join("root/bin/busybox")).unwrap();
    run("tar", &["-C", "root", "-cf", "layer.tar", "bin"]);
    let digest = run("sha256sum", &["layer.tar"]);
    let digest = digest.split_whitespace().next().unwrap();
    let config = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": { "Cmd": ["/bin/busybox", "sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        serde_json::to_writer(File::create(folder.join(name)).unwrap(), &content).unwrap();
    }
    run("tar", &["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"]);
    folder.join("image.tar")
}
