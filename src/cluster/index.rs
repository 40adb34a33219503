//! Who targets what: from policies to services and back, with what was last found on each.
//!
//! A plain data structure behind one lock in the controller; every operation is short. It holds intents, not objects, so
//! that ten thousand policies fit into little memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::watch::Interner;
use crate::{
    api::{
        ConditionSpec, FINALIZER, InvokerLedger, InvokerLedgerSpec, InvokerPolicy, InvokerPolicyStatus, LedgerGrant,
        LedgerOwner, StatusSummary,
    },
    cloudrun::{Listing, Scope},
    fault::Fault,
    iam::{Condition, Grant, Principal, Role, RunService, ServiceInfo},
    intent::{Intent, PolicyId, Target},
    plan::Standing,
    status::{Facts, Look, fold},
};

/// Namespace and name.
pub type PolicyKey = (Arc<str>, Arc<str>);

/// One policy and what is known about it.
#[derive(Debug)]
pub struct Record {
    pub intent: Arc<Intent>,
    /// As the API server last had it.
    pub status: Told,
    /// What the policy's metric series show.
    pub gauges: Gauges,
    /// The last look at each service.
    pub looks: HashMap<RunService, Box<Look>>,
    /// Services it targets now: named, and selected from the last listing.
    pub services: BTreeSet<RunService>,
    pub finalizers: Vec<String>,
    /// When this state of the policy was first seen, for the time to convergence.
    pub declared_at: tokio::time::Instant,
}

/// A status as it was last told, as JSON: ten thousand of them are kept, and hardly one is ever looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(Box<[u8]>);

impl Told {
    pub fn of(status: &InvokerPolicyStatus) -> Self {
        Self(serde_json::to_vec(status).unwrap_or_default().into())
    }

    pub fn get(&self) -> InvokerPolicyStatus {
        serde_json::from_slice(&self.0).unwrap_or_default()
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
        let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let summary = status.summary.as_ref();
        let count = |f: fn(&StatusSummary) -> i64| summary.map_or(0, f);
        Self { ready, missing: count(|s| s.missing), unexpected: count(|s| s.unexpected) }
    }
}

impl Record {
    pub fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|f| f == FINALIZER)
    }
}

/// A grant that the operator made, and for whom.
pub type Ledger = BTreeMap<Grant, BTreeSet<LedgerOwner>>;

/// A [`Ledger`] line in the form in which ten thousand of them are kept.
#[derive(Debug)]
struct Remembered {
    grant: Grant,
    owners: Box<[Arc<LedgerOwner>]>,
}

/// What listing a project showed.
#[derive(Debug, Default)]
pub struct Project {
    pub services: HashMap<RunService, ServiceInfo>,
    pub fault: Option<Fault>,
    pub listed_at: Option<Timestamp>,
}

/// What an update of a policy sets in motion.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Services to look at because of a declaration.
    pub services: BTreeSet<RunService>,
    /// The project must be listed again now.
    pub list: Option<Arc<str>>,
    /// The status in the store is not what it should be.
    pub status: bool,
}

/// The index.
#[derive(Debug, Default)]
pub struct Index {
    policies: HashMap<PolicyKey, Record>,
    by_service: HashMap<RunService, Vec<PolicyKey>>,
    by_uid: HashMap<Arc<str>, PolicyKey>,
    by_project: HashMap<Arc<str>, BTreeSet<PolicyKey>>,
    ledgers: HashMap<RunService, Box<[Remembered]>>,
    /// Services with a ledger entry of a policy, by its uid.
    by_owner: HashMap<Arc<str>, BTreeSet<RunService>>,
    projects: HashMap<Arc<str>, Project>,
    names: Interner,
    /// What a list in progress has shown.
    listed: Option<HashSet<PolicyKey>>,
    listed_ledgers: Option<HashSet<RunService>>,
}

