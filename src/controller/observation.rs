//! What a reconcile found, handed to every policy concerned: an observation in the index, events,
//! metrics. What is news is decided in `run_invoker_core::status::observation`, once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Controller, Priority,
    reconcile::{Found, Report},
};
use crate::{
    api::{ChangeReason, ChangedBy},
    cloudrun::CloudRun,
    fault::Fault,
    iam::{Grant, RunService},
    index::PlanInputs,
    plan::{self, PolicyOnService},
    status::{Applied, Before, Drift, News, Reconciled, observation},
};

/// How long news of a policy waits for more: a status of many services takes long to make.
fn pace(services: usize) -> Duration {
    Duration::from_millis(services.clamp(100, 5000) as u64)
}

impl<C: CloudRun> Controller<C> {
    /// A service was read.
    pub(super) fn observed(&self, found: &Found, report: &Report) {
        let inputs = &found.inputs;
        let input = inputs.input(&found.live, &self.options.settings, self.now());
        let views = plan::views(&input);
        let blame: &BTreeMap<Grant, Arc<ChangedBy>> = &report.blame;
        let reconciled = Reconciled {
            input: &input,
            rest: &found.rest,
            views: &views,
            drift: &report.drift,
            applied: &report.applied,
            blame,
            attributed: self.options.events.is_some(),
            info: inputs.info.as_ref(),
        };
        let mut drifted = Drift::default();
        for (place, claim) in inputs.claims.iter().enumerate() {
            let news = self.news(&inputs.service, claim, |before| {
                reconciled.observe(place, before)
            });
            let Some(news) = news else { continue };
            drifted.extend(news.drifted.clone());
            if news
                .observation
                .result
                .as_ref()
                .is_ok_and(observation::Findings::in_sync)
            {
                self.count_convergence(claim, &report.applied);
            }
            self.take_down(&inputs.service, claim, news);
        }
        self.count_drift(&inputs.service, &drifted);
    }

    /// A service could not be read, or not be written.
    pub(super) fn not_observed(&self, inputs: &PlanInputs, fault: &Fault, report: &Report) {
        let service = &inputs.service;
        for claim in &inputs.claims {
            let news = self.news(service, claim, |before| {
                Some(observation::failed(
                    service,
                    claim,
                    fault,
                    &report.applied,
                    before,
                ))
            });
            if let Some(news) = news {
                self.take_down(service, claim, news);
            }
        }
    }

    /// What is news for a policy, given what it knew; in the first reconcile after a restart its
    /// status stands for the one before.
    fn news(
        &self,
        service: &RunService,
        claim: &PolicyOnService,
        observe: impl FnOnce(Before<'_>) -> Option<News>,
    ) -> Option<News> {
        let id = &claim.intent.id;
        // Decided outside of the lock: a status can be a megabyte.
        let known = self.index.with(|index| {
            let record = index
                .policies()
                .get(&id.key())
                .filter(|r| r.intent.id == *id)?;
            let seen = record.observation(service).cloned();
            Some(seen.ok_or_else(|| record.status().clone()))
        })?;
        match known {
            Ok(seen) => observe(Before::Seen(&seen)),
            Err(status) => {
                let status = status.get();
                observe(
                    observation::entry_of(&status, service)
                        .map_or(Before::Nothing, Before::Reported),
                )
            }
        }
    }

    fn take_down(&self, service: &RunService, claim: &PolicyOnService, news: News) {
        let (id, intent) = (&claim.intent.id, &claim.intent);
        let key = id.key();
        let News {
            observation, notes, ..
        } = news;
        let (changed, size, released) = self.index.with(|index| {
            let record = index.policies().get(&key);
            let known = record.and_then(|r| r.observation(service));
            (
                known != Some(&observation),
                record.map_or(0, |r| r.targets().len()),
                index.observe(&key, service, observation),
            )
        });
        // What was still being counted may be known now.
        self.ask(&released, Priority::Declared);
        for note in notes {
            self.statuses.note(id.clone(), note);
        }
        if changed {
            self.ask_approvals(&key);
        }
        // Only what is news leads to a new status.
        if changed || intent.deleting {
            self.statuses.add(
                &key,
                if intent.deleting {
                    Duration::ZERO
                } else {
                    pace(size)
                },
            );
        }
    }

    fn count_convergence(&self, claim: &PolicyOnService, applied: &[Applied]) {
        let id = &claim.intent.id;
        let declared = |a: &&Applied| a.is_real() && a.pending.reason == ChangeReason::SpecChanged;
        let for_it = |a: &Applied| a.pending.policies.iter().any(|p| *p.uid == *id.uid);
        if !applied.iter().filter(declared).any(for_it) {
            return;
        }
        let since = self
            .index
            .with(|i| i.policies().get(&id.key()).map(|r| r.declared_at()));
        if let Some(since) = since {
            self.metrics
                .reconciles
                .convergence_seconds
                .observe(self.elapsed().saturating_sub(since).as_secs_f64());
        }
    }

    fn count_drift(&self, service: &RunService, drifted: &Drift) {
        let before = self.memories.observed(service);
        if drifted.is_empty() {
            return;
        }
        for (kind, grants) in [
            ("missing", &drifted.missing),
            ("unexpected", &drifted.unexpected),
        ] {
            self.metrics
                .drift
                .drift_detected_total
                .with_label_values(&[kind])
                .inc_by(grants.len() as u64);
        }
        if let Some(before) = before {
            self.metrics
                .drift
                .drift_detection_seconds
                .observe(before.as_secs_f64());
        }
    }

    /// Counts what was written.
    pub(super) fn count_changes(&self, applied: &[Applied]) {
        for change in applied.iter().filter(|a| a.is_real()) {
            let pending = &change.pending;
            let mut counts: BTreeMap<(&str, ChangeReason), u64> = BTreeMap::new();
            for (action, grants) in [("grant", &pending.added), ("revoke", &pending.removed)] {
                for grant in grants {
                    let reason = pending.reason_of(grant);
                    *counts.entry((action, reason)).or_default() += 1;
                }
            }
            for ((action, reason), n) in counts {
                self.metrics.corrected(action, reason, n);
            }
            tracing::info!(
                granted = pending.added.len(),
                revoked = pending.removed.len(),
                reason = pending.reason.as_str(),
                record = pending.name,
                "IAM policy changed"
            );
            tracing::debug!(added = ?pending.added, removed = ?pending.removed, "members changed");
        }
    }
}
