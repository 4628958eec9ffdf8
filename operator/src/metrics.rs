//! Prometheus metrics of the operator.

use crate::reason::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Upper bounds of the duration histogram, in seconds: from a plan without calls to one that waits for a slow server.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: String,
}

/// Counts of what the operator does; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Family<Kind, Counter>,
    errors: Family<Failure, Counter>,
    durations: Family<Kind, Histogram, fn() -> Histogram>,
    vses: Family<Phase, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vse_operator");
        let reconciles = Family::default();
        let errors = Family::default();
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        let vses = Family::default();
        registry.register("reconciles", "Passes over one object", reconciles.clone());
        registry.register("reconcile_errors", "Passes that failed, by reason", errors.clone());
        registry.register("reconcile_duration_seconds", "Time of one pass", durations.clone());
        registry.register("vses", "VSEs by phase", vses.clone());
        Metrics { registry: Arc::new(registry), reconciles, errors, durations, vses }
    }
}

impl Metrics {
    /// Starts the clock of a pass over an object of a kind.
    pub fn start(&self, kind: &'static str) -> Timer<'_> {
        Timer { metrics: self, kind, start: Instant::now() }
    }

    /// All metrics in OpenMetrics text, with the VSEs counted now.
    pub fn text(&self, vses: BTreeMap<String, i64>) -> Result<String, fmt::Error> {
        self.vses.clear();
        for (phase, count) in vses {
            self.vses.get_or_create(&Phase { phase }).set(count);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A pass under way.
pub struct Timer<'a> {
    metrics: &'a Metrics,
    kind: &'static str,
    start: Instant,
}

impl Timer<'_> {
    /// Counts the pass, and why it failed if it did.
    pub fn finish(self, failure: Option<Reason>) {
        let Timer { metrics, kind, start } = self;
        let label = Kind { kind };
        metrics.reconciles.get_or_create(&label).inc();
        metrics.durations.get_or_create(&label).observe(start.elapsed().as_secs_f64());
        if let Some(reason) = failure {
            let reason = reason.as_str();
            metrics.errors.get_or_create(&Failure { kind, reason }).inc();
        }
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}
