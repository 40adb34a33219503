//! `RolledBack`: whether on some services the state before a change stands in for the spec. It is
//! there only while it is so.

use super::{Conditions, Truth};
use crate::{
    api::{ConditionType, Reason},
    status::{
        StatusInput,
        text::{end_rollback_with, listed, place},
    },
};

pub(super) fn set(conditions: &mut Conditions<'_>, facts: &StatusInput<'_>) {
    if let Some(text) = rolled_back(facts) {
        let message = format!("{text}; to end it: {}", end_rollback_with(facts.intent));
        let (type_, reason) = (ConditionType::RolledBack, Reason::RolledBack);
        conditions.set(type_, Truth::True, reason, &message);
    }
}

/// What is rolled back, in words, while the policy acts on it.
pub(super) fn rolled_back(facts: &StatusInput<'_>) -> Option<String> {
    if !facts.intent.enforces() || facts.intent.deleting || facts.back.is_empty() {
        return None;
    }
    let word = |(service, change): &(&crate::iam::RunService, &str)| {
        format!("{} to before {change}", place(service))
    };
    let mut words: Vec<String> = facts.back.iter().map(word).collect();
    words.sort();
    Some(format!("rolled back: {}", listed(&words, 3)))
}
