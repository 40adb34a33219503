//! What people with the right to it agreed to, and what became of that.
//!
//! The numbers are bounded: who may approve in one namespace costs no other one anything.

mod standing;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{Effect, Index, PolicyKey, policies::Record};
use crate::{
    api::{InvokerApprovalStatus, UsedApproval},
    iam::RunService,
    intent::{Agreement, ApprovalKey, denial_of},
    ledger::MAX_USED,
};

/// The most approvals of one namespace that are kept.
pub const MAX_OF_NAMESPACE: usize = 256;
/// About the most bytes that they take.
const MAX_BYTES_OF_NAMESPACE: usize = 1024 * 1024;

/// An approval, and its status as it is in the store.
#[derive(Debug)]
struct Entry {
    agreement: Arc<Agreement>,
    status: InvokerApprovalStatus,
}

/// Approvals that can still be used, or were, and are not over.
#[derive(Debug, Default)]
pub struct Approvals {
    by_key: BTreeMap<ApprovalKey, Entry>,
    /// The earliest of each policy first.
    by_policy: HashMap<PolicyKey, Vec<Arc<Agreement>>>,
    /// How many there are in a namespace, and about how many bytes they take.
    of_namespace: HashMap<Arc<str>, (usize, usize)>,
    listing: Option<HashSet<ApprovalKey>>,
    /// A list was complete.
    listed: bool,
}

impl Approvals {
    /// Whether a list was complete, so that what is not known is not there.
    pub(super) fn are_listed(&self) -> bool {
        self.listed
    }

    /// Those of a policy, the earliest first.
    pub fn of(&self, policy: &PolicyKey) -> &[Arc<Agreement>] {
        self.by_policy.get(policy).map_or(&[], Vec::as_slice)
    }

    pub fn get(&self, key: &ApprovalKey) -> Option<&Arc<Agreement>> {
        self.by_key.get(key).map(|e| &e.agreement)
    }

    /// Every approval that is kept, and its status as the store has it.
    pub fn statuses(&self) -> impl Iterator<Item = (&Arc<Agreement>, &InvokerApprovalStatus)> {
        self.by_key.values().map(|e| (&e.agreement, &e.status))
    }

    /// Every approval that is kept.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Agreement>> {
        self.by_key.values().map(|e| &e.agreement)
    }

    /// False: the namespace has too many.
    fn insert(&mut self, agreement: Arc<Agreement>, status: InvokerApprovalStatus) -> bool {
        let key = agreement.key.clone();
        if let Some(seen) = &mut self.listing {
            seen.insert(key.clone());
        }
        self.take(&key);
        let kept = self.of_namespace.get(&key.namespace);
        let (count, bytes) = kept.copied().unwrap_or_default();
        let bytes = bytes + agreement.size();
        if count >= MAX_OF_NAMESPACE || bytes > MAX_BYTES_OF_NAMESPACE {
            return false;
        }
        let kept = (count + 1, bytes);
        self.of_namespace.insert(key.namespace.clone(), kept);
        let all = self.by_policy.entry(agreement.policy()).or_default();
        let order = |a: &Agreement| (a.created, a.key.clone());
        let place = all.partition_point(|a| order(a) < order(&agreement));
        all.insert(place, agreement.clone());
        self.by_key.insert(key, Entry { agreement, status });
        true
    }

    fn take(&mut self, key: &ApprovalKey) -> Option<Arc<Agreement>> {
        let agreement = self.by_key.remove(key)?.agreement;
        let policy = agreement.policy();
        if let Some(all) = self.by_policy.get_mut(&policy) {
            all.retain(|a| a.key != *key);
            if all.is_empty() {
                self.by_policy.remove(&policy);
            }
        }
        if let Some((count, bytes)) = self.of_namespace.get_mut(&key.namespace) {
            *count -= 1;
            *bytes -= agreement.size();
            if *count == 0 {
                self.of_namespace.remove(&key.namespace);
            }
        }
        Some(agreement)
    }
}

/// Whether a use of its plan leaves nothing of an approval: it was used itself, or was there when
/// another one was.
fn spends(agreement: &Agreement, used: &UsedApproval) -> bool {
    used.plan == *agreement.plan
        && (used.approval == *agreement.digest || used.at.0 >= agreement.created)
}

/// Takes what was used out of what a plan may use.
pub(super) fn without_used(agreements: &mut Vec<Arc<Agreement>>, used: &[UsedApproval]) {
    agreements.retain(|a| !used.iter().any(|u| spends(a, u)));
}

