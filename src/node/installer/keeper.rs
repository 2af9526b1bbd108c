//! Keeping binary and chain: a look when their folders or the folders above change, and one every half
//! minute besides, since a change may be missed (a folder that is replaced, a file system that reports
//! nothing).

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{error, info, warn};

use super::pauses::Pauses;
use super::state::REWRITTEN_CURE;
use super::{ChainState, Installation, Placed};

/// The longest time between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// How long changes are collected for one look: a program that writes files writes several at once.
const BURST: Duration = Duration::from_millis(50);
/// The shortest time between two looks while writing our entry is paused.
const IN_PAUSE: Duration = Duration::from_secs(1);
/// The pauses before our entry is written again when other programs keep rewriting the file: the first,
/// and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The number of rewrites in a row from which the warning names the cause.
const NOTABLE: u32 = 3;

/// What a look found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The state of the chain, or why it could not be looked at or written.
    pub chain: Result<ChainState, String>,
    /// What was done about the binary, or why it could not be placed.
    pub binary: Result<Placed, String>,
    /// Whether another program had removed our entry, and this look wrote it again.
    pub rewritten: bool,
    /// How many such rewrites there were without a quiet time between, this one included.
    pub rewritten_in_a_row: u32,
}

impl Inspection {
    /// Why pods on this node would not be intercepted; `None` if they are.
    pub fn problem(&self) -> Option<String> {
        let binary = self.binary.as_ref().err().map(|e| format!("the plugin's binary cannot be placed: {e}"));
        let chain = match &self.chain {
            Ok(state) if state.is_effective() => None,
            Ok(state) => Some(state.to_string()),
            Err(e) => Some(format!("the chain cannot be kept: {e}")),
        };
        binary.or(chain)
    }
}

/// What wakes the keeper.
enum Wake {
    Changed,
    Stop,
}

/// A keeper that runs in a thread of its own.
pub struct Keeper {
    wake: Sender<Wake>,
    thread: std::thread::JoinHandle<()>,
}

impl Keeper {
    /// Starts keeping. `report` is called with the result of every look.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(installation: Installation, report: impl Fn(&Inspection) + Send + 'static) -> std::io::Result<Self> {
        let (wake, woken) = channel();
        let events = wake.clone();
        let thread = std::thread::Builder::new().name("installer".into()).spawn(move || {
            let mut looks = Looks::new(installation);
            let mut watcher = Folders::new(&looks.installation, events);
            loop {
                // The watches first, so that nothing that changes after the look goes unseen.
                watcher.watch();
                let look = looks.look(Instant::now());
                report(&look);
                if !wait(&woken, looks.left(Instant::now())) {
                    return;
                }
            }
        })?;
        Ok(Self { wake, thread })
    }

    /// Stops keeping. Nothing is removed.
    pub fn stop(self) {
        // A thread that has ended already is not in need of being told.
        let _ = self.wake.send(Wake::Stop);
        let _ = self.thread.join();
    }
}

/// Waits for a change, for the end of the pause, or for the next look. Whether to go on.
fn wait(woken: &Receiver<Wake>, pause: Option<Duration>) -> bool {
    let now = Instant::now();
    // Who fights for the file wakes often, and each look costs.
    let not_before = now + if pause.is_some() { IN_PAUSE } else { BURST };
    let mut until = now + pause.unwrap_or(EVERY).min(EVERY);
    loop {
        match woken.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Wake::Changed) => until = until.min(not_before.max(Instant::now() + BURST)),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => return true,
        }
    }
}

/// Looks at binary and chain, one look after the other, and remembers what was found.
struct Looks {
    installation: Installation,
    pauses: Pauses,
    /// Until when our entry is not written, since others keep removing it, and how long that is
    /// altogether.
    pause: Option<(Instant, Duration)>,
    was_effective: bool,
    last: Option<Inspection>,
    /// The plugins of other meshes of which the log has warned.
    other_meshes: Vec<String>,
}

