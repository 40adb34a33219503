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
        ConditionSpec, FINALIZER, InvokerChangeSpec, InvokerGuardrail, InvokerLedger, InvokerLedgerSpec, InvokerPolicy,
        InvokerPolicyStatus, LedgerGrant, LedgerOwner, Reason, StatusSummary,
    },
    cloudrun::{Listing, Scope},
    fault::Fault,
    history,
    iam::{Condition, Grant, Principal, Role, RunService, ServiceInfo},
    intent::{AccountKey, Guardrail, Intent, Limits, PolicyId, Target, Terms},
    plan::{OwnerState, PolicyOnService, Rollback, SelectorImpact, UnansweredSelectors, guard},
    status::{DeniedTarget, Observation, ReachedServices, StatusInput, compute_status},
};

/// Namespace and name.
pub type PolicyKey = (Arc<str>, Arc<str>);

/// One policy and what is known about it.
#[derive(Debug)]
pub struct Record {
    pub intent: Arc<Intent>,
    /// As the API server last had it.
    pub status: SerializedStatus,
    /// What the policy's metric series show.
    pub gauges: Gauges,
    /// The last look at each service.
    pub looks: HashMap<RunService, Box<Observation>>,
    /// Services it targets now and may touch: named, and selected from the last listing.
    pub services: BTreeSet<RunService>,
    /// What its namespace has to satisfy.
    pub terms: Arc<Terms>,
    /// What it names and may not touch.
    pub barred: Box<[DeniedTarget]>,
    /// Services that its selectors match and that it may not touch.
    pub outside: usize,
    /// Services for which somebody agreed that a discovery may reach them.
    released: HashSet<RunService>,
    back: RollbackState,
    /// Name of the last record of a change for it.
    pub last_change: Option<Arc<str>>,
    pub finalizers: Vec<String>,
    /// When this state of the policy was first seen, for the time to convergence.
    pub declared_at: tokio::time::Instant,
}

/// A status as it was last told, as JSON: ten thousand of them are kept, and hardly one is ever looked at.
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
    /// What stands in for the spec on some services.
    pub fn rollbacks(&self) -> impl Iterator<Item = (&RunService, &Arc<Rollback>)> {
        match &self.back {
            RollbackState::Ready(ways) => Some(ways.iter()),
            _ => None,
        }
        .into_iter()
        .flatten()
    }

    pub fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|f| f == FINALIZER)
    }
}

/// The way back that a policy asks for.
#[derive(Debug, Default)]
enum RollbackState {
    #[default]
    None,
    /// The records are still to be read; until then nothing is done for the policy.
    Loading,
    Ready(HashMap<RunService, Arc<Rollback>>),
    /// It cannot be gone, and this is why. Nothing is done for the policy: falling back to its spec would undo what
    /// somebody went back from.
    Impossible(Arc<str>),
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
    /// A listing went through since this process began.
    listed: bool,
    /// Regions that no listing has reached since this process began.
    unseen: BTreeSet<String>,
}

impl Project {
    /// Whether what is not known in a region is not there, as opposed to not seen yet.
    fn knows(&self, region: &str) -> bool {
        self.listed && !self.unseen.contains(region)
    }
}

/// What the targets of a policy come to.
#[derive(Debug, Default)]
struct Resolved {
    services: BTreeSet<RunService>,
    barred: Box<[DeniedTarget]>,
    outside: usize,
}

/// What an update of a policy, or of a guardrail, sets in motion.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Policies whose status may change.
    pub policies: Vec<PolicyKey>,
    /// Projects that must be listed because of a guardrail.
    pub lists: BTreeSet<Arc<str>>,
    /// Records that the policy wants to go back behind must be read.
    pub load: bool,
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
    guardrails: BTreeMap<Arc<str>, Arc<Guardrail>>,
    /// Of each namespace with policies; made anew when a guardrail changes.
    terms: HashMap<Arc<str>, Arc<Terms>>,
    limits: Limits,
    /// ServiceAccounts that are linked to a Google service account, with its e-mail.
    accounts: HashMap<AccountKey, Arc<str>>,
    accounts_state: AccountsState,
    /// Policies that name a ServiceAccount.
    by_account: HashMap<AccountKey, BTreeSet<PolicyKey>>,
    /// Services on which a removal waits for the listing of their project.
    waiting: BTreeSet<RunService>,
    names: Interner,
    /// What a list in progress has shown.
    listed: Option<HashSet<PolicyKey>>,
    listed_ledgers: Option<HashSet<RunService>>,
    listed_guardrails: Option<HashSet<Arc<str>>>,
    listed_accounts: Option<HashSet<AccountKey>>,
}

