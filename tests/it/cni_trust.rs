//! What the plugin reads and writes as root on the node: nothing that others could have
//! put there, nothing that never ends, and never past the deadline.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{Answer, Api, TOKEN};
use crate::plugin::{Cluster, Outcome, sidecar};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn cluster() -> Cluster {
    Cluster::new(&sidecar(json!({})))
}

/// An ADD that has a second, which leaves none for a second try.
fn add(cluster: &Cluster) -> Outcome {
    let before = cluster.api.requests();
    let outcome = cluster.add().key("timeout", json!(1)).call();
    assert!(cluster.api.requests() <= before + 1, "{} requests", cluster.api.requests() - before);
    outcome
}

/// That an ADD is refused before anybody is asked, and says this and that.
fn refused(cluster: &Cluster, texts: &[&str]) {
    let before = cluster.namespace.everything();
    let (code, message) = add(cluster).error();
    assert!(code == 101 && texts.iter().all(|text| message.contains(text)), "{texts:?}: {message}");
    assert_eq!((cluster.api.requests(), cluster.namespace.everything()), (0, before), "{message}");
}

/// Changes the kubeconfig's only user and cluster.
fn change(cluster: &Cluster, work: impl FnOnce(&mut Value, &mut Value)) {
    let path = cluster.run_dir.path().join("kubeconfig");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let (mut user, mut of) = (config["users"][0]["user"].take(), config["clusters"][0]["cluster"].take());
    work(&mut user, &mut of);
    (config["users"][0]["user"], config["clusters"][0]["cluster"]) = (user, of);
    fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn a_kubeconfig_that_others_could_have_written_is_not_believed() {
    let cluster = cluster();
    let run_dir = cluster.run_dir.path().to_owned();
    let file = run_dir.join("kubeconfig");
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    for mode in [0o620, 0o602, 0o666, 0o664] {
        chmod(&file, mode);
        refused(&cluster, &[&shown(&file), "is not trusted", &format!("mode {mode:04o}"), "chmod go-w"]);
    }
    chmod(&file, 0o600);
    for path in [&file, &run_dir] {
        chown(path, Some(1000), None).unwrap();
        refused(&cluster, &[&shown(path), "belongs to user 1000", "chown root"]);
        chown(path, Some(0), None).unwrap();
    }
    for mode in [0o777, 0o1777, 0o775, 0o702] {
        chmod(&run_dir, mode);
        refused(&cluster, &[&shown(&run_dir), "is not trusted", &format!("mode {mode:04o}")]);
    }
    chmod(&run_dir, 0o755);
    // A link of ours to a file of ours is as good as the file; what is seen on the way counts.
    let outside = cluster.namespace.directory().join("open");
    fs::create_dir(&outside).unwrap();
    fs::rename(&file, outside.join("kubeconfig")).unwrap();
    symlink(outside.join("kubeconfig"), &file).unwrap();
    chmod(&outside, 0o777);
    refused(&cluster, &[&shown(&outside), "mode 0777"]);
    chmod(&outside, 0o700);
    cluster.add().call().ok();
}

#[test]
fn a_run_directory_in_a_folder_of_others_is_named_and_not_used() {
    let cluster = cluster();
    let parent = cluster.namespace.directory().join("shared");
    fs::create_dir_all(parent.join("run")).unwrap();
    fs::copy(cluster.run_dir.path().join("kubeconfig"), parent.join("run/kubeconfig")).unwrap();
    let call = || cluster.add().key("cni_agent_run_dir", json!(parent.join("run"))).call();
    // Whoever may write here can put another folder in its place.
    chmod(&parent, 0o777);
    let outcome = call();
    let (code, message) = outcome.error();
    assert!(code == 101 && message.contains(&format!("{} is not trusted", parent.display())), "{message}");
    assert!(outcome.stderr.contains("cannot write the log file: "), "{}", outcome.stderr);
    assert_eq!(fs::read_dir(parent.join("run")).unwrap().count(), 1, "something was written");
    // As in /tmp: others may write there, but not take away what is root's.
    chmod(&parent, 0o1777);
    call().ok();
}

#[test]
fn nothing_is_written_through_links_and_nobody_waits_for_a_pipe() {
    let cluster = cluster();
    let run_dir = cluster.run_dir.path().to_owned();
    let victim = cluster.namespace.directory().join("victim");
    fs::write(&victim, "precious").unwrap();
    let excluded = cluster.add().key("exclude_namespaces", json!(["shop"]));
    let log = run_dir.join("plugin.log");
    let state = run_dir.join("attachments/abc:eth0.json");
    fs::create_dir(run_dir.join("attachments")).unwrap();
    // The log: a link, another name of a file, a pipe, somebody else's file.
    symlink(&victim, &log).unwrap();
    let outcome = excluded.call().ok();
    assert!(outcome.stderr.contains("plugin.log is no regular file"), "{}", outcome.stderr);
    fs::remove_file(&log).unwrap();
    fs::hard_link(&victim, &log).unwrap();
    assert!(excluded.call().ok().stderr.contains("a hard link"));
    fs::remove_file(&log).unwrap();
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert!(excluded.call().ok().stderr.contains("is no regular file"));
    fs::remove_file(&log).unwrap();
    // What is kept of an attachment replaces a link, and is not read through one of others.
    fs::remove_file(&state).unwrap();
    symlink(&victim, &state).unwrap();
    excluded.call().ok();
    assert!(fs::symlink_metadata(&state).unwrap().is_file());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    fs::remove_file(&state).unwrap();
    nix::unistd::mkfifo(&state, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let check = excluded.clone().verb("CHECK").key("timeout", json!(1.5));
    assert!(check.call().ok().stderr.contains("is no regular file"));
    // Others may write there: nothing is believed, nothing is left there, and no pod hangs.
    fs::remove_file(&state).unwrap();
    chmod(&run_dir, 0o777);
    fs::remove_file(&log).ok();
    symlink(&victim, &log).unwrap();
    let outcome = excluded.call().ok();
    assert!(outcome.stderr.contains(&format!("{} is not trusted", run_dir.display())), "{}", outcome.stderr);
    assert!(!state.exists() && fs::read_to_string(&victim).unwrap() == "precious");
    excluded.verb("DEL").call().ok();
}

#[test]
fn a_state_that_others_could_have_written_does_not_decide() {
    let cluster = cluster();
    cluster.add().call().ok();
    let state = cluster.run_dir.path().join("attachments/abc:eth0.json");
    let check = cluster.add().verb("CHECK");
    check.call().ok();
    assert_eq!(cluster.api.requests(), 1, "what was decided is remembered");
    // "Left alone": CHECK would find nothing to compare.
    fs::write(&state, r#"{"network":"chain","leftAlone":"because"}"#).unwrap();
    cluster.namespace.print("nft", &["flush", "ruleset"]);
    chmod(&state, 0o666);
    let (code, message) = check.call().error();
    assert!(code == 103 && cluster.api.requests() == 2, "{message}");
    assert!(cluster.run_dir.log().contains("deciding anew"));
}

/// Whatever a file is that a kubeconfig names, an ADD ends in its time.
#[test]
fn files_that_never_end_or_never_begin_are_not_waited_for() {
    type Make<'a> = &'a dyn Fn(&Path);
    let fill: [(&str, Make); 4] = [
        ("is no regular file", &|path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }),
        ("is no regular file", &|path| symlink("/dev/zero", path).unwrap()),
        ("is no regular file", &|path| fs::create_dir(path).unwrap()),
        ("is longer than", &|path| File::create(path).unwrap().set_len(1 << 30).unwrap()),
    ];
    for (text, make) in fill {
        for key in ["tokenFile", "certificate-authority", "client-certificate", "client-key", "kubeconfig"] {
            let cluster = cluster();
            let path = cluster.run_dir.path().join("file");
            make(&path);
            match key {
                "kubeconfig" => fs::rename(&path, cluster.run_dir.path().join(key)).or_else(|_| {
                    fs::remove_file(cluster.run_dir.path().join(key))?;
                    fs::rename(&path, cluster.run_dir.path().join(key))
                }),
                "certificate-authority" => {
                    change(&cluster, |_, of| *of = json!({ "server": of["server"], key: "file" }));
                    Ok(())
                }
                _ => {
                    change(&cluster, |user, _| user[key] = json!("file"));
                    Ok(())
                }
            }
            .unwrap();
            refused(&cluster, &[key, text]);
        }
    }
}

#[test]
fn a_token_comes_from_where_tokens_are() {
    let cluster = cluster();
    let elsewhere = cluster.namespace.directory().to_owned();
    let token = |path: &Path| change(&cluster, |user, _| *user = json!({ "tokenFile": path }));
    let put = |path: &Path| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{TOKEN}\n")).unwrap();
        chmod(path, 0o600);
    };
    put(&elsewhere.join("token"));
    token(&elsewhere.join("token"));
    refused(&cluster, &["users[0].user.tokenFile", "neither next to the kubeconfig nor where service account tokens"]);
    // Nor by a link or by climbing.
    symlink(elsewhere.join("token"), cluster.run_dir.path().join("link")).unwrap();
    token(Path::new("link"));
    refused(&cluster, &["neither next to the kubeconfig"]);
    token(&Path::new("..").join(elsewhere.file_name().unwrap()).join("token"));
    refused(&cluster, &["tokenFile"]);
    put(&cluster.run_dir.path().join("tokens/token"));
    token(Path::new("tokens/token"));
    cluster.add().call().ok();
    // As the kubelet lays it out for a container (its AtomicWriter), in a folder that all
    // may write to and nobody may take from.
    let volume = elsewhere.join("kubelet/pods/6d1f/volumes/kubernetes.io~projected/kube-api-access");
    put(&volume.join("..2026_01_01/token"));
    symlink("..2026_01_01", volume.join("..data")).unwrap();
    symlink("..data/token", volume.join("token")).unwrap();
    chmod(&volume, 0o1777);
    token(&volume.join("token"));
    cluster.add().call().ok();
    chmod(&volume.join("..2026_01_01/token"), 0o666);
    let requests = cluster.api.requests();
    let (_, message) = add(&cluster).error();
    assert!(message.contains("tokenFile") && message.contains("mode 0666"), "{message}");
    assert_eq!(cluster.api.requests(), requests);
}

#[test]
fn a_server_without_tls_is_asked_for_by_name() {
    let cluster = cluster();
    let port = cluster.api.address.port();
    for elsewhere in ["10.96.0.1", "[fd00::1]", "localhost", "127.0.0.1.example.com"] {
        change(&cluster, |_, of| of["server"] = json!(format!("http://{elsewhere}:{port}")));
        refused(&cluster, &["clusters[0].cluster.server begins with http://", "\"allow_http\": true"]);
    }
    let asked = |server: &str, answer: (u64, String)| {
        // It is asked then; the stub speaks TLS only.
        assert!(answer.0 == 11 && answer.1.contains(&format!("{server} gives no answer")), "{}", answer.1);
    };
    let server = format!("http://localhost:{port}");
    change(&cluster, |_, of| of["server"] = json!(server));
    asked(&server, cluster.add().key("allow_http", json!(true)).key("timeout", json!(1)).call().error());
    // A token that goes to a loopback address does not leave the node.
    let server = format!("http://{}", cluster.api.address);
    change(&cluster, |_, of| of["server"] = json!(server));
    asked(&server, cluster.add().key("timeout", json!(1)).call().error());
    let (code, message) = cluster.add().key("allow_http", json!("yes")).call().error();
    assert!(code == 7 && message.contains("allow_http"), "{message}");
}

/// What a script writes whose secret was deleted, and what was not filled in.
#[test]
fn what_is_empty_is_named() {
    let user = |key: &'static str, value: Value| {
        let cluster = cluster();
        change(&cluster, |user, _| user[key] = value);
        cluster
    };
    let of = |key: &'static str, value: Value| {
        let cluster = cluster();
        change(&cluster, |_, of| of[key] = value);
        cluster
    };
    for (cluster, text) in [
        (user("token", json!("")), "users[0].user.token is empty"),
        (user("token", json!(" \n")), "users[0].user.token is empty"),
        (user("token", json!("<no value>")), "users[0].user.token is no token"),
        (user("token", json!(12345)), "users[0].user.token is a number; expected text"),
        (user("token", Value::Null), "users[0].user has no token, tokenFile or client-certificate"),
        (user("client-key-data", json!("")), "users[0].user.client-key-data is empty"),
        (of("certificate-authority-data", json!("")), "clusters[0].cluster.certificate-authority-data is empty"),
        (of("certificate-authority-data", json!("AUTHORITY")), "certificate-authority-data is no base64"),
        (of("certificate-authority-data", json!("eA==")), "certificate-authority holds no certificate"),
        (of("certificate-authority", json!("")), "clusters[0].cluster.certificate-authority is empty"),
        (of("server", json!("")), "clusters[0].cluster.server is empty"),
        (of("server", json!("SERVER")), "clusters[0].cluster.server is no address such as https://"),
        (of("server", Value::Null), "clusters[0].cluster.server is missing"),
        (of("tls-server-name", json!("")), "clusters[0].cluster.tls-server-name is empty"),
    ] {
        refused(&cluster, &["is no usable kubeconfig", text, "steps 2 and 3"]);
    }
    let cluster = cluster();
    fs::write(cluster.run_dir.path().join("kubeconfig"), "").unwrap();
    refused(&cluster, &["is no usable kubeconfig: the whole is null; expected an object"]);
}

/// An answer that comes byte by byte, for ever.
#[test]
fn an_answer_that_does_not_end_is_not_waited_for() {
    let cluster = Cluster::with(Api::start(|_| Answer::Slow(Duration::from_secs(5), json!({}))));
    let (code, message) = add(&cluster).error();
    assert!(code == 11 && message.contains("nothing came within"), "{message}");
}
