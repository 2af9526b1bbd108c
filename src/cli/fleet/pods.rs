//! Audits a pod: by its manifest, with what an injector adds, and by the rules of its node's kernel if
//! an agent reported them.

use std::sync::Arc;

use crate::audit::accept::Subject;
use crate::audit::escapes::kind::Severity;
use crate::audit::fleet::facts::{ClusterFacts, Fact};
use crate::audit::fleet::shapes::{Asked, Shapes};
use crate::audit::fleet::{FleetFinding, KnownBy, Looked, PodOutcome, WorkloadVariant};
use crate::config::facts::families_of;
use crate::config::pod::documents::PodTemplate;
use crate::config::pod::injector::Injector;
use crate::config::pod::injector::required::InjectorVerdict;
use crate::config::pod::manifest::{Manifest, ManifestError, PodOptions};
use crate::config::pod::{NodeOptions, model::Pod};
use crate::config::settings::Face;

use crate::cli::source;

/// What is needed to audit a pod: the injector, the node's options, the facts that agents told.
pub(super) struct Eye<'a> {
    pub injector: &'a Injector,
    pub node: &'a NodeOptions,
    pub facts: &'a ClusterFacts,
}

impl Eye<'_> {
    /// Audits the pods of a template. `standing`: the injector's decision about them.
    pub(super) fn look(&self, template: PodTemplate, standing: InjectorVerdict, shapes: &mut Shapes) -> Looked {
        let labels = template.pod.labels();
        let subject = Subject {
            namespace: &template.workload.namespace,
            workload: (&template.workload.kind, &template.workload.name),
            labels: &labels,
        };
        let fact = template.uid.as_deref().and_then(|uid| self.facts.of(uid));
        let mut own = Vec::new();
        let by_kernel = fact.and_then(|fact| self.by_kernel(fact, &template, &standing, &subject, shapes, &mut own));
        let (standing, origin) = match by_kernel {
            Some(standing) => (standing, KnownBy::Kernel),
            None => (self.by_manifest(&template, standing, &subject, shapes, &mut own), KnownBy::Manifest),
        };
        let is_there = template.node.is_some();
        let pods = is_there.then(|| template.pod.full_name()).into_iter().collect();
        let place = (!is_there).then_some(template.place);
        let variant = WorkloadVariant { standing, origin, count: template.pods, pods, place, own };
        Looked { workload: template.workload, labels, variant }
    }

    fn by_manifest(
        &self,
        template: &PodTemplate,
        standing: InjectorVerdict,
        subject: &Subject,
        shapes: &mut Shapes,
        own: &mut Vec<Arc<FleetFinding>>,
    ) -> PodOutcome {
        match standing {
            InjectorVerdict::HostNetwork => PodOutcome::HostNetwork,
            InjectorVerdict::Ambient => PodOutcome::Ambient,
            InjectorVerdict::LeftAlone(why) => PodOutcome::LeftAlone(why),
            InjectorVerdict::Outside(why) => PodOutcome::Outside(why),
            InjectorVerdict::AsItIs => self.intercepted(template.pod.clone(), subject, shapes, own),
            // A pod that is there has been at the injector, or will not be.
            InjectorVerdict::Injected { assumed: true } if template.node.is_some() => {
                PodOutcome::Outside("it has no sidecar; what its namespace asks for is not known".into())
            }
            InjectorVerdict::Injected { .. } if template.node.is_some() => PodOutcome::NotIntercepted(
                "it or its namespace asks for a sidecar, and it has none: it is older than the label, or the injector was away".into(),
            ),
            InjectorVerdict::Injected { .. } => match self.injector.inject(&template.pod) {
                Ok(pod) => self.intercepted(pod, subject, shapes, own),
                Err(problem) => PodOutcome::Refused(problem),
            },
        }
    }

    /// The outcome by the rules in the kernel, if an agent reported the pod.
    fn by_kernel(
        &self,
        fact: &Fact,
        template: &PodTemplate,
        standing: &InjectorVerdict,
        subject: &Subject,
        shapes: &mut Shapes,
        own: &mut Vec<Arc<FleetFinding>>,
    ) -> Option<PodOutcome> {
        if ["enrolled", "pending"].contains(&fact.state.as_str()) {
            return Some(PodOutcome::Ambient);
        }
        let number = fact.rules?;
        let found = self.facts.source(number)?;
        let manifest = Manifest::of(template.pod.clone()).ok()?;
        if found.held.is_empty() {
            let wants = *standing == InjectorVerdict::AsItIs && manifest.wanted(self.node).is_ok();
            let why = || fact.why.clone().unwrap_or_else(|| "the kernel has no rules of an interception".into());
            // Without rules a pod is what its manifest says that it is to be.
            return wants.then(|| PodOutcome::NotIntercepted(why()));
        }
        let asked = Asked {
            key: format!("kernel {number}"),
            proxy_user: manifest.proxy_user(),
            source: Box::new(|| Ok((found.clone(), None))),
        };
        match shapes.find(subject, asked) {
            Ok(shape) => {
                own.extend(shapes.of_containers(subject, shape, &manifest));
                own.extend((fact.state == "drifted").then(|| Arc::new(drift(fact))));
                Some(PodOutcome::Intercepted(shape))
            }
            Err(problem) => Some(PodOutcome::Unknown(problem)),
        }
    }

    /// The outcome for a pod's options, with findings about its containers.
    fn intercepted(
        &self,
        pod: Pod,
        subject: &Subject,
        shapes: &mut Shapes,
        own: &mut Vec<Arc<FleetFinding>>,
    ) -> PodOutcome {
        let manifest = match Manifest::of(pod) {
            Ok(manifest) => manifest,
            Err(e) => return PodOutcome::Refused(e.to_string()),
        };
        let (given, face, notes) = match manifest.wanted(self.node) {
            Ok(PodOptions::Init { arguments, variables }) => match source::given_of_init(&arguments, &variables) {
                Ok((given, face)) => (given, face, Vec::new()),
                Err(e) => return PodOutcome::Refused(e.to_string()),
            },
            Ok(PodOptions::Annotations(given, notes)) => (given, Face::Init, notes),
            Err(ManifestError::LeftAlone(why)) => return PodOutcome::LeftAlone(why.to_string()),
            Err(e) => return PodOutcome::Refused(e.to_string()),
        };
        let families = families_of(&manifest.addresses);
        let servers = manifest.dns_servers.clone();
        let asked = Asked::of_options(&given, face, families, servers, manifest.proxy_user(), notes);
        match shapes.find(subject, asked) {
            Ok(shape) => {
                own.extend(shapes.of_containers(subject, shape, &manifest));
                PodOutcome::Intercepted(shape)
            }
            Err(problem) => PodOutcome::Refused(problem),
        }
    }
}

/// A finding for rules that differ from the wanted ones, as an agent reported.
fn drift(fact: &Fact) -> FleetFinding {
    FleetFinding {
        id: "drift".into(),
        severity: if fact.escapes { Severity::High } else { Severity::Medium },
        title: "the rules are not what they should be".into(),
        meaning: String::new(),
        items: Vec::new(),
        what: fact.why.iter().cloned().collect(),
        by: Vec::new(),
        example: None,
        closes: "the node's agent repairs it, unless it runs with --heal false: podweir node why NAMESPACE/POD".into(),
        accepted: None,
    }
}
