//! Requests for access: where each stands, and what it declares meanwhile. A request that was
//! approved is a policy among the others until what it was given is gone again.

mod standing;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{Effect, Index, PolicyKey};
use crate::{
    api::{InvokerAccessRequestStatus, RequestPhase},
    intent::{AccessRequest, PolicyId},
    plan::RevokeCause,
};

/// The most requests of one namespace that are kept.
pub const MAX_OF_NAMESPACE: usize = 256;

/// A request, and its status as it is in the store.
#[derive(Debug)]
struct Entry {
    request: Arc<AccessRequest>,
    stored: InvokerAccessRequestStatus,
}

/// Requests that are not over, or that still hold something.
#[derive(Debug, Default)]
pub struct Requests {
    by_key: BTreeMap<PolicyKey, Entry>,
    of_namespace: HashMap<Arc<str>, usize>,
    listing: Option<HashSet<PolicyKey>>,
    /// A list was complete.
    listed: bool,
}

impl Requests {
    pub fn get(&self, key: &PolicyKey) -> Option<&Arc<AccessRequest>> {
        self.by_key.get(key).map(|e| &e.request)
    }

    /// The status of a request as the store has it.
    pub fn stored(&self, key: &PolicyKey) -> Option<&InvokerAccessRequestStatus> {
        self.by_key.get(key).map(|e| &e.stored)
    }

    /// Why what was given for the sake of a policy that is being deleted is taken back: what stands
    /// for a request goes in the same way, and for other reasons.
    pub(super) fn why_over(&self, key: &PolicyKey) -> RevokeCause {
        let entry = self.by_key.get(key);
        let entry = entry.filter(|e| !e.request.is_deleting());
        match entry.and_then(|e| e.stored.phase) {
            Some(RequestPhase::Ended) => RevokeCause::Expired,
            Some(RequestPhase::Refused) => RevokeCause::Refused,
            Some(RequestPhase::Denied) => RevokeCause::Denied,
            _ => RevokeCause::PolicyDeleted,
        }
    }

    /// Every request that is kept, and its status as the store has it.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<AccessRequest>, &InvokerAccessRequestStatus)> {
        self.by_key.values().map(|e| (&e.request, &e.stored))
    }

    /// Whether there is one in a namespace.
    pub(super) fn are_in(&self, namespace: &str) -> bool {
        self.of_namespace.contains_key(namespace)
    }

    pub(super) fn keys_of_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a PolicyKey> {
        let keys = self.by_key.keys();
        keys.filter(move |k| *k.namespace == *namespace)
    }

    /// Whether a list was complete, so that what is not known is not there.
    pub(super) fn are_listed(&self) -> bool {
        self.listed
    }

    fn see(&mut self, key: &PolicyKey) {
        if let Some(seen) = &mut self.listing {
            seen.insert(key.clone());
        }
    }

    /// The finalizer of a request was put on or taken off.
    pub(super) fn set_finalizer(&mut self, key: &PolicyKey, uid: &str, present: bool) {
        let entry = self.by_key.get_mut(key);
        if let Some(entry) = entry.filter(|e| *e.request.uid == *uid) {
            entry.request = entry.request.with_finalizer(present).into();
        }
    }

    /// False: the namespace has too many. One that was granted is always kept: it was among so many
    /// when that was, and whatever else is asked for since, it has to end.
    fn insert(&mut self, request: Arc<AccessRequest>, stored: InvokerAccessRequestStatus) -> bool {
        let key = request.key.clone();
        if !self.by_key.contains_key(&key) {
            let is_granted = stored.until.is_some() || request.has_finalizer();
            let count = self.of_namespace.get(&key.namespace).copied();
            let count = count.unwrap_or_default();
            if count >= MAX_OF_NAMESPACE && !is_granted {
                return false;
            }
            self.of_namespace.insert(key.namespace.clone(), count + 1);
        }
        self.by_key.insert(key, Entry { request, stored });
        true
    }

    fn take(&mut self, key: &PolicyKey) -> Option<Entry> {
        let entry = self.by_key.remove(key)?;
        if let Some(count) = self.of_namespace.get_mut(&key.namespace) {
            *count -= 1;
            if *count == 0 {
                self.of_namespace.remove(&key.namespace);
            }
        }
        Some(entry)
    }
}

