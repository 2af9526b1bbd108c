//! `podweir audit --manifests` and `--cluster`: what gets past the proxies of all pods that a repository
//! would create, or that a cluster has.

mod cluster;
mod kubectl;
mod pods;

use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::audit::accept::Accepted;
use crate::audit::escapes::kind::Severity;
use crate::audit::fleet::compare::{Baseline, Comparison};
use crate::audit::fleet::facts::ClusterFacts;
use crate::audit::fleet::shapes::Shapes;
use crate::audit::fleet::sum::FleetAnswer;
use crate::audit::fleet::{self, Collected, Missed};
use crate::config::pod::NodeOptions;
use crate::config::pod::documents::Documents;
use crate::config::pod::injector::Injector;
use crate::config::pod::injector::required::InjectorVerdict;

use super::error::CliError;
use super::{args as arguments, confine, manifest, output};
use pods::Eye;

/// The most bytes of one file of manifests.
const LARGEST: u64 = 256 << 20;
/// How deep folders of manifests are searched.
const DEEPEST: usize = 32;
/// The endings of files that hold manifests.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// The clap group of the options that choose several pods.
const MANY: &str = "many";

/// Options for one pod, which have no meaning for many.
const OF_ONE: [&str; 10] =
    ["pod-manifest", "live", "netns", "pid", "dump", "pod-ip", "uplink", "dns-server", "as", "options"];

pub(super) const HELP: &str = "\
--manifests DIR takes rendered manifests (a folder of YAML and JSON, a file, or - for
standard input: helm template . | podweir audit --manifests -), adds to each pod what
Istio's injector would, and reports by workload. --injector-values FILE says what the mesh's
injector was told: a chart's values, or kubectl -n istio-system get configmap
istio-sidecar-injector istio -o yaml. Without it, a mesh as installed, with the CNI plugin.
Whether a namespace's pods are injected its labels say; where no Namespace is among the
documents, it is assumed (kubectl get namespaces -o yaml is one more file).
Pods that are there are taken as they are: kubectl get pods,namespaces -A -o json.

--cluster asks the API server, through your kubectl and with your rights, which pods there
are, and the agents (by exec) what their nodes' kernels have: podweir node audit. What
cannot be had is named, with the reason. It takes the rights to list pods and namespaces
and to create pods/exec in the agents' namespace; of pods on nodes without an agent it is
known what they ask for. Where nothing may be asked like this, --facts takes what the
agents wrote, besides --manifests.

--baseline FILE, an earlier --format json, says what is new, gone or worse; then
--fail-on is about that alone.
";

/// Adds the arguments for many pods.
pub(super) fn with_fleet(command: Command) -> Command {
    let heading = "Many pods";
    let arg =
        |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value).help_heading(heading);
    let file = |name: &'static str| arg(name, "FILE").value_parser(value_parser!(PathBuf));
    let args = [
        arg("manifests", "DIR|FILE|-")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with_all(OF_ONE)
            .help("Every workload of rendered manifests; - is standard input"),
        Arg::new("cluster")
            .long("cluster")
            .action(ArgAction::SetTrue)
            .conflicts_with_all(OF_ONE)
            .help_heading(heading)
            .help("Every pod of a cluster, by what the kernels of its nodes have"),
        file("injector-values")
            .requires(MANY)
            .help("What the mesh's injector was told: values of its chart, or its ConfigMap"),
        arg("namespace", "NAME").requires(MANY).action(ArgAction::Append).help(
            "Of a cluster just the pods of these; of manifests, where objects are that do not say so [default: default]",
        ),
        file("baseline").requires(MANY).help("An earlier --format json: what is new, gone or worse since"),
        file("facts").requires("manifests").help("What agents wrote: podweir node audit"),
        arg("selector", "LABELS").requires("cluster").help("Just the pods with these labels, as kubectl takes them"),
        file("kubeconfig").requires("cluster").help("The kubeconfig; default: kubectl's"),
        arg("context", "NAME").requires("cluster").help("The kubeconfig's context; default: its current one"),
        arg("node-timeout", "SECONDS")
            .requires("cluster")
            .value_parser(arguments::number(1..=3600u64, "seconds from 1 to 3600"))
            .default_value("30")
            .help("How long one node's agent may take"),
    ];
    command.args(args).group(ArgGroup::new(MANY).args(["manifests", "cluster"]))
}

