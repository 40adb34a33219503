//! The history of a service: a record for each write, its settlement from reality, how long it is
//! kept, and the way back.
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
        ChangeGrant, ChangeOutcome, ChangePhase, ChangePolicy, ChangeReason, ChangedBy,
        ConditionSpec, InvokerChange, InvokerChangeSpec, OUTCOME_LABEL, POLICY_LABEL_PREFIX,
        REASON_LABEL,
    },
    iam::{Condition, Etag, Grant, Policy, Principal, Role, RunService, UNTOUCHED},
    intent::{Declared, PolicyId},
    ledger::Pending,
    plan::{Plan, PolicyOnService, RevokeCause, Rollback},
};

/// The most policies that one record names.
const MAX_POLICIES: usize = 64;
/// The most grants in one list of a record: what an IAM policy can hold.
const MAX_GRANTS: usize = crate::iam::MAX_MEMBERS;
/// The most bytes in one list of a record: two policies with 200 members each can share a condition
/// of 4 KiB, which a record has once for each member.
const MAX_LIST_BYTES: usize = 256 * 1024;

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

/// Ends a text that a record could not hold whole. It is in no member and in no condition that
/// could be declared.
const CUT: char = '…';

/// A text within the bound that the definition sets: a record that is refused would keep every
/// write from being made.
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
            expression: bounded(
                if c.expression.is_empty() {
                    "-"
                } else {
                    &c.expression
                },
                4096,
            ),
        }),
    }
}

/// Whether a record holds all of a grant.
fn is_whole(record: &ChangeGrant) -> bool {
    let cut = |text: &str| text.ends_with(CUT);
    !cut(&record.member)
        && record
            .condition
            .as_ref()
            .is_none_or(|c| !cut(&c.title) && !cut(&c.description) && !cut(&c.expression))
}

/// A grant as a record held it; `None` for a role that is not ours.
fn grant(record: &ChangeGrant) -> Option<Grant> {
    Some(Grant {
        principal: Principal::from_live(&record.member),
        role: Role::from_name(&record.role)?,
        condition: record.condition.as_ref().map(|c| {
            Arc::new(Condition::new(
                c.title.clone(),
                c.description.clone(),
                c.expression.clone(),
            ))
        }),
    })
}

/// As many grants as fit into one list of a record, and how many did not: four lists have to stay
/// within what the API server stores.
fn bounded_list(grants: &BTreeSet<Grant>) -> (Vec<ChangeGrant>, i64) {
    let mut left = MAX_LIST_BYTES;
    let mut list = Vec::with_capacity(grants.len().min(MAX_GRANTS));
    for grant in grants.iter().take(MAX_GRANTS) {
        let record = record(grant);
        let condition = record.condition.as_ref();
        let size = record.member.len()
            + 80
            + condition.map_or(0, |c| {
                c.title.len() + c.description.len() + c.expression.len() + 64
            });
        if size > left {
            break;
        }
        left -= size;
        list.push(record);
    }
    let omitted = (grants.len() - list.len()) as i64;
    (list, omitted)
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
        labels.extend(ours.map(|n| (format!("{POLICY_LABEL_PREFIX}{n}"), String::new())));
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

/// What is known of the end of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// IAM took it.
    Accepted,
    /// IAM refused it, or it was never sent.
    Refused,
    /// Nobody saw: reality decides.
    Unknown,
    /// Nobody saw, and reality cannot tell.
    Untold,
}

