//! Who targets what, who owns what: from policies to services and back, with what was last observed
//! on each.
//!
//! A plain data structure; every operation is short, and time is passed in. It holds intents, not
//! objects, so that ten thousand policies fit into little memory. Its rooms:
//!
//! | module | what is in it |
//! |---|---|
//! | [`policies`] | policies, the services that they mean, what was observed for them, what a change of one sets in motion |
//! | [`ledgers`] | what the operator answers for on each service, and whose it is |
//! | [`discovery`] | what listings of projects showed |
//! | [`guardrails`] | what each namespace has to satisfy |
//! | [`inherited`] | who may invoke by a grant above the services, as each policy is told |
//! | [`service_accounts`] | the Google service accounts that ServiceAccounts stand for |
//! | [`selector_impact`] | how far selectors reach, and what is not known of them yet |
//! | [`inputs`] | all that the plan for one service depends on |
//! | [`approvals`] | what approvers agreed to, and what became of it |
//! | [`requests`] | requests for access, and what they declare meanwhile |
//! | [`rollbacks`] | the way back that a policy asks for |

pub mod approvals;
pub mod discovery;
mod guardrails;
mod inherited;
mod inputs;
mod ledgers;
mod names;
pub mod policies;
mod requests;
mod rollbacks;
mod selector_impact;
mod service_accounts;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    api::{InvokerGuardrail, InvokerLedger},
    fault::Fault,
    iam::{Grant, RunService, ServiceInfo},
    inherited::Inherited,
    intent::{AccountKey, Guardrail, PolicyId, PolicyKey},
    ledger::{Ledger, Version},
    plan::{OwnerState, Owners, PolicyOnService, RevokeCause, Settings},
};
pub use approvals::Approvals;
pub use discovery::{Listing, Project, Scope};
use guardrails::Guardrails;
pub use inputs::PlanInputs;
pub use ledgers::Ledgers;
use names::Interner;
pub use policies::{Effect, Gauges, Policies, Record, SerializedStatus};
pub use requests::Requests;
pub use rollbacks::RollbackState;
use service_accounts::ServiceAccounts;

/// The index.
#[derive(Debug, Default)]
pub struct Index {
    policies: Policies,
    ledgers: Ledgers,
    projects: HashMap<Arc<str>, Project>,
    guardrails: Guardrails,
    accounts: ServiceAccounts,
    inherited: Inherited,
    approvals: Approvals,
    requests: Requests,
    /// Services on which a removal waits for the listing of their project.
    waiting: BTreeSet<RunService>,
    names: Interner,
    settings: Settings,
}

impl Index {
    pub fn new(settings: Settings) -> Self {
        Self {
            guardrails: Guardrails::new(settings.limits),
            settings,
            ..Self::default()
        }
    }

    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    pub fn ledgers(&self) -> &Ledgers {
        &self.ledgers
    }

    pub fn project(&self, name: &str) -> Option<&Project> {
        self.projects.get(name)
    }

    pub fn info(&self, service: &RunService) -> Option<&ServiceInfo> {
        self.projects.get(&service.project)?.info(service)
    }

    /// Every service that a policy means or that has a ledger.
    pub fn services(&self) -> BTreeSet<RunService> {
        self.policies
            .services()
            .chain(self.ledgers.services())
            .cloned()
            .collect()
    }

    /// Whether a policy means a service, or it has a ledger.
    pub fn means(&self, service: &RunService) -> bool {
        self.policies.means(service) || self.ledgers.contains(service)
    }

    /// The services of a name, in whatever region, that a policy means or that have a ledger.
    pub fn named(&self, project: &str, name: &str) -> BTreeSet<RunService> {
        let fits = |s: &&RunService| *s.project == *project && *s.name == *name;
        self.policies
            .services()
            .chain(self.ledgers.services())
            .filter(fits)
            .cloned()
            .collect()
    }

    /// The services that policies mean, each with the shortest interval asked for.
    pub fn intervals(&self) -> BTreeMap<RunService, Duration> {
        let interval = |s: &RunService| {
            self.policies
                .on(s)
                .filter(|r| !r.intent.suspended)
                .map(|r| r.intent.interval)
                .min()
        };
        self.policies
            .services()
            .filter_map(|s| Some((s.clone(), interval(s)?)))
            .collect()
    }

