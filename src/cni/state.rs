//! The state of an attachment from ADD to DEL, one small file each in the run directory: the decision,
//! so that CHECK compares the kernel with it and not with what would be decided today.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::given::{Given, Origin};
use crate::config::options::OPTIONS;
use crate::sys::trust::{self, TrustError};

use super::netconf::{ValidAttachment, option_name};
use super::request::Attachment;

/// The origin of options that come from a state file.
const ORIGIN: &str = "as decided at ADD";

/// The age from which an unfinished file is taken for a killed process's.
const STALE: Duration = Duration::from_secs(600);
/// How long a state may be: many times what a pod's annotations may hold.
const LONGEST: u64 = 4 << 20;

/// The decision about an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttachmentState {
    /// The netconf's name: GC speaks about one network at a time.
    pub network: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The pod's UID, if the runtime told it: a later pod may have the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The pod's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<KeptNetns>,
    /// Why the pod was left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_alone: Option<String>,
    /// The options of its interception, by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
}

/// A network namespace in a state file: its path, and its identity, since the path may lead to another
/// one later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptNetns {
    pub path: PathBuf,
    /// Device and inode of the namespace.
    pub identity: (u64, u64),
}

/// Options in the form of a state file.
pub(crate) fn to_map(given: &Given) -> Map<String, Value> {
    given.iter().map(|(opt, _, text)| (option_name(opt.spec()).to_owned(), text.into())).collect()
}

impl AttachmentState {
    /// The options of the state; an unknown one was written by another version of podweir.
    pub(crate) fn given(&self) -> Result<Given, String> {
        let mut given = Given::default();
        for (name, value) in &self.options {
            let spec = OPTIONS.iter().find(|spec| option_name(spec) == name);
            match (spec, value.as_str()) {
                (Some(spec), Some(text)) => given.set(spec.opt, Origin::Netconf(ORIGIN.into()), text),
                _ => return Err(format!("option {name} is not known")),
            }
        }
        Ok(given)
    }
}

