//! All policies that name a service, folded into one desired set that remembers who asked.

use std::collections::{BTreeMap, BTreeSet};

use super::Input;
use crate::{
    api::{Membership, OnDelete},
    iam::{Condition, Grant, Role},
    intent::{PolicyId, Refusal},
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
    /// Conditions that policies use, by role. A binding under any other condition is foreign.
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
}

/// Folds the claims of `input`. Their order does not matter.
pub fn merge(input: &Input<'_>) -> Desired {
    let mut desired = Desired::default();
    for claim in input.claims {
        let intent = &claim.intent;
        if claim.left {
            continue;
        }
        if intent.deleting {
            if claim.enforces() && intent.on_delete == OnDelete::Revoke {
                // What it was not allowed to declare is not its to take back either; what was
                // granted nevertheless is in the ledger.
                let own = claim
                    .declared()
                    .iter()
                    .filter(|d| claim.refuse(input.service, d, input.now).is_none());
                desired.leaving.extend(own.map(|d| d.grant.clone()));
            }
            continue;
        }
        for declared in claim.declared() {
            if let Some(c) = &declared.grant.condition {
                desired
                    .conditions
                    .insert((declared.grant.role, c.as_ref().clone()));
            }
            if declared.expires.is_some_and(|e| e <= input.now) {
                if claim.enforces() {
                    desired.expired.insert(declared.grant.clone());
                }
                continue;
            }
            if let Some(refusal) = claim.refuse(input.service, declared, input.now) {
                let entry = desired.refused.entry(declared.grant.clone());
                entry
                    .or_insert_with(|| (refusal, BTreeSet::new()))
                    .1
                    .insert(intent.id.clone());
                continue;
            }
            desired
                .listed
                .entry(declared.grant.clone())
                .or_default()
                .insert(intent.id.clone());
            if claim.enforces() {
                desired
                    .granted
                    .entry(declared.grant.clone())
                    .or_default()
                    .insert(intent.id.clone());
            }
        }
        if claim.enforces() && intent.membership == Membership::Authoritative {
            desired
                .authoritative
                .entry(intent.role)
                .or_default()
                .insert(intent.id.clone());
        }
    }
    desired
}
