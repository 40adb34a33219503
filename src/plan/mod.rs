//! The plan for one service: a value that says what will be done, what will not, and why.
//!
//! Planning is a function of its [`Input`]. Nobody downstream decides again: apply carries out, status and events tell.

pub mod diff;
pub mod merge;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

pub use diff::{RevokeCause, Standing, Verdict};
pub use merge::{Desired, merge};

use crate::{
    api::{Membership, Reason},
    iam::{Grant, MAX_MEMBERS, Policy, RunService},
    intent::{Intent, PolicyId},
};

/// Limits that the operator is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Members that are never removed because nobody listed them; `*` stands for anything.
    pub protected: Vec<String>,
    /// Whether `allUsers` and `allAuthenticatedUsers` may be granted where no guardrail speaks.
    pub allow_public: bool,
}

impl Default for Settings {
    fn default() -> Self {
        // Google's own service agents: IAP stops working without its invoker binding.
        Self {
            protected: vec!["serviceAccount:service-*@gcp-sa-*.iam.gserviceaccount.com".into()],
            allow_public: false,
        }
    }
}

impl Settings {
    fn protects(&self, grant: &Grant) -> bool {
        self.protected.iter().any(|glob| wildmatch::WildMatch::new(glob).matches(grant.principal.key()))
    }
}

/// Why a member is set aside: IAM refused a write because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// InvalidMember or OrganizationPolicy.
    pub reason: Reason,
    /// Google's words.
    pub message: String,
}

/// All that the plan for a service depends on.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub service: &'a RunService,
    /// Every policy that names the service, those being deleted included.
    pub intents: &'a [&'a Intent],
    pub live: &'a Policy,
    /// What the operator granted here, and what stands behind it now.
    pub ledger: &'a BTreeMap<Grant, Standing>,
    /// Members that IAM refused lately.
    pub aside: &'a BTreeMap<Grant, Aside>,
    pub settings: &'a Settings,
    pub now: Timestamp,
}

/// What was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Grant,
    Revoke,
}

/// A change that is due but will not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    pub change: Change,
    pub grant: Grant,
    pub why: Hold,
}

/// The reason for a [`Withheld`] change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Only audited policies ask for it.
    Audited,
    /// Only suspended policies ask for it.
    Suspended,
    /// The member is protected from removal.
    Protected,
    /// IAM refused the member.
    Aside(Aside),
    /// Anyone could call the service, and the operator does not allow that.
    Public,
    /// The policy would have more members than IAM accepts.
    MemberLimit { would_be: usize },
    /// The policy was read in a view that hides conditions.
    HashedConditions,
}

impl Hold {
    /// The reason that conditions show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Audited => Reason::Audited,
            Self::Suspended => Reason::Suspended,
            Self::Protected => Reason::InSync,
            Self::Aside(aside) => aside.reason,
            Self::Public => Reason::GuardrailViolated,
            Self::MemberLimit { .. } => Reason::MemberLimit,
            Self::HashedConditions => Reason::Unavailable,
        }
    }

    /// What a person reads about it.
    pub fn explain(&self) -> String {
        match self {
            Self::Audited => "mode is Audit".into(),
            Self::Suspended => "the policy is suspended".into(),
            Self::Protected => "the member is protected from removal".into(),
            Self::Aside(aside) => aside.message.clone(),
            Self::Public => "public access is denied; the platform team can allow it".into(),
            Self::MemberLimit { would_be } => format!(
                "the policy would have {would_be} members and IAM accepts {MAX_MEMBERS}; use a group, or remove members"
            ),
            Self::HashedConditions => "IAM answered with hashed conditions, so nothing is written".into(),
        }
    }
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
    /// Entries of the ledger that have nothing behind them any more.
    pub forget: BTreeSet<Grant>,
}

impl Plan {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.revokes.is_empty()
    }

    /// The policy to write: `live` with the changes, and with nothing else.
    pub fn applied_to(&self, live: &Policy) -> Policy {
        live.with_changes(&self.grants.keys().cloned().collect(), &self.revokes.keys().cloned().collect())
    }
}

