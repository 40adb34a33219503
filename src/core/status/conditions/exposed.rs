//! `Exposed`: whether anyone can call a service. It is there only while it is so, or, as Unknown,
//! while it may be so: everybody has a role of which nobody knows what it carries.

use super::{Conditions, Truth};
use crate::{
    api::{ConditionType, Reason},
    status::{
        StatusInput,
        text::{listed, place},
    },
};

/// Services that a message names.
const NAMED: usize = 5;

pub(super) fn set(conditions: &mut Conditions<'_>, facts: &StatusInput<'_>) {
    let (mut sure, mut perhaps) = (Vec::new(), Vec::new());
    for (service, found) in facts.findings() {
        let Some(exposure) = &found.exposed else {
            continue;
        };
        let exposure = exposure.judged(facts.roles);
        let words = format!("{}: {exposure}", place(service));
        if exposure.is_sure() {
            sure.push(words);
        } else if !facts.opened.iter().any(|(opened, _)| *opened == service) {
            perhaps.push(words);
        }
    }
    let opened = facts.opened.iter();
    sure.extend(opened.map(|(service, how)| format!("{}: {how}", place(service))));
    let mut parts = Vec::new();
    if !sure.is_empty() {
        parts.push(format!("anyone can call {}", listed(&sure, NAMED)));
    }
    if !perhaps.is_empty() {
        parts.push(format!(
            "perhaps anyone can call {}",
            listed(&perhaps, NAMED)
        ));
    }
    if parts.is_empty() {
        return;
    }
    let truth = if sure.is_empty() {
        Truth::Unknown
    } else {
        Truth::True
    };
    let message = parts.join("; ");
    conditions.set(ConditionType::Exposed, truth, Reason::Drifted, &message);
}
