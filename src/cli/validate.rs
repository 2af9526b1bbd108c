//! `--run-validation`: proves that the rules work, or names those that do not.

use std::io;

use tracing::{debug, info, warn};

use crate::audit::flow::Taker;
use crate::audit::source::live::{self, Live};
use crate::audit::source::options;
use crate::audit::verification::TrafficChange;
use crate::audit::verify;
use crate::backend::install::Session;
use crate::backend::limit::Most;
use crate::backend::listing::ListedTable;
use crate::config::interception::Interception;
use crate::config::settings::Settings;
use crate::config::types::Mode;
use crate::plan::diff;
use crate::plan::model::{ChainName, Plan, Table};
use crate::probe::{self, FailedPath, Path, PathKind, PortHolder, Setup, Suspect};
use crate::sys::caps;
use crate::sys::netlink::Netlink;

use super::error::CliError;
use super::session;

/// The file in which Kubernetes reads a container's termination message.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Tests the rules that are in the kernel against the plan.
pub(super) fn run(settings: &Settings, plan: &Plan) -> Result<(), CliError> {
    let suspects = suspects(settings);
    let setup = Setup {
        interception: &settings.interception,
        plan,
        addresses: &settings.addresses,
        port: settings.run.probe_port,
        timeout: settings.run.probe_timeout,
        suspects: &suspects,
    };
    let problem = match probe::run(&setup) {
        Ok(Ok(report)) => {
            for (path, why) in &report.untested {
                warn!("validation: {path} is not tested: {why}");
            }
            say_who_has_ports(&report.occupied, settings);
            let passed: Vec<String> = report.passed.iter().map(Path::to_string).collect();
            if !passed.is_empty() {
                info!(paths = %passed.join(", "), "validated");
                return Ok(());
            }
            if let Some(holder) = report.occupied.first() {
                // Nothing is known about the rules, least of all that they are wrong.
                return Err(CliError::Failed(format!(
                    "cannot validate: port {} is somebody else's already, and nothing else could be tested; validate before the proxy starts",
                    holder.port
                )));
            }
            "validation failed: nothing could be tested".into()
        }
        Ok(Err(failure)) => explain(&failure, settings, plan),
        Err(problem) => format!("validation failed: {problem}"),
    };
    termination_log(&problem);
    Err(CliError::Validation(problem))
}

/// Logs who listens on the ports that rules divert to: the proxy, if validation runs after its start; or
/// another process, which gets its connections.
fn say_who_has_ports(holders: &[PortHolder], settings: &Settings) {
    let Interception { mode, proxy_uids, .. } = &settings.interception;
    let is_proxys = |user: &u32| proxy_uids.contains(user) || (*mode == Mode::Tproxy && *user == 0);
    for PortHolder { port, users } in holders {
        let others: Vec<String> = users.iter().filter(|user| !is_proxys(user)).map(u32::to_string).collect();
        if users.is_empty() {
            info!("somebody listens on port {port} already: that connections get there is validated");
        } else if others.is_empty() {
            info!("the proxy listens on port {port} already: that connections get there is validated");
        } else {
            warn!(
                "port {port} is taken by user {}, who is not the proxy's (-u): what the rules divert goes there",
                others.join(", ")
            );
        }
    }
}

/// The most flows that are tested because of foreign rules.
const MOST_SUSPECTS: usize = 16;

/// Flows that the plan diverts and that foreign rules may let out. Without the right to read the rules
/// there are none, and only the usual paths are tested.
fn suspects(settings: &Settings) -> Vec<Suspect> {
    let live = Live {
        programs: session::programs(),
        lock_timeout: settings.run.lock_timeout,
        resolv_conf: None,
        most: Most::TO_UNDERSTAND,
    };
    let found = match live::read(&live) {
        Ok(found) => found,
        Err(e) => {
            debug!("rules of others are not looked for: {e}");
            return Vec::new();
        }
    };
    if found.tables.iter().all(ListedTable::is_only_ours) {
        return Vec::new();
    }
    let wanted = options::of_settings(settings.clone(), found.pod.clone());
    let effects = verify::verify(&wanted, &found).effects.into_iter().filter(|effect| {
        matches!(effect.wanted, Taker::OutboundProxy | Taker::InboundProxy | Taker::DnsProxy)
            && matches!(effect.found, Taker::Direct | Taker::Unknown)
            && !effect.ours
    });
    let suspect = |effect: TrafficChange| Suspect { flow: effect.example, rule: effect.found_rule.unwrap_or_default() };
    effects.take(MOST_SUSPECTS).map(suspect).collect()
}

