//! The agent's metrics, for Prometheus (OpenMetrics text). No label has the name of a pod: their number
//! would grow with the cluster.

use std::collections::{HashMap, VecDeque};
use std::fmt::{Display, Write};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::sys::mutex::lock;
use crate::sys::text::one_line;

use super::ambient::figures::Figures;
use super::labels::{Labels, labels};

type Seconds = Gauge<f64, AtomicU64>;

/// Upper bounds for the phases of an ADD: from a tenth of a millisecond to 30 seconds.
const ADD_BUCKETS: [f64; 12] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// Upper bounds for the time from the notice of a difference to its repair: from a millisecond to 10
/// minutes.
const MEND_BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 60.0, 600.0];

/// How many of the last errors are kept, and how many characters of each.
const LAST_ERRORS: usize = 16;
const LONGEST_ERROR: usize = 300;

/// One of the last errors, for `podweir node status`: a metric has no place for the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// When the error last happened.
    pub at: SystemTime,
    pub cause: &'static str,
    pub what: String,
    /// How many times the error happened since it was first kept.
    pub times: u32,
}

/// All metrics of the agent.
pub struct Metrics {
    registry: Registry,
    installs: Family<Labels, Counter>,
    intercepting: Gauge,
    chain_effective: Gauge,
    chain_rewrites: Counter,
    adds: Family<Labels, Counter>,
    add_seconds: Family<Labels, Histogram>,
    cache_age: Seconds,
    cache_pods: Gauge,
    watch_restarts: Family<Labels, Counter>,
    pods: Family<Labels, Gauge>,
    pods_left_alone: Family<Labels, Gauge>,
    verifications: Family<Labels, Counter>,
    heals: Family<Labels, Counter>,
    mend_seconds: Histogram,
    events: Family<Labels, Counter>,
    errors: Family<Labels, Counter>,
    last_errors: Mutex<VecDeque<LastError>>,
    socket_requests: Family<Labels, Counter>,
    /// The metrics of ambient mode.
    pub ambient: Arc<Figures>,
}

impl Default for Metrics {
    fn default() -> Self {
        let add_histogram: fn() -> Histogram = || Histogram::new(ADD_BUCKETS);
        let mut metrics = Self {
            registry: Registry::with_prefix("podweir"),
            installs: Family::default(),
            intercepting: Gauge::default(),
            chain_effective: Gauge::default(),
            chain_rewrites: Counter::default(),
            adds: Family::default(),
            add_seconds: Family::new_with_constructor(add_histogram),
            cache_age: Seconds::default(),
            cache_pods: Gauge::default(),
            watch_restarts: Family::default(),
            pods: Family::default(),
            pods_left_alone: Family::default(),
            verifications: Family::default(),
            heals: Family::default(),
            mend_seconds: Histogram::new(MEND_BUCKETS),
            events: Family::default(),
            errors: Family::default(),
            last_errors: Mutex::default(),
            socket_requests: Family::default(),
            ambient: Arc::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "installs",
            "Placements of the binary and the chain entry, by part and result",
            self.installs.clone(),
        );
        r.register(
            "intercepting",
            "1 while pods of this node are intercepted, as its condition says, or would say; 0 while they are not",
            self.intercepting.clone(),
        );
        r.register("chain_effective", "1 while the runtime's chain has podweir's entry", self.chain_effective.clone());
        r.register(
            "chain_rewrites_by_others",
            "Times another program took the entry away",
            self.chain_rewrites.clone(),
        );
        r.register("adds", "ADDs by decision and result", self.adds.clone());
        r.register_with_unit("add_phase", "Time of an ADD by phase", Unit::Seconds, self.add_seconds.clone());
        r.register_with_unit(
            "cache_age",
            "Time since the watch of pods last said anything",
            Unit::Seconds,
            self.cache_age.clone(),
        );
        r.register("cache_pods", "Pods of this node that are known", self.cache_pods.clone());
        r.register(
            "watch_restarts",
            "Restarts of the agent's watches, by what is watched and cause",
            self.watch_restarts.clone(),
        );
        r.register("pods", "Pods of this node by state", self.pods.clone());
        r.register("pods_left_alone", "Pods of this node that are left alone, by reason", self.pods_left_alone.clone());
        r.register("verifications", "Looks at a pod's rules, by result", self.verifications.clone());
        r.register("heals", "Repairs of a pod's rules, by result", self.heals.clone());
        r.register_with_unit(
            "mend",
            "Time from the notice of a drift to its end",
            Unit::Seconds,
            self.mend_seconds.clone(),
        );
        r.register("events", "Events about pods, by reason and result", self.events.clone());
        r.register("errors", "Errors by cause", self.errors.clone());
        r.register(
            "socket_requests",
            "Requests on the agent's socket, by request and result",
            self.socket_requests.clone(),
        );
        self.ambient.register(r);
    }

