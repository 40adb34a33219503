//! `Ready`, with `Reconciling` and `Stalled` beside it: the one thing that most needs saying.

use std::cmp::Reverse;

use super::{ConditionInput, Conditions, Truth, rolled_back::rolled_back};
use crate::{
    api::{ConditionType, Mode, Reason, ServiceState, ServiceStatus},
    fault::Retry,
    iam::{Invocation, RunService},
    intent::{Intent, Rejection},
    plan::SelectorImpact,
    status::{
        Held, Members, StatusInput, denied_by, how_to_agree, is_suspended, needs_person,
        text::{and_more, listed, listed_with, place, retain_with, services_in_words},
    },
};

/// What there is to say, and what follows from it.
struct Verdict {
    truth: Truth,
    reason: Reason,
    message: String,
    reconciling: bool,
    stalled: bool,
}

impl Verdict {
    fn new(truth: Truth, reason: Reason, message: impl Into<String>) -> Self {
        let (reconciling, stalled) = (false, false);
        Self {
            truth,
            reason,
            message: message.into(),
            reconciling,
            stalled,
        }
    }

    /// It passes by itself.
    fn reconciling(self) -> Self {
        Self {
            reconciling: true,
            ..self
        }
    }

    /// It needs a person.
    fn stalled(self) -> Self {
        Self {
            stalled: true,
            ..self
        }
    }
}

pub(super) fn set(conditions: &mut Conditions<'_>, input: &ConditionInput<'_>) {
    let Verdict {
        truth,
        reason,
        message,
        reconciling,
        stalled,
    } = verdict(input);
    conditions.set(ConditionType::Ready, truth, reason, &message);
    for (type_, is_so) in [
        (ConditionType::Reconciling, reconciling),
        (ConditionType::Stalled, stalled),
    ] {
        if is_so {
            conditions.set(type_, Truth::True, reason, &message);
        }
    }
}

fn verdict(input: &ConditionInput<'_>) -> Verdict {
    let facts = input.facts;
    // Nothing is done, or it is being taken back: that is all there is to say.
    if let Some(verdict) = suspended(facts).or_else(|| stopped(facts)) {
        return verdict;
    }
    if facts.intent.deleting {
        return deleting(facts, input.services);
    }
    if input.pending {
        return progress(facts);
    }
    let first = bad_entry(facts.intent)
        .or_else(|| denied_target(facts))
        .or_else(|| selector_impact(facts))
        .or_else(|| failure(input))
        .or_else(|| held(facts))
        .or_else(|| nothing_named(facts));
    let mut verdict = first.unwrap_or_else(|| applied(input));
    verdict.message.push_str(&remarks(facts));
    verdict
}

fn suspended(facts: &StatusInput<'_>) -> Option<Verdict> {
    let message = "suspended: IAM is neither read nor written";
    is_suspended(facts.intent).then(|| Verdict::new(Truth::Unknown, Reason::Suspended, message))
}

fn stopped(facts: &StatusInput<'_>) -> Option<Verdict> {
    let (reason, why) = facts.stopped.as_ref()?;
    Some(match reason {
        Reason::Progressing => Verdict::new(Truth::Unknown, *reason, &**why).reconciling(),
        reason => Verdict::new(Truth::False, *reason, &**why).stalled(),
    })
}

fn progress(facts: &StatusInput<'_>) -> Verdict {
    let observations = facts.observations.values().flatten();
    let done = observations.filter(|o| o.answers(facts.intent)).count();
    let all = facts.observations.len();
    let message = format!("reconciled {done} of {all} services since the last change");
    Verdict::new(Truth::Unknown, Reason::Progressing, message).reconciling()
}

/// An entry that means nobody.
fn bad_entry(intent: &Intent) -> Option<Verdict> {
    let unlinked = intent.accounts.as_ref().map_or(&[][..], |a| &a.unlinked);
    let say = |all: &[Rejection], reason| {
        let first = all.first()?;
        let (field, why, more) = (&first.field, &first.message, and_more(all.len()));
        let rest = the_rest(intent, "the other entries are applied");
        let message = format!("{field}: {why}{more}; {rest}");
        Some(Verdict::new(Truth::False, reason, message).stalled())
    };
    say(&intent.rejections, Reason::InvalidSpec)
        .or_else(|| say(unlinked, Reason::NoGoogleServiceAccount))
}

