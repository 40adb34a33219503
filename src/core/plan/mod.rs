//! The plan for one service: a value that says what will be done, what will not, and why.
//!
//! Planning is a function of its [`Input`]. Nobody downstream decides again: apply carries out,
//! status and events report.

mod check;
pub mod claim;
mod detect;
pub mod diff;
pub mod drift;
pub mod effect;
mod exposure;
pub mod guard;
pub mod merge;
pub mod ownership;
pub mod search;
#[cfg(test)]
mod tests;
mod view;
mod withheld;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use drift::Memory;
use jiff::Timestamp;

use crate::{
    api::HeldRemoval,
    iam::{Grant, MAX_MEMBERS, Policy, PrincipalKind, RunService},
    intent::{Agreement, Limits, PolicyId},
};

pub use check::check;
pub use view::{View, view, views};
pub use withheld::{CONTESTED, Change, RejectedMember, Withheld, WithheldReason};

pub use claim::{PolicyOnService, Rollback, SelectorImpact};
pub use diff::{RevokeCause, Verdict};
pub use effect::{Effects, HeldPlan};
pub use exposure::{Exposure, PublicRole, exposed};
pub use guard::Approval;
pub use merge::{Desired, merge};
pub use ownership::{Lines, OwnerState, Owners, stored_size};
pub use search::{Batch, Clue, Search};

/// The most bytes of a ledger's lines: the API server stores objects of up to 1.5 MiB, and what a
/// write changes stands beside them.
const MAX_STORED: usize = 700 * 1024;

/// Limits that the operator is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Members that are never removed because nobody listed them; `*` stands for anything.
    pub protected: Vec<String>,
    /// What holds where no guardrail speaks.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        // Google's own service agents: IAP stops working without its invoker binding.
        Self {
            protected: vec!["serviceAccount:service-*@gcp-sa-*.iam.gserviceaccount.com".into()],
            limits: Limits::default(),
        }
    }
}

impl Settings {
    /// Members are compared as IAM compares them, on both sides: case does not count.
    pub(crate) fn protects(&self, grant: &Grant) -> bool {
        let member = grant.principal.key().to_ascii_lowercase();
        self.protected
            .iter()
            .any(|glob| wildmatch::WildMatch::new(&glob.to_ascii_lowercase()).matches(&member))
    }
}

/// Grants that policies list whose selectors may mean the service; whether they do is not known,
/// because the project has not been listed yet, or cannot be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnansweredSelectors {
    pub grants: BTreeSet<Grant>,
    /// One of these policies is enforced and did not say `allowEmpty`: the last invoker would not
    /// go without asking.
    pub standing: bool,
    /// Listing failed, so an answer may never come.
    pub failed: bool,
    /// A policy here names ServiceAccounts, and whom they stand for is not known: any service
    /// account may be one of them.
    pub accounts: bool,
}

impl UnansweredSelectors {
    /// Whether a removal has to wait for the answer. A deletion does not wait for one that may
    /// never come.
    fn holds(&self, grant: &Grant, cause: RevokeCause) -> bool {
        let waits = match cause {
            RevokeCause::Unlisted | RevokeCause::NoLongerDeclared => true,
            RevokeCause::PolicyDeleted | RevokeCause::Denied => !self.failed,
            RevokeCause::Expired | RevokeCause::Refused => false,
        };
        let may_be_named = self.accounts && grant.principal.kind() == PrincipalKind::ServiceAccount;
        waits && (self.grants.contains(grant) || may_be_named)
    }
}

/// All that the plan for a service depends on.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub service: &'a RunService,
    /// Every policy that names the service, those being deleted included.
    pub claims: &'a [PolicyOnService],
    pub live: &'a Policy,
    /// What the operator answers for here, and how those whom it belongs to stand to it now.
    pub ledger: &'a BTreeMap<Grant, Owners>,
    /// What policies list that may yet turn out to mean the service.
    pub unanswered: &'a UnansweredSelectors,
    /// Members that IAM refused lately.
    pub rejected: &'a BTreeMap<Grant, RejectedMember>,
    /// Members that IAM may refuse, as far as is known: nothing may be taken away on the ground
    /// that they come.
    pub doubtful: &'a BTreeSet<Grant>,
    /// Hashes of plans that somebody agreed to on the ledger. Those on policies are in their
    /// claims.
    pub approvals: &'a BTreeSet<Arc<str>>,
    /// What earlier reconciles of this service left behind.
    pub memory: &'a Memory,
    /// Too much drift was corrected lately, over all services.
    pub circuit_open: bool,
    pub settings: &'a Settings,
    pub now: Timestamp,
}