impl Index {
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Takes in a request as it is in the store, and declares what was granted by it. `now` is the
    /// time since the process began.
    ///
    /// # Errors
    /// The namespace has too many of them: it asks for nothing.
    pub fn apply_request(
        &mut self,
        request: AccessRequest,
        stored: InvokerAccessRequestStatus,
        now: Duration,
    ) -> Result<Effect, String> {
        let key = request.key.clone();
        self.requests.see(&key);
        let mut effect = Effect::default();
        let known = self.requests.get(&key).filter(|k| k.uid != request.uid);
        if known.is_some() {
            effect.merge(self.remove_request(&key));
        }
        let is_over = stored.phase.is_some_and(RequestPhase::is_final);
        if is_over && !request.has_finalizer() {
            effect.merge(self.remove_request(&key));
            return Ok(effect);
        }
        let request = Arc::new(request);
        if !self.requests.insert(request.clone(), stored.clone()) {
            return Err(format!(
                "namespace {} has {MAX_OF_NAMESPACE} InvokerAccessRequests that are not over; delete some, then create this one again",
                key.namespace
            ));
        }
        // What its namespace has to satisfy is followed from now on.
        self.guardrails.terms(&key.namespace);
        effect.policies.insert(key.clone());
        let Some(until) = stored.until.as_ref() else {
            return Ok(effect);
        };
        let takes_back = stored.phase.is_some_and(RequestPhase::takes_back);
        if takes_back && !request.has_finalizer() && self.policies.get(&key).is_none() {
            return Ok(effect);
        }
        let mut policy = request.declaration(until.0, takes_back);
        // Its own status is that of the request: what was computed last stays.
        policy.status = self.policies.get(&key).map(|r| r.status().get());
        effect.merge(self.apply_policy(&policy, now).1);
        Ok(effect)
    }

    /// A request is gone from the store, or is over and holds nothing.
    pub fn remove_request(&mut self, key: &PolicyKey) -> Effect {
        self.requests.take(key);
        let declared = self.policies.get(key).map(|r| r.intent.id.clone());
        let effect = declared.map(|id| self.remove_policy(&id));
        self.forget_namespace(&key.namespace);
        effect.unwrap_or_default()
    }

    /// The request whose finalizer holds nothing: it is over and was given nothing, so it never
    /// stood among policies, whoever put the finalizer there.
    pub fn bound_for_nothing(&self, key: &PolicyKey) -> Option<PolicyId> {
        let Entry { request, stored } = self.requests.by_key.get(key)?;
        let is_over = stored.phase.is_some_and(RequestPhase::is_final);
        let holds = stored.until.is_some()
            || self.policies.get(key).is_some()
            || self.ledgers.owned_by(&request.uid).next().is_some();
        (is_over && request.has_finalizer() && !holds).then(|| request.id())
    }

    /// What a request that is over was given is gone.
    pub fn release_request(&mut self, id: &PolicyId) -> Effect {
        let key = id.key();
        let stored = self.requests.stored(&key);
        let is_over = stored.is_some_and(|s| s.phase.is_some_and(RequestPhase::is_final));
        if is_over {
            return self.remove_request(&key);
        }
        self.remove_policy(id)
    }

    /// A request object that cannot be read: what was known of it stands still.
    pub fn apply_unreadable_request(&mut self, key: &PolicyKey, uid: &str, why: &str) -> Effect {
        self.requests.see(key);
        self.apply_unreadable_policy(key, uid, why)
    }

    pub fn begin_request_list(&mut self) {
        self.requests.listing = Some(HashSet::new());
    }

