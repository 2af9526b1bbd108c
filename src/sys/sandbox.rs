//! What a thread may still do with files, with other hosts and with other processes once it
//! reads what others wrote: a parser that is talked into something can do little with it
//! (landlock(7)). Descriptors that are open already, such as standard output, stay as they
//! are; so do pipes and files in memory, whatever path leads to them.
//!
//! Kernels before 5.13, and those that were started without Landlock, have none of it;
//! later ones add to it. What a kernel has is used, and what it lacks is said in the debug
//! log only: there is nothing that a user could do about it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use tracing::debug;

/// The version of Landlock that is asked for: files, TCP, signals and abstract sockets (Linux 6.12).
const LATEST: ABI = ABI::V6;

/// What a thread may still do. Nothing is allowed unless it is added.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Rights to files that are allowed for every path.
    anywhere: BitFlags<AccessFs>,
    paths: Vec<(PathBuf, BitFlags<AccessFs>)>,
    /// The ports that may be connected to; `None`: TCP is not restricted.
    ports: Option<Vec<u16>>,
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

impl Sandbox {
    /// No file is read or written and no program is started, but for what is added; only
    /// randomness is to be had, which programs that are linked statically read from files. No
    /// signal reaches a process that this thread did not start.
    pub fn new() -> Self {
        let randomness = ["/dev/urandom", "/dev/random"].map(|path| (path.into(), AccessFs::ReadFile.into()));
        Self { anywhere: BitFlags::EMPTY, paths: randomness.into(), ports: None }
    }

    /// Every file may be read, and every program started.
    pub fn reading_everything(mut self) -> Self {
        self.anywhere |= reading() | AccessFs::Execute;
        self
    }

