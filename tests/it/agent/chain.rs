//! The chain and the binary while others, or the machine, work against them.

use std::path::Path;

use nix::mount::{MsFlags, mount};

use serde_json::{Value, json};

use super::{LIST, Node};

fn write(node: &Node, text: &str) {
    std::fs::write(node.path("net.d/10-pods.conflist"), text).unwrap();
}

fn wait_for_entry(node: &Node) {
    node.wait("the entry", || node.has_entry().then_some(()));
    node.wait_until_ready();
}

fn wait_until_it_says(node: &Node, words: &str) {
    node.wait(words, || node.ask("/readyz").filter(|(status, text)| *status == 503 && text.contains(words)));
}

fn leftovers(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("unfinished")).count()
}

#[test]
fn whatever_becomes_of_the_list_the_entry_comes_back() {
    let node = Node::running(&[]);
    let list = node.path("net.d/10-pods.conflist");
    let whole = std::fs::read_to_string(&list).unwrap();
    assert!(whole.contains("1450.0"), "everything else keeps its text: {whole}");
    for (damaged, words) in [(&whole[..whole.len() / 2], "no JSON object"), ("", "no JSON object")] {
        write(&node, damaged);
        wait_until_it_says(&node, words);
        assert_eq!(std::fs::read_to_string(&list).unwrap(), damaged, "it is left as it is");
        write(&node, LIST);
        wait_for_entry(&node);
    }
    std::fs::remove_file(&list).unwrap();
    wait_until_it_says(&node, "waiting for a network configuration");
    // Another program's way: a new file in the place of the old one.
    std::fs::write(node.path("net.d/new"), LIST).unwrap();
    std::fs::rename(node.path("net.d/new"), &list).unwrap();
    wait_for_entry(&node);
    // The folder goes, and another one comes in its place, in one step.
    std::fs::create_dir(node.path("other")).unwrap();
    std::fs::write(node.path("other/10-pods.conflist"), LIST).unwrap();
    std::fs::rename(node.path("net.d"), node.path("old")).unwrap();
    std::fs::rename(node.path("other"), node.path("net.d")).unwrap();
    wait_for_entry(&node);
    // In the new one changes are seen, too.
    write(&node, LIST);
    wait_for_entry(&node);
    assert_eq!(leftovers(&node.path("net.d")), 0);
}

