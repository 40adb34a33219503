//! What the operator answers for on one service: the grants and whose they are, the write that is
//! under way, and the drift that was corrected lately. How that is stored, and read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use crate::{
    api::{
        APPROVE, ChangePolicy, ChangeReason, ChangedBy, ConditionSpec, HeldRemoval, InvokerLedger,
        InvokerLedgerSpec, LedgerCorrection, LedgerGrant, LedgerMember, LedgerOwner,
        PendingApproval, PendingChange, UsedApproval, request_of,
    },
    iam::{Condition, Grant, Principal, Role, RunService},
    intent::PolicyId,
    plan::Lines,
};

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
            R::Deleted | R::Guardrail | R::Expired | R::Approved if self.added.contains(grant) => {
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

fn condition_of(spec: &ConditionSpec) -> Arc<Condition> {
    Arc::new(spec.into())
}

/// Makes places in tables for what repeats.
#[derive(Default)]
struct Tables {
    policies: Vec<LedgerOwner>,
    conditions: Vec<ConditionSpec>,
    policy_places: BTreeMap<PolicyId, u32>,
    condition_places: BTreeMap<Condition, u32>,
}

impl Tables {
    fn policy(&mut self, id: &PolicyId) -> u32 {
        let next = self.policies.len() as u32;
        let place = *self.policy_places.entry(id.clone()).or_insert(next);
        if place == next {
            self.policies.push(LedgerOwner {
                namespace: id.namespace.to_string(),
                name: id.name.to_string(),
                uid: id.uid.to_string(),
            });
        }
        place
    }

    fn condition(&mut self, grant: &Grant) -> Option<u32> {
        let condition = grant.condition.as_deref()?;
        let next = self.conditions.len() as u32;
        let place = *self
            .condition_places
            .entry(condition.clone())
            .or_insert(next);
        if place == next {
            self.conditions.push(condition.into());
        }
        Some(place)
    }

    fn member(&mut self, grant: &Grant) -> LedgerMember {
        LedgerMember {
            role: grant.role.as_str().into(),
            member: grant.principal.as_str().into(),
            condition_index: self.condition(grant),
        }
    }

    fn members<'a>(&mut self, grants: impl IntoIterator<Item = &'a Grant>) -> Vec<LedgerMember> {
        grants.into_iter().map(|g| self.member(g)).collect()
    }
}

/// About how many bytes a grant takes in a list of a ledger, its condition left out.
fn bytes(grant: &Grant) -> usize {
    grant.principal.as_str().len() + 80
}

/// A ledger as an object. `known` is the version that it was planned from.
pub fn to_object(service: &RunService, ledger: &Ledger, known: Option<&Version>) -> InvokerLedger {
    let mut object = InvokerLedger::new(&name(service), to_spec(service, ledger));
    object.metadata.resource_version = known.map(|v| v.as_str().to_owned());
    if !ledger.approvals.is_empty() {
        let hashes: Vec<&str> = ledger.approvals.iter().map(|h| &**h).collect();
        object.metadata.annotations = Some([(APPROVE.to_owned(), hashes.join(","))].into());
    }
    object
}

/// Reads an object.
///
/// # Errors
/// Those of [`from_spec`].
pub fn from_object(object: &InvokerLedger) -> Result<Ledger, String> {
    let annotation = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(APPROVE));
    let hashes = annotation
        .into_iter()
        .flat_map(|a| a.split([',', ' ']))
        .filter(|h| !h.is_empty());
    let approvals = hashes.take(16).map(Arc::from).collect();
    Ok(Ledger {
        approvals,
        ..from_spec(&object.spec)?
    })
}