    /// A file, or everything below a folder, may be read. What is not there is passed over.
    pub fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push((path.into(), reading()));
        self
    }

    /// Files in a folder may be read, made, written, renamed and removed.
    pub fn write(mut self, folder: impl Into<PathBuf>) -> Self {
        let writing = AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir;
        self.paths.push((folder.into(), reading() | writing));
        self
    }

    /// Allows programs below these folders to be started, with reading what they need for it and writing
    /// to /dev/null.
    pub fn run(mut self, folders: impl IntoIterator<Item = PathBuf>) -> Self {
        self.paths.extend(folders.into_iter().map(|folder| (folder, reading() | AccessFs::Execute)));
        self.paths.push(("/dev/null".into(), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate));
        self
    }

    /// Allows TCP connections to these ports and to no others, and no TCP port to be bound.
    pub fn connecting_to(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.ports = Some(ports.into_iter().collect());
        self
    }

    /// Puts the calling thread, and all that it starts from now on, into it for good, on top
    /// of the one that it may be in already. A kernel that refuses is told in the debug log.
    pub fn enforce(self) {
        match self.try_enforce() {
            Ok(enforced) => debug!(?enforced, "confined by Landlock"),
            Err(e) => debug!("not confined by Landlock: {e}"),
        }
    }

    /// Asks the kernel to confine the calling thread.
    ///
    /// # Errors
    ///
    /// The kernel has Landlock and refuses the request, or there are too few descriptors to name all
    /// that stays allowed: half of it would forbid what is needed.
    fn try_enforce(self) -> Result<RulesetStatus, Refused> {
        let handled = AccessFs::from_all(LATEST) & !self.anywhere;
        let mut rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(handled)?;
        if self.ports.is_some() {
            rules = rules.handle_access(AccessNet::from_all(LATEST))?;
        }
        let mut rules = rules.scope(Scope::from_all(LATEST))?.create()?;
        for (path, access) in &self.paths {
            // A rule may only speak of what is handled.
            let access = *access & handled;
            if access.is_empty() {
                continue;
            }
            let Some((opened, kind)) = opened(path)? else { continue };
            rules = match kind {
                Kind::Folder => rules.add_rule(PathBeneath::new(opened, access))?,
                Kind::File => rules.add_rule(PathBeneath::new(opened, access & AccessFs::from_file(LATEST)))?,
                // The kernel takes no rule for most of these, and needs none.
                Kind::Other => {
                    let access = access & AccessFs::from_file(LATEST);
                    let other = rules.try_clone().ok().and_then(|r| r.add_rule(PathBeneath::new(opened, access)).ok());
                    other.unwrap_or(rules)
                }
            };
        }
        for port in self.ports.into_iter().flatten() {
            rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
        Ok(rules.restrict_self()?.ruleset)
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Why the calling thread is not confined.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Kernel(#[from] RulesetError),
    #[error("what stays allowed cannot be opened: {0}")]
    Open(io::Error),
}

enum Kind {
    Folder,
    File,
    /// Also what has no name in any folder: a shell's `<(…)`, a file in memory.
    Other,
}

/// Opens what a path leads to, and tells its kind; `None` where the path leads nowhere.
fn opened(path: &Path) -> Result<Option<(PathFd, Kind)>, Refused> {
    let scarce =
        |error: &io::Error| [Errno::EMFILE, Errno::ENFILE].iter().any(|e| error.raw_os_error() == Some(*e as i32));
    let opened = match PathFd::new(path) {
        Ok(opened) => opened,
        Err(PathFdError::OpenCall { source, .. }) if scarce(&source) => return Err(Refused::Open(source)),
        Err(_) => return Ok(None),
    };
    let Ok(meta) = fstat(opened.as_fd()) else { return Ok(None) };
    let kind = match SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Kind::Folder,
        SFlag::S_IFREG | SFlag::S_IFCHR if meta.st_nlink > 0 => Kind::File,
        _ => Kind::Other,
    };
    Ok(Some((opened, kind)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    /// Runs what is left of a test in a thread of its own, in this sandbox.
    fn inside<T: Send>(sandbox: Sandbox, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                assert_ne!(
                    sandbox.try_enforce().unwrap(),
                    RulesetStatus::NotEnforced,
                    "the test needs Landlock (Linux 5.13)"
                );
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("podweir-sandbox-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("own")).unwrap();
        fs::write(path.join("own/file"), "mine").unwrap();
        fs::write(path.join("named"), "named").unwrap();
        fs::write(path.join("other"), "other").unwrap();
        path
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn only_what_is_named_is_read_and_written() {
        let top = folder("files");
        let sandbox = Sandbox::new().write(top.join("own")).read(top.join("named")).read(top.join("nothing"));
        inside(sandbox, || {
            assert_eq!(fs::read_to_string(top.join("named")).unwrap(), "named");
            assert!(denied(fs::read(top.join("other"))) && denied(fs::write(top.join("named"), "")));
            assert!(denied(fs::write(top.join("new"), "")) && denied(fs::remove_file(top.join("other"))));
            assert!(denied(fs::read_dir(&top)) && denied(fs::read("/etc/passwd")));
            // What is done with logs and states.
            fs::create_dir(top.join("own/deeper")).unwrap();
            fs::write(top.join("own/deeper/new"), "text").unwrap();
            fs::rename(top.join("own/deeper/new"), top.join("own/deeper/newer")).unwrap();
            fs::remove_file(top.join("own/deeper/newer")).unwrap();
            assert!(denied(std::os::unix::fs::symlink("/", top.join("own/link"))));
            assert!(denied(Command::new("/bin/true").status()));
        });
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn a_second_one_only_takes_more_away() {
        let top = folder("layers");
        inside(Sandbox::new().reading_everything().write(top.join("own")), || {
            assert_eq!(fs::read_to_string(top.join("other")).unwrap(), "other");
            assert!(denied(fs::write(top.join("other"), "")));
            assert!(Command::new("/bin/true").status().unwrap().success());
            Sandbox::new().write(&top).try_enforce().unwrap();
            fs::write(top.join("own/file"), "").unwrap();
            assert!(denied(fs::write(top.join("other"), "")) && denied(Command::new("/bin/true").status()));
        });
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn programs_are_started_from_their_folders_with_what_they_need() {
        let programs = ["/usr", "/bin", "/lib", "/lib64"].map(PathBuf::from);
        inside(Sandbox::new().run(programs), || {
            let quiet = |program: &str, argument: &str| {
                Command::new(program).arg(argument).stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap()
            };
            assert!(quiet("/bin/true", "").success());
            assert!(!quiet("/bin/cat", "/etc/passwd").success(), "what it starts is in it as well");
        });
    }

    #[test]
    fn connections_are_made_to_the_ports_that_are_named() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [one, other] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        inside(Sandbox::new().connecting_to([one.port()]), || {
            TcpStream::connect(one).unwrap();
            assert!(denied(TcpStream::connect(other)) && denied(TcpListener::bind("127.0.0.1:0")));
        });
        inside(Sandbox::new(), || TcpStream::connect(other).unwrap());
    }

    /// A shell's `<(…)` is named by a path, but is in no folder.
    #[test]
    fn pipes_and_devices_that_are_named_are_no_obstacle() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"text").unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        inside(Sandbox::new().read(&path).read("/dev/null"), || {
            fs::read("/dev/null").unwrap();
            assert!(denied(fs::read("/etc/passwd")), "it is in force all the same");
        });
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
}