/// What will be done to one service, from all policies that name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub service: RunService,
    /// Grants to make, with the policies that ask.
    pub grants: BTreeMap<Grant, BTreeSet<PolicyId>>,
    /// Grants to take away.
    pub revokes: BTreeMap<Grant, RevokeCause>,
    /// What is due and will not be done.
    pub withheld: Vec<Withheld>,
    /// What the operator answers for once this is carried out, with those whom it belongs to.
    pub lines: Lines,
    /// Changes, made or withheld, that undo what somebody else did.
    pub drift: BTreeSet<Grant>,
    /// What differs for policies that only report.
    pub reported: BTreeSet<Grant>,
    /// What of that somebody else did.
    pub reported_drift: BTreeSet<Grant>,
    /// Somebody agreed to this.
    pub approved: Option<Approval>,
    /// The InvokerApprovals that let its removals through.
    pub approvals: Vec<Arc<Agreement>>,
    /// The InvokerApprovals that let selectors reach the service.
    pub reached_by: Vec<Arc<Agreement>>,
    /// Grants of which one at least has to be made with the removals, or nobody could invoke the
    /// service any more.
    pub replacements: BTreeSet<Grant>,
}

impl Plan {
    /// The plan that does nothing.
    pub fn nothing(service: &RunService) -> Self {
        Self {
            service: service.clone(),
            grants: BTreeMap::new(),
            revokes: BTreeMap::new(),
            withheld: Vec::new(),
            lines: Lines::new(),
            drift: BTreeSet::new(),
            reported: BTreeSet::new(),
            reported_drift: BTreeSet::new(),
            approved: None,
            approvals: Vec::new(),
            reached_by: Vec::new(),
            replacements: BTreeSet::new(),
        }
    }

    /// The part of it that one write carries out.
    pub fn part(&self, batch: &Batch) -> Self {
        let mut part = self.clone();
        part.grants.retain(|g, _| batch.grants.contains(g));
        part.revokes.retain(|g, _| batch.revokes.contains(g));
        // Removals are written together, and with them what they were approved by.
        if part.revokes.is_empty() {
            part.approvals.clear();
        }
        part
    }

    /// Whether it still wants all of a batch.
    pub fn wants(&self, batch: &Batch) -> bool {
        // Without them the same removals would leave nobody, and would not have been planned.
        let is_left = batch.revokes.is_empty()
            || self.replacements.is_empty()
            || !self.replacements.is_disjoint(&batch.grants);
        is_left
            && batch.grants.iter().all(|g| self.grants.contains_key(g))
            && batch.revokes.iter().all(|g| self.revokes.contains_key(g))
    }

    /// The operator answers for it, and no policy does any more.
    fn is_nobodys(&self, grant: &Grant) -> bool {
        self.lines.get(grant).is_some_and(BTreeSet::is_empty)
    }

    /// The removal that is held for approval and that no policy would report: nothing of it belongs
    /// to one any more.
    pub fn held_alone(&self) -> Option<HeldRemoval> {
        self.withheld
            .iter()
            .filter(|w| self.is_nobodys(&w.grant))
            .find_map(|w| match &w.why {
                WithheldReason::Approval(a) => Some(HeldRemoval {
                    approve: a.hash.to_string(),
                    message: w.why.explain(),
                }),
                _ => None,
            })
    }

    /// Everything that is left to do waits for its turn, and says so. Of a member that IAM refused
    /// before that stays what there is to say.
    pub fn wait(&mut self, refused_before: &BTreeMap<Grant, RejectedMember>) {
        let grants = std::mem::take(&mut self.grants)
            .into_keys()
            .map(|g| (Change::Grant, g));
        let revokes = std::mem::take(&mut self.revokes)
            .into_keys()
            .map(|g| (Change::Revoke, g));
        let why = |grant: &Grant| {
            let refused = refused_before.get(grant).cloned();
            refused.map_or(WithheldReason::Quota, WithheldReason::RejectedMember)
        };
        let held = grants.chain(revokes).map(|(change, grant)| Withheld {
            change,
            why: why(&grant),
            grant,
        });
        self.withheld.extend(held.collect::<Vec<_>>());
    }

    /// Changes that are made and undo what somebody else did.
    pub fn corrections(&self) -> impl Iterator<Item = &Grant> {
        self.drift
            .iter()
            .filter(|g| self.grants.contains_key(g) || self.revokes.contains_key(g))
    }

