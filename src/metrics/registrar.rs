//! Registers a metric and describes it for the docs.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

use super::{
    Result, SECONDS,
    policies::{DRIFT_GRANTS, READY},
};

/// What a metric is, for the page about it.
#[derive(Clone, Debug)]
pub struct Description {
    /// Without the prefix `run_invoker_`.
    pub name: &'static str,
    pub kind: &'static str,
    pub help: &'static str,
    pub labels: Vec<&'static str>,
}

/// Registers metrics, and writes down what each is.
pub(super) struct Registrar {
    pub(super) registry: Registry,
    pub(super) descriptions: Vec<Description>,
}

impl Registrar {
    pub(super) fn new() -> Result<Self> {
        let registry = Registry::new_custom(Some("run_invoker".into()), None)?;
        let mut this = Self {
            registry,
            descriptions: Vec::new(),
        };
        // These are written at the scrape, by [`PolicySeries`].
        this.describe("gauge", "policy_ready", READY, &["namespace", "policy"]);
        this.describe(
            "gauge",
            "policy_drift_grants",
            DRIFT_GRANTS,
            &["namespace", "policy", "kind"],
        );
        Ok(this)
    }

    fn describe(
        &mut self,
        kind: &'static str,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) {
        self.descriptions.push(Description {
            name,
            kind,
            help,
            labels: labels.to_vec(),
        });
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> Result<IntGauge> {
        self.describe("gauge", name, help, &[]);
        self.register(IntGauge::new(name, help)?)
    }

    pub(super) fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) -> Result<IntGaugeVec> {
        self.describe("gauge", name, help, labels);
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn ratios(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) -> Result<GaugeVec> {
        self.describe("gauge", name, help, labels);
        self.register(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) -> Result<IntCounterVec> {
        self.describe("counter", name, help, labels);
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
    ) -> Result<Histogram> {
        self.describe("histogram, seconds", name, help, &[]);
        let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        self.register(Histogram::with_opts(options)?)
    }

    pub(super) fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[&'static str],
    ) -> Result<HistogramVec> {
        self.describe("histogram, seconds", name, help, labels);
        let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }
}