impl Index {
    pub fn approvals(&self) -> &Approvals {
        &self.approvals
    }

    /// Takes in an approval as it is in the store. `Err`: it does not count, and this is why.
    ///
    /// # Errors
    /// The namespace has too many of them.
    pub fn apply_approval(
        &mut self,
        agreement: Agreement,
        status: InvokerApprovalStatus,
        now: Timestamp,
    ) -> Result<Effect, String> {
        let (key, policy) = (agreement.key.clone(), agreement.policy());
        let known = self.approvals.get(&key).cloned();
        if known.as_deref() == Some(&agreement)
            && let Some(entry) = self.approvals.by_key.get_mut(&key)
        {
            entry.status = status;
            if let Some(seen) = &mut self.approvals.listing {
                seen.insert(key);
            }
            return Ok(Effect::default());
        }
        let mut effect = self.remove_approval(&key);
        if agreement.ends() <= now {
            return Ok(effect);
        }
        if !self.approvals.insert(agreement.into(), status) {
            return Err(format!(
                "namespace {} has {MAX_OF_NAMESPACE} InvokerApprovals, or a MiB of them, that are not over; delete those that are used, then create this one again",
                key.namespace
            ));
        }
        effect.merge(self.agreed_anew(&policy));
        Ok(effect)
    }

    /// An approval is gone, or its time is over: what it let through and was not begun yet waits
    /// again.
    pub fn remove_approval(&mut self, key: &ApprovalKey) -> Effect {
        let Some(agreement) = self.approvals.take(key) else {
            return Effect::default();
        };
        let policy = agreement.policy();
        if let Some(record) = self.policies.get_mut(&policy) {
            let by = |by: &Option<Arc<Agreement>>| {
                by.as_ref().is_some_and(|a| a.digest == agreement.digest)
            };
            record.released.retain(|_, released_by| !by(released_by));
            record.reach = None.into();
        }
        self.agreed_anew(&policy)
    }

    /// Other approvals than before are there for a policy: what waits there is looked at again.
    fn agreed_anew(&mut self, policy: &PolicyKey) -> Effect {
        let mut effect = Effect {
            services: self.release(policy),
            ..Effect::default()
        };
        if let Some(record) = self.policies.get(policy) {
            let held = record.observations();
            let held = held.filter(|(_, o)| o.result.as_ref().is_ok_and(|f| f.plan.is_some()));
            effect.services.extend(held.map(|(s, _)| s.clone()));
            effect.policies.insert(policy.clone());
        }
        if self.requests.get(policy).is_some() {
            effect.policies.insert(policy.clone());
        }
        effect
    }

    pub fn begin_approval_list(&mut self) {
        self.approvals.listing = Some(HashSet::new());
    }

    /// The list is complete: what is not in it is gone.
    pub fn end_approval_list(&mut self) -> Effect {
        let Some(seen) = self.approvals.listing.take() else {
            return Effect::default();
        };
        let is_first = !std::mem::replace(&mut self.approvals.listed, true);
        let keys = self.approvals.by_key.keys();
        let gone: Vec<ApprovalKey> = keys.filter(|k| !seen.contains(*k)).cloned().collect();
        let mut effect = Effect::default();
        for key in gone {
            effect.merge(self.remove_approval(&key));
        }
        if is_first {
            // What a guardrail approves waited to hear whether somebody said no.
            let requests = self.requests.iter();
            effect.policies.extend(requests.map(|(r, _)| r.key.clone()));
        }
        effect
    }

    /// Whether an approval was used, or its plan went through with another one. `on`: as far as one
    /// service is concerned; else anywhere by another approval.
    pub(super) fn is_spent(&self, agreement: &Agreement, on: Option<&RunService>) -> bool {
        let mut uses = self.ledgers.uses(&agreement.plan);
        match on {
            Some(service) => uses.any(|(s, used)| s == service && spends(agreement, used)),
            None => {
                uses.any(|(_, u)| u.approval != *agreement.digest && u.at.0 >= agreement.created)
            }
        }
    }

    /// The approvals of a policy that the plan of a service may use.
    pub(super) fn agreements(&self, record: &Record, service: &RunService) -> Vec<Arc<Agreement>> {
        let all = self.approvals.of(&record.intent.id.key());
        if all.is_empty() || self.ledgers.used(service).len() >= MAX_USED {
            return Vec::new();
        }
        let may = |a: &&Arc<Agreement>| {
            !a.denies() && !self.is_denied(a) && !self.is_spent(a, Some(service))
        };
        all.iter().filter(may).cloned().collect()
    }

