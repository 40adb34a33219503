//! Which events an observation gives rise to. Only changes make events: a reconcile that finds what
//! the last one found makes none, so there is never one per interval.

use std::collections::BTreeMap;

use super::{
    entries::PERHAPS_EXPOSED,
    observation::{By, Drift, Findings, Members, Written},
};
use crate::{
    api::{EventReason, InvokerPolicyStatus, Reason, ServiceStatus, StatusCondition},
    fault::Fault,
    iam::RunService,
};

/// An event to publish on a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub reason: EventReason,
    pub warning: bool,
    pub text: String,
}

impl Note {
    fn normal(reason: EventReason, text: String) -> Self {
        Self {
            reason,
            warning: false,
            text: shorten(text),
        }
    }
    fn warning(reason: EventReason, text: String) -> Self {
        Self {
            reason,
            warning: true,
            text: shorten(text),
        }
    }
}

/// What changed on a service since a policy last saw it.
pub struct Changed<'a> {
    pub drifted: &'a Drift,
    /// Who made the drift.
    pub by: By,
    pub written: Vec<Written>,
}

/// The events between two observations of one service on behalf of one policy. `known` is what was
/// found last.
pub fn notes(
    service: &RunService,
    known: Option<&Findings>,
    found: &Findings,
    changed: &Changed<'_>,
) -> Vec<Note> {
    let mut notes = Vec::new();
    let place = format!("{} ({})", service.name, service.region);
    let Changed {
        drifted,
        by,
        written,
    } = changed;
    if !drifted.is_empty() {
        let text = format!("{place}: {}{}", difference(drifted), by.words());
        notes.push(Note::warning(EventReason::DriftDetected, text));
    }
    notes.extend(changes(service, written));
    for h in found
        .held
        .iter()
        .filter(|h| known.is_none_or(|k| !k.held.contains(h)))
    {
        let reason = match h.reason {
            Reason::InvalidMember | Reason::OrganizationPolicy => EventReason::InvalidMember,
            Reason::GuardrailViolated => EventReason::GuardrailViolated,
            Reason::ApprovalRequired => EventReason::ApprovalRequired,
            Reason::MemberLimit => EventReason::CloudError,
            _ => continue,
        };
        notes.push(Note::warning(
            reason,
            format!("{place}: {}: {}", h.member, h.message),
        ));
    }
    if !found.contested.is_empty() && known.is_none_or(|k| k.contested.is_empty()) {
        let text = format!(
            "{place}: somebody else keeps changing {}",
            found.contested.listed(usize::MAX)
        );
        notes.push(Note::warning(EventReason::Contested, text));
    }
    notes
}

/// The events of what was written.
pub fn changes(service: &RunService, written: &[Written]) -> Vec<Note> {
    let mut notes = Vec::new();
    let place = format!("{} ({})", service.name, service.region);
    for w in written {
        for (reason, members) in [
            (EventReason::Granted, &w.granted),
            (EventReason::Revoked, &w.revoked),
        ] {
            if !members.is_empty() {
                notes.push(Note::normal(
                    reason,
                    format!("{place}: {}", members.listed(usize::MAX)),
                ));
            }
        }
        if w.corrects_drift {
            notes.push(Note::normal(
                EventReason::DriftCorrected,
                format!("{place}: {}", corrected(w)),
            ));
        }
    }
    notes
}

/// The event of a reconcile that failed.
pub fn failure(service: &RunService, fault: &Fault) -> Note {
    Note::warning(
        EventReason::CloudError,
        format!("{} ({}): {}", service.name, service.region, fault.advice()),
    )
}

/// The events of a new status that no observation gives rise to: what the policy may not touch at
/// all, discoveries that reach too far, and entries that have ended.
pub fn announcements(
    old: &InvokerPolicyStatus,
    new: &InvokerPolicyStatus,
    wide: bool,
) -> Vec<Note> {
    let mut notes = Vec::new();
    let ended: Members = new
        .expired
        .iter()
        .filter(|e| !old.expired.contains(e))
        .collect();
    if !ended.is_empty() {
        let text = format!("access ended: {}", ended.listed(usize::MAX));
        notes.push(Note::normal(EventReason::Expired, text));
    }
    notes.extend(exposure(old, new));
    notes.extend(bypass(old, new));
    notes.extend(rollback(old, new));
    let ready = |s: &InvokerPolicyStatus| s.conditions.iter().find(|c| c.type_ == "Ready").cloned();
    let (Some(now), before) = (ready(new), ready(old)) else {
        return notes;
    };
    let reason = match now.reason.as_str() {
        "GuardrailViolated" if wide => EventReason::GuardrailViolated,
        "ApprovalRequired" if wide => EventReason::ApprovalRequired,
        _ => return notes,
    };
    if before.is_none_or(|b| b.reason != now.reason || b.message != now.message) {
        notes.push(Note::warning(reason, now.message));
    }
    notes
}