    /// Whether anything that somebody else did is undone.
    pub fn corrects_drift(&self) -> bool {
        self.corrections().next().is_some()
    }

    /// What differs from what is declared for reasons of our own. What differs because of others
    /// stays their doing.
    pub fn outstanding(&self) -> BTreeSet<Grant> {
        let withheld = self
            .withheld
            .iter()
            .filter(|w| w.change != Change::Leave && !w.is_others_doing())
            .map(|w| &w.grant);
        let all = self
            .grants
            .keys()
            .chain(self.revokes.keys())
            .chain(withheld)
            .chain(&self.reported);
        let is_drift = |g: &Grant| self.drift.contains(g) || self.reported_drift.contains(g);
        all.filter(|g| !is_drift(g)).cloned().collect()
    }

    fn withhold(&mut self, change: Change, grant: &Grant, why: WithheldReason) {
        self.withheld.push(Withheld {
            change,
            grant: grant.clone(),
            why,
        });
    }

    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.revokes.is_empty()
    }

    /// The policy to write: `live` with the changes, and with nothing else.
    pub fn applied_to(&self, live: &Policy) -> Policy {
        live.with_changes(
            &self.grants.keys().cloned().collect(),
            &self.revokes.keys().cloned().collect(),
        )
    }
}

/// The approvals behind what is granted that are not on record yet.
fn reached_by(plan: &Plan, input: &Input<'_>) -> Vec<Arc<Agreement>> {
    let acting = input.claims.iter().filter(|c| c.enforces());
    // A request was approved for what it grants, and for nothing that happens to it later.
    let grants = |c: &&PolicyOnService| {
        let mut declared = c.declared().iter();
        c.intent.id.request().is_none() || declared.any(|d| plan.grants.contains_key(&d.grant))
    };
    acting
        .filter(grants)
        .filter_map(|c| c.reached_by.clone())
        .collect()
}

/// Plans one service.
pub fn plan(input: &Input<'_>) -> Plan {
    let desired = merge(input);
    let live = input.live.grants();
    let mut plan = Plan::nothing(input.service);
    grant_missing(&mut plan, input, &desired, &live);
    withhold_refused(&mut plan, &desired, &live);
    revoke_unlisted(&mut plan, input, &desired, &live);
    plan.lines = lines(&plan, input, &desired, &live);
    guard::hold_blast(&mut plan, input);
    detect::hold_fights(&mut plan, input);
    detect::report_differences(&mut plan, input, &desired, &live);
    // Last: what is held back makes no room, and what is not made needs none.
    withhold_beyond_cap(&mut plan, input.live);
    let grants = &plan.grants;
    plan.lines
        .retain(|g, _| live.contains(g) || grants.contains_key(g));
    withhold_beyond_memory(&mut plan);
    if !plan.replacements.is_empty()
        && plan
            .replacements
            .iter()
            .all(|g| !plan.grants.contains_key(g))
    {
        plan.replacements.clear();
        guard::hold_blast(&mut plan, input);
    }
    // Last of all: what is taken away needs no word of its own.
    withhold_refused_that_stay(&mut plan, &desired, &live);
    plan.reached_by = reached_by(&plan, input);
    plan
}

/// Grants what an enforcing policy lists and is not there; what may not be granted is withheld.
fn grant_missing(plan: &mut Plan, input: &Input<'_>, desired: &Desired, live: &BTreeSet<Grant>) {
    let hashed = input.live.has_hashed_conditions();
    for (grant, by) in desired.listed.iter().filter(|(g, _)| !live.contains(g)) {
        let why = match (desired.granted.get(grant), input.rejected.get(grant)) {
            (None, _) => why_not_enforced(input, by),
            (Some(_), _) if hashed => WithheldReason::HashedConditions,
            (Some(_), Some(rejected)) => WithheldReason::RejectedMember(rejected.clone()),
            (Some(enforcing), None) => {
                plan.grants.insert(grant.clone(), enforcing.clone());
                continue;
            }
        };
        plan.withhold(Change::Grant, grant, why);
    }
}

/// What a guardrail refuses to one policy. What somebody else may list is granted for them, and
/// still refused to this one.
fn withhold_refused(plan: &mut Plan, desired: &Desired, live: &BTreeSet<Grant>) {
    for (grant, (refusal, _)) in &desired.refused {
        let change = match (desired.listed.contains_key(grant), live.contains(grant)) {
            (true, _) => Change::Leave,
            (false, false) => Change::Grant,
            (false, true) => continue,
        };
        plan.withhold(change, grant, WithheldReason::Guardrail(refusal.clone()));
    }
}