    /// The approvals that say no to a plan of a policy.
    pub(super) fn denials(&self, record: &Record) -> Vec<Arc<Agreement>> {
        let all = self.approvals.of(&record.intent.id.key()).iter();
        all.filter(|a| a.denies()).cloned().collect()
    }

    /// Whether somebody who may approve said no to the plan of an approval.
    pub(super) fn is_denied(&self, agreement: &Agreement) -> bool {
        denial_of(self.approvals.of(&agreement.policy()), &agreement.plan).is_some()
    }

    /// The approval that lets the selectors of a policy reach a service, until that is on record.
    pub(super) fn reached_by(
        &self,
        record: &Record,
        service: &RunService,
    ) -> Option<Arc<Agreement>> {
        let by = match record.intent.id.request() {
            Some(_) => self.consented(record)?,
            None => record.released.get(service)?.as_ref()?,
        };
        (!self.is_spent(by, Some(service))).then(|| by.clone())
    }

    /// The approval by which a request was granted.
    fn consented(&self, record: &Record) -> Option<&Arc<Agreement>> {
        let key = record.intent.id.key();
        let name = self.requests.stored(&key)?.approval.as_deref()?;
        let plan = &self.requests.get(&key)?.plan;
        let mut all = self.approvals.of(&key).iter();
        all.find(|a| *a.key.name == *name && a.plan == *plan && !a.denies())
    }

