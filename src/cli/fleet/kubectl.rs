//! Requests to the API server through the user's own kubectl: with the user's kubeconfig, whatever way
//! to authenticate it has (tokens, certificates, programs, providers), and with the user's rights, no
//! more.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::ArgMatches;
use serde_json::Value;

use crate::sys::process;
use crate::sys::text::one_line;

/// How long one page, and the answer of one agent, may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// The most bytes of one page, and of one line of an agent.
const LARGEST_PAGE: u64 = 256 << 20;
const LONGEST_LINE: u64 = 8 << 20;
/// How many objects come in one answer.
const PAGE: usize = 500;
/// The most bytes of kubectl's error output that are kept.
const COMPLAINT: u64 = 4096;

/// The arguments with which kubectl is called.
#[derive(Debug, Clone)]
pub(super) struct Kubectl {
    arguments: Vec<String>,
}

/// Why kubectl gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KubectlRefusal {
    pub why: String,
    /// Whether a repetition cannot succeed.
    pub is_final: bool,
    /// Whether the object does not exist any more.
    pub(super) is_gone: bool,
}

impl KubectlRefusal {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_final: false, is_gone: false }
    }

    fn last(why: impl Into<String>) -> Self {
        Self { is_final: true, ..Self::new(why) }
    }

    /// The reason in kubectl's error output.
    fn of(complaint: &str) -> Self {
        // Its last line is what it is about; those before are warnings.
        let line = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("kubectl says nothing");
        let says = |words: &[&str]| words.iter().any(|word| complaint.contains(word));
        let is_gone = says(&["NotFound", "container not found", "in a completed pod"]);
        let is_old = says(&["unrecognized subcommand"]);
        // What kubectl asks where it was told of no cluster.
        let knows_none = says(&["localhost:8080"]);
        let is_final = is_old
            || knows_none
            || says(&["Forbidden", "Unauthorized", "must be logged in", "no such file or directory", "does not exist"]);
        let mut why = one_line(line.trim_start_matches("error: "), 400);
        if is_old {
            why = "its agent is of an older release, which has no `podweir node audit`: upgrade the agents".into();
        } else if knows_none {
            why += "; kubectl knows no cluster: give --kubeconfig, or set KUBECONFIG";
        } else if let Some(right) = missing_right(complaint) {
            why += &format!("; what is missing is the right to {right} (cni-conf/auditor.yaml has all that it takes)");
        }
        Self { why, is_final, is_gone }
    }
}

/// The right that somebody lacks, as the API server's refusal names it: `create pods/exec in
/// namespace mesh` (`forbiddenMessage`, k8s.io/apiserver/pkg/endpoints/handlers/responsewriters).
fn missing_right(complaint: &str) -> Option<String> {
    let (_, rest) = complaint.split_once(" cannot ")?;
    let (verb, rest) = rest.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once('"')?;
    let namespace = rest.split_once("in the namespace \"").and_then(|(_, rest)| rest.split_once('"'));
    let place = namespace.map_or_else(|| "in all namespaces".into(), |(name, _)| format!("in namespace {name}"));
    Some(format!("{verb} {resource} {place}"))
}

impl Kubectl {
    pub(super) fn new(matches: &ArgMatches) -> Self {
        let mut arguments = Vec::new();
        if let Some(path) = matches.get_one::<PathBuf>("kubeconfig") {
            arguments.push(format!("--kubeconfig={}", path.display()));
        }
        if let Some(context) = matches.get_one::<String>("context") {
            arguments.push(format!("--context={context}"));
        }
        Self { arguments }
    }

