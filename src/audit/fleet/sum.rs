//! From pods to an answer: the findings of each workload, findings that many workloads have, and how
//! many pods are in which state.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::audit::accept::Subject;
use crate::audit::escapes::kind::Severity;
use crate::config::pod::owner::Workload;

use super::shapes::{Shape, Shapes};
use super::{Collected, FleetFinding, KnownBy, Members, Missed, PodOutcome, WorkloadVariant};

/// The answer of an audit of many pods.
pub struct FleetAnswer {
    pub about: String,
    pub live: bool,
    /// All workloads, by namespace, kind and name.
    pub workloads: Vec<Summed>,
    /// Findings, the worst first; one that many workloads have is listed once.
    pub groups: Vec<FindingGroup>,
    pub shapes: Vec<Shape>,
    /// How many pods each interception has.
    pub pods_of: Vec<u64>,
    pub missed: Vec<Missed>,
    pub passed_over: usize,
    pub notices: Vec<String>,
}

/// A workload with its findings.
pub struct Summed {
    pub workload: Workload,
    pub labels: BTreeMap<String, String>,
    pub variants: Vec<WorkloadVariant>,
    /// The findings, each with the number of pods that have it.
    pub findings: Vec<(Arc<FleetFinding>, u64)>,
}

/// A finding with the workloads that have it, by index, and the number of their pods.
pub struct FindingGroup {
    pub finding: Arc<FleetFinding>,
    pub workloads: Vec<(usize, u64)>,
}

impl Summed {
    pub fn pods(&self) -> u64 {
        self.variants.iter().map(|variant| variant.count).sum()
    }

    /// The worst of its findings that counts.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().filter(|(found, _)| found.accepted.is_none()).map(|(found, _)| found.severity).max()
    }
}

/// Findings of which the reason is all that there is to tell.
pub const WITH_REASON: [&str; 2] = ["not-intercepted", "refused"];

/// The key by which findings are counted as one: severity, class, items and acceptance, and the reason
/// for those in [`WITH_REASON`].
fn key(found: &FleetFinding) -> (Reverse<Severity>, String, Vec<String>, Option<String>, Vec<String>) {
    let reason = found.accepted.as_ref().map(|acceptance| acceptance.reason.clone());
    let why = if WITH_REASON.contains(&found.id.as_str()) { found.what.clone() } else { Vec::new() };
    (Reverse(found.severity), found.id.clone(), found.items.clone(), reason, why)
}

impl FleetAnswer {
    pub fn of(collected: Collected, mut shapes: Shapes) -> Self {
        let mut workloads = Vec::new();
        let mut pods_of = vec![0; shapes.all.len()];
        for (workload, members) in collected.workloads {
            for variant in &members.variants {
                if let PodOutcome::Intercepted(shape) = variant.standing
                    && let Some(count) = pods_of.get_mut(shape)
                {
                    *count += variant.count;
                }
            }
            workloads.push(summed(workload, members, &mut shapes));
        }
        let mut groups: BTreeMap<_, FindingGroup> = BTreeMap::new();
        for (at, summed) in workloads.iter().enumerate() {
            for (found, pods) in &summed.findings {
                let group = groups
                    .entry((found.accepted.is_some(), key(found)))
                    .or_insert_with(|| FindingGroup { finding: Arc::clone(found), workloads: Vec::new() });
                group.workloads.push((at, *pods));
            }
        }
        let mut notices = collected.notices;
        notices.extend(shapes.about_entries());
        notices.extend(shapes.notices.iter().cloned());
        Self {
            about: collected.about,
            live: collected.live,
            workloads,
            groups: groups.into_values().collect(),
            shapes: shapes.all,
            pods_of,
            missed: collected.missed,
            passed_over: collected.passed_over,
            notices,
        }
    }

