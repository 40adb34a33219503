//! What follows from how a reconcile ended: counters, states, events, and when the service is taken up again.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{Found, Outcome, Report};
use crate::{
    cloudrun::CloudRun,
    controller::{Controller, Priority, next_slot, queue::End, spread},
    fault::Retry,
    iam::{Grant, RunService},
    index::PlanInputs,
    intent::DEFAULT_INTERVAL,
    plan::{Plan, PolicyOnService, WithheldReason},
};

/// How soon a service is read again while the end of a write is unknown.
const UNANSWERED: Duration = Duration::from_secs(60);

/// Nothing is planned for later than this; what comes later is planned anew.
const FAR: Duration = Duration::from_secs(86_400);

/// Names an outcome in metrics.
pub(super) fn label(result: &Outcome, report: &Report) -> &'static str {
    match result {
        Ok(None) => "skipped",
        Ok(Some(found)) if found.waits => "waiting",
        Ok(Some(_)) if report.applied.is_empty() => "unchanged",
        Ok(Some(_)) => "changed",
        Err(failure) => failure.1.class.row().label,
    }
}

/// What the queue is to know of an outcome.
pub(super) fn end(result: &Outcome) -> End {
    match result {
        Ok(None) => End::Over,
        Ok(Some(found)) if found.waits => End::Waits,
        Ok(Some(found)) if found.incomplete.is_none() => End::Over,
        // What a person has to settle is read rarely, and says nothing about what will pass by
        // itself.
        Err(failure) if failure.1.class.row().retry == Retry::Slow => End::Over,
        Ok(Some(_)) | Err(_) => End::Failed,
    }
}

/// Exponential with full jitter, from 1 s to 5 min.
pub(in crate::controller) fn backoff(
    failures: u32,
    seed: u64,
    what: impl std::hash::Hash,
) -> Duration {
    let ceiling = Duration::from_secs(300)
        .min(Duration::from_secs(1) * 2u32.saturating_pow(failures.min(16)));
    ceiling.mul_f64(0.5 + spread(seed, (what, failures)) / 2.0)
}

impl<C: CloudRun> Controller<C> {
    pub(super) fn count(&self, service: &RunService, label: &str, took: Duration) {
        let metrics = &self.metrics;
        let reconciles = &metrics.reconciles;
        reconciles.reconcile_total.with_label_values(&[label]).inc();
        reconciles
            .reconcile_duration_seconds
            .observe(took.as_secs_f64());
        metrics.audited(self.shards.of(&service.project), self.now());
        tracing::debug!(result = label, ?took, "reconciled");
    }

    /// Hands on what was found.
    pub(super) fn publish_outcome(&self, service: &RunService, result: &Outcome, report: &Report) {
        match result {
            Ok(None) => self.forget(service),
            Ok(Some(found)) => {
                self.remember(found);
                self.observed(found, report);
            }
            Err(failure) => self.not_observed(&failure.0, &failure.1, report),
        }
    }

    /// Sets when the service comes up again.
    pub(super) fn requeue(&self, service: &RunService, result: &Outcome, failures: u32) {
        match result {
            Ok(None) => {
                self.queue.forget(service);
                self.come_back_to_what_ends(service);
            }
            Ok(Some(found)) if found.waits => {}
            Ok(Some(found)) => {
                self.schedule(&found.inputs, &found.rest);
                if found.incomplete.is_some() {
                    self.retry(service, failures, None);
                }
            }
            Err(failure) => {
                let (inputs, fault) = &**failure;
                let rarely = fault.class.row().retry == Retry::Slow;
                if rarely || fault.retry_after.is_none() {
                    self.schedule(inputs, &Plan::nothing(service));
                }
                if !rarely {
                    self.retry(service, failures, fault.retry_after);
                }
            }
        }
    }

    fn retry(&self, service: &RunService, failures: u32, after: Option<Duration>) {
        let wait = after.unwrap_or_else(|| backoff(failures, self.options.seed, service));
        self.queue
            .add_at(service, Priority::Retry, Instant::now() + wait);
    }

