//! The blast radius: how much one plan may take away, and how far one discovery may reach, before a
//! person agrees.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Change, Effects, Input, Plan, RevokeCause, View, Withheld, WithheldReason,
    claim::SelectorImpact,
    effect::{agreement, effects, reach},
};
use crate::{
    iam::{Grant, Invocation, PrincipalKind, RunService},
    intent::{Intent, PolicyId, denial_of, digest},
};

/// What a person is asked to agree to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Stands for exactly this plan on exactly this reality: what the annotation names.
    pub hash: Arc<str>,
    /// Stands for what the plan does, for each policy that is shown a part of it: what an
    /// InvokerApproval names.
    pub effects: Arc<Effects>,
    /// Who says that only an InvokerApproval counts, if somebody does.
    pub approver: Option<Arc<str>>,
    /// Invokers that would lose access.
    pub removals: usize,
    /// The most that may be removed without asking.
    pub limit: usize,
    /// Nobody would be left.
    pub last: bool,
}

/// Bytes of the hash that the annotation names: enough against an accident.
const NAMED: usize = 6;

/// Removals that count: access that is in force now and that nobody asked to end at a time, nor the
/// platform team by a guardrail. What a guardrail refuses goes without asking, or a tenant could
/// keep it by never agreeing.
fn counts(grant: &Grant, cause: RevokeCause, input: &Input<'_>) -> bool {
    let in_force = grant.ends().is_none_or(|e| e > input.now);
    // What was only ever given on request ends with its request, sooner or later.
    in_force
        && !is_on_request(grant, input)
        && !matches!(cause, RevokeCause::Expired | RevokeCause::Refused)
}

fn are_requests<'a>(mut owners: impl Iterator<Item = &'a PolicyId>) -> bool {
    owners.all(|id| id.request().is_some())
}

/// Whether a grant was only ever given on request.
fn is_on_request(grant: &Grant, input: &Input<'_>) -> bool {
    let owners = input.ledger.get(grant);
    owners.is_some_and(|o| !o.is_empty() && are_requests(o.keys()))
}

/// Holds back what the plan takes away, if it is too much and nobody agreed to it. Grants stay:
/// they only add what was declared.
pub(super) fn hold_blast(plan: &mut Plan, input: &Input<'_>) {
    plan.approved = None;
    plan.approvals.clear();
    let counted: BTreeSet<Grant> = plan
        .revokes
        .iter()
        .filter(|(g, c)| counts(g, **c, input))
        .map(|(g, _)| g.clone())
        .collect();
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
    // What waits for a listing counts, or one removal that is too large would go through as two
    // that are not.
    let waiting = plan
        .withheld
        .iter()
        .filter(|w| w.why == WithheldReason::UnansweredSelectors)
        .count();
    let left = Left::of(plan, input);
    let may_be_too_many = waiting > 0 && counted.len() + waiting > limit;
    // Whoever could not get in before leaves nobody out.
    let takes_access = counted.iter().any(|g| lets_in(g, input));
    let may_be_the_last = takes_access && left.is_nobody() && input.unanswered.standing;
    if !input.unanswered.failed && (may_be_too_many || may_be_the_last) {
        for grant in counted {
            plan.revokes.remove(&grant);
            plan.withheld.push(Withheld {
                change: Change::Revoke,
                grant,
                why: WithheldReason::UnansweredSelectors,
            });
        }
        return;
    }
    let last = takes_access && left.is_nobody() && stands(input);
    if !left.stays && stands(input) {
        plan.replacements.clone_from(&left.comes);
    }
    if counted.len() <= limit && !last {
        return;
    }
    let condition = |g: &Grant| {
        g.condition
            .as_ref()
            .map_or(String::new(), |c| format!("{}\n{}", c.title, c.expression))
    };
    let lines: Vec<String> = counted
        .iter()
        .map(|g| format!("{}\n{}\n{}", g.role, g.principal.key(), condition(g)))
        .collect();
    let name = input.service.resource_name();
    let head = ["removals", name.as_str(), input.live.etag.0.as_str()];
    let hash = digest(
        NAMED,
        head.into_iter().chain(lines.iter().map(String::as_str)),
    );
    let views = super::views(input);
    let acting = input.claims.iter().filter(|c| c.intent.enforces());
    let approval = Approval {
        hash,
        effects: effects(&views, &counted, last, input).into(),
        approver: acting.filter_map(|c| c.terms.approver()).next(),
        removals: counted.len(),
        limit,
        last,
    };
    let agreed = agreed(plan, &approval, &views, &counted, input);
    for grant in counted.difference(&agreed).cloned() {
        plan.revokes.remove(&grant);
        plan.withheld.push(Withheld {
            change: Change::Revoke,
            grant,
            why: WithheldReason::Approval(approval.clone()),
        });
    }
    if !agreed.is_empty() {
        plan.approved = Some(approval);
    }
}

