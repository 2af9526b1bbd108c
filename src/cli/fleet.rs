//! `podweir audit --manifests`: what everything that a repository would put into a cluster
//! lets past the proxies.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::audit::accept::{Accepted, Subject};
use crate::audit::escapes::kind::Severity;
use crate::audit::fleet::compare::{Baseline, Comparison};
use crate::audit::fleet::shapes::{Asked, Shapes};
use crate::audit::fleet::sum::FleetAnswer;
use crate::audit::fleet::{self, Collected, KnownBy, Looked, Missed, Standing, Variant};
use crate::audit::source::options::{self, KnownPod};
use crate::config::facts::families_of;
use crate::config::given::Given;
use crate::config::pod::documents::{Documents, PodTemplate};
use crate::config::pod::injector::{Injector, InjectorVerdict};
use crate::config::pod::manifest::{Manifest, PodOptions};
use crate::config::pod::{NodeOptions, model::Pod};
use crate::config::settings::Face;
use crate::config::types::Families;

use super::error::CliError;
use super::{manifest, output, source};

/// The most bytes of one file of manifests.
const LARGEST: u64 = 256 << 20;
/// How deep folders are gone into.
const DEEPEST: usize = 32;
/// How the files are called that hold manifests.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Options that are about one pod, and mean nothing for many.
const OF_ONE: [&str; 10] =
    ["pod-manifest", "live", "netns", "pid", "dump", "pod-ip", "uplink", "dns-server", "as", "options"];

pub const HELP: &str = "\
--manifests DIR takes rendered manifests (a folder of YAML and JSON, a file, or - for
standard input: helm template . | podweir audit --manifests -), adds to each pod what
Istio's injector would, and reports by workload. --injector-values FILE says what the mesh's
injector was told: a chart's values, or kubectl -n istio-system get configmap
istio-sidecar-injector istio -o yaml. Without it, a mesh as installed, with the CNI plugin.
Whether a namespace's pods are injected its labels say; where no Namespace is among the
documents, it is assumed (kubectl get namespaces -o yaml is one more file).
--baseline FILE, an earlier --format json, says what is new, gone or worse; then
--fail-on is about that alone.
";

/// Adds the arguments.
pub fn with_fleet(command: Command) -> Command {
    let heading = "Many pods";
    let file = |name: &'static str| {
        Arg::new(name).long(name).value_name("FILE").value_parser(value_parser!(PathBuf)).help_heading(heading)
    };
    command.args([
        Arg::new("manifests")
            .long("manifests")
            .value_name("DIR|FILE|-")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with_all(OF_ONE)
            .help_heading(heading)
            .help("Every workload of rendered manifests; - is standard input"),
        file("injector-values")
            .requires("manifests")
            .help("What the mesh's injector was told: values of its chart, or its ConfigMap"),
        Arg::new("namespace")
            .long("namespace")
            .value_name("NAME")
            .requires("manifests")
            .default_value("default")
            .help_heading(heading)
            .help("Where objects are whose manifests do not say so"),
        file("baseline").requires("manifests").help("An earlier --format json: what is new, gone or worse since"),
    ])
}

/// Whether many pods are asked for.
pub fn is_asked(matches: &ArgMatches) -> bool {
    matches.contains_id("manifests")
}

/// How the answer is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetFormat {
    Text,
    Json,
    Sarif,
    Html,
    Prometheus,
}

