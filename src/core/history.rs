//! The history of a service: a record for each write, its settlement from reality, how long it is kept, and the way back.
//!
//! Pure: it makes and judges records; `cluster` stores them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::core::ObjectMeta;

use crate::{
    api::{
        ChangeGrant, ChangeOutcome, ChangePhase, ChangePolicy, ChangeReason, ChangedBy, ConditionSpec, InvokerChange,
        InvokerChangeSpec, OUTCOME_LABEL, POLICY_LABEL_PREFIX, REASON_LABEL,
    },
    iam::{Condition, Etag, Grant, Policy, Principal, Role, RunService},
    intent::{Declared, PolicyId},
    plan::{Plan, PolicyOnService, RevokeCause, Rollback},
};

/// The most policies that one record names.
const MAX_POLICIES: usize = 64;
/// The most grants in one list of a record: what an IAM policy can hold.
const MAX_GRANTS: usize = crate::iam::MAX_MEMBERS;

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
        Self { number: 20, age: SignedDuration::from_hours(90 * 24) }
    }
}

/// Ends a text that a record could not hold whole. It is in no member and in no condition that could be declared.
const CUT: char = '…';

/// A text within the bound that the definition sets: a record that is refused would keep every write from being made.
fn bounded(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain([CUT]).collect()
}

/// A grant as a record holds it.
fn record(grant: &Grant) -> ChangeGrant {
    ChangeGrant {
        role: grant.role.as_str().into(),
        member: bounded(grant.principal.as_str(), 512),
        condition: grant.condition.as_ref().map(|c| ConditionSpec {
            title: bounded(if c.title.is_empty() { "-" } else { &c.title }, 100),
            description: bounded(&c.description, 256),
            expression: bounded(if c.expression.is_empty() { "-" } else { &c.expression }, 4096),
        }),
    }
}

/// Whether a record holds all of a grant.
fn is_whole(record: &ChangeGrant) -> bool {
    let cut = |text: &str| text.ends_with(CUT);
    !cut(&record.member)
        && record.condition.as_ref().is_none_or(|c| !cut(&c.title) && !cut(&c.description) && !cut(&c.expression))
}

/// A grant as a record held it; `None` for a role that is not ours.
fn grant(record: &ChangeGrant) -> Option<Grant> {
    Some(Grant {
        principal: Principal::from_live(&record.member),
        role: Role::from_name(&record.role)?,
        condition: record.condition.as_ref().map(|c| {
            Arc::new(Condition {
                title: c.title.clone(),
                description: c.description.clone(),
                expression: c.expression.clone(),
            })
        }),
    })
}

fn records<'a>(grants: impl IntoIterator<Item = &'a Grant>) -> Vec<ChangeGrant> {
    grants.into_iter().take(MAX_GRANTS).map(record).collect()
}

/// Every grant that a record added or removed.
pub fn grants(spec: &InvokerChangeSpec) -> BTreeSet<Grant> {
    spec.added.iter().chain(&spec.removed).filter_map(grant).collect()
}

/// Why one change of a plan is made.
pub fn reason_of(plan: &Plan, claims: &[PolicyOnService], grant: &Grant) -> ChangeReason {
    let cause = plan.revokes.get(grant);
    match cause {
        Some(RevokeCause::PolicyDeleted) => return ChangeReason::Deleted,
        Some(RevokeCause::Refused) => return ChangeReason::Guardrail,
        Some(RevokeCause::Expired) => return ChangeReason::Expired,
        Some(_) if plan.approved.is_some() => return ChangeReason::Approved,
        _ if plan.drift.contains(grant) => return ChangeReason::Drift,
        _ => {}
    }
    let goes_back = |c: &PolicyOnService| c.rollback.is_some() && c.enforces() && c.intent.role == grant.role;
    if claims.iter().any(goes_back) { ChangeReason::RolledBack } else { ChangeReason::SpecChanged }
}

/// Why a plan is carried out: the first of its changes' reasons.
pub fn reason(plan: &Plan, claims: &[PolicyOnService]) -> ChangeReason {
    let changes = plan.grants.keys().chain(plan.revokes.keys());
    changes.map(|g| reason_of(plan, claims, g)).min().unwrap_or(ChangeReason::SpecChanged)
}

/// Name of the record of a write: the service, when, and enough of a hash that no other write has it.
fn name(service: &RunService, etag: &Etag, at: Timestamp) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (service, &etag.0, at.as_nanosecond()).hash(&mut hasher);
    format!("{}-{}-{:06x}", service.name, at.strftime("%Y%m%d-%H%M%S%3f"), hasher.finish() & 0xff_ffff)
}

