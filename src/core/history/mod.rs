//! The history of a service: a record for each write, its settlement from reality, how long it is
//! kept, and the way back.
//!
//! Pure: it makes and judges records; `cluster` stores them.

mod settle;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::core::ObjectMeta;

use crate::{
    api::{
        ChangeGrant, ChangeOutcome, ChangePolicy, ChangeReason, ChangedBy, InvokerChange,
        InvokerChangeSpec, OUTCOME_LABEL, REASON_LABEL, change_label,
    },
    iam::{Etag, Grant, Policy, Principal, Role, RunService},
    intent::{Declared, PolicyId},
    ledger::Pending,
    plan::{Plan, PolicyOnService, RevokeCause, Rollback},
};

pub use settle::{Ending, Settled, settle, settle_all};
use text::{bounded_list, grant, is_whole};

/// The most policies that one record names.
const MAX_POLICIES: usize = 64;

/// The most approvals that let one write through: one for each policy that is shown a part of it.
const MAX_APPROVALS: usize = 16;

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many of each policy.
    pub number: usize,
    /// None that is older.
    pub age: SignedDuration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            number: 20,
            age: SignedDuration::from_hours(90 * 24),
        }
    }
}

/// How long a request that had no answer may still be on its way. Google's frontends give up long
/// before.
const MAY_ARRIVE: SignedDuration = SignedDuration::from_mins(15);

/// Why one change of a plan is made.
pub fn reason_of(plan: &Plan, claims: &[PolicyOnService], grant: &Grant) -> ChangeReason {
    let cause = plan.revokes.get(grant);
    match cause {
        Some(RevokeCause::PolicyDeleted) => return ChangeReason::Deleted,
        Some(RevokeCause::Refused) => return ChangeReason::Guardrail,
        Some(RevokeCause::Expired) => return ChangeReason::Expired,
        Some(RevokeCause::Denied) => return ChangeReason::Denied,
        Some(_) if plan.approved.is_some() => return ChangeReason::Approved,
        _ if plan.drift.contains(grant) => return ChangeReason::Drift,
        _ => {}
    }
    let goes_back =
        |c: &PolicyOnService| c.rollback.is_some() && c.enforces() && c.intent.role == grant.role;
    if claims.iter().any(goes_back) {
        ChangeReason::RolledBack
    } else {
        ChangeReason::SpecChanged
    }
}

/// Why a plan is carried out: the first of its changes' reasons.
pub fn reason(plan: &Plan, claims: &[PolicyOnService]) -> ChangeReason {
    let changes = plan.grants.keys().chain(plan.revokes.keys());
    changes
        .map(|g| reason_of(plan, claims, g))
        .min()
        .unwrap_or(ChangeReason::SpecChanged)
}

/// Name of the record of a write: the service, when, and enough of a hash that no other write has
/// it.
fn name(service: &RunService, etag: &Etag, at: Timestamp) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (service, &etag.0, at.as_nanosecond()).hash(&mut hasher);
    format!(
        "{}-{}-{:06x}",
        service.name,
        at.strftime("%Y%m%d-%H%M%S%3f"),
        hasher.finish() & 0xff_ffff
    )
}

/// A time as the store keeps it.
pub fn whole_microseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}

/// What is written down before `grants` and `revokes` of a plan are written to IAM. `drift_by` made
/// what they undo.
pub fn pending(
    plan: &Plan,
    claims: &[PolicyOnService],
    live: &Policy,
    drift_by: Option<&ChangedBy>,
    at: Timestamp,
) -> Pending {
    let mut behind: BTreeMap<&PolicyId, i64> = claims
        .iter()
        .filter(|c| c.enforces() && !c.left)
        .map(|c| (&c.intent.id, c.intent.generation))
        .collect();
    if behind.is_empty() {
        behind.extend(
            claims
                .iter()
                .filter(|c| c.left)
                .map(|c| (&c.intent.id, c.intent.generation)),
        );
    }
    let policies = behind
        .iter()
        .take(MAX_POLICIES)
        .map(|(id, generation)| ChangePolicy {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
            uid: id.uid.to_string(),
            generation: *generation,
        });
    let approvals = plan.approvals.iter().chain(&plan.reached_by);
    let approvals = approvals.map(|a| a.pending());
    Pending {
        name: name(&plan.service, &live.etag, at),
        reason: reason(plan, claims),
        at: whole_microseconds(at),
        etag_before: live.etag.0.clone(),
        added: plan.grants.keys().cloned().collect(),
        removed: plan.revokes.keys().cloned().collect(),
        before: live.grants(),
        before_omitted: 0,
        drift: plan.corrections().cloned().collect(),
        policies: policies.collect(),
        drift_by: drift_by.cloned(),
        approvals: approvals.take(MAX_APPROVALS).collect(),
    }
}

