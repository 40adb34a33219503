//! One round on one service: gather, plan, apply, read back, tell.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Controller, Refused, next_slot, queue::Job, spread};
use crate::{
    api::{InvokerPolicyStatus, ServiceState},
    apply::{self, Outcome},
    cloudrun::CloudRun,
    cluster::index::Ledger,
    fault::{Fault, FaultClass, Retry},
    gather::{self, Declared},
    iam::{Grant, MAX_MEMBERS, Policy, RunService},
    intent::Intent,
    metrics::Trigger,
    plan::{self, Aside, Change, Plan, RevokeCause, View},
    status::{
        Held, Look, Seen,
        events::{self, Written},
    },
};

/// Conflicts in a row after which a service goes back into the line.
const MAX_CONFLICTS: u32 = 5;
/// A policy this close to the limit says so.
const NEAR_LIMIT: usize = MAX_MEMBERS - 100;

/// What a round found and did.
struct Found {
    declared: Declared,
    /// As it was before anything was written.
    before: Policy,
    live: Policy,
    /// What was carried out.
    plan: Option<Plan>,
    /// What is left to do, with everything withheld.
    rest: Plan,
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
            Ok(Some(found)) if found.plan.is_some() => "changed",
            Ok(Some(_)) => "unchanged",
            Err((_, fault)) => fault.class.row().label,
        };
        self.metrics.reconcile_total.with_label_values(&[label]).inc();
        self.metrics.reconcile_duration_seconds.observe(started.elapsed().as_secs_f64());
        tracing::debug!(result = label, took = ?started.elapsed(), "round finished");
        self.metrics.last_audit_timestamp_seconds.set(self.now().as_second());

        let failures = self.queue.done(service, result.is_err());
        match result {
            Ok(None) => {
                self.queue.forget(service);
                if let Ok(mut map) = self.in_sync_at.lock() {
                    map.remove(service);
                }
            }
            Ok(Some(found)) => {
                self.tell(&found.declared, &Ok(&found), &job);
                self.schedule(&found.declared);
            }
            Err((declared, fault)) => {
                if fault.class == FaultClass::ServiceNotFound || fault.class == FaultClass::ProjectNotFound {
                    self.forget_ledger(service, &declared.ledger).await;
                }
                self.tell(&declared, &Err(&fault), &job);
                let slow = fault.class.row().retry == Retry::Slow;
                if slow {
                    self.schedule(&declared);
                } else {
                    let wait = fault.retry_after.unwrap_or_else(|| backoff(failures, self.options.seed, service));
                    self.queue.add_at(service, crate::cloudrun::Lane::Retry, Instant::now() + wait);
                }
            }
        }
    }

    /// Gather, plan, apply; again while somebody else changes the policy in between.
    async fn reconcile(&self, job: &Job) -> Result<Option<Found>, (Declared, Fault)> {
        let service = &job.service;
        let mut conflicts = 0;
        let mut carried: Option<Plan> = None;
        let mut first: Option<Policy> = None;
        // A read-back serves as the next reading.
        let mut known: Option<Policy> = None;
        loop {
            let declared = Declared::of(service, &self.index());
            if !declared.wants_a_look() {
                return Ok(None);
            }
            let live = match known.take() {
                Some(live) => live,
                None => match gather::reality(&*self.cloud, service, job.lane).await {
                    Ok(live) => live,
                    Err(fault) => return Err((declared, fault)),
                },
            };
            let before = first.get_or_insert_with(|| live.clone()).clone();
            let aside = self.aside(&declared);
            let plan = declared.with_input(&live, &aside, &self.options.settings, self.now(), plan::plan);
            if plan.is_empty() {
                if !plan.forget.is_empty()
                    && let Err(fault) = self.remember(&plan, &declared).await
                {
                    return Err((declared, fault));
                }
                return Ok(Some(Found { declared, before, live, plan: carried, rest: plan }));
            }
            if let Err(fault) = self.prepare(&plan, &declared).await {
                return Err((declared, fault));
            }
            if !self.leads() {
                let fault =
                    Fault::new(FaultClass::Kubernetes, "leadership was lost before the write; nothing was written");
                return Err((declared, fault));
            }
            match apply::write(&*self.cloud, &plan, &live, job.lane).await {
                Ok(Outcome::Written) => {
                    carried = Some(merged(carried, plan));
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
                            carried = Some(merged(carried, plan));
                            known = Some(after);
                            conflicts += 1;
                            if conflicts >= MAX_CONFLICTS {
                                return Err((declared, fault));
                            }
                        }
                        _ => return Err((declared, fault)),
                    }
                }
                Err(fault) => return Err((declared, fault)),
            }
        }
    }

    /// What must be in the store before IAM is touched: finalizers, so that no grant outlives its policy unseen, and the
    /// ledger.
    async fn prepare(&self, plan: &Plan, declared: &Declared) -> Result<(), Fault> {
        for intent in declared.intents.iter().filter(|i| i.revokes_on_delete() && !i.deleting) {
            let asks = plan.grants.values().any(|by| by.contains(&intent.id));
            if asks {
                self.ensure_finalizer(intent).await?;
            }
        }
        self.remember(plan, declared).await
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

    pub(super) async fn ensure_finalizer(&self, intent: &Intent) -> Result<(), Fault> {
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

    /// Members that are not to be tried now.
    fn aside(&self, declared: &Declared) -> BTreeMap<Grant, Aside> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = refused.get_mut(&declared.service) else { return BTreeMap::new() };
        let asked = asked_by(declared);
        list.retain(|_, r| r.until + Duration::from_secs(7200) > Instant::now());
        list.iter()
            .filter(|(_, r)| r.until > Instant::now() && r.asked_by == asked)
            .map(|(g, r)| (g.clone(), r.aside.clone()))
            .collect()
    }

    fn set_aside(&self, declared: &Declared, members: BTreeMap<Grant, Aside>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let list = refused.entry(declared.service.clone()).or_default();
        for (grant, aside) in members {
            let times = list.get(&grant).map_or(0, |r| r.times);
            // A service account that was just made is unknown for some minutes; later the same refusal is a mistake.
            let wait = Duration::from_secs(30)
                .saturating_mul(2u32.saturating_pow(times.min(7)))
                .min(Duration::from_secs(3600));
            list.insert(
                grant,
                Refused { aside, until: Instant::now() + wait, times: times + 1, asked_by: asked_by(declared) },
            );
        }
    }

    /// Sets when a service is looked at next: its slot, the end of a grant, or another try of a refused member.
    fn schedule(&self, declared: &Declared) {
        use crate::cloudrun::Lane;
        let service = &declared.service;
        let now = self.now();
        let interval = declared.intents.iter().filter(|i| !i.suspended).map(|i| i.interval).min();
        if let Some(interval) = interval {
            let wait = next_slot(self.lists_elapsed(), interval, spread(self.options.seed, service));
            self.queue.add_at(service, Lane::Periodic, Instant::now() + wait);
        }
        let expiry = declared.intents.iter().filter_map(|i| i.next_expiry(now)).min();
        if let Some(wait) = expiry.and_then(|at| Duration::try_from(at.duration_since(now)).ok()) {
            // Far ends come up again with a later look anyway.
            if wait < Duration::from_secs(86_400) {
                self.queue.add_at(service, Lane::Declared, Instant::now() + wait + Duration::from_millis(100));
            }
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) =
            refused.get(service).and_then(|l| l.values().map(|r| r.until).filter(|u| *u > Instant::now()).min())
        {
            self.queue.add_at(service, Lane::Retry, at);
        }
    }

    /// Turns what was found into looks, events and metrics of every policy concerned.
    fn tell(&self, declared: &Declared, found: &Result<&Found, &Fault>, job: &Job) {
        let now = self.now();
        let mut was_drift = None;
        let mut notes = Vec::new();
        for intent in &declared.intents {
            let key = (intent.id.namespace.clone(), intent.id.name.clone());
            let changed_at = found.as_ref().ok().and_then(|f| f.plan.as_ref()).map(|_| now);
            let seen = match found {
                Ok(f) => Some(self.seen(intent, f)),
                Err(_) => None,
            };
            let mut index = self.index();
            let Some(record) = index.record_mut(&key).filter(|r| r.intent.id == intent.id) else { continue };
            // In the first look after a restart the status stands for the look before: what differs now and did not then
            // was changed by somebody while nobody looked.
            let stood = Look {
                generation: intent.generation,
                requested_at: intent.requested_at.clone(),
                result: Ok(Seen::default()),
                changed_at: None,
            };
            let seen_before = record.looks.get(&job.service).map(|l| &**l);
            let before =
                seen_before.or_else(|| told_in_sync(intent, &record.status.get(), &job.service).then_some(&stood));
            let look = Look {
                generation: intent.generation,
                requested_at: intent.requested_at.clone(),
                result: match (&seen, found) {
                    (Some(seen), _) => Ok(seen.clone()),
                    (None, Err(fault)) => Err((*fault).clone()),
                    (None, Ok(_)) => continue,
                },
                changed_at: changed_at.or(before.and_then(|b| b.changed_at)),
            };
            if let Ok(f) = found {
                let view = f
                    .declared
                    .with_input(&f.before, &BTreeMap::new(), &self.options.settings, now, |i| plan::view(intent, i));
                // What our own declarations took away is no drift, also not for the other policies on the service.
                let declared_away = |g: &&Grant| {
                    let cause = f.plan.as_ref().and_then(|p| p.revokes.get(*g));
                    !matches!(
                        cause,
                        Some(RevokeCause::Expired | RevokeCause::PolicyDeleted | RevokeCause::NoLongerDeclared)
                    )
                };
                let view = View { unexpected: view.unexpected.iter().filter(declared_away).cloned().collect(), ..view };
                let differed =
                    Seen { missing: shown(&view.missing), unexpected: shown(&view.unexpected), ..Seen::default() };
                let known = before.is_some_and(|b| b.answers(intent) && b.result.is_ok());
                let drifted = known
                    && !differed.in_sync()
                    && before.and_then(|b| b.result.as_ref().ok()).is_some_and(Seen::in_sync);
                let written = self.written(intent, f, drifted);
                if drifted {
                    was_drift = Some((view.missing.len(), view.unexpected.len()));
                }
                if f.plan.is_some() && !known {
                    self.metrics.convergence_seconds.observe(record.declared_at.elapsed().as_secs_f64());
                }
                notes.extend(
                    events::notes(&job.service, before, &differed, &look, &written)
                        .into_iter()
                        .map(|n| (intent.id.clone(), n)),
                );
            } else {
                notes.extend(
                    events::notes(&job.service, before, &Seen::default(), &look, &Written::default())
                        .into_iter()
                        .map(|n| (intent.id.clone(), n)),
                );
            }
            // Only what is news leads to a new status.
            let news = seen_before != Some(&look);
            if record.services.contains(&job.service) {
                record.looks.insert(job.service.clone(), Box::new(look));
            }
            drop(index);
            if news || intent.deleting {
                self.reports.add(&key, if intent.deleting { Duration::ZERO } else { Duration::from_millis(100) });
            }
        }
        if let Ok(f) = found {
            self.count(f, was_drift, job);
        }
        for (id, note) in notes {
            self.reports.note(id, note);
        }
    }

    /// What one policy sees of the service now.
    fn seen(&self, intent: &Intent, found: &Found) -> Seen {
        let aside = BTreeMap::new();
        let view: View = found
            .declared
            .with_input(&found.live, &aside, &self.options.settings, self.now(), |input| plan::view(intent, input));
        let held = found
            .rest
            .withheld
            .iter()
            .filter(|w| match w.change {
                Change::Grant => view.missing.contains(&w.grant),
                Change::Revoke => view.unexpected.contains(&w.grant),
            })
            .map(|w| Held { member: w.grant.to_string(), reason: w.why.reason(), message: w.why.explain() })
            .collect();
        let mut notes = Vec::new();
        let count = found.live.member_count();
        if count > NEAR_LIMIT {
            notes.push(format!("the IAM policy has {count} of at most {MAX_MEMBERS} members"));
        }
        let foreign = foreign_conditions(intent, found);
        if foreign > 0 {
            notes.push(format!(
                "{foreign} member(s) invoke under conditions that no policy lists; these are left alone"
            ));
        }
        let public = found.live.grants().into_iter().find(|g| g.principal.is_public());
        let declared_public = public.as_ref().is_some_and(|g| {
            self.options.settings.allow_public
                && found.declared.intents.iter().any(|i| i.declared.iter().any(|d| d.grant == *g))
        });
        let exposed = if found.declared.info.as_ref().is_some_and(|i| i.invoker_iam_disabled) {
            Some("its IAM check is switched off (invokerIamDisabled)")
        } else {
            match public {
                Some(g) if !declared_public && g.principal.as_str() == "allUsers" => Some("allUsers may invoke it"),
                Some(_) if !declared_public => Some("allAuthenticatedUsers may invoke it"),
                _ => None,
            }
        };
        Seen {
            missing: shown(&view.missing),
            unexpected: shown(&view.unexpected),
            protected: shown(&view.protected),
            held,
            exposed,
            notes,
        }
    }

    /// What was written on behalf of one policy.
    fn written(&self, intent: &Intent, found: &Found, corrects_drift: bool) -> Written {
        let Some(plan) = &found.plan else { return Written::default() };
        let granted =
            plan.grants.iter().filter(|(_, by)| by.contains(&intent.id)).map(|(g, _)| g.to_string()).collect();
        let revoked = if intent.enforces() {
            plan.revokes.keys().filter(|g| g.role == intent.role).map(ToString::to_string).collect()
        } else {
            vec![]
        };
        Written { granted, revoked, corrects_drift }
    }

    fn count(&self, found: &Found, drift: Option<(usize, usize)>, job: &Job) {
        let mut in_sync_at = self.in_sync_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((missing, unexpected)) = drift {
            self.metrics.drift_detected_total.with_label_values(&["missing"]).inc_by(missing as u64);
            self.metrics.drift_detected_total.with_label_values(&["unexpected"]).inc_by(unexpected as u64);
            if let Some(since) = in_sync_at.get(&job.service) {
                self.metrics.drift_detection_seconds.observe(since.elapsed().as_secs_f64());
            }
        }
        in_sync_at.insert(job.service.clone(), Instant::now());
        let Some(plan) = &found.plan else { return };
        let trigger = if drift.is_some() { Trigger::Drift } else { Trigger::SpecChanged };
        let count = |action: &str, trigger: Trigger, n: usize| {
            if n > 0 {
                self.metrics.corrections_total.with_label_values(&[action, trigger.label()]).inc_by(n as u64);
            }
        };
        count("grant", trigger, plan.grants.len());
        for cause in plan.revokes.values() {
            let trigger = match cause {
                RevokeCause::Expired => Trigger::Expired,
                RevokeCause::PolicyDeleted => Trigger::Deleted,
                RevokeCause::NoLongerDeclared => Trigger::SpecChanged,
                RevokeCause::Unlisted => trigger,
            };
            count("revoke", trigger, 1);
        }
        tracing::info!(
            granted = plan.grants.len(),
            revoked = plan.revokes.len(),
            trigger = trigger.label(),
            "IAM policy changed and read back"
        );
        tracing::debug!(?plan.grants, ?plan.revokes, "members changed");
    }
}

