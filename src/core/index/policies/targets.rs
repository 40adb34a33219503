//! Which services a policy means, after every change of policies, listings, guardrails and terms.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use super::{Effect, record::Record};
use crate::{
    iam::RunService,
    index::{Index, PolicyKey, discovery::Project},
    intent::{AccountKey, Intent, Target, Terms},
    plan::SelectorImpact,
    status::DeniedTarget,
};

/// What the targets of a policy come to.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) targets: BTreeSet<RunService>,
    pub(super) denied: Box<[DeniedTarget]>,
    pub(super) outside: usize,
}

impl Index {
    /// Whether the project has to be listed for a policy that is new or has changed.
    pub(super) fn needs_listing(
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

    /// Finds the services of a policy anew. Returns those that it means now or meant before.
    pub(in crate::index) fn retarget(&mut self, key: &PolicyKey) -> BTreeSet<RunService> {
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
    pub(super) fn forget_what_it_means_no_more(&mut self, key: &PolicyKey) {
        let Some(record) = self.policies.records.get_mut(key) else {
            return;
        };
        let (targets, uid) = (&record.targets, &record.intent.id.uid);
        record
            .observations
            .retain(|s, _| targets.contains(s) || self.ledgers.owns(uid, s));
        record.released.retain(|s, _| targets.contains(s));
    }

    /// The services that an intent means now, and of them those that it may touch.
    pub(super) fn resolve(&self, intent: &Intent, terms: &Terms) -> Resolved {
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

    pub(super) fn share_names(&mut self, intent: &mut Intent) {
        let names = &mut self.names;
        intent.id = names.share_policy(&intent.id);
        intent.project = names.share(&intent.project);
        for target in &mut intent.targets {
            if let Target::Named(service) = target {
                *service = names.share_service(service);
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

    /// Makes the declarations of policies anew from the links of ServiceAccounts as they are now.
    pub(in crate::index) fn relink(&mut self, keys: BTreeSet<PolicyKey>) -> Effect {
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
    pub(in crate::index) fn under_new_terms(&mut self, namespaces: &BTreeSet<Arc<str>>) -> Effect {
        let mut effect = Effect::default();
        for namespace in namespaces {
            let requests = self.requests().keys_of_namespace(namespace);
            effect.policies.extend(requests.cloned());
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

    /// Selectors of a policy, by their place among its targets, that match no service. Where not
    /// every region was seen, or some match is outside of what the policy may touch, that is not
    /// known.
    pub(super) fn unmatched(&self, record: &Record) -> Vec<usize> {
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
pub(super) fn accounts(intent: &Intent) -> impl Iterator<Item = &AccountKey> {
    let entries = intent.accounts.iter().flat_map(|a| &a.entries);
    entries.map(|e| &e.account)
}