/// What happens to everything that nothing is said about: in Audit nothing is applied at all.
fn the_rest<'a>(intent: &Intent, applied: &'a str) -> &'a str {
    match intent.mode {
        Mode::Enforce => applied,
        Mode::Audit => "audit only, nothing is written",
    }
}

fn denied_target(facts: &StatusInput<'_>) -> Option<Verdict> {
    let first = facts.denied.first()?;
    let message = format!(
        "{}: {}{}; it is neither read nor written",
        first.service.as_ref().map_or("selector".into(), place),
        first.message,
        and_more(facts.denied.len())
    );
    Some(Verdict::new(Truth::False, Reason::GuardrailViolated, message).stalled())
}

fn selector_impact(facts: &StatusInput<'_>) -> Option<Verdict> {
    let reach = facts.reach?;
    Some(match &reach.spread {
        SelectorImpact::Counting { unseen } => {
            let message = format!("evaluating the selector: {unseen} services not read yet");
            Verdict::new(Truth::Unknown, Reason::Progressing, message).reconciling()
        }
        SelectorImpact::Held {
            services,
            limit,
            hash,
            ..
        } => {
            let next = match &reach.denied {
                Some(denial) => denied_by(denial),
                None => how_to_agree(facts.intent, hash, reach.approver.as_deref()),
            };
            let names: Vec<String> = reach.services.iter().map(place).collect();
            let message = format!(
                "the selector reaches {services} services that this policy would change for the first time, and {limit} need no approval: {}. {next}",
                listed(&names, 5)
            );
            Verdict::new(Truth::False, Reason::ApprovalRequired, message).stalled()
        }
    })
}

/// The failure that most needs a person stands for all.
fn failure(input: &ConditionInput<'_>) -> Option<Verdict> {
    let facts = input.facts;
    let observations = facts.observations.iter();
    let faults =
        observations.filter_map(|(s, o)| Some((Some(s), o.as_ref()?.result.as_ref().err()?)));
    let all = faults.chain(facts.discovery.map(|fault| (None, fault)));
    let (service, fault) = all.max_by_key(|(service, fault)| {
        let needs_person = fault.class.row().retry == Retry::Slow;
        (needs_person, Reverse((fault.class, *service)))
    })?;
    let row = fault.class.row();
    let more = match input.summary.failed - 1 {
        more if more > 0 => format!(" (and {more} more services)"),
        _ => String::new(),
    };
    let place = service.map_or("finding services".into(), place);
    let message = format!("{place}: {}{more}", fault.advice());
    let verdict = Verdict::new(Truth::False, row.reason, message);
    Some(if row.retry == Retry::Slow {
        verdict.stalled()
    } else {
        verdict.reconciling()
    })
}

/// What waits for a person on a service.
fn held_entries<'a>(
    facts: &'a StatusInput<'_>,
) -> impl Iterator<Item = (&'a RunService, &'a Held)> {
    facts.findings().filter_map(|(service, found)| {
        let held = found.held.iter().find(|h| needs_person(h.reason))?;
        Some((service, held))
    })
}

fn held(facts: &StatusInput<'_>) -> Option<Verdict> {
    let (service, held) = held_entries(facts).min_by_key(|(service, h)| (h.reason, *service))?;
    let all = facts.findings().flat_map(|(_, found)| &found.held);
    let others = all.filter(|h| needs_person(h.reason)).count() - 1;
    let others = match others {
        0 => String::new(),
        n => format!(", and {n} more are held (status.services says which)"),
    };
    let message = format!(
        "{} on {}: {}{others}; {}",
        held.member,
        place(service),
        held.message,
        the_rest(facts.intent, "everything else is applied")
    );
    Some(Verdict::new(Truth::False, held.reason, message).stalled())
}

