//! What a round found, told: a look for each policy, events, metrics.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::{Controller, queue::Job, reconcile::Found};
use crate::{
    api::{EventReason, InvokerPolicyStatus, Reason, ServiceState, ServiceStatus},
    cloudrun::CloudRun,
    fault::Fault,
    gather::Declared,
    history,
    iam::{Grant, MAX_MEMBERS, RunService},
    intent::Intent,
    plan::{self, Change, PolicyOnService, RevokeCause, WithheldReason},
    status::{
        By, Findings, Held, Observation, approve_with,
        events::{self, Note, Written},
    },
};

/// A policy this close to the limit says so.
const NEAR_LIMIT: usize = MAX_MEMBERS - 100;
/// Members of a held plan that are named in a message; all of them are in the list of unexpected members.
const NAMED: usize = 5;

impl<C: CloudRun> Controller<C> {
    /// Turns what was found into looks, events and metrics of every policy concerned.
    pub(super) fn tell(&self, declared: &Declared, found: &Result<&Found, &Fault>, job: &Job) {
        let now = self.now();
        let mut was_drift = None;
        let mut notes = Vec::new();
        for claim in &declared.claims {
            let intent = &claim.intent;
            let key = (intent.id.namespace.clone(), intent.id.name.clone());
            let told = match found {
                Ok(f) => Ok((self.seen(claim, f), f)),
                Err(fault) => Err((*fault).clone()),
            };
            let mut index = self.index();
            let Some(record) = index.record_mut(&key).filter(|r| r.intent.id == intent.id) else { continue };
            // In the first look after a restart the status stands for the look before: what differs now and did not then
            // was changed by somebody while nobody looked.
            let stood = Observation {
                generation: intent.generation,
                requested_at: intent.requested_at.clone(),
                result: Ok(Findings::default()),
                changed_at: None,
            };
            let seen_before = record.looks.get(&job.service).map(|l| &**l);
            let before =
                seen_before.or_else(|| told_in_sync(intent, &record.status.get(), &job.service).then_some(&stood));
            let wrote = found.as_ref().is_ok_and(|f| f.carried.is_some());
            let look = Observation {
                generation: intent.generation,
                requested_at: intent.requested_at.clone(),
                changed_at: wrote.then_some(now).or(before.and_then(|b| b.changed_at)),
                result: told.as_ref().map(|(seen, _)| seen.clone()).map_err(Clone::clone),
            };
            let (mut differed, mut written) = (Findings::default(), Written::default());
            if let Ok((seen, f)) = &told {
                differed = match &f.before {
                    Some(_) => self.differed(claim, f),
                    None => Findings { held: vec![], notes: vec![], ..seen.clone() },
                };
                let known = before.is_some_and(|b| b.generation == intent.generation && b.result.is_ok());
                let drifted = known
                    && !differed.in_sync()
                    && before.and_then(|b| b.result.as_ref().ok()).is_some_and(Findings::in_sync);
                if drifted {
                    was_drift = Some((differed.missing.len(), differed.unexpected.len()));
                }
                written = carried_out(claim, f);
                if wrote && !known {
                    self.metrics.convergence_seconds.observe(record.declared_at.elapsed().as_secs_f64());
                }
            }
            let told = events::notes(&job.service, before, &differed, &look, &written);
            notes.extend(told.into_iter().map(|n| (intent.id.clone(), n)));
            // Only what is news leads to a new status.
            let news = seen_before != Some(&look);
            if record.services.contains(&job.service) {
                record.looks.insert(job.service.clone(), Box::new(look));
            }
            // What was still being counted may be known now.
            let released = if claim.spread.is_some() { index.release(&key) } else { BTreeSet::new() };
            drop(index);
            self.queue.add_all(&released, crate::cloudrun::Priority::Declared);
            if news || intent.deleting {
                let soon = if intent.deleting { 0 } else { 100 };
                self.reports.add(&key, std::time::Duration::from_millis(soon));
            }
        }
        if let Ok(f) = found {
            notes.extend(orphan_notes(f));
            self.count(f, was_drift, job);
        }
        for (id, note) in notes {
            self.reports.note(id, note);
        }
    }