    /// The word of every policy that means a service, or that something there still belongs to.
    pub fn words(&self, service: &RunService) -> Vec<PolicyOnService> {
        let meaning = self
            .policies
            .on(service)
            .map(|r| self.word(r, service, false));
        let owners = self
            .ledgers
            .owners(service)
            .into_iter()
            .filter_map(|id| self.policies.by_uid(&id.uid));
        let left =
            owners.filter(|r| !r.targets().contains(service) && !self.may_select(r, service));
        meaning
            .chain(left.map(|r| self.word(r, service, true)))
            .collect()
    }

    /// What the operator answers for on a service, and how those whom it belongs to stand to it
    /// now.
    pub fn owners(&self, service: &RunService) -> BTreeMap<Grant, Owners> {
        let (ledger, _) = self.ledgers.get(service);
        let mut states: BTreeMap<PolicyId, OwnerState> = BTreeMap::new();
        let mut state = |id: &PolicyId| {
            *states
                .entry(id.clone())
                .or_insert_with(|| self.owner_state(id, service))
        };
        let lines = ledger.lines.into_iter();
        lines
            .map(|(grant, ids)| {
                (
                    grant,
                    ids.iter().map(|id| (id.clone(), state(id))).collect(),
                )
            })
            .collect()
    }

    fn owner_state(&self, id: &PolicyId, service: &RunService) -> OwnerState {
        let Some(record) = self.policies.by_uid(&id.uid) else {
            // Before requests are listed one of them may be there.
            let is_unlisted = id.request().is_some() && !self.requests.are_listed();
            let unread = is_unlisted || self.policies.is_unreadable(&id.uid);
            return if unread {
                OwnerState::Unread
            } else if id.request().is_some() {
                // Nobody keeps what was given on request, whoever took the finalizer off.
                OwnerState::Leaving(RevokeCause::PolicyDeleted)
            } else {
                OwnerState::LetGo
            };
        };
        let intent = &record.intent;
        if !record.is_readable() {
            return OwnerState::Unread;
        }
        if intent.deleting {
            // Frozen, nobody may take anything away either.
            return match record.terms().frozen() {
                None if !intent.retains() => OwnerState::Leaving(self.requests.why_over(&id.key())),
                // Until one that retains is gone its spec can still be changed.
                _ => OwnerState::Resting,
            };
        }
        let is_held = self.stopped(record).is_some() || self.may_select(record, service);
        if !intent.is_whole() {
            return OwnerState::Unread;
        }
        if !intent.enforces() || is_held {
            return OwnerState::Resting;
        }
        if record.targets().contains(service) {
            return OwnerState::Acting;
        }
        let refused = record.terms().refuse_service(service).is_some();
        OwnerState::Leaving(if refused {
            RevokeCause::Refused
        } else {
            RevokeCause::NoLongerDeclared
        })
    }

    /// From when on something on a service is to be reconciled that no policy asks for: it was
    /// left, or a write's end is unknown. In the future: what is nobody's stays while somebody
    /// lists it who may not write, or while it is protected, and that ends by itself.
    pub fn left_behind_from(&self, service: &RunService) -> Option<Timestamp> {
        let owners = || self.ledgers.owners(service).into_iter();
        if self.ledgers.is_pending(service)
            || owners().any(|id| !self.owner_state(id, service).waits())
        {
            return Some(Timestamp::MIN);
        }
        // The last end of a grant that is listed or protected; `None`: it is listed for good.
        let end = |grant: &Grant| {
            let ends = grant.ends().filter(|_| self.settings.protects(grant));
            let first = ends.unwrap_or(Timestamp::MIN);
            let listing = self.policies.on(service).filter(|r| !r.intent.deleting);
            let listed = listing
                .flat_map(|r| r.intent.declared.iter())
                .filter(|d| d.grant == *grant);
            listed
                .map(|d| d.expires)
                .try_fold(first, |last, end| end.map(|e| last.max(e)))
        };
        self.ledgers.abandoned(service).filter_map(end).min()
    }

    /// Services with a ledger that no policy means and that are to be reconciled, or whose ledger
    /// is there for nothing.
    pub fn left_behind(&self) -> Vec<RunService> {
        let unmeant = self.ledgers.services().filter(|s| !self.policies.means(s));
        unmeant
            .filter(|s| self.left_behind_from(s).is_some() || self.ledgers.is_bare(s))
            .cloned()
            .collect()
    }

    // What comes in from the store.

    pub fn apply_guardrail(&mut self, guardrail: Guardrail) -> Effect {
        let changed = self.guardrails.apply(guardrail);
        self.under_new_terms(&changed)
    }

