//! One round on one service: gather, plan, apply, read back. What was found goes to `tell`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Controller, Refused, next_slot, queue::Job, spread};
use crate::{
    api::ChangedBy,
    apply::{self, Outcome},
    cloudrun::{CloudRun, Priority, fence},
    cluster::index::Ledger,
    fault::{Fault, FaultClass, Retry},
    gather::{self, Declared, Remembered},
    history,
    iam::{Grant, Policy, RunService},
    plan::{self, Plan, RejectedMember, WithheldReason, claim},
};

/// Conflicts in a row after which a service goes back into the line.
const MAX_CONFLICTS: u32 = 5;

/// What a round found and did.
pub(super) struct Found {
    pub declared: Declared,
    /// As it was before anything was written, where something was.
    pub before: Option<Policy>,
    pub live: Policy,
    /// What was carried out.
    pub carried: Option<Plan>,
    /// What is left to do, with everything withheld.
    pub rest: Plan,
    pub remembered: Remembered,
    /// Who made what differed, or what was corrected lately.
    pub blame: BTreeMap<Grant, Arc<ChangedBy>>,
}

/// Exponential with full jitter, from 1 s to 5 min.
pub(super) fn backoff(failures: u32, seed: u64, what: impl std::hash::Hash) -> Duration {
    let ceiling = Duration::from_secs(300).min(Duration::from_secs(1) * 2u32.saturating_pow(failures.min(16)));
    ceiling.mul_f64(0.5 + spread(seed, (what, failures)) / 2.0)
}

impl<C: CloudRun> Controller<C> {
    /// Works on one service and sets when it comes up again.
    pub(super) async fn round(self: Arc<Self>, job: Job) {
        let started = Instant::now();
        let service = &job.service;
        let result = self.reconcile(&job).await;
        let label = match &result {
            Ok(None) => "skipped",
            Ok(Some(found)) if found.carried.is_some() => "changed",
            Ok(Some(_)) => "unchanged",
            Err((_, fault)) => fault.class.row().label,
        };
        self.metrics.reconcile_total.with_label_values(&[label]).inc();
        self.metrics.reconcile_duration_seconds.observe(started.elapsed().as_secs_f64());
        tracing::debug!(result = label, took = ?started.elapsed(), "round finished");
        self.metrics.audited(self.shards.of(&service.project), self.now());

        let failures = self.queue.done(service, result.is_err());
        self.unpark(service);
        match result {
            Ok(None) => {
                self.queue.forget(service);
                self.forget(service);
            }
            Ok(Some(found)) => {
                self.remember_round(&found);
                self.tell(&found.declared, &Ok(&found), &job);
                self.schedule(&found.declared, &found.rest);
            }
            Err((declared, fault)) => {
                if fault.class == FaultClass::ServiceNotFound || fault.class == FaultClass::ProjectNotFound {
                    self.settle_changes(service, None).await;
                    self.forget_ledger(service, &declared.ledger).await;
                }
                self.tell(&declared, &Err(&fault), &job);
                let slow = fault.class.row().retry == Retry::Slow;
                if slow {
                    self.schedule(&declared, &Plan::nothing(service));
                } else {
                    let wait = fault.retry_after.unwrap_or_else(|| backoff(failures, self.options.seed, service));
                    self.queue.add_at(service, Priority::Retry, Instant::now() + wait);
                }
            }
        }
    }