impl Looks {
    fn new(installation: Installation) -> Self {
        Self {
            installation,
            pauses: Pauses::new(FIRST_PAUSE, LONGEST_PAUSE),
            pause: None,
            was_effective: false,
            last: None,
            other_meshes: Vec::new(),
        }
    }

    /// How long our entry is still not written; `None` if an entry that is missing is written at once.
    fn left(&self, now: Instant) -> Option<Duration> {
        let (until, _) = self.pause?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Looks at binary and chain, and repairs them. During a pause the chain is only looked at.
    fn look(&mut self, now: Instant) -> Inspection {
        // The binary first: a chain must never name a plugin that is not there.
        let binary = self.installation.keep_binary().map_err(|e| e.to_string());
        let held = self.pause.filter(|(until, _)| now < *until).map(|(_, pause)| pause);
        let chain = match (&binary, held) {
            (Ok(_), None) => self.installation.keep_chain().map_err(|e| e.to_string()),
            (Ok(_), Some(within)) => match self.installation.look_at_chain() {
                Ok(ChainState::Absent { file }) => Ok(ChainState::TakenOut { file, within }),
                looked => looked.map_err(|e| e.to_string()),
            },
            (Err(_), _) => {
                Ok(ChainState::Waiting { reason: "waiting for the plugin's binary to be in its place".into() })
            }
        };
        let written = matches!(chain, Ok(ChainState::Effective { written: true, .. }));
        let rewritten = written && self.was_effective;
        if rewritten {
            let pause = self.pauses.after(now);
            self.pause = Some((now + pause, pause));
        }
        self.was_effective |= matches!(&chain, Ok(state) if state.is_effective());
        let rewritten_in_a_row = if rewritten { self.pauses.in_a_row().saturating_add(1) } else { 0 };
        let look = Inspection { chain, binary, rewritten, rewritten_in_a_row };
        self.tell(&look);
        look
    }

    /// Writes to the log what is new since the last look.
    fn tell(&mut self, look: &Inspection) {
        let before = self.last.replace(look.clone());
        match &look.binary {
            Ok(Placed::New | Placed::Replaced) => {
                info!(folder = %self.installation.bin_dir.display(), "the plugin's binary is in its place")
            }
            Ok(Placed::Same) => {}
            Err(e) if before.as_ref().is_none_or(|before| before.binary != look.binary) => {
                error!("the plugin's binary cannot be placed: {e}; it is tried again every {} s", EVERY.as_secs());
            }
            Err(_) => {}
        }
        if matches!(&look.chain, Ok(state) if state.is_effective()) {
            let others = self.installation.other_meshes();
            for other in others.iter().filter(|other| !self.other_meshes.contains(other)) {
                warn!(
                    "{other} is in the chain as well: pods' rules are made twice, with the same result; uninstall it when podweir's agent runs on every node"
                );
            }
            self.other_meshes = others;
        }
        let is_new = before.as_ref().is_none_or(|before| before.chain != look.chain);
        match &look.chain {
            Ok(ChainState::Effective { file, written: true }) if look.rewritten_in_a_row >= NOTABLE => warn!(
                file = %file.display(),
                times = look.rewritten_in_a_row,
                pause_s = self.pause.map_or(0, |(_, pause)| pause.as_secs()),
                "another program keeps rewriting the chain without podweir's entry, and the entry was added again; {}",
                REWRITTEN_CURE
            ),
            Ok(ChainState::Effective { file, written: true }) if look.rewritten => {
                warn!(file = %file.display(), "another program rewrote the chain without podweir's entry; the entry was added again");
            }
            Ok(ChainState::Effective { file, written: true }) => {
                info!(file = %file.display(), "the entry was added to the chain");
            }
            Ok(ChainState::Effective { file, .. }) if before.is_none() => {
                info!(file = %file.display(), "the entry is in the chain");
            }
            Ok(state @ ChainState::TakenOut { .. }) if is_new => warn!("{state}"),
            Ok(ChainState::Waiting { reason }) if is_new => warn!("{reason}"),
            Ok(state @ ChainState::Broken { .. }) if is_new => error!("{state}"),
            Err(e) if is_new => error!("the chain cannot be kept: {e}"),
            _ => {}
        }
    }
}

/// The folders that are watched: where binary and chain are, and every folder above them,
/// since each of these may be replaced.
struct Folders {
    watcher: Option<RecommendedWatcher>,
    folders: Vec<PathBuf>,
}

impl Folders {
    fn new(installation: &Installation, wake: Sender<Wake>) -> Self {
        let targets = [installation.conf_dir.clone(), installation.bin_dir.clone()];
        let mut folders: Vec<PathBuf> =
            targets.iter().flat_map(|target| target.ancestors().map(Path::to_owned)).collect();
        folders.sort();
        folders.dedup();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let matters = match &event {
                Ok(event) => !matches!(event.kind, EventKind::Access(_)) && concerns(&targets, &event.paths),
                // The queue overflowed, or the watch is gone: anything may have changed.
                Err(_) => true,
            };
            if matters {
                // Without a keeper there is nobody to wake.
                let _ = wake.send(Wake::Changed);
            }
        });
        let watcher = watcher
            .inspect_err(|e| warn!("folders cannot be watched ({e}); they are looked at every {} s", EVERY.as_secs()));
        Self { watcher: watcher.ok(), folders }
    }

    /// Watches every folder that is there. One that is watched already stays so; one that
    /// was replaced is watched anew.
    fn watch(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for folder in self.folders.iter().filter(|folder| folder.is_dir()) {
            // A folder that goes at this moment is seen by the watch of the one above it.
            let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
        }
    }
}

