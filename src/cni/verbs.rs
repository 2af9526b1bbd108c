//! The verbs of the CNI specification.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::backend::install::Action;
use crate::backend::iptables::programs::{ProgramEnvironment, Programs, Variant};
use crate::backend::survey;
use crate::config::given::process_environment;
use crate::config::pod::PodId;
use crate::config::settings::{BackendChoice, Face, Run};
use crate::config::types::Family;
use crate::sys::caps;
use crate::sys::netlink::Netlink;
use crate::sys::netns::Netns;
use crate::sys::trust;

use super::agent::{self, message};
use super::confine;
use super::decide;
use super::decision::Decision;
use super::namespace::{self, Job, ProgrammedPod};
use super::netconf::Netconf;
use super::protocol::{self, CniError, Code};
use super::reply::{Delivery, Reply};
use super::request::{Attachment, Deadline, Variables};
use super::state::{self, AttachmentState, KeptNetns, Store};

/// A call whose input was checked.
pub(super) struct Call {
    pub variables: Variables,
    pub netconf: Netconf,
    pub deadline: Deadline,
    pub answer: Arc<Reply>,
}

/// The outcome of ADD for a pod.
enum Became<'a> {
    LeftAlone,
    Intercepted(&'a ProgrammedPod),
    /// The pod was to be intercepted, and that failed.
    Failed,
}

fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

impl Call {
    fn store(&self) -> Store {
        Store::new(&self.netconf.run_dir)
    }

    fn state(&self, pod: Option<&PodId>, netns: &Netns) -> AttachmentState {
        let identity = netns.identity().ok();
        AttachmentState {
            network: self.netconf.name.clone(),
            pod: pod.map(ToString::to_string),
            uid: pod.and_then(|pod| pod.uid.clone()),
            netns: identity.map(|identity| KeptNetns { path: netns.path().to_owned(), identity }),
            left_alone: None,
            options: Default::default(),
        }
    }

    /// Keeps the decision as state. A failure is only logged: CHECK can decide again.
    fn remember(&self, attachment: &Attachment, state: &AttachmentState) {
        if let Err(e) = self.store().save(attachment, state) {
            warn!("cannot keep state in {}: {e}; CHECK will decide anew", self.netconf.run_dir.display());
        }
    }

    fn decide(&self, pod: Option<&PodId>) -> Result<Decision, CniError> {
        let Some(pod) = pod else { return Ok(decide::without_pod(&self.netconf)) };
        if let Some(why) = decide::without_asking(&self.netconf, pod) {
            return Ok(Decision::LeaveAlone(why));
        }
        // From here on there are files and servers that may keep us waiting.
        self.answer.watch(self.deadline)?;
        let attachment = self.variables.attachment()?;
        decide::by_asking(&self.netconf, pod, self.asked(pod, &attachment), &self.deadline)
    }

    /// The request to the node's agent about a pod.
    fn asked(&self, pod: &PodId, attachment: &Attachment) -> message::Decide {
        message::Decide {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            attachment: name_of(attachment),
            netns: self.variables.netns().map(|path| path.display().to_string()).unwrap_or_default(),
        }
    }