    /// A status of an approval was written.
    pub fn set_approval_status(&mut self, key: &ApprovalKey, status: InvokerApprovalStatus) {
        if let Some(entry) = self.approvals.by_key.get_mut(key) {
            entry.status = status;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use serde_json::json;

    use super::*;
    use crate::{
        api::ApprovalState,
        ledger::{Ledger, Version},
        plan::Settings,
    };

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    fn approval(name: &str, created: &str) -> Agreement {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval",
            "metadata": {"namespace": "team-a", "name": name, "uid": created, "creationTimestamp": created},
            "spec": {"policy": "web", "plan": "a".repeat(40), "reason": "CHG-1"}});
        Agreement::from_object(&serde_json::from_value(object).unwrap()).unwrap()
    }
    #[test]
    fn what_it_means_that_time_ended_depends_on_what_was_said_of_what() {
        let words = |about: &str, decision: &str| {
            let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval",
                "metadata": {"namespace": "team-a", "name": "a", "uid": "a", "creationTimestamp": "2026-11-26T12:00:00Z"},
                "spec": {about: "web", "plan": "a".repeat(40), "reason": "CHG-1", "decision": decision, "notAfter": "2026-11-26T13:00:00Z"}});
            let agreement = Agreement::from_object(&serde_json::from_value(object).unwrap());
            let status =
                index().approval_status_of(&agreement.unwrap(), at("2026-11-26T14:00:00Z"));
            assert_eq!(status.state, Some(ApprovalState::Expired));
            status.message.unwrap()
        };
        for (about, decision, said) in [
            ("policy", "Approve", "before the plan came"),
            ("policy", "Deny", "it denies the plan no longer"),
            ("request", "Approve", "before the request was granted by it"),
            ("request", "Deny", "a request that it denied stays denied"),
        ] {
            let words = words(about, decision);
            assert!(words.contains(said), "{about} {decision}: {words}");
        }
    }

    fn index() -> Index {
        let mut index = Index::new(Settings::default());
        let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
            "metadata": {"namespace": "team-a", "name": "web", "uid": "web", "generation": 1},
            "spec": {"project": "acme-prod", "mode": "Enforce", "invokers": [{"member": "user:a@acme.com"}],
                "services": [{"name": "web", "region": "europe-west1"}]}});
        index.apply_policy(&serde_json::from_value(policy).unwrap(), Duration::ZERO);
        index
    }
    fn service() -> RunService {
        RunService::new("acme-prod", "europe-west1", "web")
    }
    fn take(index: &mut Index, agreement: Agreement) -> Result<Effect, String> {
        index.apply_approval(agreement, InvokerApprovalStatus::default(), at(NOON))
    }
    fn usable(index: &Index) -> Vec<String> {
        let words = index.words(&service());
        let agreements = words.iter().flat_map(|w| &w.agreements);
        agreements.map(|a| a.key.name.to_string()).collect()
    }
    fn state(index: &Index, agreement: &Agreement) -> ApprovalState {
        index.approval_status_of(agreement, at(NOON)).state.unwrap()
    }

    const NOON: &str = "2026-11-26T12:00:00Z";

    #[test]
    fn what_the_ledger_has_as_used_works_no_more_however_often_it_is_restored() {
        let mut index = index();
        let (first, second) = (
            approval("first", "2026-11-26T11:00:00Z"),
            approval("second", "2026-11-26T11:30:00Z"),
        );
        for a in [&second, &first] {
            take(&mut index, a.clone()).unwrap();
        }
        assert_eq!(usable(&index), ["first", "second"], "the earliest first");
        let used = UsedApproval {
            approval: first.digest.to_string(),
            plan: first.plan.to_string(),
            at: MicroTime(at("2026-11-26T11:45:00Z")),
            change: "web-1".into(),
            not_after: None,
        };
        let ledger = Ledger {
            used: vec![used],
            ..Ledger::default()
        };
        index.set_ledger(&service(), &ledger, Version::new("1"));
        assert!(usable(&index).is_empty());
        assert_eq!(state(&index, &first), ApprovalState::Used);
        assert_eq!(state(&index, &second), ApprovalState::Superseded);
        let restored = approval("first", "2026-11-26T11:50:00Z");
        take(&mut index, restored.clone()).unwrap();
        assert!(usable(&index).is_empty());
        assert_eq!(state(&index, &restored), ApprovalState::Used);
        take(&mut index, approval("third", "2026-11-26T11:50:00Z")).unwrap();
        assert_eq!(usable(&index), ["third"], "somebody agreed anew");
        index.erase_ledger(&service(), Version::new("1"));
        assert_eq!(usable(&index).len(), 3, "nothing is found that is gone");
    }

    #[test]
    fn a_namespace_has_so_many_and_the_next_one_costs_nothing() {
        let mut index = index();
        for n in 0..MAX_OF_NAMESPACE {
            take(
                &mut index,
                approval(&format!("a{n:03}"), "2026-11-26T11:00:00Z"),
            )
            .unwrap();
        }
        let more = approval("more", "2026-11-26T11:00:00Z");
        let refused = take(&mut index, more.clone()).unwrap_err();
        assert!(
            refused.contains("namespace team-a has 256 InvokerApprovals"),
            "{refused}"
        );
        assert_eq!(index.approvals.iter().count(), MAX_OF_NAMESPACE);
        // The same again is no second one; one that goes makes room.
        take(&mut index, approval("a000", "2026-11-26T11:00:00Z")).unwrap();
        index.remove_approval(&ApprovalKey::new("team-a", "a000"));
        take(&mut index, more).unwrap();
        // A list that shows none of them.
        index.begin_approval_list();
        index.end_approval_list();
        assert_eq!(index.approvals.iter().count(), 0);
        assert!(index.approvals.by_policy.is_empty() && index.approvals.of_namespace.is_empty());
    }

    #[test]
    fn one_whose_time_is_over_is_not_kept() {
        let mut index = index();
        let old = approval("old", "2026-11-19T11:59:59Z");
        take(&mut index, old.clone()).unwrap();
        assert!(index.approvals.get(&old.key).is_none());
        assert_eq!(state(&index, &old), ApprovalState::Expired);
    }

    #[test]
    fn a_service_that_remembers_all_it_can_lets_nothing_more_through() {
        let mut index = index();
        take(&mut index, approval("a", "2026-11-26T11:00:00Z")).unwrap();
        let used = |n: usize| UsedApproval {
            approval: n.to_string(),
            plan: n.to_string(),
            at: MicroTime(at(NOON)),
            change: "web-1".into(),
            not_after: Some(MicroTime(at("2026-11-27T12:00:00Z"))),
        };
        let mut ledger = Ledger {
            used: (0..MAX_USED).map(used).collect(),
            ..Ledger::default()
        };
        index.set_ledger(&service(), &ledger, Version::new("1"));
        assert!(usable(&index).is_empty());
        ledger.prune(
            at("2026-11-28T12:00:00Z"),
            jiff::SignedDuration::from_hours(1),
        );
        assert!(
            ledger.used.is_empty(),
            "what could not work any more is forgotten"
        );
    }
}
