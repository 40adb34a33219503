//! Policies, and which services they mean.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;

use super::{Index, PolicyKey, RollbackState, discovery::Project, selector_impact::Reach};
use crate::{
    api::{
        FINALIZER, InvokerChangeSpec, InvokerPolicy, InvokerPolicyStatus, Reason, StatusSummary,
    },
    history,
    iam::RunService,
    intent::{AccountKey, Intent, PolicyId, Target, Terms},
    plan::{PolicyOnService, SelectorImpact},
    status::{DeniedTarget, Observation, StatusInput, compute_status},
};

/// One policy and what is known about it.
#[derive(Debug)]
pub struct Record {
    pub intent: Arc<Intent>,
    /// As the API server last had it.
    status: SerializedStatus,
    /// What the policy's metric series show.
    gauges: Gauges,
    /// What was last observed on each service.
    observations: HashMap<RunService, Box<Observation>>,
    /// Services that it means now and may touch: named, and selected from the last listing.
    targets: BTreeSet<RunService>,
    /// What its namespace has to satisfy.
    terms: Arc<Terms>,
    /// What it names and may not touch.
    denied: Box<[DeniedTarget]>,
    /// Services that its selectors match and that it may not touch.
    outside: usize,
    /// Services for which somebody agreed that a discovery may reach them.
    pub(super) released: HashSet<RunService>,
    /// How far its selectors reach, once somebody asked.
    pub(super) reach: Mutex<Option<Box<Reach>>>,
    rollback: RollbackState,
    /// Name of the last record of a change for it.
    last_change: Option<Arc<str>>,
    has_finalizer: bool,
    /// The object in the store cannot be read any more, and this is why; what was known of it
    /// stands still.
    unreadable: Option<Arc<str>>,
    /// When this state of the policy was first seen, for the time to convergence.
    declared_at: Duration,
}

/// A status as it is in the store, as JSON: ten thousand of them are kept, and hardly one is ever
/// read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SerializedStatus(Box<[u8]>);

impl SerializedStatus {
    pub fn of(status: &InvokerPolicyStatus) -> Self {
        Self(serde_json::to_vec(status).unwrap_or_default().into())
    }

    pub fn get(&self) -> InvokerPolicyStatus {
        serde_json::from_slice(&self.0).unwrap_or_default()
    }
}

/// What the operator itself wrote into the object of a policy.
struct Stored {
    status: SerializedStatus,
    gauges: Gauges,
    has_finalizer: bool,
}

impl Stored {
    fn of(policy: &InvokerPolicy) -> Self {
        let status = policy.status.clone().unwrap_or_default();
        let mut finalizers = policy.metadata.finalizers.iter().flatten();
        Self {
            status: SerializedStatus::of(&status),
            gauges: Gauges::of(&status),
            has_finalizer: finalizers.any(|f| f == FINALIZER),
        }
    }
}

/// The numbers behind the metric series of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub ready: bool,
    pub missing: i64,
    pub unexpected: i64,
}

impl Gauges {
    pub fn of(status: &InvokerPolicyStatus) -> Self {
        let ready = status
            .conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        let summary = status.summary.as_ref();
        let count = |f: fn(&StatusSummary) -> i64| summary.map_or(0, f);
        Self {
            ready,
            missing: count(|s| s.missing),
            unexpected: count(|s| s.unexpected),
        }
    }
}

impl Record {
    fn new(intent: Intent, stored: Stored, terms: Arc<Terms>, now: Duration) -> Self {
        Self {
            intent: Arc::new(intent),
            status: stored.status,
            gauges: stored.gauges,
            observations: HashMap::new(),
            targets: BTreeSet::new(),
            terms,
            denied: [].into(),
            outside: 0,
            released: HashSet::new(),
            reach: Mutex::default(),
            rollback: RollbackState::None,
            last_change: None,
            has_finalizer: stored.has_finalizer,
            unreadable: None,
            declared_at: now,
        }
    }

    /// The object again, its spec as before. Whether its status is another one.
    fn refresh(&mut self, stored: Stored) -> bool {
        self.has_finalizer = stored.has_finalizer;
        if self.status == stored.status {
            return false;
        }
        self.status = stored.status;
        // A replica that does not lead shows what the leader found.
        self.gauges = stored.gauges;
        true
    }

