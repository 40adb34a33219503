//! What holds for every plan, asked before anything is written.

use std::collections::BTreeSet;

use super::{
    Input, Plan,
    claim::PolicyOnService,
    diff::RevokeCause,
    merge::{Desired, merge},
    ownership,
};
use crate::{
    iam::{Binding, Grant, MAX_MEMBERS, Policy, Role},
    intent::Declared,
};

/// The invariants of every plan. Tests run this on each plan that they make.
///
/// # Errors
/// The first invariant that does not hold, in words.
pub fn check(plan: &Plan, input: &Input<'_>) -> Result<(), String> {
    let live = input.live.grants();
    let desired = merge(input);
    let ours = |g: &Grant| {
        let owners = input.ledger.get(g);
        owners.is_some_and(|o| ownership::revoke_cause(o).is_some())
    };
    let enforced =
        input.claims.iter().any(PolicyOnService::enforces) || input.ledger.keys().any(ours);
    if !plan.is_empty() && !enforced {
        return Err("changes without an enforced policy".into());
    }
    check_grants(plan, input, &desired, &live)?;
    let is_refused = |(_, cause): &(&Grant, &RevokeCause)| **cause == RevokeCause::Refused;
    let mut refused = plan.revokes.iter().filter(is_refused);
    if let Some((g, _)) = refused.find(|(g, _)| !ours(g)) {
        return Err(format!(
            "revokes {g} for a guardrail, although somebody else granted it"
        ));
    }
    if let Some(g) = plan.revokes.keys().find(|g| desired.listed.contains_key(g)) {
        return Err(format!("revokes {g}, which a policy lists"));
    }
    if let Some(g) = plan.revokes.keys().find(|g| !live.contains(g)) {
        return Err(format!("revokes {g}, which is not real"));
    }
    check_what_is_written(plan, input.live)
}

fn check_grants(
    plan: &Plan,
    input: &Input<'_>,
    desired: &Desired,
    live: &BTreeSet<Grant>,
) -> Result<(), String> {
    if let Some(g) = plan.grants.keys().find(|g| live.contains(g)) {
        return Err(format!("grants {g}, which is real already"));
    }
    let mut grants = plan.grants.keys();
    if let Some(g) = grants.find(|g| !desired.granted.contains_key(g)) {
        return Err(format!("grants {g}, which no enforced policy lists"));
    }
    let permits = |claim: &PolicyOnService, g: &Grant| {
        let may =
            |d: &Declared| d.grant == *g && claim.refuse(input.service, d, input.now).is_none();
        claim.enforces() && !claim.intent.deleting && claim.declared().iter().any(may)
    };
    let permitted = |g: &Grant| input.claims.iter().any(|c| permits(c, g));
    match plan.grants.keys().find(|g| !permitted(g)) {
        Some(g) => Err(format!("grants {g}, which a guardrail refuses")),
        None => Ok(()),
    }
}

fn check_what_is_written(plan: &Plan, live: &Policy) -> Result<(), String> {
    if live.has_hashed_conditions() && !plan.is_empty() {
        return Err("writes a view with hashed conditions".into());
    }
    let after = plan.applied_to(live);
    if after.member_count() > MAX_MEMBERS.max(live.member_count()) {
        return Err("exceeds the member limit".into());
    }
    let foreign = |p: &Policy| -> Vec<_> {
        let is_foreign = |b: &&Binding| Role::from_name(&b.role).is_none();
        p.bindings.iter().filter(is_foreign).cloned().collect()
    };
    if foreign(&after) != foreign(live) || after.extra != live.extra || after.etag != live.etag {
        return Err("touches what is not ours".into());
    }
    Ok(())
}
