//! How far selectors reach: which services are new to a policy, and when that is too far without
//! approval.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use super::{Index, PolicyKey, policies::Record};
use crate::{
    iam::RunService,
    intent::{Agreement, Target, denial_of},
    plan::{HeldPlan, SelectorImpact, UnansweredSelectors, effect::reach_hash, guard},
    status::ReachedServices,
};

/// How far the selectors of one policy reach. Kept while nothing changes it: a policy can mean
/// thousands of services, and each reconcile of one of them asks.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reach {
    /// Of what belonged to the policy at that time.
    stamp: u64,
    /// Fresh services that nobody has read.
    unseen: usize,
    /// Fresh services that are not as declared.
    wanting: BTreeSet<RunService>,
    /// Fresh services that could not be read.
    failed: BTreeSet<RunService>,
    spread: Option<Option<SelectorImpact>>,
}

impl Reach {
    /// Puts a service where it belongs; `fresh`: whether it could be read.
    fn sort(&mut self, service: &RunService, fresh: Option<bool>) {
        let put = |set: &mut BTreeSet<RunService>, is_in: bool| match is_in {
            true => set.insert(service.clone()),
            false => set.remove(service),
        };
        let changed = put(&mut self.wanting, fresh == Some(true))
            | put(&mut self.failed, fresh == Some(false));
        if changed {
            self.spread = None;
        }
    }

    fn spread(&mut self, record: &Record) -> Option<SelectorImpact> {
        let limit = record.terms().max_new_services();
        let count = || guard::spread(&record.intent, &self.wanting, self.unseen, limit);
        self.spread.get_or_insert_with(count).clone()
    }
}

impl Index {
    /// Whether this policy has had a say on the service before: it names it, something there
    /// belongs to it, it was found as declared, or somebody agreed.
    pub(super) fn is_established(&self, record: &Record, service: &RunService) -> bool {
        let intent = &record.intent;
        // Whoever agreed to a request agreed to its selectors.
        !intent.has_selector()
            || intent.id.request().is_some()
            || record.targets().len() <= record.terms().max_new_services()
            || !intent.enforces()
            || intent.deleting
            || record.released.contains_key(service)
            || record
                .observation(service)
                .is_some_and(|o| o.result.as_ref().is_ok_and(|f| f.in_sync()))
            || self.ledgers.owns(&intent.id.uid, service)
            || intent
                .targets
                .iter()
                .any(|t| matches!(t, Target::Named(s) if s == service))
    }

    /// Whether a policy means a service and has had no say on it before.
    pub(super) fn is_fresh(&self, record: &Record, service: &RunService) -> bool {
        record.targets().contains(service) && !self.is_established(record, service)
    }

    /// Looks at every service that a policy means.
    fn survey(&self, record: &Record) -> Reach {
        let mut reach = Reach {
            stamp: self.ledgers.stamp(&record.intent.id.uid),
            ..Reach::default()
        };
        let fresh = record.targets().iter();
        for service in fresh.filter(|s| !self.is_established(record, s)) {
            match record.observation(service) {
                None => reach.unseen += 1,
                Some(o) => reach.sort(service, Some(o.result.is_ok())),
            }
        }
        reach
    }

    fn with_reach<R>(&self, record: &Record, f: impl FnOnce(&mut Reach) -> R) -> R {
        let mut cached = record.reach.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.ledgers.stamp(&record.intent.id.uid);
        let known = cached.take().filter(|r| r.stamp == stamp);
        f(cached.insert(known.unwrap_or_else(|| Box::new(self.survey(record)))))
    }

