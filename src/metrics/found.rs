//! What is found on services, above them, and in the audit log.

use std::collections::BTreeMap;

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::{Result, registrar::Registrar};
use crate::inherited::Level;

/// What is found on services, as it is now.
pub struct FindingMetrics {
    pub(super) services: IntGaugeVec,
    pub exposed_services: IntGauge,
    pub contested_services: IntGauge,
    pub held_plans: IntGauge,
    pub held_plan_seconds: IntGauge,
    pub circuit_open: IntGauge,
    pub expiring_grants: IntGauge,
}

/// Messages of the audit log.
pub struct EventMetrics {
    pub(super) events_total: IntCounterVec,
    pub events_reliable: IntGauge,
}

/// Grants above the services, where they are searched for.
pub struct InheritedMetrics {
    pub(super) inherited_searches_total: IntCounterVec,
    pub(super) inherited_last_search_timestamp_seconds: IntGauge,
    pub(super) inherited_principals: IntGaugeVec,
    pub bypassed_policies: IntGauge,
}

impl FindingMetrics {
    pub(super) fn new(registrar: &mut Registrar) -> Result<Self> {
        Ok(Self {
            services: registrar.gauges(
                "services",
                "Services under policies, by state. A service that two policies target counts for each.",
                &["state"],
            )?,
            exposed_services: registrar.gauge(
                "exposed_services",
                "Services that anyone can call, or perhaps can.",
            )?,
            contested_services: registrar.gauge(
                "contested_services",
                "Services on which another writer keeps changing the same grants.",
            )?,
            held_plans: registrar.gauge(
                "held_plans",
                "Services with a plan that waits for approval.",
            )?,
            held_plan_seconds: registrar.gauge(
                "held_plan_seconds",
                "Age of the oldest plan that waits for approval.",
            )?,
            circuit_open: registrar.gauge(
                "circuit_open",
                "1 while the circuit breaker is open: drift corrections are paused because there were too many.",
            )?,
            expiring_grants: registrar.gauge(
                "expiring_grants",
                "Entries of enforced policies whose access ends within 24 hours.",
            )?,
        })
    }
}

impl InheritedMetrics {
    pub(super) fn new(registrar: &mut Registrar) -> Result<Self> {
        let metrics = Self {
            inherited_searches_total: registrar.counters(
                "inherited_searches_total",
                "Searches for grants on projects, folders and organizations, by result.",
                &["result"],
            )?,
            inherited_last_search_timestamp_seconds: registrar.gauge(
                "inherited_last_search_timestamp_seconds",
                "Unix time at which a search for inherited grants last completed.",
            )?,
            inherited_principals: registrar.gauges(
                "inherited_principals",
                "Principals that may invoke through a grant on a searched project, folder or organization.",
                &["level"],
            )?,
            bypassed_policies: registrar.gauge(
                "bypassed_policies",
                "Policies with services that an unlisted principal may invoke through an inherited grant.",
            )?,
        };
        // Series that alerts are about are there from the start.
        for result in ["success", "error"] {
            metrics
                .inherited_searches_total
                .with_label_values(&[result]);
        }
        let nobody = Level::ALL.into_iter().map(|level| (level, 0));
        metrics.principals(&nobody.collect());
        Ok(metrics)
    }

    /// A search ended.
    pub fn searched(&self, success: bool, now: jiff::Timestamp) {
        let result = if success { "success" } else { "error" };
        self.inherited_searches_total
            .with_label_values(&[result])
            .inc();
        if success {
            self.inherited_last_search_timestamp_seconds
                .set(now.as_second());
        }
    }

    /// What all searches show.
    pub fn principals(&self, principals: &BTreeMap<Level, usize>) {
        for (level, n) in principals {
            self.inherited_principals
                .with_label_values(&[level.as_str()])
                .set(*n as i64);
        }
    }
}

impl EventMetrics {
    pub(super) fn new(registrar: &mut Registrar) -> Result<Self> {
        let metrics = Self {
            events_total: registrar.counters(
                "events_total",
                "Audit log messages received, by result.",
                &["result"],
            )?,
            events_reliable: registrar.gauge(
                "events_reliable",
                "1 while audit events are delivered, or not configured; 0 while events are missing and services are polled at their own interval.",
            )?,
        };
        // Series that alerts are about are there from the start.
        metrics.events_reliable.set(1);
        Ok(metrics)
    }
}
