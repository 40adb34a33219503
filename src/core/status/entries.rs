//! What the status says of each service.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    By, Findings, Observation, StatusInput, is_suspended,
    text::{end_rollback_with, listed_with, whole_seconds},
};
use crate::{
    api::{
        ChangedBy, InvokerPolicyStatus, MAX_STATUS_SERVICES, Reason, ServiceState, ServiceStatus,
        StatusSummary,
    },
    iam::RunService,
    plan::SelectorImpact,
};

/// The most bytes that the services of a status take: the API server stores 1.5 MiB of an object,
/// and the spec needs its part.
const MAX_SERVICE_BYTES: usize = 256 * 1024;

/// How many of the entries, in their order, a status shows.
pub(super) fn shown(services: &[ServiceStatus]) -> usize {
    let lists = |s: &ServiceStatus| -> usize {
        let members = s
            .missing
            .iter()
            .chain(&s.unexpected)
            .chain(&s.protected)
            .chain(&s.also_invokers);
        members.map(|m| m.len() + 4).sum()
    };
    let mut left = MAX_SERVICE_BYTES;
    let fits = |s: &&ServiceStatus| {
        let bytes = lists(s) + s.message.len() + 400;
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    };
    services
        .iter()
        .take(MAX_STATUS_SERVICES)
        .take_while(fits)
        .count()
}

/// The same status without its services: for an object that is too large for the store with them.
pub fn shortened(status: InvokerPolicyStatus) -> InvokerPolicyStatus {
    let omitted = status.services_omitted.unwrap_or(0) + status.services.len() as i64;
    InvokerPolicyStatus {
        services: vec![],
        services_omitted: (omitted > 0).then_some(omitted),
        ..status
    }
}

/// The state that an observation shows.
pub fn state_of(observation: &Observation) -> ServiceState {
    match &observation.result {
        Err(fault) if fault.class.row().gone => ServiceState::NotFound,
        Err(_) => ServiceState::Failed,
        Ok(seen) if seen.held.iter().any(|h| needs_person(h.reason)) => ServiceState::Held,
        Ok(seen) if !seen.in_sync() => ServiceState::Drifted,
        Ok(_) => ServiceState::InSync,
    }
}

/// Holds that wait for a person, as opposed to a mode that was chosen.
pub(super) fn needs_person(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Audited
            | Reason::Suspended
            | Reason::InSync
            | Reason::Progressing
            | Reason::Drifted
    )
}

/// Services that the policy names one by one and may not touch.
pub(super) fn denied_services<'a>(
    facts: &'a StatusInput<'_>,
) -> impl Iterator<Item = (&'a RunService, &'a str)> {
    let denied = if facts.intent.deleting {
        &[]
    } else {
        facts.denied
    };
    denied
        .iter()
        .filter_map(|b| Some((b.service.as_ref()?, b.message.as_str())))
}

pub(super) fn service_entries(
    facts: &StatusInput<'_>,
    old: &InvokerPolicyStatus,
) -> Vec<ServiceStatus> {
    // Nobody reads them: what was found before is not the truth of now.
    if is_suspended(facts.intent) {
        return Vec::new();
    }
    let before = Before(
        old.services
            .iter()
            .map(|s| ((s.region.as_str(), s.name.as_str()), s))
            .collect(),
    );
    let shown = |(service, observation): (&RunService, &Option<&Observation>)| match observation {
        Some(observation) => Some(observed_entry(facts, &before, service, observation)),
        None => before.standing(facts, service),
    };
    let mut entries: Vec<ServiceStatus> = facts.observations.iter().filter_map(shown).collect();
    entries.extend(denied_services(facts).map(|(service, why)| ServiceStatus {
        message: why.to_owned(),
        ..before.entry(facts, service, ServiceState::Held)
    }));
    // Of those in one state the exposed come first: the last ones may be left out.
    entries.sort_by(|a, b| {
        let place = |s: &ServiceStatus| (s.state, !s.exposed);
        (place(a), &a.region, &a.name).cmp(&(place(b), &b.region, &b.name))
    });
    entries
}

/// What the last status says of each service, by region and name.
struct Before<'a>(BTreeMap<(&'a str, &'a str), &'a ServiceStatus>);

