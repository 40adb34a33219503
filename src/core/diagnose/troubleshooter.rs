//! What Google's Policy Troubleshooter (v3) says of one principal and one service: allow and deny
//! policies on every level, together.
//!
//! Source: <https://cloud.google.com/policy-intelligence/docs/reference/policytroubleshooter/rest/v3/iam/troubleshoot>.

use serde_json::{Value, json};

use super::{Cause, Known, Outcome, Walk};
use crate::iam::{Principal, PrincipalKind, RunService};

const CHECK: &str = "policy troubleshooter";

/// The permission that invoking takes.
const PERMISSION: &str = "run.routes.invoke";

/// What allow policies come to, or deny policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    Yes,
    No,
    /// A condition decides, which was not evaluated.
    Depends,
    /// Who asks may not see enough.
    Unknown,
}

/// The answer, as far as it decides something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether a role grants it.
    pub allowed: Says,
    /// Roles that grant it, each with the resource on which it is granted.
    pub by: Vec<String>,
    /// Whether a deny policy refuses it.
    pub denied: Says,
    /// Names of the deny policies that do, or may.
    pub denied_by: Vec<String>,
}

/// The body of the question; `None`: it can only be asked for users and service accounts.
pub fn question(service: &RunService, principal: &Principal) -> Option<Value> {
    let email = match principal.kind() {
        PrincipalKind::User | PrincipalKind::ServiceAccount => {
            principal.as_str().split_once(':')?.1
        }
        _ => return None,
    };
    // The legacy GKE form has no e-mail.
    if !email.contains('@') {
        return None;
    }
    Some(json!({"accessTuple": {
        "principal": email,
        "fullResourceName": format!("//run.googleapis.com/{}", service.resource_name()),
        "permission": PERMISSION,
    }}))
}

/// Reads the answer.
///
/// # Errors
/// What is not as documented, in words.
pub fn read(answer: &Value) -> Result<Answer, String> {
    let allow = &answer["allowPolicyExplanation"];
    let deny = &answer["denyPolicyExplanation"];
    let said = |explanation: &Value, field: &str| match explanation[field].as_str() {
        Some("ALLOW_ACCESS_STATE_GRANTED" | "DENY_ACCESS_STATE_DENIED") => Ok(Says::Yes),
        Some("ALLOW_ACCESS_STATE_NOT_GRANTED" | "DENY_ACCESS_STATE_NOT_DENIED") => Ok(Says::No),
        Some(state) if state.ends_with("_UNKNOWN_CONDITIONAL") => Ok(Says::Depends),
        Some(_) => Ok(Says::Unknown),
        None => Err(format!("it has no {field}")),
    };
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut by = Vec::new();
    for policy in list(&allow["explainedPolicies"]) {
        let granting = list(&policy["bindingExplanations"])
            .into_iter()
            .filter(|b| b["allowAccessState"] == "ALLOW_ACCESS_STATE_GRANTED");
        let place = text(&policy["fullResourceName"]);
        by.extend(granting.map(|b| format!("{} on {}", text(&b["role"]), relative(&place))));
    }
    let mut denied_by = Vec::new();
    for resource in list(&deny["explainedResources"]) {
        // One that is not decided is named as well.
        let denying = list(&resource["explainedPolicies"])
            .into_iter()
            .filter(|p| p["denyAccessState"] != "DENY_ACCESS_STATE_NOT_DENIED");
        denied_by.extend(denying.map(|p| deny_policy(&text(&p["policy"]["name"]))));
    }
    Ok(Answer {
        allowed: said(allow, "allowAccessState")?,
        by,
        denied: said(deny, "denyAccessState")?,
        denied_by,
    })
}

/// `ID on folders/1` of `policies/cloudresourcemanager.googleapis.com%2Ffolders%2F1/denypolicies/ID`.
fn deny_policy(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').collect();
    let ["policies", point, "denypolicies", id] = parts.as_slice() else {
        return name.to_owned();
    };
    let point = point.replace("%2F", "/");
    let place = point
        .split_once('/')
        .map_or(point.as_str(), |(_, name)| name);
    format!("{id} on {place}")
}

/// `folders/1` of `//cloudresourcemanager.googleapis.com/folders/1`.
fn relative(full: &str) -> &str {
    let name = full.strip_prefix("//").and_then(|n| n.split_once('/'));
    name.map_or(full, |(_, name)| name)
}