/// The states in a run directory.
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self { directory: run_dir.join("attachments") }
    }

    fn file_name(attachment: &Attachment) -> String {
        // Neither may have a colon.
        format!("{}:{}.json", attachment.container_id, attachment.ifname)
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.directory.join(Self::file_name(attachment))
    }

    /// Writes a state; readers see either the old one or the new one, whole.
    ///
    /// # Errors
    /// When the folder is not root's alone, or a file in it cannot be written.
    pub(crate) fn save(&self, attachment: &Attachment, state: &AttachmentState) -> io::Result<()> {
        trust::make_directory(&self.directory)?;
        let unfinished = self.directory.join(format!("{}.{}.new", Self::file_name(attachment), std::process::id()));
        let create = || File::options().write(true).create_new(true).mode(0o600).open(&unfinished);
        let file = create().or_else(|e| match e.kind() {
            // Of a process with the same id that was killed.
            io::ErrorKind::AlreadyExists => fs::remove_file(&unfinished).and_then(|()| create()),
            _ => Err(e),
        });
        let text = serde_json::to_vec(state)?;
        let path = self.path(attachment);
        let written = file.and_then(|mut file| file.write_all(&text)).and_then(|()| fs::rename(&unfinished, path));
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Reads the state of an attachment, if there is one.
    ///
    /// # Errors
    /// Others than root could have written the file, or it holds no state.
    pub(crate) fn load(&self, attachment: &Attachment) -> io::Result<Option<AttachmentState>> {
        match trust::read(&self.path(attachment), LONGEST) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content.bytes)?)),
            Err(e) if e.is_missing() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// All attachments, the newest last, and what is wrong with files that cannot be used, with their
    /// names.
    pub(crate) fn all(&self) -> (Vec<(Attachment, AttachmentState)>, Vec<String>) {
        let (paths, mut problems) = self.paths();
        let mut found = Vec::new();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((container_id, ifname)) = name.strip_suffix(".json").and_then(|stem| stem.split_once(':')) else {
                continue;
            };
            let attachment = Attachment { container_id: container_id.into(), ifname: ifname.into() };
            let modified = fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok();
            match self.load(&attachment) {
                Ok(Some(state)) => found.push((modified, attachment, state)),
                // It went between the two looks.
                Ok(None) => {}
                Err(e) => problems.push(format!("{}: {e}", path.display())),
            }
        }
        found.sort_by_key(|(modified, ..)| *modified);
        (found.into_iter().map(|(_, attachment, state)| (attachment, state)).collect(), problems)
    }

    /// Removes the state of an attachment, if there is one.
    ///
    /// # Errors
    /// When the folder is not root's alone, or does not let go of the file.
    pub(crate) fn remove(&self, attachment: &Attachment) -> io::Result<()> {
        match trust::directory(&self.directory) {
            Ok(_) => absent_is_fine(fs::remove_file(self.path(attachment))),
            Err(e) if e.is_missing() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the states of pods that do not exist any more, if they are older than `age`, since a pod
    /// that starts may not be known yet. Goes on after errors; returns them with the number of states
    /// that were removed.
    pub(crate) fn keep_pods(
        &self,
        age: Duration,
        is_there: impl Fn(&str, Option<&str>) -> bool,
    ) -> (usize, Vec<String>) {
        self.forget(|path| {
            let is_state = path.extension().is_some_and(|ending| ending == "json");
            if !is_state || !fs::symlink_metadata(path).is_ok_and(|meta| is_older(&meta, age)) {
                return Ok(false);
            }
            // One that is damaged is of no use to anybody.
            let content = trust::read(path, LONGEST).ok();
            let state = content.and_then(|content| serde_json::from_slice::<AttachmentState>(&content.bytes).ok());
            Ok(state.is_none_or(|state| state.pod.is_some_and(|pod| !is_there(&pod, state.uid.as_deref()))))
        })
    }

    /// Removes the states of a network's attachments that are not among the valid ones. Goes on after
    /// errors; returns them with the number of states that were removed.
    pub(crate) fn keep_only(&self, network: &str, valid: &[ValidAttachment]) -> (usize, Vec<String>) {
        self.forget(|path| is_garbage(path, network, valid))
    }

    /// Removes every file that is garbage; returns their number and all errors.
    fn forget(&self, is_garbage: impl Fn(&Path) -> io::Result<bool>) -> (usize, Vec<String>) {
        let (paths, mut problems) = self.paths();
        let mut removed = 0;
        for path in paths {
            match is_garbage(&path) {
                Ok(false) => {}
                Ok(true) => match absent_is_fine(fs::remove_file(&path)) {
                    Ok(()) => removed += 1,
                    Err(e) => problems.push(format!("cannot remove {}: {e}", path.display())),
                },
                Err(e) => problems.push(format!("cannot read {}: {e}", path.display())),
            }
        }
        (removed, problems)
    }

    /// The files in the folder, and errors of listing it.
    fn paths(&self) -> (Vec<PathBuf>, Vec<String>) {
        let listing = trust::directory(&self.directory)
            .and_then(|path| fs::read_dir(&path).map_err(|source| TrustError::Io { path, source }));
        let entries = match listing {
            Ok(entries) => entries,
            Err(e) if e.is_missing() => return (Vec::new(), Vec::new()),
            Err(e) => return (Vec::new(), vec![format!("cannot list the attachments: {e}")]),
        };
        let (mut paths, mut problems) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Ok(entry) => paths.push(entry.path()),
                Err(e) => {
                    problems.push(format!("cannot list {}: {e}", self.directory.display()));
                    break;
                }
            }
        }
        (paths, problems)
    }
}

