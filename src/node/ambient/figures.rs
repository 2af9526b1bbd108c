//! The metrics of ambient mode, for Prometheus.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::super::labels::{Labels, labels};

/// Upper bounds for the time to an acknowledgement: from a tenth of a millisecond to the deadline.
const ACK_BUCKETS: [f64; 10] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0];

/// The metrics of ambient mode.
#[derive(Debug)]
pub struct Figures {
    ztunnels: Gauge,
    disconnects: Family<Labels, Counter>,
    acks: Family<Labels, Counter>,
    ack_seconds: Histogram,
    namespaces: Gauge,
    annotations: Family<Labels, Counter>,
    host_sets: Family<Labels, Counter>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            ztunnels: Gauge::default(),
            disconnects: Family::default(),
            acks: Family::default(),
            ack_seconds: Histogram::new(ACK_BUCKETS),
            namespaces: Gauge::default(),
            annotations: Family::default(),
            host_sets: Family::default(),
        }
    }
}

impl Figures {
    /// Adds the metrics to a registry.
    pub fn register(&self, r: &mut Registry) {
        r.register("ambient_ztunnels", "Ztunnels that are connected", self.ztunnels.clone());
        r.register("ambient_disconnects", "Ends of ztunnels' connections, by cause", self.disconnects.clone());
        r.register("ambient_acks", "Acknowledgements of ztunnels, by request and result", self.acks.clone());
        r.register_with_unit(
            "ambient_ack",
            "Time from a request to its acknowledgement",
            Unit::Seconds,
            self.ack_seconds.clone(),
        );
        r.register("ambient_namespaces", "Namespaces of pods that are kept open", self.namespaces.clone());
        r.register("ambient_annotations", "Writings of pods' annotation, by result", self.annotations.clone());
        r.register(
            "ambient_host_sets",
            "Changes of the node's sets of probed addresses, by result",
            self.host_sets.clone(),
        );
    }

    pub fn connected(&self) {
        self.ztunnels.inc();
    }

    /// Counts a ztunnel that had greeted and whose connection has ended.
    pub fn left(&self, cause: &str) {
        self.ztunnels.dec();
        self.disconnected(cause);
    }

    /// Counts a connection that has ended, be it before a ztunnel greeted on it.
    pub fn disconnected(&self, cause: &str) {
        self.disconnects.get_or_create(&labels([("cause", cause)])).inc();
    }

    pub fn acknowledged(&self, request: &str, done: bool, took: Duration) {
        let result = if done { "done" } else { "refused" };
        self.acks.get_or_create(&labels([("request", request), ("result", result)])).inc();
        self.ack_seconds.observe(took.as_secs_f64());
    }

    pub fn namespaces(&self, open: usize) {
        self.namespaces.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    pub fn annotated(&self, done: bool) {
        let result = if done { "done" } else { "failed" };
        self.annotations.get_or_create(&labels([("result", result)])).inc();
    }

    pub fn host_set(&self, result: &str) {
        self.host_sets.get_or_create(&labels([("result", result)])).inc();
    }
}