    /// Gather, plan, apply; again while somebody else changes the policy in between.
    async fn reconcile(&self, job: &Job) -> Result<Option<Found>, (Declared, Fault)> {
        let service = &job.service;
        let mut conflicts = 0;
        let mut carried: Option<Plan> = None;
        let mut before: Option<Policy> = None;
        // A read-back serves as the next reading.
        let mut known: Option<Policy> = None;
        let mut admitted = false;
        let mut blame = BTreeMap::new();
        loop {
            let declared = Declared::of(service, &self.index());
            // What it waits for brings it up again.
            if declared.loading {
                return Ok(None);
            }
            if !declared.wants_a_look() && !self.has_open_changes(service) {
                return Ok(None);
            }
            let live = match known.take() {
                Some(live) => live,
                None => match gather::reality(&*self.cloud, service, job.lane).await {
                    Ok(live) => live,
                    Err(fault) => return Err((declared, fault)),
                },
            };
            self.saw(service, &live);
            self.settle_changes(service, Some(&live)).await;
            let mut remembered = self.remembered(&declared);
            let settings = &self.options.settings;
            let mut plan = plan::plan(&declared.input(&live, &remembered, settings, self.now()));
            blame.extend(self.attribute(&declared, &live, &remembered));
            self.watch_drift(&declared, &plan, &remembered);
            if !admitted && plan.corrects_drift() {
                admitted = self.admit_correction().await;
                if !admitted {
                    remembered.circuit_open = true;
                    plan = plan::plan(&declared.input(&live, &remembered, settings, self.now()));
                }
            }
            if plan.is_empty() {
                if !plan.forget.is_empty()
                    && let Err(fault) = self.remember(&plan, &declared).await
                {
                    return Err((declared, fault));
                }
                return Ok(Some(Found { declared, before, live, carried, rest: plan, remembered, blame }));
            }
            if !self.shards.holds(&service.project) {
                return Err((declared, fence::refused()));
            }
            if let Err(fault) = self.prepare(&plan, &declared, &live, &blame).await {
                return Err((declared, fault));
            }
            let written = apply::write(&*self.cloud, &plan, &live, job.lane).await;
            before.get_or_insert(live.clone());
            match written {
                Ok(Outcome::Written) => {
                    self.corrected(&declared, &plan);
                    self.expect_event(&service.project);
                    carried = Some(Plan::both(carried, plan));
                    // In sync is what reality says, not that a call returned.
                    match gather::reality(&*self.cloud, service, job.lane).await {
                        Ok(live) => known = Some(live),
                        Err(fault) => return Err((declared, fault)),
                    }
                    conflicts += 1;
                    if conflicts > MAX_CONFLICTS {
                        let fault = Fault::new(FaultClass::Conflict, "the policy keeps changing while it is written");
                        return Err((declared, fault));
                    }
                }
                Ok(Outcome::Conflict) => {
                    self.discard_changes(service).await;
                    conflicts += 1;
                    tracing::debug!(conflicts, "somebody else changed the policy in between; reading again");
                    if conflicts >= MAX_CONFLICTS {
                        let mut fault =
                            Fault::new(FaultClass::Conflict, "another writer changed the policy five times in a row");
                        fault.retry_after = Some(
                            Duration::from_millis(200)
                                .mul_f64(1.0 + 4.0 * spread(self.options.seed, (service, conflicts))),
                        );
                        return Err((declared, fault));
                    }
                }
                Ok(Outcome::Refused(members)) => self.set_aside(&declared, members),
                Err(fault) if matches!(fault.class, FaultClass::Timeout | FaultClass::Unavailable) => {
                    // The answer is lost, the write perhaps not: reality decides, and nothing is written twice blindly.
                    match gather::reality(&*self.cloud, service, job.lane).await {
                        Ok(after) if after.etag != live.etag => {
                            self.corrected(&declared, &plan);
                            carried = Some(Plan::both(carried, plan));
                            known = Some(after);
                            conflicts += 1;
                            if conflicts >= MAX_CONFLICTS {
                                return Err((declared, fault));
                            }
                        }
                        _ => return Err((declared, fault)),
                    }
                }
                Err(fault) => {
                    // A clear no: nothing was written, and there is nothing to record.
                    self.discard_changes(service).await;
                    return Err((declared, fault));
                }
            }
        }
    }

