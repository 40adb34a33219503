//! What one policy sees of one service: what is there, what is missing, what is protected.

use std::collections::BTreeSet;

use super::{
    Input,
    claim::PolicyOnService,
    diff::{self, Verdict},
    merge::{Desired, merge},
};
use crate::iam::Grant;

/// What one policy sees of a service: how the live policy differs from its own list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Declared here and not real.
    pub missing: BTreeSet<Grant>,
    /// Real, listed by nobody, and this policy says its list is complete or once asked for it.
    pub unexpected: BTreeSet<Grant>,
    /// Real, listed by nobody, never removed.
    pub protected: BTreeSet<Grant>,
}

/// A service as each of the policies on it sees it, in their order.
pub fn views(input: &Input<'_>) -> Vec<View> {
    let (live, desired) = (input.live.grants(), merge(input));
    // The same for every policy, and there may be hundreds.
    let unlisted: Vec<&Grant> = desired.unlisted(&live).collect();
    input
        .claims
        .iter()
        .map(|claim| view_of(claim, input, &live, &unlisted, &desired))
        .collect()
}

/// What differs for policies that only report.
pub(super) fn reported(
    input: &Input<'_>,
    live: &BTreeSet<Grant>,
    desired: &Desired,
) -> BTreeSet<Grant> {
    let mut reporting = input.claims.iter().filter(|c| c.only_reports()).peekable();
    if reporting.peek().is_none() {
        return BTreeSet::new();
    }
    let unlisted: Vec<&Grant> = desired.unlisted(live).collect();
    let views = reporting.map(|claim| view_of(claim, input, live, &unlisted, desired));
    views
        .flat_map(|v| v.missing.into_iter().chain(v.unexpected))
        .collect()
}

/// A service as one of the policies on it sees it.
pub fn view(claim: &PolicyOnService, input: &Input<'_>) -> View {
    let (live, desired) = (input.live.grants(), merge(input));
    let unlisted: Vec<&Grant> = desired.unlisted(&live).collect();
    view_of(claim, input, &live, &unlisted, &desired)
}

fn view_of(
    claim: &PolicyOnService,
    input: &Input<'_>,
    live: &BTreeSet<Grant>,
    unlisted: &[&Grant],
    desired: &Desired,
) -> View {
    let intent = &claim.intent;
    let unlisted = unlisted.iter().copied();
    if intent.deleting || claim.left {
        // What is left to take away: what belongs to this policy, or to nobody any more.
        let own = |g: &&Grant| {
            input
                .ledger
                .get(g)
                .is_some_and(|o| o.is_empty() || o.contains_key(&intent.id))
        };
        let leaving = |g: &&Grant| {
            desired.leaving.contains(g) && claim.declared().iter().any(|d| d.grant == **g)
        };
        let to_go = unlisted.filter(|g| own(g) || leaving(g)).cloned();
        let (protected, unexpected) = to_go.partition(|g| input.settings.protects(g));
        return View {
            unexpected,
            protected,
            ..View::default()
        };
    }
    let circumstances = diff::Circumstances {
        desired,
        ledger: input.ledger,
        is_protected: &|g| input.settings.protects(g),
        now: input.now,
    };
    // An audited or suspended policy is shown what it would do if it were enforced.
    let complete = intent.is_complete().then_some(&intent.id);
    let mut view = View {
        missing: diff::missing(claim.grants_at(input.now), live),
        ..View::default()
    };
    // Of another role what belongs to it, from when it had that role.
    let is_own = |g: &Grant| {
        input
            .ledger
            .get(g)
            .is_some_and(|o| o.contains_key(&intent.id))
    };
    for grant in unlisted.filter(|g| g.role == intent.role || is_own(g)) {
        let complete = complete.filter(|_| grant.role == intent.role);
        let leaves_out = desired.leaves_out(grant, complete.into_iter());
        match circumstances.judge(grant, leaves_out, false) {
            Verdict::Foreign | Verdict::Refused => {}
            Verdict::Protected => {
                view.protected.insert(grant.clone());
            }
            Verdict::Revoke(_) => {
                view.unexpected.insert(grant.clone());
            }
        }
    }
    view
}
