//! All policies that name a service, folded into one desired set that remembers who asked.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    api::{Membership, OnDelete},
    iam::{Condition, Grant, Role},
    intent::{Intent, PolicyId},
};

/// What all policies together want of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Grants that an enforcing policy lists, with those that ask.
    pub granted: BTreeMap<Grant, BTreeSet<PolicyId>>,
    /// Grants that any policy lists, audited and suspended ones included: nobody may remove these.
    pub listed: BTreeMap<Grant, BTreeSet<PolicyId>>,
    /// Roles for which an enforcing policy says that the list is complete.
    pub authoritative: BTreeSet<Role>,
    /// Grants that leave with a deleted policy, unless somebody else lists them.
    pub leaving: BTreeSet<Grant>,
    /// Grants whose declared end has passed, listed by an enforcing policy.
    pub expired: BTreeSet<Grant>,
    /// Conditions that policies use, by role. A binding under any other condition is foreign.
    pub conditions: BTreeSet<(Role, Condition)>,
}

/// Folds intents. The order of `intents` does not matter.
pub fn merge<'a>(intents: impl IntoIterator<Item = &'a Intent>, now: Timestamp) -> Desired {
    let mut desired = Desired::default();
    for intent in intents {
        if intent.deleting {
            if intent.enforces() && intent.on_delete == OnDelete::Revoke {
                desired.leaving.extend(intent.declared.iter().map(|d| d.grant.clone()));
            }
            continue;
        }
        for declared in &intent.declared {
            if let Some(c) = &declared.grant.condition {
                desired.conditions.insert((intent.role, c.as_ref().clone()));
            }
        }
        for grant in intent.grants_at(now) {
            desired.listed.entry(grant.clone()).or_default().insert(intent.id.clone());
            if intent.enforces() {
                desired.granted.entry(grant.clone()).or_default().insert(intent.id.clone());
            }
        }
        if intent.enforces() {
            desired.expired.extend(intent.expired_at(now).cloned());
            if intent.membership == Membership::Authoritative {
                desired.authoritative.insert(intent.role);
            }
        }
    }
    desired
}
