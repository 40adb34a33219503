//! Prometheus metrics (product.md §5). Label values come from small enums and from names of
//! policies, never from members.

mod approvals;
mod found;
mod policies;
mod registrar;

use std::{sync::Arc, time::Duration};

use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramVec, IntCounterVec, IntGaugeVec, Registry,
    TextEncoder,
};

use crate::{
    api::{ChangeReason, ServiceState},
    cloudrun::{
        Method, Observer,
        limit::{Kind, Tightest},
    },
};

pub use approvals::{ApprovalMetrics, Waiting};
pub use found::{EventMetrics, FindingMetrics, InheritedMetrics};
pub use policies::{PolicyGauges, PolicySeries};
pub use registrar::Description;
use registrar::Registrar;

/// Every metric of the operator, by subject. A field has the name of its metric.
pub struct Metrics {
    registry: Registry,
    descriptions: Vec<Description>,
    per_policy: bool,
    pub found: FindingMetrics,
    pub events: EventMetrics,
    pub inherited: InheritedMetrics,
    pub approvals: ApprovalMetrics,
    pub drift: DriftMetrics,
    pub reconciles: ReconcileMetrics,
    cloud: CloudMetrics,
    pub queue_depth: IntGaugeVec,
    budgets: BudgetMetrics,
    pub status_writes_total: IntCounterVec,
    shards: ShardMetrics,
}

/// Drift, and what was done about it.
pub struct DriftMetrics {
    pub drift_detected_total: IntCounterVec,
    corrections_total: IntCounterVec,
    pub drift_detection_seconds: Histogram,
}

/// Reconciles of services, and how long a change takes to be carried out.
pub struct ReconcileMetrics {
    pub convergence_seconds: Histogram,
    pub reconcile_total: IntCounterVec,
    pub reconcile_duration_seconds: Histogram,
}

/// Calls to Cloud Run, and the wait for them.
struct CloudMetrics {
    cloud_requests_total: IntCounterVec,
    cloud_request_duration_seconds: HistogramVec,
    limiter_wait_seconds: HistogramVec,
}

/// The budget of calls to Cloud Run, and how much of it is used.
struct BudgetMetrics {
    cloud_budget_per_minute: IntGaugeVec,
    cloud_limit_per_minute: IntGaugeVec,
    cloud_budget_used_ratio: GaugeVec,
}

/// The shards that this replica leads.
struct ShardMetrics {
    last_audit_timestamp_seconds: IntGaugeVec,
    interval_seconds: IntGaugeVec,
    shard_owned: IntGaugeVec,
}

const SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
];

type Result<T> = std::result::Result<T, prometheus::Error>;

impl DriftMetrics {
    fn new(registrar: &mut Registrar) -> Result<Self> {
        let metrics = Self {
            drift_detected_total: registrar.counters(
                "drift_detected_total",
                "Grants found to drift, counted once when detected. Initial differences of a policy are not drift.",
                &["kind"],
            )?,
            corrections_total: registrar.counters(
                "corrections_total",
                "Grants made and revoked, by what triggered it.",
                &["action", "trigger"],
            )?,
            drift_detection_seconds: registrar.histogram(
                "drift_detection_seconds",
                "Time since the service was last read in sync, when drift is found: an upper bound of the detection delay.",
            )?,
        };
        for kind in ["missing", "unexpected"] {
            metrics.drift_detected_total.with_label_values(&[kind]);
        }
        // Prometheus sees no increase in the first value of a series.
        for action in ["grant", "revoke"] {
            let labels = [action, "drift"];
            metrics.corrections_total.with_label_values(&labels);
        }
        Ok(metrics)
    }
}

impl ReconcileMetrics {
    fn new(registrar: &mut Registrar) -> Result<Self> {
        Ok(Self {
            convergence_seconds: registrar.histogram(
                "convergence_seconds",
                "Time from observing a declared change to reading it back from IAM.",
            )?,
            reconcile_total: registrar.counters(
                "reconcile_total",
                "Reconciles of a service, by result.",
                &["result"],
            )?,
            reconcile_duration_seconds: registrar.histogram(
                "reconcile_duration_seconds",
                "Duration of a reconcile of a service.",
            )?,
        })
    }
}

