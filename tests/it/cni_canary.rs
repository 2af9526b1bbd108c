//! No damage to a kubeconfig, and no mistake in writing one, brings what is secret in it
//! to where others read: the error object (which becomes the pod's event), standard error,
//! the log.

use std::fs;

use serde_json::{Value, json};

use crate::api::{Answer, Api, TOKEN, base64, client_certificate};
use crate::fixture::Namespace;
use crate::plugin::{Plugin, RunDir, path};

/// Nothing listens here: what is a usable kubeconfig after all leads nowhere.
const SERVER: &str = "https://127.0.0.1:1";
const CANARY: &str = "Zq7CanaryXw9.TokenBody-Pl4Kv8.SignatureRm3";

/// A good kubeconfig, and all that is secret in it.
fn good() -> (Value, Vec<String>) {
    let (certificate, key) = client_certificate();
    let authority = base64(Api::authority());
    let secrets = vec![CANARY.to_owned(), certificate.clone(), key.clone(), authority.clone()];
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "local", "user": "plugin" } }],
        "clusters": [{ "name": "local", "cluster": { "server": SERVER, "certificate-authority-data": authority } }],
        "users": [{ "name": "plugin", "user": {
            "token": CANARY, "client-certificate-data": certificate, "client-key-data": key } }],
    });
    (config, secrets)
}

/// As a person would write it.
fn yaml(config: &Value) -> String {
    let text = |pointer: &str| config.pointer(pointer).unwrap().as_str().unwrap();
    let (cluster, user) = ("/clusters/0/cluster", "/users/0/user");
    let mut out = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: local\n  cluster:\n    server: {SERVER}\n"
    );
    out += &format!("    certificate-authority-data: {}\n", text(&format!("{cluster}/certificate-authority-data")));
    out += "users:\n- name: plugin\n  user:\n";
    for key in ["token", "client-certificate-data", "client-key-data"] {
        out += &format!("    {key}: {}\n", text(&format!("{user}/{key}")));
    }
    out + "contexts:\n- name: c\n  context:\n    cluster: local\n    user: plugin\n"
}

/// What goes wrong with a text. Lines matter in YAML: JSON is damaged in a few of them.
fn damaged_texts(text: &str) -> Vec<Vec<u8>> {
    let lines: Vec<&str> = text.lines().collect();
    let every = if text.starts_with('{') { 7 } else { 1 };
    let mut out = Vec::new();
    let mut with = |number: usize, line: String| {
        let mut all: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        all[number] = line;
        out.push(all.join("\n").into_bytes());
    };
    for (number, line) in lines.iter().enumerate().step_by(every) {
        with(number, format!("\t{line}"));
        with(number, line.trim_start().to_owned());
        with(number, format!("   {line}"));
        with(number, line.replacen(": ", ": \"", 1));
        with(number, line.replacen(": ", ": '", 1));
        with(number, line.replacen(": ", ":\t", 1));
        with(number, line.replacen(": ", ":", 1));
        with(number, line.replacen(": ", ": [", 1));
        with(number, line.replacen(": ", ": {", 1));
        with(number, line.replacen(": ", ": *", 1));
        with(number, line.replacen(": ", ": !!int ", 1));
        with(number, line.replacen(": ", ": |\n", 1));
        with(number, format!("{line}\n{line}"));
    }
    // Written half.
    out.extend((1..40).map(|part| text.as_bytes()[..text.len() * part / 40].to_vec()));
    for byte in [0, 0xff, 0x1b, b'\n'] {
        let at = text.find(CANARY).unwrap() + 9;
        out.push([&text.as_bytes()[..at], &[byte], &text.as_bytes()[at..]].concat());
    }
    out
}

/// What goes wrong with its meaning.
fn damaged_values(config: &Value, secrets: &[String]) -> Vec<Vec<u8>> {
    let (cluster, user) = ("/clusters/0/cluster", "/users/0/user");
    let mut out = Vec::new();
    let mut put = |object: &str, key: &str, value: Value| {
        let mut other = config.clone();
        other.pointer_mut(object).unwrap()[key] = value;
        out.push(other.to_string().into_bytes());
    };
    let places = [
        ("", "current-context"),
        ("/contexts/0", "name"),
        ("/contexts/0/context", "cluster"),
        ("/contexts/0/context", "user"),
        (cluster, "server"),
        (cluster, "certificate-authority"),
        (cluster, "certificate-authority-data"),
        (cluster, "tls-server-name"),
        (cluster, "proxy-url"),
        (cluster, "insecure-skip-tls-verify"),
        (user, "token"),
        (user, "tokenFile"),
        (user, "client-certificate"),
        (user, "client-certificate-data"),
        (user, "client-key"),
        (user, "client-key-data"),
        (user, "username"),
        (user, "exec"),
    ];
    for (object, key) in places {
        // One secret in the place of another thing, and in odd shapes.
        for secret in secrets {
            put(object, key, json!(secret));
            put(object, key, json!([secret]));
            put(object, key, json!({ secret: secret }));
        }
        put(object, key, json!(format!("https://{CANARY}@127.0.0.1:1")));
        put(object, key, json!(format!("/{CANARY}")));
        put(object, key, json!(format!("{CANARY} {CANARY}\u{0}")));
        put(object, key, json!(base64(&format!("-----BEGIN {CANARY}\n{CANARY}\n-----END"))));
        put(object, key, json!(1.5));
        put(object, key, json!(""));
    }
    for list in ["contexts", "clusters", "users"] {
        put("", list, json!(CANARY));
        put("", list, json!({ CANARY: CANARY }));
        put("", list, json!([CANARY]));
        put("", list, json!([{ "name": CANARY }]));
    }
    out
}