    /// The list is complete: what is not in it is gone.
    pub fn end_request_list(&mut self) -> Effect {
        let Some(seen) = self.requests.listing.take() else {
            return Effect::default();
        };
        let mut effect = Effect::default();
        if !std::mem::replace(&mut self.requests.listed, true) {
            // What belongs to requests was nobody's to touch until now.
            let ledgers = self.ledgers.services().cloned();
            effect.services.extend(ledgers.filter(|s| {
                let owners = self.ledgers.owners(s);
                owners.iter().any(|id| id.request().is_some())
            }));
        }
        effect.merge(self.end_list_of(&seen, true));
        let gone: Vec<PolicyKey> = self
            .requests
            .by_key
            .keys()
            .filter(|k| !seen.contains(*k))
            .cloned()
            .collect();
        for key in gone {
            effect.merge(self.remove_request(&key));
        }
        effect
    }

    /// The status of a request was written.
    pub fn set_request_status(
        &mut self,
        key: &PolicyKey,
        uid: &str,
        status: InvokerAccessRequestStatus,
        now: Duration,
    ) -> Effect {
        let known = self.requests.get(key).filter(|r| *r.uid == *uid).cloned();
        let Some(request) = known else {
            return Effect::default();
        };
        // It is known already, so there is room for it.
        self.apply_request(Arc::unwrap_or_clone(request), status, now)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::{FINALIZER, InvokerApprovalStatus},
        iam::RunService,
        intent::{Agreement, Guardrail},
        ledger::{Ledger, Version},
        plan::{OwnerState, Settings},
    };

