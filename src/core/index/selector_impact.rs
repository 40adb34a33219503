//! How far selectors reach: which services are new to a policy, and when that is too far without
//! approval.

use std::collections::BTreeSet;

use super::{Index, PolicyKey, policies::Record};
use crate::{
    iam::RunService,
    intent::Target,
    plan::{SelectorImpact, UnansweredSelectors, guard},
    status::ReachedServices,
};

impl Index {
    /// Whether this policy has had a say on the service before: it names it, something there
    /// belongs to it, it was found as declared, or somebody agreed.
    pub(super) fn is_established(&self, record: &Record, service: &RunService) -> bool {
        let intent = &record.intent;
        !intent.has_selector()
            || record.targets().len() <= record.terms().max_new_services()
            || !intent.enforces()
            || intent.deleting
            || record.released.contains(service)
            || record
                .observation(service)
                .is_some_and(|o| o.result.as_ref().is_ok_and(|f| f.in_sync()))
            || self.ledgers.owns(&intent.id.uid, service)
            || intent
                .targets
                .iter()
                .any(|t| matches!(t, Target::Named(s) if s == service))
    }

    /// How far the selectors of a policy reach beyond what it changed before, if that is too far.
    pub(super) fn reach(&self, record: &Record) -> Option<ReachedServices> {
        let fresh: Vec<&RunService> = record
            .targets()
            .iter()
            .filter(|s| !self.is_established(record, s))
            .collect();
        let unseen = fresh
            .iter()
            .filter(|s| record.observation(s).is_none())
            .count();
        let differs = |s: &RunService| {
            record
                .observation(s)
                .is_some_and(|o| o.result.as_ref().is_ok_and(|f| !f.in_sync()))
        };
        let wanting: BTreeSet<RunService> =
            fresh.into_iter().filter(|s| differs(s)).cloned().collect();
        let spread = guard::spread(
            &record.intent,
            &wanting,
            unseen,
            record.terms().max_new_services(),
        )?;
        Some(ReachedServices {
            spread,
            services: wanting,
        })
    }

    /// Takes in that an observation changed, or an approval: services that a discovery may reach
    /// now are returned.
    pub(super) fn release(&mut self, key: &PolicyKey) -> BTreeSet<RunService> {
        let Some(record) = self.policies.get(key) else {
            return BTreeSet::new();
        };
        if record.targets().len() <= record.terms().max_new_services()
            || !record.intent.has_selector()
        {
            return BTreeSet::new();
        }
        let fresh = |r: &RunService| !self.is_established(record, r);
        let free: BTreeSet<RunService> = match self.reach(record) {
            Some(ReachedServices {
                spread: SelectorImpact::Held { hash, .. },
                services,
            }) if record.intent.approvals.contains(&hash) => services,
            Some(_) => return BTreeSet::new(),
            // Few enough; those that were seen while it was still being counted come up again.
            None => record
                .observations()
                .map(|(s, _)| s)
                .filter(|s| fresh(s))
                .cloned()
                .collect(),
        };
        if let Some(record) = self.policies.get_mut(key) {
            record.released.extend(free.iter().cloned());
        }
        free
    }

    /// Whether a policy's selectors may mean a service that they do not mean as far as is known:
    /// after a start, until the project was listed. What belongs to it there is not to be taken for
    /// left behind.
    pub(super) fn may_select(&self, record: &Record, service: &RunService) -> bool {
        record.intent.has_selector()
            && record.intent.project == service.project
            && !record.targets().contains(service)
            && record.terms().refuse_service(service).is_none()
            && self
                .projects
                .get(&service.project)
                .is_none_or(|p| !p.knows(&service.region))
            && record.intent.targets.iter().any(|t| may_mean(t, service))
    }

    /// What policies list whose selectors may yet turn out to mean a service: it must not be taken
    /// away as if nobody listed it.
    pub fn unanswered(&self, service: &RunService) -> UnansweredSelectors {
        let project = self.projects.get(&service.project);
        let accounts = !self.accounts.are_known()
            && self
                .policies
                .on(service)
                .any(|r| r.intent.accounts.is_some());
        if project.is_some_and(|p| p.knows(&service.region)) {
            return UnansweredSelectors {
                accounts,
                ..UnansweredSelectors::default()
            };
        }
        let records = self.policies.of_project(&service.project);
        let records: Vec<&Record> = records
            .filter(|r| !r.intent.deleting && self.may_select(r, service))
            .collect();
        UnansweredSelectors {
            standing: records
                .iter()
                .any(|r| r.intent.enforces() && !r.intent.allows_nobody()),
            grants: records
                .iter()
                .flat_map(|r| r.intent.declared.iter().map(|d| d.grant.clone()))
                .collect(),
            failed: project.is_some_and(|p| p.fault().is_some()),
            accounts,
        }
    }

    /// A removal on a service waits until the project is listed; then the service is looked at
    /// again. False: it is known by now.
    pub fn wait_for_listing(&mut self, service: &RunService) -> bool {
        let waits = {
            let unanswered = self.unanswered(service);
            unanswered.standing || !unanswered.grants.is_empty()
        };
        if waits {
            self.waiting.insert(service.clone());
        }
        waits
    }
}

fn may_mean(target: &Target, service: &RunService) -> bool {
    match target {
        Target::Selected { regions, .. } => {
            regions.as_ref().is_none_or(|r| r.contains(&service.region))
        }
        Target::Named(_) => false,
    }
}
