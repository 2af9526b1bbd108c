//! The plugin's log: JSON lines on stderr and in a file of the run directory that many
//! processes write to at once. Standard output is not for it, and no failure to log is
//! a reason to fail a pod.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::log_levels;
use crate::config::value::Parsed;
use crate::sys::text::one_line;
use crate::sys::trust::{self, TrustError};

use super::rotate;

/// The file's name in the run directory; `plugin.log.1` is the one before.
pub(super) const FILE: &str = "plugin.log";
/// The size in bytes from which the log is put aside.
const LONGEST: u64 = 5 << 20;
/// How many warnings a call may write, and how many characters a text in a line may have: all pods share
/// the log, and a pod chooses the texts about it.
const MOST_WARNINGS: u32 = 10;
const LONGEST_TEXT: usize = 1000;
/// How long to wait for the lock of other writers.
const PATIENCE: Duration = Duration::from_millis(50);

/// The fields that every line of a process has.
#[derive(Debug, Clone, Default)]
pub(super) struct Caller {
    pub verb: &'static str,
    /// The pod's name; empty if there is no pod.
    pub pod: String,
    pub container_id: String,
}

/// Starts logging. `level`: the netconf's `plugin_log_level`. `run_dir`: where the file is.
pub(super) fn start(level: &str, caller: Caller, run_dir: Option<&Path>) {
    let (filter, invalid) = match parse_level(level) {
        Ok(filter) => (filter, None),
        Err(invalid) => (LevelFilter::INFO, Some(invalid)),
    };
    let file = run_dir.map(|dir| LogFile::new(dir.join(FILE), LONGEST));
    let lines = Lines { filter, caller, file, warnings: AtomicU32::new(0), complained: Mutex::new(false) };
    if tracing_subscriber::registry().with(lines).try_init().is_ok()
        && let Some(invalid) = invalid
    {
        tracing::warn!("{}; info is used", invalid.of_option("the netconf key plugin_log_level"));
    }
}

/// Parses a level such as `info`, or `default:info,cni:debug`: the last one that applies to all scopes
/// or to the plugin counts.
///
/// # Errors
/// The text has something that is no level.
fn parse_level(text: &str) -> Parsed<LevelFilter> {
    let levels = log_levels::by_scope(text)?;
    let ours = levels.iter().rev().find(|(scope, _)| matches!(*scope, "default" | "all" | "cni"));
    Ok(ours.map_or(LevelFilter::INFO, |(_, level)| *level))
}

/// Turns events into lines.
struct Lines {
    filter: LevelFilter,
    caller: Caller,
    file: Option<LogFile>,
    /// How many warnings there have been.
    warnings: AtomicU32,
    /// Whether a failure to write the file was reported already.
    complained: Mutex<bool>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // Libraries have their own ideas of what is worth a line, and see the token.
        *metadata.level() <= self.filter && metadata.target().starts_with("podweir")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if *event.metadata().level() == Level::WARN {
            match self.warnings.fetch_add(1, Ordering::Relaxed) {
                0..MOST_WARNINGS => {}
                MOST_WARNINGS => fields = Fields::saying("there are more warnings; they are left out"),
                _ => return,
            }
        }
        self.write(&self.line(event.metadata().level(), fields));
    }
}

impl Lines {
    fn write(&self, line: &str) {
        let _ = io::stderr().lock().write_all(line.as_bytes());
        let Some(Err(error)) = self.file.as_ref().map(|file| file.append(line)) else { return };
        if let Ok(mut complained) = self.complained.lock()
            && !std::mem::replace(&mut *complained, true)
        {
            let _ = writeln!(io::stderr(), "podweir: cannot write the log file: {error}");
        }
    }

    fn line(&self, level: &Level, fields: Fields) -> String {
        let mut time = String::new();
        // Without the time the rest is still worth having.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let mut line = Map::new();
        line.insert("time".into(), time.into());
        line.insert("level".into(), level.as_str().to_lowercase().into());
        line.insert("msg".into(), fields.message.into());
        line.insert("verb".into(), self.caller.verb.into());
        for (name, value) in [("pod", &self.caller.pod), ("container_id", &self.caller.container_id)] {
            if !value.is_empty() {
                line.insert(name.into(), one_line(value, LONGEST_TEXT).into());
            }
        }
        line.insert("pid".into(), std::process::id().into());
        line.extend(fields.others);
        format!("{}\n", Value::Object(line))
    }
}

