//! Policies, and which services they mean.

mod record;
mod standing;
mod targets;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{Index, PolicyKey};
use crate::{
    api::InvokerPolicy,
    iam::RunService,
    intent::{Intent, PolicyId},
};

use record::Stored;
pub use record::{Gauges, Record, SerializedStatus};
use targets::{Resolved, accounts};

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
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.policies.extend(other.policies);
        self.lists.extend(other.lists);
        self.rollbacks.extend(other.rollbacks);
    }
}

/// The policies, found by what they mean.
#[derive(Debug, Default)]
pub struct Policies {
    records: HashMap<PolicyKey, Box<Record>>,
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
        self.records.get(key).map(Box::as_ref)
    }
    pub fn iter(&self) -> impl Iterator<Item = (&PolicyKey, &Record)> {
        self.records.iter().map(|(key, record)| (key, &**record))
    }
    pub fn by_uid(&self, uid: &str) -> Option<&Record> {
        self.by_uid.get(uid).and_then(|k| self.get(k))
    }
    /// Whether there is an object with this uid that cannot be read.
    pub fn is_unreadable(&self, uid: &str) -> bool {
        self.unreadable.values().any(|u| **u == *uid)
    }
    /// Policies that mean a service, in an order that does not depend on that of events.
    /// In their order.
    pub fn keys_on(&self, service: &RunService) -> &[PolicyKey] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }
    pub fn on(&self, service: &RunService) -> impl Iterator<Item = &Record> {
        self.by_service
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|k| self.get(k))
    }
    pub fn keys_of_project(&self, project: &str) -> impl Iterator<Item = &PolicyKey> {
        self.by_project.get(project).into_iter().flatten()
    }
    pub fn of_project(&self, project: &str) -> impl Iterator<Item = &Record> {
        self.keys_of_project(project).filter_map(|k| self.get(k))
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
        self.records.get_mut(key).map(Box::as_mut)
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
        self.records.insert(key, Box::new(record));
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
        Some(*record)
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
        self.forget_namespace(&key.namespace);
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
        self.end_list_of(&seen, false)
    }

    /// A list of policies, or of requests, was complete with those that were seen.
    pub(in crate::index) fn end_list_of(
        &mut self,
        seen: &HashSet<PolicyKey>,
        requests: bool,
    ) -> Effect {
        let is_gone = |k: &PolicyKey| k.request().is_some() == requests && !seen.contains(k);
        self.policies.unreadable.retain(|k, _| !is_gone(k));
        let gone = self
            .policies
            .iter()
            .filter(|(k, _)| is_gone(k))
            .map(|(_, r)| r.intent.id.clone());
        let mut effect = Effect::default();
        for id in gone.collect::<BTreeSet<_>>() {
            effect.merge(self.remove_policy(&id));
        }
        effect
    }

    /// What a namespace has to satisfy is not followed any more once nothing is declared there.
    pub(in crate::index) fn forget_namespace(&mut self, namespace: &str) {
        let is_empty = self.policies.keys_of_namespace(namespace).next().is_none();
        if is_empty && !self.requests.are_in(namespace) {
            self.guardrails.forget(namespace);
        }
    }
}

/// Whether two states of a policy say the same.
fn same(a: &Intent, b: &Intent) -> bool {
    a.generation == b.generation
        && a.requested_at == b.requested_at
        && a.deleting == b.deleting
        && a.approvals == b.approvals
        && a.rollbacks == b.rollbacks
}