/// Whether the links of ServiceAccounts are known.
#[derive(Debug, Default, PartialEq, Eq)]
enum AccountsState {
    /// Not yet.
    #[default]
    Unknown,
    /// They cannot be read, and this is why.
    Unreadable(Arc<str>),
    Known,
}

impl Index {
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub fn record(&self, key: &PolicyKey) -> Option<&Record> {
        self.policies.get(key)
    }
    pub fn record_mut(&mut self, key: &PolicyKey) -> Option<&mut Record> {
        self.policies.get_mut(key)
    }
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyKey, &Record)> {
        self.policies.iter()
    }
    /// Every service that a policy names or that the ledger knows.
    pub fn services(&self) -> BTreeSet<RunService> {
        self.by_service.keys().chain(self.ledgers.keys()).cloned().collect()
    }
    /// Every project that a policy is about.
    pub fn projects(&self) -> BTreeSet<Arc<str>> {
        self.by_project.keys().cloned().collect()
    }
    /// Whether a policy is about a project.
    pub fn is_about(&self, project: &str) -> bool {
        self.by_project.contains_key(project)
    }
    /// Whether a policy means a service, or the ledger knows it.
    pub fn means(&self, service: &RunService) -> bool {
        self.by_service.contains_key(service) || self.ledgers.contains_key(service)
    }
    /// The services of a name, in whatever region, that a policy means.
    pub fn named(&self, project: &str, name: &str) -> Vec<RunService> {
        let fits = |s: &&RunService| *s.project == *project && *s.name == *name;
        let all: BTreeSet<&RunService> = self.by_service.keys().chain(self.ledgers.keys()).filter(fits).collect();
        all.into_iter().cloned().collect()
    }
    /// The services that policies mean, each with the shortest interval asked for.
    pub fn intervals(&self) -> impl Iterator<Item = (RunService, std::time::Duration)> {
        self.by_service.iter().filter_map(|(service, keys)| {
            let asked = keys.iter().filter_map(|k| self.policies.get(k)).filter(|r| !r.intent.suspended);
            Some((service.clone(), asked.map(|r| r.intent.interval).min()?))
        })
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
    /// The word of every policy that names a service.
    pub fn claims(&self, service: &RunService) -> Vec<PolicyOnService> {
        let keys = self.by_service.get(service).into_iter().flatten();
        keys.filter_map(|k| self.policies.get(k)).map(|record| self.claim(record, service)).collect()
    }

    fn claim(&self, record: &Record, service: &RunService) -> PolicyOnService {
        let mut claim = PolicyOnService::new(record.intent.clone(), record.terms.clone());
        match &record.back {
            RollbackState::Ready(ways) if !record.intent.deleting => claim.rollback = ways.get(service).cloned(),
            _ => {}
        }
        claim.stopped = self.stopped(record).map(|(_, why)| why);
        if !self.is_established(record, service) {
            claim.spread = self.reach(record).map(|r| r.spread);
        }
        claim
    }

    /// Whether something that a claim rests on is not known yet.
    pub fn is_loading(&self, service: &RunService) -> bool {
        let keys = self.by_service.get(service).into_iter().flatten();
        keys.filter_map(|k| self.policies.get(k)).any(|r| {
            let way_back = matches!(r.back, RollbackState::Loading) && !r.intent.deleting;
            way_back || (r.intent.accounts.is_some() && self.accounts_state != AccountsState::Known)
        })
    }

    /// A ServiceAccount as it is in the store, with the value of its annotation. Returns what that changes.
    pub fn apply_account(&mut self, account: AccountKey, email: Option<&str>) -> Effect {
        if let Some(seen) = &mut self.listed_accounts {
            seen.insert(account.clone());
        }
        let before = self.accounts.get(&account).map(|e| &**e);
        if before == email {
            return Effect::default();
        }
        match email {
            Some(email) => self.accounts.insert(account.clone(), email.into()),
            None => self.accounts.remove(&account),
        };
        let keys = self.by_account.get(&account).cloned().unwrap_or_default();
        self.relink(keys)
    }

    pub fn begin_account_list(&mut self) {
        self.listed_accounts = Some(HashSet::new());
    }

    /// The list of ServiceAccounts is complete.
    pub fn end_account_list(&mut self) -> Effect {
        if let Some(seen) = self.listed_accounts.take() {
            self.accounts.retain(|account, _| seen.contains(account));
        }
        self.accounts_state = AccountsState::Known;
        let keys = self.by_account.values().flatten().cloned().collect();
        self.relink(keys)
    }

    /// The ServiceAccounts cannot be read. What was known of them stays.
    pub fn accounts_broken(&mut self, why: &str) -> Effect {
        if self.accounts_state == AccountsState::Known {
            return Effect::default();
        }
        self.accounts_state = AccountsState::Unreadable(why.into());
        Effect { policies: self.by_account.values().flatten().cloned().collect(), ..Effect::default() }
    }

    /// Makes the declarations of policies anew from the links as they are now.
    fn relink(&mut self, keys: BTreeSet<PolicyKey>) -> Effect {
        let mut effect = Effect::default();
        for key in keys {
            let Some(record) = self.policies.get_mut(&key) else { continue };
            let intent = Arc::make_mut(&mut record.intent);
            intent.link_accounts(|account| self.accounts.get(account).map(|e| &**e));
            effect.services.extend(record.services.iter().cloned());
            effect.policies.push(key);
        }
        effect
    }

    /// Why nothing is done for a policy now, although it is enforced.
    fn stopped(&self, record: &Record) -> Option<(Reason, Arc<str>)> {
        match &record.back {
            RollbackState::Impossible(why) if !record.intent.deleting => {
                return Some((Reason::InvalidSpec, why.clone()));
            }
            _ => {}
        }
        if let Some(refusal) = record.terms.frozen() {
            return Some((Reason::GuardrailViolated, refusal.message.into()));
        }
        match &self.accounts_state {
            AccountsState::Unreadable(why) if record.intent.accounts.is_some() => {
                let message = format!(
                    "the ServiceAccounts of this cluster cannot be read: {why}; grant the operator list and watch on serviceaccounts"
                );
                Some((Reason::Unavailable, message.into()))
            }
            _ => None,
        }
    }

    /// Whether this policy has had a say on the service before: it named it, granted something there, found it as
    /// declared, or somebody agreed.
    fn is_established(&self, record: &Record, service: &RunService) -> bool {
        let intent = &record.intent;
        !intent.has_selector()
            || record.services.len() <= record.terms.max_new_services()
            || !intent.enforces()
            || intent.deleting
            || record.released.contains(service)
            || record.looks.get(service).is_some_and(|l| l.result.as_ref().is_ok_and(|s| s.in_sync()))
            || self.by_owner.get(&intent.id.uid).is_some_and(|s| s.contains(service))
            || intent.targets.iter().any(|t| matches!(t, Target::Named(s) if s == service))
    }

    /// How far the selectors of a policy reach beyond what it changed before, if that is too far.
    fn reach(&self, record: &Record) -> Option<ReachedServices> {
        let fresh: Vec<&RunService> = record.services.iter().filter(|s| !self.is_established(record, s)).collect();
        let unseen = fresh.iter().filter(|s| !record.looks.contains_key(**s)).count();
        let differs =
            |s: &RunService| record.looks.get(s).is_some_and(|l| l.result.as_ref().is_ok_and(|s| !s.in_sync()));
        let wanting: BTreeSet<RunService> = fresh.into_iter().filter(|s| differs(s)).cloned().collect();
        let spread = guard::spread(&record.intent, &wanting, unseen, record.terms.max_new_services())?;
        Some(ReachedServices { spread, services: wanting })
    }

    /// Services that a policy's selectors found and that wait for approval.
    pub fn reached(&self, key: &PolicyKey) -> BTreeSet<RunService> {
        let record = self.policies.get(key).filter(|r| r.services.len() > r.terms.max_new_services());
        match record.and_then(|r| self.reach(r)) {
            Some(ReachedServices { spread: SelectorImpact::Held { .. }, services }) => services,
            _ => BTreeSet::new(),
        }
    }

    /// Takes in that a look changed, or an approval: services that a discovery may reach now are returned.
    pub fn release(&mut self, key: &PolicyKey) -> BTreeSet<RunService> {
        let Some(record) = self.policies.get(key) else { return BTreeSet::new() };
        let fresh = |r: &RunService| !self.is_established(record, r);
        let free = match self.reach(record) {
            Some(ReachedServices { spread: SelectorImpact::Held { hash, .. }, services })
                if record.intent.approvals.contains(&hash) =>
            {
                services
            }
            Some(_) => return BTreeSet::new(),
            // Few enough; those that were seen while it was still being counted come up again.
            None => record.looks.keys().filter(|s| fresh(s)).cloned().collect(),
        };
        if let Some(record) = self.policies.get_mut(key) {
            record.released.extend(free.iter().cloned());
        }
        free
    }

    /// Hashes of plans on a service that somebody agreed to: on a policy that names it, or that granted something there.
    pub fn approvals(&self, service: &RunService) -> BTreeSet<Arc<str>> {
        let claiming = self.by_service.get(service).into_iter().flatten();
        let lines = self.ledgers.get(service).into_iter().flatten();
        let owning = lines.flat_map(|l| l.owners.iter()).filter_map(|o| self.by_uid.get(o.uid.as_str()));
        let records = claiming.chain(owning).filter_map(|k| self.policies.get(k));
        records.filter(|r| r.intent.enforces()).flat_map(|r| r.intent.approvals.iter().cloned()).collect()
    }

    /// The policies that something was granted for on a service.
    pub fn owners(&self, service: &RunService) -> BTreeSet<PolicyId> {
        let lines = self.ledgers.get(service).into_iter().flatten();
        lines
            .flat_map(|l| l.owners.iter())
            .map(|o| PolicyId {
                namespace: o.namespace.as_str().into(),
                name: o.name.as_str().into(),
                uid: o.uid.as_str().into(),
            })
            .collect()
    }

    /// What the operator granted on a service, and whether the policies behind it still stand.
    pub fn standing(&self, service: &RunService) -> BTreeMap<Grant, OwnerState> {
        let lines = self.ledgers.get(service).into_iter().flatten();
        lines
            .map(|line| {
                let standings = line.owners.iter().map(|o| self.standing_of(&o.uid, service));
                let standing = standings.max().unwrap_or(OwnerState::Gone);
                (line.grant.clone(), standing)
            })
            .collect()
    }

    /// Whether a policy's selectors may mean a service that they do not mean as far as is known: after a start, until the
    /// project was listed. What was granted there is not to be taken for left behind.
    fn may_select(&self, record: &Record, service: &RunService) -> bool {
        record.intent.has_selector()
            && record.intent.project == service.project
            && !record.services.contains(service)
            && record.terms.refuse_service(service).is_none()
            && self.projects.get(&service.project).is_none_or(|p| !p.knows(&service.region))
    }

    /// What policies list whose selectors may yet turn out to mean a service: it must not be taken away as if nobody listed it.
    pub fn unanswered(&self, service: &RunService) -> UnansweredSelectors {
        let known = self.projects.get(&service.project).is_some_and(|p| p.knows(&service.region));
        if known {
            return UnansweredSelectors::default();
        }
        let keys = self.by_project.get(&service.project).into_iter().flatten();
        let may = |t: &Target| match t {
            Target::Selected { regions, .. } => regions.as_ref().is_none_or(|r| r.contains(&service.region)),
            Target::Named(_) => false,
        };
        let records = keys
            .filter_map(|k| self.policies.get(k))
            .filter(|r| !r.intent.deleting && self.may_select(r, service) && r.intent.targets.iter().any(may));
        UnansweredSelectors {
            grants: records.flat_map(|r| r.intent.declared.iter().map(|d| d.grant.clone())).collect(),
            failed: self.projects.get(&service.project).is_some_and(|p| p.fault.is_some()),
        }
    }

    /// A removal on a service waits until the project is listed; then the service is looked at again. False: it is known by now.
    pub fn wait_for_listing(&mut self, service: &RunService) -> bool {
        let waits = !self.unanswered(service).grants.is_empty();
        if waits {
            self.waiting.insert(service.clone());
        }
        waits
    }

    fn standing_of(&self, uid: &str, service: &RunService) -> OwnerState {
        let Some(record) = self.by_uid.get(uid).and_then(|k| self.policies.get(k)) else { return OwnerState::Gone };
        let intent = &record.intent;
        if !intent.deleting && self.may_select(record, service) {
            return OwnerState::Passive;
        }
        match (intent.enforces() && self.stopped(record).is_none(), intent.deleting) {
            // Deleted with Retain: what it granted is let go.
            (true, true) if !intent.revokes_on_delete() => OwnerState::Gone,
            (true, _) => OwnerState::Enforcing,
            (false, true) => OwnerState::Gone,
            (false, false) => OwnerState::Passive,
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
            Some(status) => (SerializedStatus::of(status), Gauges::of(status)),
            None => (SerializedStatus::of(&InvokerPolicyStatus::default()), Gauges::default()),
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
                && old.intent.approvals == intent.approvals
                && old.intent.rollbacks == intent.rollbacks
        });
        intent.link_accounts(|account| self.accounts.get(account).map(|e| &**e));
        let intent = Arc::new(intent);
        let meta = &policy.metadata;
        let finalizers = meta.finalizers.clone().unwrap_or_default();
        if let (true, Some(record)) = (same, self.policies.get_mut(&key)) {
            record.finalizers = finalizers;
            if record.status != status {
                record.status = status;
                // A replica that does not lead shows what the leader found.
                record.gauges = gauges;
                effect.status = true;
            }
            return (key, effect);
        }
        self.forget_accounts(&key);
        for entry in intent.accounts.iter().flat_map(|a| &a.entries) {
            self.by_account.entry(entry.account.clone()).or_default().insert(key.clone());
        }
        self.by_uid.insert(intent.id.uid.clone(), key.clone());
        self.by_project.entry(intent.project.clone()).or_default().insert(key.clone());
        let terms = self.terms_of(&intent.id.namespace);
        let Resolved { services, barred, outside } = self.resolve(&intent, &terms);
        let mut previous = self.policies.remove(&key);
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
        let allowed = terms.refuse_project(&intent.project).is_none();
        // A selector that was edited can mean services that no listing was asked to keep.
        let edited = previous.as_ref().is_none_or(|p| p.intent.generation != intent.generation);
        if allowed && !intent.suspended && (unlisted || asked || (intent.has_selector() && edited)) {
            effect.list = Some(intent.project.clone());
        }
        effect.status = true;
        let back = match previous.as_mut() {
            Some(p) if p.intent.rollbacks == intent.rollbacks => std::mem::take(&mut p.back),
            _ if intent.rollbacks.is_empty() => RollbackState::None,
            _ => RollbackState::Loading,
        };
        effect.load = matches!(back, RollbackState::Loading);
        let (mut looks, released, last_change) =
            previous.map(|p| (p.looks, p.released, p.last_change)).unwrap_or_default();
        looks.retain(|s, _| services.contains(s));
        let record = Record {
            intent,
            status,
            gauges,
            looks,
            services,
            terms,
            barred,
            outside,
            released,
            back,
            last_change,
            finalizers,
            declared_at: now,
        };
        self.policies.insert(key.clone(), record);
        self.release(&key);
        (key, effect)
    }

    fn forget_accounts(&mut self, key: &PolicyKey) {
        let Some(record) = self.policies.get(key) else { return };
        for entry in record.intent.accounts.iter().flat_map(|a| &a.entries) {
            if let Some(keys) = self.by_account.get_mut(&entry.account) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_account.remove(&entry.account);
                }
            }
        }
    }

    fn terms_of(&mut self, namespace: &Arc<str>) -> Arc<Terms> {
        let terms = self.terms.entry(namespace.clone());
        terms.or_insert_with(|| Arc::new(Terms::of(namespace, self.guardrails.values(), self.limits))).clone()
    }

    /// Takes in a guardrail as it is in the store. While a list comes in, what follows from all of it follows at its end.
    pub fn apply_guardrail(&mut self, guardrail: Guardrail) -> Effect {
        let name = guardrail.name.clone();
        self.guardrails.insert(name.clone(), Arc::new(guardrail));
        match &mut self.listed_guardrails {
            Some(seen) => {
                seen.insert(name);
                Effect::default()
            }
            None => self.new_terms(),
        }
    }

    /// Takes in a guardrail that cannot be read: what was known of it holds on, and if nothing was, nobody knows what it
    /// forbids.
    pub fn unreadable_guardrail(&mut self, name: &str, why: String) -> Effect {
        match self.guardrails.get(name).cloned() {
            Some(known) => {
                if let Some(seen) = &mut self.listed_guardrails {
                    seen.insert(known.name.clone());
                }
                Effect::default()
            }
            None => self.apply_guardrail(Guardrail::unreadable(name.into(), why)),
        }
    }

    pub fn remove_guardrail(&mut self, object: &InvokerGuardrail) -> Effect {
        self.guardrails.remove(object.metadata.name.as_deref().unwrap_or_default());
        self.new_terms()
    }

    pub fn begin_guardrail_list(&mut self) {
        self.listed_guardrails = Some(HashSet::new());
    }

    /// The list is complete: what is not in it is gone.
    pub fn end_guardrail_list(&mut self) -> Effect {
        if let Some(seen) = self.listed_guardrails.take() {
            self.guardrails.retain(|name, _| seen.contains(name));
        }
        self.new_terms()
    }

    /// Every policy under the guardrails as they are now.
    fn new_terms(&mut self) -> Effect {
        self.terms.clear();
        let mut effect = Effect { status: true, ..Effect::default() };
        let keys: Vec<PolicyKey> = self.policies.keys().cloned().collect();
        for key in &keys {
            let terms = self.terms_of(&key.0);
            let Some(record) = self.policies.get_mut(key) else { continue };
            record.terms = terms;
            let intent = record.intent.clone();
            // What was granted where it may not go any more is taken back.
            effect.services.extend(self.owned_by(&intent.id.uid));
            effect.services.extend(self.retarget(key));
            let unlisted = self.projects.get(&intent.project).is_none_or(|p| p.listed_at.is_none());
            let allowed = self.policies.get(key).is_some_and(|r| r.terms.refuse_project(&intent.project).is_none());
            if allowed && (unlisted || intent.has_selector()) && !intent.suspended {
                effect.lists.insert(intent.project.clone());
            }
        }
        effect.policies = keys;
        effect
    }

    /// Finds the services of a policy anew. Returns those that it names now or named before.
    fn retarget(&mut self, key: &PolicyKey) -> BTreeSet<RunService> {
        let Some((intent, terms)) = self.policies.get(key).map(|r| (r.intent.clone(), r.terms.clone())) else {
            return BTreeSet::new();
        };
        let Resolved { services, barred, outside } = self.resolve(&intent, &terms);
        let Some(record) = self.policies.get_mut(key) else { return BTreeSet::new() };
        let old = std::mem::replace(&mut record.services, services.clone());
        record.barred = barred;
        record.outside = outside;
        record.looks.retain(|s, _| services.contains(s));
        record.released.retain(|s| services.contains(s));
        for service in old.difference(&services) {
            self.unlink(service, key);
        }
        for service in services.difference(&old) {
            self.link(service, key);
        }
        old.union(&services).cloned().collect()
    }

    /// The records that a policy wants to go back behind, as they were read: name and content, or why there is none.
    pub fn set_rollbacks(
        &mut self,
        key: &PolicyKey,
        asked: &[Arc<str>],
        found: Result<Vec<(Arc<str>, InvokerChangeSpec)>, Arc<str>>,
        now: Timestamp,
    ) -> BTreeSet<RunService> {
        let Some(record) = self.policies.get(key).filter(|r| *r.intent.rollbacks == *asked) else {
            return BTreeSet::new();
        };
        // A selector that was not answered yet may still turn out to mean it.
        let names = |s: &RunService| record.services.contains(s) || self.may_select(record, s);
        let role = record.intent.role;
        let back = match found {
            Err(why) => RollbackState::Impossible(why),
            Ok(changes) => {
                let stranger = changes.iter().find(|(_, c)| !names(&history::service(c)));
                match stranger {
                    Some((name, c)) => RollbackState::Impossible(
                        format!(
                            "InvokerChange {name} is about {}, which this policy does not name; correct or remove the annotation {}",
                            history::service(c),
                            crate::api::ROLLBACK
                        )
                        .into(),
                    ),
                    None => RollbackState::Ready(
                        changes
                            .into_iter()
                            .map(|(name, c)| {
                                (history::service(&c), Arc::new(history::rollback(name, &c, role, now)))
                            })
                            .collect(),
                    ),
                }
            }
        };
        let Some(record) = self.policies.get_mut(key) else { return BTreeSet::new() };
        record.back = back;
        record.services.clone()
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
    pub fn owned_by(&self, uid: &str) -> Vec<RunService> {
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

    /// The services that an intent means now, and of them those that it may touch.
    fn resolve(&self, intent: &Intent, terms: &Terms) -> Resolved {
        let mut resolved = Resolved::default();
        let mut barred = Vec::new();
        for target in &intent.targets {
            match target {
                Target::Named(service) => match terms.refuse_service(service) {
                    None => {
                        resolved.services.insert(service.clone());
                    }
                    Some(refusal) => {
                        barred.push(DeniedTarget { service: Some(service.clone()), message: refusal.message })
                    }
                },
                Target::Selected { .. } => {
                    if let Some(refusal) = terms.refuse_project(&intent.project) {
                        barred.push(DeniedTarget { service: None, message: refusal.message });
                        continue;
                    }
                    let found = self.projects.get(&intent.project).into_iter().flat_map(|p| p.services.values());
                    for info in found.filter(|info| target.selects(info)) {
                        match terms.refuse_service(&info.service) {
                            None => {
                                resolved.services.insert(info.service.clone());
                            }
                            Some(_) => resolved.outside += 1,
                        }
                    }
                }
            }
        }
        if intent.deleting {
            // Only what the operator itself did for the policy; what it named and may not touch is nobody's business.
            resolved.services.extend(self.owned_by(&intent.id.uid));
        }
        resolved.barred = barred.into();
        resolved
    }

    /// Takes a policy out; returns the services that it named.
    pub fn remove_policy(&mut self, id: &PolicyId) -> BTreeSet<RunService> {
        let key = (id.namespace.clone(), id.name.clone());
        if self.policies.get(&key).is_none_or(|r| r.intent.id.uid != id.uid) {
            return BTreeSet::new();
        }
        self.forget_accounts(&key);
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

    /// Forgets what was seen of the projects that `among` names, as if this process had just begun: what is declared is
    /// known, what is real is not.
    pub fn let_go(&mut self, among: impl Fn(&str) -> bool) {
        self.projects.retain(|project, _| !among(project));
        let keys: Vec<PolicyKey> =
            self.policies.iter().filter(|(_, r)| among(&r.intent.project)).map(|(k, _)| k.clone()).collect();
        for key in keys {
            self.retarget(&key);
            let Some(record) = self.policies.get_mut(&key) else { continue };
            record.looks.clear();
            record.released.clear();
        }
    }

    /// Services that the ledger knows and no policy targets, nor may yet turn out to target.
    pub fn orphans(&self) -> Vec<RunService> {
        let unowned = self.ledgers.keys().filter(|s| !self.by_service.contains_key(*s));
        unowned
            .filter(|s| self.standing(s).values().any(|standing| *standing != OwnerState::Passive))
            .cloned()
            .collect()
    }

    /// What to list of a project: one region each if that is all that is asked for, else every region at once.
    pub fn scopes(&self, project: &str) -> Vec<Scope> {
        let mut regions: BTreeSet<Arc<str>> = BTreeSet::new();
        for key in self.by_project.get(project).into_iter().flatten() {
            let Some(record) = self.policies.get(key) else { continue };
            if record.terms.refuse_project(project).is_some() {
                continue;
            }
            for target in &record.intent.targets {
                match target {
                    Target::Named(service) if record.terms.refuse_service(service).is_some() => {}
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
            .filter(|r| !r.intent.suspended && r.terms.refuse_project(project).is_none())
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
        let never = !std::mem::replace(&mut entry.listed, true);
        if never {
            entry.unseen = listing.unreachable.clone();
        }
        let news = never || entry.unseen.iter().any(|r| !listing.unreachable.contains(r));
        entry.unseen.retain(|r| listing.unreachable.contains(r));
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
        let seen: HashSet<&RunService> =
            found.keys().filter(|s| !before.contains_key(*s) && is_seen(&self.by_service, &self.policies, s)).collect();
        for (service, info) in &found {
            match before.get(service) {
                // The first listing after a start says nothing new about services that are being looked at anyway.
                None if first => {}
                // Nobody was about it when the project was last listed; it was looked at since, and is no news.
                None if seen.contains(service) => {}
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
            let Some(old) = self.policies.get(key).map(|r| (r.services.clone(), r.outside)) else { continue };
            self.retarget(key);
            let Some(record) = self.policies.get(key) else { continue };
            if old != (record.services.clone(), record.outside) || first {
                changed.push(key.clone());
            }
            touched.extend(old.0.symmetric_difference(&record.services).cloned());
        }
        if news {
            // What left a policy while nobody was looking is known to have left only now.
            touched.extend(self.orphans().into_iter().filter(|s| s.project == *project));
            let (answered, waiting) =
                std::mem::take(&mut self.waiting).into_iter().partition(|s| s.project == *project);
            self.waiting = waiting;
            let answered: BTreeSet<RunService> = answered;
            touched.extend(answered);
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
        let looks: BTreeMap<RunService, Option<&Observation>> =
            record.services.iter().map(|s| (s.clone(), record.looks.get(s).map(|l| &**l))).collect();
        let project = self.projects.get(&record.intent.project);
        let selecting = record.intent.has_selector() && record.terms.refuse_project(&record.intent.project).is_none();
        let back: Vec<(&RunService, &str)> = record.rollbacks().map(|(s, r)| (s, &*r.change)).collect();
        let reach = if record.services.len() > record.terms.max_new_services() { self.reach(record) } else { None };
        let facts = StatusInput {
            intent: &record.intent,
            looks: &looks,
            discovery: project.and_then(|p| p.fault.as_ref()).filter(|_| selecting),
            discovering: selecting && project.is_none_or(|p| p.listed_at.is_none()),
            barred: &record.barred,
            outside: record.outside,
            reach: reach.as_ref(),
            stopped: self.stopped(record),
            back: &back,
            last_change: record.last_change.as_deref(),
            propagation,
            now,
        };
        Some(compute_status(&facts, &record.status.get()))
    }
}

/// Whether some policy's last look found the service.
fn is_seen(
    by_service: &HashMap<RunService, Vec<PolicyKey>>,
    policies: &HashMap<PolicyKey, Record>,
    service: &RunService,
) -> bool {
    let keys = by_service.get(service).into_iter().flatten();
    keys.filter_map(|k| policies.get(k)).any(|r| r.looks.get(service).is_some_and(|l| l.result.is_ok()))
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