    /// Takes in that a service was read. `was_unseen`: it was fresh, and nobody had before.
    pub(super) fn reach_changes(&self, record: &Record, service: &RunService, was_unseen: bool) {
        let fresh = record.observation(service).map(|o| o.result.is_ok());
        let fresh = fresh.filter(|_| self.is_fresh(record, service));
        let mut cached = record.reach.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reach) = cached.as_mut() {
            if was_unseen {
                reach.unseen = reach.unseen.saturating_sub(1);
                reach.spread = None;
            }
            reach.sort(service, fresh);
        }
    }

    /// How far the selectors of a policy reach beyond what it changed before, if that is too far.
    pub(super) fn reach(&self, record: &Record) -> Option<ReachedServices> {
        self.with_reach(record, |reach| {
            let spread = reach.spread(record)?;
            let denied = match &spread {
                SelectorImpact::Held { plan, .. } => {
                    denial_of(self.approvals.of(&record.intent.id.key()), &plan.hash).cloned()
                }
                SelectorImpact::Counting { .. } => None,
            };
            Some(ReachedServices {
                spread,
                services: reach.wanting.clone(),
                approver: record.terms().approver(),
                denied,
            })
        })
    }

    /// The same without the services.
    pub(super) fn spread(&self, record: &Record) -> Option<SelectorImpact> {
        self.with_reach(record, |reach| reach.spread(record))
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
        let mut by = None;
        let free = self.with_reach(record, |reach| match reach.spread(record) {
            Some(SelectorImpact::Held { hash, plan, .. }) => {
                let annotated = record.terms().approver().is_none()
                    && record.intent.approvals.contains(&hash)
                    && denial_of(self.approvals.of(key), &plan.hash).is_none();
                if !annotated {
                    by = self.reach_agreed(record, &plan, &reach.wanting);
                }
                if annotated || by.is_some() {
                    reach.wanting.clone()
                } else {
                    BTreeSet::new()
                }
            }
            Some(_) => BTreeSet::new(),
            // Few enough; those that were seen while it was still being counted come up again.
            None => reach.wanting.union(&reach.failed).cloned().collect(),
        });
        if !free.is_empty()
            && let Some(record) = self.policies.get_mut(key)
        {
            let free = free.iter().map(|s| (s.clone(), by.clone()));
            record.released.extend(free);
            record.reach = None.into();
        }
        free
    }

    /// The approval that is for a reach, or for one of which this is what is left: a process that
    /// ends in the middle goes on where it was.
    fn reach_agreed(
        &self,
        record: &Record,
        plan: &HeldPlan,
        wanting: &BTreeSet<RunService>,
    ) -> Option<Arc<Agreement>> {
        let is_for = |a: &Agreement| {
            if a.denies() || self.is_denied(a) || self.is_spent(a, None) {
                return false;
            }
            let reached: BTreeSet<&RunService> = self
                .ledgers
                .uses(&a.plan)
                .filter(|(_, used)| used.approval == *a.digest)
                .map(|(service, _)| service)
                .collect();
            if reached.is_empty() {
                return a.plan == plan.hash && a.shows(&plan.lines);
            }
            let all = wanting.iter().chain(reached.iter().copied());
            wanting.iter().all(|s| !reached.contains(s))
                && reach_hash(&record.intent, all) == a.plan
        };
        let agreements = self.approvals.of(&record.intent.id.key());
        agreements.iter().find(|a| is_for(a)).cloned()
    }

    /// Whether a policy's selectors may mean a service that they do not mean as far as is known:
    /// after a start, until the project was listed. What belongs to it there is not to be taken for
    /// left behind.
    pub(super) fn may_select(&self, record: &Record, service: &RunService) -> bool {
        record.intent.has_selector()
            && record.intent.project == service.project
            && !record.targets().contains(service)
            && record.terms().refuse_service(service).is_none()
            && !self.is_told(service)
            && record.intent.targets.iter().any(|t| may_mean(t, service))
    }

    /// Whether a listing told what there is to know of a service. One that the operator answers for
    /// does not leave a selector by not being listed: if it is gone its own answer says so, and if it
    /// answers, the listing was not all of it.
    fn is_told(&self, service: &RunService) -> bool {
        self.projects.get(&service.project).is_some_and(|p| {
            let is_listed = p.info(service).is_some() || !self.ledgers.contains(service);
            p.knows(&service.region) && is_listed
        })
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
        if self.is_told(service) {
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

    /// A removal on a service waits until the project is listed; then the service is reconciled
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{
        fault::{Fault, FaultClass},
        iam::{Grant, Ingress, Principal, Role, ServiceInfo},
        index::Listing,
        intent::Limits,
        ledger::{Ledger, Version},
        plan::Settings,
        status::{Observation, observation::Findings},
    };

    fn service(i: u64) -> RunService {
        RunService::new("acme-prod", "europe-west1", format!("s{i}").as_str())
    }

    fn observation(kind: u64) -> Observation {
        let result = match kind {
            0 => Ok(Findings::default()),
            1 => Err(Fault::new(FaultClass::Unavailable, "later")),
            _ => Ok(Findings {
                missing: ["user:a@acme.com"].into_iter().collect(),
                ..Findings::default()
            }),
        };
        Observation {
            generation: 1,
            requested_at: None,
            result,
            changed_at: None,
        }
    }

    /// A policy whose selector means ten services, of which it may newly reach three.
    fn wide() -> (Index, PolicyKey) {
        let mut index = Index::new(Settings {
            limits: Limits {
                max_new_services: 3,
                ..Limits::default()
            },
            ..Settings::default()
        });
        let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy",
            "metadata": {"namespace": "team-a", "name": "p", "uid": "p", "generation": 1},
            "spec": {"project": "acme-prod", "mode": "Enforce", "invokers": [{"member": "user:a@acme.com"}],
                "services": [{"selector": {"matchLabels": {"fleet": "all"}}}]}});
        let policy = serde_json::from_value(policy).unwrap();
        let (key, _) = index.apply_policy(&policy, Duration::ZERO);
        let services = (0..10).map(|i| ServiceInfo {
            service: service(i),
            uid: i.to_string().as_str().into(),
            labels: Arc::new([("fleet".to_owned(), "all".to_owned())].into()),
            invoker_iam_disabled: false,
            ingress: Ingress::All,
            iap: false,
        });
        let listing = Listing {
            services: services.collect(),
            ..Listing::default()
        };
        index.apply_listing(&"acme-prod".into(), 1, Ok(listing));
        (index, key)
    }

    #[test]
    fn what_is_cached_of_a_reach_is_what_a_survey_finds() {
        let (mut index, key) = wide();
        let mut number = 7_u64;
        let mut any = |below: u64| {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (number >> 33) % below
        };
        let mut seen = BTreeSet::new();
        for turn in 0..5000 {
            let about = service(any(10));
            match any(20) {
                0 => {
                    let id = index.policies.get(&key).unwrap().intent.id.clone();
                    let grant = Grant::new(Principal::from_live("user:a@acme.com"), Role::Invoker);
                    let ledger = Ledger {
                        lines: [(grant, [id].into())].into(),
                        ..Ledger::default()
                    };
                    index.set_ledger(&about, &ledger, Version::new(&turn.to_string()));
                }
                1 => index.erase_ledger(&about, Version::new(&turn.to_string())),
                2 => index.forget_observations(&|_| true),
                _ => drop(index.observe(&key, &about, observation(any(3)))),
            }
            let record = index.policies.get(&key).unwrap();
            let impact = index.spread(record);
            let mut survey = index.survey(record);
            assert_eq!(impact, survey.spread(record), "turn {turn}");
            let cached = record.reach.lock().unwrap();
            assert_eq!(cached.as_deref(), Some(&survey), "turn {turn}");
            seen.insert(format!("{:?}", survey.spread.flatten()));
        }
        assert!(seen.len() > 10, "{seen:?}");
    }

    #[test]
    fn a_reconcile_of_a_service_does_not_survey_all_the_others() {
        let (mut index, key) = wide();
        index.spread(index.policies.get(&key).unwrap());
        for i in 0..6 {
            let of = |index: &Index| {
                let cached = index.policies.get(&key).unwrap().reach.lock().unwrap();
                cached.as_deref().map(std::ptr::from_ref)
            };
            let before = of(&index);
            index.observe(&key, &service(i), observation(2));
            index.words(&service(i));
            assert!(before.is_some() && before == of(&index), "service {i}");
        }
    }
}