/// The records of a write that is about to be made: one for each namespace that has a policy behind it, under one name.
/// Where no policy is left behind it, `home` is the namespace. `drift_by` made what it undoes.
pub fn open(
    plan: &Plan,
    claims: &[PolicyOnService],
    owners: &BTreeSet<PolicyId>,
    live: &Policy,
    drift_by: Option<&ChangedBy>,
    home: &str,
    at: Timestamp,
) -> Vec<InvokerChange> {
    let mut behind: BTreeMap<&PolicyId, i64> =
        claims.iter().filter(|c| c.enforces()).map(|c| (&c.intent.id, c.intent.generation)).collect();
    if behind.is_empty() {
        behind.extend(owners.iter().map(|id| (id, 0)));
    }
    let policies: Vec<ChangePolicy> = behind
        .iter()
        .take(MAX_POLICIES)
        .map(|(id, generation)| ChangePolicy {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
            uid: id.uid.to_string(),
            generation: *generation,
        })
        .collect();
    let reason = reason(plan, claims);
    let spec = InvokerChangeSpec {
        project: plan.service.project.to_string(),
        region: plan.service.region.to_string(),
        service: plan.service.name.to_string(),
        reason,
        at: MicroTime(at),
        added: records(plan.grants.keys()),
        added_count: plan.grants.len() as i64,
        removed: records(plan.revokes.keys()),
        removed_count: plan.revokes.len() as i64,
        before: records(&live.grants()),
        etag_before: live.etag.0.clone(),
        drift_by: drift_by.cloned(),
        outcome: ChangeOutcome {
            phase: ChangePhase::Pending,
            message: String::new(),
            after: vec![],
            etag_after: String::new(),
            closed_at: None,
        },
        policies,
    };
    let name = name(&plan.service, &live.etag, at);
    let mut namespaces: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for id in behind.keys() {
        namespaces.entry(&id.namespace).or_default().push(&id.name);
    }
    if namespaces.is_empty() {
        namespaces.insert(home, vec![]);
    }
    namespaces
        .into_iter()
        .map(|(namespace, policies)| {
            let mut labels: BTreeMap<String, String> = [
                (OUTCOME_LABEL.to_owned(), ChangePhase::Pending.as_str().to_owned()),
                (REASON_LABEL.to_owned(), reason.as_str().to_owned()),
            ]
            .into();
            let ours = policies.iter().take(MAX_POLICIES).filter(|n| n.len() <= 63);
            labels.extend(ours.map(|n| (format!("{POLICY_LABEL_PREFIX}{n}"), String::new())));
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                labels: Some(labels),
                ..ObjectMeta::default()
            };
            InvokerChange { metadata, spec: spec.clone() }
        })
        .collect()
}

/// The service that a record is about.
pub fn service(spec: &InvokerChangeSpec) -> RunService {
    RunService::new(spec.project.as_str(), spec.region.as_str(), spec.service.as_str())
}

/// What became of a write, from reality. `live: None`: the service is gone.
pub fn settle(spec: &InvokerChangeSpec, live: Option<&Policy>, at: Timestamp) -> ChangeOutcome {
    let Some(live) = live else {
        return ChangeOutcome {
            phase: ChangePhase::NotApplied,
            message: "the service is gone".into(),
            after: vec![],
            etag_after: String::new(),
            closed_at: Some(MicroTime(at)),
        };
    };
    let real = live.grants();
    let is_real = |r: &&ChangeGrant| grant(r).is_some_and(|g| real.contains(&g));
    let (added, kept) = (spec.added.iter().filter(is_real).count(), spec.removed.iter().filter(is_real).count());
    let done = added + spec.removed.len() - kept;
    let all = spec.added.len() + spec.removed.len();
    let phase = if live.etag.0 == spec.etag_before || done == 0 {
        ChangePhase::NotApplied
    } else if done == all {
        ChangePhase::Applied
    } else {
        ChangePhase::Partial
    };
    let message = match phase {
        ChangePhase::Partial => format!("{done} of {all} changes are real"),
        _ => String::new(),
    };
    ChangeOutcome {
        phase,
        message,
        after: records(&real),
        etag_after: live.etag.0.clone(),
        closed_at: Some(MicroTime(at)),
    }
}

/// Which of a policy's records are to go. `records` are names with the time of each, in any order.
pub fn outlived(records: &[(String, Timestamp)], keep: Retention, now: Timestamp) -> Vec<String> {
    let mut sorted: Vec<&(String, Timestamp)> = records.iter().collect();
    sorted.sort_by(|a, b| (b.1, &b.0).cmp(&(a.1, &a.0)));
    let too_many = sorted.iter().skip(keep.number);
    let too_old = sorted.iter().take(keep.number).filter(|(_, at)| now.duration_since(*at) > keep.age);
    too_many.chain(too_old).map(|(name, _)| name.clone()).collect()
}

