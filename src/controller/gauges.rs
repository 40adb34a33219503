//! The gauges over all policies: what their statuses and what was observed for them come to.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

use crate::{
    api::{ApprovalState, RequestPhase, ServiceState},
    iam::RunService,
    index::{Index, policies::Record},
    metrics::{Metrics, PolicyGauges, PolicySeries, Waiting},
    status,
};

/// Gauges over all policies whose projects are `ours`: what every replica counts may be added up.
pub(super) fn show(
    index: &Index,
    metrics: &Metrics,
    now: Timestamp,
    ours: &dyn Fn(&str) -> bool,
) -> PolicySeries {
    let mut counted = Counted::default();
    for (key, record) in index.policies().iter() {
        if ours(&record.intent.project) {
            counted.add(record, &index.reached(key), now);
            let opened = index.opened_from_above(record, now).into_iter();
            counted
                .exposed
                .extend(opened.map(|(service, _)| service.clone()));
        }
    }
    let held = index.ledgers().held().filter(|s| ours(&s.project));
    counted.held.extend(held.cloned());
    metrics.service_states(|s| counted.states.get(&s).copied().unwrap_or(0));
    let found = &metrics.found;
    found.exposed_services.set(counted.exposed.len() as i64);
    found.expiring_grants.set(counted.expiring as i64);
    found.contested_services.set(counted.contested.len() as i64);
    found.held_plans.set(counted.held.len() as i64);
    metrics.inherited.bypassed_policies.set(counted.bypassed);
    let waited = counted.held_since.map(|since| now.duration_since(since));
    let waited = waited.map_or(0, |w| w.as_secs().max(0));
    found.held_plan_seconds.set(waited);
    metrics.approvals.show(&waiting(index, now, ours));
    if !metrics.per_policy() {
        return PolicySeries::default();
    }
    let mut policies: Vec<_> = index
        .policies()
        .iter()
        .filter(|(key, r)| key.request().is_none() && ours(&r.intent.project))
        .collect();
    policies.sort_by_key(|(key, _)| *key);
    PolicySeries::of(policies.iter().map(|(key, r)| {
        let gauges = r.gauges();
        PolicyGauges {
            namespace: &key.namespace,
            name: &key.name,
            ready: gauges.ready,
            missing: gauges.missing,
            unexpected: gauges.unexpected,
        }
    }))
}

/// What approvers are asked, in projects that are `ours`.
fn waiting(index: &Index, now: Timestamp, ours: &dyn Fn(&str) -> bool) -> Waiting {
    let mut waiting = Waiting::default();
    for (agreement, status) in index.approvals().statuses() {
        let about = agreement.policy();
        let policy = index.policies().get(&about);
        let request = index.requests().get(&about);
        let project = policy.map(|r| &*r.intent.project);
        let project = project.or_else(|| request.map(|r| r.project()));
        if project.is_some_and(ours) {
            let state = status.state.unwrap_or(ApprovalState::Waiting);
            *waiting.approvals.entry(state).or_default() += 1;
        }
    }
    let requests = index.requests().iter();
    for (request, status) in requests.filter(|(r, _)| ours(r.project())) {
        let phase = status.phase.unwrap_or(RequestPhase::Pending);
        *waiting.requests.entry(phase).or_default() += 1;
        if phase == RequestPhase::Pending {
            let waits = now.duration_since(request.created).as_secs();
            waiting.longest_request = waiting.longest_request.max(waits);
        }
    }
    waiting
}

/// What the gauges over all policies count.
#[derive(Default)]
struct Counted {
    states: HashMap<ServiceState, i64>,
    exposed: BTreeSet<RunService>,
    bypassed: i64,
    contested: BTreeSet<RunService>,
    held: BTreeSet<RunService>,
    /// Since when the plan waits that has waited longest, as far as a status says.
    held_since: Option<Timestamp>,
    expiring: usize,
}

impl Counted {
    /// `reached`: the services that its selectors have newly come to and that wait for approval.
    fn add(&mut self, record: &Record, reached: &BTreeSet<RunService>, now: Timestamp) {
        let tomorrow = now
            .checked_add(SignedDuration::from_hours(24))
            .unwrap_or(Timestamp::MAX);
        if record.intent.enforces() && !record.intent.deleting {
            let ends = record.intent.declared.iter().filter_map(|d| d.expires);
            self.expiring += ends.filter(|e| *e > now && *e <= tomorrow).count();
        }
        self.bypassed += i64::from(record.gauges().bypassed);
        *self.states.entry(ServiceState::Held).or_default() += record.denied() as i64;
        let mut any_held = false;
        for (service, observation) in record.observations() {
            let waits = reached.contains(service);
            let state = if waits {
                ServiceState::Held
            } else {
                status::state_of(observation)
            };
            *self.states.entry(state).or_default() += 1;
            let Ok(findings) = &observation.result else {
                continue;
            };
            if findings.exposed.is_some() {
                self.exposed.insert(service.clone());
            }
            if !findings.contested.is_empty() {
                self.contested.insert(service.clone());
            }
            if findings.approve.is_some() || findings.plan.is_some() || waits {
                self.held.insert(service.clone());
                any_held = true;
            }
        }
        if any_held {
            let services = record.status().get().services;
            let waiting = services.iter().filter(|s| s.state == ServiceState::Held);
            self.held_since = self
                .held_since
                .into_iter()
                .chain(waiting.map(|s| s.since.0))
                .min();
        }
    }
}
