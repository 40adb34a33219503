//! `Exposed`: whether anyone can call a service. It is there only while it is so.

use super::{Conditions, Truth};
use crate::{
    api::{ConditionType, Reason},
    status::{
        StatusInput,
        text::{listed, place},
    },
};

pub(super) fn set(conditions: &mut Conditions<'_>, facts: &StatusInput<'_>) {
    let mut exposed: Vec<_> = facts
        .findings()
        .filter_map(|(service, found)| Some((service, found.exposed.as_ref()?)))
        .map(|(service, why)| format!("{}: {why}", place(service)))
        .collect();
    let opened = facts.opened.iter();
    exposed.extend(opened.map(|(service, how)| format!("{}: {how}", place(service))));
    if !exposed.is_empty() {
        let message = format!("anyone can call {}", listed(&exposed, 5));
        conditions.set(
            ConditionType::Exposed,
            Truth::True,
            Reason::Drifted,
            &message,
        );
    }
}
