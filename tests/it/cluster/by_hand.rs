//! podweir on the node as the page of `cni-conf` says, with the page's own commands.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::Cluster;
use crate::cri::{AskStatus, Cri, StatusResponse};

const PAGE: &str = include_str!("../../../cni-conf/by-hand.md");
/// Whom the plugin is to the API server.
pub const ACCOUNT: &str = "system:serviceaccount:kube-system:podweir-cni";
pub const KUBECONFIG: &str = "/var/lib/podweir/kubeconfig";

/// Stands in front of the plugin and notes each call: the verb, how it ended, for whom.
const RECORDER: &str = r#"#!/bin/sh
[ -n "${CNI_COMMAND-}" ] || exec /opt/cni/bin/podweir.real "$@"
/opt/cni/bin/podweir.real "$@"
status=$?
echo "$CNI_COMMAND $status $CNI_ARGS" >>/var/lib/calls
exit $status
"#;

/// The shell commands of a numbered step of the page.
fn commands(step: u32) -> Vec<&'static str> {
    let (_, from) = PAGE.split_once(&format!("\n**{step}. ")).unwrap_or_else(|| panic!("the page has no step {step}"));
    let until = from.find("\n**").or_else(|| from.find("\n## ")).unwrap_or(from.len());
    let blocks = from[..until].split("```sh\n").skip(1);
    blocks.map(|block| block.split_once("```").unwrap().0).collect()
}

impl Cluster {
    /// Does the steps of the page as root whose home folder has the project's files, and
    /// gives what each printed.
    pub fn do_step(&self, step: u32) -> String {
        let blocks = commands(step);
        assert!(!blocks.is_empty(), "step {step} has no commands");
        let script = format!("cd\n{}", blocks.concat());
        self.output("sh", &["-euc", &script], "").unwrap_or_else(|e| panic!("step {step}: {e}"))
    }

    /// Sets podweir up by hand, unless it is.
    pub fn set_up_by_hand(&self) {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        if self.chain().to_string().contains("podweir") {
            return;
        }
        let home = self.machine().folder().join("home");
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("cni-conf");
        for file in std::fs::read_dir(files).unwrap().flatten().filter(|file| file.path().is_file()) {
            std::fs::copy(file.path(), home.join(file.file_name())).unwrap();
        }
        std::fs::copy(self.program(), home.join("podweir")).unwrap();
        assert!(self.do_step(1).contains("1.1.0"), "the versions of CNI");
        let bin = self.machine().folder().join("bin");
        std::fs::rename(bin.join("podweir"), bin.join("podweir.real")).unwrap();
        std::fs::write(bin.join("podweir"), RECORDER).unwrap();
        std::fs::set_permissions(bin.join("podweir"), PermissionsExt::from_mode(0o755)).unwrap();
        self.do_step(2);
        let token = ["-n", "kube-system", "get", "secret", "podweir-cni-token", "-o", "jsonpath={.data.token}"];
        let filled = || self.try_kubectl(&token).ok().filter(|token| !token.is_empty());
        self.wait("the account's token", filled).unwrap_or_else(|e| panic!("{e}"));
        assert!(self.do_step(3).ends_with("yes\n"));
        let trial = self.do_step(4);
        assert!(trial.contains("ready\n") && trial.contains("there is no such pod"), "{trial}");
        self.do_step(5);
        self.wait_for_chain(|chain| chain.contains("podweir"));
    }

    /// Takes podweir away as the page says, but for restarting pods.
    pub fn take_down_by_hand(&self) {
        let (_, section) = PAGE.split_once("\nTo remove").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let spans = section.split('`').skip(1).step_by(2);
        let commands: Vec<&str> =
            spans.filter(|span| ["jq ", "rm ", "kubectl "].iter().any(|program| span.starts_with(program))).collect();
        let [entry, files, account] = commands[..] else { panic!("{commands:?}") };
        let run = |folder: &str, command: &str| {
            let script = format!("cd {folder}\n{command}");
            self.output("sh", &["-euc", &script], "").unwrap_or_else(|e| panic!("{e}"))
        };
        run("/etc/cni/net.d", entry);
        self.wait_for_chain(|chain| !chain.contains("podweir"));
        run("~", files);
        run("~", account);
        std::fs::remove_file(self.machine().folder().join("bin/podweir.real")).unwrap();
    }

    /// Waits until the runtime has read a chain like this.
    fn wait_for_chain(&self, is_it: impl Fn(&str) -> bool) {
        let cri = Cri::connect(&self.machine().path("/run/containerd/containerd.sock")).unwrap();
        let waited = self.wait("the chain of plugins", || {
            let status: StatusResponse = cri.call("Status", AskStatus { verbose: true }).ok()?;
            is_it(status.info.get("cniconfig")?).then_some(())
        });
        waited.unwrap_or_else(|e| panic!("{e}"));
    }

    /// The chain that is in place.
    pub fn chain(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.machine().folder().join("net.d/10-pods.conflist")).unwrap()).unwrap()
    }

    /// The calls of the plugin so far that have this verb.
    pub fn calls(&self, verb: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.machine().path("/var/lib/calls")).unwrap_or_default();
        text.lines().filter(|line| line.split(' ').next() == Some(verb)).map(str::to_owned).collect()
    }

    /// Waits for so many more calls, and gives them.
    pub fn wait_for_calls(&self, verb: &str, count: usize) -> Vec<String> {
        let before = self.calls(verb).len();
        let waited = self.wait(&format!("{count} calls of {verb}"), || {
            let calls = self.calls(verb);
            (calls.len() >= before + count).then(|| calls[before..].to_vec())
        });
        waited.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Gives the chain another version of CNI until this is dropped.
    pub fn with_version<'a>(&'a self, version: &str) -> impl Drop + use<'a> {
        struct Restore<'a>(&'a Cluster, Value);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.write_chain(&self.1);
            }
        }
        let before = self.chain();
        let mut chain = before.clone();
        chain["cniVersion"] = version.into();
        self.write_chain(&chain);
        let words = format!("\"CNIVersion\":\"{version}\"");
        self.wait_for_chain(|chain| chain.contains(&words));
        Restore(self, before)
    }

    /// Takes the plugin's kubeconfig away until this is dropped.
    pub fn without_kubeconfig(&self) -> impl Drop + use<> {
        struct Restore(std::path::PathBuf);
        impl Drop for Restore {
            fn drop(&mut self) {
                std::fs::rename(self.0.with_extension("away"), &self.0).unwrap();
            }
        }
        let path = self.machine().path(KUBECONFIG);
        std::fs::rename(&path, path.with_extension("away")).unwrap();
        Restore(path)
    }
}