/// What somebody agreed to who was shown it: a policy is shown what it would take away, the ledger
/// what belongs to nobody any more. Nobody agrees for another tenant to what only that one sees.
fn agreed(
    plan: &mut Plan,
    approval: &Approval,
    views: &[View],
    counted: &BTreeSet<Grant>,
    input: &Input<'_>,
) -> BTreeSet<Grant> {
    let on_ledger = input.approvals.contains(&approval.hash);
    let nobodys = |g: &&Grant| on_ledger && plan.is_nobodys(g);
    let mut agreed: BTreeSet<Grant> = counted.iter().filter(nobodys).cloned().collect();
    let acting = input.claims.iter().zip(views);
    for (claim, view) in acting.filter(|(c, _)| c.intent.enforces()) {
        let Some(effect) = approval.effects.get(&claim.intent.id) else {
            continue;
        };
        // A no counts more than any yes, also where whoever may edit the policy may say it.
        let is_denied = denial_of(&claim.denials, &effect.hash).is_some();
        let annotated = !is_denied
            && approval.approver.is_none()
            && claim.intent.approvals.contains(&approval.hash);
        match agreement(claim, effect, input.now) {
            _ if annotated => {}
            Some(agreement) => plan.approvals.push(agreement.clone()),
            None => continue,
        }
        let shown = view.unexpected.iter().filter(|g| counted.contains(g));
        agreed.extend(shown.cloned());
    }
    agreed
}

/// Who may invoke the service once a plan is carried out.
struct Left {
    /// Somebody who may already stays.
    stays: bool,
    /// Who is granted, as far as IAM is sure to take it.
    comes: BTreeSet<Grant>,
}

impl Left {
    fn of(plan: &Plan, input: &Input<'_>) -> Self {
        // Access on request ends soon: it is nobody who stays.
        let alive = |g: &Grant| lets_in(g, input) && !is_on_request(g, input);
        let comes = plan
            .grants
            .iter()
            .filter(|(g, by)| alive(g) && !input.doubtful.contains(*g) && !are_requests(by.iter()))
            .map(|(g, _)| g.clone())
            .collect();
        let stays = input
            .live
            .grants()
            .into_iter()
            .any(|g| alive(&g) && !plan.revokes.contains_key(&g));
        Self { stays, comes }
    }

    fn is_nobody(&self) -> bool {
        !self.stays && self.comes.is_empty()
    }
}

/// Whether somebody can invoke by a grant: it has not ended, and Cloud Run lets such a principal in. A
/// federated identity that stays alone leaves the service without a caller.
fn lets_in(grant: &Grant, input: &Input<'_>) -> bool {
    let principal = &grant.principal;
    grant.ends().is_none_or(|e| e > input.now)
        && principal.kind() != PrincipalKind::Deleted
        && principal.invocation() != Invocation::Unsupported
}

/// Whether a policy stands on the service that did not say `allowEmpty`. A policy that is deleted,
/// or that names the service no more, said so by that; one that cannot be carried out now did not.
fn stands(input: &Input<'_>) -> bool {
    let standing = || {
        input
            .claims
            .iter()
            .filter(|c| c.intent.enforces() && !c.intent.deleting && !c.left)
    };
    standing().next().is_some() && !standing().any(|c| c.intent.allows_nobody())
}

/// What a discovery that reaches services which this policy never changed comes to: `None` if it
/// may go on.
///
/// `wanting` are those known to differ, `unseen` counts those that nobody has looked at yet.
pub fn spread(
    intent: &Intent,
    wanting: &BTreeSet<RunService>,
    unseen: usize,
    limit: usize,
) -> Option<SelectorImpact> {
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
    let hash = digest(
        NAMED,
        head.into_iter().chain(names.iter().map(String::as_str)),
    );
    Some(SelectorImpact::Held {
        services: wanting.len(),
        limit,
        hash,
        plan: reach(intent, wanting),
    })
}
