//! What the operator answers for on one service: the grants and whose they are, the write that is
//! under way, and the drift that was corrected lately.

mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use crate::{
    api::{
        ChangePolicy, ChangeReason, ChangedBy, HeldRemoval, PendingApproval, UsedApproval,
        request_of,
    },
    iam::Grant,
    plan::Lines,
};
pub use store::{from_object, from_spec, name, service_named, service_of, to_object, to_spec};

/// The most bytes of a ledger in the store: etcd takes 1.5 MiB, and the API server adds its own.
pub const MAX_BYTES: usize = 1024 * 1024;
/// The most corrections that a ledger remembers; beyond that the oldest go.
const MAX_CORRECTIONS: usize = 200;
/// The most times of one grant's corrections.
const MAX_TIMES: usize = 16;

/// The most used approvals that a ledger remembers; beyond that no further one works, until some of
/// these could not work any more.
pub const MAX_USED: usize = 64;
/// How long a used approval without notAfter is remembered.
const REMEMBERED: jiff::SignedDuration = jiff::SignedDuration::from_hours(366 * 24);
/// By how much clocks may differ where an approval ends.
const CLOCKS: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// A version of an object in the store.
///
/// Versions of one resource are decimal numbers and can be compared, since Kubernetes 1.35 by
/// contract: <https://github.com/kubernetes/enhancements/issues/5504>. What is no such number
/// counts as older than all that are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version(Box<str>);

impl Version {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// As `metadata.resourceVersion` wants it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn number(&self) -> Option<u128> {
        self.0.parse().ok()
    }

    /// Whether this is an older state than `other`. Of two that cannot be compared neither is.
    pub fn is_older_than(&self, other: &Self) -> bool {
        matches!((self.number(), other.number()), (Some(a), Some(b)) if a < b)
    }
}

/// A write that is under way, or whose end nobody has seen yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// Name that its record will have.
    pub name: String,
    pub reason: ChangeReason,
    pub at: Timestamp,
    pub etag_before: String,
    pub added: BTreeSet<Grant>,
    pub removed: BTreeSet<Grant>,
    pub before: BTreeSet<Grant>,
    /// How many grants did not fit into `before`.
    pub before_omitted: i64,
    /// Those of `added` and `removed` that undo what somebody else did.
    pub drift: BTreeSet<Grant>,
    pub policies: Vec<ChangePolicy>,
    pub drift_by: Option<ChangedBy>,
    /// The InvokerApprovals that let it through.
    pub approvals: Vec<PendingApproval>,
}

impl Pending {
    /// The uses of its approvals, from when it is made. That of a request is not remembered: it is
    /// for one object, which says itself that it was granted.
    fn uses(&self) -> impl Iterator<Item = UsedApproval> {
        let of_plans = self.approvals.iter();
        let of_plans = of_plans.filter(|a| request_of(&a.record.policy).is_none());
        of_plans.map(|a| UsedApproval {
            approval: a.approval.clone(),
            plan: a.record.plan.clone(),
            at: MicroTime(self.at),
            change: self.name.clone(),
            not_after: a.not_after.clone(),
        })
    }

    /// Why one grant is made or taken away by it.
    pub fn reason_of(&self, grant: &Grant) -> ChangeReason {
        use ChangeReason as R;
        match self.reason {
            _ if self.drift.contains(grant) => R::Drift,
            // What is granted beside a removal of another kind was declared.
            R::Deleted | R::Denied | R::Guardrail | R::Expired | R::Approved
                if self.added.contains(grant) =>
            {
                R::SpecChanged
            }
            R::Drift => R::SpecChanged,
            reason => reason,
        }
    }
}

/// Corrections of drift of one grant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corrected {
    /// In order.
    pub at: Vec<Timestamp>,
    /// Who made the last drift.
    pub by: Option<Arc<ChangedBy>>,
}

/// What the operator answers for on one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    pub lines: Lines,
    /// In the order in which they were begun. More than one: an earlier one had no answer and may
    /// still arrive.
    pub pending: Vec<Pending>,
    pub corrections: BTreeMap<Grant, Corrected>,
    /// Fingerprint of the declarations under which the last correction was made: the service had
    /// been settled under them.
    pub corrected_under: Option<u64>,
    /// When the last write that was made was over.
    pub written_at: Option<Timestamp>,
    /// A removal that waits, where no policy is left that could say so.
    pub held: Option<HeldRemoval>,
    /// Hashes of such removals that somebody agreed to: an annotation of the object.
    pub approvals: BTreeSet<Arc<str>>,
    /// InvokerApprovals that were used on this service, and work no more.
    pub used: Vec<UsedApproval>,
}

