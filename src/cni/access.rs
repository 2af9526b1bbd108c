//! Reads a kubeconfig: the API server's address, the certificates to trust, and the credentials. Only
//! what a node's kubeconfig needs is understood, and no message repeats what is in it: a token may be
//! anywhere in a file that is damaged.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http::uri::Scheme;
use secrecy::{SecretSlice, SecretString};
use serde_json::Value;

use crate::sys::trust::{self, TrustError};

/// The longest files that are read: a token, and a chain of certificates.
const LONGEST_TOKEN: u64 = 64 << 10;
const LONGEST_PEM: u64 = 1 << 20;

/// The folders in which the kubelet and other agents mount tokens of service accounts.
const TOKEN_FOLDERS: [&str; 4] = [
    "/run/secrets/kubernetes.io/serviceaccount",
    "/var/run/secrets/kubernetes.io/serviceaccount",
    "/run/secrets/tokens",
    "/var/run/secrets/tokens",
];
/// The kubelet's name for volumes that hold such tokens, wherever its own folder is.
const PROJECTED: &str = "kubernetes.io~projected";

/// Keys of a user that ask for ways to authenticate, or to reach the server, which the plugin does not
/// have.
const UNSUPPORTED_USER: [&str; 8] =
    ["exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra"];

/// What is wrong with a kubeconfig, without any of its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    text: String,
    /// Whether somebody has to change the file: it is not just being written.
    pub is_final: bool,
}

impl Problem {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_final: false }
    }

    fn lasting(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_final: true }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How to reach the API server: its address, whom to trust, and the credentials.
#[derive(Debug)]
pub struct Access {
    /// Scheme, host, port and whatever comes before `/api`.
    pub server: String,
    /// The name in the server's certificate, if it is not the host's.
    pub tls_name: Option<String>,
    /// The certificates to trust, in PEM form; without any, the system's.
    pub authority: Option<Vec<u8>>,
    pub token: Option<SecretString>,
    pub certificate: Option<Certificate>,
    /// The files that were read for it, and folders in which tokens are replaced.
    pub files: Vec<PathBuf>,
}

/// A certificate and its key, in PEM form.
#[derive(Debug)]
pub struct Certificate {
    pub chain: Vec<u8>,
    pub key: SecretSlice<u8>,
}

impl Access {
    /// Reads a kubeconfig. `folder`: where the file is, without links; relative paths in it start from
    /// there.
    ///
    /// # Errors
    /// When a key is missing, empty, or not as it should be, with the key's name.
    pub fn read(config: &Value, folder: &Path, allow_http: bool) -> Result<Self, Problem> {
        let root = Key { name: String::new(), value: config };
        let context = root.named_by(&root, "current-context", "contexts", "context")?;
        let cluster = root.named_by(&context, "cluster", "clusters", "cluster")?;
        let user = root.named_by(&context, "user", "users", "user")?;
        if let Some(name) = UNSUPPORTED_USER.into_iter().find(|name| user.has(name)) {
            return Err(Problem::lasting(format!(
                "{}.{name} is not supported; the plugin takes a token, tokenFile or client-certificate",
                user.name
            )));
        }
        if cluster.has("proxy-url") {
            return Err(Problem::lasting(format!(
                "{}.proxy-url is not supported; the API server must be reachable from the node itself",
                cluster.name
            )));
        }
        if cluster.flag("insecure-skip-tls-verify")? {
            return Err(Problem::lasting(format!(
                "{}.insecure-skip-tls-verify is not supported: the token would go to whoever answers; give the certificate-authority",
                cluster.name
            )));
        }
        let server = server(&cluster, allow_http)?;
        let mut files = Vec::new();
        let authority = cluster.pem("certificate-authority", folder, &mut files)?;
        let chain = user.pem("client-certificate", folder, &mut files)?;
        let certificate = match (chain, user.pem("client-key", folder, &mut files)?) {
            (None, None) => None,
            (Some(chain), Some(key)) => Some(Certificate { chain, key: key.into() }),
            _ => {
                let name = &user.name;
                return Err(Problem::new(format!(
                    "{name}.client-certificate and {name}.client-key are of use only together"
                )));
            }
        };
        let token = token(&user, folder, &mut files)?;
        if token.is_none() && certificate.is_none() {
            return Err(Problem::new(format!(
                "{} has no token, tokenFile or client-certificate, so nobody would be asking",
                user.name
            )));
        }
        let tls_name = cluster.text("tls-server-name")?.map(str::to_owned);
        Ok(Self { server, tls_name, authority, token, certificate, files })
    }
}

/// The server's address. Messages repeat it, so it must contain nothing else.
fn server(cluster: &Key, allow_http: bool) -> Result<String, Problem> {
    let name = format!("{}.server", cluster.name);
    let wrong = || Problem::new(format!("{name} is no address such as https://10.0.0.1:6443"));
    let text = cluster.needed("server")?;
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else { return Err(wrong()) };
    if authority.as_str().contains('@') || authority.host().is_empty() || uri.query().is_some() || text.contains('#') {
        return Err(wrong());
    }
    if *scheme == Scheme::HTTP && !allow_http && !stays_here(authority.host()) {
        return Err(Problem::lasting(format!(
            "{name} begins with http://: the token would go over the network for all to read, and anybody could answer; use https://, or set \"allow_http\": true in the netconf"
        )));
    }
    if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
        return Err(wrong());
    }
    Ok(format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/')))
}