    pub fn apply_unreadable_guardrail(&mut self, name: &str, why: String) -> Effect {
        let changed = self.guardrails.apply_unreadable(name, why);
        self.under_new_terms(&changed)
    }

    pub fn remove_guardrail(&mut self, object: &InvokerGuardrail) -> Effect {
        self.remove_guardrail_named(object.metadata.name.as_deref().unwrap_or_default())
    }

    pub fn remove_guardrail_named(&mut self, name: &str) -> Effect {
        let changed = self.guardrails.remove(name);
        self.under_new_terms(&changed)
    }

    pub fn begin_guardrail_list(&mut self) {
        self.guardrails.begin_list();
    }

    pub fn end_guardrail_list(&mut self) -> Effect {
        let changed = self.guardrails.end_list();
        self.under_new_terms(&changed)
    }

    /// Whether what each namespace has to satisfy is known.
    pub fn guardrails_are_listed(&self) -> bool {
        self.guardrails.are_listed()
    }

    pub fn apply_account(&mut self, account: AccountKey, email: Option<&str>) -> Effect {
        let changed = self.accounts.apply(account, email);
        self.relink(changed)
    }

    pub fn begin_account_list(&mut self) {
        self.accounts.begin_list();
    }

    pub fn end_account_list(&mut self) -> Effect {
        let changed = self.accounts.end_list();
        self.relink(changed)
    }

    pub fn accounts_broken(&mut self, why: &str) -> Effect {
        let policies = self.accounts.broken(why);
        let services = policies
            .iter()
            .filter_map(|k| self.policies.get(k))
            .flat_map(|r| r.targets().iter().cloned());
        Effect {
            services: services.collect(),
            policies,
            ..Effect::default()
        }
    }

    pub fn begin_ledger_list(&mut self) {
        self.ledgers.begin_list();
    }

    pub fn end_ledger_list(&mut self) -> BTreeSet<RunService> {
        self.ledgers.end_list().into_iter().collect()
    }

    /// Takes in a ledger as a watch has it. False: nothing new.
    pub fn apply_ledger(&mut self, object: &InvokerLedger) -> bool {
        self.ledgers.apply(object, &mut self.names)
    }

    /// A ledger object that cannot be read.
    pub fn spoil_ledger(&mut self, service: &RunService, why: &str, version: Option<Version>) {
        self.ledgers.spoil(service, why, version);
    }

    /// Name of the ledger object of a service.
    pub fn ledger_name(service: &RunService) -> String {
        crate::ledger::name(service)
    }

    /// A ledger object that cannot be read, by its name; the service that it is about comes back.
    pub fn spoil_ledger_named(
        &mut self,
        name: &str,
        why: &str,
        version: Version,
    ) -> Option<RunService> {
        let service = crate::ledger::service_named(name)?;
        self.ledgers.spoil(&service, why, Some(version));
        Some(service)
    }

    /// A ledger object that could not be read is gone.
    pub fn remove_ledger_named(&mut self, name: &str, version: &Version) -> Option<RunService> {
        let service = crate::ledger::service_named(name)?;
        self.ledgers.remove(&service, version).then_some(service)
    }

    /// A ledger that is gone, as a watch has it.
    pub fn remove_ledger(&mut self, service: &RunService, version: &Version) -> bool {
        self.ledgers.remove(service, version)
    }

    /// A ledger that was just written.
    pub fn set_ledger(&mut self, service: &RunService, ledger: &Ledger, version: Version) {
        self.ledgers
            .set(service, ledger, Some(version), &mut self.names);
    }

    /// A ledger that was just deleted; `last` was its version.
    pub fn erase_ledger(&mut self, service: &RunService, last: Version) {
        self.ledgers.erase(service, last);
    }

    /// Forgets what was seen of the projects that `among` names, as if this process had just begun:
    /// what is declared is known, what is real is not.
    pub fn let_go(&mut self, among: impl Fn(&str) -> bool) {
        self.projects.retain(|project, _| !among(project));
        self.waiting.retain(|s| !among(&s.project));
        self.forget_observations(&among);
    }

    // Listings.

    /// What to list of a project: one region each if that is all that is asked for, else every
    /// region at once.
    pub fn scopes(&self, project: &str) -> Vec<Scope> {
        let mut regions: BTreeSet<Arc<str>> = BTreeSet::new();
        for record in self
            .policies
            .of_project(project)
            .filter(|r| r.may_list(project))
        {
            for target in &record.intent.targets {
                use crate::intent::Target;
                match target {
                    Target::Named(service) if record.terms().refuse_service(service).is_some() => {}
                    Target::Named(service) => {
                        regions.insert(service.region.clone());
                    }
                    Target::Selected {
                        regions: Some(some),
                        ..
                    } => regions.extend(some.iter().cloned()),
                    Target::Selected { regions: None, .. } => return vec![Scope::AllRegions],
                }
            }
        }
        // One call over all regions is cheaper than many.
        if regions.len() > 1 {
            vec![Scope::AllRegions]
        } else {
            regions.into_iter().map(Scope::Region).collect()
        }
    }

