//! The Envoy of a pod: started with a sidecar's rights, asked what it counted, ended with
//! the test.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::config::{self, Family};
use crate::fixture::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);

/// The first process of Envoy's process namespace ends when its input does, which is a pipe
/// from the test; the kernel then ends Envoy.
const FIRST_PROCESS: &str = r#""$@" </dev/null & read -r _"#;

pub struct Envoy {
    process: Child,
    admin: PathBuf,
}

/// Where the program is that `scripts/envoy` fetched.
fn program() -> PathBuf {
    let path = std::env::var_os("PODWEIR_ENVOY").map(PathBuf::from);
    path.filter(|path| path.is_file()).expect("PODWEIR_ENVOY names no file: run ./scripts/test-envoy")
}

impl Envoy {
    /// With REDIRECT it is user 1337 without any right; with TPROXY user 0 of group 1337,
    /// which may do what a transparent socket and a mark need.
    pub fn start(pod: &Namespace, families: &[Family], tproxy: bool, threads: u32) -> Self {
        let folder = pod.directory().join("envoy");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(1337), Some(1337)).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o770)).unwrap();
        let [admin, file, log] = ["admin.sock", "envoy.json", "envoy.log"].map(|name| folder.join(name));
        let configuration = config::envoy(families, tproxy, admin.to_str().unwrap());
        std::fs::write(&file, configuration.to_string()).unwrap();
        let rights: &[&str] = match tproxy {
            false => &["--reuid=1337", "--bounding-set=-all", "--inh-caps=-all"],
            true => &["--reuid=0", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"],
        };
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "sh", "-c", FIRST_PROCESS, "sh", "setpriv"]);
        command.args(rights).args(["--regid=1337", "--clear-groups", "--no-new-privs"]);
        command.arg(program()).arg("--config-path").arg(&file);
        command.args(["--disable-hot-restart", "--log-level", "warning", "--concurrency", &threads.to_string()]);
        let log_file = File::create(&log).unwrap();
        command.stdin(Stdio::piped()).stdout(log_file.try_clone().unwrap()).stderr(log_file);
        let process = pod.run(|| command.spawn().expect("unshare"));
        let mut envoy = Self { process, admin };
        envoy.wait(&log);
        envoy
    }

    fn wait(&mut self, log: &Path) {
        let begin = Instant::now();
        while self.ask("/ready").ok().is_none_or(|answer| !answer.contains("LIVE")) {
            let ended = self.process.try_wait().unwrap();
            if ended.is_some() || begin.elapsed() > PATIENCE {
                panic!(
                    "Envoy is not ready ({ended:?}, {:?}): {}",
                    self.ask("/ready"),
                    std::fs::read_to_string(log).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, mut chunks) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let mut body = String::new();
        while let Some((length, rest)) = chunks.split_once("\r\n") {
            let length = usize::from_str_radix(length, 16).map_err(std::io::Error::other)?;
            body += rest.get(..length).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            chunks = rest.get(length + 2..).unwrap_or_default();
        }
        Ok(body)
    }

    /// How many requests and connections each cluster has sent on since the start; those
    /// that sent none are left out.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let text = self.ask("/stats?format=json&filter=^cluster\\..*\\.upstream_rq_total$").unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let stats = answer["stats"].as_array().unwrap().iter();
        let named = stats.filter_map(|stat| {
            let name = stat["name"].as_str()?.strip_prefix("cluster.")?.strip_suffix(".upstream_rq_total")?;
            Some((name.to_owned(), stat["value"].as_u64()?))
        });
        named.filter(|(_, count)| *count > 0).collect()
    }
}

/// What came on top.
pub fn since(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = after.iter().map(|(name, count)| (name.clone(), count - before.get(name).unwrap_or(&0)));
    grown.filter(|(_, count)| *count > 0).collect()
}

impl Drop for Envoy {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
