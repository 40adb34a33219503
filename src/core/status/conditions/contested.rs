//! `Contested`: whether somebody else keeps changing what is corrected. It is there only while it
//! is so.

use super::{Conditions, Truth};
use crate::{
    api::{ConditionType, Reason},
    status::{
        By, StatusInput,
        text::{listed_with, place},
    },
};

pub(super) fn set(conditions: &mut Conditions<'_>, facts: &StatusInput<'_>) {
    let fights: Vec<_> = facts
        .findings()
        .filter(|(_, found)| !found.contested.is_empty())
        .map(|(service, found)| format!("{}: {}", place(service), found.contested.listed(3)))
        .collect();
    if fights.is_empty() {
        return;
    }
    let is_known = facts
        .findings()
        .any(|(_, found)| matches!(found.by, By::Known(_)));
    let advice = if is_known {
        ""
    } else {
        "find out who (Cloud Audit Logs: SetIamPolicy), and "
    };
    let message = format!(
        "somebody else keeps changing {}; {advice}let one of you own it",
        listed_with(&fights, 5, "; ")
    );
    conditions.set(
        ConditionType::Contested,
        Truth::True,
        Reason::Drifted,
        &message,
    );
}