impl Before<'_> {
    fn get(&self, service: &RunService) -> Option<&ServiceStatus> {
        self.0.get(&(&*service.region, &*service.name)).copied()
    }

    /// What was said of a service stands until an observation says otherwise: it is also all that
    /// is left of the time before a restart.
    fn standing(&self, facts: &StatusInput<'_>, service: &RunService) -> Option<ServiceStatus> {
        let stands = !facts.intent.deleting && !is_suspended(facts.intent);
        self.get(service).filter(|_| stands).cloned()
    }

    /// An entry without findings; in this state since when it is.
    fn entry(
        &self,
        facts: &StatusInput<'_>,
        service: &RunService,
        state: ServiceState,
    ) -> ServiceStatus {
        ServiceStatus {
            region: service.region.to_string(),
            name: service.name.to_string(),
            state,
            missing: vec![],
            unexpected: vec![],
            protected: vec![],
            also_invokers: vec![],
            exposed: false,
            contested: false,
            drift_by: None,
            approve: String::new(),
            plan: String::new(),
            message: String::new(),
            since: self
                .get(service)
                .filter(|b| b.state == state)
                .map_or(Time(whole_seconds(facts.now)), |b| b.since.clone()),
        }
    }
}

fn observed_entry(
    facts: &StatusInput<'_>,
    before: &Before<'_>,
    service: &RunService,
    observation: &Observation,
) -> ServiceStatus {
    let reached = facts.reach.filter(|r| r.services.contains(service));
    let reached_plan = reached.and_then(|r| match &r.spread {
        SelectorImpact::Held { plan, .. } => Some(plan),
        SelectorImpact::Counting { .. } => None,
    });
    let waits = reached_plan.is_some();
    let state = if waits {
        ServiceState::Held
    } else {
        state_of(observation)
    };
    let entry = before.entry(facts, service, state);
    match &observation.result {
        Err(fault) => ServiceStatus {
            message: fault.advice(),
            ..entry
        },
        Ok(found) => ServiceStatus {
            missing: found.missing.shown(),
            unexpected: found.unexpected.shown(),
            protected: found.protected.shown(),
            also_invokers: found.also_invokers(facts.roles),
            exposed: is_exposed(facts, service, found),
            contested: !found.contested.is_empty(),
            drift_by: match &found.by {
                By::Known(by) => Some(ChangedBy::clone(by)),
                _ => None,
            },
            approve: found.approve.as_deref().unwrap_or_default().to_owned(),
            plan: reached_plan
                .or(found.plan.as_ref())
                .map(|held| held.hash.to_string())
                .unwrap_or_default(),
            message: message(facts, service, found, waits),
            ..entry
        },
    }
}

/// Said of a service that everybody has a role on of which nobody knows what it carries.
pub const PERHAPS_EXPOSED: &str = "perhaps anyone can call it";

/// Whether anyone can call a service for sure, by itself or by a grant above it.
fn is_exposed(facts: &StatusInput<'_>, service: &RunService, found: &Findings) -> bool {
    let own = found.exposed.as_ref();
    own.is_some_and(|e| e.judged(facts.roles).is_sure())
        || facts.opened.iter().any(|(opened, _)| *opened == service)
}

/// Said of a service that a selector newly reaches, and that waits for approval.
pub const NEW_TO_POLICY: &str = "new to this policy; waits for approval";

/// What a person should know of a service that could be read.
fn message(facts: &StatusInput<'_>, service: &RunService, found: &Findings, waits: bool) -> String {
    let held = found.held.iter().filter(|h| needs_person(h.reason));
    let mut words: Vec<String> = held
        .map(|h| format!("{}: {}", h.member, h.message))
        .collect();
    if found.held_more > 0 {
        words.push(format!("and {} more are held back", found.held_more));
    }
    if let Some((_, change)) = facts.back.iter().find(|(s, _)| *s == service) {
        words.push(format!(
            "rolled back to before {change}; to end it: {}",
            end_rollback_with(facts.intent)
        ));
    }
    if waits {
        words.push(NEW_TO_POLICY.to_owned());
    }
    let exposure = found.exposed.as_ref().map(|e| e.judged(facts.roles));
    if let Some(perhaps) = exposure.filter(|e| !e.is_sure()) {
        words.push(format!("{PERHAPS_EXPOSED}: {perhaps}"));
    }
    words.extend(found.notes.iter().cloned());
    listed_with(&words, 5, "; ")
}

pub(super) fn summarise(facts: &StatusInput<'_>, services: &[ServiceStatus]) -> StatusSummary {
    let count = |state| services.iter().filter(|s| s.state == state).count() as i64;
    let sum = |f: fn(&Findings) -> usize| -> i64 {
        facts
            .observations
            .values()
            .flatten()
            .filter(|_| !is_suspended(facts.intent))
            .filter_map(|l| l.result.as_ref().ok())
            .map(|s| f(s) as i64)
            .sum()
    };
    StatusSummary {
        services: (facts.observations.len() + denied_services(facts).count()) as i64,
        in_sync: count(ServiceState::InSync),
        drifted: count(ServiceState::Drifted),
        failed: count(ServiceState::Failed) + count(ServiceState::NotFound),
        held: count(ServiceState::Held),
        missing: sum(|s| s.missing.len()),
        unexpected: sum(|s| s.unexpected.len()),
    }
}