    /// How many findings of workloads count, of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.counting().filter(|group| group.finding.severity == severity).map(|group| group.workloads.len()).sum()
    }

    fn counting(&self) -> impl Iterator<Item = &FindingGroup> {
        self.groups.iter().filter(|group| group.finding.accepted.is_none())
    }

    /// How many findings of workloads are accepted.
    pub fn accepted(&self) -> usize {
        self.groups.iter().filter(|g| g.finding.accepted.is_some()).map(|group| group.workloads.len()).sum()
    }

    /// The findings that count and have a severity or a higher one, with how many workloads have them.
    pub fn from(&self, severity: Severity) -> Vec<(String, usize)> {
        let found = self.counting().filter(|group| group.finding.severity >= severity);
        found.map(|group| (group.finding.name(), group.workloads.len())).collect()
    }

    pub fn pods(&self) -> u64 {
        self.workloads.iter().map(Summed::pods).sum()
    }

    pub fn namespaces(&self) -> BTreeSet<&str> {
        self.workloads.iter().map(|summed| summed.workload.namespace.as_str()).collect()
    }

    /// How many distinct interceptions there are; a difference in what is accepted does not count.
    pub fn interceptions(&self) -> usize {
        self.shapes.iter().map(|shape| (&shape.digest, shape.families.to_string())).collect::<BTreeSet<_>>().len()
    }

    /// The workloads and pods by their outcome and its reason.
    pub fn standings(&self) -> Vec<Stand> {
        let mut out: BTreeMap<(usize, Option<String>), Stand> = BTreeMap::new();
        for (at, summed) in self.workloads.iter().enumerate() {
            for variant in &summed.variants {
                let name = variant.standing.name();
                let order =
                    PodOutcome::NAMES.iter().position(|known| *known == name).unwrap_or(PodOutcome::NAMES.len());
                let why = variant.standing.why().map(str::to_owned);
                let stand = out.entry((order, why.clone())).or_insert_with(|| Stand {
                    name,
                    why,
                    workloads: Vec::new(),
                    pods: 0,
                });
                stand.pods += variant.count;
                if stand.workloads.last() != Some(&at) {
                    stand.workloads.push(at);
                }
            }
        }
        out.into_values().collect()
    }
}

/// Workloads with one injection status and reason.
pub struct Stand {
    pub name: &'static str,
    pub why: Option<String>,
    pub workloads: Vec<usize>,
    pub pods: u64,
}

fn summed(workload: Workload, members: Members, shapes: &mut Shapes) -> Summed {
    let Members { labels, variants } = members;
    let subject =
        Subject { namespace: &workload.namespace, workload: (&workload.kind, &workload.name), labels: &labels };
    let mut findings: BTreeMap<_, (Arc<FleetFinding>, u64)> = BTreeMap::new();
    let mut add = |found: Arc<FleetFinding>, pods: u64| {
        findings.entry((found.accepted.is_some(), key(&found))).or_insert((found, 0)).1 += pods;
    };
    for variant in &variants {
        match &variant.standing {
            PodOutcome::Intercepted(shape) => {
                let found = shapes.all.get(*shape).map(|shape| shape.findings.clone()).unwrap_or_default();
                found.into_iter().for_each(|found| add(found, variant.count));
            }
            PodOutcome::NotIntercepted(why) | PodOutcome::Refused(why) => {
                let found = shapes.of_pods(&subject, variant.standing.name(), vec![why.clone()]);
                add(Arc::new(found), variant.count);
            }
            _ => {}
        }
        variant.own.iter().for_each(|found| add(Arc::clone(found), variant.count));
    }
    if let Some(what) = differences(&variants, &shapes.all) {
        add(Arc::new(shapes.of_pods(&subject, "pods-differ", what)), variants.iter().map(|v| v.count).sum());
    }
    let findings = findings.into_values().collect();
    Summed { workload, labels, variants, findings }
}

