//! From what was found on each service to the status of a policy. Pure: `now` is passed in.

pub mod conditions;
pub mod events;
pub mod kstatus;
pub mod observation;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    api::{
        ChangedBy, ConditionType, InvokerPolicyStatus, MAX_STATUS_SERVICES, Mode, Reason,
        ServiceState, ServiceStatus, StatusSummary,
    },
    fault::{Fault, Retry},
    iam::{Invocation, RunService},
    intent::Intent,
    plan::SelectorImpact,
};
use conditions::{Conditions, Truth};
pub use observation::{
    Applied, Before, By, Drift, Findings, Held, Members, News, Observation, Reconciled, Written,
};

/// Something that a policy names and may not touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedTarget {
    /// The service; `None` where a selector may not look at all.
    pub service: Option<RunService>,
    /// Who says no, and why.
    pub message: String,
}

/// Services that selectors found and that the policy may not change yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachedServices {
    pub spread: SelectorImpact,
    pub services: BTreeSet<RunService>,
}

/// All that the status of a policy depends on.
#[derive(Debug)]
pub struct StatusInput<'a> {
    pub intent: &'a Intent,
    /// The services that the policy names now, with the last look at each; `None` where there was
    /// none yet.
    pub observations: &'a BTreeMap<RunService, Option<&'a Observation>>,
    /// Selectors, by their place among the targets, that are known to match no service.
    pub unmatched: &'a [usize],
    /// Why services cannot be found by selector, where that is so.
    pub discovery: Option<&'a Fault>,
    /// A selector has not been answered yet.
    pub discovering: bool,
    /// What it names and may not touch.
    pub denied: &'a [DeniedTarget],
    /// How many services its selectors match that it may not touch.
    pub outside: usize,
    /// What its selectors found and it may not change yet.
    pub reach: Option<&'a ReachedServices>,
    /// Nothing is done for it, and why.
    pub stopped: Option<(Reason, Arc<str>)>,
    /// Services on which it goes back, and behind which change.
    pub back: &'a [(&'a RunService, &'a str)],
    /// Name of the last InvokerChange made for it.
    pub last_change: Option<&'a str>,
    /// How long IAM may take to act on a change.
    pub propagation: Duration,
    pub now: Timestamp,
}

/// Folds the facts into a status. `old` gives the times that stay.
pub fn compute_status(facts: &StatusInput<'_>, old: &InvokerPolicyStatus) -> InvokerPolicyStatus {
    let intent = facts.intent;
    if still_stands(facts, old) {
        return old.clone();
    }
    let mut services = service_entries(facts, old);
    let summary = summarise(facts, &services);
    let pending = !rests(intent)
        && !is_halted(facts)
        && (facts.discovering
            || facts
                .observations
                .values()
                .any(|look| look.is_none_or(|l| !l.answers(intent))));

    let mut conditions = Conditions::new(&old.conditions, intent.generation, facts.now);
    let mut verdict = ready(facts, &services, &summary, pending);
    if !pending && !rests(intent) && !intent.deleting && !is_halted(facts) {
        verdict.message.push_str(&remarks(facts));
    }
    conditions.set(
        ConditionType::Ready,
        verdict.truth,
        verdict.reason,
        &verdict.message,
    );
    if verdict.reconciling {
        conditions.set(
            ConditionType::Reconciling,
            Truth::True,
            verdict.reason,
            &verdict.message,
        );
    }
    if verdict.stalled {
        conditions.set(
            ConditionType::Stalled,
            Truth::True,
            verdict.reason,
            &verdict.message,
        );
    }
    set_drifted(&mut conditions, facts, &services, &summary, pending);
    set_propagated(&mut conditions, facts, old);
    let exposed: Vec<_> = facts
        .observations
        .iter()
        .filter_map(|(s, l)| Some((s, l.as_ref()?.result.as_ref().ok()?.exposed.as_ref()?)))
        .map(|(s, why)| format!("{} ({}): {why}", s.name, s.region))
        .collect();
    if !exposed.is_empty() {
        let message = format!("anyone can call {}", listed(&exposed, 5));
        conditions.set(
            ConditionType::Exposed,
            Truth::True,
            Reason::Drifted,
            &message,
        );
    }

    let fights: Vec<_> = facts
        .observations
        .iter()
        .filter_map(|(s, l)| Some((s, &l.as_ref()?.result.as_ref().ok()?.contested)))
        .filter(|(_, grants)| !grants.is_empty())
        .map(|(s, grants)| format!("{} ({}): {}", s.name, s.region, grants.listed(3)))
        .collect();
    if !fights.is_empty() {
        let told = facts
            .observations
            .values()
            .flatten()
            .filter_map(|l| l.result.as_ref().ok())
            .any(|s| matches!(s.by, By::Known(_)));
        let message = format!(
            "somebody else keeps changing {}; {}let one of you own it",
            listed_with(&fights, 5, "; "),
            if told {
                ""
            } else {
                "find out who (Cloud Audit Logs: SetIamPolicy), and "
            }
        );
        conditions.set(
            ConditionType::Contested,
            Truth::True,
            Reason::Drifted,
            &message,
        );
    }

    let all = services.len();
    services.truncate(shown(&services));
    let omitted = all - services.len();
    InvokerPolicyStatus {
        observed_generation: if pending {
            old.observed_generation
        } else {
            Some(intent.generation)
        },
        last_handled_requested_at: if pending {
            old.last_handled_requested_at.clone()
        } else {
            intent.requested_at.as_deref().map(str::to_owned)
        },
        last_change: facts
            .last_change
            .map(str::to_owned)
            .or_else(|| old.last_change.clone()),
        conditions: conditions.into_list(),
        expired: intent.expired(facts.now).collect::<Members>().shown(),
        summary: Some(summary),
        services,
        services_omitted: (omitted > 0).then_some(omitted as i64),
    }
}