impl CloudMetrics {
    fn new(registrar: &mut Registrar) -> Result<Self> {
        Ok(Self {
            cloud_requests_total: registrar.counters(
                "cloud_requests_total",
                "Calls to Cloud Run, by result.",
                &["method", "code"],
            )?,
            cloud_request_duration_seconds: registrar.histograms(
                "cloud_request_duration_seconds",
                "Duration of calls to Cloud Run.",
                &["method"],
            )?,
            limiter_wait_seconds: registrar.histograms(
                "limiter_wait_seconds",
                "Time that services waited in the queue and for the operator's own budget.",
                &["priority"],
            )?,
        })
    }
}

impl BudgetMetrics {
    fn new(registrar: &mut Registrar) -> Result<Self> {
        Ok(Self {
            cloud_budget_per_minute: registrar.gauges(
                "cloud_budget_per_minute",
                "Request budget per minute for one project and region, the smallest of all.",
                &["kind"],
            )?,
            cloud_limit_per_minute: registrar.gauges(
                "cloud_limit_per_minute",
                "The smallest limit that Google named in a 429 within the last hour, for one project and region. 0: none.",
                &["kind"],
            )?,
            cloud_budget_used_ratio: registrar.ratios(
                "cloud_budget_used_ratio",
                "Share of the request budget used in the last minute, in the project and region where it is largest.",
                &["kind"],
            )?,
        })
    }
}

impl ShardMetrics {
    fn new(registrar: &mut Registrar) -> Result<Self> {
        Ok(Self {
            last_audit_timestamp_seconds: registrar.gauges(
                "last_audit_timestamp_seconds",
                "Unix time at which a reconcile on the shard last completed, or the shard was taken over.",
                &["shard"],
            )?,
            interval_seconds: registrar.gauges(
                "interval_seconds",
                "The shortest interval at which a service of the shard is read.",
                &["shard"],
            )?,
            shard_owned: registrar.gauges(
                "shard_owned",
                "1 if this replica leads the shard.",
                &["shard"],
            )?,
        })
    }
}