    /// Takes over what was known of the policy in its state before.
    fn inherit(&mut self, mut previous: Option<Self>) {
        let asked = &self.intent.rollbacks;
        self.rollback = match &mut previous {
            Some(p) if p.intent.rollbacks == *asked => std::mem::take(&mut p.rollback),
            _ if asked.is_empty() => RollbackState::None,
            _ => RollbackState::Loading,
        };
        if let Some(previous) = previous {
            self.observations = previous.observations;
            self.released = previous.released;
            self.last_change = previous.last_change;
        }
    }

    pub fn status(&self) -> &SerializedStatus {
        &self.status
    }
    pub fn gauges(&self) -> Gauges {
        self.gauges
    }
    pub fn targets(&self) -> &BTreeSet<RunService> {
        &self.targets
    }
    pub fn terms(&self) -> &Arc<Terms> {
        &self.terms
    }
    pub fn has_finalizer(&self) -> bool {
        self.has_finalizer
    }
    pub fn declared_at(&self) -> Duration {
        self.declared_at
    }
    pub fn observations(&self) -> impl Iterator<Item = (&RunService, &Observation)> {
        self.observations.iter().map(|(s, o)| (s, &**o))
    }
    pub fn observation(&self, service: &RunService) -> Option<&Observation> {
        self.observations.get(service).map(|o| &**o)
    }
    /// Whether a project may be listed for its sake.
    pub fn may_list(&self, project: &str) -> bool {
        self.terms.frozen().is_none() && self.terms.refuse_project(project).is_none()
    }
    /// What it names and may not touch.
    pub fn denied_targets(&self) -> &[DeniedTarget] {
        &self.denied
    }
    /// How many of its targets, or selectors, a guardrail denies.
    pub fn denied(&self) -> usize {
        self.denied.len()
    }
    /// How many services its selectors match that it may not touch.
    pub fn outside(&self) -> usize {
        self.outside
    }
    pub fn last_change(&self) -> Option<&str> {
        self.last_change.as_deref()
    }
    pub fn is_readable(&self) -> bool {
        self.unreadable.is_none()
    }
    /// What stands in for the spec on some services.
    pub fn rollbacks(&self) -> impl Iterator<Item = (&RunService, &Arc<crate::plan::Rollback>)> {
        self.rollback.all()
    }
}

/// What the targets of a policy come to.
#[derive(Debug, Default)]
struct Resolved {
    targets: BTreeSet<RunService>,
    denied: Box<[DeniedTarget]>,
    outside: usize,
}

/// What a change in the store sets in motion.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Services to reconcile because of it.
    pub services: BTreeSet<RunService>,
    /// Policies whose status may change.
    pub policies: BTreeSet<PolicyKey>,
    /// Projects that must be listed.
    pub lists: BTreeSet<Arc<str>>,
    /// Policies whose records to go back behind must be read.
    pub rollbacks: BTreeSet<PolicyKey>,
}

impl Effect {
    pub(super) fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.policies.extend(other.policies);
        self.lists.extend(other.lists);
        self.rollbacks.extend(other.rollbacks);
    }
}

/// The policies, found by what they mean.
#[derive(Debug, Default)]
pub struct Policies {
    records: HashMap<PolicyKey, Record>,
    by_service: HashMap<RunService, Vec<PolicyKey>>,
    by_uid: HashMap<Arc<str>, PolicyKey>,
    by_project: HashMap<Arc<str>, BTreeSet<PolicyKey>>,
    by_namespace: HashMap<Arc<str>, BTreeSet<PolicyKey>>,
    /// Objects that are there, cannot be read and never could: the uid of each.
    unreadable: HashMap<PolicyKey, Arc<str>>,
    listing: Option<HashSet<PolicyKey>>,
}