/// Whether the arguments choose many pods.
pub(super) fn is_asked(matches: &ArgMatches) -> bool {
    matches.contains_id("manifests") || is_of_cluster(matches)
}

/// Whether the arguments choose a cluster, for which kubectl is needed.
pub(super) fn is_of_cluster(matches: &ArgMatches) -> bool {
    matches.get_flag("cluster")
}

/// The format of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FleetFormat {
    Text,
    Json,
    Sarif,
    Html,
    Prometheus,
}

/// Audits many pods and prints the answer.
///
/// # Errors
/// A file cannot be read, there is nothing to audit, or `--fail-on` applies.
pub(super) fn run(matches: &ArgMatches, format: FleetFormat, accepted: &Accepted) -> Result<(), CliError> {
    let path = |name: &str| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let stdin = ["manifests", "injector-values", "baseline", "accept", "netconf", "facts"];
    if stdin.iter().filter(|name| path(name) == Some(Path::new("-"))).count() > 1 {
        return Err(CliError::Usage("standard input can be read once: give - once".into()));
    }
    let named = |option: &str, path: &Path, problem: String| {
        CliError::Usage(format!("{option}: {}: {problem}", manifest::shown(path)))
    };
    let injector = match path("injector-values") {
        None => Injector::default(),
        Some(path) => {
            let text = manifest::read("--injector-values", path)?;
            Injector::parse(&text).map_err(|problem| named("--injector-values", path, problem))?
        }
    };
    let node = match path("netconf") {
        None => NodeOptions::default(),
        Some(path) => manifest::node_options(path)?,
    };
    let baseline = match path("baseline") {
        None => None,
        Some(path) => {
            let text = manifest::read_up_to(LARGEST, "--baseline", path)?;
            let name = manifest::shown(path);
            Some(Baseline::parse(&name, &text).map_err(|problem| named("--baseline", path, problem))?)
        }
    };
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let mut shapes = Shapes::new(accepted, today);
    let collected = match path("manifests") {
        Some(manifests) => from_manifests(matches, manifests, &injector, &node, &mut shapes)?,
        None => {
            let collected = cluster::collect(matches, &injector, &node, &mut shapes)?;
            confine::to_named_files(matches);
            collected
        }
    };
    let answer = FleetAnswer::of(collected, shapes);
    let comparison = baseline.map(|baseline| baseline.compare(&answer));
    let all = matches.get_count("verbose") > 0;
    output::print(&match format {
        FleetFormat::Text => fleet::text::write(&answer, comparison.as_ref(), all),
        FleetFormat::Json => fleet::json::write(&answer, comparison.as_ref()),
        FleetFormat::Sarif => fleet::sarif::write(&answer, comparison.as_ref()),
        FleetFormat::Html => fleet::html::write(&answer, comparison.as_ref()),
        FleetFormat::Prometheus => fleet::metrics::write(&answer, comparison.as_ref()),
    })?;
    let limit = matches.get_one::<String>("fail-on").and_then(|name| Severity::by_name(name));
    limit.map_or(Ok(()), |severity| judge(&answer, comparison.as_ref(), severity))
}

