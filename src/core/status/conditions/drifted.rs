//! `Drifted`: whether the live policies differ from what is declared.

use super::{ConditionInput, Conditions, Truth, rolled_back::rolled_back};
use crate::{
    api::{ConditionType, Reason, ServiceStatus},
    status::{
        is_suspended,
        text::{listed, listed_with},
    },
};

pub(super) fn set(conditions: &mut Conditions<'_>, input: &ConditionInput<'_>) {
    let mut set = |truth, reason, message: &str| {
        conditions.set(ConditionType::Drifted, truth, reason, message);
    };
    if is_suspended(input.facts.intent) {
        return set(
            Truth::Unknown,
            Reason::Suspended,
            "suspended: IAM is not read",
        );
    }
    let differs = |s: &&ServiceStatus| !s.missing.is_empty() || !s.unexpected.is_empty();
    let words: Vec<String> = input
        .services
        .iter()
        .filter(differs)
        .map(describe)
        .collect();
    if !words.is_empty() {
        set(Truth::True, Reason::Drifted, &listed_with(&words, 5, "; "));
    } else if input.pending || input.summary.failed > 0 {
        set(
            Truth::Unknown,
            Reason::Progressing,
            "not every service could be read",
        );
    } else {
        let message = match rolled_back(input.facts) {
            Some(back) => {
                format!("IAM matches the spec except where a rollback is in force; {back}")
            }
            None => "IAM matches the declared state".into(),
        };
        set(Truth::False, Reason::InSync, &message);
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