/// What is refused, is there all the same, and stays: because somebody else granted it, or because
/// its removal waits for approval or for better days. The policy that lists it is told either way.
fn withhold_refused_that_stay(plan: &mut Plan, desired: &Desired, live: &BTreeSet<Grant>) {
    for (grant, (refusal, _)) in &desired.refused {
        let told = desired.listed.contains_key(grant) || !live.contains(grant);
        if !told && !plan.revokes.contains_key(grant) {
            let why = WithheldReason::Guardrail(refusal.clone());
            plan.withhold(Change::Leave, grant, why);
        }
    }
}

/// Revokes what is there and that nobody lists, where it is ours to revoke.
fn revoke_unlisted(plan: &mut Plan, input: &Input<'_>, desired: &Desired, live: &BTreeSet<Grant>) {
    let hashed = input.live.has_hashed_conditions();
    let circumstances = diff::Circumstances {
        desired,
        ledger: input.ledger,
        is_protected: &|g| input.settings.protects(g),
        now: input.now,
    };
    for grant in desired.unlisted(live) {
        let authoritative = desired.authoritative.get(&grant.role);
        let complete = desired.leaves_out(grant, authoritative.into_iter().flatten());
        match circumstances.judge(grant, complete, desired.leaving.contains(grant)) {
            Verdict::Foreign | Verdict::Refused => {}
            Verdict::Protected => plan.withhold(Change::Revoke, grant, WithheldReason::Protected),
            Verdict::Revoke(_) if hashed => {
                plan.withhold(Change::Revoke, grant, WithheldReason::HashedConditions)
            }
            Verdict::Revoke(cause) if input.unanswered.holds(grant, cause) => {
                plan.withhold(Change::Revoke, grant, WithheldReason::UnansweredSelectors);
            }
            Verdict::Revoke(cause) => {
                plan.revokes.insert(grant.clone(), cause);
            }
        }
    }
}

/// What the operator answers for once a plan is carried out.
fn lines(plan: &Plan, input: &Input<'_>, desired: &Desired, live: &BTreeSet<Grant>) -> Lines {
    let is_protected = |g: &Grant| input.settings.protects(g);
    ownership::next_lines(input.ledger, desired, live, &plan.grants, &is_protected)
}

/// Nobody who may write asks for it: the policies that list it are audited, suspended, or not
/// carried out here yet.
fn why_not_enforced(input: &Input<'_>, by: &BTreeSet<PolicyId>) -> WithheldReason {
    let asking = || input.claims.iter().filter(|c| by.contains(&c.intent.id));
    if let Some(why) = asking()
        .filter(|c| c.intent.enforces())
        .find_map(|c| c.stopped.clone())
    {
        return WithheldReason::Stopped(why);
    }
    if let Some(spread) = asking()
        .filter(|c| c.intent.enforces())
        .find_map(|c| c.spread.clone())
    {
        return WithheldReason::SelectorImpact(spread);
    }
    if asking().any(|c| !c.intent.suspended) {
        WithheldReason::Audited
    } else {
        WithheldReason::Suspended
    }
}

/// Holds back the last grants, in order, so that the policy stays within what IAM accepts.
fn withhold_beyond_cap(plan: &mut Plan, live: &Policy) {
    let would_be = plan.applied_to(live).member_count();
    let mut over = would_be.saturating_sub(MAX_MEMBERS);
    while over > 0 {
        let Some((grant, _)) = plan.grants.pop_last() else {
            break;
        };
        plan.withheld.push(Withheld {
            change: Change::Grant,
            grant,
            why: WithheldReason::MemberLimit { would_be },
        });
        over -= 1;
    }
}

/// Holds back the last grants, in order, so that the store can hold what is answered for.
fn withhold_beyond_memory(plan: &mut Plan) {
    let is_granted = |g: &Grant| plan.grants.contains_key(g);
    let over = ownership::too_many(&plan.lines, is_granted, MAX_STORED);
    for _ in 0..over {
        let Some((grant, _)) = plan.grants.pop_last() else {
            break;
        };
        plan.lines.remove(&grant);
        plan.withheld.push(Withheld {
            change: Change::Grant,
            grant,
            why: WithheldReason::MemoryLimit,
        });
    }
}