impl Ledger {
    /// Nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
            && self.pending.is_empty()
            && self.corrections.is_empty()
            && self.held.is_none()
            && self.used.is_empty()
    }

    /// The approvals of a write are used: it was made, or may have been.
    pub fn spend(&mut self, pending: &Pending) {
        for used in pending.uses() {
            if !self.used.contains(&used) {
                self.used.push(used);
            }
        }
    }

    /// Forgets uses of approvals that cannot work any more.
    fn prune_used(&mut self, now: Timestamp) {
        self.used.retain(|used| {
            let end = match &used.not_after {
                Some(at) => at.0.checked_add(CLOCKS),
                None => used.at.0.checked_add(REMEMBERED),
            };
            end.is_ok_and(|end| end > now)
        });
    }

    /// Drops corrections that are too old to count, and those that would be too many.
    pub fn prune(&mut self, now: Timestamp, window: jiff::SignedDuration) {
        self.prune_used(now);
        for corrected in self.corrections.values_mut() {
            corrected
                .at
                .retain(|t| *t <= now && now.duration_since(*t) < window);
            let excess = corrected.at.len().saturating_sub(MAX_TIMES);
            corrected.at.drain(..excess);
        }
        self.corrections.retain(|_, c| !c.at.is_empty());
        if self.corrections.is_empty() {
            self.corrected_under = None;
        }
        while self.corrections.len() > MAX_CORRECTIONS {
            let oldest = self
                .corrections
                .iter()
                .min_by_key(|(_, c)| c.at.last().copied())
                .map(|(g, _)| g.clone());
            let Some(oldest) = oldest else { break };
            self.corrections.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        iam::{Condition, Principal, Role, RunService},
        intent::PolicyId,
    };
    use serde_json::json;

    fn web() -> RunService {
        RunService::new("acme-prod", "europe-west1", "web")
    }
    fn id(name: &str) -> PolicyId {
        PolicyId {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
        }
    }
    fn grant(member: &str) -> Grant {
        Grant::new(Principal::from_live(member), Role::Invoker)
    }
    fn ledger(lines: &[(&str, &[&str])]) -> Ledger {
        let lines = lines
            .iter()
            .map(|(m, o)| (grant(m), o.iter().map(|n| id(n)).collect()))
            .collect();
        Ledger {
            lines,
            ..Ledger::default()
        }
    }

    #[test]
    fn a_ledger_reads_back_as_it_was_written() {
        let mut l = ledger(&[("user:a@x.co", &["p", "q"]), ("user:b@x.co", &[])]);
        let shared = Arc::new(Condition::new("t", "d", "e"));
        let conditional = Grant {
            condition: Some(shared),
            ..grant("user:c@x.co")
        };
        l.lines.insert(conditional.clone(), [id("p")].into());
        let at: Timestamp = "2026-11-24T12:00:00.123456Z".parse().unwrap();
        l.corrections.insert(
            conditional.clone(),
            Corrected {
                at: vec![at],
                by: None,
            },
        );
        l.pending.push(Pending {
            name: "web-1".into(),
            reason: ChangeReason::Drift,
            at,
            etag_before: "E".into(),
            added: [conditional.clone()].into(),
            removed: [grant("user:x@x.co")].into(),
            before: [grant("user:x@x.co"), grant("user:y@x.co")].into(),
            before_omitted: 0,
            drift: [conditional].into(),
            policies: vec![],
            drift_by: None,
            approvals: vec![],
        });
        assert_eq!(from_spec(&to_spec(&web(), &l)), Ok(l));
    }

    #[test]
    fn what_versions_before_wrote_is_read() {
        let owner = json!({"namespace": "ns", "name": "p", "uid": "uid-p"});
        let spec = json!({"project": "acme-prod", "region": "europe-west1", "service": "web", "grants": [
            {"role": "roles/run.invoker", "member": "user:a@x.co", "owners": [owner]},
            {"role": "roles/run.invoker", "member": "user:b@x.co", "condition": {"title": "t", "expression": "e"}, "owners": [owner]}]});
        let l = from_spec(&serde_json::from_value(spec).unwrap()).unwrap();
        assert_eq!(l.lines.len(), 2);
        assert!(l.lines.values().all(|o| *o == BTreeSet::from([id("p")])));
        assert!(l.lines.keys().any(|g| g.condition.is_some()));
    }

    #[test]
    fn a_ledger_that_names_what_it_has_not_cannot_be_read() {
        for broken in [
            json!({"role": "roles/run.invoker", "member": "user:a@x.co", "ownedBy": [3]}),
            json!({"role": "roles/run.invoker", "member": "user:a@x.co", "conditionIndex": 3}),
            json!({"role": "roles/owner", "member": "user:a@x.co"}),
        ] {
            let spec = json!({"project": "p", "region": "r", "service": "s", "grants": [broken]});
            assert!(from_spec(&serde_json::from_value(spec).unwrap()).is_err());
        }
    }

    #[test]
    fn the_largest_ledger_fits_into_the_store() {
        let expression = "x".repeat(4096);
        let mut l = Ledger::default();
        let members: BTreeSet<Grant> = (0..1500)
            .map(|i| Grant {
                condition: Some(Arc::new(Condition::new(
                    format!("t{}", i % 100),
                    String::new(),
                    expression.clone(),
                ))),
                ..grant(&format!("user:{}{i}@x.co", "m".repeat(300)))
            })
            .collect();
        l.lines = members
            .iter()
            .take(400)
            .map(|g| (g.clone(), (0..64).map(|n| id(&format!("p{n}"))).collect()))
            .collect();
        l.pending.push(Pending {
            name: "n".into(),
            reason: ChangeReason::SpecChanged,
            at: Timestamp::UNIX_EPOCH,
            etag_before: "E".into(),
            added: members.iter().take(200).cloned().collect(),
            removed: BTreeSet::new(),
            before: members,
            before_omitted: 0,
            drift: BTreeSet::new(),
            policies: vec![],
            drift_by: None,
            approvals: vec![],
        });
        let spec = to_spec(&web(), &l);
        assert!(serde_json::to_vec(&spec).unwrap().len() < MAX_BYTES + MAX_BYTES / 4);
        let p = &spec.pending[0];
        assert_eq!(p.before.len() as i64 + p.before_omitted, 1500);
        assert!(p.before_omitted > 0);
    }

    #[test]
    fn corrections_that_are_old_from_the_future_or_too_many_are_dropped() {
        let at = |m: i64| {
            "2026-11-24T12:00:00Z".parse::<Timestamp>().unwrap()
                + jiff::SignedDuration::from_mins(m)
        };
        let mut l = Ledger::default();
        l.corrections.insert(
            grant("user:a@x.co"),
            Corrected {
                at: vec![at(-120), at(-5)],
                by: None,
            },
        );
        l.corrections.insert(
            grant("user:b@x.co"),
            Corrected {
                at: vec![Timestamp::MAX],
                by: None,
            },
        );
        for i in 0..MAX_CORRECTIONS + 5 {
            l.corrections.insert(
                grant(&format!("user:c{i}@x.co")),
                Corrected {
                    at: vec![at(-1)],
                    by: None,
                },
            );
        }
        l.prune(at(0), jiff::SignedDuration::from_hours(1));
        assert_eq!(l.corrections.len(), MAX_CORRECTIONS);
        assert!(!l.corrections.contains_key(&grant("user:b@x.co")));
        assert!(l.corrections.values().all(|c| c.at.len() == 1));
    }

    #[test]
    fn the_name_of_a_ledger_says_which_service_it_is_about() {
        for service in [
            web(),
            RunService::new("example.com:acme-prod", "us-east1", "a-b"),
        ] {
            assert_eq!(service_named(&name(&service)), Some(service));
        }
        assert_eq!(service_named("web"), None);
    }

    #[test]
    fn versions_are_compared_as_numbers_and_others_not_at_all() {
        assert!(Version::new("9").is_older_than(&Version::new("10")));
        assert!(!Version::new("10").is_older_than(&Version::new("9")));
        assert!(!Version::new("abc").is_older_than(&Version::new("9")));
        assert!(!Version::new("7").is_older_than(&Version::new("abc")));
    }
}
