//! What a policy is told of grants above its services.

use std::collections::BTreeSet;

use super::{StatusInput, conditions::Truth};
use crate::{
    api::{ConditionType, InheritedGrantStatus, InheritedStatus, InvokerPolicyStatus, Reason},
    inherited::{Above, InheritedGrant},
};

/// Grants that a status shows.
const SHOWN: usize = 20;

/// What is known of grants above the services of one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct InheritedView<'a> {
    pub above: Above<'a>,
    /// For each of the grants in their order whether a policy lists the principal on every service of
    /// this one.
    pub listed: Vec<bool>,
}

/// What a condition says of them: what, why, and in which words.
pub(super) struct Bypass {
    pub truth: Truth,
    pub reason: Reason,
    pub message: String,
}

impl InheritedView<'_> {
    fn grants(&self) -> impl Iterator<Item = (&InheritedGrant, bool)> {
        let grants = match &self.above {
            Above::Known { grants, .. } => grants.as_slice(),
            _ => &[],
        };
        grants.iter().copied().zip(self.listed.iter().copied())
    }

    /// How many grants are of somebody whom no policy lists, and the first of them in words.
    pub(super) fn unlisted(&self, most: usize) -> (usize, Vec<String>) {
        let unlisted = || self.grants().filter(|(_, listed)| !listed);
        let words = unlisted().take(most).map(|(grant, _)| grant.words());
        (unlisted().count(), words.collect())
    }

    fn status(&self) -> InheritedStatus {
        let principals = |wanted: &dyn Fn(bool) -> bool| {
            let wanted = self.grants().filter(|(_, listed)| wanted(*listed));
            let keys: BTreeSet<&str> = wanted.map(|(g, _)| g.principal.key()).collect();
            keys.len() as i64
        };
        let mut shown: Vec<(&InheritedGrant, bool)> = self.grants().collect();
        shown.sort_by_key(|(_, listed)| *listed);
        let entry = |(grant, listed): &(&InheritedGrant, bool)| InheritedGrantStatus {
            member: grant.principal.to_string(),
            role: grant.role.to_string(),
            level: grant.level.as_str().into(),
            resource: grant.resource.to_string(),
            listed: *listed,
            conditional: grant.conditional,
        };
        InheritedStatus {
            principals: principals(&|_| true),
            unlisted: principals(&|listed| !listed),
            grants: shown.iter().take(SHOWN).map(entry).collect(),
        }
    }
}

/// The part of a status that is about grants above the services. What was said before stands until
/// something else is known.
pub(super) fn status(
    facts: &StatusInput<'_>,
    old: &InvokerPolicyStatus,
) -> Option<InheritedStatus> {
    let view = facts.inherited?;
    match view.above {
        Above::Waiting => old.inherited.clone(),
        Above::Known { .. } => Some(view.status()),
        Above::Unplaced | Above::Unknown(_) => None,
    }
}

/// What was said of them before.
pub(super) fn said_before(old: &InvokerPolicyStatus) -> Option<Bypass> {
    let mut conditions = old.conditions.iter();
    let bypassed = ConditionType::Bypassed.as_str();
    let before = conditions.find(|c| c.type_ == bypassed && c.status != Truth::Unknown.as_str())?;
    let is_true = before.status == Truth::True.as_str();
    Some(Bypass {
        truth: if is_true { Truth::True } else { Truth::False },
        reason: if is_true {
            Reason::InheritedAccess
        } else {
            Reason::InSync
        },
        message: before.message.clone(),
    })
}
