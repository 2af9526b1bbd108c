//! The iptables programs: finding them without running any, and running them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tracing::debug;

use crate::config::types::Family;
use crate::sys;

/// A variant of iptables: over nf_tables, or legacy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        }
    }
}

/// Why an iptables program failed or could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error(
        "no program {program} in {searched}: install the package iptables, or use --backend nftables, which needs no program"
    )]
    Missing { program: String, searched: String },
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: io::Error },
    #[error("{program} ended with {status}: {message}{hint}")]
    Failed { program: String, status: String, message: String, hint: String },
    #[error(
        "{program}: the iptables lock {lock} is held by {holder}, still after {waited:?}; end it or allow more time with --lock-timeout"
    )]
    Locked { program: String, lock: String, holder: String, waited: Duration },
    #[error("cannot understand what {program} printed: {source}")]
    Parse { program: String, source: super::parse::ParseError },
}

/// The environment in which the iptables programs run.
#[derive(Debug, Clone, Default)]
pub struct ProgramEnvironment {
    /// Where programs are looked for, as in `PATH`.
    pub path: OsString,
    /// Other variables handed on (`XTABLES_LOCKFILE`, `XTABLES_LIBDIR`).
    pub variables: HashMap<&'static str, OsString>,
    /// The user namespace in which programs are started, if it is not the process's own.
    pub user_namespace: Option<Arc<File>>,
    /// The network namespace is the node's, where other programs go by the same lock file.
    pub host_network: bool,
}

/// The value of `XTABLES_LOCKFILE` for a lock that no other program contends for: the program's own
/// standard output, which is a file in memory.
pub const NO_LOCK: &str = "/proc/self/fd/1";

/// The folders in which programs are looked for without a `PATH`.
pub(super) const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a program may take once it has the lock.
const PATIENCE: Duration = Duration::from_secs(20);

/// iptables' lock file unless XTABLES_LOCKFILE names another.
const LOCK_FILE: &str = "/run/xtables.lock";

/// Finds and runs the programs of one variant.
#[derive(Debug, Clone)]
pub struct Programs {
    pub variant: Variant,
    environment: ProgramEnvironment,
    lock_timeout: Duration,
    /// The paths of programs found so far.
    known: RefCell<HashMap<(Family, &'static str), PathBuf>>,
}

impl Programs {
    pub fn new(variant: Variant, environment: ProgramEnvironment, lock_timeout: Duration) -> Self {
        Self { variant, environment, lock_timeout, known: RefCell::default() }
    }

    /// The programs of a variant, with this environment and time for locks.
    pub fn of(&self, variant: Variant) -> Self {
        Self::new(variant, self.environment.clone(), self.lock_timeout)
    }

    /// Whether the programs for a family are there.
    pub fn exist(&self, family: Family) -> bool {
        self.check(family).is_ok()
    }

    /// Names the program for a family that is not there. A package has all or none.
    ///
    /// # Errors
    ///
    /// The program that is not there, and where it was looked for.
    pub fn check(&self, family: Family) -> Result<(), ProgramError> {
        self.find(family, "restore").map(|_| ())
    }

    fn find(&self, family: Family, tool: &'static str) -> Result<PathBuf, ProgramError> {
        if let Some(path) = self.known.borrow().get(&(family, tool)) {
            return Ok(path.clone());
        }
        let path = self.search(family, tool)?;
        self.known.borrow_mut().insert((family, tool), path.clone());
        Ok(path)
    }

    /// Finds `iptables-nft-restore` or the like; or the plain name, if it is a program of the variant.
    fn search(&self, family: Family, tool: &str) -> Result<PathBuf, ProgramError> {
        let stem = if family == Family::V4 { "iptables" } else { "ip6tables" };
        let full = format!("{stem}-{}-{tool}", self.variant.name());
        let bare = format!("{stem}-{tool}");
        let path = &self.environment.path;
        let path = if path.is_empty() { OsStr::new(USUAL) } else { path };
        let dirs: Vec<PathBuf> = std::env::split_paths(path).filter(|dir| dir.is_absolute()).collect();
        let named = |name: &str| dirs.iter().map(|d| d.join(name)).find(|p| is_program(p));
        if let Some(found) = named(&full) {
            return Ok(found);
        }
        if let Some(found) = named(&bare)
            && variant_of(&found) == Some(self.variant)
        {
            return Ok(found);
        }
        let searched = dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(":");
        Err(ProgramError::Missing { program: full, searched })
    }

    /// The text that `-save` prints.
    ///
    /// # Errors
    ///
    /// The program is not there, did not end in time, waited for its lock in vain, or failed.
    pub fn save(&self, family: Family) -> Result<String, ProgramError> {
        self.run(family, "save", &["-c"], String::new)
    }

