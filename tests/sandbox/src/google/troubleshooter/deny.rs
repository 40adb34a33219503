//! What the deny policies above a resource say.
//!
//! Source: <https://docs.cloud.google.com/iam/docs/deny-overview>. A rule denies if it names the
//! permission and the principal, no exception names them, and its condition holds.

use serde_json::{Map, Value, json};

use super::{
    Access, Place,
    allow::{in_group, is_service_account, same, word},
    verdict::{self, Verdict},
};
use crate::{google::deny::DenyPolicy, run::State};

/// Permissions of Cloud Run and IAP that deny policies support
/// (<https://docs.cloud.google.com/iam/docs/deny-permissions-support>), of those that are known
/// here.
const DENIABLE: [&str; 2] = [
    "run.googleapis.com/routes.invoke",
    "run.googleapis.com/services.setIamPolicy",
];

/// `DenyPolicyExplanation`. Policies are attached to projects, folders and organizations only.
pub fn explain(state: &State, access: &Access, chain: &[Place]) -> (Verdict, Value) {
    let is_deniable = DENIABLE.contains(&access.permission_fqdn.as_str());
    let points = chain.iter().filter(|p| p.name.matches('/').count() <= 1);
    let resources: Vec<(Verdict, Value)> =
        points.map(|place| resource(state, access, place)).collect();
    let verdict = match is_deniable {
        true => Verdict::any(resources.iter().map(|(v, _)| *v)),
        false => Verdict::No,
    };
    let mut explained = json!({"denyAccessState": verdict.deny_state(),
        "permissionDeniable": is_deniable, "relevance": verdict.relevance()});
    if is_deniable {
        explained["explainedResources"] = resources.into_iter().map(|(_, r)| r).collect();
    }
    (verdict, explained)
}

/// `ExplainedDenyResource`.
fn resource(state: &State, access: &Access, place: &Place) -> (Verdict, Value) {
    let is_there = state.google.hierarchy.get(&place.name).is_some();
    let rights = ["iam.denypolicies.get", "iam.denypolicies.list"];
    if !is_there || rights.iter().any(|p| state.lacks(&place.name, p)) {
        return (
            Verdict::Info,
            json!({"denyAccessState": Verdict::Info.deny_state()}),
        );
    }
    let attached = state
        .google
        .deny
        .get(&place.name)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let policies: Vec<(Verdict, Value)> = attached
        .iter()
        .map(|p| policy(state, access, place, p))
        .collect();
    let verdict = Verdict::any(policies.iter().map(|(v, _)| *v));
    let mut explained = json!({"denyAccessState": verdict.deny_state(),
        "fullResourceName": place.full_name, "relevance": verdict.relevance()});
    if !policies.is_empty() {
        explained["explainedPolicies"] = policies.into_iter().map(|(_, p)| p).collect();
    }
    (verdict, explained)
}

/// `ExplainedDenyPolicy`.
fn policy(state: &State, access: &Access, place: &Place, policy: &DenyPolicy) -> (Verdict, Value) {
    let rules: Vec<(Verdict, Value)> = policy
        .rules
        .iter()
        .map(|r| rule(state, access, &r["denyRule"]))
        .collect();
    let verdict = Verdict::any(rules.iter().map(|(v, _)| *v));
    let explanations: Vec<Value> = rules.into_iter().map(|(_, r)| r).collect();
    let explained = json!({"denyAccessState": verdict.deny_state(),
        "policy": policy.show(state, &place.name, true), "ruleExplanations": explanations,
        "relevance": verdict.relevance()});
    (verdict, explained)
}

/// `DenyRuleExplanation`.
fn rule(state: &State, access: &Access, rule: &Value) -> (Verdict, Value) {
    let permissions = |field: &str| each(&rule[field], |p| permission(access, p));
    let principals = |field: &str| each(&rule[field], |p| principal(state, access, p));
    let (permission, permission_map) = permissions("deniedPermissions");
    let (spared, spared_map) = permissions("exceptionPermissions");
    let (principal, principal_map) = principals("deniedPrincipals");
    let (excepted, excepted_map) = principals("exceptionPrincipals");
    let condition = verdict::condition(&rule["denialCondition"], &access.context);
    let verdict = Verdict::all([
        permission,
        spared.not(),
        principal,
        excepted.not(),
        condition,
    ]);
    let mut explained = json!({"denyAccessState": verdict.deny_state(),
        "relevance": verdict.relevance(),
        "combinedDeniedPermission": matching(permission), "deniedPermissions": permission_map,
        "combinedExceptionPermission": matching(spared), "exceptionPermissions": spared_map,
        "combinedDeniedPrincipal": member(principal), "deniedPrincipals": principal_map,
        "combinedExceptionPrincipal": member(excepted), "exceptionPrincipals": excepted_map});
    // Empty maps are not written.
    for field in ["exceptionPermissions", "exceptionPrincipals"] {
        if explained[field].as_object().is_some_and(Map::is_empty)
            && let Some(fields) = explained.as_object_mut()
        {
            fields.remove(field);
        }
    }
    if rule["denialCondition"].is_object() {
        explained["condition"] = rule["denialCondition"].clone();
        explained["conditionExplanation"] = verdict::explanation(condition);
    }
    (verdict, explained)
}