    /// What one policy sees of the service now.
    fn seen(&self, claim: &PolicyOnService, found: &Found) -> Findings {
        let input = found.declared.input(&found.live, &found.remembered, &self.options.settings, self.now());
        let view = plan::view(claim, &input);
        let mut notes = Vec::new();
        let count = found.live.member_count();
        if count > NEAR_LIMIT {
            notes.push(format!("the IAM policy has {count} of at most {MAX_MEMBERS} members"));
        }
        let foreign = foreign_conditions(&claim.intent, found);
        if foreign > 0 {
            notes.push(format!(
                "{foreign} member(s) invoke under conditions that no policy lists; these are left alone"
            ));
        }
        let concerned: Vec<_> = found
            .rest
            .withheld
            .iter()
            .filter(|w| match w.change {
                Change::Grant => view.missing.contains(&w.grant),
                Change::Revoke => view.unexpected.contains(&w.grant),
                Change::Leave => claim.declared().iter().any(|d| d.grant == w.grant),
            })
            .collect();
        let contested = concerned.iter().find(|w| matches!(w.why, WithheldReason::Contested(_)));
        notes.extend(contested.map(|w| format!("{}: {}", w.grant, w.why.explain())));
        let ours = |g: &Grant| claim.declared().iter().any(|d| d.grant == *g) || g.role == claim.intent.role;
        let fights = input.memory.fights(input.now);
        Findings {
            missing: shown(&view.missing),
            unexpected: shown(&view.unexpected),
            protected: shown(&view.protected),
            held: held(&claim.intent, &concerned),
            approve: concerned.iter().find_map(|w| match &w.why {
                WithheldReason::Approval(a) => Some(a.hash.clone()),
                _ => None,
            }),
            contested: fights
                .iter()
                .filter(|(g, _)| ours(g))
                .map(|(g, fight)| {
                    let rival = found.blame.get(g).map_or(String::new(), |by| format!(", last made by {by}"));
                    format!("{g} (corrected {} times within an hour{rival})", fight.corrections)
                })
                .collect(),
            also: found.live.other_invokers().iter().map(|(p, role)| format!("{p} ({role})")).collect(),
            exposed: plan::exposed(found.declared.info.as_ref(), &input),
            by: self.made_by(found, view.missing.iter().chain(&view.unexpected)),
            notes,
        }
    }

    /// How reality differed from one policy before this round wrote. What our own declarations took away is no drift, also
    /// not for the other policies on the service.
    fn differed(&self, claim: &PolicyOnService, found: &Found) -> Findings {
        let before = found.before.as_ref().unwrap_or(&found.live);
        let input = found.declared.input(before, &found.remembered, &self.options.settings, self.now());
        let view = plan::view(claim, &input);
        let declared_away = |g: &&Grant| {
            let cause = found.carried.as_ref().and_then(|p| p.revokes.get(*g));
            !matches!(cause, Some(cause) if *cause != RevokeCause::Unlisted)
        };
        let unexpected: BTreeSet<Grant> = view.unexpected.iter().filter(declared_away).cloned().collect();
        let by = self.made_by(found, view.missing.iter().chain(&unexpected));
        Findings { missing: shown(&view.missing), unexpected: shown(&unexpected), by, ..Findings::default() }
    }

    /// Who made the last of these differences.
    fn made_by<'a>(&self, found: &Found, differences: impl Iterator<Item = &'a Grant>) -> By {
        let differences: Vec<_> = differences.collect();
        if self.options.events.is_none() || differences.is_empty() {
            return By::NotAsked;
        }
        let makers = differences.iter().filter_map(|g| found.blame.get(*g));
        makers.max_by_key(|by| by.at.0).map_or(By::Unknown, |by| By::Known(by.clone()))
    }

    fn count(&self, found: &Found, drift: Option<(usize, usize)>, job: &Job) {
        let mut kept = self.kept();
        let entry = kept.entry(job.service.clone()).or_default();
        if let Some((missing, unexpected)) = drift {
            self.metrics.drift_detected_total.with_label_values(&["missing"]).inc_by(missing as u64);
            self.metrics.drift_detected_total.with_label_values(&["unexpected"]).inc_by(unexpected as u64);
            if let Some(since) = entry.in_sync_at {
                self.metrics.drift_detection_seconds.observe(since.elapsed().as_secs_f64());
            }
        }
        entry.in_sync_at = Some(Instant::now());
        drop(kept);
        let Some(plan) = &found.carried else { return };
        let mut counts = BTreeMap::new();
        let actions = plan.grants.keys().map(|g| (g, "grant")).chain(plan.revokes.keys().map(|g| (g, "revoke")));
        for (grant, action) in actions {
            *counts.entry((action, history::reason_of(plan, &found.declared.claims, grant))).or_insert(0) += 1;
        }
        for ((action, reason), n) in counts {
            self.metrics.corrected(action, reason, n);
        }
        tracing::info!(
            granted = plan.grants.len(),
            revoked = plan.revokes.len(),
            reason = history::reason(plan, &found.declared.claims).as_str(),
            "IAM policy changed and read back"
        );
        tracing::debug!(?plan.grants, ?plan.revokes, "members changed");
    }
}