/// Plans one service.
pub fn plan(input: &Input<'_>) -> Plan {
    let desired = merge(input.intents.iter().copied(), input.now);
    let live = input.live.grants();
    let mut plan = Plan {
        service: input.service.clone(),
        grants: BTreeMap::new(),
        revokes: BTreeMap::new(),
        withheld: Vec::new(),
        forget: BTreeSet::new(),
    };
    let mut hold = |change, grant: &Grant, why| plan.withheld.push(Withheld { change, grant: grant.clone(), why });
    let hashed = input.live.has_hashed_conditions();

    for (grant, by) in desired.listed.iter().filter(|(g, _)| !live.contains(g)) {
        match desired.granted.get(grant) {
            None => {
                let audited = input.intents.iter().any(|i| by.contains(&i.id) && !i.suspended);
                hold(Change::Grant, grant, if audited { Hold::Audited } else { Hold::Suspended });
            }
            Some(_) if hashed => hold(Change::Grant, grant, Hold::HashedConditions),
            Some(_) if grant.principal.is_public() && !input.settings.allow_public => {
                hold(Change::Grant, grant, Hold::Public);
            }
            Some(enforcing) => match input.aside.get(grant) {
                Some(aside) => hold(Change::Grant, grant, Hold::Aside(aside.clone())),
                None => {
                    plan.grants.insert(grant.clone(), enforcing.clone());
                }
            },
        }
    }
    for grant in live.iter().filter(|g| !desired.listed.contains_key(g)) {
        match diff::judge(grant, &desired, input.ledger, &|g| input.settings.protects(g), input.now) {
            Verdict::Foreign => {}
            Verdict::Protected => hold(Change::Revoke, grant, Hold::Protected),
            Verdict::Revoke(_) if hashed => hold(Change::Revoke, grant, Hold::HashedConditions),
            Verdict::Revoke(cause) => {
                plan.revokes.insert(grant.clone(), cause);
            }
        }
    }
    // What is neither real nor wanted needs no memory; what its owner left behind on purpose is no longer ours.
    plan.forget = input
        .ledger
        .iter()
        .filter(|(g, standing)| !desired.granted.contains_key(g) && (!live.contains(g) || **standing == Standing::Gone))
        .map(|(g, _)| g.clone())
        .collect();
    withhold_beyond_cap(&mut plan, input.live);
    plan
}

/// Holds back the last grants, in order, so that the policy stays within what IAM accepts.
fn withhold_beyond_cap(plan: &mut Plan, live: &Policy) {
    let would_be = plan.applied_to(live).member_count();
    let mut over = would_be.saturating_sub(MAX_MEMBERS);
    while over > 0 {
        let Some((grant, _)) = plan.grants.pop_last() else { break };
        plan.withheld.push(Withheld { change: Change::Grant, grant, why: Hold::MemberLimit { would_be } });
        over -= 1;
    }
}

/// What one policy sees of a service: its own difference to reality.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Declared here and not real.
    pub missing: BTreeSet<Grant>,
    /// Real, listed by nobody, and this policy says its list is complete or once asked for it.
    pub unexpected: BTreeSet<Grant>,
    /// Real, listed by nobody, never removed.
    pub protected: BTreeSet<Grant>,
}

/// Reality as `intent` sees it. `intents` are all policies that name the service.
pub fn view(intent: &Intent, input: &Input<'_>) -> View {
    let live = input.live.grants();
    if intent.deleting {
        // What is left to take away.
        let desired = merge(input.intents.iter().copied(), input.now);
        let unexpected =
            live.iter().filter(|g| desired.leaving.contains(g) && !desired.listed.contains_key(g)).cloned().collect();
        return View { unexpected, ..View::default() };
    }
    let mut desired = merge(input.intents.iter().copied(), input.now);
    // An audited or suspended policy is shown what it would do if it were enforced.
    desired.authoritative = match intent.membership {
        Membership::Authoritative => [intent.role].into(),
        Membership::Additive => BTreeSet::new(),
    };
    desired.leaving.clear();
    let mut view = View { missing: diff::missing(intent.grants_at(input.now), &live), ..View::default() };
    for grant in live.iter().filter(|g| g.role == intent.role && !desired.listed.contains_key(g)) {
        match diff::judge(grant, &desired, input.ledger, &|g| input.settings.protects(g), input.now) {
            Verdict::Foreign => {}
            Verdict::Protected => {
                view.protected.insert(grant.clone());
            }
            Verdict::Revoke(_) => {
                view.unexpected.insert(grant.clone());
            }
        }
    }
    view
}

/// The invariants of every plan. Tests run this on each plan that they make.
///
/// # Errors
/// The first invariant that does not hold, in words.
pub fn check(plan: &Plan, input: &Input<'_>) -> Result<(), String> {
    let live = input.live.grants();
    let desired = merge(input.intents.iter().copied(), input.now);
    let enforced =
        input.intents.iter().any(|i| i.enforces()) || input.ledger.values().any(|s| *s == Standing::Enforcing);
    if !plan.is_empty() && !enforced {
        return Err("changes without an enforced policy".into());
    }
    if let Some(g) = plan.grants.keys().find(|g| live.contains(g)) {
        return Err(format!("grants {g}, which is real already"));
    }
    if let Some(g) = plan.grants.keys().find(|g| !desired.granted.contains_key(g)) {
        return Err(format!("grants {g}, which no enforced policy lists"));
    }
    if let Some(g) = plan.revokes.keys().find(|g| desired.listed.contains_key(g)) {
        return Err(format!("revokes {g}, which a policy lists"));
    }
    if let Some(g) = plan.revokes.keys().find(|g| !live.contains(g)) {
        return Err(format!("revokes {g}, which is not real"));
    }
    if input.live.has_hashed_conditions() && !plan.is_empty() {
        return Err("writes a view with hashed conditions".into());
    }
    let after = plan.applied_to(input.live);
    if after.member_count() > MAX_MEMBERS.max(input.live.member_count()) {
        return Err("exceeds the member limit".into());
    }
    let foreign = |p: &Policy| -> Vec<_> {
        p.bindings.iter().filter(|b| crate::iam::Role::from_name(&b.role).is_none()).cloned().collect()
    };
    if foreign(&after) != foreign(input.live) || after.extra != input.live.extra || after.etag != input.live.etag {
        return Err("touches what is not ours".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