/// A ledger as it is stored. What does not fit of what was there before a write is left out and
/// counted.
pub fn to_spec(service: &RunService, ledger: &Ledger) -> InvokerLedgerSpec {
    let mut tables = Tables::default();
    let grants = ledger.lines.iter().map(|(grant, owners)| {
        let LedgerMember {
            role,
            member,
            condition_index,
        } = tables.member(grant);
        let owned_by = owners.iter().map(|id| tables.policy(id)).collect();
        LedgerGrant {
            role,
            member,
            condition_index,
            owned_by,
            condition: None,
            owners: vec![],
        }
    });
    let grants: Vec<LedgerGrant> = grants.collect();
    let corrections = ledger.corrections.iter().map(|(grant, corrected)| {
        let LedgerMember {
            role,
            member,
            condition_index,
        } = tables.member(grant);
        let at = corrected.at.iter().map(|t| MicroTime(*t)).collect();
        LedgerCorrection {
            role,
            member,
            condition_index,
            at,
            drift_by: corrected.by.as_deref().cloned(),
        }
    });
    let corrections: Vec<LedgerCorrection> = corrections.collect();
    let mut left = MAX_BYTES.saturating_sub(used(ledger));
    // The latest has the first claim to what is left.
    let mut pending: Vec<PendingChange> = ledger
        .pending
        .iter()
        .rev()
        .map(|p| pending_spec(p, &mut tables, &mut left))
        .collect();
    pending.reverse();
    InvokerLedgerSpec {
        project: service.project.to_string(),
        region: service.region.to_string(),
        service: service.name.to_string(),
        policies: tables.policies,
        conditions: tables.conditions,
        grants,
        pending,
        held: ledger.held.clone(),
        corrections,
        corrected_under: ledger.corrected_under.map(|hash| format!("{hash:016x}")),
        written_at: ledger.written_at.map(MicroTime),
        used_approvals: ledger.used.clone(),
    }
}

fn used(ledger: &Ledger) -> usize {
    let changed = |p: &Pending| (p.added.len() + p.removed.len()) * 200;
    crate::plan::stored_size(&ledger.lines)
        + ledger.corrections.len() * 400
        + ledger.used.len() * 300
        + ledger.pending.iter().map(changed).sum::<usize>()
}

fn pending_spec(pending: &Pending, tables: &mut Tables, left: &mut usize) -> PendingChange {
    let mut known: BTreeSet<&Condition> = BTreeSet::new();
    let mut before: Vec<&Grant> = Vec::with_capacity(pending.before.len());
    for grant in &pending.before {
        let fresh = grant.condition.as_deref().filter(|c| known.insert(c));
        let size = bytes(grant)
            + fresh.map_or(0, |c| {
                c.title.len() + c.description.len() + c.expression.len() + 64
            });
        if size > *left {
            break;
        }
        *left -= size;
        before.push(grant);
    }
    let omitted = (pending.before.len() - before.len()) as i64 + pending.before_omitted;
    PendingChange {
        name: pending.name.clone(),
        reason: pending.reason,
        at: MicroTime(pending.at),
        etag_before: pending.etag_before.clone(),
        added: tables.members(&pending.added),
        removed: tables.members(&pending.removed),
        before: tables.members(before),
        before_omitted: omitted,
        drift: tables.members(&pending.drift),
        policies: pending.policies.clone(),
        drift_by: pending.drift_by.clone(),
        approvals: pending.approvals.clone(),
    }
}

/// Reads a ledger, in this form or in that of earlier operators.
///
/// # Errors
/// What cannot be understood, in words: a ledger that is read in part would forget the rest.
pub fn from_spec(spec: &InvokerLedgerSpec) -> Result<Ledger, String> {
    let stored = Stored {
        conditions: spec.conditions.iter().map(condition_of).collect(),
        policies: spec.policies.iter().map(owner_of).collect(),
    };
    // Another version hashes otherwise, and then nothing is known: no reason to take the ledger for
    // unreadable.
    let corrected_under = spec
        .corrected_under
        .as_deref()
        .and_then(|hash| u64::from_str_radix(hash, 16).ok());
    let mut ledger = Ledger {
        held: spec.held.clone(),
        corrected_under,
        written_at: spec.written_at.as_ref().map(|at| at.0),
        used: spec.used_approvals.clone(),
        ..Ledger::default()
    };
    for line in &spec.grants {
        let (grant, owners) = stored.line(line)?;
        ledger.lines.insert(grant, owners);
    }
    for c in &spec.corrections {
        let corrected = Corrected {
            at: c.at.iter().map(|t| t.0).collect(),
            by: c.drift_by.clone().map(Arc::new),
        };
        let grant = stored.grant(&c.role, &c.member, c.condition_index, None)?;
        ledger.corrections.insert(grant, corrected);
    }
    for pending in &spec.pending {
        ledger.pending.push(stored.pending(pending)?);
    }
    Ok(ledger)
}