/// The records of a write that is over: one for each namespace that has a policy behind it, under
/// one name. Where no policy is behind it, `home` is the namespace.
pub fn records(
    service: &RunService,
    pending: &Pending,
    outcome: ChangeOutcome,
    home: &str,
) -> Vec<InvokerChange> {
    let (before, omitted) = bounded_list(&pending.before);
    let approvals = pending.approvals.iter().map(|a| a.record.clone());
    let spec = InvokerChangeSpec {
        project: service.project.to_string(),
        region: service.region.to_string(),
        service: service.name.to_string(),
        reason: pending.reason,
        at: MicroTime(pending.at),
        policies: pending.policies.clone(),
        added: bounded_list(&pending.added).0,
        added_count: pending.added.len() as i64,
        removed: bounded_list(&pending.removed).0,
        removed_count: pending.removed.len() as i64,
        before,
        before_omitted: omitted + pending.before_omitted,
        etag_before: pending.etag_before.clone(),
        drift_by: pending.drift_by.clone(),
        approvals: approvals.collect(),
        outcome,
    };
    let mut namespaces: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for policy in &pending.policies {
        namespaces
            .entry(&policy.namespace)
            .or_default()
            .push(&policy.name);
    }
    if namespaces.is_empty() {
        namespaces.insert(home, vec![]);
    }
    let record = |(namespace, policies): (&str, Vec<&str>)| {
        let mut labels: BTreeMap<String, String> = [
            (
                OUTCOME_LABEL.to_owned(),
                spec.outcome.phase.as_str().to_owned(),
            ),
            (REASON_LABEL.to_owned(), spec.reason.as_str().to_owned()),
        ]
        .into();
        let ours = policies.iter().filter(|n| n.len() <= 63);
        labels.extend(ours.map(|n| (change_label(n), String::new())));
        let metadata = ObjectMeta {
            name: Some(pending.name.clone()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        InvokerChange {
            metadata,
            spec: spec.clone(),
        }
    };
    namespaces.into_iter().map(record).collect()
}

/// A write that an earlier operator left open in a record, in place of the ledger.
pub fn left_open(name: &str, spec: &InvokerChangeSpec) -> Pending {
    let grants = |list: &[ChangeGrant]| list.iter().filter_map(grant).collect();
    Pending {
        name: name.into(),
        reason: spec.reason,
        at: spec.at.0,
        etag_before: spec.etag_before.clone(),
        added: grants(&spec.added),
        removed: grants(&spec.removed),
        before: grants(&spec.before),
        before_omitted: spec.before_omitted,
        drift: BTreeSet::new(),
        policies: spec.policies.clone(),
        drift_by: spec.drift_by.clone(),
        approvals: vec![],
    }
}

/// The service that a record is about.
pub fn service(spec: &InvokerChangeSpec) -> RunService {
    RunService::new(
        spec.project.as_str(),
        spec.region.as_str(),
        spec.service.as_str(),
    )
}

/// Which of a policy's records are to go. `records` are names with the time of each, in any order.
pub fn outlived(records: &[(String, Timestamp)], keep: Retention, now: Timestamp) -> Vec<String> {
    let mut sorted: Vec<&(String, Timestamp)> = records.iter().collect();
    sorted.sort_by(|a, b| (b.1, &b.0).cmp(&(a.1, &a.0)));
    let too_many = sorted.iter().skip(keep.number);
    let too_old = sorted
        .iter()
        .take(keep.number)
        .filter(|(_, at)| now.duration_since(*at) > keep.age);
    too_many
        .chain(too_old)
        .map(|(name, _)| name.clone())
        .collect()
}

/// What a policy with `role` goes back to, behind a change. Access that has ended meanwhile is not
/// brought back.
///
/// # Errors
/// When the record does not hold everything that was there: going back to a part would take the
/// rest away.
pub fn rollback(
    name: Arc<str>,
    spec: &InvokerChangeSpec,
    role: Role,
    now: Timestamp,
) -> Result<Rollback, String> {
    if spec.before_omitted > 0
        || spec
            .before
            .iter()
            .any(|r| r.role == role.as_str() && !is_whole(r))
    {
        return Err(format!(
            "InvokerChange {name} is too large to hold the state before it, so it cannot be rolled back"
        ));
    }
    let declared: BTreeSet<Declared> = spec
        .before
        .iter()
        .filter_map(grant)
        .filter(|g| g.role == role)
        // What could not be declared cannot be gone back to either.
        .filter(|g| Principal::parse(g.principal.as_str()).is_ok())
        .map(|g| Declared {
            expires: g.ends(),
            grant: g,
        })
        .filter(|d| d.expires.is_none_or(|e| e > now))
        .collect();
    Ok(Rollback {
        change: name,
        declared: declared.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests;
