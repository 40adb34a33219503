//! What one policy sees of one service, and what of it is news. Decided here once: status, events
//! and metrics show it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    approve_with,
    events::{self, Note},
};
use crate::{
    api::{
        ChangeOutcome, ChangePhase, ChangedBy, InvokerPolicyStatus, MAX_STATUS_MEMBERS, Reason,
        ServiceState, ServiceStatus,
    },
    fault::{Fault, FaultClass},
    iam::{Grant, MAX_MEMBERS, RunService, ServiceInfo},
    intent::Intent,
    ledger::Pending,
    plan::{self, Change, Input, Plan, PolicyOnService, View, Withheld, WithheldReason},
};

/// A policy this close to the limit says so.
const NEAR_LIMIT: usize = MAX_MEMBERS - 100;
/// Members of a held plan that are named in a message; all of them are in the list of unexpected
/// members.
const NAMED: usize = 5;
/// The most things held back that an observation keeps one by one.
const MAX_HELD: usize = 20;

/// Some members by name, and how many there are: what is kept of a set does not grow with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    count: usize,
    named: Vec<String>,
    /// Tells two sets apart whose first members are the same.
    digest: u64,
}

impl<T: ToString> FromIterator<T> for Members {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let (mut count, mut named, mut hasher) = (0, Vec::new(), DefaultHasher::new());
        for member in members {
            let text = member.to_string();
            text.hash(&mut hasher);
            if count < MAX_STATUS_MEMBERS {
                named.push(text);
            }
            count += 1;
        }
        Self {
            count,
            named,
            digest: if count == 0 { 0 } else { hasher.finish() },
        }
    }
}

impl Members {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
    pub fn len(&self) -> usize {
        self.count
    }
    /// The first by name, and how many more.
    pub fn shown(&self) -> Vec<String> {
        let mut shown = self.named.clone();
        if self.count > self.named.len() {
            shown.push(format!("and {} more", self.count - self.named.len()));
        }
        shown
    }
    /// Whether every one of these is certainly among `others` too.
    pub fn are_among(&self, others: &Self) -> bool {
        self == others
            || (self.count <= others.count
                && self.count == self.named.len()
                && self.named.iter().all(|m| others.named.contains(m)))
    }
    /// The first `most` in a sentence.
    pub fn listed(&self, most: usize) -> String {
        let mut text = self
            .named
            .iter()
            .take(most)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        if self.count > most.min(self.named.len()) {
            text.push_str(&format!(
                ", and {} more",
                self.count - most.min(self.named.len())
            ));
        }
        text
    }
}

/// Something due on a service that is not done, as one policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The member concerned.
    pub member: String,
    pub reason: Reason,
    pub message: String,
}

/// Who made a drift.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum By {
    /// There are no audit events that could say.
    #[default]
    NotAsked,
    /// The audit log does not say.
    Unknown,
    Known(Arc<ChangedBy>),
}

impl By {
    /// What follows a sentence about a drift.
    pub fn words(&self) -> String {
        match self {
            Self::NotAsked => String::new(),
            Self::Unknown => ", by whom the audit log has not told".into(),
            Self::Known(by) => format!(", by {by}"),
        }
    }
}

/// What was found on one service, as one policy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Findings {
    /// Members declared and not real. Named as grants are shown.
    pub missing: Members,
    pub unexpected: Members,
    pub protected: Members,
    /// What somebody else changed, before anything of it was corrected.
    pub drift: Members,
    pub held: Vec<Held>,
    /// How many more are held back than `held` has.
    pub held_more: usize,
    /// Hash that lets through what is held for approval.
    pub approve: Option<Arc<str>>,
    /// Grants that somebody else keeps changing, in words.
    pub contested: Members,
    /// Members that may invoke by other roles, with the role.
    pub also: Members,
    /// Anyone can call the service, and why.
    pub exposed: Option<Arc<str>>,
    /// Who made what is off.
    pub by: By,
    /// More that a person should know, such as a policy close to the member limit.
    pub notes: Vec<String>,
}

impl Findings {
    /// Nothing missing, nothing unexpected.
    pub fn in_sync(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }
}

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