/// What waits on a service for a person or a better time, as one policy reads it. A plan that is held for approval is one
/// thing, however many members it takes away.
fn held(intent: &Intent, concerned: &[&plan::Withheld]) -> Vec<Held> {
    let mut held: Vec<Held> = concerned
        .iter()
        .filter(|w| !matches!(w.why, WithheldReason::Approval(_) | WithheldReason::SelectorImpact(_)))
        .map(|w| Held { member: w.grant.to_string(), reason: w.why.reason(), message: w.why.explain() })
        .collect();
    let waiting: Vec<String> = concerned
        .iter()
        .filter(|w| matches!(w.why, WithheldReason::Approval(_)))
        .map(|w| w.grant.to_string())
        .collect();
    let first = concerned.iter().find_map(|w| match &w.why {
        WithheldReason::Approval(a) => Some((a, w.why.explain())),
        _ => None,
    });
    if let Some((approval, why)) = first {
        let more = waiting.len().saturating_sub(NAMED);
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = waiting.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        // First, because it is the one that a person can settle.
        held.insert(
            0,
            Held {
                member: format!("{named}{tail}"),
                reason: Reason::ApprovalRequired,
                message: format!("{why}. To let exactly this through: {}", approve_with(intent, &approval.hash)),
            },
        );
    }
    held
}

/// A held plan on a service that no policy names any more is told to those that granted something there.
fn orphan_notes(found: &Found) -> Vec<(crate::intent::PolicyId, Note)> {
    if !found.declared.claims.is_empty() {
        return vec![];
    }
    let Some(w) = found.rest.withheld.iter().find(|w| matches!(w.why, WithheldReason::Approval(_))) else {
        return vec![];
    };
    let s = &found.declared.service;
    let hash = w.why.hash().map(|h| format!("{}={h}", crate::api::APPROVE)).unwrap_or_default();
    let text = format!(
        "{} ({}), which no policy names any more: {}; approve with the annotation {hash}",
        s.name,
        s.region,
        w.why.explain()
    );
    let note = Note { reason: EventReason::ApprovalRequired, warning: true, text };
    found.declared.owners.iter().map(|id| (id.clone(), note.clone())).collect()
}

/// What was written on behalf of one policy.
fn carried_out(claim: &PolicyOnService, found: &Found) -> Written {
    let Some(plan) = &found.carried else { return Written::default() };
    let intent = &claim.intent;
    let granted: Vec<&Grant> = plan.grants.iter().filter(|(_, by)| by.contains(&intent.id)).map(|(g, _)| g).collect();
    let revoked: Vec<&Grant> =
        if claim.enforces() { plan.revokes.keys().filter(|g| g.role == intent.role).collect() } else { vec![] };
    let text = |list: &[&Grant]| list.iter().map(ToString::to_string).collect();
    Written {
        granted: text(&granted),
        revoked: text(&revoked),
        corrects_drift: granted.iter().chain(&revoked).any(|g| plan.drift.contains(*g)),
    }
}

/// What the status says of a service under this very declaration.
fn told<'a>(intent: &Intent, status: &'a InvokerPolicyStatus, service: &RunService) -> Option<&'a ServiceStatus> {
    let current = status.observed_generation == Some(intent.generation);
    let mut entries = status.services.iter().filter(|_| current);
    entries.find(|s| *s.region == *service.region && *s.name == *service.name)
}

/// Whether the status says that a service was as declared.
fn told_in_sync(intent: &Intent, status: &InvokerPolicyStatus, service: &RunService) -> bool {
    told(intent, status, service).is_some_and(|s| s.state == ServiceState::InSync)
}

/// Whether the status says that a service was settled, but for what others did and nobody has undone yet: a fight, or an
/// open circuit breaker.
pub(super) fn told_settled(
    intent: &Intent,
    status: &InvokerPolicyStatus,
    service: &RunService,
    circuit_open: bool,
) -> bool {
    told(intent, status, service).is_some_and(|s| match s.state {
        ServiceState::InSync => true,
        ServiceState::Drifted | ServiceState::Held => s.contested || circuit_open,
        ServiceState::Failed | ServiceState::NotFound => false,
    })
}

fn shown(grants: &BTreeSet<Grant>) -> Vec<String> {
    grants.iter().map(ToString::to_string).collect()
}

/// Members of the policy's role under conditions that nobody lists: sacred, but a person should know of them.
fn foreign_conditions(intent: &Intent, found: &Found) -> usize {
    let listed = |g: &Grant| {
        let mut declared = found.declared.claims.iter().flat_map(|c| c.declared());
        declared.any(|d| d.grant.role == g.role && d.grant.condition == g.condition)
    };
    found
        .live
        .grants()
        .iter()
        .filter(|g| g.role == intent.role && g.condition.as_ref().is_some_and(|c| c.expiry().is_none()) && !listed(g))
        .count()
}