    fn start(&self, words: &[&str]) -> Result<Child, KubectlRefusal> {
        let mut command = Command::new("kubectl");
        command.args(&self.arguments).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|e| {
            let why = match e.kind() {
                std::io::ErrorKind::NotFound => {
                    "there is no kubectl in PATH: --cluster asks the API server through it, with your kubeconfig; install it, or collect elsewhere and give --manifests and --facts".into()
                }
                _ => format!("cannot start kubectl: {e}"),
            };
            KubectlRefusal::last(why)
        })
    }

    /// Runs kubectl and passes its standard output to `take`, which may stop reading; output after the
    /// deadline is ignored.
    fn run<T: Send>(
        &self,
        words: &[&str],
        deadline: Duration,
        take: impl FnOnce(&mut dyn BufRead) -> Result<T, KubectlRefusal> + Send,
    ) -> Result<T, KubectlRefusal> {
        let mut child = self.start(words)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            let taken = scope.spawn(move || match stdout {
                Some(stdout) => take(&mut BufReader::new(stdout)),
                None => Err(KubectlRefusal::new("kubectl has no standard output")),
            });
            let complaint = scope.spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stderr) = stderr {
                    // What is complained of beyond that is not kept, but taken.
                    let _ = stderr.by_ref().take(COMPLAINT).read_to_end(&mut bytes);
                    let _ = std::io::copy(&mut stderr, &mut std::io::sink());
                }
                String::from_utf8_lossy(&bytes).into_owned()
            });
            let ended = process::wait(&mut child, deadline);
            let lost = |_| KubectlRefusal::new("a thread ended without an answer");
            let taken = taken.join().unwrap_or_else(|_| Err(KubectlRefusal::new("a thread ended without an answer")));
            let complaint = complaint.join().map_err(lost)?;
            match ended {
                Ok(status) if status.success() => taken,
                Ok(_) => Err(KubectlRefusal::of(&complaint)),
                Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                    Err(KubectlRefusal::new(format!("no whole answer within {} s", deadline.as_secs())))
                }
                Err(e) => Err(KubectlRefusal::new(format!("kubectl: {e}"))),
            }
        })
    }

    /// Lists all objects of a collection that match `selectors` (parameters of the query and their
    /// values), page by page; `each` is called with every object.
    ///
    /// # Errors
    /// A page cannot be had, or makes no sense.
    pub(super) fn list(
        &self,
        path: &str,
        selectors: &[(&str, &str)],
        each: &mut dyn FnMut(&Value),
    ) -> Result<(), KubectlRefusal> {
        let mut next = String::new();
        loop {
            let mut query = format!("{path}?limit={PAGE}");
            for (name, value) in selectors {
                query += &format!("&{name}={}", escaped(value));
            }
            if !next.is_empty() {
                query += &format!("&continue={}", escaped(&next));
            }
            let read = |out: &mut dyn BufRead| {
                serde_json::from_reader(out.take(LARGEST_PAGE))
                    .map_err(|e| KubectlRefusal::new(format!("the API server's answer makes no sense: {e}")))
            };
            let page: Value = again(|| self.run(&["get", "--raw", &query], PAGE_TIMEOUT, read))?;
            page["items"].as_array().into_iter().flatten().for_each(&mut *each);
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => next = token.into(),
                _ => return Ok(()),
            }
        }
    }

    /// Runs a program in a container; `each` is called with every line that it writes.
    ///
    /// # Errors
    /// The program cannot be run, fails, or `each` does not understand a line.
    pub(super) fn exec(
        &self,
        place: (&str, &str),
        program: &[&str],
        timeout: Duration,
        each: &mut (dyn FnMut(&str) -> Result<(), String> + Send),
    ) -> Result<(), KubectlRefusal> {
        let (namespace, pod) = place;
        let words = [&["exec", "--namespace", namespace, pod, "--container", "agent", "--"], program].concat();
        self.run(&words, timeout, |out| {
            let mut problem = Ok(());
            loop {
                let mut line = String::new();
                let read = (&mut *out).take(LONGEST_LINE).read_line(&mut line);
                match read {
                    Ok(0) => return problem,
                    Ok(_) if problem.is_ok() && !line.trim().is_empty() => {
                        problem = each(&line).map_err(KubectlRefusal::last);
                    }
                    Ok(_) => {}
                    Err(e) => return problem.and(Err(KubectlRefusal::new(format!("its answer is no text: {e}")))),
                }
            }
        })
    }
}

/// Tries a request up to three times, with pauses, unless its failure is final.
pub(super) fn again<T>(mut what: impl FnMut() -> Result<T, KubectlRefusal>) -> Result<T, KubectlRefusal> {
    const TRIES: u32 = 3;
    let mut tried = 1;
    loop {
        match what() {
            Err(refusal) if !refusal.is_final && tried < TRIES => {
                std::thread::sleep(Duration::from_millis(500) * tried);
                tried += 1;
            }
            result => return result,
        }
    }
}

/// Escapes a text for a query (RFC 3986).
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_right_that_is_missing_and_what_is_gone() {
        let of = |text: &str| KubectlRefusal::of(text);
        let exec = of(
            "Warning: x\nError from server (Forbidden): pods \"a\" is forbidden: User \"eve\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"mesh\"\n",
        );
        assert!(exec.is_final && exec.why.contains("the right to create pods/exec in namespace mesh"), "{exec:?}");
        let list = of(
            "Error from server (Forbidden): pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" at the cluster scope",
        );
        assert!(list.is_final && list.why.contains("the right to list pods in all namespaces"), "{list:?}");
        for gone in [
            "Error from server (NotFound): pods \"a\" not found",
            "error: unable to upgrade connection: container not found (\"agent\")",
        ] {
            assert!(of(gone).is_gone && !of(gone).is_final, "{gone}");
        }
        for told in ["error: context \"x\" does not exist", "error: stat /x: no such file or directory"] {
            assert!(of(told).is_final, "{told}");
        }
        let none =
            of("The connection to the server localhost:8080 was refused - did you specify the right host or port?");
        assert!(none.is_final && none.why.ends_with("set KUBECONFIG"), "{none:?}");
        assert!(!of("The connection to the server 10.0.0.10:6443 was refused").is_final);
        assert_eq!(of("").why, "kubectl says nothing");
    }
}
