//! What one policy sees of one service, and what of it is news. Decided here once: status, events
//! and metrics show it.

mod before;
mod findings;
mod members;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::events::{self, Note};
use crate::{
    api::{ChangeOutcome, ChangePhase, ChangedBy},
    fault::Fault,
    iam::{Grant, MAX_MEMBERS, RunService, ServiceInfo},
    intent::Intent,
    ledger::Pending,
    plan::{self, Change, Input, Plan, PolicyOnService, View, Withheld, WithheldReason},
};

pub use before::{Before, entry_of, was_outstanding};
pub use findings::{By, Findings, Held, Written};
use findings::{by_other_roles, foreign_conditions, held, last_of};
pub use members::Members;

/// A policy this close to the limit says so.
const NEAR_LIMIT: usize = MAX_MEMBERS - 100;

/// Members of a held plan that are named in a message; all of them are in the list of unexpected
/// members.
const NAMED: usize = 5;

/// The last observation of one service on behalf of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Generation of the policy that was reconciled.
    pub generation: i64,
    /// The reconcile-now request that it came after.
    pub requested_at: Option<Arc<str>>,
    pub result: Result<Findings, Fault>,
    /// When the operator last changed the service's IAM policy.
    pub changed_at: Option<Timestamp>,
}

impl Observation {
    /// Whether it was made with this state of the policy, and after its last request.
    pub fn answers(&self, intent: &Intent) -> bool {
        self.generation == intent.generation && self.requested_at == intent.requested_at
    }
}

/// A write that is over, and what became of it. Events, counters, history and the memory of fights
/// follow from these and from nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub pending: Pending,
    pub outcome: ChangeOutcome,
}

impl Applied {
    /// Whether anything of it was written.
    pub fn is_real(&self) -> bool {
        matches!(
            self.outcome.phase,
            ChangePhase::Applied | ChangePhase::Partial
        )
    }
}

/// What one reconcile of a service found and did.
pub struct Reconciled<'a> {
    /// With the live policy as it is now.
    pub input: &'a Input<'a>,
    /// What is left to do, with everything withheld.
    pub rest: &'a Plan,
    /// The service as each policy sees it now, in the order of the input's claims.
    pub views: &'a [View],
    /// Differences that somebody else made, before anything was corrected.
    pub drift: &'a FoundDrift,
    /// Writes whose end was seen.
    pub applied: &'a [Applied],
    /// Who made what differed, or what was corrected lately.
    pub blame: &'a BTreeMap<Grant, Arc<ChangedBy>>,
    /// There are audit events, so that whoever made a drift could be known.
    pub attributed: bool,
    pub info: Option<&'a ServiceInfo>,
}

/// What somebody else changed, which way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    pub missing: BTreeSet<Grant>,
    pub unexpected: BTreeSet<Grant>,
}

impl Drift {
    fn of(drift: &BTreeSet<Grant>, live: &BTreeSet<Grant>) -> Self {
        let (unexpected, missing) = drift.iter().cloned().partition(|g| live.contains(g));
        Self {
            missing,
            unexpected,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }

    /// With what was found besides.
    pub fn extend(&mut self, more: Self) {
        self.missing.extend(more.missing);
        self.unexpected.extend(more.unexpected);
    }

    fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.missing.iter().chain(&self.unexpected)
    }

    fn members(&self) -> Members {
        self.grants().collect()
    }
}

/// Drift on a service, before anything of it was corrected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundDrift {
    /// What enforced policies correct, or would if nothing stood in the way.
    enforced: Drift,
    /// What policies that only report see.
    reported: Drift,
}

impl FoundDrift {
    /// With what a plan says of the live policy that it was made for.
    pub fn add(&mut self, plan: &Plan, live: &BTreeSet<Grant>) {
        self.enforced.extend(Drift::of(&plan.drift, live));
        self.reported.extend(Drift::of(&plan.reported_drift, live));
    }

    fn seen_by(&self, claim: &PolicyOnService, view: &View) -> Drift {
        let both = |a: &BTreeSet<Grant>, b: &BTreeSet<Grant>| a.intersection(b).cloned().collect();
        if claim.only_reports() {
            return Drift {
                missing: both(&self.reported.missing, &view.missing),
                unexpected: both(&self.reported.unexpected, &view.unexpected),
            };
        }
        if !claim.enforces() || claim.left {
            return Drift::default();
        }
        let lists = |g: &&Grant| claim.declared().iter().any(|d| d.grant == **g);
        let same_role = |g: &&Grant| g.role == claim.intent.role;
        let Drift {
            missing,
            unexpected,
        } = &self.enforced;
        Drift {
            missing: missing.iter().filter(lists).cloned().collect(),
            unexpected: unexpected.iter().filter(same_role).cloned().collect(),
        }
    }
}

/// What a policy observes, and the events that follow.
pub struct News {
    pub observation: Observation,
    pub notes: Vec<Note>,
    /// Differences that were not there before: counted as drift.
    pub drifted: Drift,
}