impl Policies {
    pub fn get(&self, key: &PolicyKey) -> Option<&Record> {
        self.records.get(key)
    }
    pub fn iter(&self) -> impl Iterator<Item = (&PolicyKey, &Record)> {
        self.records.iter()
    }
    pub fn by_uid(&self, uid: &str) -> Option<&Record> {
        self.by_uid.get(uid).and_then(|k| self.records.get(k))
    }
    /// Whether there is an object with this uid that cannot be read.
    pub fn is_unreadable(&self, uid: &str) -> bool {
        self.unreadable.values().any(|u| **u == *uid)
    }
    /// Policies that mean a service, in an order that does not depend on that of events.
    pub fn on(&self, service: &RunService) -> impl Iterator<Item = &Record> {
        self.by_service
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|k| self.records.get(k))
    }
    pub fn keys_of_project(&self, project: &str) -> impl Iterator<Item = &PolicyKey> {
        self.by_project.get(project).into_iter().flatten()
    }
    pub fn of_project(&self, project: &str) -> impl Iterator<Item = &Record> {
        self.keys_of_project(project)
            .filter_map(|k| self.records.get(k))
    }
    pub fn keys_of_namespace(&self, namespace: &str) -> impl Iterator<Item = &PolicyKey> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }
    pub fn projects(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_project.keys()
    }
    pub fn services(&self) -> impl Iterator<Item = &RunService> {
        self.by_service.keys()
    }
    pub fn means(&self, service: &RunService) -> bool {
        self.by_service.contains_key(service)
    }

    pub(super) fn get_mut(&mut self, key: &PolicyKey) -> Option<&mut Record> {
        self.records.get_mut(key)
    }

    fn link(&mut self, service: &RunService, key: &PolicyKey) {
        let keys = self
            .by_service
            .entry(service.clone())
            .or_insert_with(|| Vec::with_capacity(1));
        if let Err(place) = keys.binary_search(key) {
            keys.insert(place, key.clone());
        }
    }

    fn unlink(&mut self, service: &RunService, key: &PolicyKey) {
        if let Some(keys) = self.by_service.get_mut(service) {
            keys.retain(|k| k != key);
            if keys.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    fn insert(&mut self, key: PolicyKey, record: Record) {
        let intent = &record.intent;
        self.by_uid.insert(intent.id.uid.clone(), key.clone());
        self.by_project
            .entry(intent.project.clone())
            .or_default()
            .insert(key.clone());
        self.by_namespace
            .entry(key.namespace.clone())
            .or_default()
            .insert(key.clone());
        for service in &record.targets {
            self.link(service, &key);
        }
        self.records.insert(key, record);
    }

    /// Takes a record out of every map.
    fn take(&mut self, key: &PolicyKey) -> Option<Record> {
        fn drop_from(
            map: &mut HashMap<Arc<str>, BTreeSet<PolicyKey>>,
            of: &Arc<str>,
            key: &PolicyKey,
        ) {
            if let Some(keys) = map.get_mut(of) {
                keys.remove(key);
                if keys.is_empty() {
                    map.remove(of);
                }
            }
        }
        let record = self.records.remove(key)?;
        self.by_uid.remove(&record.intent.id.uid);
        drop_from(&mut self.by_project, &record.intent.project, key);
        drop_from(&mut self.by_namespace, &key.namespace, key);
        for service in &record.targets {
            self.unlink(service, key);
        }
        Some(record)
    }
}

impl Index {
    /// Takes in a policy as it is in the store. `now` is the time since the process began.
    pub fn apply_policy(&mut self, policy: &InvokerPolicy, now: Duration) -> (PolicyKey, Effect) {
        let mut intent = Intent::from_policy(policy);
        self.share_names(&mut intent);
        let key = intent.id.key();
        if let Some(seen) = &mut self.policies.listing {
            seen.insert(key.clone());
        }
        self.policies.unreadable.remove(&key);
        let mut effect = Effect::default();
        // Another object under the same name.
        let known = self.policies.get(&key).map(|r| r.intent.id.clone());
        if let Some(gone) = known.filter(|id| id.uid != intent.id.uid) {
            effect.merge(self.remove_policy(&gone));
        }
        intent.link_accounts(|account| self.accounts.email(account));
        let stored = Stored::of(policy);
        match self.policies.get_mut(&key) {
            Some(known) if known.unreadable.is_none() && same(&known.intent, &intent) => {
                if known.refresh(stored) {
                    effect.policies.insert(key.clone());
                }
            }
            _ => {
                let terms = self.guardrails.terms(&key.namespace);
                let record = Record::new(intent, stored, terms, now);
                effect.merge(self.put_record(&key, record));
            }
        }
        (key, effect)
    }

    /// Puts a new state of a policy in place of the old one, and says what follows.
    fn put_record(&mut self, key: &PolicyKey, mut record: Record) -> Effect {
        let mut effect = Effect::default();
        let intent = record.intent.clone();
        let Resolved {
            targets,
            denied,
            outside,
        } = self.resolve(&intent, &record.terms);
        let mut previous = self.policies.take(key);
        if let Some(previous) = &mut previous {
            self.accounts.unname(key, accounts(&previous.intent));
            let left = std::mem::take(&mut previous.targets);
            effect.services.extend(left);
        }
        self.accounts.name(key, accounts(&intent));
        effect.services.extend(targets.iter().cloned());
        // What it owns on services that it means no more is reconciled too.
        let owned = self.ledgers.owned_by(&intent.id.uid);
        effect.services.extend(owned.cloned());
        if self.needs_listing(&record, &targets, previous.as_ref().map(|p| &*p.intent)) {
            effect.lists.insert(intent.project.clone());
        }
        effect.policies.insert(key.clone());
        record.targets = targets;
        record.denied = denied;
        record.outside = outside;
        record.inherit(previous);
        if record.rollback.is_loading() {
            effect.rollbacks.insert(key.clone());
        }
        self.policies.insert(key.clone(), record);
        self.forget_what_it_means_no_more(key);
        self.release(key);
        effect
    }

    /// Whether the project has to be listed for a policy that is new or has changed.
    fn needs_listing(
        &self,
        record: &Record,
        targets: &BTreeSet<RunService>,
        previous: Option<&Intent>,
    ) -> bool {
        let intent = &record.intent;
        let project = self.projects.get(&intent.project);
        let unlisted = project.is_none_or(|p| !p.is_answered());
        let asked = previous.is_some_and(|p| p.requested_at != intent.requested_at);
        let allowed = record.terms.refuse_project(&intent.project).is_none();
        // What was edited can mean services that no listing was asked to keep.
        let edited = previous.is_none_or(|p| p.generation != intent.generation);
        let is_unknown = |s: &RunService| {
            let project = self.projects.get(&s.project);
            project.is_none_or(|p| p.info(s).is_none())
        };
        let reaches = || intent.has_selector() || targets.iter().any(is_unknown);
        allowed && !intent.suspended && (unlisted || asked || (edited && reaches()))
    }

    /// A policy object that cannot be read: what was known of it stands still, and nothing is done
    /// for it.
    pub fn apply_unreadable_policy(&mut self, key: &PolicyKey, uid: &str, why: &str) -> Effect {
        if let Some(seen) = &mut self.policies.listing {
            seen.insert(key.clone());
        }
        let mut effect = Effect::default();
        if let Some(other) = self.policies.get(key).filter(|r| *r.intent.id.uid != *uid) {
            let gone = other.intent.id.clone();
            effect.merge(self.remove_policy(&gone));
        }
        match self.policies.get_mut(key) {
            Some(record) => {
                record.unreadable = Some(why.into());
                effect.services.extend(record.targets.iter().cloned());
                effect.services.extend(self.ledgers.owned_by(uid).cloned());
            }
            None => {
                self.policies.unreadable.insert(key.clone(), uid.into());
            }
        }
        effect
    }

    /// An object that could not be read is gone.
    pub fn remove_unreadable_policy(&mut self, key: &PolicyKey, uid: &str) -> Effect {
        if self
            .policies
            .unreadable
            .get(key)
            .is_some_and(|u| **u == *uid)
        {
            self.policies.unreadable.remove(key);
        }
        let known = self
            .policies
            .get(key)
            .filter(|r| *r.intent.id.uid == *uid)
            .map(|r| r.intent.id.clone());
        let mut effect = known.map(|id| self.remove_policy(&id)).unwrap_or_default();
        effect.services.extend(self.ledgers.owned_by(uid).cloned());
        effect
    }

    /// Takes a policy out. The services that it meant, or that something belongs to it on, are to
    /// be reconciled.
    pub fn remove_policy(&mut self, id: &PolicyId) -> Effect {
        let key = id.key();
        if self
            .policies
            .get(&key)
            .is_none_or(|r| r.intent.id.uid != id.uid)
        {
            return Effect::default();
        }
        let Some(record) = self.policies.take(&key) else {
            return Effect::default();
        };
        let accounts = record
            .intent
            .accounts
            .iter()
            .flat_map(|a| &a.entries)
            .map(|e| &e.account);
        self.accounts.unname(&key, accounts);
        if self
            .policies
            .of_project(&record.intent.project)
            .next()
            .is_none()
        {
            self.projects.remove(&record.intent.project);
        }
        if self
            .policies
            .keys_of_namespace(&key.namespace)
            .next()
            .is_none()
        {
            self.guardrails.forget(&key.namespace);
        }
        let mut services = record.targets;
        services.extend(self.ledgers.owned_by(&id.uid).cloned());
        Effect {
            services,
            ..Effect::default()
        }
    }

    /// A list of policies begins.
    pub fn begin_policy_list(&mut self) {
        self.policies.listing = Some(HashSet::new());
    }

    /// The list is complete: what is not in it is gone.
    pub fn end_policy_list(&mut self) -> Effect {
        let Some(seen) = self.policies.listing.take() else {
            return Effect::default();
        };
        self.policies.unreadable.retain(|k, _| seen.contains(k));
        let gone = self
            .policies
            .iter()
            .filter(|(k, _)| !seen.contains(*k))
            .map(|(_, r)| r.intent.id.clone());
        let mut effect = Effect::default();
        for id in gone.collect::<BTreeSet<_>>() {
            effect.merge(self.remove_policy(&id));
        }
        effect
    }

    /// Finds the services of a policy anew. Returns those that it means now or meant before.
    pub(super) fn retarget(&mut self, key: &PolicyKey) -> BTreeSet<RunService> {
        let Some((intent, terms)) = self
            .policies
            .get(key)
            .map(|r| (r.intent.clone(), r.terms.clone()))
        else {
            return BTreeSet::new();
        };
        let Resolved {
            targets,
            denied,
            outside,
        } = self.resolve(&intent, &terms);
        let Some(record) = self.policies.get_mut(key) else {
            return BTreeSet::new();
        };
        let old = std::mem::replace(&mut record.targets, targets.clone());
        record.denied = denied;
        record.outside = outside;
        record.reach = Mutex::default();
        for service in old.difference(&targets) {
            self.policies.unlink(service, key);
        }
        for service in targets.difference(&old) {
            self.policies.link(service, key);
        }
        self.forget_what_it_means_no_more(key);
        old.union(&targets).cloned().collect()
    }

    /// What was observed for a policy where nothing is its business any more.
    fn forget_what_it_means_no_more(&mut self, key: &PolicyKey) {
        let Some(record) = self.policies.records.get_mut(key) else {
            return;
        };
        let (targets, uid) = (&record.targets, &record.intent.id.uid);
        record
            .observations
            .retain(|s, _| targets.contains(s) || self.ledgers.owns(uid, s));
        record.released.retain(|s| targets.contains(s));
    }

    /// The services that an intent means now, and of them those that it may touch.
    fn resolve(&self, intent: &Intent, terms: &Terms) -> Resolved {
        let mut resolved = Resolved::default();
        let mut denied = Vec::new();
        for target in &intent.targets {
            match target {
                Target::Named(service) => match terms.refuse_service(service) {
                    None => {
                        resolved.targets.insert(service.clone());
                    }
                    Some(refusal) => {
                        denied.push(DeniedTarget {
                            service: Some(service.clone()),
                            message: refusal.message,
                        });
                    }
                },
                Target::Selected { .. } => {
                    if let Some(refusal) = terms.refuse_project(&intent.project) {
                        denied.push(DeniedTarget {
                            service: None,
                            message: refusal.message,
                        });
                        continue;
                    }
                    let project = self.projects.get(&intent.project);
                    let found = project.into_iter().flat_map(|p| p.services.values());
                    for info in found.filter(|info| target.selects(info)) {
                        match terms.refuse_service(&info.service) {
                            None => {
                                resolved.targets.insert(info.service.clone());
                            }
                            Some(_) => resolved.outside += 1,
                        }
                    }
                }
            }
        }
        resolved.denied = denied.into();
        resolved
    }

    fn share_names(&mut self, intent: &mut Intent) {
        let names = &mut self.names;
        intent.id.namespace = names.share(&intent.id.namespace);
        intent.project = names.share(&intent.project);
        for target in &mut intent.targets {
            if let Target::Named(service) = target {
                service.project = names.share(&service.project);
                service.region = names.share(&service.region);
            }
        }
        for declared in &mut intent.declared {
            let grant = &mut declared.grant;
            grant.principal = grant.principal.shared(|t| names.share(t));
            grant.condition = grant.condition.as_ref().map(|c| names.share_condition(c));
        }
    }

    /// Services that are a policy's business: those that it means, and those where something still
    /// belongs to it.
    pub fn services_of(&self, key: &PolicyKey) -> BTreeSet<RunService> {
        let Some(record) = self.policies.get(key) else {
            return BTreeSet::new();
        };
        let owned = self.ledgers.owned_by(&record.intent.id.uid).cloned();
        record.targets.iter().cloned().chain(owned).collect()
    }

    /// Takes down what was observed for a policy. Services that a discovery may reach now come
    /// back.
    pub fn observe(
        &mut self,
        key: &PolicyKey,
        service: &RunService,
        observation: Observation,
    ) -> BTreeSet<RunService> {
        let Some(record) = self.policies.get(key) else {
            return BTreeSet::new();
        };
        let was_unseen = record.observation(service).is_none() && self.is_fresh(record, service);
        let Some(record) = self.policies.records.get_mut(key) else {
            return BTreeSet::new();
        };
        if record.targets.contains(service) || self.ledgers.owns(&record.intent.id.uid, service) {
            record
                .observations
                .insert(service.clone(), Box::new(observation));
        } else {
            record.observations.remove(service);
        }
        if let Some(record) = self.policies.get(key) {
            self.reach_changes(record, service, was_unseen);
        }
        self.release(key)
    }

    /// The finalizer of a policy was put on or taken off.
    pub fn set_finalizer(&mut self, id: &PolicyId, present: bool) {
        if let Some(record) = self
            .policies
            .get_mut(&id.key())
            .filter(|r| r.intent.id == *id)
        {
            record.has_finalizer = present;
        }
    }

    /// A status was computed: what the metrics show.
    pub fn set_gauges(&mut self, id: &PolicyId, gauges: Gauges) {
        if let Some(record) = self
            .policies
            .get_mut(&id.key())
            .filter(|r| r.intent.id == *id)
        {
            record.gauges = gauges;
        }
    }

    /// A status was written.
    pub fn set_status(&mut self, id: &PolicyId, status: SerializedStatus) {
        if let Some(record) = self
            .policies
            .get_mut(&id.key())
            .filter(|r| r.intent.id == *id)
        {
            record.status = status;
        }
    }

    /// A change was recorded for a policy. Returns whether it had an earlier one; `None`: there is
    /// no such policy.
    pub fn set_last_change(&mut self, key: &PolicyKey, uid: &str, name: &str) -> Option<bool> {
        let record = self
            .policies
            .get_mut(key)
            .filter(|r| *r.intent.id.uid == *uid)?;
        let earlier = record.last_change.is_some() || record.status.get().last_change.is_some();
        record.last_change = Some(name.into());
        Some(earlier)
    }

    /// The records that a policy wants to go back behind, as they were read: name and content, or
    /// why there is none.
    pub fn set_rollbacks(
        &mut self,
        key: &PolicyKey,
        asked: &[Arc<str>],
        found: Result<Vec<(Arc<str>, InvokerChangeSpec)>, Arc<str>>,
        now: Timestamp,
    ) -> BTreeSet<RunService> {
        let Some(record) = self
            .policies
            .get(key)
            .filter(|r| *r.intent.rollbacks == *asked)
        else {
            return BTreeSet::new();
        };
        let role = record.intent.role;
        let state = found.and_then(|changes| {
            let mut ways = HashMap::new();
            for (name, change) in changes {
                let way = history::rollback(name, &change, role, now).map_err(Arc::<str>::from)?;
                ways.insert(history::service(&change), Arc::new(way));
            }
            Ok(RollbackState::Ready(ways))
        });
        let Some(record) = self.policies.get_mut(key) else {
            return BTreeSet::new();
        };
        record.rollback = state.unwrap_or_else(RollbackState::Impossible);
        self.services_of(key)
    }

    /// Makes the declarations of policies anew from the links of ServiceAccounts as they are now.
    pub(super) fn relink(&mut self, keys: BTreeSet<PolicyKey>) -> Effect {
        let mut effect = Effect::default();
        for key in keys {
            let Some(record) = self.policies.records.get_mut(&key) else {
                continue;
            };
            Arc::make_mut(&mut record.intent).link_accounts(|account| self.accounts.email(account));
            effect.services.extend(record.targets.iter().cloned());
            effect.policies.insert(key);
        }
        effect
    }

    /// Policies of these namespaces under the terms as they are now.
    pub(super) fn under_new_terms(&mut self, namespaces: &BTreeSet<Arc<str>>) -> Effect {
        let mut effect = Effect::default();
        for namespace in namespaces {
            let keys: Vec<PolicyKey> = self
                .policies
                .keys_of_namespace(namespace)
                .cloned()
                .collect();
            let terms = self.guardrails.terms(namespace);
            for key in keys {
                let Some(record) = self.policies.get_mut(&key) else {
                    continue;
                };
                record.terms = terms.clone();
                let intent = record.intent.clone();
                // What was granted where it may not go any more is taken back.
                effect
                    .services
                    .extend(self.ledgers.owned_by(&intent.id.uid).cloned());
                effect.services.extend(self.retarget(&key));
                let unlisted = self
                    .projects
                    .get(&intent.project)
                    .is_none_or(|p| !p.is_answered());
                let allowed = terms.refuse_project(&intent.project).is_none();
                if allowed && (unlisted || intent.has_selector()) && !intent.suspended {
                    effect.lists.insert(intent.project.clone());
                }
                effect.policies.insert(key);
            }
        }
        effect
    }

    /// Why a policy cannot go back: a record says so, or is about a service that the policy does
    /// not mean now.
    fn rollback_obstacle(&self, record: &Record) -> Option<Arc<str>> {
        let names = |s: &RunService| record.denied.iter().any(|d| d.service.as_ref() == Some(s));
        // A selector that was not answered yet may still turn out to mean it.
        let means =
            |s: &RunService| record.targets.contains(s) || names(s) || self.may_select(record, s);
        let mut ways: Vec<_> = record.rollback.all().filter(|(s, _)| !means(s)).collect();
        ways.sort_unstable_by_key(|(s, _)| *s);
        let stray = ways.first().map(|(service, way)| {
            format!(
                "InvokerChange {} is about {service}, which this policy does not name; correct or remove the annotation {}",
                way.change,
                crate::api::ROLLBACK
            )
        });
        record.rollback.obstacle().cloned().or(stray.map(Arc::from))
    }

    /// Why nothing is done for a policy now, although it is enforced.
    pub(super) fn stopped(&self, record: &Record) -> Option<(Reason, Arc<str>)> {
        if let Some(why) = &record.unreadable {
            return Some((
                Reason::InvalidSpec,
                format!("the object cannot be read: {why}; apply it again as the current definition wants it").into(),
            ));
        }
        if let Some(why) = self
            .rollback_obstacle(record)
            .filter(|_| !record.intent.deleting)
        {
            return Some((Reason::InvalidSpec, why));
        }
        if let Some(refusal) = record.terms.frozen() {
            return Some((Reason::GuardrailViolated, refusal.message.into()));
        }
        if record.rollback.is_loading() && !record.intent.deleting {
            return Some((
                Reason::Progressing,
                "the records to go back behind are being read".into(),
            ));
        }
        if record.intent.accounts.is_none() || self.accounts.are_known() {
            return None;
        }
        let Some(why) = self.accounts.unreadable() else {
            return Some((
                Reason::Progressing,
                "the ServiceAccounts of this cluster are being read".into(),
            ));
        };
        let message = format!(
            "the ServiceAccounts of this cluster cannot be read: {why}; grant the operator list and watch on serviceaccounts"
        );
        Some((Reason::Unavailable, message.into()))
    }

    /// A policy's word on a service. `left`: it means the service no more, and something there
    /// still belongs to it.
    pub(super) fn word(
        &self,
        record: &Record,
        service: &RunService,
        left: bool,
    ) -> PolicyOnService {
        let mut word = PolicyOnService::new(record.intent.clone(), record.terms.clone());
        word.left = left;
        word.rollback = record
            .rollback
            .on(service)
            .filter(|_| !record.intent.deleting && !left)
            .cloned();
        word.stopped = self.stopped(record).map(|(_, why)| why);
        if !left && !self.is_established(record, service) {
            word.spread = self.spread(record);
        }
        word
    }

    /// Whether the finalizer has to be on a policy: its deletion revokes something, or will.
    pub fn needs_finalizer(&self, record: &Record) -> bool {
        let intent = &record.intent;
        // Also one that would let go: whether it still does is seen when it is deleted, and not
        // before.
        !intent.deleting && (intent.enforces() || self.owns_any(record))
    }

    /// Whether any grant belongs to a policy.
    pub fn owns_any(&self, record: &Record) -> bool {
        self.ledgers
            .owned_by(&record.intent.id.uid)
            .next()
            .is_some()
    }

    /// Whether nothing is left for which the finalizer should hold a policy.
    pub fn may_release(&self, record: &Record) -> bool {
        let intent = &record.intent;
        if !intent.deleting {
            return !self.needs_finalizer(record);
        }
        if intent.retains() {
            return true;
        }
        if record.unreadable.is_some() || self.owns_any(record) {
            return false;
        }
        if !intent.enforces() {
            return true;
        }
        let project = self.projects.get(&intent.project);
        let may_list = record.terms.refuse_project(&intent.project).is_none();
        if intent.has_selector() && may_list && project.is_none_or(|p| !p.is_answered()) {
            return false;
        }
        record
            .targets
            .iter()
            .all(|service| match record.observations.get(service) {
                Some(observation) if observation.answers(intent) => match &observation.result {
                    Ok(findings) => findings.unexpected.is_empty(),
                    Err(fault) => fault.class.row().gone,
                },
                _ => false,
            })
    }

    /// Selectors of a policy, by their place among its targets, that match no service. Where not
    /// every region was seen, or some match is outside of what the policy may touch, that is not
    /// known.
    fn unmatched(&self, record: &Record) -> Vec<usize> {
        let project = self.projects.get(&record.intent.project);
        if record.outside > 0 || !project.is_some_and(Project::knows_all) {
            return Vec::new();
        }
        let found = || record.targets.iter().filter_map(|s| self.info(s));
        let targets = record.intent.targets.iter().enumerate();
        targets
            .filter(|(_, t)| matches!(t, Target::Selected { .. }))
            .filter(|(_, t)| !found().any(|info| t.selects(info)))
            .map(|(place, _)| place)
            .collect()
    }

    /// The status that a policy should have now.
    pub fn status_of(
        &self,
        key: &PolicyKey,
        propagation: Duration,
        now: Timestamp,
    ) -> Option<InvokerPolicyStatus> {
        let record = self.policies.get(key)?;
        let intent = &record.intent;
        // Where it is not known whether its selectors mean a service, nothing is said of it.
        let concerned = self
            .services_of(key)
            .into_iter()
            .filter(|s| !self.may_select(record, s));
        let observations: BTreeMap<RunService, Option<&Observation>> = concerned
            .map(|s| (s.clone(), record.observation(&s)))
            .collect();
        let project = self.projects.get(&intent.project);
        let selecting =
            intent.has_selector() && record.terms.refuse_project(&intent.project).is_none();
        let back: Vec<(&RunService, &str)> =
            record.rollbacks().map(|(s, r)| (s, &*r.change)).collect();
        let reach = if record.targets.len() > record.terms.max_new_services() {
            self.reach(record)
        } else {
            None
        };
        let unmatched = self.unmatched(record);
        let input = StatusInput {
            intent,
            observations: &observations,
            unmatched: &unmatched,
            discovery: project.and_then(|p| p.fault()).filter(|_| selecting),
            discovering: selecting && project.is_none_or(|p| !p.is_answered()),
            denied: &record.denied,
            outside: record.outside,
            reach: reach.as_ref(),
            stopped: self.stopped(record),
            back: &back,
            last_change: record.last_change.as_deref(),
            propagation,
            now,
        };
        Some(compute_status(&input, &record.status.get()))
    }

    /// Forgets what was observed for the policies of these projects.
    pub(super) fn forget_observations(&mut self, among: &dyn Fn(&str) -> bool) {
        let keys: Vec<PolicyKey> = self
            .policies
            .iter()
            .filter(|(_, r)| among(&r.intent.project))
            .map(|(k, _)| k.clone())
            .collect();
        for key in keys {
            self.retarget(&key);
            let Some(record) = self.policies.get_mut(&key) else {
                continue;
            };
            record.observations.clear();
            record.released.clear();
            record.reach = Mutex::default();
        }
    }

    /// How far a discovery of a policy reaches, where that waits for approval: those services.
    pub fn reached(&self, key: &PolicyKey) -> BTreeSet<RunService> {
        let record = self
            .policies
            .get(key)
            .filter(|r| r.targets.len() > r.terms.max_new_services());
        match record.and_then(|r| self.reach(r)) {
            Some(reach) if matches!(reach.spread, SelectorImpact::Held { .. }) => reach.services,
            _ => BTreeSet::new(),
        }
    }
}

/// ServiceAccounts that a policy names.
fn accounts(intent: &Intent) -> impl Iterator<Item = &AccountKey> {
    let entries = intent.accounts.iter().flat_map(|a| &a.entries);
    entries.map(|e| &e.account)
}

/// Whether two states of a policy say the same.
fn same(a: &Intent, b: &Intent) -> bool {
    a.generation == b.generation
        && a.requested_at == b.requested_at
        && a.deleting == b.deleting
        && a.approvals == b.approvals
        && a.rollbacks == b.rollbacks
}
