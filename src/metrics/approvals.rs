//! What approvers are asked, how long that has waited, and what became of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use prometheus::{IntGauge, IntGaugeVec};

use super::{Result, registrar::Registrar};
use crate::{
    api::{ApprovalState, RequestPhase},
    index::Index,
};

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
                "InvokerApprovals whose time is not over, by state.",
                &["state"],
            )?,
            requests: registrar.gauges(
                "requests",
                "InvokerAccessRequests that are not over or still hold something, by phase.",
                &["phase"],
            )?,
            request_wait_seconds: registrar.gauge(
                "request_wait_seconds",
                "How long the InvokerAccessRequest has waited for approval that has waited longest.",
            )?,
        };
        // Series that alerts are about are there from the start.
        metrics.show(&Index::default(), Timestamp::MIN, &|_| false);
        Ok(metrics)
    }

    /// Shows those of projects that are `ours`: what every replica counts may be added up.
    pub fn show(&self, index: &Index, now: Timestamp, ours: &dyn Fn(&str) -> bool) {
        let mut states: BTreeMap<ApprovalState, i64> = BTreeMap::new();
        for (agreement, status) in index.approvals().statuses() {
            let policy = agreement.policy();
            let record = index.policies().get(&policy);
            let request = index.requests().get(&policy);
            let project = record.map(|r| &*r.intent.project);
            let project = project.or_else(|| request.map(|r| r.project()));
            if project.is_some_and(ours) {
                let state = status.state.unwrap_or(ApprovalState::Waiting);
                *states.entry(state).or_default() += 1;
            }
        }
        let mut phases: BTreeMap<RequestPhase, i64> = BTreeMap::new();
        let mut longest = 0;
        let requests = index.requests().iter();
        for (request, status) in requests.filter(|(r, _)| ours(r.project())) {
            let phase = status.phase.unwrap_or(RequestPhase::Pending);
            *phases.entry(phase).or_default() += 1;
            if phase == RequestPhase::Pending {
                longest = longest.max(now.duration_since(request.created).as_secs());
            }
        }
        for (state, label) in STATES {
            let count = states.get(&state).copied().unwrap_or(0);
            self.approvals.with_label_values(&[label]).set(count);
        }
        for (phase, label) in PHASES {
            let count = phases.get(&phase).copied().unwrap_or(0);
            self.requests.with_label_values(&[label]).set(count);
        }
        self.request_wait_seconds.set(longest);
    }
}