    /// Forgets a service that nobody is about any more.
    fn forget(&self, service: &RunService) {
        self.memories.forget(service);
        self.breaker.wait(service, false);
        self.audit_events.forget(service);
        self.change_log.stored(service, &[]);
    }

    /// Takes down what the next reconcile has to know.
    fn remember(&self, found: &Found) {
        let service = &found.inputs.service;
        let waiting: Vec<_> = found
            .rest
            .withheld
            .iter()
            .filter(|w| w.is_others_doing())
            .collect();
        let mut known: BTreeSet<Grant> = waiting.iter().map(|w| w.grant.clone()).collect();
        known.extend(found.rest.drift.iter().cloned());
        self.memories.waits(service, known);
        if found
            .rest
            .withheld
            .iter()
            .any(|w| w.why == WithheldReason::UnansweredSelectors)
            && !self.index.with(|i| i.wait_for_listing(service))
        {
            // It was answered in the meantime.
            self.ask([service], Priority::Drift);
        }
        self.breaker.wait(
            service,
            waiting.iter().any(|w| w.why == WithheldReason::CircuitOpen),
        );
    }

    /// Nobody asks for a reconcile now. Where what is nobody's ends by itself, somebody has to take
    /// it away then.
    fn come_back_to_what_ends(&self, service: &RunService) {
        let Some(from) = self.index.with(|i| i.left_behind_from(service)) else {
            return;
        };
        let wait = Duration::try_from(from.duration_since(self.now())).unwrap_or_default();
        self.queue.add_at(
            service,
            Priority::Declared,
            Instant::now() + wait.min(FAR) + Duration::from_millis(100),
        );
    }

    /// Sets when a service is reconciled next: its slot, the end of a grant, another try of a
    /// refused member, or the next turn in a fight.
    fn schedule(&self, inputs: &PlanInputs, rest: &Plan) {
        let service = &inputs.service;
        let (now, instant) = (self.now(), Instant::now());
        let asks = |c: &&PolicyOnService| !c.intent.suspended || c.intent.deleting;
        let asking = inputs.claims.iter().filter(asks).map(|c| c.intent.interval);
        let interval = asking
            .min()
            .or(inputs.is_left_behind(now).then_some(DEFAULT_INTERVAL));
        // A write without an answer is settled soon, also where nobody asks for anything any more.
        let is_pending = self.index.with(|i| i.ledgers().is_pending(service));
        let interval = if is_pending {
            interval.map(|i| i.min(UNANSWERED))
        } else {
            interval
        };
        if let Some(interval) = interval {
            let interval = self.interval(&service.project, interval);
            let wait = next_slot(self.elapsed(), interval, spread(self.options.seed, service));
            self.queue
                .add_at(service, Priority::Periodic, instant + wait);
        } else {
            self.come_back_to_what_ends(service);
        }
        let declared = inputs
            .claims
            .iter()
            .filter_map(|c| c.intent.next_expiry(now));
        // What is held back ends by itself, too, and then there is less to hold.
        let held = rest.withheld.iter();
        let held = held
            .filter_map(|w| w.grant.condition.as_ref()?.expiry())
            .filter(|e| *e > now);
        let expiry = declared.chain(held).min();
        let fight = rest.withheld.iter().filter_map(|w| match &w.why {
            WithheldReason::Contested(fight) => Some(fight.not_before),
            _ => None,
        });
        let times = expiry.map(|at| (at, Priority::Declared)).into_iter();
        for (at, priority) in times.chain(fight.map(|at| (at, Priority::Drift))) {
            // Far ends come up again with a later reconcile anyway.
            if let Ok(wait) = Duration::try_from(at.duration_since(now))
                && wait < FAR
            {
                self.queue.add_at(
                    service,
                    priority,
                    instant + wait + Duration::from_millis(100),
                );
            }
        }
        if let Some(at) = self.memories.next_try(service) {
            self.queue.add_at(service, Priority::Retry, at);
        }
    }
}
