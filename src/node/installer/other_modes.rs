//! Changing `--chain`: what the mode before left is taken away, so that the plugin does not run
//! twice for each pod. The new entry is there first, and until then the old one stays: a mode
//! that cannot become effective takes nothing away.

use std::io;
use std::path::Path;

use tracing::info;

use super::{ChainMode, Installation, drop_in, merge, own_file};

/// Takes away what agents with other modes wrote, and nothing of others. `file`: where our entry
/// now is, from where it reaches the runtime.
///
/// # Errors
/// The operating system's, naming the file; the entry is then there twice.
pub(super) fn clear(installation: &Installation, file: &Path) -> io::Result<()> {
    let Installation { mode, conf_dir, entry, .. } = installation;
    // Whoever manages the chain may do so by what an agent left.
    if *mode == ChainMode::None {
        return Ok(());
    }
    let mut left = Vec::new();
    if *mode != ChainMode::Merge {
        left.extend(merge::leave(conf_dir, entry)?);
    }
    if *mode != ChainMode::DropIn {
        left.extend(drop_in::remove(conf_dir)?);
    }
    // In Multus' own folder our list can be the one that `merge` finds.
    if *mode != ChainMode::Standalone && !own_file::is_own(conf_dir, file) {
        left.extend(own_file::leave(conf_dir, entry)?);
    }
    for old in left {
        info!(file = %old.display(), "the entry that an agent with another --chain had left there is taken away");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::super::ChainState;
    use super::*;

    const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";
    const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge"}"#;
    const MODES: [ChainMode; 3] = [ChainMode::Merge, ChainMode::DropIn, ChainMode::Standalone];

    struct Node(PathBuf);

    impl Node {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("podweir-modes-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn agent(&self, mode: ChainMode) -> Installation {
            Installation {
                executable: "/proc/self/exe".into(),
                bin_dir: self.0.join("bin"),
                conf_dir: self.0.clone(),
                mode,
                entry: json!({ "type": "podweir", "cni_agent_run_dir": "/run/podweir" }),
                own_version: "1.0.0".into(),
            }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }

        /// Every file with an entry of ours.
        fn with_entry(&self) -> Vec<PathBuf> {
            let files = ["10-pods.conflist", "podweir.conflist", "pods/zz-podweir.conf"].map(|name| self.0.join(name));
            let has = |file: &PathBuf| fs::read_to_string(file).is_ok_and(|text| text.contains("podweir"));
            files.into_iter().filter(has).collect()
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn whatever_mode_follows_another_the_entry_is_there_once_and_goes_without_a_trace() {
        for (from, to) in MODES.into_iter().flat_map(|from| MODES.map(|to| (from, to))) {
            let node = Node::new("pairs");
            node.write("10-pods.conflist", LIST);
            node.agent(from).keep_chain().unwrap();
            // The options may have changed with the mode.
            let mut agent = node.agent(to);
            agent.entry["agent_timeout"] = "5s".into();
            let ChainState::Effective { file, .. } = agent.keep_chain().unwrap() else { panic!("{from:?} to {to:?}") };
            assert_eq!(node.with_entry(), std::slice::from_ref(&file), "{from:?} to {to:?}");
            assert_eq!(agent.keep_chain().unwrap(), ChainState::Effective { file, written: false });
            agent.remove_entry().unwrap();
            assert_eq!(node.text("10-pods.conflist"), LIST, "{from:?} to {to:?}");
            assert_eq!(fs::read_dir(&node.0).unwrap().count(), 1, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn a_mode_that_cannot_become_effective_takes_nothing_away() {
        let only = LIST.replace("\"name\"", "\"loadOnlyInlinedPlugins\": true, \"name\"");
        // Lists of which no drop-in is read; a folder that cannot be made.
        for (file, text, blocked) in [
            ("10-pods.conflist", only.as_str(), false),
            ("10-pods.conf", SINGLE, false),
            ("10-pods.conflist", LIST, true),
        ] {
            let node = Node::new("cannot");
            node.write(file, text);
            if blocked {
                node.write("pods", "in the way");
            }
            node.agent(ChainMode::Merge).keep_chain().unwrap();
            match node.agent(ChainMode::DropIn).keep_chain() {
                Ok(ChainState::Broken { reason, .. }) => {
                    assert!(!blocked && reason.contains("--chain merge"), "{reason}")
                }
                other => assert!(blocked && other.is_err(), "{other:?}"),
            }
            assert_eq!(node.with_entry(), [node.0.join("10-pods.conflist")], "{text}");
            // And the way back is none.
            assert!(node.agent(ChainMode::Merge).keep_chain().unwrap().is_effective());
        }
        let node = Node::new("damaged");
        node.write("10-pods.conflist", LIST);
        node.agent(ChainMode::DropIn).keep_chain().unwrap();
        node.write("10-pods.conflist", "{");
        assert!(matches!(node.agent(ChainMode::Merge).keep_chain(), Ok(ChainState::Broken { .. })));
        assert_eq!(node.with_entry(), [node.0.join("pods/zz-podweir.conf")]);
    }

    #[test]
    fn what_somebody_else_wrote_stays() {
        let by_hand = json!({ "type": "podweir", "kubeconfig": "/etc/podweir/kubeconfig" });
        let list = |plugins: Value| json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins }).to_string();
        let both = list(json!([{ "type": "bridge" }, by_hand.clone()]));
        let node = Node::new("others");
        node.write("10-pods.conflist", &both);
        let dropping = node.agent(ChainMode::DropIn).keep_chain().unwrap();
        assert!(matches!(&dropping, ChainState::Broken { reason, .. } if reason.contains("remove that entry")));
        assert!(node.agent(ChainMode::Standalone).keep_chain().unwrap().is_effective());
        assert_eq!(node.text("10-pods.conflist"), both);
        // Files that are called like ours.
        for own in [list(json!([{ "type": "bridge" }])), list(json!([by_hand]))] {
            node.write("10-pods.conflist", LIST);
            node.write("podweir.conflist", &own);
            assert!(node.agent(ChainMode::Merge).keep_chain().unwrap().is_effective());
            assert_eq!(node.text("podweir.conflist"), own);
        }
        node.write("podweir.conflist", &list(json!([{ "type": "bridge" }])));
        node.agent(ChainMode::Merge).remove_entry().unwrap();
        assert!(node.text("podweir.conflist").contains("bridge"));
    }
}
