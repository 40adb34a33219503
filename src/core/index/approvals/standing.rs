//! What became of an approval, in words.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use super::spends;
use crate::{
    api::{ApprovalState, InvokerApprovalStatus, UsedApproval},
    index::{Index, policies::Record},
    intent::{Agreement, ApprovalKey},
    plan::{HeldPlan, SelectorImpact},
    status::whole_seconds,
};

/// The most differences that a status names.
const MAX_NAMED: usize = 5;

/// What changed since a plan was approved, in words.
fn since_approved(approved: &[Box<str>], now: &[String]) -> String {
    if approved.is_empty() {
        return "what it grants or revokes, or its spec, is not what was approved".into();
    }
    match differences(approved, now).as_str() {
        "" => "it does the same for another spec of the policy".into(),
        differ => format!("since it was approved {differ}"),
    }
}

/// What one list of changes has and the other has not.
fn differences(approved: &[Box<str>], now: &[String]) -> String {
    let added = now.iter().filter(|l| !approved.iter().any(|a| **a == ***l));
    let gone = approved.iter().filter(|a| !now.iter().any(|l| **l == ***a));
    let words: Vec<String> = added
        .map(|l| format!("also: {l}"))
        .chain(gone.map(|l| format!("no more: {l}")))
        .collect();
    let more = words.len().saturating_sub(MAX_NAMED);
    let mut text = words[..words.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(", and {more} more"));
    }
    text
}

/// What it means that the time of an approval is over.
fn expired(agreement: &Agreement) -> &'static str {
    match (agreement.policy().request(), agreement.denies()) {
        (None, false) => {
            "its time ended before the plan came; create another under another name if the plan is still wanted"
        }
        (None, true) => {
            "its time ended, and it denies the plan no longer; to go on denying it, create another under another name"
        }
        (Some(_), false) => {
            "its time ended before the request was granted by it; create another under another name if it still should be"
        }
        (Some(_), true) => {
            "its time ended; a request that it denied stays denied, and it denies no other"
        }
    }
}

impl Index {
    /// The status that an approval should have now, if it is another one than it has.
    pub fn approval_status(
        &self,
        key: &ApprovalKey,
        now: Timestamp,
    ) -> Option<InvokerApprovalStatus> {
        let entry = self.approvals.by_key.get(key)?;
        let is_settled = entry.status.state.is_some_and(ApprovalState::is_final);
        if is_settled && entry.agreement.policy().request().is_some() {
            // The request may be gone by now.
            return None;
        }
        let status = self.approval_status_of(&entry.agreement, now);
        (status != entry.status).then_some(status)
    }

    /// The status of any approval, also of one that is not kept.
    pub fn approval_status_of(
        &self,
        agreement: &Agreement,
        now: Timestamp,
    ) -> InvokerApprovalStatus {
        let mut uses: Vec<&UsedApproval> = self
            .ledgers
            .uses(&agreement.plan)
            .map(|(_, used)| used)
            .filter(|used| spends(agreement, used))
            .collect();
        uses.sort_by_key(|u| (u.approval != *agreement.digest, u.at.0));
        let state = |state: ApprovalState, message: String| InvokerApprovalStatus {
            state: Some(state),
            message: Some(message.chars().take(1024).collect()),
            ends: Some(Time(whole_seconds(agreement.ends()))),
            used_at: None,
            change: None,
        };
        if let Some(used) = uses.first() {
            let itself = used.approval == *agreement.digest;
            let (is, words) = if itself {
                (
                    ApprovalState::Used,
                    "it let its plan through and does not work again",
                )
            } else {
                (
                    ApprovalState::Superseded,
                    "its plan went through with another approval",
                )
            };
            return InvokerApprovalStatus {
                used_at: Some(used.at.clone()),
                change: Some(used.change.clone()),
                ..state(is, format!("{words}: InvokerChange {}", used.change))
            };
        }
        if agreement.ends() <= now {
            return state(ApprovalState::Expired, expired(agreement).into());
        }
        if agreement.denies() {
            let words = match agreement.policy().request() {
                Some(_) => "it says no, and the request is over",
                None => "it says no, and that holds until its time ends or it is deleted",
            };
            return state(ApprovalState::Denies, words.into());
        }
        if self.is_denied(agreement) {
            let words = "somebody who may approve said no to this plan";
            return state(ApprovalState::Refused, words.into());
        }
        if agreement.policy().request().is_some() {
            let (is, words, used_at) = self.asked(agreement);
            return InvokerApprovalStatus {
                used_at,
                ..state(is, words)
            };
        }
        let (is, words) = self.awaited(agreement);
        state(is, words)
    }