fn owner_of(owner: &LedgerOwner) -> PolicyId {
    PolicyId {
        namespace: owner.namespace.as_str().into(),
        name: owner.name.as_str().into(),
        uid: owner.uid.as_str().into(),
    }
}

/// The tables of a stored ledger, by which its entries name conditions and policies: [`Tables`],
/// read back.
struct Stored {
    conditions: Vec<Arc<Condition>>,
    policies: Vec<PolicyId>,
}

impl Stored {
    fn grant(
        &self,
        role: &str,
        member: &str,
        index: Option<u32>,
        own: Option<&ConditionSpec>,
    ) -> Result<Grant, String> {
        let role = Role::from_name(role)
            .ok_or_else(|| format!("the role {role} is not one that is managed here"))?;
        let condition = match index {
            Some(i) => {
                let found = self.conditions.get(i as usize);
                let found = found.ok_or_else(|| format!("there is no condition number {i}"))?;
                Some(found.clone())
            }
            None => own.map(condition_of),
        };
        Ok(Grant {
            principal: Principal::from_live(member),
            role,
            condition,
        })
    }

    fn members(&self, list: &[LedgerMember]) -> Result<BTreeSet<Grant>, String> {
        list.iter()
            .map(|m| self.grant(&m.role, &m.member, m.condition_index, None))
            .collect()
    }

    fn line(&self, line: &LedgerGrant) -> Result<(Grant, BTreeSet<PolicyId>), String> {
        let mut owners: BTreeSet<PolicyId> = line.owners.iter().map(owner_of).collect();
        for i in &line.owned_by {
            let found = self.policies.get(*i as usize);
            let found = found.ok_or_else(|| format!("there is no policy number {i}"))?;
            owners.insert(found.clone());
        }
        let own = line.condition.as_ref();
        let grant = self.grant(&line.role, &line.member, line.condition_index, own)?;
        Ok((grant, owners))
    }

    fn pending(&self, pending: &PendingChange) -> Result<Pending, String> {
        Ok(Pending {
            name: pending.name.clone(),
            reason: pending.reason,
            at: pending.at.0,
            etag_before: pending.etag_before.clone(),
            added: self.members(&pending.added)?,
            removed: self.members(&pending.removed)?,
            before: self.members(&pending.before)?,
            before_omitted: pending.before_omitted,
            drift: self.members(&pending.drift)?,
            policies: pending.policies.clone(),
            drift_by: pending.drift_by.clone(),
            approvals: pending.approvals.clone(),
        })
    }
}

/// Name of the ledger of a service. Project ids, regions and service names hold no dots but those
/// of a domain-scoped project id, which come first; so this is unique.
pub fn name(service: &RunService) -> String {
    format!(
        "{}.{}.{}",
        service.project.replace(':', "."),
        service.region,
        service.name
    )
}

/// The service whose ledger has a name: [`name`] the other way round.
pub fn service_named(name: &str) -> Option<RunService> {
    let mut parts = name.rsplitn(3, '.');
    let (service, region, project) = (parts.next()?, parts.next()?, parts.next()?);
    let project = match project.rsplit_once('.') {
        Some((domain, project)) => format!("{domain}:{project}"),
        None => project.to_owned(),
    };
    Some(RunService::new(project, region, service))
}

/// The service that a ledger is about.
pub fn service_of(spec: &InvokerLedgerSpec) -> RunService {
    RunService::new(
        spec.project.as_str(),
        spec.region.as_str(),
        spec.service.as_str(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
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