/// Whether what is sent to a host never leaves this machine: a loopback address (RFC 1122
/// section 3.2.1.3, RFC 4291 section 2.5.3). A name, `localhost` too, is no proof of that:
/// a resolver decides where it leads.
fn stays_here(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn token(user: &Key, folder: &Path, files: &mut Vec<PathBuf>) -> Result<Option<SecretString>, Problem> {
    // Both are looked at: what is empty was meant to be something.
    let (literal, path) = (user.text("token")?, user.text("tokenFile")?);
    let (name, text) = match (path, literal) {
        (Some(path), _) => {
            let name = format!("{}.tokenFile", user.name);
            let content = read(&name, path, folder, LONGEST_TOKEN)?;
            if !content.path.starts_with(folder) && !is_among_tokens(&content.path) {
                return Err(Problem::lasting(format!(
                    "{name}: {} is neither next to the kubeconfig nor where service account tokens are ({})",
                    content.path.display(),
                    TOKEN_FOLDERS[1]
                )));
            }
            // The kubelet replaces the folder next to it that has the token, link and all.
            files.extend(folder.join(path).parent().filter(|_| is_among_tokens(&content.path)).map(Path::to_path_buf));
            let text = String::from_utf8(content.bytes);
            (name.clone(), text.map_err(|_| Problem::new(format!("{name}: the file holds no text")))?)
        }
        (None, Some(token)) => (format!("{}.token", user.name), token.to_owned()),
        (None, None) => return Ok(None),
    };
    // It becomes a line of a request.
    match text.trim() {
        "" => Err(Problem::new(format!("{name}: the file is empty"))),
        token if token.chars().all(|c| c.is_ascii_graphic()) => Ok(Some(token.into())),
        _ => Err(Problem::new(format!("{name} is no token: it has characters that none has"))),
    }
}

/// Whether a file is where tokens are mounted: in a container, or by the kubelet.
fn is_among_tokens(path: &Path) -> bool {
    let names: Vec<_> = path.components().map(|part| part.as_os_str()).collect();
    TOKEN_FOLDERS.iter().any(|folder| path.starts_with(folder))
        || names.windows(2).any(|pair| pair[0] == "volumes" && pair[1] == PROJECTED)
}

/// Reads a file that a key names. The path of a missing file is not repeated, since the key's value may
/// be anything.
fn read(name: &str, path: &str, folder: &Path, limit: u64) -> Result<trust::TrustedFile, Problem> {
    trust::read(&folder.join(path), limit).map_err(|e| match e {
        e if e.is_missing() => Problem::new(format!("{name} names a file that is not there")),
        TrustError::Io { source, .. } => Problem::new(format!("{name} names a file that cannot be read: {source}")),
        e if e.is_distrust() => Problem::lasting(format!("{name}: {e}")),
        e => Problem::new(format!("{name}: {e}")),
    })
}

/// A value with its path in the kubeconfig, by which messages name it.
struct Key<'a> {
    name: String,
    value: &'a Value,
}

impl<'a> Key<'a> {
    fn name_of(&self, key: &str) -> String {
        match self.name.as_str() {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        }
    }

    /// A key's value; `null` counts as absent.
    fn get(&self, key: &str) -> Option<Key<'a>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(Key { name: self.name_of(key), value })
    }

    /// Whether a key has a value that is not empty.
    fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|key| key.value != "")
    }

    fn expected<T>(&self, what: &str) -> Result<T, Problem> {
        let kind = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        let name = if self.name.is_empty() { "the whole" } else { &self.name };
        Err(Problem::new(format!("{name} is {kind}; expected {what}")))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        let Some(key) = self.get(key) else { return Ok(None) };
        match key.value.as_str().map(str::trim) {
            None => key.expected("text"),
            Some("") => Err(Problem::new(format!("{} is empty", key.name))),
            Some(text) => Ok(Some(text)),
        }
    }

    fn needed(&self, key: &str) -> Result<&'a str, Problem> {
        if !self.value.is_object() {
            return self.expected("an object");
        }
        self.text(key)?.ok_or_else(|| Problem::new(format!("{} is missing", self.name_of(key))))
    }

    fn flag(&self, key: &str) -> Result<bool, Problem> {
        let Some(key) = self.get(key) else { return Ok(false) };
        key.value.as_bool().map_or_else(|| key.expected("true or false"), Ok)
    }

    /// The content of the list member whose name is the value of `key` in `by`.
    fn named_by(&self, by: &Key, key: &str, list: &str, inner: &str) -> Result<Key<'a>, Problem> {
        let wanted = by.needed(key)?;
        let missing = |name: &str| Problem::new(format!("{name} is missing"));
        let all = self.get(list).ok_or_else(|| missing(list))?;
        let Some(items) = all.value.as_array() else { return all.expected("a list") };
        let is_it = |item: &Value| item.get("name").and_then(Value::as_str).map(str::trim) == Some(wanted);
        let Some(number) = items.iter().position(is_it) else {
            return Err(Problem::new(format!("{} names none of the {list}", by.name_of(key))));
        };
        let item = Key { name: format!("{list}[{number}]"), value: &items[number] };
        let found = item.get(inner).ok_or_else(|| missing(&item.name_of(inner)))?;
        if found.value.is_object() { Ok(found) } else { found.expected("an object") }
    }

    /// The PEM text of a key: base64 in the kubeconfig itself, or the file that it names.
    fn pem(&self, key: &str, folder: &Path, files: &mut Vec<PathBuf>) -> Result<Option<Vec<u8>>, Problem> {
        let data_key = format!("{key}-data");
        match (self.text(&data_key)?, self.text(key)?) {
            (Some(data), _) => {
                let letters: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
                let pem = STANDARD.decode(letters).map(Some);
                pem.map_err(|_| Problem::new(format!("{} is no base64", self.name_of(&data_key))))
            }
            (None, Some(path)) => {
                let content = read(&self.name_of(key), path, folder, LONGEST_PEM)?;
                files.push(content.path);
                Ok(Some(content.bytes))
            }
            (None, None) => Ok(None),
        }
    }
}