/// The differences between pods of one workload, a line for each kind of them; `None` if there are none.
/// Pods that could not be audited differ from nothing. Those known by their kernel are compared with
/// each other, and those known by their manifest with each other: that one node has an agent and another
/// has none is no difference.
fn differences(variants: &[WorkloadVariant], shapes: &[Shape]) -> Option<Vec<String>> {
    let mut kinds: BTreeMap<(KnownBy, String), (u64, &str)> = BTreeMap::new();
    let mut sidecars: BTreeSet<bool> = BTreeSet::new();
    for variant in variants.iter().filter(|variant| !matches!(variant.standing, PodOutcome::Unknown(_))) {
        let kind = match &variant.standing {
            PodOutcome::Intercepted(at) => {
                let shape = shapes.get(*at);
                let digest = shape.map(|shape| shape.digest.trim_start_matches("sha256:")).unwrap_or_default();
                let families = shape.map(|shape| shape.families.to_string()).unwrap_or_default();
                format!("intercepted as {} ({families})", digest.chars().take(12).collect::<String>())
            }
            other => other.name().to_owned(),
        };
        sidecars.extend(has_sidecar(variant));
        let first = variant.pods.first().map(String::as_str).unwrap_or_default();
        kinds.entry((variant.origin, kind)).or_insert((0, first)).0 += variant.count;
    }
    let of = |origin: KnownBy| kinds.keys().filter(|(known, _)| *known == origin).count();
    if of(KnownBy::Kernel) <= 1 && of(KnownBy::Manifest) <= 1 && sidecars.len() <= 1 {
        return None;
    }
    let line = |((origin, kind), (count, first)): (&(KnownBy, String), &(u64, &str))| {
        let example = if first.is_empty() { String::new() } else { format!(", such as {first}") };
        format!("{count} {kind}, by the {}{example}", origin.name())
    };
    Some(kinds.iter().map(line).collect())
}

/// Whether pods have a sidecar, which their manifests say wherever they are; ambient mode needs
/// none, and only a node's agent may know of it.
fn has_sidecar(variant: &WorkloadVariant) -> Option<bool> {
    match (&variant.standing, variant.origin) {
        (PodOutcome::Ambient | PodOutcome::Unknown(_), _) => None,
        (PodOutcome::Intercepted(_) | PodOutcome::Refused(_), _) | (PodOutcome::NotIntercepted(_), KnownBy::Kernel) => {
            Some(true)
        }
        _ => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::types::Families;

    fn variant(standing: PodOutcome, origin: KnownBy) -> WorkloadVariant {
        WorkloadVariant { standing, origin, count: 2, pods: vec!["a/b".into()], place: None, own: Vec::new() }
    }

    #[test]
    fn a_node_that_does_not_tell_makes_no_difference_and_a_sidecar_less_does() {
        use KnownBy::{Kernel, Manifest};
        let shapes: Vec<Shape> =
            ["sha256:1", "sha256:2"].map(|digest| Shape::empty(digest, Families::BOTH)).into_iter().collect();
        let one = || PodOutcome::Intercepted(0);
        let other = || PodOutcome::Intercepted(1);
        let none = || PodOutcome::NotIntercepted(String::new());
        for (list, differ) in [
            (vec![(one(), Kernel), (other(), Manifest)], false),
            (vec![(none(), Kernel), (one(), Manifest)], false),
            (vec![(PodOutcome::Ambient, Kernel), (PodOutcome::Outside(String::new()), Manifest)], false),
            (vec![(one(), Kernel), (PodOutcome::Unknown(String::new()), Kernel)], false),
            (vec![(one(), Kernel), (other(), Kernel)], true),
            (vec![(one(), Manifest), (other(), Manifest)], true),
            (vec![(one(), Kernel), (none(), Kernel)], true),
            (vec![(one(), Kernel), (none(), Manifest)], true),
            (vec![(one(), Manifest), (PodOutcome::LeftAlone(String::new()), Manifest)], true),
        ] {
            let variants: Vec<WorkloadVariant> = list.iter().map(|(s, origin)| variant(s.clone(), *origin)).collect();
            let found = differences(&variants, &shapes);
            assert_eq!(found.is_some(), differ, "{list:?}: {found:?}");
        }
    }
}