/// Whether the status says that a service was as declared under this very declaration.
fn told_in_sync(intent: &Intent, status: &InvokerPolicyStatus, service: &RunService) -> bool {
    status.observed_generation == Some(intent.generation)
        && status
            .services
            .iter()
            .any(|s| s.state == ServiceState::InSync && *s.region == *service.region && *s.name == *service.name)
}

/// The generations of all policies that name the service.
fn asked_by(declared: &Declared) -> Vec<(Arc<str>, i64)> {
    let mut list: Vec<_> = declared.intents.iter().map(|i| (i.id.uid.clone(), i.generation)).collect();
    list.sort();
    list
}

/// Two writes of one round, told as one.
fn merged(before: Option<Plan>, next: Plan) -> Plan {
    match before {
        None => next,
        Some(mut plan) => {
            plan.grants.extend(next.grants);
            plan.revokes.extend(next.revokes);
            plan
        }
    }
}

fn shown(grants: &std::collections::BTreeSet<Grant>) -> Vec<String> {
    grants.iter().map(ToString::to_string).collect()
}

/// Members of the policy's role under conditions that nobody lists: sacred, but a person should know of them.
fn foreign_conditions(intent: &Intent, found: &Found) -> usize {
    let listed = |g: &Grant| {
        found
            .declared
            .intents
            .iter()
            .any(|i| i.declared.iter().any(|d| d.grant.role == g.role && d.grant.condition == g.condition))
    };
    found
        .live
        .grants()
        .iter()
        .filter(|g| g.role == intent.role && g.condition.as_ref().is_some_and(|c| c.expiry().is_none()) && !listed(g))
        .count()
}