    const NOON: &str = "2026-11-26T12:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    fn request(name: &str, uid: &str, finalizers: Value) -> AccessRequest {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerAccessRequest",
            "metadata": {"namespace": "team-a", "name": name, "uid": uid, "creationTimestamp": NOON, "generation": 1, "finalizers": finalizers},
            "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}],
                "member": "user:ada@acme.com", "duration": "1h", "reason": "INC-1"}});
        AccessRequest::from_object(&serde_json::from_value(object).unwrap()).unwrap()
    }
    fn guardrail(requests: Value) -> Guardrail {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "g"},
            "spec": {"requests": requests}});
        Guardrail::from_object(&serde_json::from_value(object).unwrap())
    }
    fn index(requests: Value) -> Index {
        let mut index = Index::new(Settings::default());
        index.apply_guardrail(guardrail(requests));
        index
    }
    fn approve(index: &mut Index, request: &AccessRequest, name: &str, decision: &str) {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval",
            "metadata": {"namespace": "team-a", "name": name, "uid": name, "creationTimestamp": NOON},
            "spec": {"request": request.name(), "plan": &*request.plan, "reason": "CHG-1", "decision": decision}});
        let agreement = Agreement::from_object(&serde_json::from_value(object).unwrap()).unwrap();
        let status = InvokerApprovalStatus::default();
        index.apply_approval(agreement, status, at(NOON)).unwrap();
    }
    fn ask(index: &mut Index, request: &AccessRequest) -> Result<Effect, String> {
        let fresh = InvokerAccessRequestStatus::default();
        index.apply_request(request.clone(), fresh, Duration::ZERO)
    }
    /// Where it stands at `now`, once that is in the store.
    fn tend(index: &mut Index, request: &AccessRequest, now: &str) -> RequestPhase {
        let known = index.requests.stored(&request.key).cloned();
        let next = index.request_status(&request.key, Duration::ZERO, at(now));
        let status = next.or(known).unwrap();
        let written = status.clone();
        index.set_request_status(&request.key, &request.uid, written, Duration::ZERO);
        status.phase.unwrap()
    }

    #[test]
    fn nothing_is_declared_before_the_store_has_until_when() {
        let mut index = index(json!({"maxDuration": "4h"}));
        let asked = request("inc-1", "1", json!([]));
        ask(&mut index, &asked).unwrap();
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Pending);
        approve(&mut index, &asked, "chg-1", "Approve");
        let status = index.request_status(&asked.key, Duration::ZERO, at("2026-11-26T12:05:00Z"));
        let status = status.unwrap();
        assert_eq!(status.phase, Some(RequestPhase::Approved));
        assert_eq!(status.until.as_ref().unwrap().0, at("2026-11-26T13:05:00Z"));
        assert!(index.policies.get(&asked.key).is_none(), "not written yet");
        index.set_request_status(&asked.key, "another", status.clone(), Duration::ZERO);
        assert!(
            index.policies.get(&asked.key).is_none(),
            "of another object"
        );
        index.set_request_status(&asked.key, "1", status, Duration::ZERO);
        let declared = &index.policies.get(&asked.key).unwrap().intent;
        assert!(declared.enforces() && declared.declared.len() == 1);
    }

    #[test]
    fn an_approval_of_an_earlier_request_is_for_no_later_one() {
        let mut index = index(json!({"maxDuration": "4h"}));
        let (first, second) = (
            request("inc-1", "1", json!([])),
            request("inc-1", "2", json!([])),
        );
        approve(&mut index, &first, "chg-1", "Approve");
        ask(&mut index, &second).unwrap();
        assert_eq!(tend(&mut index, &second, NOON), RequestPhase::Pending);
    }

    #[test]
    fn a_guardrail_approves_only_once_it_is_known_that_nobody_said_no() {
        let mut index = index(json!({"maxDuration": "4h", "autoApprove": ["*@acme.com"]}));
        let asked = request("inc-1", "1", json!([]));
        ask(&mut index, &asked).unwrap();
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Pending);
        index.begin_approval_list();
        approve(&mut index, &asked, "no-1", "Deny");
        let effect = index.end_approval_list();
        assert!(effect.policies.contains(&asked.key));
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Denied);
        let other = request("inc-2", "2", json!([]));
        ask(&mut index, &other).unwrap();
        assert_eq!(tend(&mut index, &other, NOON), RequestPhase::Approved);
    }

    #[test]
    fn what_is_over_stays_until_it_holds_nothing_any_more() {
        let mut index = index(json!({"maxDuration": "4h", "autoApprove": ["*@acme.com"]}));
        index.begin_approval_list();
        index.end_approval_list();
        let asked = request("inc-1", "1", json!([FINALIZER]));
        ask(&mut index, &asked).unwrap();
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Approved);
        let over = "2026-11-26T13:00:00Z";
        assert_eq!(
            index.request_changes_at(&asked.key, at(NOON)),
            Some(at(over))
        );
        assert_eq!(tend(&mut index, &asked, over), RequestPhase::Ended);
        let declared = &index.policies.get(&asked.key).unwrap().intent;
        assert!(declared.deleting, "what it was given is to go");
        let id = declared.id.clone();
        index.set_finalizer(&id, false);
        index.release_request(&id);
        assert!(
            index.policies.get(&asked.key).is_none() && index.requests.get(&asked.key).is_none()
        );
        assert!(!index.requests.are_in("team-a"));
    }

    #[test]
    fn a_guardrail_is_asked_again_with_every_change_of_it() {
        let mut index = index(json!({"maxDuration": "4h", "autoApprove": ["*@acme.com"]}));
        index.begin_approval_list();
        index.end_approval_list();
        let asked = request("inc-1", "1", json!([FINALIZER]));
        ask(&mut index, &asked).unwrap();
        tend(&mut index, &asked, NOON);
        let effect = index.apply_guardrail(guardrail(json!({"maxDuration": "30m"})));
        assert!(effect.policies.contains(&asked.key));
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Refused);
        assert!(index.policies.get(&asked.key).unwrap().intent.deleting);
        index.apply_guardrail(guardrail(json!({"maxDuration": "2h"})));
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Approved);
        assert!(!index.policies.get(&asked.key).unwrap().intent.deleting);
        index.remove_guardrail_named("g");
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Refused);
    }

    #[test]
    fn until_requests_are_listed_nobody_touches_what_belongs_to_one() {
        let mut index = index(json!({"maxDuration": "4h"}));
        let service = RunService::new("acme-prod", "europe-west1", "web");
        let asked = request("inc-1", "1", json!([FINALIZER]));
        let id = asked.id();
        let grant = asked.declared(at("2026-11-26T13:00:00Z")).grant;
        let ledger = Ledger {
            lines: [(grant.clone(), [id.clone()].into())].into(),
            ..Ledger::default()
        };
        index.set_ledger(&service, &ledger, Version::new("1"));
        let state = |index: &Index| index.owners(&service)[&grant][&id];
        assert_eq!(state(&index), OwnerState::Unread);
        // A list of policies says nothing of requests.
        index.begin_policy_list();
        index.end_policy_list();
        assert_eq!(state(&index), OwnerState::Unread);
        index.begin_request_list();
        let effect = index.end_request_list();
        assert!(effect.services.contains(&service));
        assert!(matches!(state(&index), OwnerState::Leaving(_)));
    }

    #[test]
    fn it_is_known_why_access_on_request_is_taken_back() {
        let service = RunService::new("acme-prod", "europe-west1", "web");
        let end = at("2026-11-26T13:00:00Z");
        for (phase, cause) in [
            (RequestPhase::Ended, RevokeCause::Expired),
            (RequestPhase::Refused, RevokeCause::Refused),
            (RequestPhase::Denied, RevokeCause::Denied),
        ] {
            let mut index = index(json!({"maxDuration": "4h"}));
            let asked = request("inc-1", "1", json!([FINALIZER]));
            let over = InvokerAccessRequestStatus {
                phase: Some(phase),
                until: Some(Time(end)),
                ..InvokerAccessRequestStatus::default()
            };
            index
                .apply_request(asked.clone(), over, Duration::ZERO)
                .unwrap();
            let id = index.policies.get(&asked.key).unwrap().intent.id.clone();
            let grant = asked.declared(end).grant;
            let ledger = Ledger {
                lines: [(grant.clone(), [id.clone()].into())].into(),
                ..Ledger::default()
            };
            index.set_ledger(&service, &ledger, Version::new("1"));
            let state = index.owners(&service)[&grant][&id];
            assert_eq!(state, OwnerState::Leaving(cause), "{phase:?}");
        }
    }

    #[test]
    fn a_finalizer_holds_nobody_who_was_given_nothing() {
        let mut index = index(json!({"maxDuration": "4h"}));
        let asked = request("inc-1", "1", json!([FINALIZER]));
        ask(&mut index, &asked).unwrap();
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Pending);
        assert_eq!(index.bound_for_nothing(&asked.key), None, "not over");
        assert_eq!(
            tend(&mut index, &asked, "2026-12-03T12:00:00Z"),
            RequestPhase::Ended
        );
        assert_eq!(index.bound_for_nothing(&asked.key), Some(asked.id()));
        // What belongs to it, whatever its status says, is taken back first.
        let service = RunService::new("acme-prod", "europe-west1", "web");
        let grant = asked.declared(at("2026-11-26T13:00:00Z")).grant;
        let ledger = Ledger {
            lines: [(grant, [asked.id()].into())].into(),
            ..Ledger::default()
        };
        index.set_ledger(&service, &ledger, Version::new("1"));
        assert_eq!(index.bound_for_nothing(&asked.key), None);
    }

    #[test]
    fn nobody_requests_access_for_a_protected_member() {
        let mut index = index(json!({"maxDuration": "4h", "autoApprove": ["*@acme.com"]}));
        index.begin_approval_list();
        index.end_approval_list();
        index.settings.protected = vec!["user:ADA@*".into()];
        let asked = request("inc-1", "1", json!([]));
        ask(&mut index, &asked).unwrap();
        assert_eq!(tend(&mut index, &asked, NOON), RequestPhase::Refused);
        let message = index.requests.stored(&asked.key).unwrap().message.clone();
        let message = message.unwrap();
        assert!(
            message.contains("is a protected member (--protected-member"),
            "{message}"
        );
    }

    #[test]
    fn what_stays_although_it_is_to_be_taken_back_is_said() {
        let service = RunService::new("acme-prod", "europe-west1", "web");
        let end = at("2026-11-26T13:00:00Z");
        for phase in [
            RequestPhase::Ended,
            RequestPhase::Denied,
            RequestPhase::Refused,
        ] {
            // No guardrail allows it any more.
            let mut index = Index::new(Settings::default());
            let asked = request("inc-1", "1", json!([FINALIZER]));
            let stored = InvokerAccessRequestStatus {
                phase: Some(phase),
                message: Some("because".into()),
                until: Some(Time(end)),
                ..InvokerAccessRequestStatus::default()
            };
            let taken = index.apply_request(asked.clone(), stored, Duration::ZERO);
            taken.unwrap();
            let says = |index: &Index, now: &str| {
                let next = index.request_status(&asked.key, Duration::ZERO, at(now));
                next.unwrap().message.unwrap()
            };
            let stays = "; user:ada@acme.com may still invoke until 2026-11-26T13:00:00Z";
            assert!(
                !says(&index, NOON).contains(stays),
                "{phase:?}: not protected"
            );
            index.settings.protected = vec!["user:ada@*".into()];
            assert!(
                !says(&index, NOON).contains(stays),
                "{phase:?}: not granted"
            );
            // Whose the line is does not matter: it is nobody's as soon as the request is over.
            let ledger = Ledger {
                lines: [(asked.declared(end).grant, [].into())].into(),
                ..Ledger::default()
            };
            index.set_ledger(&service, &ledger, Version::new("1"));
            let said = says(&index, NOON);
            assert_eq!(said.matches(stays).count(), 1, "{said}");
            tend(&mut index, &asked, NOON);
            let again = index.request_status(&asked.key, Duration::ZERO, at(NOON));
            assert_eq!(again, None, "{phase:?}: it is said once");
            assert!(
                !says(&index, "2026-11-26T13:00:00Z").contains(stays),
                "{phase:?}"
            );
        }
    }

    #[test]
    fn lists_of_policies_and_of_requests_take_nothing_from_each_other() {
        let mut index = index(json!({"maxDuration": "4h"}));
        let asked = request("inc-1", "1", json!([FINALIZER]));
        let granted = InvokerAccessRequestStatus {
            phase: Some(RequestPhase::Active),
            until: Some(Time(at("2026-11-26T13:00:00Z"))),
            ..InvokerAccessRequestStatus::default()
        };
        index
            .apply_request(asked.clone(), granted, Duration::ZERO)
            .unwrap();
        index.begin_policy_list();
        index.end_policy_list();
        assert!(index.policies.get(&asked.key).is_some());
        index.begin_request_list();
        index.end_request_list();
        assert!(index.policies.get(&asked.key).is_none());
    }

    #[test]
    fn a_namespace_has_so_many_and_the_next_one_is_told() {
        let mut index = index(json!({"maxDuration": "4h"}));
        for n in 0..MAX_OF_NAMESPACE {
            let (name, uid) = (format!("r{n}"), n.to_string());
            ask(&mut index, &request(&name, &uid, json!([]))).unwrap();
        }
        let more = request("more", "more", json!([]));
        let why = ask(&mut index, &more).unwrap_err();
        assert!(why.contains("256 InvokerAccessRequests"), "{why}");
        // The same again is no second one; one that goes makes room.
        ask(&mut index, &request("r0", "0", json!([]))).unwrap();
        index.remove_request(&PolicyKey::of_request("team-a", "r0"));
        ask(&mut index, &more).unwrap();
        // One that was granted is kept whatever else is asked for: it has to end.
        let granted = InvokerAccessRequestStatus {
            phase: Some(RequestPhase::Active),
            until: Some(Time(at("2026-11-26T13:00:00Z"))),
            ..InvokerAccessRequestStatus::default()
        };
        let held = request("held", "held", json!([FINALIZER]));
        index
            .apply_request(held.clone(), granted, Duration::ZERO)
            .unwrap();
        assert!(index.policies.get(&held.key).is_some());
    }
}