/// The verdicts about each entry of a list, and about all of them together.
fn each(list: &Value, judge: impl Fn(&str) -> (Verdict, Value)) -> (Verdict, Map<String, Value>) {
    let mut annotated = Map::new();
    let mut verdicts = Vec::new();
    for entry in list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        let (verdict, annotation) = judge(entry);
        annotated.insert(entry.to_owned(), annotation);
        verdicts.push(verdict);
    }
    (Verdict::any(verdicts), annotated)
}

fn permission(access: &Access, pattern: &str) -> (Verdict, Value) {
    let verdict = Verdict::of(fits(pattern, &access.permission_fqdn));
    (verdict, matching(verdict))
}

/// `AnnotatedPermissionMatching`.
fn matching(verdict: Verdict) -> Value {
    let state = match verdict {
        Verdict::Yes => "PERMISSION_PATTERN_MATCHED",
        _ => "PERMISSION_PATTERN_NOT_MATCHED",
    };
    json!({"permissionMatchingState": state, "relevance": verdict.relevance()})
}

/// A permission, or a group of them: `SERVICE/RESOURCE.*`, `SERVICE/*.*`, `SERVICE/*.VERB`
/// (<https://docs.cloud.google.com/iam/docs/deny-overview#permission-groups>).
fn fits(pattern: &str, permission: &str) -> bool {
    let split = |text: &str| -> Option<(String, String, String)> {
        let (service, rest) = text.split_once('/')?;
        let (resource, verb) = rest.rsplit_once('.')?;
        Some((service.to_owned(), resource.to_owned(), verb.to_owned()))
    };
    let part = |pattern: &str, text: &str| pattern == "*" || pattern == text;
    match (split(pattern), split(permission)) {
        (Some(p), Some(t)) => p.0 == t.0 && part(&p.1, &t.1) && part(&p.2, &t.2),
        _ => false,
    }
}

fn principal(state: &State, access: &Access, entry: &str) -> (Verdict, Value) {
    let (verdict, word) = denied(state, &access.principal, entry);
    (
        verdict,
        json!({"membership": word, "relevance": verdict.relevance()}),
    )
}

/// `AnnotatedDenyPrincipalMatching`.
fn member(verdict: Verdict) -> Value {
    json!({"membership": word(verdict).1, "relevance": verdict.relevance()})
}

/// Whether a principal of a deny rule is, or contains, the one that is asked about.
fn denied(state: &State, principal: &str, entry: &str) -> (Verdict, &'static str) {
    const ACCOUNT: &str = "principal://iam.googleapis.com/projects/-/serviceAccounts/";
    let is_account = is_service_account(principal);
    if entry == "principalSet://goog/public:all" {
        return word(Verdict::Yes);
    }
    if entry.starts_with("deleted:") {
        return word(Verdict::No);
    }
    if let Some(email) = entry.strip_prefix("principal://goog/subject/") {
        return word(Verdict::of(!is_account && same(email, principal)));
    }
    if let Some(email) = entry.strip_prefix(ACCOUNT) {
        return word(Verdict::of(is_account && same(email, principal)));
    }
    if let Some(group) = entry.strip_prefix("principalSet://goog/group/") {
        return word(in_group(state, principal, &format!("group:{group}")));
    }
    if entry.starts_with("principalSet://goog/cloudIdentityCustomerId/") && !is_account {
        return word(Verdict::Info);
    }
    (Verdict::Info, "MEMBERSHIP_UNKNOWN_UNSUPPORTED")
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn groups_of_permissions() {
        let invoke = "run.googleapis.com/routes.invoke";
        let cases = [
            (invoke, true),
            ("run.googleapis.com/routes.*", true),
            ("run.googleapis.com/*.*", true),
            ("run.googleapis.com/*.invoke", true),
            ("run.googleapis.com/services.*", false),
            ("run.googleapis.com/*.get", false),
            ("iam.googleapis.com/*.*", false),
            ("*", false),
        ];
        for (pattern, is) in cases {
            assert_eq!(fits(pattern, invoke), is, "{pattern}");
        }
    }
}
