//! `scripts/image`: what the Dockerfile says, the same bytes every time, and refusals. Any
//! program that is linked statically will do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::busybox;
use crate::fixture::PODWEIR;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podweir-image-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn script(arguments: &[&str], epoch: &str) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/image");
    Command::new(script).args(arguments).env("SOURCE_DATE_EPOCH", epoch).output().unwrap()
}

/// Builds the image of a program and gives what was printed.
pub fn build(program: &Path, output: &Path, name: &str) -> String {
    let [program, output] = [program, output].map(|path| path.to_str().unwrap());
    let run = script(&["--binary", program, "--output", output, "--name", name], "0");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

fn tar(arguments: &[&str]) -> Vec<u8> {
    let run = Command::new("tar").args(arguments).output().unwrap();
    assert!(run.status.success(), "tar {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    run.stdout
}

#[test]
fn the_image_is_the_dockerfiles() {
    let folder = Folder::new("content");
    let archive = folder.0.join("image.tar");
    let busybox = busybox::path();
    build(&busybox, &archive, "localhost/podweir:test");
    let archive = archive.to_str().unwrap();
    let member = |name: &str| tar(&["-xOf", archive, name]);
    let json = |name: &str| serde_json::from_slice::<Value>(&member(name)).unwrap();
    let blob = |digest: &Value| format!("blobs/sha256/{}", digest.as_str().unwrap().strip_prefix("sha256:").unwrap());

    let index = json("index.json");
    let manifest = json(&blob(&index["manifests"][0]["digest"]));
    let config = json(&blob(&manifest["config"]["digest"]));
    let dockerfile = include_str!("../../Dockerfile");
    let (_, last_stage) = dockerfile.split_once("\nFROM scratch\n").unwrap();
    let says = |instruction: &str| last_stage.lines().find_map(|line| line.strip_prefix(instruction)).unwrap();
    let entrypoint: Value = serde_json::from_str(says("ENTRYPOINT ")).unwrap();
    assert_eq!(config["config"]["Entrypoint"], entrypoint);
    assert_eq!(config["config"]["User"], says("USER "));
    assert_eq!(config["config"]["Env"][0], says("ENV "));
    let labels = config["config"]["Labels"].as_object().unwrap();
    assert_eq!(labels.len(), last_stage.lines().filter(|line| line.starts_with("LABEL ")).count());
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));

    // The one file that runs is the one given; nothing else could be run.
    let layer = folder.0.join("layer.tar");
    std::fs::write(&layer, member(&blob(&manifest["layers"][0]["digest"]))).unwrap();
    let layer = layer.to_str().unwrap();
    let listing = String::from_utf8(tar(&["-tvf", layer, "--numeric-owner"])).unwrap();
    let executables: Vec<&str> = listing.lines().filter(|line| line.starts_with("-rwx")).collect();
    assert!(executables.len() == 1 && executables[0].ends_with(" usr/local/bin/podweir"), "{listing}");
    assert!(listing.lines().all(|line| line.split_whitespace().nth(1) == Some("0/0")), "{listing}");
    assert!(!listing.lines().any(|line| line.as_bytes()[8] == b'w'), "writable by all:\n{listing}");
    assert!(tar(&["-xOf", layer, "usr/local/bin/podweir"]) == std::fs::read(busybox).unwrap());

    let docker = json("manifest.json");
    assert_eq!(docker[0]["RepoTags"][0], "localhost/podweir:test");
    assert_eq!(docker[0]["Layers"][0], blob(&manifest["layers"][0]["digest"]));
}

#[test]
fn the_same_binary_gives_the_same_bytes() {
    let folder = Folder::new("bytes");
    let [first, second] = ["first.tar", "second.tar"].map(|name| folder.0.join(name));
    let digest = |printed: String| printed.lines().next().unwrap().to_owned();
    let busybox = busybox::path();
    let printed = [&first, &second].map(|path| digest(build(&busybox, path, "localhost/podweir:test")));
    assert_eq!(printed[0], printed[1]);
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap());

    let second = second.to_str().unwrap();
    let busybox = busybox.to_str().unwrap();
    let later = script(&["--binary", busybox, "--output", second, "--name", "localhost/podweir:test"], "86400");
    assert_ne!(digest(String::from_utf8(later.stdout).unwrap()), printed[0], "the date is in the image");
}

#[test]
fn the_script_refuses_what_could_not_run() {
    let folder = Folder::new("refuses");
    let output = folder.0.join("image.tar");
    let text = folder.0.join("text");
    std::fs::write(&text, "no program, but long enough").unwrap();
    let (to, text) = (output.to_str().unwrap(), text.to_str().unwrap());
    for (arguments, epoch, status, word) in [
        (&["--binary", "/bin/ls", "--output", to][..], "0", 1, "dynamically"),
        (&["--binary", text, "--output", to], "0", 1, "no executable"),
        (&["--binary", "/nowhere", "--output", to], "0", 1, "no file"),
        (&["--binary", PODWEIR, "--output", to, "--name", "two words"], "0", 2, "no image name"),
        (&["--binary", PODWEIR, "--output", to, "--name", "podweir"], "0", 2, "lacks a registry"),
        (&["--binary", PODWEIR, "--output", to], "yesterday", 2, "SOURCE_DATE_EPOCH"),
        (&["--binary"], "0", 2, "needs a value"),
        (&["--frobnicate", "x"], "0", 2, "unknown option"),
    ] {
        let run = script(arguments, epoch);
        let error = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
        assert!(!output.exists(), "{arguments:?} left an image behind");
    }
}