/// An event's message and other fields.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn saying(message: &str) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    fn put(&mut self, field: &Field, value: Value) {
        let value = match value {
            Value::String(text) => one_line(&text, LONGEST_TEXT).into(),
            other => other,
        };
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.others.insert(name.into(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// A file that grows line by line and is put aside when it is too long. It is opened for
/// every line: a process that kept it open would write to one long put aside.
struct LogFile {
    path: PathBuf,
    longest: u64,
}

impl LogFile {
    fn new(path: PathBuf, longest: u64) -> Self {
        Self { path, longest }
    }

    fn append(&self, line: &str) -> Result<(), TrustError> {
        let io = |source| TrustError::Io { path: self.path.clone(), source };
        if let Some(dir) = self.path.parent() {
            trust::make_directory(dir)?;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let file = trust::append(&self.path, 0o640)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) => {
                    if !self.is_current(&file) {
                        continue;
                    }
                    let length = file.metadata().map_err(io)?.len();
                    let full = length > 0 && length + line.len() as u64 > self.longest;
                    if full && rotate::rotate(&self.path, self.longest)? {
                        continue;
                    }
                    return file.write_all(line.as_bytes()).map_err(io);
                }
                Err((file, _)) if !self.is_current(&file) => continue,
                // Whoever holds it that long is stopped; a line appended is whole all the same.
                Err((mut file, _)) if Instant::now() > until => return file.write_all(line.as_bytes()).map_err(io),
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// Whether an open file is still the one at the log's path.
    fn is_current(&self, file: &File) -> bool {
        let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
        match (file.metadata().map(identity), fs::metadata(&self.path).map(identity)) {
            (Ok(open), Ok(named)) => open == named,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert_eq!(parse_level(""), Ok(LevelFilter::INFO));
        assert_eq!(parse_level("debug"), Ok(LevelFilter::DEBUG));
        assert_eq!(parse_level("default:warn,other:debug"), Ok(LevelFilter::WARN));
        assert!(parse_level("loud").is_err());
    }

    #[test]
    fn one_pod_does_not_rotate_the_lines_of_others_away() {
        let dir = std::env::temp_dir().join(format!("podweir-loud-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let file = LogFile::new(dir.join(FILE), 32_000);
        let line = |pod: &str, n: usize| format!("{{\"msg\":\"{n}\",\"pod\":\"{pod}\"}}\n");
        (0..10).for_each(|n| file.append(&line("shop/quiet", n)).unwrap());
        // A process that was killed while it put the log aside.
        fs::write(dir.join("plugin.log.full"), line("shop/left", 0)).unwrap();
        (0..5000).for_each(|n| file.append(&line("shop/loud", n)).unwrap());
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        let (aside, all) = (read("plugin.log.1"), read("plugin.log.1") + &read(FILE));
        assert!((0..10).all(|n| all.matches(&line("shop/quiet", n)).count() == 1), "{aside}");
        assert!(all.contains(&line("shop/left", 0)) && all.contains(&line("shop/loud", 4999)));
        assert!(aside.len() < 2000 && read(FILE).len() <= 32_000, "{}", aside.len());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn many_writers_lose_and_break_no_line() {
        let dir = std::env::temp_dir().join(format!("podweir-log-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let path = dir.join(FILE);
        let filler = "x".repeat(50);
        // Long enough to be put aside just once.
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let (path, filler) = (&path, &filler);
                scope.spawn(move || {
                    for n in 0..100 {
                        let line = format!("{writer} {n},\"pod\":\"{writer}-{}\" {filler}\n", n % 20);
                        LogFile::new(path.clone(), 40_000).append(&line).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap() + &fs::read_to_string(dir.join("plugin.log.1")).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.ends_with(&filler)));
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), 800);
        assert!(fs::metadata(&path).unwrap().len() <= 40_000);
        fs::remove_dir_all(&dir).unwrap();
    }
}