/// What became of a write. `live: None`: the service is gone.
pub fn settle(
    pending: &Pending,
    ending: Ending,
    live: Option<&Policy>,
    at: Timestamp,
) -> ChangeOutcome {
    let closed = |phase, message: &str| closed(phase, message, live, at);
    let Some(live) = live else {
        let (phase, message) = match ending {
            Ending::Accepted => (ChangePhase::Applied, "the service is gone"),
            Ending::Refused => (ChangePhase::NotApplied, "the service is gone"),
            Ending::Unknown | Ending::Untold => (
                ChangePhase::Unknown,
                "the service was gone before anybody saw whether it was made",
            ),
        };
        return closed(phase, message);
    };
    let (real, etag) = (live.grants(), &live.etag);
    let is_unchanged = etag.0 == pending.etag_before;
    // Nobody has ever written this policy: the service was made again, and what was written is gone
    // with the one before.
    let is_another = etag.is_untouched() && !is_unchanged;
    let done = pending.added.iter().filter(|g| real.contains(g)).count()
        + pending.removed.iter().filter(|g| !real.contains(g)).count();
    let all = pending.added.len() + pending.removed.len();
    match ending {
        Ending::Refused => closed(ChangePhase::NotApplied, ""),
        Ending::Unknown if is_unchanged && !etag.is_untouched() => {
            closed(ChangePhase::NotApplied, "")
        }
        Ending::Accepted if done == all => closed(ChangePhase::Applied, ""),
        Ending::Unknown if done == all && !is_another && !is_unchanged => {
            closed(ChangePhase::Applied, "")
        }
        Ending::Accepted => {
            let message = format!(
                "{done} of {all} changes are still real: somebody else wrote at the same time"
            );
            closed(ChangePhase::Applied, &message)
        }
        Ending::Unknown if !is_unchanged => {
            // Made and partly undone, or never made and partly done by somebody else.
            let message = format!(
                "somebody else wrote before anybody saw whether it was made; {done} of {all} changes are real"
            );
            closed(ChangePhase::Unknown, &message)
        }
        Ending::Unknown | Ending::Untold => closed(
            ChangePhase::Unknown,
            "nobody saw whether it was made: if it was, the service was deleted and made again since",
        ),
    }
}

fn closed(
    phase: ChangePhase,
    message: &str,
    live: Option<&Policy>,
    at: Timestamp,
) -> ChangeOutcome {
    let after = live.map(Policy::grants).unwrap_or_default();
    ChangeOutcome {
        phase,
        message: message.into(),
        after: bounded_list(&after).0,
        etag_after: live.map_or_else(String::new, |l| l.etag.0.clone()),
        closed_at: Some(MicroTime(at)),
    }
}

/// What became of the writes that were open on a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    pub closed: Vec<(Pending, ChangeOutcome)>,
    /// Sent, without an answer, from the state that is real now: they may still arrive.
    pub open: Vec<Pending>,
}

/// Settles every open write of a service. `endings` are those that were seen, by the name of the
/// write.
///
/// An etag is one version of an IAM policy: of several writes that were planned from one version
/// IAM takes one at most, and none once another version is real. That of a policy that nobody has
/// ever written is no version: a service that is deleted and made again starts with it again, and
/// what was written to the one before is gone without a trace.
pub fn settle_all(
    pending: &[Pending],
    endings: &BTreeMap<String, Ending>,
    live: Option<&Policy>,
    at: Timestamp,
) -> Settled {
    let ending = |p: &Pending| endings.get(&p.name).copied().unwrap_or(Ending::Unknown);
    let taken: BTreeSet<&str> = pending
        .iter()
        .filter(|p| ending(p) == Ending::Accepted)
        .map(|p| p.etag_before.as_str())
        .collect();
    let unseen =
        |p: &&Pending| ending(p) == Ending::Unknown && !taken.contains(p.etag_before.as_str());
    // Of several that could be the one: that which explains most of what is real.
    let mut likely: BTreeMap<&str, &Pending> = BTreeMap::new();
    for p in live.into_iter().flat_map(|_| pending.iter().filter(unseen)) {
        let best = likely.entry(&p.etag_before).or_insert(p);
        if live.is_some_and(|l| explains(p, l) >= explains(best, l)) {
            *best = p;
        }
    }
    let mut settled = Settled::default();
    for p in pending {
        let waits = live.is_some_and(|l| unseen(&p) && l.etag.0 == p.etag_before)
            && at.duration_since(p.at) < MAY_ARRIVE;
        if waits {
            settled.open.push(p.clone());
            continue;
        }
        let is_likely = likely
            .get(p.etag_before.as_str())
            .is_some_and(|l| l.name == p.name);
        let is_refuted = taken.contains(p.etag_before.as_str()) || (live.is_some() && !is_likely);
        let known = match ending(p) {
            Ending::Unknown if is_refuted && p.etag_before == UNTOUCHED => Ending::Untold,
            Ending::Unknown if is_refuted => Ending::Refused,
            known => known,
        };
        settled.closed.push((p.clone(), settle(p, known, live, at)));
    }
    settled
}

