//! All policies that name a service, folded into one desired set that remembers who asked.

use std::collections::{BTreeMap, BTreeSet};

use super::{Input, PolicyOnService};
use crate::{
    api::OnDelete,
    iam::{Condition, Grant, Role},
    intent::{Declared, PolicyId, Refusal},
};

/// What all policies together want of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Grants that an enforcing policy lists, with those that ask.
    pub granted: BTreeMap<Grant, BTreeSet<PolicyId>>,
    /// Grants that any policy lists, audited and suspended ones included: nobody may remove these.
    pub listed: BTreeMap<Grant, BTreeSet<PolicyId>>,
    /// Roles for which an enforcing policy says that the list is complete.
    pub authoritative: BTreeMap<Role, BTreeSet<PolicyId>>,
    /// Grants that leave with a deleted policy, unless somebody else lists them.
    pub leaving: BTreeSet<Grant>,
    /// Grants whose declared end has passed, listed by an enforcing policy.
    pub expired: BTreeSet<Grant>,
    /// Grants that are declared and that a guardrail refuses to these policies. Somebody else may
    /// list them, and be allowed to.
    pub refused: BTreeMap<Grant, (Refusal, BTreeSet<PolicyId>)>,
    /// Conditions that policies may use and do, by role. A binding under any other condition is
    /// foreign: what a guardrail refuses makes nobody else's condition ours.
    pub conditions: BTreeSet<(Role, Condition)>,
}

impl Desired {
    /// Grants that are real and that nobody lists.
    pub fn unlisted<'a>(&'a self, live: &'a BTreeSet<Grant>) -> impl Iterator<Item = &'a Grant> {
        live.iter().filter(|g| !self.listed.contains_key(g))
    }

    /// Whether a policy for which the list of the grant's role is complete leaves it out. What a
    /// guardrail refuses one policy protects nothing from another: only who declares it oneself is
    /// not complete without it.
    pub fn leaves_out<'a>(
        &self,
        grant: &Grant,
        mut complete: impl Iterator<Item = &'a PolicyId>,
    ) -> bool {
        let declared_by = self.refused.get(grant).map(|(_, by)| by);
        complete.any(|id| declared_by.is_none_or(|by| !by.contains(id)))
    }

    /// What a policy that is being deleted takes with it. What it was not allowed to declare is not
    /// its to take back either; what was granted nevertheless is in the ledger.
    fn add_leaving(&mut self, claim: &PolicyOnService, input: &Input<'_>) {
        if claim.enforces() && claim.intent.on_delete == OnDelete::Revoke {
            let is_allowed = |d: &&Declared| claim.refuse(input.service, d, input.now).is_none();
            let own = claim.declared().iter().filter(is_allowed);
            self.leaving.extend(own.map(|d| d.grant.clone()));
        }
    }

    /// One entry of a policy: ended, refused by a guardrail, or listed.
    fn declare(&mut self, claim: &PolicyOnService, declared: &Declared, input: &Input<'_>) {
        let (grant, id) = (&declared.grant, &claim.intent.id);
        if declared.expires.is_some_and(|e| e <= input.now) {
            if claim.enforces() {
                self.expired.insert(grant.clone());
            }
            return;
        }
        if let Some(refusal) = claim.refuse(input.service, declared, input.now) {
            let entry = self.refused.entry(grant.clone());
            let (_, by) = entry.or_insert_with(|| (refusal, BTreeSet::new()));
            by.insert(id.clone());
            return;
        }
        if let Some(c) = &grant.condition {
            self.conditions.insert((grant.role, c.as_ref().clone()));
        }
        let listed = self.listed.entry(grant.clone()).or_default();
        listed.insert(id.clone());
        if claim.enforces() {
            let granted = self.granted.entry(grant.clone()).or_default();
            granted.insert(id.clone());
        }
    }
}

/// Folds the claims of `input`. Their order does not matter.
pub fn merge(input: &Input<'_>) -> Desired {
    let mut desired = Desired::default();
    for claim in input.claims.iter().filter(|c| !c.left) {
        if claim.intent.deleting {
            desired.add_leaving(claim, input);
            continue;
        }
        for declared in claim.declared() {
            desired.declare(claim, declared, input);
        }
        if claim.enforces() && claim.intent.is_complete() {
            let by = desired.authoritative.entry(claim.intent.role).or_default();
            by.insert(claim.intent.id.clone());
        }
    }
    desired
}