    /// Tells the node's agent, if there is one, what was done.
    fn tell_agent(
        &self,
        pod: Option<&PodId>,
        attachment: &Attachment,
        state: &AttachmentState,
        became: Became,
        lookup_ms: f64,
    ) {
        let Some(pod) = pod.filter(|_| agent::is_there(&self.netconf.run_dir)) else { return };
        let asked = self.asked(pod, attachment);
        let options =
            state.options.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().into()));
        let mut phases = BTreeMap::from([
            ("lookup".to_owned(), lookup_ms),
            ("total".to_owned(), ms(self.deadline.started.elapsed())),
        ]);
        let (action, done) = match became {
            Became::LeftAlone => ("left alone", None),
            Became::Intercepted(done) => ("intercepted", Some(done)),
            Became::Failed => (message::FAILED, None),
        };
        if let Some(done) = done {
            phases.extend([("read".to_owned(), ms(done.read)), ("apply".to_owned(), ms(done.apply))]);
        }
        let told = message::Done {
            attachment: asked.attachment,
            namespace: asked.namespace,
            name: asked.name,
            uid: asked.uid,
            netns: asked.netns,
            action: action.into(),
            why: state.left_alone.clone(),
            backend: done.map(|done| done.outcome.backend.name().into()),
            families: done.map(|done| done.families.clone()),
            rules: done.map(|done| done.rules).unwrap_or_default(),
            options: options.collect(),
            phases,
        };
        agent::tell(&self.netconf.run_dir, message::Request::Done(told));
    }

    /// Opens the pod's namespace, and gives up the rights that this took.
    fn open(&self) -> Result<Netns, CniError> {
        let netns = namespace::open(&self.variables.netns()?)?;
        confine::opened(self.backend(), netns.foreign_owner().is_ok_and(|owner| owner.is_some()));
        confine::writes(&self.netconf.run_dir);
        Ok(netns)
    }

    /// The backend that the netconf names; an invalid name is reported later.
    fn backend(&self) -> BackendChoice {
        Run::resolve(&self.netconf.options, Face::Init).map_or(BackendChoice::Auto, |run| run.backend)
    }

    fn job(&self, options: crate::config::given::Given) -> Job {
        Job { options, name_servers: self.netconf.name_servers.clone(), resolv_conf: None, deadline: self.deadline }
    }

    /// ADD: decides, programs, passes the result on.
    pub(super) fn add(self) -> Result<(), CniError> {
        let attachment = self.variables.attachment()?;
        let netns = self.open()?;
        let pod = self.variables.pod()?;
        protocol::check_output()?;
        let result = match &self.netconf.prev_result {
            Some(result) => format!("{}\n", result.get()),
            None => format!("{}\n", protocol::empty_result(self.netconf.version)),
        };
        let started = Instant::now();
        let decision = self.decide(pod.as_ref())?;
        let lookup_ms = ms(started.elapsed());
        let mut state = self.state(pod.as_ref(), &netns);
        match decision {
            Decision::LeaveAlone(why) => {
                state.left_alone = Some(why.to_string());
                self.remember(&attachment, &state);
                if let Delivery::Failed(error) = self.answer.give(&result) {
                    return Err(error);
                }
                self.tell_agent(pod.as_ref(), &attachment, &state, Became::LeftAlone, lookup_ms);
                info!(decision = "left alone", %why, lookup_ms, ms = ms(self.deadline.started.elapsed()), "left alone: {why}");
            }
            Decision::Intercept { options, why, warnings } => {
                warnings.iter().for_each(|warning| warn!("{warning}"));
                state.options = state::to_map(&options);
                self.remember(&attachment, &state);
                let done = namespace::program(netns, self.job(options), &self.answer, &result).inspect_err(|_| {
                    // DEL comes next and removes it as well.
                    let _ = self.store().remove(&attachment);
                    self.tell_agent(pod.as_ref(), &attachment, &state, Became::Failed, lookup_ms);
                })?;
                report(&done, why, lookup_ms, self.deadline.started);
                self.tell_agent(pod.as_ref(), &attachment, &state, Became::Intercepted(&done), lookup_ms);
            }
        }
        Ok(())
    }

    /// CHECK: compares the kernel with the decision of ADD.
    pub(super) fn check(self) -> Result<(), CniError> {
        let attachment = self.variables.attachment()?;
        let netns = self.open()?;
        let pod = self.variables.pod()?;
        let remembered = match self.store().load(&attachment).map_err(|e| e.to_string()) {
            Ok(Some(state)) => state.given().map(|given| Some((state.left_alone, given))),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        };
        let remembered = remembered.unwrap_or_else(|e| {
            warn!("the state kept of this attachment cannot be used: {e}; deciding anew");
            None
        });
        let (left_alone, options) = match remembered {
            Some(decided) => decided,
            None => match self.decide(pod.as_ref())? {
                Decision::LeaveAlone(why) => (Some(why.to_string()), Default::default()),
                Decision::Intercept { options, .. } => (None, options),
            },
        };
        if let Some(why) = left_alone {
            debug!("nothing to check, the pod was left alone: {why}");
            return Ok(());
        }
        let backend = namespace::compare(netns, self.job(options), &self.answer)?.name();
        info!(backend, ms = ms(self.deadline.started.elapsed()), "the kernel holds the pod's rules");
        Ok(())
    }

    /// GC: removes the states of attachments that the runtime does not know any more.
    pub(super) fn gc(self) -> Result<(), CniError> {
        let Some(valid) = &self.netconf.valid_attachments else {
            info!("the netconf has no cni.dev/valid-attachments: everything is kept");
            return Ok(());
        };
        confine::writes(&self.netconf.run_dir);
        let (removed, problems) = self.store().keep_only(&self.netconf.name, valid);
        info!(removed, valid = valid.len(), "forgot the attachments that are gone");
        match problems.is_empty() {
            true => Ok(()),
            false => Err(CniError::new(Code::Io, problems.join("; "))),
        }
    }

    /// STATUS: whether a pod could be set up now, as far as this node alone tells. A
    /// credential or an API server that is away is no reason: from version 1.1.0 on the
    /// runtime makes the node NotReady by this answer, and pods without a sidecar would be
    /// evicted with the others. A pod that needs to be looked up waits in its own ADD.
    pub(super) fn status(self) -> Result<(), CniError> {
        confine::writes(&self.netconf.run_dir);
        let mut problems = Vec::new();
        match caps::missing_for_namespaces() {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => {
                problems.push(format!("the plugin lacks {}: run the container runtime as root", missing.join(" and ")))
            }
            Err(e) => problems.push(format!("cannot tell the plugin's capabilities: {e}")),
        }
        problems.extend(self.backend_problem());
        // A folder that is not there yet is made when there is something to put into it.
        let run_dir = trust::directory(&self.netconf.run_dir);
        problems.extend(run_dir.err().filter(|e| !e.is_missing()).map(|e| format!("the run directory: {e}")));
        if problems.is_empty() {
            debug!("ready");
            return Ok(());
        }
        Err(CniError::new(Code::NotAvailable, format!("podweir cannot set pods up: {}", problems.join("; "))))
    }

    fn backend_problem(&self) -> Option<String> {
        let run = match Run::resolve(&self.netconf.options, Face::Init) {
            Ok(run) => run,
            Err(e) => return Some(e.to_string()),
        };
        let netfilter = Netlink::open(Netlink::NETFILTER).ok();
        let nftables = netfilter.is_some_and(|mut netlink| {
            survey::survey(Some(&mut netlink)).is_ok_and(|survey| survey.nftables.is_some())
        });
        let iptables = |variant| {
            let path = process_environment("PATH").unwrap_or_default().into();
            let environment = ProgramEnvironment { path, ..ProgramEnvironment::default() };
            let programs = Programs::new(variant, environment, run.lock_timeout);
            programs.check(Family::V4).map_err(|e| e.to_string())
        };
        let result = match run.backend {
            BackendChoice::Nftables if !nftables => Err("the kernel's nf_tables cannot be used".into()),
            BackendChoice::IptablesNft if !nftables => Err("the kernel's nf_tables cannot be used".into()),
            BackendChoice::IptablesNft => iptables(Variant::Nft),
            BackendChoice::IptablesLegacy => iptables(Variant::Legacy),
            _ if nftables => Ok(()),
            _ => iptables(Variant::Legacy)
                .map_err(|e| format!("the kernel's nf_tables cannot be used, and there is {e}")),
        };
        result.err()
    }
}