    /// What must be in the store before IAM is touched: finalizers, so that no grant outlives its policy unseen, the
    /// ledger, and the record of the change.
    async fn prepare(
        &self,
        plan: &Plan,
        declared: &Declared,
        live: &Policy,
        blame: &BTreeMap<Grant, Arc<ChangedBy>>,
    ) -> Result<(), Fault> {
        for claim in &declared.claims {
            let asks = plan.grants.values().any(|by| by.contains(&claim.intent.id));
            if asks && claim.intent.revokes_on_delete() && !claim.intent.deleting {
                self.ensure_finalizer(&claim.intent).await?;
            }
        }
        let now = self.now();
        let drift_by = plan.drift.iter().filter_map(|g| blame.get(g)).max_by_key(|by| by.at.0).map(|by| &**by);
        let (claims, owners) = (&declared.claims, &declared.owners);
        let changes = history::open(plan, claims, owners, live, drift_by, self.cluster.home(), now);
        let (ledger, kept) = tokio::join!(self.remember(plan, declared), apply::record(&self.cluster, changes));
        // A record that is there must be known, also when the ledger failed.
        self.add_open_changes(&declared.service, kept?);
        if let Err(fault) = ledger {
            self.discard_changes(&declared.service).await;
            return Err(fault);
        }
        Ok(())
    }

    async fn remember(&self, plan: &Plan, declared: &Declared) -> Result<(), Fault> {
        if let Some(ledger) = apply::remember(&self.cluster, plan, &declared.ledger).await? {
            self.index().set_ledger(&declared.service, ledger);
        }
        Ok(())
    }

    /// A service that is gone took its policy with it.
    async fn forget_ledger(&self, service: &RunService, ledger: &Ledger) {
        if ledger.is_empty() {
            return;
        }
        let empty = crate::cluster::index::ledger_spec(service, &Ledger::new());
        match self.cluster.write_ledger(service, &empty).await {
            Ok(()) => self.index().set_ledger(service, Ledger::new()),
            Err(fault) => tracing::warn!(%fault, "the ledger entry of a service that is gone could not be deleted"),
        }
    }

    pub(super) async fn ensure_finalizer(&self, intent: &crate::intent::Intent) -> Result<(), Fault> {
        let key = (intent.id.namespace.clone(), intent.id.name.clone());
        if self.index().record(&key).is_none_or(|r| r.intent.id != intent.id || r.has_finalizer()) {
            return Ok(());
        }
        self.cluster.set_finalizer(&intent.id, true).await?;
        if let Some(record) = self.index().record_mut(&key).filter(|r| r.intent.id == intent.id && !r.has_finalizer()) {
            record.finalizers.push(crate::api::FINALIZER.into());
        }
        Ok(())
    }

    /// What earlier looks left behind, for the next plan.
    fn remembered(&self, declared: &Declared) -> Remembered {
        let now = self.now();
        let circuit_open = self.circuit_is_open();
        let aside = self.aside(declared);
        let mut kept = self.kept();
        let entry = kept.entry(declared.service.clone()).or_default();
        if !std::mem::replace(&mut entry.asked, true) {
            // In the first look after a restart the statuses stand for the look before.
            let index = self.index();
            let told = |c: &plan::PolicyOnService| {
                let key = (c.intent.id.namespace.clone(), c.intent.id.name.clone());
                index.record(&key).is_some_and(|r| {
                    super::tell::told_settled(&c.intent, &r.status.get(), &declared.service, circuit_open)
                })
            };
            if !declared.claims.is_empty() && declared.claims.iter().all(told) {
                entry.memory.settle(claim::fingerprint(&declared.claims), BTreeSet::new());
            }
        }
        entry.memory.prune(now);
        Remembered { aside, memory: entry.memory.clone(), circuit_open }
    }