impl Metrics {
    /// Registers everything. `per_policy` switches the series that grow with the number of
    /// policies.
    ///
    /// # Errors
    /// When two metrics have one name, which would be a bug.
    pub fn new(per_policy: bool) -> Result<Arc<Self>> {
        let mut registrar = Registrar::new()?;
        let build = registrar.gauges(
            "build_info",
            "Always 1. The label is the version.",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        // In the order of the page about them.
        let found = FindingMetrics::new(&mut registrar)?;
        let events = EventMetrics::new(&mut registrar)?;
        let inherited = InheritedMetrics::new(&mut registrar)?;
        let approvals = ApprovalMetrics::new(&mut registrar)?;
        let drift = DriftMetrics::new(&mut registrar)?;
        let reconciles = ReconcileMetrics::new(&mut registrar)?;
        let cloud = CloudMetrics::new(&mut registrar)?;
        let queue_depth = registrar.gauges(
            "queue_depth",
            "Queued services, by priority.",
            &["priority"],
        )?;
        let budgets = BudgetMetrics::new(&mut registrar)?;
        let status_writes_total = registrar.counters(
            "status_writes_total",
            "Status updates, by result.",
            &["result"],
        )?;
        let shards = ShardMetrics::new(&mut registrar)?;
        Ok(Arc::new(Self {
            registry: registrar.registry,
            descriptions: registrar.descriptions,
            per_policy,
            found,
            events,
            inherited,
            approvals,
            drift,
            reconciles,
            cloud,
            queue_depth,
            budgets,
            status_writes_total,
            shards,
        }))
    }

    /// What there is, in the order of the code.
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    /// Whether the series that grow with the number of policies are wanted.
    pub fn per_policy(&self) -> bool {
        self.per_policy
    }

    /// A reconcile of a service of a shard is over, or work on the shard begins.
    pub fn audited(&self, shard: usize, now: jiff::Timestamp) {
        self.shards
            .last_audit_timestamp_seconds
            .with_label_values(&[shard.to_string()])
            .set(now.as_second());
    }

    /// Whether a shard is worked on here; `interval` is the shortest at which a service of it is
    /// read; `None`: there is nothing to do in it.
    pub fn shard(&self, shard: usize, owned: bool, interval: Option<Duration>) {
        let label = shard.to_string();
        self.shards
            .shard_owned
            .with_label_values(&[&label])
            .set(i64::from(owned));
        match interval.filter(|_| owned) {
            Some(interval) => self
                .shards
                .interval_seconds
                .with_label_values(&[&label])
                .set(interval.as_secs() as i64),
            None => {
                // Whoever works on it has the series; and where there is nothing to do, silence
                // means nothing.
                let _ = self
                    .shards
                    .last_audit_timestamp_seconds
                    .remove_label_values(&[&label]);
                let _ = self.shards.interval_seconds.remove_label_values(&[&label]);
            }
        }
    }

    /// Names the results of messages, so that their counters are there before the first: a rate of
    /// something that was never counted is not zero.
    pub fn count_messages_by(&self, results: impl IntoIterator<Item = &'static str>) {
        for result in results {
            self.events.events_total.with_label_values(&[result]);
        }
    }

    /// One message of the audit log; `result` is one of a few words.
    pub fn message_handled(&self, result: &str) {
        self.events.events_total.with_label_values(&[result]).inc();
    }

    /// A service of a priority was taken up, or a listing went on, after waiting for its turn and
    /// its quota.
    pub fn waited(&self, priority: &'static str, took: Duration) {
        self.cloud
            .limiter_wait_seconds
            .with_label_values(&[priority])
            .observe(took.as_secs_f64());
    }

    /// Counts changes that were carried out.
    pub fn corrected(&self, action: &str, reason: ChangeReason, n: u64) {
        let trigger = match reason {
            ChangeReason::Approved => "approved",
            ChangeReason::RolledBack => "rolled_back",
            ChangeReason::Deleted => "deleted",
            ChangeReason::Denied => "denied",
            ChangeReason::Guardrail => "guardrail",
            ChangeReason::Drift => "drift",
            ChangeReason::Expired => "expired",
            ChangeReason::SpecChanged => "spec_changed",
        };
        self.drift
            .corrections_total
            .with_label_values(&[action, trigger])
            .inc_by(n);
    }

    /// Sets what the budget of calls to Cloud Run is, and how much of it is used.
    pub fn cloud_budget(&self, kind: Kind, tightest: &Tightest) {
        let labels = [match kind {
            Kind::Read => "read",
            Kind::Write => "write",
        }];
        let budgets = &self.budgets;
        budgets
            .cloud_budget_per_minute
            .with_label_values(&labels)
            .set(tightest.budget.into());
        budgets
            .cloud_limit_per_minute
            .with_label_values(&labels)
            .set(tightest.limit.unwrap_or_default().into());
        budgets
            .cloud_budget_used_ratio
            .with_label_values(&labels)
            .set(tightest.used);
    }

    /// Sets the number of services in each state.
    pub fn service_states(&self, count: impl Fn(ServiceState) -> i64) {
        use ServiceState as S;
        for (state, label) in [
            (S::InSync, "in_sync"),
            (S::Drifted, "drifted"),
            (S::Held, "held"),
            (S::Failed, "failed"),
            (S::NotFound, "not_found"),
        ] {
            self.found
                .services
                .with_label_values(&[label])
                .set(count(state));
        }
    }

    /// The text exposition, those of the process included, and `policies` behind it.
    pub fn render(&self, policies: &PolicySeries) -> String {
        let encoder = TextEncoder::new();
        let mut buffer = Vec::new();
        let mut families = self.registry.gather();
        families.extend(prometheus::gather());
        if let Err(e) = encoder.encode(&families, &mut buffer) {
            tracing::error!(error = %e, "metrics could not be written");
        }
        let mut text = String::from_utf8_lossy(&buffer).into_owned();
        text.push_str(&policies.0);
        text
    }
}

impl Observer for Metrics {
    fn called(&self, method: Method, code: &'static str, took: Duration) {
        self.cloud
            .cloud_requests_total
            .with_label_values(&[method.label(), code])
            .inc();
        self.cloud
            .cloud_request_duration_seconds
            .with_label_values(&[method.label()])
            .observe(took.as_secs_f64());
    }
}