#[test]
fn a_program_that_rewrites_the_list_a_hundred_times_is_answered_with_pauses_and_named() {
    let mut node = Node::running(&[]);
    for _ in 0..100 {
        write(&node, LIST);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    wait_for_entry(&node);
    let rewrites = node.metric("podweir_chain_rewrites_by_others_total");
    assert!((1.0..=10.0).contains(&rewrites), "{rewrites} times written again");
    for _ in 0..4 {
        write(&node, LIST);
        node.wait("the entry", || node.has_entry().then_some(()));
    }
    node.wait_for_log("keeps rewriting the chain");
    assert!(node.log().contains("cni.exclusive=false"));
    // It ends without taking anything away.
    assert_eq!(node.end(), Some(0));
    assert!(node.has_entry() && node.path("bin/podweir").is_file());
}

/// Mounts a small file system over a folder of the node, where the agent sees it.
fn small(node: &Node, name: &str, options: &str) {
    let (path, none) = (node.path(name), None::<&str>);
    node.namespace.run(|| mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap());
    let _ = none;
}

fn remount(node: &Node, name: &str, flags: MsFlags, options: &str) {
    let (path, none) = (node.path(name), None::<&str>);
    node.namespace.run(|| mount(none, &path, none, MsFlags::MS_REMOUNT | flags, Some(options)).unwrap());
}

#[test]
fn a_full_disk_is_named_leaves_nothing_behind_and_is_survived() {
    let mut node = Node::new();
    small(&node, "bin", "size=1m");
    node.start(&[]);
    wait_until_it_says(&node, "the plugin's binary cannot be placed");
    node.wait_for_log("No space left on device");
    assert!(!node.has_entry(), "a chain never names a plugin that is not there");
    let left = node.namespace.run(|| std::fs::read_dir(node.path("bin")).unwrap().count());
    assert_eq!(left, 0, "what was begun is removed");
    remount(&node, "bin", MsFlags::empty(), "size=1g");
    wait_for_entry(&node);
}

#[test]
fn folders_that_may_only_be_read_are_named_and_looked_at_again() {
    let mut node = Node::new();
    small(&node, "net.d", "size=1m");
    let list = node.path("net.d/10-pods.conflist");
    node.namespace.run(|| std::fs::write(&list, LIST).unwrap());
    remount(&node, "net.d", MsFlags::MS_RDONLY, "");
    node.start(&[]);
    wait_until_it_says(&node, "the chain cannot be kept");
    node.wait_for_log("Read-only file system");
    remount(&node, "net.d", MsFlags::empty(), "");
    let text = || node.namespace.run(|| std::fs::read_to_string(&list).unwrap());
    node.wait("the entry", || text().contains("podweir").then_some(()));
    node.wait_until_ready();
}

#[test]
fn the_entry_stays_with_and_behind_another_meshs_plugin_that_comes_and_goes() {
    let node = Node::running(&[]);
    let with = LIST.replace("]}", r#",{"type":"istio-cni","log_level":"info"}]}"#);
    // Its installer writes the list that it read before ours was there, and keeps the last place.
    write(&node, &with);
    node.wait("both", || {
        let types: Vec<String> = node.chain()["plugins"].as_array()?.iter().map(|p| p["type"].to_string()).collect();
        (types == ["\"bridge\"", "\"istio-cni\"", "\"podweir\""]).then_some(())
    });
    node.wait_until_ready();
    node.wait_for_log("istio-cni is in the chain as well");
    // In front of it our entry works as well: the two do not fight for the last place.
    let entry = node.chain()["plugins"][2].to_string();
    let before = LIST.replace("]}", &format!(r#",{entry},{{"type":"istio-cni"}}]}}"#));
    write(&node, &before);
    let rewrites = node.metric("podweir_chain_rewrites_by_others_total");
    write(&node, &before);
    node.wait_until_ready();
    assert_eq!(std::fs::read_to_string(node.path("net.d/10-pods.conflist")).unwrap(), before);
    assert_eq!(node.metric("podweir_chain_rewrites_by_others_total"), rewrites);
    // It goes, as its own uninstaller does it.
    write(&node, &LIST.replace("]}", &format!(",{entry}]}}")));
    node.wait_until_ready();
    assert!(node.has_entry());
}

/// Takes everything off the node by hand.
fn uninstall(node: &Node) {
    let folders = [("cni-bin-dir", "bin"), ("cni-conf-dir", "net.d")]
        .map(|(flag, name)| format!("--{flag}={}", node.path(name).display()));
    let (code, said) = node.person(&["uninstall", &folders[0], &folders[1]]);
    assert_eq!(code, Some(0), "{said}");
}

/// Installs by a file of its own, which others take away, and uninstalls: what others wrote stays as it is.
fn keeps_a_file_of_its_own(chain: &str, file: &str, check: impl Fn(&Value)) {
    let mut node = Node::new();
    let list = node.path("net.d/10-pods.conflist");
    node.start(&[&format!("--chain={chain}")]);
    node.wait_until_ready();
    let own = node.path("net.d").join(file);
    let held = || serde_json::from_str::<Value>(&std::fs::read_to_string(&own).ok()?).ok();
    check(&node.wait("its file", held));
    for damage in ["{", ""] {
        std::fs::write(&own, damage).unwrap();
        check(&node.wait("its file again", held));
    }
    std::fs::remove_file(&own).unwrap();
    check(&node.wait("its file again", held));
    assert_eq!(std::fs::read_to_string(&list).unwrap(), LIST);
    assert!(node.path("bin/podweir").is_file());
    // An agent that ends takes nothing away.
    assert_eq!(node.end(), Some(0));
    check(&held().unwrap());
    uninstall(&node);
    assert!(!own.exists() && !node.path("bin/podweir").exists());
    assert_eq!(std::fs::read_to_string(&list).unwrap(), LIST);
    assert_eq!(leftovers(&node.path("net.d")), 0);
}

#[test]
fn a_drop_in_is_kept_and_taken_away_and_the_list_stays_as_it_is() {
    keeps_a_file_of_its_own("drop-in", "pods/zz-podweir.conf", |entry| assert_eq!(entry["type"], "podweir", "{entry}"));
}

#[test]
fn a_list_of_its_own_is_kept_and_taken_away_and_the_other_stays_as_it_is() {
    keeps_a_file_of_its_own("standalone", "podweir.conflist", |list| {
        assert_eq!((&list["name"], &list["cniVersion"]), (&json!("podweir"), &json!("1.0.0")), "{list}");
        let plugins = list["plugins"].as_array().unwrap();
        assert!(plugins.len() == 1 && plugins[0]["type"] == "podweir", "{list}");
    });
}

/// As MicroK8s has it: its folder of configurations belongs to a group of its users.
#[test]
fn a_list_of_another_group_gets_the_entry_and_stays_that_groups() {
    use std::os::unix::fs::{MetadataExt, chown};
    let mut node = Node::new();
    let list = node.path("net.d/10-pods.conflist");
    chown(&list, None, Some(1234)).unwrap();
    let group = || std::fs::metadata(&list).unwrap().gid();
    node.start(&[]);
    wait_for_entry(&node);
    assert_eq!(group(), 1234);
    node.kill();
    uninstall(&node);
    assert!(!node.has_entry() && group() == 1234);
}

/// As an upgrade changes `cni.chain`: the agent of another mode follows, and is ready.
#[test]
fn a_change_of_mode_leaves_one_entry_and_holds_no_roll_out_up() {
    let mut node = Node::new();
    let inline = |node: &Node| node.has_entry();
    let own = |node: &Node, name: &str| node.path("net.d").join(name).exists();
    for mode in ["merge", "drop-in", "standalone", "drop-in", "merge", "standalone", "merge"] {
        node.start(&[&format!("--chain={mode}")]);
        node.wait_until_ready();
        let entries = [inline(&node), own(&node, "pods/zz-podweir.conf"), own(&node, "podweir.conflist")];
        assert_eq!(entries, ["merge", "drop-in", "standalone"].map(|one| one == mode), "{mode}: {}", node.log());
        assert_eq!(node.end(), Some(0));
    }
}

#[test]
fn installs_are_counted_and_looks_are_not() {
    let node = Node::running(&[]);
    let installs = |part: &str| node.metric(&format!("podweir_installs_total{{part=\"{part}\",result=\"done\"}}"));
    assert_eq!((installs("binary"), installs("chain")), (1.0, 1.0));
    for _ in 0..3 {
        write(&node, LIST);
        wait_for_entry(&node);
    }
    node.wait("the last look to be told", || {
        let rewrites = node.metric("podweir_chain_rewrites_by_others_total");
        (rewrites >= 1.0 && installs("chain") == 1.0 + rewrites).then_some(())
    });
    assert_eq!(installs("binary"), 1.0);
    std::fs::remove_file(node.path("bin/podweir")).unwrap();
    node.wait("the binary", || (installs("binary") == 2.0).then_some(()));
}