    /// How the request stands to an approval of it.
    fn asked(&self, agreement: &Agreement) -> (ApprovalState, String, Option<MicroTime>) {
        let (key, namespace) = (agreement.policy(), &agreement.key.namespace);
        let name = key.request().unwrap_or_default();
        let known = self.requests.get(&key).zip(self.requests.stored(&key));
        let Some((request, stored)) = known else {
            let words = format!(
                "namespace {namespace} has no InvokerAccessRequest {name} that is not over"
            );
            return (ApprovalState::Waiting, words, None);
        };
        if request.plan != agreement.plan {
            let words = format!(
                "{name} asks for something else, {}: {}",
                request.plan,
                request.lines().join(", ")
            );
            return (ApprovalState::Stale, words, None);
        }
        if stored.until.is_some() {
            let itself = stored.approval.as_deref() == Some(&*agreement.key.name);
            return if itself {
                let words = "the request was granted by it".to_owned();
                (ApprovalState::Used, words, stored.approved_at.clone())
            } else {
                let words = "the request was granted by another approval".to_owned();
                (ApprovalState::Superseded, words, None)
            };
        }
        if !agreement.shows(&request.lines()) {
            let words = format!(
                "spec.effect is not what this request asks for: {}",
                differences(&agreement.effect, &request.lines())
            );
            return (ApprovalState::Refused, words, None);
        }
        let words =
            format!("{name} can be granted by it; what else stands in the way its status says");
        (ApprovalState::Waiting, words, None)
    }

    /// What an approval that was not used waits for.
    fn awaited(&self, agreement: &Agreement) -> (ApprovalState, String) {
        let (name, namespace) = (&agreement.policy, &agreement.key.namespace);
        let Some(record) = self.policies.get(&agreement.policy()) else {
            let words = format!("namespace {namespace} has no InvokerPolicy {name} yet");
            return (ApprovalState::Waiting, words);
        };
        let held = self.held_plans(record);
        if let Some(plan) = held.iter().find(|h| h.hash == agreement.plan) {
            if !agreement.shows(&plan.lines) {
                let words = format!(
                    "spec.effect is not what this plan does: {}",
                    differences(&agreement.effect, &plan.lines)
                );
                return (ApprovalState::Refused, words);
            }
            let words =
                format!("{name} holds this plan; it is carried out with the next reconcile");
            return (ApprovalState::Waiting, words);
        }
        // The one that has most in common with what was approved.
        let common = |h: &&HeldPlan| {
            let approved = |l: &&String| agreement.effect.iter().any(|e| **e == ***l);
            h.lines.iter().filter(approved).count()
        };
        match held.iter().max_by_key(common) {
            None => (
                ApprovalState::Waiting,
                format!("{name} holds no plan now; this is used when its plan comes"),
            ),
            Some(other) => (
                ApprovalState::Stale,
                format!(
                    "{name} holds another plan, {}: {}; kubectl invoker -n {namespace} approve {name} shows what waits now",
                    other.hash,
                    since_approved(&agreement.effect, &other.lines)
                ),
            ),
        }
    }

    /// The plans that a policy holds now.
    pub fn held_plans(&self, record: &Record) -> BTreeSet<HeldPlan> {
        let findings = record
            .observations()
            .filter_map(|(_, o)| o.result.as_ref().ok());
        let mut held: BTreeSet<HeldPlan> = findings.filter_map(|f| f.plan.clone()).collect();
        let is_wide = record.targets().len() > record.terms().max_new_services();
        if is_wide && let Some(SelectorImpact::Held { plan, .. }) = self.spread(record) {
            held.insert(plan);
        }
        held
    }
}