    /// Feeds a script to `-restore --noflush`. It is written while the program loads.
    ///
    /// # Errors
    ///
    /// The program is not there, did not end in time, waited for its lock in vain, or refused the
    /// script; then the table is as it was before (iptables-restore(8) commits a table at once).
    pub fn restore(&self, family: Family, script: impl FnOnce() -> String) -> Result<(), ProgramError> {
        let wait = self.lock_timeout.as_secs().max(1).to_string();
        self.run(family, "restore", &["--noflush", "-w", &wait], script).map(|_| ())
    }

    fn run(
        &self,
        family: Family,
        tool: &'static str,
        arguments: &[&str],
        input: impl FnOnce() -> String,
    ) -> Result<String, ProgramError> {
        let program = self.find(family, tool)?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let started = Instant::now();
        let finished = self.start(&program, arguments, tool == "save", input);
        debug!(program = name, ?arguments, ms = started.elapsed().as_micros() as f64 / 1e3, "ran");
        let Finished { status, input, printed, said } =
            finished.map_err(|source| ProgramError::Run { program: name.clone(), source })?;
        if status.success() {
            return Ok(printed);
        }
        let message = format!("{said}{printed}").trim().replace('\n', "; ");
        if status.code() == Some(4) && message.contains("lock") {
            return Err(self.locked(name));
        }
        let hint = hint(&message, &input, self.variant);
        Err(ProgramError::Failed { program: name, status: status.to_string(), message, hint })
    }

