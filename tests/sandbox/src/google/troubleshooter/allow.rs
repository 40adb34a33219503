//! What the allow policies of a resource and of all above it say.

use serde_json::{Map, Value, json};

use super::{
    Access, Place,
    verdict::{self, Verdict},
};
use crate::run::State;

/// `AllowPolicyExplanation`.
pub fn explain(state: &State, access: &Access, chain: &[Place]) -> (Verdict, Value) {
    let policies: Vec<(Verdict, Value)> = chain
        .iter()
        .map(|place| policy(state, access, place))
        .collect();
    let verdict = Verdict::any(policies.iter().map(|(v, _)| *v));
    let policies: Vec<Value> = policies.into_iter().map(|(_, p)| p).collect();
    let explanation = json!({"allowAccessState": verdict.allow_state(),
        "explainedPolicies": policies, "relevance": verdict.relevance()});
    (verdict, explanation)
}

/// `ExplainedAllowPolicy`. "If the sender of the request does not have access to the policy, this
/// field is omitted" is said of every field but the state.
fn policy(state: &State, access: &Access, place: &Place) -> (Verdict, Value) {
    let permission = match place.name.split('/').collect::<Vec<_>>().as_slice() {
        [collection, _] => format!("resourcemanager.{collection}.getIamPolicy"),
        _ => "run.services.getIamPolicy".to_owned(),
    };
    let stored = state.stored_policy(&place.name);
    let Some(stored) = stored.filter(|_| !state.lacks(&place.name, &permission)) else {
        return (
            Verdict::Info,
            json!({"allowAccessState": Verdict::Info.allow_state()}),
        );
    };
    let bindings: Vec<(Verdict, Value)> = stored
        .bindings()
        .iter()
        .map(|b| binding(state, access, place, b))
        .collect();
    let verdict = Verdict::any(bindings.iter().map(|(v, _)| *v));
    let explanations: Vec<Value> = bindings.into_iter().map(|(_, b)| b).collect();
    let mut explained = json!({"allowAccessState": verdict.allow_state(),
        "fullResourceName": place.full_name, "policy": stored.view(3),
        "relevance": verdict.relevance()});
    if !explanations.is_empty() {
        explained["bindingExplanations"] = json!(explanations);
    }
    (verdict, explained)
}

/// `AllowBindingExplanation`.
fn binding(state: &State, access: &Access, place: &Place, binding: &Value) -> (Verdict, Value) {
    let role = binding["role"].as_str().unwrap_or_default();
    let (contains, inclusion) = role_contains(state, access, place, role);
    let mut memberships = Map::new();
    let mut verdicts = Vec::new();
    for member in binding["members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        let (verdict, word) = membership(state, &access.principal, member);
        let annotated = json!({"membership": word, "relevance": verdict.relevance()});
        memberships.insert(member.to_owned(), annotated);
        verdicts.push((verdict, word));
    }
    let combined = Verdict::any(verdicts.iter().map(|(v, _)| *v));
    let word = verdicts
        .iter()
        .find(|(v, _)| *v == combined)
        .map(|(_, word)| *word);
    let condition = verdict::condition(&binding["condition"], &access.context);
    let verdict = Verdict::all([contains, combined, condition]);
    let mut explained = json!({"allowAccessState": verdict.allow_state(), "role": role,
        "rolePermission": inclusion, "rolePermissionRelevance": contains.relevance(),
        "memberships": memberships, "relevance": verdict.relevance(),
        "combinedMembership": {"membership": word.unwrap_or("MEMBERSHIP_NOT_MATCHED"),
            "relevance": combined.relevance()}});
    if binding["condition"].is_object() {
        explained["condition"] = binding["condition"].clone();
        explained["conditionExplanation"] = verdict::explanation(condition);
    }
    (verdict, explained)
}

/// `RolePermissionInclusionState`: who may not read a custom role does not know what is in it.
fn role_contains(
    state: &State,
    access: &Access,
    place: &Place,
    role: &str,
) -> (Verdict, &'static str) {
    let holder = super::super::roles::custom_parent(role).unwrap_or(&place.name);
    if state.lacks(holder, "iam.roles.get") {
        return (Verdict::Info, "ROLE_PERMISSION_UNKNOWN_INFO");
    }
    if state.google.roles.contains(role, &access.permission) {
        (Verdict::Yes, "ROLE_PERMISSION_INCLUDED")
    } else {
        (Verdict::No, "ROLE_PERMISSION_NOT_INCLUDED")
    }
}

/// `MembershipMatchingState` of a member of an allow policy.
fn membership(state: &State, principal: &str, member: &str) -> (Verdict, &'static str) {
    let is_account = is_service_account(principal);
    match member.split_once(':') {
        None if member == "allUsers" || member == "allAuthenticatedUsers" => word(Verdict::Yes),
        Some(("user", email)) => word(Verdict::of(!is_account && same(email, principal))),
        Some(("serviceAccount", email)) => word(Verdict::of(is_account && same(email, principal))),
        Some(("deleted", _)) => word(Verdict::No),
        // Service accounts are in no domain of people.
        Some(("domain", _)) if is_account => word(Verdict::No),
        Some(("group" | "domain", _)) => word(in_group(state, principal, member)),
        _ => (Verdict::Info, "MEMBERSHIP_UNKNOWN_UNSUPPORTED"),
    }
}

/// Whether somebody is in a `group:E-MAIL` or `domain:NAME`, as far as whoever asks can see.
pub fn in_group(state: &State, principal: &str, group: &str) -> Verdict {
    match state.google.groups.get(&group.to_lowercase()) {
        Some(members) => Verdict::of(members.iter().any(|m| same(m, principal))),
        None => Verdict::Info,
    }
}

pub fn word(verdict: Verdict) -> (Verdict, &'static str) {
    let word = match verdict {
        Verdict::Yes => "MEMBERSHIP_MATCHED",
        Verdict::No => "MEMBERSHIP_NOT_MATCHED",
        Verdict::Info | Verdict::Conditional => "MEMBERSHIP_UNKNOWN_INFO",
    };
    (verdict, word)
}

pub fn is_service_account(email: &str) -> bool {
    email.to_lowercase().ends_with("gserviceaccount.com")
}

pub fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}