    /// The shortest interval at which somebody asks for a project; `None`: nobody does.
    pub fn project_interval(&self, project: &str) -> Option<Duration> {
        let records = self.policies.of_project(project);
        records
            .filter(|r| !r.intent.suspended && r.may_list(project))
            .map(|r| r.intent.interval)
            .min()
    }

    /// The shortest interval of any policy of a project.
    pub fn shortest_interval(&self, project: &str) -> Option<Duration> {
        self.policies
            .of_project(project)
            .map(|r| r.intent.interval)
            .min()
    }

    /// Takes in listing number `number` of a project; older ones than the last are left out.
    /// Returns the services to reconcile and the policies whose status changes.
    pub fn apply_listing(
        &mut self,
        project: &Arc<str>,
        number: u64,
        result: Result<Listing, Fault>,
    ) -> Effect {
        let mut effect = Effect::default();
        let keys: Vec<PolicyKey> = self.policies.keys_of_project(project).cloned().collect();
        if keys.is_empty() {
            // Nobody is about it any more.
            self.projects.remove(project);
            return effect;
        }
        let entry = self.projects.entry(project.clone()).or_default();
        let listing = match result {
            Ok(listing) => listing,
            Err(fault) => {
                if entry.fail(number, fault) {
                    effect.policies.extend(keys);
                }
                return effect;
            }
        };
        let Some(shown) = entry.show(project, number, listing, &mut self.names) else {
            return effect;
        };
        // One that was observed since it was last listed is no news.
        let is_new = |s: &RunService| !self.is_observed(s);
        effect
            .services
            .extend(shown.came.into_iter().filter(is_new));
        effect.services.extend(shown.changed);
        for key in keys {
            self.retarget_by_listing(key, shown.first, &mut effect);
        }
        if shown.answers {
            effect.services.extend(self.answered_by_listing(project));
        }
        let is_wanted = |s: &RunService| self.policies.means(s) || self.ledgers.contains(s);
        effect.services.retain(is_wanted);
        // Only what somebody is about is kept; the rest would be memory for nothing.
        if let Some(entry) = self.projects.get_mut(project) {
            entry.services.retain(|s, _| is_wanted(s));
        }
        effect
    }

    fn is_observed(&self, service: &RunService) -> bool {
        let mut observations = self
            .policies
            .on(service)
            .filter_map(|r| r.observation(service));
        observations.any(|o| o.result.is_ok())
    }

    /// What a listing changes for one policy of the project.
    fn retarget_by_listing(&mut self, key: PolicyKey, is_first: bool, effect: &mut Effect) {
        let Some(record) = self.policies.get(&key).filter(|r| r.intent.has_selector()) else {
            return;
        };
        let before = (record.targets().clone(), record.outside());
        let touched = self.retarget(&key);
        let Some(record) = self.policies.get(&key) else {
            return;
        };
        if before != (record.targets().clone(), record.outside()) || is_first {
            let changed = |s: &RunService| before.0.contains(s) != record.targets().contains(s);
            effect.services.extend(touched.into_iter().filter(changed));
            effect.policies.insert(key);
        }
    }

    /// Services that waited for a listing of the project. What left a policy while nobody was
    /// reading is known to have left only now.
    fn answered_by_listing(&mut self, project: &Arc<str>) -> BTreeSet<RunService> {
        let is_here = |s: &RunService| s.project == *project;
        let mut answered: BTreeSet<RunService> =
            self.left_behind().into_iter().filter(is_here).collect();
        let waiting = std::mem::take(&mut self.waiting);
        let (here, elsewhere): (BTreeSet<_>, BTreeSet<_>) = waiting.into_iter().partition(is_here);
        self.waiting = elsewhere;
        answered.extend(here);
        answered
    }

    /// Corrections of drift over all services since a time: one for each write.
    pub fn corrections_since(&self, since: Timestamp, now: Timestamp) -> usize {
        self.ledgers
            .corrections()
            .filter(|(_, at)| *at > since && *at <= now)
            .count()
    }
}
