//! The blast radius: how much one plan may take away, and how far one discovery may reach, before a person agrees.

use std::{collections::BTreeSet, sync::Arc};

use sha2::{Digest as _, Sha256};

use super::{Change, Input, Plan, RevokeCause, Withheld, WithheldReason, claim::SelectorImpact};
use crate::{
    iam::{Grant, RunService},
    intent::Intent,
};

/// What a person is asked to agree to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Stands for exactly this plan on exactly this reality.
    pub hash: Arc<str>,
    /// Invokers that would lose access.
    pub removals: usize,
    /// The most that may be removed without asking.
    pub limit: usize,
    /// Nobody would be left.
    pub last: bool,
}

/// Twelve hexadecimal digits over `parts`; each part is closed by a zero byte, so that none can run into the next.
fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> Arc<str> {
    use std::fmt::Write as _;
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let mut text = String::with_capacity(12);
    for byte in hasher.finalize().iter().take(6) {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

/// Removals that count: access that is in force now and that nobody asked to end at a time, nor the platform team by a
/// guardrail. What a guardrail refuses goes without asking, or a tenant could keep it by never agreeing.
fn counts(grant: &Grant, cause: RevokeCause, input: &Input<'_>) -> bool {
    let in_force = grant.condition.as_ref().and_then(|c| c.expiry()).is_none_or(|e| e > input.now);
    in_force && !matches!(cause, RevokeCause::Expired | RevokeCause::Refused)
}

/// Holds back what the plan takes away, if it is too much and nobody agreed to it. Grants stay: they only add what was
/// declared.
pub(super) fn hold_blast(plan: &mut Plan, input: &Input<'_>) {
    let counted: BTreeSet<Grant> =
        plan.revokes.iter().filter(|(g, c)| counts(g, **c, input)).map(|(g, _)| g.clone()).collect();
    if counted.is_empty() {
        return;
    }
    let limit = input
        .claims
        .iter()
        .filter(|c| c.intent.enforces())
        .map(|c| c.terms.max_removals())
        .min()
        .unwrap_or(input.settings.limits.max_removals);
    // What waits for a listing counts, or one removal that is too large would go through as two that are not.
    let waiting = plan.withheld.iter().filter(|w| w.why == WithheldReason::UnansweredSelectors).count();
    if waiting > 0 && !input.unanswered.failed && counted.len() + waiting > limit {
        for grant in counted {
            plan.revokes.remove(&grant);
            plan.withheld.push(Withheld { change: Change::Revoke, grant, why: WithheldReason::UnansweredSelectors });
        }
        return;
    }
    let last = takes_the_last(plan, &counted, input);
    if counted.len() <= limit && !last {
        return;
    }
    let condition =
        |g: &Grant| g.condition.as_ref().map_or(String::new(), |c| format!("{}\n{}", c.title, c.expression));
    let lines: Vec<String> =
        counted.iter().map(|g| format!("{}\n{}\n{}", g.role, g.principal.key(), condition(g))).collect();
    let name = input.service.resource_name();
    let head = ["removals", name.as_str(), input.live.etag.0.as_str()];
    let hash = digest(head.into_iter().chain(lines.iter().map(String::as_str)));
    let approval = Approval { hash, removals: counted.len(), limit, last };
    if input.approvals.contains(&approval.hash) {
        plan.approved = Some(approval);
        return;
    }
    for grant in counted {
        plan.revokes.remove(&grant);
        plan.withheld.push(Withheld { change: Change::Revoke, grant, why: WithheldReason::Approval(approval.clone()) });
    }
}

/// Whether nobody could invoke the service any more although a policy stands on it that did not say `allowEmpty`. A
/// policy that is deleted, or that names the service no more, said so by that; one that cannot be carried out now did not.
fn takes_the_last(plan: &Plan, counted: &BTreeSet<Grant>, input: &Input<'_>) -> bool {
    let standing: Vec<&Intent> =
        input.claims.iter().filter(|c| c.intent.enforces() && !c.intent.deleting && !c.left).map(|c| &*c.intent).collect();
    if standing.is_empty() || standing.iter().any(|i| i.allow_empty && i.declared.is_empty()) {
        return false;
    }
    let alive = |g: &Grant| g.condition.as_ref().and_then(|c| c.expiry()).is_none_or(|e| e > input.now);
    let stays = input.live.grants().into_iter().any(|g| alive(&g) && !plan.revokes.contains_key(&g));
    let comes = plan.grants.keys().any(|g| alive(g) && !input.doubtful.contains(g));
    !counted.is_empty() && !stays && !comes
}

/// What a discovery that reaches services which this policy never changed comes to: `None` if it may go on.
///
/// `wanting` are those known to differ, `unseen` counts those that nobody has looked at yet.
pub fn spread(intent: &Intent, wanting: &BTreeSet<RunService>, unseen: usize, limit: usize) -> Option<SelectorImpact> {
    if wanting.len() + unseen <= limit {
        return None;
    }
    if unseen > 0 {
        // The hash must stand for all of it.
        return Some(SelectorImpact::Counting { unseen });
    }
    let generation = intent.generation.to_string();
    let names: Vec<String> = wanting.iter().map(RunService::resource_name).collect();
    let head = ["spread", &*intent.id.uid, generation.as_str()];
    let hash = digest(head.into_iter().chain(names.iter().map(String::as_str)));
    Some(SelectorImpact::Held { services: wanting.len(), limit, hash })
}