impl Index {
    pub fn record(&self, key: &PolicyKey) -> Option<&Record> {
        self.policies.get(key)
    }
    pub fn record_mut(&mut self, key: &PolicyKey) -> Option<&mut Record> {
        self.policies.get_mut(key)
    }
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyKey, &Record)> {
        self.policies.iter()
    }
    pub fn project(&self, name: &str) -> Option<&Project> {
        self.projects.get(name)
    }
    pub fn info(&self, service: &RunService) -> Option<&ServiceInfo> {
        self.projects.get(&service.project)?.services.get(service)
    }
    pub fn ledger(&self, service: &RunService) -> Ledger {
        let lines = self.ledgers.get(service).into_iter().flatten();
        lines.map(|l| (l.grant.clone(), l.owners.iter().map(|o| LedgerOwner::clone(o)).collect())).collect()
    }
    /// Every service that a policy targets.
    pub fn targeted(&self) -> impl Iterator<Item = &RunService> {
        self.by_service.keys()
    }

    /// The policies that name a service.
    pub fn intents(&self, service: &RunService) -> Vec<Arc<Intent>> {
        let keys = self.by_service.get(service).into_iter().flatten();
        keys.filter_map(|k| self.policies.get(k)).map(|r| r.intent.clone()).collect()
    }

    /// What the operator granted on a service, and whether the policies behind it still stand.
    pub fn standing(&self, service: &RunService) -> BTreeMap<Grant, Standing> {
        let lines = self.ledgers.get(service).into_iter().flatten();
        lines
            .map(|line| {
                let standing = line.owners.iter().map(|o| self.standing_of(&o.uid)).max().unwrap_or(Standing::Gone);
                (line.grant.clone(), standing)
            })
            .collect()
    }

    fn standing_of(&self, uid: &str) -> Standing {
        let Some(record) = self.by_uid.get(uid).and_then(|k| self.policies.get(k)) else { return Standing::Gone };
        let intent = &record.intent;
        match (intent.enforces(), intent.deleting) {
            // Deleted with Retain: what it granted is let go.
            (true, true) if !intent.revokes_on_delete() => Standing::Gone,
            (true, _) => Standing::Enforcing,
            (false, true) => Standing::Gone,
            (false, false) => Standing::Passive,
        }
    }

    /// Takes in a policy as it is in the store.
    pub fn apply_policy(&mut self, policy: &InvokerPolicy, now: tokio::time::Instant) -> (PolicyKey, Effect) {
        let mut intent = Intent::from_policy(policy);
        self.share_names(&mut intent);
        let key: PolicyKey = (intent.id.namespace.clone(), intent.id.name.clone());
        if let Some(seen) = &mut self.listed {
            seen.insert(key.clone());
        }
        let mut effect = Effect::default();
        let (status, gauges) = match &policy.status {
            Some(status) => (Told::of(status), Gauges::of(status)),
            None => (Told::of(&InvokerPolicyStatus::default()), Gauges::default()),
        };
        let old = self.policies.get(&key);
        if let Some(old) = old.filter(|o| o.intent.id.uid != intent.id.uid) {
            // Another object under the same name.
            let gone = old.intent.id.clone();
            effect.services.extend(self.remove_policy(&gone));
        }
        let same = self.policies.get(&key).is_some_and(|old| {
            old.intent.generation == intent.generation
                && old.intent.requested_at == intent.requested_at
                && old.intent.deleting == intent.deleting
        });
        let intent = Arc::new(intent);
        let meta = &policy.metadata;
        let finalizers = meta.finalizers.clone().unwrap_or_default();
        if let (true, Some(record)) = (same, self.policies.get_mut(&key)) {
            record.finalizers = finalizers;
            if record.status != status {
                record.status = status;
                effect.status = true;
            }
            return (key, effect);
        }
        self.by_uid.insert(intent.id.uid.clone(), key.clone());
        self.by_project.entry(intent.project.clone()).or_default().insert(key.clone());
        let services = self.resolve(&intent);
        let previous = self.policies.remove(&key);
        if let Some(previous) = &previous {
            for service in previous.services.difference(&services) {
                self.unlink(service, &key);
            }
            effect.services.extend(previous.services.iter().cloned());
        }
        for service in &services {
            self.link(service, &key);
        }
        effect.services.extend(services.iter().cloned());
        // What it granted on services that it names no more is looked at too.
        effect.services.extend(self.owned_by(&intent.id.uid));
        let unlisted = self.projects.get(&intent.project).is_none_or(|p| p.listed_at.is_none());
        let asked = previous.as_ref().is_some_and(|p| p.intent.requested_at != intent.requested_at);
        if !intent.suspended && (unlisted || asked || (intent.has_selector() && previous.is_none())) {
            effect.list = Some(intent.project.clone());
        }
        effect.status = true;
        let mut looks = previous.map(|p| p.looks).unwrap_or_default();
        looks.retain(|s, _| services.contains(s));
        self.policies
            .insert(key.clone(), Record { intent, status, gauges, looks, services, finalizers, declared_at: now });
        (key, effect)
    }

    fn share_names(&mut self, intent: &mut Intent) {
        intent.id.namespace = self.names.share(&intent.id.namespace);
        intent.project = self.names.share(&intent.project);
        for target in &mut intent.targets {
            if let Target::Named(service) = target {
                service.project = self.names.share(&service.project);
                service.region = self.names.share(&service.region);
            }
        }
        for declared in &mut intent.declared {
            declared.grant.principal = declared.grant.principal.shared(|t| self.names.share(t));
        }
    }

    /// Services where the ledger has something of this policy.
    fn owned_by(&self, uid: &str) -> Vec<RunService> {
        self.by_owner.get(uid).into_iter().flatten().cloned().collect()
    }

    fn link(&mut self, service: &RunService, key: &PolicyKey) {
        let keys = self.by_service.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
        if !keys.contains(key) {
            keys.push(key.clone());
            // The order of policies must not depend on the order of events.
            keys.sort();
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

    /// The services that an intent means now.
    fn resolve(&self, intent: &Intent) -> BTreeSet<RunService> {
        let mut services = BTreeSet::new();
        for target in &intent.targets {
            match target {
                Target::Named(service) => {
                    services.insert(service.clone());
                }
                Target::Selected { .. } => {
                    let found = self.projects.get(&intent.project).into_iter().flat_map(|p| p.services.values());
                    services.extend(found.filter(|info| target.selects(info)).map(|info| info.service.clone()));
                }
            }
        }
        if intent.deleting {
            services.extend(self.owned_by(&intent.id.uid));
        }
        services
    }

    /// Takes a policy out; returns the services that it named.
    pub fn remove_policy(&mut self, id: &PolicyId) -> BTreeSet<RunService> {
        let key = (id.namespace.clone(), id.name.clone());
        if self.policies.get(&key).is_none_or(|r| r.intent.id.uid != id.uid) {
            return BTreeSet::new();
        }
        let Some(record) = self.policies.remove(&key) else { return BTreeSet::new() };
        self.by_uid.remove(&record.intent.id.uid);
        if let Some(keys) = self.by_project.get_mut(&record.intent.project) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_project.remove(&record.intent.project);
                self.projects.remove(&record.intent.project);
            }
        }
        for service in &record.services {
            self.unlink(service, &key);
        }
        let mut touched = record.services;
        touched.extend(self.owned_by(&id.uid));
        touched
    }

    /// A list of policies begins.
    pub fn begin_list(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// The list is complete; returns the services of policies that went meanwhile.
    pub fn end_list(&mut self) -> BTreeSet<RunService> {
        let Some(seen) = self.listed.take() else { return BTreeSet::new() };
        let gone: Vec<PolicyId> =
            self.policies.iter().filter(|(k, _)| !seen.contains(*k)).map(|(_, r)| r.intent.id.clone()).collect();
        gone.iter().flat_map(|id| self.remove_policy(id)).collect()
    }

    pub fn begin_ledger_list(&mut self) {
        self.listed_ledgers = Some(HashSet::new());
    }

    pub fn end_ledger_list(&mut self) {
        if let Some(seen) = self.listed_ledgers.take() {
            let gone: Vec<RunService> = self.ledgers.keys().filter(|s| !seen.contains(*s)).cloned().collect();
            for service in &gone {
                self.set_ledger(service, Ledger::new());
            }
        }
    }

    /// Takes in a ledger entry as it is in the store. Entries that cannot be read are left out: what is not remembered
    /// is not revoked.
    pub fn apply_ledger(&mut self, entry: &InvokerLedger) {
        let service = service_of(entry);
        if let Some(seen) = &mut self.listed_ledgers {
            seen.insert(service.clone());
        }
        let grants: Ledger = entry
            .spec
            .grants
            .iter()
            .filter_map(|g| {
                let condition = g.condition.as_ref().map(|c| {
                    Arc::new(Condition {
                        title: c.title.clone(),
                        description: c.description.clone(),
                        expression: c.expression.clone(),
                    })
                });
                let grant =
                    Grant { principal: Principal::from_live(&g.member), role: Role::from_name(&g.role)?, condition };
                Some((grant, g.owners.iter().cloned().collect()))
            })
            .collect();
        self.set_ledger(&service, grants);
    }

    pub fn remove_ledger(&mut self, entry: &InvokerLedger) {
        self.set_ledger(&service_of(entry), Ledger::new());
    }

    /// Puts a ledger in place that was just written, without waiting for the watch.
    pub fn set_ledger(&mut self, service: &RunService, ledger: Ledger) {
        for line in self.ledgers.remove(service).into_iter().flatten() {
            for owner in &line.owners {
                if let Some(services) = self.by_owner.get_mut(owner.uid.as_str()) {
                    services.remove(service);
                    if services.is_empty() {
                        self.by_owner.remove(owner.uid.as_str());
                    }
                }
            }
        }
        if ledger.is_empty() {
            return;
        }
        // One copy of an owner for all of its lines.
        let mut owners: BTreeMap<LedgerOwner, Arc<LedgerOwner>> = BTreeMap::new();
        let mut lines = Vec::with_capacity(ledger.len());
        for (mut grant, by) in ledger {
            grant.principal = grant.principal.shared(|t| self.names.share(t));
            let by = by.into_iter().map(|o| owners.entry(o.clone()).or_insert_with(|| Arc::new(o)).clone()).collect();
            lines.push(Remembered { grant, owners: by });
        }
        for owner in owners.keys() {
            self.by_owner.entry(owner.uid.as_str().into()).or_default().insert(service.clone());
        }
        self.ledgers.insert(service.clone(), lines.into());
    }

    /// Services that the ledger knows and no policy targets.
    pub fn orphans(&self) -> Vec<RunService> {
        self.ledgers.keys().filter(|s| !self.by_service.contains_key(*s)).cloned().collect()
    }

    /// What to list of a project: one region each if that is all that is asked for, else every region at once.
    pub fn scopes(&self, project: &str) -> Vec<Scope> {
        let mut regions: BTreeSet<Arc<str>> = BTreeSet::new();
        for key in self.by_project.get(project).into_iter().flatten() {
            let Some(record) = self.policies.get(key) else { continue };
            for target in &record.intent.targets {
                match target {
                    Target::Named(service) => {
                        regions.insert(service.region.clone());
                    }
                    Target::Selected { regions: Some(some), .. } => regions.extend(some.iter().cloned()),
                    Target::Selected { regions: None, .. } => return vec![Scope::AllRegions],
                }
            }
        }
        // One call over all regions is cheaper than many.
        if regions.len() > 1 { vec![Scope::AllRegions] } else { regions.into_iter().map(Scope::Region).collect() }
    }

    /// Projects that some policy is about, with the shortest interval asked for.
    pub fn project_interval(&self, project: &str) -> Option<std::time::Duration> {
        let keys = self.by_project.get(project)?;
        keys.iter()
            .filter_map(|k| self.policies.get(k))
            .filter(|r| !r.intent.suspended)
            .map(|r| r.intent.interval)
            .min()
    }

    /// Takes in a listing. Returns the services to look at, and the policies whose status changes.
    pub fn apply_listing(
        &mut self,
        project: &Arc<str>,
        result: Result<Listing, Fault>,
        now: Timestamp,
    ) -> (BTreeSet<RunService>, Vec<PolicyKey>) {
        let mut touched = BTreeSet::new();
        let entry = self.projects.entry(project.clone()).or_default();
        let keys: Vec<PolicyKey> = self.by_project.get(project).into_iter().flatten().cloned().collect();
        let listing = match result {
            Ok(listing) => listing,
            Err(fault) => {
                let news = entry.fault.as_ref().is_none_or(|f| f.class != fault.class) || entry.listed_at.is_none();
                entry.fault = Some(fault);
                entry.listed_at.get_or_insert(now);
                return (touched, if news { keys } else { vec![] });
            }
        };
        let first = entry.listed_at.is_none() || entry.fault.is_some();
        entry.fault = None;
        entry.listed_at = Some(now);
        let mut found: HashMap<RunService, ServiceInfo> = HashMap::with_capacity(listing.services.len());
        for mut info in listing.services {
            info.service.project = project.clone();
            info.service.region = self.names.share(&info.service.region);
            found.insert(info.service.clone(), info);
        }
        // A region that did not answer is unknown, not empty.
        let before = std::mem::take(&mut entry.services);
        for (service, info) in before.iter().filter(|(s, _)| listing.unreachable.contains(&*s.region)) {
            found.entry(service.clone()).or_insert_with(|| info.clone());
        }
        for (service, info) in &found {
            match before.get(service) {
                // The first listing after a start says nothing new about services that are being looked at anyway.
                None if first => {}
                Some(old) if old.uid == info.uid && old.invoker_iam_disabled == info.invoker_iam_disabled => {}
                _ => {
                    touched.insert(service.clone());
                }
            }
            if first && info.invoker_iam_disabled {
                touched.insert(service.clone());
            }
        }
        touched.extend(before.keys().filter(|s| !found.contains_key(*s)).cloned());
        entry.services = found;
        let mut changed = Vec::new();
        for key in &keys {
            let Some(intent) = self.policies.get(key).map(|r| r.intent.clone()) else { continue };
            if !intent.has_selector() {
                continue;
            }
            let services = self.resolve(&intent);
            let Some(record) = self.policies.get_mut(key) else { continue };
            if record.services != services || first {
                changed.push(key.clone());
            }
            let old = std::mem::replace(&mut record.services, services.clone());
            record.looks.retain(|s, _| services.contains(s));
            for service in old.difference(&services) {
                self.unlink(service, key);
                touched.insert(service.clone());
            }
            for service in services.difference(&old) {
                self.link(service, key);
                touched.insert(service.clone());
            }
        }
        touched.retain(|s| self.by_service.contains_key(s) || self.ledgers.contains_key(s));
        // Only what somebody is about is kept; the rest would be memory for nothing.
        let wanted = |s: &RunService| self.by_service.contains_key(s);
        if let Some(entry) = self.projects.get_mut(project) {
            entry.services.retain(|s, _| wanted(s));
        }
        (touched, changed)
    }

    /// The status that a policy should have now.
    pub fn status_of(
        &self,
        key: &PolicyKey,
        propagation: std::time::Duration,
        now: Timestamp,
    ) -> Option<InvokerPolicyStatus> {
        let record = self.policies.get(key)?;
        let looks: BTreeMap<RunService, Option<&Look>> =
            record.services.iter().map(|s| (s.clone(), record.looks.get(s).map(|l| &**l))).collect();
        let project = self.projects.get(&record.intent.project);
        let selecting = record.intent.has_selector();
        let facts = Facts {
            intent: &record.intent,
            looks: &looks,
            discovery: project.and_then(|p| p.fault.as_ref()).filter(|_| selecting),
            discovering: selecting && project.is_none_or(|p| p.listed_at.is_none()),
            propagation,
            now,
        };
        Some(fold(&facts, &record.status.get()))
    }
}

fn service_of(entry: &InvokerLedger) -> RunService {
    RunService::new(entry.spec.project.as_str(), entry.spec.region.as_str(), entry.spec.service.as_str())
}

/// A ledger as it is stored.
pub fn ledger_spec(service: &RunService, ledger: &Ledger) -> InvokerLedgerSpec {
    InvokerLedgerSpec {
        project: service.project.to_string(),
        region: service.region.to_string(),
        service: service.name.to_string(),
        grants: ledger
            .iter()
            .map(|(g, owners)| LedgerGrant {
                role: g.role.as_str().into(),
                member: g.principal.as_str().into(),
                condition: g.condition.as_ref().map(|c| ConditionSpec {
                    title: c.title.clone(),
                    description: c.description.clone(),
                    expression: c.expression.clone(),
                }),
                owners: owners.iter().cloned().collect(),
            })
            .collect(),
    }
}