/// The explanation where the rules cannot be read: an injector's validation container has no capability
/// and needs none, since another program makes its pod's rules.
const MADE_BY_OTHERS: &str = "this container may not look at the rules (it has no CAP_NET_ADMIN, and needs none to validate), but they are not there, or not as these options ask: podweir's CNI plugin on this node, or an init container before this one, did not program this pod. On the node, plugin.log in the plugin's run directory (usually /var/run/podweir) says what it did for this pod; with no line about the pod, the plugin was not called: it must be the last of the chain in /etc/cni/net.d. Then delete the pod, so that it is set up anew";

/// The path that failed, and the rule that is the cause, by reading the kernel.
fn explain(failure: &FailedPath, settings: &Settings, plan: &Plan) -> String {
    let mut text = format!("validation failed on the path {}: {}", failure.path, failure.problem);
    if failure.late {
        return text;
    }
    if caps::has(caps::CAP_NET_ADMIN).is_ok_and(|has| !has) {
        return text + "; " + MADE_BY_OTHERS;
    }
    match causes(failure.path, settings, plan) {
        Err(e) => text += &format!("; the kernel's rules cannot be read to tell why: {e}"),
        Ok(causes) if causes.is_empty() => {
            text += "; the kernel holds every rule of the plan, so something else keeps packets from it (rules of others, no route back, or too little time: --probe-timeout)"
        }
        Ok(causes) => text += &format!("; in the kernel:\n  {}", causes.join("\n  ")),
    }
    text
}

fn causes(path: Path, settings: &Settings, plan: &Plan) -> Result<Vec<String>, CliError> {
    let route = Netlink::open(Netlink::ROUTE).map_err(CliError::Addresses)?;
    let mut session = Session::open(session::conditions(&settings.run), route)?;
    let readings = session.read(&plan.routing)?;
    let Some((kind, reading)) = readings.first() else {
        return Ok(vec!["no rule of an interception is there at all".into()]);
    };
    let mut out: Vec<String> = reading.strange.iter().map(|s| format!("{kind}: {s}")).collect();
    let differences = diff::from_plan(plan, &reading.plan);
    let about = |place: &Option<(crate::config::types::Family, Table, ChainName)>| match place {
        None => true,
        Some((family, _, chain)) => *family == path.family && concerns(path.route, chain),
    };
    let (on_path, elsewhere): (Vec<_>, Vec<_>) = differences.into_iter().partition(|d| about(&d.place));
    let shown = if on_path.is_empty() { elsewhere } else { on_path };
    out.extend(shown.iter().map(|d| format!("{kind}: {d}")));
    Ok(out)
}

/// Whether packets on a path go through a chain.
fn concerns(route: PathKind, chain: &ChainName) -> bool {
    use ChainName as C;
    match route {
        PathKind::Outbound => matches!(chain, C::Output | C::OutputMain | C::Redirect),
        PathKind::Loop => matches!(chain, C::Output | C::OutputMain | C::InRedirect),
        PathKind::Inbound => matches!(chain, C::Prerouting | C::Inbound | C::InRedirect | C::Divert | C::Tproxy),
        PathKind::DnsUdp | PathKind::DnsTcp => matches!(chain, C::Output | C::OutputMain | C::OutputDns | C::Inbound),
    }
}

/// Writes the message where Kubernetes shows it, if this is a container of its.
fn termination_log(text: &str) {
    let write = || -> io::Result<()> {
        use std::io::Write;
        std::fs::OpenOptions::new().write(true).truncate(true).open(TERMINATION_LOG)?.write_all(text.as_bytes())
    };
    match write() {
        Err(e) if e.kind() != io::ErrorKind::NotFound => warn!("cannot write {TERMINATION_LOG}: {e}"),
        _ => {}
    }
}
