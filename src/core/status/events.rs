//! Which events a look at a service gives rise to. Only changes make events: a look that finds what the last one found
//! makes none, so there is never one per interval.

use super::{Findings, Observation};
use crate::{
    api::{EventReason, InvokerPolicyStatus, Reason},
    iam::RunService,
};

/// An event to publish on a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub reason: EventReason,
    pub warning: bool,
    pub text: String,
}

/// What the operator wrote in this round, as members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub granted: Vec<String>,
    pub revoked: Vec<String>,
    /// The write put back what somebody else had changed.
    pub corrects_drift: bool,
}

/// The events between two looks at one service on behalf of one policy.
pub fn notes(
    service: &RunService,
    before: Option<&Observation>,
    found: &Findings,
    after: &Observation,
    written: &Written,
) -> Vec<Note> {
    let mut notes = Vec::new();
    let place = format!("{} ({})", service.name, service.region);
    let mut note = |reason, warning, text: String| notes.push(Note { reason, warning, text: shorten(text) });
    let known = before.and_then(|l| l.result.as_ref().ok());

    // Drift is what differs although this very declaration was looked at before.
    let same_spec = before.is_some_and(|b| b.generation == after.generation);
    let fresh = known.is_none_or(|k| k.missing != found.missing || k.unexpected != found.unexpected);
    if !found.in_sync() && fresh && (same_spec || written == &Written::default()) && after.result.is_ok() {
        note(EventReason::DriftDetected, true, format!("{place}: {}{}", difference(found), found.by.words()));
    }
    for (reason, members) in [(EventReason::Granted, &written.granted), (EventReason::Revoked, &written.revoked)] {
        if !members.is_empty() {
            note(reason, false, format!("{place}: {}", members.join(", ")));
        }
    }
    if written.corrects_drift && !(written.granted.is_empty() && written.revoked.is_empty()) {
        note(
            EventReason::DriftCorrected,
            false,
            format!("{place}: granted {}, revoked {}", written.granted.len(), written.revoked.len()),
        );
    }
    match &after.result {
        Err(fault) => {
            let repeated = before.and_then(|l| l.result.as_ref().err()).is_some_and(|f| f.class == fault.class);
            if !repeated {
                note(EventReason::CloudError, true, format!("{place}: {}", fault.advice()));
            }
        }
        Ok(seen) => {
            for h in seen.held.iter().filter(|h| known.is_none_or(|k| !k.held.contains(h))) {
                let reason = match h.reason {
                    Reason::InvalidMember | Reason::OrganizationPolicy => EventReason::InvalidMember,
                    Reason::GuardrailViolated => EventReason::GuardrailViolated,
                    Reason::ApprovalRequired => EventReason::ApprovalRequired,
                    Reason::MemberLimit => EventReason::CloudError,
                    _ => continue,
                };
                note(reason, true, format!("{place}: {}: {}", h.member, h.message));
            }
            let fresh: Vec<&str> = seen
                .contested
                .iter()
                .filter(|_| known.is_none_or(|k| k.contested.is_empty()))
                .map(String::as_str)
                .collect();
            if !fresh.is_empty() {
                note(
                    EventReason::Contested,
                    true,
                    format!("{place}: somebody else keeps changing {}", fresh.join(", ")),
                );
            }
            if let Some(why) = seen.exposed.as_ref().filter(|w| known.and_then(|k| k.exposed.as_ref()) != Some(w)) {
                note(EventReason::Exposed, true, format!("{place}: anyone can call it: {why}"));
            }
        }
    }
    notes
}

/// The events of a new status that no look gives rise to: what the policy may not touch at all, and discoveries that
/// reach too far.
pub fn announcements(old: &InvokerPolicyStatus, new: &InvokerPolicyStatus, wide: bool) -> Vec<Note> {
    let ready = |s: &InvokerPolicyStatus| s.conditions.iter().find(|c| c.type_ == "Ready").cloned();
    let (Some(now), before) = (ready(new), ready(old)) else { return vec![] };
    let reason = match now.reason.as_str() {
        "GuardrailViolated" if wide => EventReason::GuardrailViolated,
        "ApprovalRequired" if wide => EventReason::ApprovalRequired,
        _ => return vec![],
    };
    if before.is_some_and(|b| b.reason == now.reason && b.message == now.message) {
        return vec![];
    }
    vec![Note { reason, warning: true, text: shorten(now.message) }]
}

fn difference(seen: &Findings) -> String {
    let mut parts = Vec::new();
    if !seen.missing.is_empty() {
        parts.push(format!("missing {}", seen.missing.join(", ")));
    }
    if !seen.unexpected.is_empty() {
        parts.push(format!("unexpected {}", seen.unexpected.join(", ")));
    }
    parts.join("; ")
}

/// The API server refuses a note of more than 1 kB.
fn shorten(text: String) -> String {
    if text.len() <= 1000 {
        return text;
    }
    let cut = (0..=990).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}…", &text[..cut])
}