/// How far something is exposed: not, perhaps, or surely.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Exposed {
    No,
    Perhaps,
    Surely,
}

impl Exposed {
    fn of(service: &ServiceStatus) -> Self {
        match service.exposed {
            true => Self::Surely,
            false if service.message.contains(PERHAPS_EXPOSED) => Self::Perhaps,
            false => Self::No,
        }
    }
}

/// The event when anyone begins to be able to call a service, or perhaps, whatever made it so: its
/// own policy, one above it, or what a search showed of a role.
fn exposure(old: &InvokerPolicyStatus, new: &InvokerPolicyStatus) -> Option<Note> {
    let condition = |s: &InvokerPolicyStatus| {
        let mut all = s.conditions.iter();
        all.find(|c| c.type_ == "Exposed").cloned()
    };
    let level = |c: &StatusCondition| match c.status.as_str() {
        "True" => Exposed::Surely,
        _ => Exposed::Perhaps,
    };
    let now = condition(new)?;
    let was = condition(old).as_ref().map_or(Exposed::No, level);
    let before: BTreeMap<_, Exposed> = old
        .services
        .iter()
        .map(|s| ((&s.region, &s.name), Exposed::of(s)))
        .collect();
    let grows = |s: &ServiceStatus| {
        let before = before.get(&(&s.region, &s.name)).copied();
        Exposed::of(s) > before.unwrap_or(Exposed::No)
    };
    let is_news = level(&now) > was || new.services.iter().any(grows);
    is_news.then(|| Note::warning(EventReason::Exposed, now.message))
}

/// The event when somebody whom no policy lists begins to be able to invoke from above, and when
/// that ends.
fn bypass(old: &InvokerPolicyStatus, new: &InvokerPolicyStatus) -> Option<Note> {
    let condition = |s: &InvokerPolicyStatus| {
        let mut all = s.conditions.iter();
        all.find(|c| c.type_ == "Bypassed").cloned()
    };
    let was = condition(old).is_some_and(|c| c.status == "True");
    let now = condition(new)?;
    match now.status.as_str() {
        "True" if !was => Some(Note::warning(EventReason::InheritedAccess, now.message)),
        "False" if was => Some(Note::normal(EventReason::InheritedAccessEnded, now.message)),
        _ => None,
    }
}

/// The event when a rollback comes into force, and when it ends.
fn rollback(old: &InvokerPolicyStatus, new: &InvokerPolicyStatus) -> Option<Note> {
    let message = |s: &InvokerPolicyStatus| {
        let mut all = s.conditions.iter();
        all.find(|c| c.type_ == "RolledBack")
            .map(|c| c.message.clone())
    };
    match (message(old), message(new)) {
        (was, Some(now)) if was.as_ref() != Some(&now) => {
            Some(Note::warning(EventReason::RolledBack, now))
        }
        (Some(_), None) => {
            let text = "rollback ended: the spec is in force".to_owned();
            Some(Note::normal(EventReason::RollbackEnded, text))
        }
        _ => None,
    }
}

fn difference(drift: &Drift) -> String {
    let mut parts = Vec::new();
    for (what, grants) in [
        ("missing", &drift.missing),
        ("unexpected", &drift.unexpected),
    ] {
        if !grants.is_empty() {
            parts.push(format!(
                "{what} {}",
                grants.iter().collect::<Members>().listed(usize::MAX)
            ));
        }
    }
    parts.join("; ")
}

/// `granted user:a@acme.com, revoked user:b@acme.com`.
fn corrected(written: &Written) -> String {
    let mut parts = Vec::new();
    for (what, members) in [("granted", &written.granted), ("revoked", &written.revoked)] {
        if !members.is_empty() {
            parts.push(format!("{what} {}", members.listed(usize::MAX)));
        }
    }
    parts.join(", ")
}

/// The API server refuses a note of more than 1 kB.
fn shorten(text: String) -> String {
    if text.len() <= 1000 {
        return text;
    }
    format!("{}…", &text[..text.floor_char_boundary(990)])
}