/// Logs one line with the decision, its reason, and what was done.
fn report(done: &ProgrammedPod, why: &str, lookup_ms: f64, started: Instant) {
    done.warnings.iter().chain(&done.established.warnings).for_each(|warning| warn!("{warning}"));
    done.established.infos.iter().for_each(|info| info!("{info}"));
    let action = match done.outcome.action {
        Action::Installed => "installed",
        Action::Replaced => "replaced",
        Action::Unchanged => "unchanged",
        Action::Removed | Action::Nothing => "removed",
    };
    info!(
        decision = "intercepted",
        why,
        action,
        backend = done.outcome.backend.name(),
        families = done.families.as_str(),
        rules = done.rules,
        lookup_ms,
        read_ms = ms(done.read),
        apply_ms = ms(done.apply),
        ms = ms(started.elapsed()),
        "intercepted: {why}"
    );
}

fn name_of(attachment: &Attachment) -> message::AttachmentName {
    message::AttachmentName { container: attachment.container_id.clone(), interface: attachment.ifname.clone() }
}

/// DEL: removes the state of the attachment. Nothing has to be removed from a namespace that goes away,
/// and nothing may keep a pod from being deleted.
pub(super) fn del(variables: &Variables, run_dir: &std::path::Path) {
    match variables.attachment() {
        Ok(attachment) => {
            match Store::new(run_dir).remove(&attachment) {
                Ok(()) => debug!("forgot the attachment"),
                Err(e) => warn!("cannot forget the attachment in {}: {e}", run_dir.display()),
            }
            if agent::is_there(run_dir) {
                agent::tell(run_dir, message::Request::Forget(name_of(&attachment)));
            }
        }
        Err(e) => warn!("nothing is forgotten: {e}"),
    }
}
