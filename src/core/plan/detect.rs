//! Which differences are drift: not there when the same declarations were last settled, so somebody
//! else made them.

use std::collections::BTreeSet;

use super::{
    Change, Input, Plan, PolicyOnService, RevokeCause, Withheld, WithheldReason, claim,
    merge::Desired, view,
};
use crate::iam::Grant;

fn is_drift<'a>(input: &'a Input<'_>) -> impl Fn(&Grant) -> bool + use<'a> {
    let by = claim::fingerprint(input.claims);
    // Whoever makes a service anew takes nothing away from it.
    let is_anew = input.live.etag.is_untouched();
    move |grant| !is_anew && input.memory.is_drift(by, grant)
}

/// Separates what undoes a stranger's change, and holds it back where that has become a fight, or
/// too much in all.
pub(super) fn hold_fights(plan: &mut Plan, input: &Input<'_>) {
    let is_drift = is_drift(input);
    // What was approved was seen by a person.
    let is_approved = plan.approved.is_some();
    let unlisted = plan
        .revokes
        .iter()
        .filter(|(_, cause)| !is_approved && **cause == RevokeCause::Unlisted)
        .map(|(g, _)| g);
    let undone = plan.grants.keys().chain(unlisted);
    plan.drift = undone.filter(|g| is_drift(g)).cloned().collect();
    for grant in plan.drift.clone() {
        let why = match input
            .memory
            .fight(&grant, input.now)
            .filter(|f| f.not_before > input.now)
        {
            Some(fight) => WithheldReason::Contested(fight),
            None if input.circuit_open => WithheldReason::CircuitOpen,
            None => continue,
        };
        let change = if plan.grants.remove(&grant).is_some() {
            Change::Grant
        } else {
            Change::Revoke
        };
        plan.revokes.remove(&grant);
        plan.withheld.push(Withheld { change, grant, why });
    }
}

/// What policies that only report see. The difference that one begins with is no drift, nor is an
/// entry that has expired: nobody changed anything.
pub(super) fn report_differences(
    plan: &mut Plan,
    input: &Input<'_>,
    desired: &Desired,
    live: &BTreeSet<Grant>,
) {
    plan.reported = view::reported(input, live, desired);
    let is_drift = is_drift(input);
    let declared = |g: &Grant| {
        input
            .claims
            .iter()
            .flat_map(PolicyOnService::declared)
            .any(|d| d.grant == *g)
    };
    let has_expired = |g: &Grant| live.contains(g) && declared(g);
    let found = plan
        .reported
        .iter()
        .filter(|g| is_drift(g) && !has_expired(g));
    plan.reported_drift = found.cloned().collect();
}