/// Everything a call left for others to read.
fn output(plugin: &Plugin, run_dir: &RunDir) -> String {
    let outcome = plugin.call();
    let log = run_dir.log();
    let _ = fs::remove_file(run_dir.path().join("plugin.log"));
    format!("{}{}{log}", outcome.stdout, outcome.stderr)
}

/// The first piece of a secret that is in a text.
fn leak(text: &str, secrets: &[String]) -> Option<String> {
    const PIECE: usize = 9;
    secrets.iter().find_map(|secret| {
        let mut pieces = secret.as_bytes().windows(PIECE).map(|piece| str::from_utf8(piece).unwrap());
        pieces.find(|piece| text.contains(piece)).map(str::to_owned)
    })
}

#[test]
fn damaged_kubeconfigs_keep_their_secrets() {
    let (config, secrets) = good();
    let (namespace, run_dir) = (Namespace::new(), RunDir::new());
    let file = run_dir.path().join("kubeconfig");
    let add = Plugin::add(&path(&namespace), run_dir.path()).key("timeout", json!("400ms"));
    let write = |text: &[u8]| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        output(&add, &run_dir)
    };
    let texts = [yaml(&config), format!("{config:#}"), config.to_string()];
    for text in &texts {
        // As it is it would do, which the damage is to.
        let said = write(text.as_bytes());
        assert!(said.contains("127.0.0.1:1 gives no answer"), "{text}\n{said}");
    }
    let mut damaged: Vec<Vec<u8>> = texts.iter().flat_map(|text| damaged_texts(text)).collect();
    damaged.extend(damaged_values(&config, &secrets));
    let mut refused = 0;
    for text in &damaged {
        let said = write(text);
        if let Some(piece) = leak(&said, &secrets) {
            panic!("{piece} of\n{}\nis in\n{said}", String::from_utf8_lossy(text));
        }
        refused += usize::from(said.contains("is no usable kubeconfig"));
    }
    assert!(refused > 300, "only {refused} of {} are damaged enough to be refused", damaged.len());
}

/// The files that a kubeconfig names, and a server that gives back what it was sent.
#[test]
fn what_a_kubeconfig_leads_to_is_not_repeated() {
    let (config, secrets) = good();
    let (namespace, run_dir) = (Namespace::new(), RunDir::new());
    let add = Plugin::add(&path(&namespace), run_dir.path()).key("timeout", json!("400ms"));
    let put = |config: &Value| fs::write(run_dir.path().join("kubeconfig"), config.to_string()).unwrap();
    let check = |what: &str| {
        let said = output(&add, &run_dir);
        assert_eq!(leak(&said, &secrets), None, "{what}: {said}");
        assert!(said.contains("is no usable kubeconfig") && said.contains(what), "{what}: {said}");
    };
    let pem = |begin: &str| format!("{begin}{CANARY}\n{}\n-----END", secrets[2]);
    for key in ["certificate-authority", "client-certificate", "client-key", "tokenFile"] {
        let mut other = config.clone();
        let object = if key == "certificate-authority" { "/clusters/0/cluster" } else { "/users/0/user" };
        let object = other.pointer_mut(object).unwrap().as_object_mut().unwrap();
        object.remove(&format!("{key}-data"));
        object.insert(key.into(), json!("file"));
        put(&other);
        let texts =
            [pem(""), pem("-----BEGIN "), pem("-----BEGIN CERTIFICATE-----\n"), pem("-----BEGIN PRIVATE KEY-----\n")];
        for text in texts.iter().chain([&format!("{CANARY} {CANARY}"), &format!("{CANARY}\u{0}"), &String::new()]) {
            fs::write(run_dir.path().join("file"), text).unwrap();
            check(key);
        }
        fs::write(run_dir.path().join("file"), [CANARY.as_bytes(), &[0xff]].concat()).unwrap();
        check(key);
    }
    // A server that answers with what it got.
    for answer in [
        Answer::Json(json!({ "kind": TOKEN, "metadata": { "name": TOKEN } })),
        Answer::Json(json!({ "kind": "Pod", "metadata": TOKEN })),
        Answer::Json(json!({ "kind": "Pod", "metadata": { "name": TOKEN, "namespace": "shop" } })),
        Answer::Json(json!({ "kind": "Pod", "metadata": { "name": "web-0", "namespace": "shop", "uid": TOKEN } })),
        Answer::Refuse(403, TOKEN),
        Answer::Text(500, TOKEN),
    ] {
        let api = Api::start(move |_| answer.clone());
        api.write_kubeconfig(run_dir.path());
        let said = output(&add, &run_dir);
        assert!(api.requests() > 0 && leak(&said, &[TOKEN.to_owned()]).is_none(), "{said}");
    }
}