/// The most bytes that the services of a status take: the API server stores 1.5 MiB of an object,
/// and the spec needs its part.
const MAX_SERVICE_BYTES: usize = 256 * 1024;

/// How many of the entries, in their order, a status shows.
fn shown(services: &[ServiceStatus]) -> usize {
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

/// After a restart what was said before is true until a look says otherwise: a restart is no news,
/// and must not make thousands of policies look unsettled while their services are read one by one.
fn still_stands(facts: &StatusInput<'_>, old: &InvokerPolicyStatus) -> bool {
    let intent = facts.intent;
    let told = old.observed_generation == Some(intent.generation)
        && old.last_handled_requested_at.as_deref() == intent.requested_at.as_deref()
        && !old.conditions.is_empty();
    let unseen = facts.discovering || facts.observations.values().any(Option::is_none);
    // Services that were not there before are news, seen or not.
    let known = old.summary.as_ref().is_some_and(|s| {
        facts.discovering
            || s.services == (facts.observations.len() + denied_services(facts).count()) as i64
    });
    told && unseen && known && !is_halted(facts) && !intent.suspended && !intent.deleting
}

/// Whether nothing is done because somebody said so. Its deletion takes back what belongs to it
/// nevertheless.
fn rests(intent: &Intent) -> bool {
    intent.suspended && !intent.deleting
}

/// Whether nothing is done for the policy until something changes, as opposed to until something is
/// read.
fn is_halted(facts: &StatusInput<'_>) -> bool {
    facts
        .stopped
        .as_ref()
        .is_some_and(|(reason, _)| *reason != Reason::Progressing)
}

/// The state that a look shows.
pub fn state_of(look: &Observation) -> ServiceState {
    match &look.result {
        Err(fault) if fault.class.row().gone => ServiceState::NotFound,
        Err(_) => ServiceState::Failed,
        Ok(seen) if seen.held.iter().any(|h| needs_person(h.reason)) => ServiceState::Held,
        Ok(seen) if !seen.in_sync() => ServiceState::Drifted,
        Ok(_) => ServiceState::InSync,
    }
}

/// Holds that wait for a person, as opposed to a mode that was chosen.
fn needs_person(reason: Reason) -> bool {
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
fn denied_services<'a>(
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

fn service_entries(facts: &StatusInput<'_>, old: &InvokerPolicyStatus) -> Vec<ServiceStatus> {
    let intent = facts.intent;
    let before: BTreeMap<(&str, &str), &ServiceStatus> = old
        .services
        .iter()
        .map(|s| ((s.region.as_str(), s.name.as_str()), s))
        .collect();
    let entry = |service: &RunService, state: ServiceState| ServiceStatus {
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
        message: String::new(),
        since: before
            .get(&(&*service.region, &*service.name))
            .filter(|b| b.state == state)
            .map_or(Time(whole_seconds(facts.now)), |b| b.since.clone()),
    };
    // What was said of a service stands until a look says otherwise: it is also all that is left of
    // the time before a restart.
    let told_before = |service: &RunService| {
        let entry = before.get(&(&*service.region, &*service.name));
        entry
            .filter(|_| !intent.deleting && !rests(intent))
            .map(|e| (*e).clone())
    };
    let mut entries: Vec<ServiceStatus> = facts
        .observations
        .iter()
        .filter_map(|(service, look)| {
            let Some(look) = look else {
                return told_before(service);
            };
            let reached = facts.reach.filter(|r| r.services.contains(service));
            let waits = reached.is_some_and(|r| matches!(r.spread, SelectorImpact::Held { .. }));
            let mut entry = entry(service, if waits { ServiceState::Held } else { state_of(look) });
            match &look.result {
                Err(fault) => entry.message = fault.advice(),
                Ok(seen) => {
                    entry.missing = seen.missing.shown();
                    entry.unexpected = seen.unexpected.shown();
                    entry.protected = seen.protected.shown();
                    entry.also_invokers = seen.also.shown();
                    entry.exposed = seen.exposed.is_some();
                    entry.contested = !seen.contested.is_empty();
                    if let By::Known(by) = &seen.by {
                        entry.drift_by = Some(ChangedBy::clone(by));
                    }
                    entry.approve = seen.approve.as_deref().unwrap_or_default().to_owned();
                    let held = seen.held.iter().filter(|h| needs_person(h.reason));
                    let mut words: Vec<String> = held.map(|h| format!("{}: {}", h.member, h.message)).collect();
                    words.extend((seen.held_more > 0).then(|| format!("and {} more are held back", seen.held_more)));
                    let back = facts.back.iter().find(|(s, _)| *s == service);
                    words.extend(back.map(|(_, change)| {
                        format!("gone back behind {change}; the spec rules again when the annotation run-invoker.dev/rollback is removed")
                    }));
                    words.extend(waits.then(|| "new to this policy; waits for approval".to_owned()));
                    words.extend(seen.notes.iter().cloned());
                    entry.message = listed_with(&words, 5, "; ");
                }
            }
            Some(entry)
        })
        .collect();
    entries.extend(denied_services(facts).map(|(service, why)| ServiceStatus {
        message: why.to_owned(),
        ..entry(service, ServiceState::Held)
    }));
    entries.sort_by(|a, b| (a.state, &a.region, &a.name).cmp(&(b.state, &b.region, &b.name)));
    entries
}

fn summarise(facts: &StatusInput<'_>, services: &[ServiceStatus]) -> StatusSummary {
    let count = |state| services.iter().filter(|s| s.state == state).count() as i64;
    let sum = |f: fn(&Findings) -> usize| -> i64 {
        facts
            .observations
            .values()
            .flatten()
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

struct Verdict {
    truth: Truth,
    reason: Reason,
    message: String,
    reconciling: bool,
    stalled: bool,
}

impl Verdict {
    fn new(truth: Truth, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            truth,
            reason,
            message: message.into(),
            reconciling: false,
            stalled: false,
        }
    }
    fn reconciling(self) -> Self {
        Self {
            reconciling: true,
            ..self
        }
    }
    fn stalled(self) -> Self {
        Self {
            stalled: true,
            ..self
        }
    }
}

fn ready(
    facts: &StatusInput<'_>,
    services: &[ServiceStatus],
    summary: &StatusSummary,
    pending: bool,
) -> Verdict {
    let intent = facts.intent;
    if rests(intent) {
        return Verdict::new(
            Truth::Unknown,
            Reason::Suspended,
            "suspended; reality is not read and nothing is written",
        );
    }
    match &facts.stopped {
        Some((Reason::Progressing, why)) => {
            return Verdict::new(Truth::Unknown, Reason::Progressing, &**why).reconciling();
        }
        Some((reason, why)) => return Verdict::new(Truth::False, *reason, &**why).stalled(),
        None => {}
    }
    if intent.deleting {
        return deleting(facts, services);
    }
    if pending {
        let done = facts
            .observations
            .values()
            .flatten()
            .filter(|l| l.answers(intent))
            .count();
        let message = format!(
            "looked at {done} of {} services since the last change",
            facts.observations.len()
        );
        return Verdict::new(Truth::Unknown, Reason::Progressing, message).reconciling();
    }
    if let Some(r) = intent.rejections.first() {
        let more = intent.rejections.len() - 1;
        let tail = if more > 0 {
            format!(" (and {more} more)")
        } else {
            String::new()
        };
        let message = format!(
            "{}: {}{tail}; the other entries are applied",
            r.field, r.message
        );
        return Verdict::new(Truth::False, Reason::InvalidSpec, message).stalled();
    }
    let unlinked = intent.accounts.as_ref().map_or(&[][..], |a| &a.unlinked);
    if let Some(r) = unlinked.first() {
        let more = unlinked.len() - 1;
        let tail = if more > 0 {
            format!(" (and {more} more)")
        } else {
            String::new()
        };
        let message = format!(
            "{}: {}{tail}; the other entries are applied",
            r.field, r.message
        );
        return Verdict::new(Truth::False, Reason::NoGoogleServiceAccount, message).stalled();
    }
    if let Some(b) = facts.denied.first() {
        let more = facts.denied.len() - 1;
        let tail = if more > 0 {
            format!(" (and {more} more)")
        } else {
            String::new()
        };
        let place = b
            .service
            .as_ref()
            .map_or("selector".into(), |s| format!("{} ({})", s.name, s.region));
        let message = format!(
            "{place}: {}{tail}; it is neither read nor written",
            b.message
        );
        return Verdict::new(Truth::False, Reason::GuardrailViolated, message).stalled();
    }
    match facts.reach.map(|r| (&r.spread, &r.services)) {
        Some((SelectorImpact::Counting { unseen }, _)) => {
            let message = format!(
                "finding out how far the selector reaches: {unseen} services are still to be looked at"
            );
            return Verdict::new(Truth::Unknown, Reason::Progressing, message).reconciling();
        }
        Some((
            SelectorImpact::Held {
                services,
                limit,
                hash,
            },
            names,
        )) => {
            let names: Vec<String> = names
                .iter()
                .map(|s| format!("{} ({})", s.name, s.region))
                .collect();
            let message = format!(
                "the selector reaches {services} services that this policy would change for the first time, and {limit} need no approval: {}. To let exactly these through: {}",
                listed(&names, 5),
                approve_with(intent, hash)
            );
            return Verdict::new(Truth::False, Reason::ApprovalRequired, message).stalled();
        }
        None => {}
    }
    // The failure that most needs a person stands for all.
    let faults = facts
        .observations
        .iter()
        .filter_map(|(s, l)| Some((Some(s), l.as_ref()?.result.as_ref().err()?)));
    let faults = faults.chain(facts.discovery.map(|f| (None, f)));
    if let Some((service, fault)) = faults.max_by_key(|(s, f)| {
        (
            f.class.row().retry == Retry::Slow,
            std::cmp::Reverse((f.class, *s)),
        )
    }) {
        let place = service.map_or("finding services".into(), |s| {
            format!("{} ({})", s.name, s.region)
        });
        let failed = summary.failed - 1;
        let more = if failed > 0 {
            format!(" (and {failed} more services)")
        } else {
            String::new()
        };
        let message = format!("{place}: {}{more}", fault.advice());
        let verdict = Verdict::new(Truth::False, fault.class.row().reason, message);
        return if fault.class.row().retry == Retry::Slow {
            verdict.stalled()
        } else {
            verdict.reconciling()
        };
    }
    let held = facts.observations.iter().filter_map(|(s, l)| {
        let seen = l.as_ref()?.result.as_ref().ok()?;
        seen.held
            .iter()
            .find(|h| needs_person(h.reason))
            .map(|h| (s, h))
    });
    if let Some((service, h)) = held.min_by_key(|(s, h)| (h.reason, *s)) {
        let message = format!(
            "{} on {} ({}): {}; everything else is applied",
            h.member, service.name, service.region, h.message
        );
        return Verdict::new(Truth::False, h.reason, message).stalled();
    }
    if facts.observations.is_empty() {
        let message = "no service matches; check the selector's labels and regions";
        return Verdict::new(Truth::True, Reason::NothingSelected, message);
    }
    let mut warning = cannot_invoke(intent);
    if facts.outside > 0 {
        warning.push_str(&format!(
            "; {} matching services are outside of what guardrails allow and left alone",
            facts.outside
        ));
    }
    if let Some((service, change)) = facts.back.first() {
        warning.push_str(&format!(
            "; {} ({}) has gone back behind {change}",
            service.name, service.region
        ));
    }
    match intent.mode {
        Mode::Audit if summary.drifted > 0 => {
            let message = format!(
                "audit only: {} of {} services differ ({} missing, {} unexpected); mode: Enforce would change that{warning}",
                summary.drifted, summary.services, summary.missing, summary.unexpected
            );
            Verdict::new(Truth::True, Reason::Audited, message)
        }
        _ if summary.drifted == 0 && !facts.unmatched.is_empty() => Verdict::new(
            Truth::True,
            Reason::NothingSelected,
            format!(
                "{}; {} as declared{warning}",
                unmatched_in_words(facts.unmatched),
                services_in_words(summary.services)
            ),
        ),
        Mode::Audit => Verdict::new(
            Truth::True,
            Reason::Audited,
            format!(
                "audit only: {} as declared{warning}",
                services_in_words(summary.services)
            ),
        ),
        Mode::Enforce if summary.drifted > 0 => {
            let fight = facts.observations.iter().find_map(|(s, l)| {
                let seen = l.as_ref()?.result.as_ref().ok()?;
                let held = seen
                    .held
                    .iter()
                    .find(|h| matches!(h.reason, Reason::Drifted | Reason::Progressing))?;
                Some(format!(
                    "{} on {} ({}): {}",
                    held.member, s.name, s.region, held.message
                ))
            });
            let message = format!(
                "{} of {} services differ; {}",
                summary.drifted,
                summary.services,
                fight.as_deref().unwrap_or("being corrected")
            );
            Verdict::new(Truth::False, Reason::Drifted, message).reconciling()
        }
        Mode::Enforce => Verdict::new(
            Truth::True,
            Reason::InSync,
            format!(
                "{} as declared{warning}",
                services_in_words(summary.services)
            ),
        ),
    }
}

/// The command that agrees to a plan.
pub fn approve_with(intent: &Intent, hash: &str) -> String {
    format!(
        "kubectl -n {} annotate --overwrite ivp {} {}={hash}",
        intent.id.namespace,
        intent.id.name,
        crate::api::APPROVE
    )
}

fn services_in_words(n: i64) -> String {
    if n == 1 {
        "1 service".into()
    } else {
        format!("{n} services")
    }
}

fn unmatched_in_words(unmatched: &[usize]) -> String {
    let places: Vec<String> = unmatched
        .iter()
        .map(|place| format!("spec.services[{place}]"))
        .collect();
    format!(
        "the selector of {} matches no service, check its labels and regions",
        listed(&places, 3)
    )
}

/// What is acted on and is probably not meant, and entries that have ended.
fn remarks(facts: &StatusInput<'_>) -> String {
    let remarks = &facts.intent.remarks;
    let words: Vec<String> = remarks
        .iter()
        .map(|r| format!("{}: {}", r.field, r.message))
        .collect();
    let mut text = String::new();
    if !words.is_empty() {
        text.push_str(&format!("; {}", listed_with(&words, 3, "; ")));
    }
    let expired: Members = facts.intent.expired(facts.now).collect();
    if !expired.is_empty() {
        text.push_str(&format!(
            "; expired: {}, set a later time or remove the entry",
            expired.listed(3)
        ));
    }
    text
}

fn cannot_invoke(intent: &Intent) -> String {
    let count = |invocation| {
        let mut all = intent.declared.iter();
        all.by_ref()
            .filter(|d| d.grant.principal.invocation() == invocation)
            .count()
    };
    let mut text = match count(Invocation::Unsupported) {
        0 => String::new(),
        federated => format!(
            "; CannotInvoke: Cloud Run does not let the {federated} federated member(s) invoke, use a service account for them"
        ),
    };
    let workforce = count(Invocation::Disputed);
    if workforce > 0 {
        text.push_str(&format!(
            "; CannotInvoke: Google's pages disagree on whether Cloud Run lets the {workforce} workforce member(s) invoke, try it or use IAP for them"
        ));
    }
    text
}

fn retain_with(intent: &Intent) -> String {
    format!(
        "kubectl -n {} patch ivp {} --type merge -p '{{\"spec\":{{\"onDelete\":\"Retain\"}}}}'",
        intent.id.namespace, intent.id.name
    )
}

fn deleting(facts: &StatusInput<'_>, services: &[ServiceStatus]) -> Verdict {
    let stuck = facts.observations.iter().find_map(|(s, l)| {
        let fault = l.as_ref()?.result.as_ref().err()?;
        (!fault.class.row().gone && fault.class.row().retry == Retry::Slow).then_some((s, fault))
    });
    if let Some((service, fault)) = stuck {
        let message = format!(
            "cannot revoke on {} ({}): {}. To delete without revoking: {}",
            service.name,
            service.region,
            fault.advice(),
            retain_with(facts.intent)
        );
        return Verdict::new(Truth::False, fault.class.row().reason, message).stalled();
    }
    let held = facts.observations.iter().find_map(|(s, l)| {
        let seen = l.as_ref()?.result.as_ref().ok()?;
        seen.held
            .iter()
            .find(|h| needs_person(h.reason))
            .map(|h| (s, h))
    });
    if let Some((service, h)) = held {
        let message = format!(
            "cannot revoke on {} ({}): {}: {}. To delete without revoking: {}",
            service.name,
            service.region,
            h.member,
            h.message,
            retain_with(facts.intent)
        );
        return Verdict::new(Truth::False, h.reason, message).stalled();
    }
    let left = services
        .iter()
        .filter(|s| s.state != ServiceState::InSync && s.state != ServiceState::NotFound)
        .count();
    Verdict::new(
        Truth::False,
        Reason::Progressing,
        format!("being deleted; {left} services left to revoke on"),
    )
    .reconciling()
}

fn set_drifted(
    conditions: &mut Conditions<'_>,
    facts: &StatusInput<'_>,
    services: &[ServiceStatus],
    summary: &StatusSummary,
    pending: bool,
) {
    if rests(facts.intent) {
        return conditions.set(
            ConditionType::Drifted,
            Truth::Unknown,
            Reason::Suspended,
            "suspended; reality is not read",
        );
    }
    let differing = services
        .iter()
        .filter(|s| !s.missing.is_empty() || !s.unexpected.is_empty());
    let words: Vec<String> = differing.map(describe).collect();
    if !words.is_empty() {
        conditions.set(
            ConditionType::Drifted,
            Truth::True,
            Reason::Drifted,
            &listed_with(&words, 5, "; "),
        );
    } else if pending || summary.failed > 0 {
        conditions.set(
            ConditionType::Drifted,
            Truth::Unknown,
            Reason::Progressing,
            "not every service could be looked at",
        );
    } else {
        conditions.set(
            ConditionType::Drifted,
            Truth::False,
            Reason::InSync,
            "reality is as declared",
        );
    }
}

/// `checkout (europe-west1): missing user:a@acme.com; unexpected user:b@acme.com`.
fn describe(s: &ServiceStatus) -> String {
    let mut parts = Vec::new();
    if !s.missing.is_empty() {
        parts.push(format!("missing {}", listed(&s.missing, 3)));
    }
    if !s.unexpected.is_empty() {
        parts.push(format!("unexpected {}", listed(&s.unexpected, 3)));
    }
    let by = s
        .drift_by
        .as_ref()
        .map_or(String::new(), |by| format!(", by {by}"));
    format!("{} ({}): {}{by}", s.name, s.region, parts.join(", "))
}

fn set_propagated(
    conditions: &mut Conditions<'_>,
    facts: &StatusInput<'_>,
    old: &InvokerPolicyStatus,
) {
    let window = jiff::SignedDuration::try_from(facts.propagation).unwrap_or_default();
    let mut last = facts
        .observations
        .values()
        .flatten()
        .filter_map(|l| l.changed_at)
        .max();
    if last.is_none() {
        // After a restart the old condition is what is left of the change.
        last = old
            .conditions
            .iter()
            .find(|c| c.type_ == ConditionType::Propagated.as_str() && c.status == "False")
            .map(|c| c.last_transition_time.0);
    }
    match last
        .map(|at| at + window)
        .filter(|until| *until > facts.now)
    {
        Some(until) => {
            let message = format!(
                "changed lately; IAM may take until {} to act on it everywhere",
                whole_seconds(until)
            );
            conditions.set(
                ConditionType::Propagated,
                Truth::False,
                Reason::Progressing,
                &message,
            );
        }
        None => conditions.set(
            ConditionType::Propagated,
            Truth::True,
            Reason::InSync,
            "no recent change",
        ),
    }
}

/// The end of the propagation window, at which the status changes by itself.
pub fn propagated_at(
    observations: impl Iterator<Item = Option<Timestamp>>,
    window: Duration,
) -> Option<Timestamp> {
    let window = jiff::SignedDuration::try_from(window).ok()?;
    observations.flatten().max().map(|at| at + window)
}

/// Kubernetes times have whole seconds; a finer one would never compare equal after a round trip.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn listed(items: &[String], most: usize) -> String {
    listed_with(items, most, ", ")
}

fn listed_with(items: &[String], most: usize, separator: &str) -> String {
    let mut text = items
        .iter()
        .take(most)
        .cloned()
        .collect::<Vec<_>>()
        .join(separator);
    if items.len() > most {
        text.push_str(&format!("{separator}and {} more", items.len() - most));
    }
    text
}

#[cfg(test)]
mod tests;