/// Collects the pods that manifests describe.
fn from_manifests(
    matches: &ArgMatches,
    manifests: &Path,
    injector: &Injector,
    node: &NodeOptions,
    shapes: &mut Shapes,
) -> Result<Collected, CliError> {
    let mut names = matches.get_many::<String>("namespace").into_iter().flatten();
    let namespace = names.next().map_or("default", String::as_str);
    if names.next().is_some() {
        return Err(CliError::Usage("--namespace: with --manifests it can be given once".into()));
    }
    let documents = documents(manifests, namespace)?;
    if documents.templates.is_empty() && documents.broken.is_empty() {
        // A gate that looks at nothing must not pass.
        return Err(CliError::Usage(format!(
            "--manifests: {}: no workload is there to be looked at ({} documents that make no pods)",
            manifest::shown(manifests),
            documents.passed_over
        )));
    }
    let mut facts = ClusterFacts::default();
    if let Some(path) = matches.get_one::<PathBuf>("facts") {
        facts.text(&manifest::shown(path), &manifest::read_up_to(LARGEST, "--facts", path)?);
    }
    let mut collected = Collected {
        about: format!("manifests in {}", manifest::shown(manifests)),
        live: documents.templates.iter().any(|template| template.node.is_some()),
        passed_over: documents.passed_over,
        ..Collected::default()
    };
    let eye = Eye { injector, node, facts: &facts };
    let mut assumed = 0;
    for template in documents.templates {
        let labels = documents.namespaces.get(&template.workload.namespace);
        let standing = injector.decide(&template.pod, labels);
        assumed += usize::from(standing == InjectorVerdict::Injected { assumed: true });
        collected.add(eye.look(template, standing, shapes));
    }
    let missed = documents.broken.into_iter();
    collected.missed.extend(missed.map(|broken| Missed { what: broken.place.to_string(), why: broken.problem }));
    if assumed > 0 {
        collected.notices.push(format!(
            "{}, of which no document describes the namespace, taken to be in one that is labelled for injection (add the Namespaces, such as kubectl get namespaces -o yaml)",
            fleet::text::counted(assumed as u64, "workload")
        ));
    }
    collected.missed.extend(facts.missed);
    Ok(collected)
}

/// Fails if findings count for `--fail-on`, and names them in one line.
fn judge(answer: &FleetAnswer, comparison: Option<&Comparison>, severity: Severity) -> Result<(), CliError> {
    const NAMED: usize = 3;
    let (total, which, how): (usize, Vec<String>, _) = match comparison {
        Some(comparison) => {
            let found = comparison.from(severity);
            let name = |(change, row): &(&str, &fleet::compare::ChangedFinding)| format!("{change} {row}");
            (found.len(), found.iter().take(NAMED).map(name).collect(), "and new or worse than in the baseline")
        }
        None => {
            let found = answer.from(severity);
            let name = |(name, count): &(String, usize)| match count {
                1 => name.clone(),
                count => format!("{name} ({count} workloads)"),
            };
            let total = found.iter().map(|(_, count)| count).sum();
            (total, found.iter().take(NAMED).map(name).collect(), "and not accepted")
        }
    };
    if total > 0 {
        let findings = if total == 1 { "finding of a workload is" } else { "findings of workloads are" };
        let more = if which.len() == NAMED { "; …" } else { "" };
        return Err(CliError::Failed(format!(
            "{total} {findings} of severity {severity} or worse, {how}: {}{more}",
            which.join("; ")
        )));
    }
    // What could not be looked at may be anything.
    match answer.missed.first() {
        Some(missed) => Err(CliError::Failed(format!(
            "the answer is partial, which --fail-on does not let pass: {} not looked at: {}: {}",
            answer.missed.len(),
            missed.what,
            missed.why
        ))),
        None => Ok(()),
    }
}

/// Reads the documents below a folder, in one file, or on standard input.
fn documents(path: &Path, namespace: &str) -> Result<Documents, CliError> {
    let mut out = Documents::default();
    let mut files = Vec::new();
    if path != Path::new("-") && path.is_dir() {
        list(path, 0, &mut files)?;
        files.sort();
        if files.is_empty() {
            let problem = format!("--manifests: {} holds no file that ends in .yaml, .yml or .json", path.display());
            return Err(CliError::Usage(problem));
        }
    } else {
        files.push(path.to_owned());
    }
    for file in files {
        let text = manifest::read_up_to(LARGEST, "--manifests", &file)?;
        out.add(&manifest::shown(&file), &text, namespace).map_err(|e| CliError::Usage(format!("--manifests: {e}")))?;
    }
    Ok(out)
}

fn list(folder: &Path, depth: usize, out: &mut Vec<PathBuf>) -> Result<(), CliError> {
    let failed = |e: io::Error| CliError::Failed(format!("--manifests: cannot read {}: {e}", folder.display()));
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        // A link to a file is one; a link to a folder could lead in a circle.
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        if is_folder && !is_hidden {
            if depth == DEEPEST {
                return Err(CliError::Usage(format!("--manifests: {} is too deep a folder", path.display())));
            }
            list(&path, depth + 1, out)?;
        } else if path.is_file() && !is_hidden {
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            out.extend(ENDINGS.contains(&ending).then_some(path));
        }
    }
    Ok(())
}
