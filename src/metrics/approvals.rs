//! What approvers are asked, how long that has waited, and what became of it.

use std::collections::BTreeMap;

use prometheus::{IntGauge, IntGaugeVec};

use super::{Result, registrar::Registrar};
use crate::api::{ApprovalState, RequestPhase};

/// What approvers are asked, counted.
#[derive(Debug, Default)]
pub struct Waiting {
    pub approvals: BTreeMap<ApprovalState, i64>,
    pub requests: BTreeMap<RequestPhase, i64>,
    /// Seconds that the request has waited that has waited longest.
    pub longest_request: i64,
}

/// Approvals and requests, as they are now.
pub struct ApprovalMetrics {
    approvals: IntGaugeVec,
    requests: IntGaugeVec,
    request_wait_seconds: IntGauge,
}

const STATES: [(ApprovalState, &str); 7] = [
    (ApprovalState::Waiting, "waiting"),
    (ApprovalState::Stale, "stale"),
    (ApprovalState::Used, "used"),
    (ApprovalState::Superseded, "superseded"),
    (ApprovalState::Denies, "denies"),
    (ApprovalState::Expired, "expired"),
    (ApprovalState::Refused, "refused"),
];

const PHASES: [(RequestPhase, &str); 6] = [
    (RequestPhase::Pending, "pending"),
    (RequestPhase::Approved, "approved"),
    (RequestPhase::Active, "active"),
    (RequestPhase::Ended, "ended"),
    (RequestPhase::Denied, "denied"),
    (RequestPhase::Refused, "refused"),
];

impl ApprovalMetrics {
    pub(super) fn new(registrar: &mut Registrar) -> Result<Self> {
        let metrics = Self {
            approvals: registrar.gauges(
                "approvals",
                "InvokerApprovals whose time is not over, by state. Not those beyond 256 or 1 MiB in a namespace: they are Refused and not kept.",
                &["state"],
            )?,
            requests: registrar.gauges(
                "requests",
                "InvokerAccessRequests that are not over or still grant something, by phase. Not those beyond 256 in a namespace: they are Refused and not kept.",
                &["phase"],
            )?,
            request_wait_seconds: registrar.gauge(
                "request_wait_seconds",
                "Age of the oldest InvokerAccessRequest that waits for approval.",
            )?,
        };
        // Series that alerts are about are there from the start.
        metrics.show(&Waiting::default());
        Ok(metrics)
    }

    /// Shows what is counted: every state and phase, also those of which there are none.
    pub fn show(&self, waiting: &Waiting) {
        for (state, label) in STATES {
            let count = waiting.approvals.get(&state).copied().unwrap_or(0);
            self.approvals.with_label_values(&[label]).set(count);
        }
        for (phase, label) in PHASES {
            let count = waiting.requests.get(&phase).copied().unwrap_or(0);
            self.requests.with_label_values(&[label]).set(count);
        }
        self.request_wait_seconds.set(waiting.longest_request);
    }
}
