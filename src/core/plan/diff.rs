//! Desired against live: which grants to make, which to take away, which to leave, and why.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::merge::Desired;
use crate::{
    iam::{Condition, Grant},
    intent::Refusal,
};

/// Whether the policy that a grant was once made for still stands behind the record of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnerState {
    /// The policy is gone without revoking (onDelete: Retain, or its finalizer was removed by hand).
    Gone,
    /// The policy exists but may not write now.
    Passive,
    /// The policy is enforced.
    Enforcing,
}

/// Why a live grant is to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RevokeCause {
    /// No policy lists it, and an enforced one is authoritative.
    Unlisted,
    /// The operator granted it, and the policy behind it lists it no more.
    NoLongerDeclared,
    /// Its declared end has passed.
    Expired,
    /// Its policy is being deleted.
    PolicyDeleted,
    /// The operator granted it, and a guardrail refuses it now.
    Refused,
}

/// How a live grant that nobody lists relates to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Revoke(RevokeCause),
    /// A policy lists it, a guardrail refuses that, and somebody else granted it.
    Refused(Refusal),
    /// Unwanted, but never removed.
    Protected,
    /// Not ours to judge.
    Foreign,
}

/// Whether a condition is one that this operator would use here: one that a policy lists, or the form of an expiry.
fn is_ours(grant: &Grant, desired: &Desired) -> bool {
    match &grant.condition {
        None => true,
        Some(c) => c.expiry().is_some() || desired.conditions.contains(&(grant.role, Condition::clone(c))),
    }
}

/// Judges one live grant that no policy lists.
pub fn judge(
    grant: &Grant,
    desired: &Desired,
    ledger: &BTreeMap<Grant, OwnerState>,
    is_protected: &dyn Fn(&Grant) -> bool,
    now: Timestamp,
) -> Verdict {
    let remembered = ledger.get(grant).copied();
    let ended = grant.condition.as_ref().and_then(|c| c.expiry()).is_some_and(|e| e <= now);
    let cause = if desired.leaving.contains(grant) {
        Some(RevokeCause::PolicyDeleted)
    } else if let Some(refusal) = desired.refused.get(grant) {
        if remembered != Some(OwnerState::Enforcing) {
            return Verdict::Refused(refusal.clone());
        }
        Some(RevokeCause::Refused)
    } else if desired.expired.contains(grant) || (ended && remembered == Some(OwnerState::Enforcing)) {
        Some(RevokeCause::Expired)
    } else if remembered == Some(OwnerState::Enforcing) {
        Some(RevokeCause::NoLongerDeclared)
    } else if desired.authoritative.contains(&grant.role) && is_ours(grant, desired) {
        Some(if ended { RevokeCause::Expired } else { RevokeCause::Unlisted })
    } else {
        None
    };
    match cause {
        None => Verdict::Foreign,
        // A protected member that a policy named is that policy's to take back; one that nobody named is not.
        Some(RevokeCause::Unlisted) if is_protected(grant) => Verdict::Protected,
        Some(cause) => Verdict::Revoke(cause),
    }
}

/// Grants that are wanted and not there.
pub fn missing<'a>(wanted: impl Iterator<Item = &'a Grant>, live: &BTreeSet<Grant>) -> BTreeSet<Grant> {
    wanted.filter(|g| !live.contains(g)).cloned().collect()
}