    pub fn installed(&self, part: &str, result: &str) {
        self.installs.get_or_create(&labels([("part", part), ("result", result)])).inc();
    }

    /// Counts a part that could not be installed, and keeps the error.
    pub fn install_failed(&self, part: &'static str, problem: &str) {
        self.installed(part, "failed");
        self.error(part, problem);
    }

    pub fn intercepting(&self, holds: bool) {
        self.intercepting.set(holds.into());
    }

    pub fn chain(&self, effective: bool, rewritten: bool) {
        self.chain_effective.set(effective.into());
        if rewritten {
            self.chain_rewrites.inc();
        }
    }

    pub fn added(&self, decision: &str, result: &str) {
        self.adds.get_or_create(&labels([("decision", decision), ("result", result)])).inc();
    }

    /// Adds the time of one phase of an ADD, in milliseconds, as the plugin reported it.
    pub fn add_phase(&self, phase: &str, milliseconds: f64) {
        // What comes over the socket may be anything; a label must not.
        const PHASES: [&str; 4] = ["lookup", "read", "apply", "total"];
        if PHASES.contains(&phase) && milliseconds.is_finite() && milliseconds >= 0.0 {
            self.add_seconds.get_or_create(&labels([("phase", phase)])).observe(milliseconds / 1000.0);
        }
    }

