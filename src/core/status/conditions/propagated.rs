//! `Propagated`: whether IAM had the time to act on the last change everywhere.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{ConditionInput, Conditions, Truth};
use crate::{
    api::{ConditionType, InvokerPolicyStatus, Reason},
    status::text::whole_seconds,
};

pub(super) fn set(conditions: &mut Conditions<'_>, input: &ConditionInput<'_>) {
    let facts = input.facts;
    let window = SignedDuration::try_from(facts.propagation).unwrap_or_default();
    let last = facts.changed_at.max(reported_before(input.old));
    let until = last
        .map(|at| at + window)
        .filter(|until| *until > facts.now);
    let mut set = |truth, reason, message: &str| {
        conditions.set(ConditionType::Propagated, truth, reason, message);
    };
    if facts.writing {
        let message = "a write is in progress, or its result is not recorded yet";
        return set(Truth::False, Reason::Progressing, message);
    }
    match until.map(whole_seconds) {
        Some(until) => set(
            Truth::False,
            Reason::Progressing,
            &format!("changed recently; IAM may take until {until} to apply it everywhere"),
        ),
        None => set(Truth::True, Reason::InSync, "no recent change"),
    }
}

/// After a restart the old condition can be what is left of the change, where the ledger went with
/// the last grant.
fn reported_before(old: &InvokerPolicyStatus) -> Option<Timestamp> {
    let name = ConditionType::Propagated.as_str();
    let mut all = old.conditions.iter();
    let found = all.find(|c| c.type_ == name && c.status == Truth::False.as_str());
    found.map(|c| c.last_transition_time.0)
}

/// The end of the propagation window, at which the status changes by itself.
pub fn propagated_at(changed: Option<Timestamp>, window: Duration) -> Option<Timestamp> {
    Some(changed? + SignedDuration::try_from(window).ok()?)
}