/// What is known from before.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a> {
    /// Nothing: nobody has read the service on behalf of the policy yet.
    Nothing,
    Seen(&'a Observation),
    /// After a restart, what the status says.
    Reported(&'a ServiceStatus),
}

impl<'a> Before<'a> {
    fn seen(self) -> Option<&'a Observation> {
        match self {
            Self::Seen(observation) => Some(observation),
            _ => None,
        }
    }

    /// What was found then. Of what a status does not hold word for word, that which could be what
    /// is `found` now.
    fn findings(self, found: &Findings) -> Option<Findings> {
        match self {
            Self::Nothing => None,
            Self::Seen(observation) => observation.result.as_ref().ok().cloned(),
            Self::Reported(entry)
                if matches!(entry.state, ServiceState::Failed | ServiceState::NotFound) =>
            {
                None
            }
            Self::Reported(entry) => Some(reported(entry, found)),
        }
    }

    fn fault(self) -> Option<FaultClass> {
        match self {
            Self::Nothing => None,
            Self::Seen(observation) => observation.result.as_ref().err().map(|f| f.class),
            Self::Reported(entry) => FaultClass::ALL
                .into_iter()
                .find(|c| entry.message.ends_with(c.row().hint)),
        }
    }

    /// The fault as it was reported the first time: a failure that repeats is no news, although
    /// every request has its own id.
    fn first_reported(self, fault: &Fault) -> Fault {
        let seen = self.seen().and_then(|o| o.result.as_ref().err());
        if let Some(same) = seen.filter(|f| f.says_the_same(fault)) {
            return same.clone();
        }
        if let Self::Reported(entry) = self
            && let Some(id) = entry
                .message
                .split_once("(request ")
                .and_then(|(_, rest)| rest.split_once(')'))
        {
            let first = Fault {
                request_id: Some(id.0.to_owned()),
                ..fault.clone()
            };
            if first.advice() == entry.message {
                return first;
            }
        }
        fault.clone()
    }
}

/// What a status says was not as declared, for reasons of our own: what others did and nobody has
/// undone yet, in a fight or under an open circuit breaker, is not among it. `None`: it does not
/// say, or not all of it.
pub fn was_outstanding(entry: &ServiceStatus, circuit_open: bool) -> Option<BTreeSet<&str>> {
    match entry.state {
        ServiceState::Drifted | ServiceState::Held if entry.contested || circuit_open => {
            Some(BTreeSet::new())
        }
        // Nothing was read where the policy may not touch the service at all.
        ServiceState::Held if entry.missing.is_empty() && entry.unexpected.is_empty() => None,
        ServiceState::InSync | ServiceState::Drifted | ServiceState::Held => {
            let named = entry
                .missing
                .iter()
                .chain(&entry.unexpected)
                .map(String::as_str)
                .collect();
            let is_whole = [&entry.missing, &entry.unexpected]
                .iter()
                .all(|list| list.len() <= MAX_STATUS_MEMBERS);
            is_whole.then_some(named)
        }
        ServiceState::Failed | ServiceState::NotFound => None,
    }
}

/// What a status says of a service.
pub fn entry_of<'a>(
    status: &'a InvokerPolicyStatus,
    service: &RunService,
) -> Option<&'a ServiceStatus> {
    status
        .services
        .iter()
        .find(|s| *s.region == *service.region && *s.name == *service.name)
}

