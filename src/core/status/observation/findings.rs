//! What was found on a service that concerns one policy.

use std::{collections::BTreeMap, sync::Arc};

use super::{Applied, NAMED, members::Members};
use crate::{
    api::{ChangedBy, Reason},
    iam::{Carries, Grant, InvokingRoles, Policy, Principal},
    intent::{Intent, denial_of},
    plan::{Exposure, HeldPlan, Input, PolicyOnService, Withheld, WithheldReason},
    status::{denied_by, how_to_agree},
};

/// The most things held back that an observation keeps one by one.
const MAX_HELD: usize = 20;

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
            Self::Unknown => ", actor unknown".into(),
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
    /// Hash of that plan, for an InvokerApproval.
    pub plan: Option<HeldPlan>,
    /// Grants that somebody else keeps changing, in words.
    pub contested: Members,
    /// Members that may invoke by other roles, with the role.
    pub also: Members,
    /// Members with other roles, by role, of which nobody knows whether they let invoke before a
    /// search shows it.
    pub perhaps_also: BTreeMap<Arc<str>, Members>,
    /// Anyone can call the service, or perhaps can, and why.
    pub exposed: Option<Exposure>,
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

    /// Members that may invoke by other roles, with the role, as far as searches have shown by now
    /// what these carry.
    pub fn also_invokers(&self, roles: &InvokingRoles) -> Vec<String> {
        let shown = |(role, _): &(&Arc<str>, &Members)| roles.carries(role) == Carries::Yes;
        let by_shown = self.perhaps_also.iter().filter(shown);
        by_shown
            .fold(self.also.clone(), |all, (_, members)| all.with(members))
            .shown()
    }
}

/// Members that may invoke by roles that are not managed, and those of whom nobody knows, by role.
pub(super) fn by_other_roles(live: &Policy) -> (Members, BTreeMap<Arc<str>, Members>) {
    let roles = InvokingRoles::default();
    let words = |p: &Principal, role: &str| format!("{p} ({role})");
    let also = live.other_invokers(&roles);
    let also = also.iter().map(|(p, role)| words(p, role)).collect();
    let mut perhaps: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
    for (principal, role) in live.perhaps_invokers(&roles) {
        let members = perhaps.entry(role.into()).or_default();
        members.push(words(&principal, role));
    }
    let perhaps = perhaps.into_iter();
    let perhaps = perhaps.map(|(role, all)| (role, all.into_iter().collect()));
    (also, perhaps.collect())
}

/// Who made the last of some differences; `None` stands for one that is not explained. What we did
/// ourselves is reported only where nobody else did anything, and whoever did what is not explained
/// is somebody else.
pub(super) fn last_of<'a>(makers: &[Option<&'a Arc<ChangedBy>>]) -> Option<&'a Arc<ChangedBy>> {
    let known = makers.iter().flatten().copied();
    known
        .max_by_key(|by| (!by.is_operator(), by.at.0))
        .filter(|by| !by.is_operator() || makers.iter().all(Option::is_some))
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
    pub(super) fn all(applied: &[Applied], claim: &PolicyOnService) -> Vec<Self> {
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
pub(super) fn held(claim: &PolicyOnService, concerned: &[&Withheld]) -> (Vec<Held>, usize) {
    let intent = &claim.intent;
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
        let plan = approval.effects.get(&intent.id).map(|held| &held.hash);
        let denial = plan.and_then(|plan| denial_of(&claim.denials, plan));
        let next = match denial {
            Some(denial) => denied_by(denial),
            None => how_to_agree(intent, &approval.hash, approval.approver.as_deref()),
        };
        // First, because it is the one that a person can settle.
        held.insert(
            0,
            Held {
                member: waiting.listed(NAMED),
                reason: Reason::ApprovalRequired,
                message: format!("{why}. {next}"),
            },
        );
    }
    (held, more)
}

/// Members of the policy's role under conditions that nobody lists: sacred, but a person should
/// know of them.
pub(super) fn foreign_conditions(intent: &Intent, input: &Input<'_>) -> usize {
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
