//! Counters of this node runtime, in the OpenMetrics text format.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// How a launch went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// The engine runs.
    Launched,
    /// It will be tried again.
    Retried,
    /// It will not.
    Refused,
}

/// Label of launches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LaunchLabels {
    /// How it went.
    pub outcome: Outcome,
}

/// All counters.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// MicroVMs of this host.
    pub guests: Gauge,
    /// Launches.
    pub launches: Family<LaunchLabels, Counter>,
    /// Seconds from the launcher's first answer to the engine's start.
    pub launch_seconds: Histogram,
    /// Status writes.
    pub status_writes: Counter,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("vse_node_runtime");
        let guests = Gauge::default();
        let launches = Family::default();
        // 10 ms … 80 s
        let launch_seconds = Histogram::new(exponential_buckets(0.01, 2.0, 14));
        let status_writes = Counter::default();
        registry.register("guests", "MicroVMs of this host", guests.clone());
        registry.register("launches", "Launches", launches.clone());
        registry.register(
            "launch_seconds",
            "Seconds from the launcher's first answer to the engine's start",
            launch_seconds.clone(),
        );
        registry.register("status_writes", "Writes of MicroVM status", status_writes.clone());
        Self { registry: Arc::new(registry), guests, launches, launch_seconds, status_writes }
    }

    /// The text a Prometheus server reads.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String can't fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