/// What a policy with `role` goes back to, behind a change. Access that has ended meanwhile is not brought back.
pub fn rollback(name: Arc<str>, spec: &InvokerChangeSpec, role: Role, now: Timestamp) -> Rollback {
    let declared: BTreeSet<Declared> = spec
        .before
        .iter()
        .filter(|r| is_whole(r))
        .filter_map(grant)
        .filter(|g| g.role == role)
        // What could not be declared cannot be gone back to either.
        .filter(|g| Principal::parse(g.principal.as_str()).is_ok())
        .map(|g| Declared { expires: g.condition.as_ref().and_then(|c| c.expiry()), grant: g })
        .filter(|d| d.expires.is_none_or(|e| e > now))
        .collect();
    Rollback { change: name, declared: declared.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    const NOW: &str = "2026-11-23T12:00:00Z";

    fn spec(before: &[&str], added: &[&str], removed: &[&str]) -> InvokerChangeSpec {
        let list =
            |l: &[&str]| json!(l.iter().map(|m| json!({"role": "roles/run.invoker", "member": m})).collect::<Vec<_>>());
        serde_json::from_value(
            json!({"project": "p", "region": "r", "service": "s", "reason": "Drift", "at": NOW, "policies": [],
            "added": list(added), "addedCount": added.len(), "removed": list(removed), "removedCount": removed.len(),
            "before": list(before), "etagBefore": "A", "outcome": {"phase": "Pending"}}),
        )
        .unwrap()
    }
    fn live(etag: &str, members: &[&str]) -> Policy {
        serde_json::from_value(json!({"etag": etag, "bindings": [{"role": "roles/run.invoker", "members": members}]}))
            .unwrap()
    }

    #[test]
    fn a_write_is_settled_from_what_is_real() {
        let s = spec(&["user:old@a.co"], &["user:new@a.co", "user:other@a.co"], &["user:old@a.co"]);
        let phase = |etag, members: &[&str]| settle(&s, Some(&live(etag, members)), at(NOW)).phase;
        assert_eq!(phase("B", &["user:new@a.co", "user:other@a.co"]), ChangePhase::Applied);
        assert_eq!(phase("B", &["user:new@a.co", "user:old@a.co"]), ChangePhase::Partial);
        assert_eq!(phase("B", &["user:old@a.co"]), ChangePhase::NotApplied);
        assert_eq!(phase("A", &["user:old@a.co"]), ChangePhase::NotApplied);
        assert_eq!(settle(&s, None, at(NOW)).phase, ChangePhase::NotApplied);
    }

    #[test]
    fn what_is_too_long_for_a_record_is_cut_and_not_gone_back_to() {
        let mut s = spec(&[], &[], &[]);
        let long = Condition { title: "t".repeat(200), description: String::new(), expression: "e".repeat(5000) };
        let live =
            Grant { condition: Some(long.into()), ..Grant::new(Principal::from_live("user:a@a.co"), Role::Invoker) };
        s.before = vec![
            record(&live),
            record(&Grant::new(Principal::from_live(&format!("user:{}@a.co", "x".repeat(600))), Role::Invoker)),
        ];
        assert_eq!(
            s.before[0].condition.as_ref().map(|c| (c.title.chars().count(), c.expression.chars().count())),
            Some((100, 4096))
        );
        assert_eq!(s.before[1].member.chars().count(), 512);
        assert!(rollback("x".into(), &s, Role::Invoker, at(NOW)).declared.is_empty());
    }

    #[test]
    fn the_newest_records_stay_unless_they_are_too_old() {
        let keep = Retention { number: 2, age: SignedDuration::from_hours(24) };
        let list = [("c", "2026-11-23T11:00:00Z"), ("a", "2026-11-21T12:00:00Z"), ("b", "2026-11-22T11:00:00Z")];
        let list: Vec<_> = list.map(|(n, t)| (n.to_owned(), at(t))).into();
        assert_eq!(outlived(&list, keep, at(NOW)), ["a", "b"]);
        assert!(outlived(&list[..1], keep, at(NOW)).is_empty());
    }

    #[test]
    fn going_back_brings_only_what_could_be_declared_now() {
        let mut s = spec(&["user:a@a.co", "deleted:user:x@a.co?uid=1"], &[], &[]);
        s.before.push(ChangeGrant {
            role: "roles/run.servicesInvoker".into(),
            member: "user:b@a.co".into(),
            condition: None,
        });
        let ended = Condition::expiring(at("2026-11-23T11:00:00Z"), None);
        s.before.push(record(&Grant {
            condition: Some(ended.into()),
            ..Grant::new(Principal::from_live("user:c@a.co"), Role::Invoker)
        }));
        let back = rollback("x".into(), &s, Role::Invoker, at(NOW));
        let members: Vec<_> = back.declared.iter().map(|d| d.grant.to_string()).collect();
        assert_eq!(members, ["user:a@a.co"]);
    }
}