    pub fn cache(&self, age: Option<Duration>, pods: usize) {
        self.cache_age.set(age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
        self.cache_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    pub fn watch_restarted(&self, watch: &str, cause: &str) {
        self.watch_restarts.get_or_create(&labels([("watch", watch), ("cause", cause)])).inc();
    }

    pub fn pods(&self, state: &str, count: usize) {
        self.pods.get_or_create(&labels([("state", state)])).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn pods_left_alone(&self, counts: &HashMap<&'static str, usize>) {
        // A reason that no pod has any more is none.
        self.pods_left_alone.clear();
        for (reason, count) in counts {
            let gauge = self.pods_left_alone.get_or_create(&labels([("reason", reason)]));
            gauge.set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }

    pub fn verified(&self, result: &str) {
        self.verifications.get_or_create(&labels([("result", result)])).inc();
    }

    pub fn healed(&self, result: &str, took: Duration) {
        self.heals.get_or_create(&labels([("result", result)])).inc();
        if result == "mended" {
            self.mend_seconds.observe(took.as_secs_f64());
        }
    }

    pub fn event(&self, reason: &str, result: &str) {
        self.events.get_or_create(&labels([("reason", reason), ("result", result)])).inc();
    }

    /// Counts an error by its cause, and keeps its message among the last ones.
    pub fn error(&self, cause: &'static str, what: impl Display) {
        self.errors.get_or_create(&labels([("cause", cause)])).inc();
        let what = one_line(&what.to_string(), LONGEST_ERROR);
        let mut last = lock(&self.last_errors);
        // What is said again and again keeps its place among the others.
        let times = match last.iter().position(|error| error.cause == cause && error.what == what) {
            Some(at) => last.remove(at).map_or(1, |error| error.times.saturating_add(1)),
            None => 1,
        };
        if last.len() == LAST_ERRORS {
            last.pop_front();
        }
        last.push_back(LastError { at: SystemTime::now(), cause, what, times });
    }

    /// The last errors, the newest last.
    pub fn last_errors(&self) -> Vec<LastError> {
        lock(&self.last_errors).iter().cloned().collect()
    }

    pub fn request(&self, request: &str, result: &str) {
        self.socket_requests.get_or_create(&labels([("request", request), ("result", result)])).inc();
    }

    /// The metrics as the text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a text cannot fail; should it all the same, the text says so.
        if encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# the metrics could not be written");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::events::{CONTROLLER, Kind};

    const ALERTS: &str = include_str!("../../cni-conf/chart/monitoring/alerts.yaml");
    const DASHBOARD: &str = include_str!("../../cni-conf/chart/monitoring/dashboard.json");

    #[test]
    fn the_last_errors_are_kept_with_how_often_they_were() {
        let metrics = Metrics::default();
        for at in 0..100 {
            metrics.error("watch", "it is gone");
            metrics.error("reports", format!("{at} {}", "x".repeat(1000)));
        }
        let last = metrics.last_errors();
        assert_eq!(last.len(), LAST_ERRORS);
        let watch: Vec<&LastError> = last.iter().filter(|error| error.cause == "watch").collect();
        assert!(matches!(watch[..], [LastError { times: 100, .. }]), "{watch:?}");
        let newest = last.last().unwrap();
        assert!(newest.what.starts_with("99 x") && newest.times == 1, "{newest:?}");
        assert!(last.iter().all(|error| error.what.chars().count() < LONGEST_ERROR + 30), "{newest:?}");
    }

    /// Metrics of which each has been counted.
    fn counted() -> Metrics {
        let metrics = Metrics::default();
        metrics.intercepting(true);
        metrics.installed("binary", "same");
        metrics.chain(true, true);
        metrics.added("intercepted", "done");
        metrics.added("intercepted", "failed");
        metrics.add_phase("total", 1.5);
        metrics.add_phase("a pod's name", 1.0);
        metrics.add_phase("total", f64::NAN);
        metrics.cache(Some(Duration::from_secs(2)), 7);
        metrics.watch_restarted("pods", "expired");
        metrics.pods("intercepted", 3);
        metrics.pods_left_alone(&[("no-proxy", 1), ("host-network", 1)].into());
        metrics.pods_left_alone(&[("no-proxy", 2)].into());
        metrics.verified("same");
        metrics.healed("mended", Duration::from_millis(20));
        metrics.event("InterceptionRepaired", "sent");
        metrics.error("api", "it does not answer");
        metrics.request("decide", "answered");
        metrics
    }

    /// The names of podweir's metrics in a text.
    fn names(text: &str) -> Vec<&str> {
        let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let starts = text.match_indices("podweir_").map(|(at, _)| &text[at..]);
        starts.map(|name| &name[..name.find(|c| !is_of_name(c)).unwrap_or(name.len())]).collect()
    }

    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
        let text = counted().text();
        let there: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).flat_map(names).collect();
        for asking in [ALERTS, DASHBOARD] {
            let asked = names(asking);
            assert!(asked.len() > 3);
            for name in asked {
                assert!(there.contains(&name), "{name} is not among {there:?}");
            }
        }
    }

    #[test]
    fn every_alert_has_a_command_and_that_for_repairs_shows_each_kind_of_them() {
        for alert in ALERTS.split("- alert: ").skip(1) {
            let (_, description) = alert.split_once("description:").unwrap();
            assert!(["podweir node ", "kubectl "].iter().any(|word| description.contains(word)), "{alert}");
            assert!(!description.contains("reason="), "events of other reasons are left out: {alert}");
        }
        let (_, repairs) = ALERTS.split_once("- alert: PodweirRepairsOften").unwrap();
        let words: Vec<&str> = repairs.split_whitespace().collect();
        let selector = format!("kubectl get events -A --field-selector reportingComponent={CONTROLLER}");
        assert!(words.join(" ").contains(&selector), "{repairs}");
        for kind in [Kind::Repaired, Kind::Drifted] {
            assert!(repairs.contains(kind.reason()), "{repairs}");
        }
    }

    #[test]
    fn the_text_has_every_metric_and_no_label_that_came_from_outside() {
        let text = counted().text();
        for line in [
            "podweir_intercepting 1",
            "podweir_chain_effective 1",
            "podweir_chain_rewrites_by_others_total 1",
            "podweir_adds_total{decision=\"intercepted\",result=\"done\"} 1",
            "podweir_adds_total{decision=\"intercepted\",result=\"failed\"} 1",
            "podweir_pods_left_alone{reason=\"no-proxy\"} 2",
            "podweir_add_phase_seconds_count{phase=\"total\"} 1",
            "podweir_cache_age_seconds 2.0",
            "podweir_cache_pods 7",
            "podweir_watch_restarts_total{watch=\"pods\",cause=\"expired\"} 1",
            "podweir_pods{state=\"intercepted\"} 3",
            "podweir_heals_total{result=\"mended\"} 1",
            "podweir_mend_seconds_count 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("host-network"), "{text}");
        // A metric's own name may have the word, and what is said of it; a label may not.
        let labels = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('{'));
        assert!(!labels.into_iter().any(|(_, labels)| labels.contains("name")), "{text}");
    }
}
