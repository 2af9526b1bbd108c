//! Images made of files, in Docker's old format: no registry is there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Makes an archive in a folder, which need not be there. `files`: each with its path in the
/// image; `config`: what is run, and how, as `docker inspect` has it.
pub fn image(folder: &Path, name: &str, files: &[(&str, &Path)], config: Value) -> PathBuf {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (path, source) in files {
        let target = folder.join("root").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(source, target).unwrap();
    }
    run("tar", &["-C", "root", "--owner=0", "--group=0", "-cf", "layer.tar", "."]);
    let digest = run("sha256sum", &["layer.tar"]);
    let digest = digest.split_whitespace().next().unwrap();
    let config = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux", "config": config,
        // Its digest is that of the layer as it is unpacked.
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        serde_json::to_writer(File::create(folder.join(name)).unwrap(), &content).unwrap();
    }
    run("tar", &["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"]);
    folder.join("image.tar")
}