/// How well a write explains what is real: exactly, and by how many of its changes.
fn explains(pending: &Pending, live: &Policy) -> (bool, usize) {
    let real = live.grants();
    let mut expected: BTreeSet<Grant> = pending
        .before
        .difference(&pending.removed)
        .cloned()
        .collect();
    expected.extend(pending.added.iter().cloned());
    let done =
        pending.added.intersection(&real).count() + pending.removed.difference(&real).count();
    (pending.before_omitted == 0 && expected == real, done)
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
            "InvokerChange {name} could not hold everything that was there before it, so there is no going back behind it"
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
            expires: g.condition.as_ref().and_then(|c| c.expiry()),
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
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    const NOW: &str = "2026-11-23T12:00:00Z";

    fn spec(before: &[&str], added: &[&str], removed: &[&str]) -> InvokerChangeSpec {
        let list = |l: &[&str]| {
            json!(
                l.iter()
                    .map(|m| json!({"role": "roles/run.invoker", "member": m}))
                    .collect::<Vec<_>>()
            )
        };
        serde_json::from_value(
            json!({"project": "p", "region": "r", "service": "s", "reason": "Drift", "at": NOW, "policies": [],
            "added": list(added), "addedCount": added.len(), "removed": list(removed), "removedCount": removed.len(),
            "before": list(before), "etagBefore": "A", "outcome": {"phase": "Pending"}}),
        )
        .unwrap()
    }
    fn live(etag: &str, members: &[&str]) -> Policy {
        serde_json::from_value(
            json!({"etag": etag, "bindings": [{"role": "roles/run.invoker", "members": members}]}),
        )
        .unwrap()
    }

    fn g(member: &str) -> Grant {
        Grant::new(Principal::from_live(member), Role::Invoker)
    }
    fn write(added: &[&str], removed: &[&str]) -> Pending {
        Pending {
            name: "web-1".into(),
            reason: ChangeReason::SpecChanged,
            at: at(NOW),
            etag_before: "A".into(),
            added: added.iter().map(|m| g(m)).collect(),
            removed: removed.iter().map(|m| g(m)).collect(),
            before: BTreeSet::new(),
            before_omitted: 0,
            drift: BTreeSet::new(),
            policies: vec![],
            drift_by: None,
        }
    }

    #[test]
    fn a_write_whose_end_nobody_saw_is_settled_from_what_is_real() {
        let p = write(&["user:new@a.co", "user:other@a.co"], &["user:old@a.co"]);
        let phase = |etag, members: &[&str]| {
            settle(&p, Ending::Unknown, Some(&live(etag, members)), at(NOW)).phase
        };
        assert_eq!(
            phase("B", &["user:new@a.co", "user:other@a.co"]),
            ChangePhase::Applied
        );
        assert_eq!(
            phase("B", &["user:new@a.co", "user:old@a.co"]),
            ChangePhase::Unknown
        );
        assert_eq!(phase("B", &["user:old@a.co"]), ChangePhase::Unknown);
        assert_eq!(phase(UNTOUCHED, &[]), ChangePhase::Unknown);
        assert_eq!(phase("A", &["user:old@a.co"]), ChangePhase::NotApplied);
        assert_eq!(
            settle(&p, Ending::Unknown, None, at(NOW)).phase,
            ChangePhase::Unknown
        );
    }

    #[test]
    fn a_write_that_iam_took_was_made_whatever_is_real_now() {
        let p = write(&["user:new@a.co"], &[]);
        let gone = settle(&p, Ending::Accepted, Some(&live("C", &[])), at(NOW));
        assert_eq!(
            (gone.phase, gone.message.is_empty()),
            (ChangePhase::Applied, false)
        );
        assert_eq!(
            settle(&p, Ending::Accepted, None, at(NOW)).phase,
            ChangePhase::Applied
        );
        let there = live("C", &["user:new@a.co"]);
        assert_eq!(
            settle(&p, Ending::Refused, Some(&there), at(NOW)).phase,
            ChangePhase::NotApplied
        );
    }

    #[test]
    fn a_write_without_an_answer_stays_open_while_it_may_still_arrive() {
        let p = write(&["user:new@a.co"], &[]);
        let settled = |etag, members: &[&str], when| {
            let s = settle_all(
                std::slice::from_ref(&p),
                &BTreeMap::new(),
                Some(&live(etag, members)),
                at(when),
            );
            (s.open.len(), s.closed.first().map(|(_, o)| o.phase))
        };
        assert_eq!(settled("A", &[], "2026-11-23T12:05:00Z"), (1, None));
        assert_eq!(
            settled("A", &[], "2026-11-23T12:16:00Z"),
            (0, Some(ChangePhase::NotApplied))
        );
        assert_eq!(
            settled("B", &["user:new@a.co"], "2026-11-23T12:05:00Z"),
            (0, Some(ChangePhase::Applied))
        );
        assert_eq!(
            settled("B", &[], "2026-11-23T12:05:00Z"),
            (0, Some(ChangePhase::Unknown))
        );
    }

    #[test]
    fn of_writes_from_one_version_one_at_most_was_made() {
        let a = write(&["user:a@a.co"], &[]);
        let b = Pending {
            name: "web-2".into(),
            ..write(&["user:a@a.co", "user:b@a.co"], &[])
        };
        let phases = |endings: &[(&str, Ending)], members: &[&str]| {
            let endings = endings.iter().map(|(n, e)| ((*n).to_owned(), *e)).collect();
            let s = settle_all(
                &[a.clone(), b.clone()],
                &endings,
                Some(&live("B", members)),
                at(NOW),
            );
            s.closed.iter().map(|(_, o)| o.phase).collect::<Vec<_>>()
        };
        use ChangePhase::{Applied, NotApplied, Unknown};
        assert_eq!(
            phases(
                &[("web-2", Ending::Accepted)],
                &["user:a@a.co", "user:b@a.co"]
            ),
            [NotApplied, Applied]
        );
        assert_eq!(
            phases(&[("web-2", Ending::Refused)], &["user:a@a.co"]),
            [Applied, NotApplied]
        );
        assert_eq!(
            phases(&[], &["user:a@a.co", "user:b@a.co"]),
            [NotApplied, Applied]
        );
        assert_eq!(phases(&[], &["user:a@a.co"]), [Applied, NotApplied]);
        let gone = settle_all(&[a.clone(), b.clone()], &BTreeMap::new(), None, at(NOW));
        assert!(gone.closed.iter().all(|(_, o)| o.phase == Unknown));
    }

    /// A service that is made again has the etag of the first: nothing is proven by it.
    #[test]
    fn of_writes_to_an_untouched_policy_none_is_said_not_to_have_been_made() {
        let from_untouched = |name: &str, members: &[&str]| Pending {
            name: name.into(),
            etag_before: UNTOUCHED.into(),
            ..write(members, &[])
        };
        let writes = [
            from_untouched("web-1", &["user:a@a.co"]),
            from_untouched("web-2", &["user:a@a.co", "user:b@a.co"]),
        ];
        let phases = |writes: &[Pending], endings: &[(&str, Ending)], live: Policy, when: &str| {
            let endings = endings.iter().map(|(n, e)| ((*n).to_owned(), *e)).collect();
            let s = settle_all(writes, &endings, Some(&live), at(when));
            s.closed.iter().map(|(_, o)| o.phase).collect::<Vec<_>>()
        };
        use ChangePhase::{Applied, NotApplied, Unknown};
        let both = || live("B", &["user:a@a.co", "user:b@a.co"]);
        let accepted = [("web-2", Ending::Accepted)];
        assert_eq!(phases(&writes, &accepted, both(), NOW), [Unknown, Applied]);
        let refused = [("web-1", Ending::Refused), ("web-2", Ending::Accepted)];
        assert_eq!(
            phases(&writes, &refused, both(), NOW),
            [NotApplied, Applied]
        );
        let later = "2026-11-23T12:16:00Z";
        let untouched = live(UNTOUCHED, &[]);
        assert_eq!(phases(&writes[..1], &[], untouched, later), [Unknown]);
        // Nor when the service is gone at last.
        let gone = settle_all(
            &writes,
            &[("web-2".to_owned(), Ending::Accepted)].into(),
            None,
            at(NOW),
        );
        let gone: Vec<_> = gone.closed.iter().map(|(_, o)| o.phase).collect();
        assert_eq!(gone, [Unknown, Applied]);
        // Nothing else explains it.
        let one = live("B", &["user:a@a.co"]);
        assert_eq!(phases(&writes[..1], &[], one, NOW), [Applied]);
    }

    #[test]
    fn a_record_of_the_largest_write_fits_into_the_store() {
        let condition: Arc<Condition> = Condition::new("t", String::new(), "e".repeat(4096)).into();
        let many: BTreeSet<Grant> = (0..400)
            .map(|i| Grant {
                condition: Some(condition.clone()),
                ..g(&format!("user:m{i}@a.co"))
            })
            .collect();
        let p = Pending {
            added: many.clone(),
            before: many.clone(),
            ..write(&[], &[])
        };
        let service = RunService::new("p", "r", "s");
        let outcome = settle(&p, Ending::Accepted, None, at(NOW));
        let [record] = records(&service, &p, outcome, "home").try_into().unwrap();
        assert!(serde_json::to_vec(&record).unwrap().len() < 1024 * 1024);
        assert_eq!(
            (record.spec.added_count, record.spec.before_omitted > 0),
            (400, true)
        );
        assert!(rollback("x".into(), &record.spec, Role::Invoker, at(NOW)).is_err());
    }

    #[test]
    fn what_is_too_long_for_a_record_is_cut_and_there_is_no_going_back_to_it() {
        let mut s = spec(&[], &[], &[]);
        let long = Condition::new("t".repeat(200), String::new(), "e".repeat(5000));
        let live = Grant {
            condition: Some(long.into()),
            ..Grant::new(Principal::from_live("user:a@a.co"), Role::Invoker)
        };
        s.before = vec![
            record(&live),
            record(&Grant::new(
                Principal::from_live(&format!("user:{}@a.co", "x".repeat(600))),
                Role::Invoker,
            )),
        ];
        assert_eq!(
            s.before[0]
                .condition
                .as_ref()
                .map(|c| (c.title.chars().count(), c.expression.chars().count())),
            Some((100, 4096))
        );
        assert_eq!(s.before[1].member.chars().count(), 512);
        assert!(rollback("x".into(), &s, Role::Invoker, at(NOW)).is_err());
    }

    #[test]
    fn the_newest_records_stay_unless_they_are_too_old() {
        let keep = Retention {
            number: 2,
            age: SignedDuration::from_hours(24),
        };
        let list = [
            ("c", "2026-11-23T11:00:00Z"),
            ("a", "2026-11-21T12:00:00Z"),
            ("b", "2026-11-22T11:00:00Z"),
        ];
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
        let back = rollback("x".into(), &s, Role::Invoker, at(NOW)).unwrap();
        let members: Vec<_> = back.declared.iter().map(|d| d.grant.to_string()).collect();
        assert_eq!(members, ["user:a@a.co"]);
    }
}