/// ` (A, B)`, or nothing.
fn named(policies: &[String]) -> String {
    match policies {
        [] => String::new(),
        some => format!(" ({})", some.join(", ")),
    }
}

impl Walk<'_> {
    /// What is above the service, where Policy Troubleshooter was asked.
    pub(super) fn troubleshooter(&mut self) {
        let answer = match &self.facts.troubleshooter {
            Known::NotAsked => return,
            Known::Hidden(why) | Known::Absent(why) => {
                let evidence = format!(
                    "it could not be asked: {why}; roles/iam.securityReviewer on the organization shows it most"
                );
                return self.step(CHECK, Outcome::Unknown, evidence);
            }
            Known::Is(answer) => answer,
        };
        let (outcome, words) = match answer.denied {
            Says::Yes => (
                Outcome::Fail,
                format!("denied by {}", answer.denied_by.join(", ")),
            ),
            Says::Depends => (
                Outcome::Maybe,
                format!(
                    "a deny policy applies under a condition{}",
                    named(&answer.denied_by)
                ),
            ),
            Says::Unknown => (
                Outcome::Unknown,
                format!(
                    "it could not decide{}: you may not see every deny policy (iam.denypolicies.get), or the members of a group in one",
                    named(&answer.denied_by)
                ),
            ),
            Says::No => (Outcome::Pass, "no deny policy refuses it".into()),
        };
        self.step("deny policies", outcome, words);
        let (outcome, words) = match answer.allowed {
            Says::Yes => (Outcome::Pass, format!("granted by {}", answer.by.join(", "))),
            Says::Depends => (
                Outcome::Maybe,
                "a grant applies under a condition, or to a group that cannot be looked into".into(),
            ),
            Says::Unknown => (
                Outcome::Unknown,
                "you may not see every allow policy above the service (roles/iam.securityReviewer), or the members of a group".into(),
            ),
            // The grants below say what to do about it.
            Says::No => (Outcome::Fail, "no allow policy on any level grants it".into()),
        };
        self.step(CHECK, outcome, words);
        if answer.denied == Says::Yes {
            let verdict = format!(
                "A deny policy refuses this principal, whatever grants it: {}.",
                answer.denied_by.join(", ")
            );
            self.settle(
                Cause::PerimeterOrDeny,
                verdict,
                "Ask whoever owns the deny policy for an exception (exceptionPrincipals); a grant changes nothing.",
            );
        }
    }

    /// Grants on the service and above it, as Policy Troubleshooter names them; `None` where it does
    /// not say that something grants it.
    pub(super) fn troubleshooter_grants(&self) -> Option<(Vec<&str>, Vec<&str>)> {
        let answer = self.facts.troubleshooter.value()?;
        let by = answer.by.iter().map(String::as_str);
        let places = by.partition(|by| by.contains("/services/"));
        (answer.allowed == Says::Yes).then_some(places)
    }

    /// What Policy Troubleshooter could not decide.
    pub(super) fn maybe_above(&self) -> Option<String> {
        let answer = self.facts.troubleshooter.value()?;
        let is_open = matches!(answer.allowed, Says::Depends | Says::Unknown);
        is_open.then(|| "something that Policy Troubleshooter could not look into".into())
    }

    /// A policy that was read grants it, and Policy Troubleshooter says that none does: one of the
    /// two is older.
    pub(super) fn reopen_troubleshooter(&mut self) {
        let steps = self.steps.iter_mut().filter(|s| s.check == CHECK);
        for step in steps {
            step.outcome = Outcome::Maybe;
            step.evidence = "it says that no allow policy grants it, and one that was read here does: the grant may be younger".into();
            step.see = Some("ask again in some minutes".into());
        }
    }

    /// Whether it is certain that no deny policy refuses it.
    pub(super) fn is_surely_not_denied(&self) -> bool {
        let answer = self.facts.troubleshooter.value();
        answer.is_some_and(|a| a.denied == Says::No)
    }

    /// Whether it is certain that no allow policy on any level grants it.
    pub(super) fn is_granted_nowhere(&self) -> bool {
        let answer = self.facts.troubleshooter.value();
        answer.is_some_and(|a| a.allowed == Says::No)
    }
}
