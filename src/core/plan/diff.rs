//! Desired against live: which grants to make, which to take away, which to leave, and why.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    merge::Desired,
    ownership::{self, OwnerState, Owners},
};
use crate::iam::{Condition, Grant};

/// Why a live grant is to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RevokeCause {
    /// No policy lists it, and an enforced one is authoritative.
    Unlisted,
    /// It belonged to policies, and none of them lists it any more.
    NoLongerDeclared,
    /// Its declared end has passed.
    Expired,
    /// Its policy is being deleted.
    PolicyDeleted,
    /// It was given on request, and an approver took it back.
    Denied,
    /// It belonged to a policy, and a guardrail refuses it now.
    Refused,
}

/// How a live grant that nobody lists relates to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Revoke(RevokeCause),
    /// A policy lists it, a guardrail refuses that, and somebody else granted it.
    Refused,
    /// Unwanted, but never removed.
    Protected,
    /// Not ours to judge.
    Foreign,
}

/// Whether a condition is one that this operator would use here: one that a policy lists, or the
/// form of an expiry.
fn is_ours(grant: &Grant, desired: &Desired) -> bool {
    match &grant.condition {
        None => true,
        Some(c) => {
            c.expiry().is_some()
                || desired
                    .conditions
                    .contains(&(grant.role, Condition::clone(c)))
        }
    }
}

/// What one judgement depends on, the grant itself left out.
pub struct Circumstances<'a> {
    pub desired: &'a Desired,
    pub ledger: &'a BTreeMap<Grant, Owners>,
    pub is_protected: &'a dyn Fn(&Grant) -> bool,
    pub now: Timestamp,
}

impl Circumstances<'_> {
    /// Judges one live grant that no policy lists. `complete`: an enforced policy says that its
    /// list of this role is complete. `leaving`: a policy that lists it is being deleted.
    pub fn judge(&self, grant: &Grant, complete: bool, leaving: bool) -> Verdict {
        let desired = self.desired;
        let owners = self.ledger.get(grant);
        let owned = owners.and_then(ownership::revoke_cause);
        let ended = grant.ends().is_some_and(|e| e <= self.now);
        // Somebody may list it whose word cannot be read.
        let is_unread = |o: &Owners| o.values().any(|s| *s == OwnerState::Unread);
        if !ended && owners.is_some_and(is_unread) {
            return Verdict::Foreign;
        }
        let cause = if leaving {
            // A request that is over leaves as a policy does, and says why.
            let why = owned.filter(|c| *c > RevokeCause::NoLongerDeclared);
            Some(why.unwrap_or(RevokeCause::PolicyDeleted))
        } else if owned.is_some() && desired.refused.contains_key(grant) {
            Some(RevokeCause::Refused)
        } else if desired.refused.contains_key(grant) && !complete {
            return Verdict::Refused;
        } else if desired.expired.contains(grant) || (ended && owned.is_some()) {
            Some(RevokeCause::Expired)
        } else if owned.is_some() {
            owned
        } else if complete && is_ours(grant, desired) {
            Some(if ended {
                RevokeCause::Expired
            } else {
                RevokeCause::Unlisted
            })
        } else {
            None
        };
        match cause {
            None => Verdict::Foreign,
            // Never removed, also where a policy named it: services stop working without it. What
            // has ended is no access any more.
            Some(cause) if cause != RevokeCause::Expired && (self.is_protected)(grant) => {
                if desired.refused.contains_key(grant) {
                    Verdict::Refused
                } else {
                    Verdict::Protected
                }
            }
            Some(cause) => Verdict::Revoke(cause),
        }
    }
}

/// Grants that are wanted and not there.
pub fn missing<'a>(
    wanted: impl Iterator<Item = &'a Grant>,
    live: &BTreeSet<Grant>,
) -> BTreeSet<Grant> {
    wanted.filter(|g| !live.contains(g)).cloned().collect()
}