fn reported(entry: &ServiceStatus, found: &Findings) -> Findings {
    let members = |shown: &[String], now: &Members| {
        if *shown == now.shown() {
            now.clone()
        } else {
            shown.iter().collect()
        }
    };
    let (missing, unexpected) = (
        members(&entry.missing, &found.missing),
        members(&entry.unexpected, &found.unexpected),
    );
    let drift: Members = entry.missing.iter().chain(&entry.unexpected).collect();
    let drift = if found.drift.are_among(&drift) {
        found.drift.clone()
    } else {
        drift
    };
    let said = |h: &&Held| {
        entry
            .message
            .contains(&format!("{}: {}", h.member, h.message))
    };
    Findings {
        missing,
        unexpected,
        drift,
        held: found.held.iter().filter(said).cloned().collect(),
        contested: if entry.contested {
            found.contested.clone()
        } else {
            Members::default()
        },
        exposed: if entry.exposed {
            found.exposed.clone()
        } else {
            None
        },
        ..Findings::default()
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
    pub drift: &'a Drift,
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
    /// What of a plan's drift is missing, and what is there.
    pub fn of(plan: &Plan, live: &BTreeSet<Grant>) -> Self {
        let (unexpected, missing) = plan.drift.iter().cloned().partition(|g| live.contains(g));
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

    fn seen_by(&self, claim: &PolicyOnService) -> Self {
        if !claim.enforces() || claim.left {
            return Self::default();
        }
        let lists = |g: &&Grant| claim.declared().iter().any(|d| d.grant == **g);
        Self {
            missing: self.missing.iter().filter(lists).cloned().collect(),
            unexpected: self
                .unexpected
                .iter()
                .filter(|g| g.role == claim.intent.role)
                .cloned()
                .collect(),
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
        let findings = self.findings(claim, view);
        let known = before.findings(&findings);
        let drifted = self.drifted(claim, view, known.as_ref(), &findings);
        let written = Written::all(self.applied, claim);
        let notes = events::notes(
            self.input.service,
            known.as_ref(),
            &findings,
            &drifted,
            &written,
        );
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

    fn findings(&self, claim: &PolicyOnService, view: &View) -> Findings {
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
        let drift = self.drift.seen_by(claim);
        let (held, held_more) = held(&claim.intent, &concerned);
        Findings {
            missing: view.missing.iter().collect(),
            unexpected: view.unexpected.iter().collect(),
            protected: view.protected.iter().collect(),
            drift: drift.missing.iter().chain(&drift.unexpected).collect(),
            held,
            held_more,
            approve: concerned.iter().find_map(|w| match &w.why {
                WithheldReason::Approval(a) => Some(a.hash.clone()),
                _ => None,
            }),
            contested: contested.collect(),
            also: input
                .live
                .other_invokers()
                .iter()
                .map(|(p, role)| format!("{p} ({role})"))
                .collect(),
            exposed: plan::exposed(self.info, input),
            by: self.made_by(
                view.missing
                    .iter()
                    .chain(&view.unexpected)
                    .chain(&drift.missing)
                    .chain(&drift.unexpected),
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

    /// Differences that are news, and somebody else's doing: for a policy that acts, what the plan
    /// calls drift; for one that only watches, whatever is off that was not.
    fn drifted(
        &self,
        claim: &PolicyOnService,
        view: &View,
        known: Option<&Findings>,
        found: &Findings,
    ) -> Drift {
        if claim.enforces() || claim.intent.deleting || claim.left {
            let fresh = known.is_none_or(|k| !found.drift.are_among(&k.drift));
            return if fresh {
                self.drift.seen_by(claim)
            } else {
                Drift::default()
            };
        }
        // What our own writes on behalf of others took away or gave is nobody's drift.
        let own = |g: &&Grant| {
            !self
                .applied
                .iter()
                .any(|a| a.pending.added.contains(*g) || a.pending.removed.contains(*g))
        };
        let known_of = |k: &Findings| {
            found.missing.are_among(&k.missing) && found.unexpected.are_among(&k.unexpected)
        };
        let fresh = !known.is_some_and(known_of);
        if !fresh || claim.stopped.is_some() {
            return Drift::default();
        }
        Drift {
            missing: view.missing.iter().filter(own).cloned().collect(),
            unexpected: view.unexpected.iter().filter(own).cloned().collect(),
        }
    }

    fn made_by<'a>(&self, differences: impl Iterator<Item = &'a Grant>) -> By {
        let makers: Vec<_> = differences.map(|g| self.blame.get(g)).collect();
        if !self.attributed || makers.is_empty() {
            return By::NotAsked;
        }
        last_of(&makers).map_or(By::Unknown, |by| By::Known(by.clone()))
    }
}

/// Who made the last of some differences; `None` stands for one that is not explained. What we did
/// ourselves is reported only where nobody else did anything, and whoever did what is not explained
/// is somebody else.
fn last_of<'a>(makers: &[Option<&'a Arc<ChangedBy>>]) -> Option<&'a Arc<ChangedBy>> {
    let known = makers.iter().flatten().copied();
    known
        .max_by_key(|by| (!by.is_operator(), by.at.0))
        .filter(|by| !by.is_operator() || makers.iter().all(Option::is_some))
}

fn changed_at(applied: &[Applied], before: Before<'_>) -> Option<Timestamp> {
    let real = applied.iter().filter(|a| a.is_real());
    real.map(|a| a.pending.at)
        .max()
        .or(before.seen().and_then(|b| b.changed_at))
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

/// What was written on behalf of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub granted: Members,
    pub revoked: Members,
    /// It put back what somebody else had changed.
    pub corrects_drift: bool,
}

impl Written {
    /// Of every write that was real.
    fn all(applied: &[Applied], claim: &PolicyOnService) -> Vec<Self> {
        applied
            .iter()
            .filter(|a| a.is_real())
            .filter_map(|a| Self::of(a, claim))
            .collect()
    }

    /// `None`: nothing of it was on behalf of the policy.
    fn of(applied: &Applied, claim: &PolicyOnService) -> Option<Self> {
        let (pending, intent) = (&applied.pending, &claim.intent);
        if !pending.policies.iter().any(|p| *p.uid == *intent.id.uid) {
            return None;
        }
        let declares = |g: &&Grant| claim.declared().iter().any(|d| d.grant == **g);
        let granted: Vec<&Grant> = pending.added.iter().filter(declares).collect();
        let revoked: Vec<&Grant> = pending
            .removed
            .iter()
            .filter(|g| g.role == intent.role)
            .collect();
        let corrects_drift = granted
            .iter()
            .chain(&revoked)
            .any(|g| pending.drift.contains(*g));
        let written = Self {
            granted: granted.iter().collect(),
            revoked: revoked.iter().collect(),
            corrects_drift,
        };
        (!written.granted.is_empty() || !written.revoked.is_empty()).then_some(written)
    }
}

/// What waits on a service for a person or a better time, as one policy reads it; the second part
/// counts those that are left out. A plan that is held for approval is one thing, however many
/// members it takes away.
fn held(intent: &Intent, concerned: &[&Withheld]) -> (Vec<Held>, usize) {
    let single = |w: &&&Withheld| {
        !matches!(
            w.why,
            WithheldReason::Approval(_) | WithheldReason::SelectorImpact(_)
        )
    };
    let all = || concerned.iter().filter(single);
    let mut held: Vec<Held> = all()
        .take(MAX_HELD)
        .map(|w| Held {
            member: w.grant.to_string(),
            reason: w.why.reason(),
            message: w.why.explain(),
        })
        .collect();
    let more = all().count() - held.len();
    let waiting = concerned
        .iter()
        .filter(|w| matches!(w.why, WithheldReason::Approval(_)));
    let waiting: Members = waiting.map(|w| &w.grant).collect();
    let first = concerned.iter().find_map(|w| match &w.why {
        WithheldReason::Approval(a) => Some((a, w.why.explain())),
        _ => None,
    });
    if let Some((approval, why)) = first {
        // First, because it is the one that a person can settle.
        held.insert(
            0,
            Held {
                member: waiting.listed(NAMED),
                reason: Reason::ApprovalRequired,
                message: format!(
                    "{why}. To let exactly this through: {}",
                    approve_with(intent, &approval.hash)
                ),
            },
        );
    }
    (held, more)
}

/// Members of the policy's role under conditions that nobody lists: sacred, but a person should
/// know of them.
fn foreign_conditions(intent: &Intent, input: &Input<'_>) -> usize {
    let listed = |g: &Grant| {
        let mut declared = input.claims.iter().flat_map(PolicyOnService::declared);
        declared.any(|d| d.grant.role == g.role && d.grant.condition == g.condition)
    };
    let foreign = |g: &Grant| {
        g.role == intent.role
            && g.condition.as_ref().is_some_and(|c| c.expiry().is_none())
            && !listed(g)
    };
    input.live.grants().iter().filter(|g| foreign(g)).count()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;

    #[test]
    fn what_is_stored_of_members_does_not_grow_with_them() {
        let many: Members = (0..1000).map(|i| format!("user:u{i}@a.co")).collect();
        assert_eq!(
            (many.len(), many.shown().len()),
            (1000, MAX_STATUS_MEMBERS + 1)
        );
        assert_eq!(many.listed(2), "user:u0@a.co, user:u1@a.co, and 998 more");
        let others: Members = (0..1000)
            .map(|i| format!("user:u{}@a.co", if i == 999 { 5000 } else { i }))
            .collect();
        assert_ne!(many, others, "a difference that is not named is one");
        assert_eq!(
            Members::default(),
            Vec::<String>::new().into_iter().collect()
        );
    }

    #[test]
    fn what_is_not_explained_is_not_ours() {
        let at = |t: &str| MicroTime(t.parse().unwrap());
        let ours: Arc<ChangedBy> = ChangedBy::operator("web-1", at("2026-11-24T12:00:05Z")).into();
        let theirs = |who: &str, when: &str| -> Arc<ChangedBy> {
            ChangedBy {
                principal: who.into(),
                ..ChangedBy::operator("", at(when))
            }
            .into()
        };
        let first = theirs("first", "2026-11-24T12:00:00Z");
        let last = theirs("last", "2026-11-24T12:00:01Z");
        for (makers, expected) in [
            (vec![], None),
            (vec![None], None),
            (vec![Some(&ours)], Some(&ours)),
            (vec![Some(&ours), None], None),
            (vec![Some(&first), Some(&ours), Some(&last)], Some(&last)),
            (vec![Some(&first), None], Some(&first)),
        ] {
            assert_eq!(last_of(&makers), expected, "{makers:?}");
        }
    }
}