impl Reconciled<'_> {
    /// What the policy at `place` sees now.
    pub fn observe(&self, place: usize, before: Before<'_>) -> Option<News> {
        let (claim, view) = (self.input.claims.get(place)?, self.views.get(place)?);
        let intent = &claim.intent;
        let drift = self.drift.seen_by(claim, view);
        let findings = self.findings(claim, view, &drift);
        let known = before.findings(&findings);
        let is_known = |k: &Findings| findings.drift.are_among(&k.drift);
        let drifted = match &known {
            Some(k) if is_known(k) => Drift::default(),
            _ => drift,
        };
        let changed = events::Changed {
            by: self.made_by(drifted.grants()),
            written: Written::all(self.applied, claim),
            drifted: &drifted,
        };
        let service = self.input.service;
        let notes = events::notes(service, known.as_ref(), &findings, &changed);
        let observation = Observation {
            generation: intent.generation,
            requested_at: intent.requested_at.clone(),
            result: Ok(findings),
            changed_at: changed_at(self.applied, before),
        };
        Some(News {
            observation,
            notes,
            drifted,
        })
    }

    fn findings(&self, claim: &PolicyOnService, view: &View, drift: &Drift) -> Findings {
        let input = self.input;
        let concerned: Vec<&Withheld> = self
            .rest
            .withheld
            .iter()
            .filter(|w| match w.change {
                Change::Grant => view.missing.contains(&w.grant),
                Change::Revoke => view.unexpected.contains(&w.grant),
                Change::Leave => claim.is_refused(input.service, &w.grant, input.now),
            })
            .collect();
        let ours = |g: &Grant| {
            claim.declared().iter().any(|d| d.grant == *g) || g.role == claim.intent.role
        };
        let fights = input.memory.fights(input.now);
        let contested = fights.iter().filter(|(g, _)| ours(g)).map(|(g, fight)| {
            let rival = self
                .blame
                .get(g)
                .filter(|by| !by.is_operator())
                .map_or(String::new(), |by| format!(", last made by {by}"));
            format!(
                "{g} (corrected {} times within an hour{rival})",
                fight.corrections
            )
        });
        let (held, held_more) = held(claim, &concerned);
        let approval = concerned.iter().find_map(|w| match &w.why {
            WithheldReason::Approval(a) => Some(a),
            _ => None,
        });
        let (also, perhaps_also) = by_other_roles(input.live);
        Findings {
            missing: view.missing.iter().collect(),
            unexpected: view.unexpected.iter().collect(),
            protected: view.protected.iter().collect(),
            drift: drift.members(),
            held,
            held_more,
            approve: approval
                .filter(|a| a.approver.is_none())
                .map(|a| a.hash.clone()),
            plan: approval.and_then(|a| a.effects.get(&claim.intent.id).cloned()),
            contested: contested.collect(),
            also,
            perhaps_also,
            exposed: plan::exposed(self.info, input),
            by: self.made_by(
                view.missing
                    .iter()
                    .chain(&view.unexpected)
                    .chain(drift.grants()),
            ),
            notes: self.notes(claim, &concerned),
        }
    }

    fn notes(&self, claim: &PolicyOnService, concerned: &[&Withheld]) -> Vec<String> {
        let mut notes = Vec::new();
        if claim.left {
            notes.push("this policy does not mean the service any more; what it granted there is being revoked".into());
        }
        let count = self.input.live.member_count();
        if count > NEAR_LIMIT {
            notes.push(format!(
                "the IAM policy has {count} of at most {MAX_MEMBERS} members"
            ));
        }
        let foreign = foreign_conditions(&claim.intent, self.input);
        if foreign > 0 {
            notes.push(format!(
                "{foreign} member(s) invoke under conditions that no policy lists; these are left alone"
            ));
        }
        let fight = concerned
            .iter()
            .find(|w| matches!(w.why, WithheldReason::Contested(_)));
        notes.extend(fight.map(|w| format!("{}: {}", w.grant, w.why.explain())));
        notes
    }

    fn made_by<'a>(&self, differences: impl Iterator<Item = &'a Grant>) -> By {
        let makers: Vec<_> = differences.map(|g| self.blame.get(g)).collect();
        if !self.attributed || makers.is_empty() {
            return By::NotAsked;
        }
        last_of(&makers).map_or(By::Unknown, |by| By::Known(by.clone()))
    }
}

/// By the last of these writes that was made, or as this process saw before. How long a write was on
/// its way is not known: from its end on IAM has had it.
fn changed_at(applied: &[Applied], before: Before<'_>) -> Option<Timestamp> {
    let last = applied.iter().filter_map(|a| written_at(&a.outcome)).max();
    last.or(before.seen().and_then(|b| b.changed_at))
}

/// When a write was over, if any of it was made.
pub fn written_at(outcome: &ChangeOutcome) -> Option<Timestamp> {
    let is_real = matches!(outcome.phase, ChangePhase::Applied | ChangePhase::Partial);
    outcome
        .closed_at
        .as_ref()
        .filter(|_| is_real)
        .map(|at| at.0)
}

/// What a policy observes of a service that could not be reconciled. What was written before is not
/// forgotten.
pub fn failed(
    service: &RunService,
    claim: &PolicyOnService,
    fault: &Fault,
    applied: &[Applied],
    before: Before<'_>,
) -> News {
    let intent = &claim.intent;
    let mut notes = events::changes(service, &Written::all(applied, claim));
    if before.fault() != Some(fault.class) {
        notes.push(events::failure(service, fault));
    }
    let observation = Observation {
        generation: intent.generation,
        requested_at: intent.requested_at.clone(),
        result: Err(before.first_reported(fault)),
        changed_at: changed_at(applied, before),
    };
    News {
        observation,
        notes,
        drifted: Drift::default(),
    }
}

#[cfg(test)]
mod tests;