/// Whether a change of these paths may be one of binary or chain: inside of one of the folders, or at a
/// folder above.
fn concerns(targets: &[PathBuf], paths: &[PathBuf]) -> bool {
    paths.is_empty()
        || paths.iter().any(|path| targets.iter().any(|target| target.starts_with(path) || path.starts_with(target)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use serde_json::{Value, json};

    use super::super::ChainMode;
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

    fn installation(name: &str) -> Installation {
        let top = std::env::temp_dir().join(format!("podweir-keeper-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("bin")).unwrap();
        fs::create_dir_all(top.join("net.d")).unwrap();
        fs::write(top.join("executable"), "binary").unwrap();
        Installation {
            executable: top.join("executable"),
            bin_dir: top.join("bin"),
            conf_dir: top.join("net.d"),
            mode: ChainMode::Merge,
            entry: json!({ "type": "podweir" }),
            own_version: "1.0.0".into(),
        }
    }

    fn has_entry(installation: &Installation) -> bool {
        let text = fs::read_to_string(installation.conf_dir.join("10-pods.conflist")).unwrap_or_default();
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        value["plugins"].as_array().is_some_and(|plugins| plugins.iter().any(|plugin| plugin["type"] == "podweir"))
    }

    #[test]
    fn rewrites_by_others_are_answered_with_growing_pauses_in_which_it_is_said() {
        let installation = installation("pauses");
        let list = installation.conf_dir.join("10-pods.conflist");
        let mut looks = Looks::new(installation.clone());
        let mut now = Instant::now();
        assert!(looks.look(now).problem().unwrap().contains("waiting"));
        fs::write(&list, LIST).unwrap();
        let look = looks.look(now);
        assert!(!look.rewritten && looks.left(now).is_none() && look.problem().is_none());
        assert!(!looks.look(now).rewritten);
        let mut pauses = Vec::new();
        for _ in 0..4 {
            fs::write(&list, LIST).unwrap();
            let look = looks.look(now);
            assert!(look.rewritten && look.problem().is_none() && has_entry(&installation));
            let pause = looks.left(now).unwrap_or_default();
            pauses.push(pause.as_secs());
            let end = now + pause;
            // All the time until the end of the pause.
            for part in 0..4 {
                let moment = now + pause * part / 4;
                if moment == end {
                    break;
                }
                assert!(looks.look(moment).problem().is_none(), "the entry is there still");
                fs::write(&list, LIST).unwrap();
                fs::remove_file(installation.bin_dir.join("podweir")).unwrap();
                let look = looks.look(moment);
                assert_eq!(look.binary, Ok(Placed::New), "the binary is kept all the same");
                assert!(!look.rewritten && !has_entry(&installation), "others have their way");
                let said = look.problem().unwrap();
                assert!(said.contains("was taken out of") && said.contains("by another program"), "{said}");
                assert!(said.contains(&format!("written again within {} s", pause.as_secs())), "{said}");
                // Somebody else puts it back.
                installation.keep_chain().unwrap();
            }
            now = end;
        }
        assert_eq!(pauses, [0, 1, 2, 4]);
        fs::remove_dir_all(installation.conf_dir.parent().unwrap()).unwrap();
    }

    #[test]
    fn who_only_looks_says_what_would_be_written_and_writes_nothing() {
        for mode in [ChainMode::Merge, ChainMode::DropIn, ChainMode::Standalone] {
            let installation = Installation { mode, ..installation("looks") };
            fs::write(installation.conf_dir.join("10-pods.conflist"), LIST).unwrap();
            for _ in 0..2 {
                assert!(matches!(installation.look_at_chain(), Ok(ChainState::Absent { .. })), "{mode:?}");
            }
            assert!(matches!(installation.keep_chain(), Ok(ChainState::Effective { written: true, .. })), "{mode:?}");
            assert!(
                matches!(installation.look_at_chain(), Ok(ChainState::Effective { written: false, .. })),
                "{mode:?}"
            );
            fs::remove_dir_all(installation.conf_dir.parent().unwrap()).unwrap();
        }
    }

    #[test]
    fn without_a_binary_the_chain_does_not_name_one() {
        let mut installation = installation("binary");
        fs::write(installation.conf_dir.join("10-pods.conflist"), LIST).unwrap();
        installation.bin_dir = installation.bin_dir.join("gone");
        let look = Looks::new(installation.clone()).look(Instant::now());
        assert!(look.problem().unwrap().contains("gone"), "{look:?}");
        assert!(!has_entry(&installation));
        fs::remove_dir_all(installation.conf_dir.parent().unwrap()).unwrap();
    }

    #[test]
    fn whatever_happens_to_the_folder_the_entry_comes_back() {
        let installation = installation("comes-back");
        let list = installation.conf_dir.join("10-pods.conflist");
        let (sender, looks) = mpsc::channel();
        let keeper = Keeper::start(installation.clone(), move |look| drop(sender.send(look.clone()))).unwrap();
        // Each look is waited for; the deadline only ends a test that would wait for ever.
        let until = |done: &dyn Fn(&Inspection) -> bool| loop {
            let look = looks.recv_timeout(Duration::from_secs(60)).unwrap();
            if done(&look) {
                return;
            }
        };
        until(&|look| look.problem().is_some());
        fs::write(&list, LIST).unwrap();
        until(&|look| look.problem().is_none());
        assert!(has_entry(&installation));
        fs::remove_dir_all(&installation.conf_dir).unwrap();
        until(&|look| look.problem().is_some());
        fs::create_dir_all(&installation.conf_dir).unwrap();
        fs::write(&list, LIST).unwrap();
        until(&|look| look.problem().is_none());
        assert!(has_entry(&installation));
        fs::remove_file(installation.bin_dir.join("podweir")).unwrap();
        until(&|look| look.binary == Ok(Placed::New));
        keeper.stop();
        assert!(has_entry(&installation), "nothing is removed at the end");
        fs::remove_dir_all(installation.conf_dir.parent().unwrap()).unwrap();
    }

    #[test]
    fn only_changes_of_the_folders_and_those_above_wake() {
        let targets = [PathBuf::from("/etc/cni/net.d")];
        let concerns = |path: &str| concerns(&targets, &[path.into()]);
        assert!(concerns("/etc/cni") && concerns("/etc/cni/net.d") && concerns("/etc/cni/net.d/10-pods.conflist"));
        assert!(!concerns("/etc/passwd") && !concerns("/etc/cni/other"));
    }
}
