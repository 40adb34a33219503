//! What an approver agrees to: what a plan that is held does on behalf of one policy. Its hash
//! stands for the effect and for the spec that asks for it, and for nothing else: a change
//! elsewhere in the same IAM policy leaves it as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{Input, PolicyOnService, View};
use crate::{
    iam::{Grant, RunService},
    intent::{Agreement, Declared, Intent, PolicyId, WITHSTANDS, digest},
};

/// The most changes that are written out for a person.
const MAX_LINES: usize = 200;

/// A plan that is held, as an InvokerApproval names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldPlan {
    pub hash: Arc<str>,
    /// What it does, in words; the first two hundred changes, and how many more there are.
    pub lines: Arc<[String]>,
}

/// What is held on a service, for each policy that is shown a part of it.
pub type Effects = BTreeMap<PolicyId, HeldPlan>;

/// What an approval of one policy's part of a held plan lets through.
#[derive(Clone, Debug)]
pub struct Effect<'a> {
    service: &'a RunService,
    claim: &'a PolicyOnService,
    /// What the policy may grant there, whether it is granted already or not.
    pub granted: BTreeSet<&'a Grant>,
    /// What is taken away with the approval.
    pub revoked: BTreeSet<&'a Grant>,
    /// Nobody would be left.
    last: bool,
}

impl<'a> Effect<'a> {
    /// Of what `held` takes away, the part that the policy is shown. `None`: nothing of it.
    pub fn of(
        claim: &'a PolicyOnService,
        seen: &View,
        held: &'a BTreeSet<Grant>,
        last: bool,
        input: &Input<'a>,
    ) -> Option<Self> {
        let shown = |g: &&Grant| seen.unexpected.contains(*g);
        let revoked: BTreeSet<&Grant> = held.iter().filter(shown).collect();
        if revoked.is_empty() {
            return None;
        }
        let may = |d: &&Declared| {
            claim.refuse(input.service, d, input.now).is_none() && !claim.intent.deleting
        };
        Some(Self {
            service: input.service,
            claim,
            granted: claim
                .declared()
                .iter()
                .filter(may)
                .map(|d| &d.grant)
                .collect(),
            revoked,
            last,
        })
    }

    /// What it does, in words: what is revoked comes first.
    fn lines(&self) -> Arc<[String]> {
        let on = self.service;
        let line = |verb: &str, g: &Grant| format!("{verb} {g} on {on}");
        let revoked = self.revoked.iter().map(|g| line("revoke", g));
        bounded(revoked.chain(self.granted.iter().map(|g| line("grant", g))))
    }

    /// As an approval names it.
    pub fn held(&self) -> HeldPlan {
        HeldPlan {
            hash: self.hash(),
            lines: self.lines(),
        }
    }

    /// The hash of it. Not in it: the etag, the uid and the number of the generation, so that an
    /// approval can be reviewed with the change that it is for, before there is such an object.
    pub fn hash(&self) -> Arc<str> {
        let intent = &self.claim.intent;
        let back = self.claim.rollback.as_ref().map_or("", |r| &*r.change);
        let head = [
            "effect/1".to_owned(),
            intent.id.key().to_string(),
            intent.spec_digest.to_string(),
            format!("{} {} {}", intent.deleting, self.last, back),
            self.service.resource_name(),
        ];
        let granted = self.granted.iter().map(|g| format!("+{}", written(g)));
        let revoked = self.revoked.iter().map(|g| format!("-{}", written(g)));
        let parts: Vec<String> = head.into_iter().chain(granted).chain(revoked).collect();
        digest(WITHSTANDS, parts.iter().map(String::as_str))
    }
}

fn bounded(lines: impl Iterator<Item = String>) -> Arc<[String]> {
    let mut all: Vec<String> = lines.collect();
    if let Some(more) = all.len().checked_sub(MAX_LINES).filter(|n| *n > 0) {
        all.truncate(MAX_LINES);
        all.push(format!("and {more} more"));
    }
    for line in &mut all {
        if line.chars().count() > 700 {
            *line = line.chars().take(699).chain(['…']).collect();
        }
    }
    all.into()
}

/// A grant, so that no two are written alike.
fn written(grant: &Grant) -> String {
    let condition = grant.condition.as_ref().map(|c| {
        let parts = [&*c.title, &*c.description, &*c.expression];
        parts.map(|p| format!("{p:?}")).join(" ")
    });
    format!(
        "{} {:?} {}",
        grant.role,
        grant.principal.key(),
        condition.unwrap_or_default()
    )
}

/// The effects of a held plan for all policies that are shown a part of it.
pub(super) fn effects(
    views: &[View],
    held: &BTreeSet<Grant>,
    last: bool,
    input: &Input<'_>,
) -> Effects {
    let effect = |(claim, view): (&PolicyOnService, &View)| {
        let effect = Effect::of(claim, view, held, last, input)?;
        Some((claim.intent.id.clone(), effect.held()))
    };
    input
        .claims
        .iter()
        .zip(views)
        .filter(|(c, _)| c.intent.enforces())
        .filter_map(effect)
        .collect()
}

/// A selector's reach: the services that the policy would change for the first time.
pub fn reach(intent: &Intent, services: &BTreeSet<RunService>) -> HeldPlan {
    let reached = services.iter().map(|s| format!("reach {s}"));
    let granted = intent.declared.iter().map(|d| format!("grant {}", d.grant));
    HeldPlan {
        hash: reach_hash(intent, services),
        lines: bounded(reached.chain(granted)),
    }
}

/// The hash of a selector's reach.
pub fn reach_hash<'a>(
    intent: &Intent,
    services: impl IntoIterator<Item = &'a RunService>,
) -> Arc<str> {
    let names: BTreeSet<String> = services
        .into_iter()
        .map(RunService::resource_name)
        .collect();
    let head = [
        "reach/1".to_owned(),
        intent.id.key().to_string(),
        intent.spec_digest.to_string(),
    ];
    // Whom ServiceAccounts stand for is not in the spec.
    let granted = intent.declared.iter();
    let granted = granted.map(|d| format!("+{}", written(&d.grant)));
    let parts: Vec<String> = head.into_iter().chain(names).chain(granted).collect();
    digest(WITHSTANDS, parts.iter().map(String::as_str))
}

/// The first of the policy's approvals that is for this plan and in time.
pub(super) fn agreement<'a>(
    claim: &'a PolicyOnService,
    held: &HeldPlan,
    now: Timestamp,
) -> Option<&'a Arc<Agreement>> {
    let mut all = claim.agreements.iter();
    all.find(|a| a.plan == held.hash && now < a.ends() && a.shows(&held.lines))
}
