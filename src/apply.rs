//! Carries out a plan: remembers, records, writes once. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api::{InvokerChange, LedgerOwner},
    cloudrun::{CloudRun, Priority},
    cluster::{
        Cluster,
        index::{Ledger, ledger_spec},
    },
    fault::{Fault, FaultClass},
    iam::{Grant, Policy},
    plan::{Plan, RejectedMember},
};

/// The ledger after a plan: what it grants is entered, what it forgets is gone.
pub fn remembered(ledger: &Ledger, plan: &Plan) -> Ledger {
    let mut next: Ledger =
        ledger.iter().filter(|(g, _)| !plan.forget.contains(*g)).map(|(g, o)| (g.clone(), o.clone())).collect();
    for (grant, by) in &plan.grants {
        let owners: BTreeSet<LedgerOwner> = by
            .iter()
            .map(|id| LedgerOwner {
                namespace: id.namespace.to_string(),
                name: id.name.to_string(),
                uid: id.uid.to_string(),
            })
            .collect();
        next.entry(grant.clone()).or_default().extend(owners);
    }
    next
}

/// Writes the ledger if it changes. Before a grant, so that no crash can leave one that nobody remembers.
///
/// # Errors
/// Those of the Kubernetes API; then the plan must not be carried out.
pub async fn remember(cluster: &Cluster, plan: &Plan, ledger: &Ledger) -> Result<Option<Ledger>, Fault> {
    let next = remembered(ledger, plan);
    if next == *ledger {
        return Ok(None);
    }
    cluster.write_ledger(&plan.service, &ledger_spec(&plan.service, &next)).await?;
    Ok(Some(next))
}

/// Writes the records of a plan that is about to be carried out. Where they are kept comes back: a namespace that is
/// going away takes none, so its record lies in the operator's own.
///
/// # Errors
/// Those of the Kubernetes API; then the plan must not be carried out.
pub async fn record(cluster: &Cluster, changes: Vec<InvokerChange>) -> Result<Vec<InvokerChange>, Fault> {
    let mut kept = Vec::with_capacity(changes.len());
    for change in changes {
        kept.push(cluster.create_change(change).await?);
    }
    Ok(kept)
}

/// How a write ended.
#[derive(Debug)]
pub enum Outcome {
    /// IAM took it.
    Written,
    /// The policy changed since it was read: gather and plan anew.
    Conflict,
    /// IAM refused because of these members; some of the others may be written already.
    Refused(BTreeMap<Grant, RejectedMember>),
}

/// Writes a plan with one compare-and-swap.
///
/// # Guarantees
/// The policy written is the one read with the plan's changes and nothing else, under the etag that was read.
///
/// # Errors
/// Every fault but a conflict and a refused member. After a timeout or a reset the write may have happened.
pub async fn write<C: CloudRun>(cloud: &C, plan: &Plan, live: &Policy, lane: Priority) -> Result<Outcome, Fault> {
    let fault = match cloud.write_policy(&plan.service, &plan.applied_to(live), lane).await {
        Ok(_) => return Ok(Outcome::Written),
        Err(fault) => fault,
    };
    match fault.class {
        FaultClass::Conflict => Ok(Outcome::Conflict),
        FaultClass::InvalidMember | FaultClass::OrganizationPolicy => match &fault.member {
            Some(named) => {
                let culprits: BTreeMap<Grant, RejectedMember> =
                    plan.grants.keys().filter(|g| names(g, named)).map(|g| (g.clone(), aside(&fault))).collect();
                // Somebody who is in the policy already, and not by this plan: nothing here can be set aside.
                if culprits.is_empty() { Err(fault) } else { Ok(Outcome::Refused(culprits)) }
            }
            None if plan.grants.len() == 1 && plan.revokes.is_empty() => {
                Ok(Outcome::Refused(plan.grants.keys().map(|g| (g.clone(), aside(&fault))).collect()))
            }
            None if plan.grants.is_empty() => Err(fault),
            None => isolate(cloud, plan, live, lane).await,
        },
        _ => Err(fault),
    }
}

/// `serviceAccount:x@y` is named as `x@y`.
fn names(grant: &Grant, named: &str) -> bool {
    grant.principal.as_str().split_once(':').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(named))
}

fn aside(fault: &Fault) -> RejectedMember {
    RejectedMember { reason: fault.class.row().reason, message: fault.advice() }
}

/// Finds the members that IAM refuses without naming them: grants are written in halves until a refused part is a single
/// one. What is accepted on the way is in force at once. Costs about two writes for each halving and bad member.
async fn isolate<C: CloudRun>(cloud: &C, plan: &Plan, live: &Policy, lane: Priority) -> Result<Outcome, Fault> {
    let all: Vec<Grant> = plan.grants.keys().cloned().collect();
    let mut base = live.clone();
    let mut refused = BTreeMap::new();
    let mut parts = if all.len() == 1 {
        vec![all]
    } else {
        let (left, right) = all.split_at(all.len() / 2);
        vec![right.to_vec(), left.to_vec()]
    };
    while let Some(part) = parts.pop() {
        let next = base.with_changes(&part.iter().cloned().collect(), &BTreeSet::new());
        match cloud.write_policy(&plan.service, &next, lane).await {
            Ok(written) => base = written,
            Err(f) if f.class == FaultClass::Conflict => {
                // What was learned so far is kept; the rest comes up again with the next plan.
                return Ok(if refused.is_empty() { Outcome::Conflict } else { Outcome::Refused(refused) });
            }
            Err(f) if matches!(f.class, FaultClass::InvalidMember | FaultClass::OrganizationPolicy) => {
                if let [single] = part.as_slice() {
                    refused.insert(single.clone(), aside(&f));
                } else {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.push(right.to_vec());
                    parts.push(left.to_vec());
                }
            }
            Err(f) => return Err(f),
        }
    }
    if refused.len() == plan.grants.len() && plan.grants.len() > 1 {
        // Nothing at all is accepted: the fault is in what is there already, not in every one of these members.
        return Err(Fault::new(
            FaultClass::InvalidMember,
            "IAM refuses every change of this policy, also the smallest; a member that is in it already may be the reason",
        ));
    }
    // Nothing refused by itself: what failed together went through in parts.
    Ok(if refused.is_empty() { Outcome::Written } else { Outcome::Refused(refused) })
}