/// Answers for everything in the manifests.
///
/// # Errors
/// When a file cannot be read, nothing is there to be looked at, or `--fail-on` says so.
pub fn run(matches: &ArgMatches, format: FleetFormat, accepted: &Accepted) -> Result<(), CliError> {
    let path = |name: &str| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let Some(manifests) = path("manifests") else { return Err(CliError::Usage("--manifests: of what?".into())) };
    let stdin = ["manifests", "injector-values", "baseline", "accept", "netconf"];
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
    let namespace = matches.get_one::<String>("namespace").map_or("default", String::as_str);
    let documents = documents(manifests, namespace)?;
    if documents.templates.is_empty() && documents.broken.is_empty() {
        // A gate that looks at nothing must not pass.
        let passed = documents.passed_over;
        let problem = format!("no workload is there to be looked at ({passed} documents that make no pods)");
        return Err(named("--manifests", manifests, problem));
    }
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let mut shapes = Shapes::new(accepted, today);
    let mut collected = Collected {
        about: format!("manifests in {}", manifest::shown(manifests)),
        passed_over: documents.passed_over,
        ..Collected::default()
    };
    let mut assumed = 0;
    for template in documents.templates {
        let labels = documents.namespaces.get(&template.workload.namespace);
        let standing = injector.decide(&template.pod, labels);
        assumed += usize::from(standing == InjectorVerdict::Injected { assumed: true });
        collected.add(look(template, standing, &injector, &node, &mut shapes));
    }
    let missed = documents.broken.into_iter();
    collected.missed.extend(missed.map(|broken| Missed { what: broken.place.to_string(), why: broken.problem }));
    if assumed > 0 {
        collected.notices.push(format!(
            "{assumed} of the workloads are in namespaces that no document describes: they are taken to be labelled for injection (add the Namespaces, such as kubectl get namespaces -o yaml)"
        ));
    }
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

/// Whether it is good enough, and in one line what is not.
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

/// What a template's pods would be.
fn look(
    template: PodTemplate,
    standing: InjectorVerdict,
    injector: &Injector,
    node: &NodeOptions,
    shapes: &mut Shapes,
) -> Looked {
    let labels = template.pod.labels();
    let subject = Subject {
        namespace: &template.workload.namespace,
        workload: (&template.workload.kind, &template.workload.name),
        labels: &labels,
    };
    let mut own = Vec::new();
    let standing = match standing {
        InjectorVerdict::HostNetwork => Standing::HostNetwork,
        InjectorVerdict::Ambient => Standing::Ambient,
        InjectorVerdict::LeftAlone(why) => Standing::LeftAlone(why),
        InjectorVerdict::Outside(why) => Standing::Outside(why),
        InjectorVerdict::AsItIs => intercepted(template.pod, node, &subject, shapes, &mut own),
        InjectorVerdict::Injected { .. } => {
            intercepted(injector.inject(&template.pod), node, &subject, shapes, &mut own)
        }
    };
    let variant = Variant {
        standing,
        origin: KnownBy::Manifest,
        count: template.pods,
        pods: Vec::new(),
        place: Some(template.place),
        own,
    };
    Looked { workload: template.workload, labels, variant }
}

/// The interception that a pod asks for, and what its containers could do to it.
fn intercepted(
    pod: Pod,
    node: &NodeOptions,
    subject: &Subject,
    shapes: &mut Shapes,
    own: &mut Vec<std::sync::Arc<fleet::FleetFinding>>,
) -> Standing {
    let manifest = match Manifest::of(pod) {
        Ok(manifest) => manifest,
        Err(e) => return Standing::Refused(e.to_string()),
    };
    let (given, face, notes) = match manifest.wanted(node) {
        Ok(PodOptions::Init { arguments, variables }) => match source::given_of_init(&arguments, &variables) {
            Ok((given, face)) => (given, face, Vec::new()),
            Err(e) => return Standing::Refused(e.to_string()),
        },
        Ok(PodOptions::Annotations(given, notes)) => (given, Face::Init, notes),
        Err(crate::config::pod::manifest::ManifestError::LeftAlone(why)) => {
            return Standing::LeftAlone(why.to_string());
        }
        Err(e) => return Standing::Refused(e.to_string()),
    };
    match shapes.find(subject, asked(&manifest, &given, face, notes)) {
        Ok(shape) => {
            own.extend(shapes.of_containers(subject, shape, &manifest));
            Standing::Intercepted(shape)
        }
        Err(problem) => Standing::Refused(problem),
    }
}

/// What to audit: the same text for all pods that ask for the same.
fn asked<'a>(manifest: &Manifest, given: &'a Given, face: Face, notes: Vec<String>) -> Asked<'a> {
    // Addresses differ from pod to pod, and findings do not by them: their families count.
    let families = families_of(&manifest.addresses);
    let options: Vec<String> = given.iter().map(|(opt, _, text)| format!("{opt:?}={text}")).collect();
    let key = format!("{face:?} {families:?} {:?} {:?} {options:?}", manifest.dns_servers, given.envoy_user());
    let known = KnownPod {
        dns_servers: manifest.dns_servers.clone(),
        assumed: Some(if families.is_empty() { Families::BOTH } else { families }),
        ..KnownPod::default()
    };
    let source = move || {
        let mut source = options::read(given, face, &known).map_err(|e| e.to_string())?;
        // What is assumed of all is said once, in other words.
        source.notes = notes;
        Ok((source, None))
    };
    Asked { key, proxy_user: manifest.proxy_user(), source: Box::new(source) }
}

/// Everything below a folder, one file, or standard input.
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