    /// Takes down how a round ended.
    fn remember_round(&self, found: &Found) {
        let waits = |h: &WithheldReason| matches!(h, WithheldReason::Contested(_) | WithheldReason::CircuitOpen);
        let (waiting, open): (Vec<_>, Vec<_>) = found.rest.withheld.iter().partition(|w| waits(&w.why));
        let mut kept = self.kept();
        let entry = kept.entry(found.declared.service.clone()).or_default();
        entry.memory.waiting = waiting.iter().map(|w| w.grant.clone()).collect();
        let by = claim::fingerprint(&found.declared.claims);
        // What waits because of others stays their doing.
        let outstanding = open.into_iter().map(|w| w.grant.clone()).collect();
        entry.memory.settle(by, outstanding);
        drop(kept);
        if found.rest.withheld.iter().any(|w| w.why == WithheldReason::UnansweredSelectors) {
            let waits = self.index().wait_for_listing(&found.declared.service);
            if !waits {
                // It was answered in the meantime.
                self.ask([&found.declared.service], Priority::Drift);
            }
        }
        let blocked = waiting.iter().any(|w| w.why == WithheldReason::CircuitOpen);
        self.wait_for_circuit(&found.declared.service, blocked);
    }

    fn forget(&self, service: &RunService) {
        self.kept().remove(service);
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(service);
        self.wait_for_circuit(service, false);
    }

    /// Members that are not to be tried now.
    fn aside(&self, declared: &Declared) -> BTreeMap<Grant, RejectedMember> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = refused.get_mut(&declared.service) else { return BTreeMap::new() };
        let asked = claim::fingerprint(&declared.claims);
        list.retain(|_, r| r.until + Duration::from_secs(7200) > Instant::now());
        list.iter()
            .filter(|(_, r)| r.until > Instant::now() && r.asked_by == asked)
            .map(|(g, r)| (g.clone(), r.aside.clone()))
            .collect()
    }

    fn set_aside(&self, declared: &Declared, members: BTreeMap<Grant, RejectedMember>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let list = refused.entry(declared.service.clone()).or_default();
        let asked_by = claim::fingerprint(&declared.claims);
        for (grant, aside) in members {
            let times = list.get(&grant).map_or(0, |r| r.times);
            // A service account that was just made is unknown for some minutes; later the same refusal is a mistake.
            let wait = Duration::from_secs(30)
                .saturating_mul(2u32.saturating_pow(times.min(7)))
                .min(Duration::from_secs(3600));
            list.insert(grant, Refused { aside, until: Instant::now() + wait, times: times + 1, asked_by });
        }
    }

    /// Sets when a service is looked at next: its slot, the end of a grant, another try of a refused member, or the next
    /// turn in a fight.
    fn schedule(&self, declared: &Declared, rest: &Plan) {
        let service = &declared.service;
        let now = self.now();
        let interval = declared.claims.iter().filter(|c| !c.intent.suspended).map(|c| c.intent.interval).min();
        if let Some(interval) = interval {
            let interval = self.interval(&service.project, interval);
            let wait = next_slot(self.elapsed(), interval, spread(self.options.seed, service));
            self.queue.add_at(service, Priority::Periodic, Instant::now() + wait);
        }
        let expiry = declared.claims.iter().filter_map(|c| c.intent.next_expiry(now)).min();
        let fight = rest.withheld.iter().filter_map(|w| match &w.why {
            WithheldReason::Contested(fight) => Some(fight.not_before),
            _ => None,
        });
        for (at, lane) in
            expiry.map(|at| (at, Priority::Declared)).into_iter().chain(fight.map(|at| (at, Priority::Drift)))
        {
            // Far ends come up again with a later look anyway.
            if let Ok(wait) = Duration::try_from(at.duration_since(now))
                && wait < Duration::from_secs(86_400)
            {
                self.queue.add_at(service, lane, Instant::now() + wait + Duration::from_millis(100));
            }
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) =
            refused.get(service).and_then(|l| l.values().map(|r| r.until).filter(|u| *u > Instant::now()).min())
        {
            self.queue.add_at(service, Priority::Retry, at);
        }
    }
}