    /// Runs a program to its end. Its output goes to files in memory, so that neither side can block the
    /// other. If the output is a listing, warnings, which may come at any time, have a file of their
    /// own.
    fn start(
        &self,
        program: &Path,
        arguments: &[&str],
        listing: bool,
        input: impl FnOnce() -> String,
    ) -> io::Result<Finished> {
        let in_memory = || memfd_create(c"podweir-output", MFdFlags::MFD_CLOEXEC).map(File::from);
        let said = in_memory()?;
        let printed = listing.then(in_memory).transpose()?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", &self.environment.path);
        command.envs(&self.environment.variables);
        if self.variant == Variant::Legacy && self.ignores_lock() {
            command.env("XTABLES_LOCKFILE", NO_LOCK);
        }
        command.stdin(Stdio::piped()).stdout(printed.as_ref().unwrap_or(&said).try_clone()?).stderr(said.try_clone()?);
        if let Some(namespace) = &self.environment.user_namespace {
            sys::process::in_user_namespace(&mut command, namespace.clone());
        }
        let mut child = command.spawn()?;
        let input = input();
        let deadline = self.lock_timeout + PATIENCE;
        let (status, written) = sys::process::feed(&mut child, input.as_bytes(), deadline).inspect_err(|_| {
            // Nothing may go on changing rules while we are about to put them back.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        // When a program stops reading, its status and words tell more than our broken pipe.
        if status.success() {
            written?;
        }
        let printed = printed.map_or(Ok(String::new()), contents)?;
        // Of one that has done its work nothing but a listing is of interest.
        let said = if status.success() { String::new() } else { contents(said)? };
        Ok(Finished { status, input, printed, said })
    }

    /// The file that the programs of the legacy variant lock (xshared.c of iptables).
    fn lock_file(&self) -> PathBuf {
        self.environment.variables.get("XTABLES_LOCKFILE").map_or_else(|| LOCK_FILE.into(), PathBuf::from)
    }

    /// Whether iptables' lock file is not used: one that others than root can open is a lock that they
    /// can hold for as long as they like. The programs make it for root alone, but a volume of a pod
    /// that names it (hostPath, FileOrCreate) makes it for everybody. Runs of podweir exclude each other
    /// by a lock of their own in any case; only in a node's namespace other programs that change rules
    /// use the file too, and it must be used.
    fn ignores_lock(&self) -> bool {
        let open_to_others = |meta: std::fs::Metadata| meta.is_file() && (meta.uid() != 0 || meta.mode() & 0o066 != 0);
        !self.environment.host_network && std::fs::metadata(self.lock_file()).is_ok_and(open_to_others)
    }

    fn locked(&self, program: String) -> ProgramError {
        let lock = self.lock_file();
        let holder = std::fs::metadata(&lock).ok().and_then(|file| sys::lock::holder(&file));
        ProgramError::Locked {
            program,
            lock: lock.display().to_string(),
            holder: holder.unwrap_or_else(|| "another process".into()),
            waited: self.lock_timeout,
        }
    }
}

/// A program that has ended.
struct Finished {
    status: ExitStatus,
    /// The script that it was given.
    input: String,
    /// What it wrote to standard output.
    printed: String,
    /// What it wrote to standard error.
    said: String,
}

/// Everything that was written to a file.
fn contents(mut file: File) -> io::Result<String> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The variant of a program by the name of the file it leads to (`xtables-nft-multi`,
/// `xtables-legacy-multi`); only when that tells nothing is the program asked.
fn variant_of(program: &Path) -> Option<Variant> {
    let target = std::fs::canonicalize(program).ok()?;
    let name = target.file_name()?.to_string_lossy().into_owned();
    if name.contains("nft") {
        return Some(Variant::Nft);
    }
    if name.contains("legacy") {
        return Some(Variant::Legacy);
    }
    let output = Command::new(program).arg("--version").env_clear().stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Before 1.8 there was one variant, and no word about it.
    Some(if text.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

/// The cause of an iptables program's message, and what to do, where they are known.
fn hint(message: &str, script: &str, variant: Variant) -> String {
    let number = failed_line(message).unwrap_or_default();
    let line = script.lines().nth(number.wrapping_sub(1));
    let at = line.map(|l| format!(" (line: {l})")).unwrap_or_default();
    let lower = message.to_lowercase();
    let denied = ["permission denied", "operation not permitted", "unable to initialize table"];
    if variant == Variant::Legacy
        && denied.iter().any(|words| lower.contains(words))
        && sys::caps::has(sys::caps::CAP_NET_ADMIN).is_ok_and(|has| has)
        && sys::caps::has(sys::caps::CAP_NET_RAW).is_ok_and(|has| !has)
    {
        return format!("{at}; {}", sys::caps::NET_RAW_HINT);
    }
    if lower.contains("permission denied") || lower.contains("operation not permitted") {
        let cause = sys::netns::net_admin_hint().map(|hint| format!("; {hint}")).unwrap_or_default();
        return format!("{at}{cause}");
    }
    if lower.contains("do you need to insmod")
        || lower.contains("table does not exist")
        || lower.contains("can't initialize")
    {
        let table =
            Some("nat").filter(|t| lower.contains(t)).or(Some("mangle").filter(|t| lower.contains(t))).unwrap_or("raw");
        let module = match variant {
            Variant::Legacy => format!("iptable_{table} (and ip6table_{table})"),
            Variant::Nft => "nf_tables and nft_compat".into(),
        };
        return format!("{at}; the kernel has no {module}: load it on the node, or use --backend nftables");
    }
    // The kernel sees a table of iptables-legacy at its COMMIT, whole.
    let mut lines: Vec<&str> = line.into_iter().collect();
    if line == Some("COMMIT") {
        lines.extend(
            script.lines().take(number).collect::<Vec<_>>().into_iter().rev().take_while(|l| !l.starts_with('*')),
        );
    }
    let modules = modules_of(&lines);
    match modules.as_slice() {
        [] => at,
        [module] => format!("{at}; if the kernel lacks the module {module}, load it on the node (modprobe {module})"),
        several => format!(
            "{at}; if the kernel lacks one of the modules {}, load it on the node (modprobe)",
            several.join(", ")
        ),
    }
}

/// The line number in "line 12 failed" or "line: 12".
fn failed_line(message: &str) -> Option<usize> {
    let words: Vec<&str> = message.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    words.windows(2).find_map(|pair| if pair[0] == "line" { pair[1].parse().ok() } else { None })
}

/// The extensions that rule lines need.
fn modules_of(lines: &[&str]) -> Vec<&'static str> {
    let modules = [
        ("-j TPROXY", "xt_TPROXY"),
        ("-j REDIRECT", "xt_REDIRECT"),
        ("-j CONNMARK", "xt_connmark"),
        ("-j CT", "xt_CT"),
        ("-j MARK", "xt_mark"),
        ("-m owner", "xt_owner"),
        ("-m multiport", "xt_multiport"),
        ("-m conntrack", "xt_conntrack"),
        ("-m connmark", "xt_connmark"),
        ("-m mark", "xt_mark"),
        ("-m comment", "xt_comment"),
    ];
    let needed = modules.iter().filter(|(part, _)| lines.iter().any(|line| line.contains(part)));
    needed.map(|(_, module)| *module).fold(Vec::new(), |mut all, module| {
        if !all.contains(&module) {
            all.push(module);
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_line_and_the_module() {
        let script = "*nat\n-A OUTPUT -m owner --uid-owner 1 -j RETURN\nCOMMIT\n";
        let text =
            hint("iptables-restore: line 2 failed: No chain/target/match by that name.", script, Variant::Legacy);
        assert!(text.contains("-A OUTPUT -m owner") && text.contains("modprobe xt_owner"), "{text}");
        let text =
            hint("iptables-restore: line 3 failed: No chain/target/match by that name.", script, Variant::Legacy);
        assert!(text.contains("modprobe xt_owner"), "{text}");
        let text = hint(
            "iptables-legacy-restore v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)",
            script,
            Variant::Legacy,
        );
        // Who has the capability is not told to grant it.
        let lacks = !sys::caps::has(sys::caps::CAP_NET_ADMIN).unwrap();
        assert_eq!(text.contains("CAP_NET_ADMIN"), lacks, "{text}");
    }

    #[test]
    fn programs_that_are_not_there_are_named() {
        let environment = ProgramEnvironment { path: "/nonexistent".into(), ..Default::default() };
        let programs = Programs::new(Variant::Legacy, environment, Duration::from_secs(1));
        let error = programs.check(Family::V6).unwrap_err().to_string();
        assert!(error.contains("ip6tables-legacy-restore") && error.contains("/nonexistent"), "{error}");
    }
}
