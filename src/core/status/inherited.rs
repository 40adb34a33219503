//! What a policy is told of grants above its services.

use super::{StatusInput, conditions::Truth};
use crate::{
    api::{ConditionType, InheritedGrantStatus, InheritedStatus, InvokerPolicyStatus, Reason},
    fault::Fault,
    inherited::InheritedGrant,
};

/// Grants that a status shows.
const SHOWN: usize = 20;

/// What is known of grants above the services of one policy.
#[derive(Clone, Debug, PartialEq)]
pub enum InheritedView<'a> {
    /// No search has come to its end yet: what was said before stands.
    Waiting,
    /// No search showed where the project is.
    Unplaced,
    Unknown(&'a Fault),
    Known {
        /// Each with whether a policy lists the principal on every service of this one.
        grants: Vec<(&'a InheritedGrant, bool)>,
        /// Why something that may show more could not be searched.
        unseen: Option<&'a Fault>,
        /// What is above and in no scope, in words.
        unsearched: Option<String>,
        /// The last search failed: an earlier one showed this.
        stale: bool,
    },
}

/// What a condition says of them: what, why, and in which words.
pub(super) struct Bypass {
    pub truth: Truth,
    pub reason: Reason,
    pub message: String,
}

impl InheritedView<'_> {
    /// How many grants are of somebody whom no policy lists, and the first of them in words.
    pub(super) fn unlisted(&self, most: usize) -> (usize, Vec<String>) {
        let Self::Known { grants, .. } = self else {
            return (0, Vec::new());
        };
        let unlisted = || grants.iter().filter(|(_, listed)| !listed);
        let words = unlisted().take(most).map(|(grant, _)| grant.words());
        (unlisted().count(), words.collect())
    }

    fn status(&self) -> Option<InheritedStatus> {
        let Self::Known { grants, .. } = self else {
            return None;
        };
        let principals = |wanted: &dyn Fn(bool) -> bool| {
            let wanted = grants.iter().filter(|(_, listed)| wanted(*listed));
            let keys: std::collections::BTreeSet<&str> =
                wanted.map(|(g, _)| g.principal.key()).collect();
            keys.len() as i64
        };
        let mut shown: Vec<&(&InheritedGrant, bool)> = grants.iter().collect();
        shown.sort_by_key(|(_, listed)| *listed);
        let entry = |(grant, listed): &&(&InheritedGrant, bool)| InheritedGrantStatus {
            member: grant.principal.to_string(),
            role: grant.role.to_string(),
            level: grant.level.as_str().into(),
            resource: grant.resource.to_string(),
            listed: *listed,
            conditional: grant.conditional,
        };
        Some(InheritedStatus {
            principals: principals(&|_| true),
            unlisted: principals(&|listed| !listed),
            grants: shown.iter().take(SHOWN).map(entry).collect(),
        })
    }
}

/// The part of a status that is about grants above the services. What was said before stands until
/// something else is known.
pub(super) fn status(
    facts: &StatusInput<'_>,
    old: &InvokerPolicyStatus,
) -> Option<InheritedStatus> {
    match facts.inherited? {
        InheritedView::Waiting => old.inherited.clone(),
        view => view.status(),
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