fn is_older(meta: &fs::Metadata, age: Duration) -> bool {
    let since = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    since.is_some_and(|time| time > age)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_garbage(path: &Path, network: &str, valid: &[ValidAttachment]) -> io::Result<bool> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.ends_with(".new") {
        return Ok(is_older(&fs::symlink_metadata(path)?, STALE));
    }
    let Some((container_id, ifname)) = name.strip_suffix(".json").and_then(|stem| stem.split_once(':')) else {
        return Ok(false);
    };
    if valid.iter().any(|v| v.container_id == container_id && v.ifname == ifname) {
        return Ok(false);
    }
    let text = match trust::read(path, LONGEST) {
        Ok(content) => content.bytes,
        Err(e) if e.is_missing() => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    let state: AttachmentState = serde_json::from_slice(&text)?;
    Ok(state.network == network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::Opt;

    fn store(name: &str) -> Store {
        let dir = std::env::temp_dir().join(format!("podweir-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Store::new(&dir)
    }

    fn attachment(id: &str) -> Attachment {
        Attachment { container_id: id.into(), ifname: "eth0".into() }
    }

    fn state(network: &str) -> AttachmentState {
        let mut given = Given::default();
        given.set(Opt::InboundPorts, Origin::Flag, "80");
        given.set(Opt::LoopbackCidr, Origin::Flag, "127.0.0.0/8");
        AttachmentState {
            network: network.into(),
            pod: None,
            uid: None,
            netns: None,
            left_alone: None,
            options: to_map(&given),
        }
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let store = store("load");
        assert!(store.load(&attachment("a")).unwrap().is_none());
        store.save(&attachment("a"), &state("n")).unwrap();
        let loaded = store.load(&attachment("a")).unwrap().unwrap();
        assert_eq!(loaded, state("n"));
        assert_eq!(loaded.given().unwrap().text(Opt::LoopbackCidr).1, "127.0.0.0/8");
        store.remove(&attachment("a")).unwrap();
        store.remove(&attachment("a")).unwrap();
        assert!(store.load(&attachment("a")).unwrap().is_none());
        fs::remove_dir_all(store.directory.parent().unwrap()).unwrap();
    }

    #[test]
    fn all_are_listed_and_a_damaged_one_is_named() {
        let store = store("all");
        assert_eq!(store.all(), (Vec::new(), Vec::new()));
        let netns = KeptNetns { path: "/var/run/netns/cni-1".into(), identity: (4, 4026533000) };
        let whole = AttachmentState { uid: Some("7f".into()), netns: Some(netns), ..state("n") };
        store.save(&attachment("a"), &whole).unwrap();
        // As the release before wrote it.
        let old = r#"{"network":"n","pod":"shop/web-0","options":{"inbound-ports":"80"}}"#;
        fs::write(store.directory.join("b:eth0.json"), old).unwrap();
        fs::write(store.directory.join("c:eth0.json"), "{").unwrap();
        fs::write(store.directory.join("a:eth0.json.77.new"), "").unwrap();
        for file in ["b:eth0.json", "c:eth0.json"] {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(store.directory.join(file), PermissionsExt::from_mode(0o600)).unwrap();
        }
        let (mut found, problems) = store.all();
        found.sort_by(|(a, _), (b, _)| a.container_id.cmp(&b.container_id));
        assert_eq!(found[0], (attachment("a"), whole));
        assert_eq!((found.len(), &found[1].1.uid, &found[1].1.netns), (2, &None, &None));
        assert!(matches!(&problems[..], [one] if one.contains("c:eth0.json")), "{problems:?}");
        fs::remove_dir_all(store.directory.parent().unwrap()).unwrap();
    }

    #[test]
    fn nothing_is_written_through_what_somebody_put_in_the_way() {
        let store = store("link");
        store.save(&attachment("a"), &state("n")).unwrap();
        let victim = store.directory.join("victim");
        fs::write(&victim, "precious").unwrap();
        let unfinished = store.directory.join(format!("a:eth0.json.{}.new", std::process::id()));
        std::os::unix::fs::symlink(&victim, unfinished).unwrap();
        store.save(&attachment("a"), &state("other")).unwrap();
        assert_eq!(store.load(&attachment("a")).unwrap(), Some(state("other")));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::remove_dir_all(store.directory.parent().unwrap()).unwrap();
    }

    #[test]
    fn attachments_of_pods_that_are_gone_go_when_they_are_old() {
        let store = store("pods");
        for (id, pod) in [("a", Some("shop/here")), ("b", Some("shop/gone")), ("c", None)] {
            store.save(&attachment(id), &AttachmentState { pod: pod.map(str::to_owned), ..state("n") }).unwrap();
        }
        let there = |pod: &str, _: Option<&str>| pod == "shop/here";
        assert_eq!(store.keep_pods(Duration::from_secs(3600), there), (0, Vec::new()));
        assert_eq!(store.keep_pods(Duration::ZERO, there), (1, Vec::new()));
        let left = |id| store.load(&attachment(id)).unwrap().is_some();
        assert!(left("a") && !left("b") && left("c"));
        fs::remove_dir_all(store.directory.parent().unwrap()).unwrap();
    }

    #[test]
    fn only_the_networks_own_garbage_goes() {
        let store = store("gc");
        assert_eq!(store.keep_only("n", &[]), (0, Vec::new()));
        for (id, network) in [("a", "n"), ("b", "n"), ("c", "other")] {
            store.save(&attachment(id), &state(network)).unwrap();
        }
        fs::write(store.directory.join("a:eth0.json.77.new"), "").unwrap();
        let valid = [ValidAttachment { container_id: "a".into(), ifname: "eth0".into() }];
        assert_eq!(store.keep_only("n", &valid), (1, Vec::new()));
        let left = |id| store.load(&attachment(id)).unwrap().is_some();
        assert!(left("a") && !left("b") && left("c"));
        assert!(store.directory.join("a:eth0.json.77.new").exists(), "somebody may be writing it");
        fs::remove_dir_all(store.directory.parent().unwrap()).unwrap();
    }
}