fn nothing_named(facts: &StatusInput<'_>) -> Option<Verdict> {
    let message = "no service matches; check the selector's labels and regions";
    facts
        .observations
        .is_empty()
        .then(|| Verdict::new(Truth::True, Reason::NothingSelected, message))
}

/// Everything could be read and nothing waits for a person.
fn applied(input: &ConditionInput<'_>) -> Verdict {
    let (facts, summary) = (input.facts, input.summary);
    let (warning, all) = (warnings(facts), services_in_words(summary.services));
    match facts.intent.mode {
        Mode::Audit if summary.drifted > 0 => {
            let message = format!(
                "audit only: {} of {} services differ ({} missing, {} unexpected); mode: Enforce would change that{warning}",
                summary.drifted, summary.services, summary.missing, summary.unexpected
            );
            Verdict::new(Truth::True, Reason::Audited, message)
        }
        _ if summary.drifted == 0 && !facts.unmatched.is_empty() => {
            let message = format!("{}; {all} as declared{warning}", unmatched(facts.unmatched));
            Verdict::new(Truth::True, Reason::NothingSelected, message)
        }
        Mode::Audit => {
            let message = format!("audit only: {all} as declared{warning}");
            Verdict::new(Truth::True, Reason::Audited, message)
        }
        Mode::Enforce if summary.drifted > 0 => {
            let message = format!(
                "{} of {} services differ; {}",
                summary.drifted,
                summary.services,
                passing_hold(facts).as_deref().unwrap_or("being corrected")
            );
            Verdict::new(Truth::False, Reason::Drifted, message).reconciling()
        }
        Mode::Enforce => {
            let (reason, message) = match rolled_back(facts) {
                Some(back) => (
                    Reason::RolledBack,
                    format!("{back}; {all} in sync{warning}"),
                ),
                None => (Reason::InSync, format!("{all} as declared{warning}")),
            };
            Verdict::new(Truth::True, reason, message)
        }
    }
}

/// Why a difference is not corrected yet, where that passes by itself.
fn passing_hold(facts: &StatusInput<'_>) -> Option<String> {
    facts.findings().find_map(|(service, found)| {
        let passes = |h: &&Held| matches!(h.reason, Reason::Drifted | Reason::Progressing);
        let held = found.held.iter().find(passes)?;
        Some(format!(
            "{} on {}: {}",
            held.member,
            place(service),
            held.message
        ))
    })
}

fn warnings(facts: &StatusInput<'_>) -> String {
    let mut text = cannot_invoke(facts.intent);
    if facts.outside > 0 {
        text.push_str(&format!(
            "; {} matching services are outside of what guardrails allow and left alone",
            facts.outside
        ));
    }
    text
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

fn unmatched(entries: &[usize]) -> String {
    let places: Vec<String> = entries
        .iter()
        .map(|n| format!("spec.services[{n}]"))
        .collect();
    let places = listed(&places, 3);
    format!("the selector of {places} matches no service, check its labels and regions")
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

fn deleting(facts: &StatusInput<'_>, services: &[ServiceStatus]) -> Verdict {
    let stuck = facts
        .observations
        .iter()
        .find_map(|(service, observation)| {
            let fault = observation.as_ref()?.result.as_ref().err()?;
            let row = fault.class.row();
            let is_stuck = !row.gone && row.retry == Retry::Slow;
            is_stuck.then(|| (service, row.reason, fault.advice()))
        });
    let held = || {
        let (service, held) = held_entries(facts).next()?;
        Some((
            service,
            held.reason,
            format!("{}: {}", held.member, held.message),
        ))
    };
    if let Some((service, reason, why)) = stuck.or_else(held) {
        let (place, retain) = (place(service), retain_with(facts.intent));
        let message =
            format!("cannot revoke on {place}: {why}. To delete without revoking: {retain}");
        return Verdict::new(Truth::False, reason, message).stalled();
    }
    let is_left =
        |s: &&ServiceStatus| !matches!(s.state, ServiceState::InSync | ServiceState::NotFound);
    let left = services.iter().filter(is_left).count();
    let message = format!("being deleted; {left} services left to revoke on");
    Verdict::new(Truth::False, Reason::Progressing, message).reconciling()
}
