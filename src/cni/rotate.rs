//! Puts the log aside when it is too long. One pod that is started again and again could displace the
//! lines of all others, so the old log is merged with the one before: of each pod the last lines are
//! kept, up to its share.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::sys::trust::{self, TrustError};

/// The lines of one pod may be at most one part in `SHARE` of the old log.
const SHARE: u64 = 32;

/// How a line names its pod, or its container outside of Kubernetes. No text in a line can imitate that:
/// quotes in values have a backslash before them.
const NAMES: [&str; 2] = [",\"pod\":\"", ",\"container_id\":\""];

/// The pod or container that a line is about; empty for lines about the node.
fn owner(line: &str) -> &str {
    let named = |name| line.split_once(name).and_then(|(_, rest)| rest.split_once('"')).map(|(owner, _)| owner);
    NAMES.into_iter().find_map(named).unwrap_or_default()
}

/// The numbers of the lines that are kept: the last ones of each owner up to its share, and of these the
/// last that fit.
fn fold(lines: &[&str], longest: u64) -> Vec<usize> {
    let mut shares: HashMap<&str, u64> = HashMap::new();
    let (mut all, mut kept) = (0, Vec::new());
    for (number, line) in lines.iter().enumerate().rev() {
        let length = line.len() as u64 + 1;
        let had = shares.entry(owner(line)).or_default();
        *had += length;
        if *had > longest / SHARE {
            continue;
        }
        all += length;
        if all > longest {
            break;
        }
        kept.push(number);
    }
    kept.reverse();
    kept
}

/// Whether another process is putting the log aside: the file that it works on stays locked.
fn is_busy(full: &Path) -> Result<bool, TrustError> {
    match fs::symlink_metadata(full) {
        Ok(_) => Ok(Flock::lock(trust::append(full, 0o640)?, FlockArg::LockExclusiveNonblock).is_err()),
        Err(_) => Ok(false),
    }
}

/// Puts the log aside, as `.1`; `false` if another process is doing so. The caller holds the lock on the
/// log.
///
/// # Errors
/// The log cannot be renamed, or the old one cannot be written.
pub(super) fn rotate(path: &Path, longest: u64) -> Result<bool, TrustError> {
    let [full, aside, new] = ["log.full", "log.1", "log.new"].map(|extension| path.with_extension(extension));
    let io = |source| TrustError::Io { path: aside.clone(), source };
    let read = |path: &Path| match trust::read(path, 4 * longest) {
        Ok(content) => Ok(String::from_utf8_lossy(&content.bytes).into_owned()),
        Err(e) if e.is_missing() => Ok(String::new()),
        // None of ours.
        Err(TrustError::TooLong { .. }) => Ok(String::new()),
        Err(e) => Err(e),
    };
    if is_busy(&full)? {
        return Ok(false);
    }
    // Of a process that was killed in the middle of this.
    let left = read(&full)?;
    // From here on others write to a new file.
    fs::rename(path, &full).map_err(io)?;
    let texts = [read(&aside)?, left, read(&full)?];
    let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
    let mut out = String::new();
    for number in fold(&lines, longest) {
        out.push_str(lines[number]);
        out.push('\n');
    }
    let create = || File::options().write(true).create_new(true).mode(0o640).open(&new);
    let file = create().or_else(|_| fs::remove_file(&new).and_then(|()| create()));
    file.and_then(|mut file| file.write_all(out.as_bytes())).map_err(io)?;
    fs::rename(&new, &aside).and_then(|()| fs::remove_file(&full)).map_err(io)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pod: &str, n: usize) -> String {
        format!(r#"{{"time":"t","msg":"it said \",\"pod\":\"other/x\" {n}","verb":"ADD","pod":"{pod}"}}"#)
    }

    #[test]
    fn a_line_belongs_to_the_pod_that_the_program_named() {
        assert_eq!(owner(&line("shop/web-0", 1)), "shop/web-0");
        assert_eq!(owner(r#"{"time":"t","msg":"podman's","verb":"ADD","container_id":"abc"}"#), "abc");
        assert_eq!(owner(r#"{"time":"t","msg":"ready","verb":"STATUS"}"#), "");
    }

    #[test]
    fn one_pod_keeps_its_share_and_no_more() {
        let mut lines: Vec<String> = (0..5).map(|n| line("shop/quiet", n)).collect();
        lines.extend((0..1000).map(|n| line("shop/loud", n)));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let longest = 32 * 1000;
        let kept = fold(&lines, longest);
        assert_eq!(kept[..5], [0, 1, 2, 3, 4]);
        let share: usize = kept[5..].iter().map(|&n| lines[n].len() + 1).sum();
        assert!((900..=1000).contains(&share) && kept.last() == Some(&1004), "{share}");
        // All together they fit.
        let all: Vec<String> = (0..1000).map(|n| line(&format!("shop/p{n}"), n)).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let kept = fold(&all, longest);
        assert!(kept.iter().map(|&n| all[n].len() + 1).sum::<usize>() <= longest as usize);
        assert!(kept.is_sorted() && kept.last() == Some(&999));
    }
}
