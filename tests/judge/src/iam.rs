//! What an allow policy grants, read from Google's JSON.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

/// The roles that the operator manages.
pub const ROLES: [&str; 2] = ["roles/run.invoker", "roles/run.servicesInvoker"];

/// A condition taken apart: what was written, and the time at which it ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// Title, description, expression; none where the condition is nothing but an end.
    pub own: Option<(String, String, String)>,
    pub ends: Option<Timestamp>,
}

/// One member with one role under one condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    pub role: String,
    /// As IAM compares members.
    pub member: String,
    pub condition: Option<Condition>,
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.member)?;
        if self.role != ROLES[0] {
            write!(f, " as {}", self.role)?;
        }
        match &self.condition {
            None => Ok(()),
            Some(Condition {
                own: None,
                ends: Some(ends),
            }) => write!(f, " until {ends}"),
            Some(c) => write!(f, " if {:?}", c.own.as_ref().map(|o| &o.0)),
        }
    }
}

impl Grant {
    /// Whether it lets somebody in at `now`, as far as its end tells.
    pub fn in_force(&self, now: Timestamp) -> bool {
        self.condition
            .as_ref()
            .and_then(|c| c.ends)
            .is_none_or(|e| e > now)
    }

    /// Whether it has no condition but perhaps an end.
    pub fn is_plain(&self) -> bool {
        self.condition.as_ref().is_none_or(|c| c.own.is_none())
    }

    pub fn is_public(&self) -> bool {
        // All identities of a pool are whoever its providers let in; all service accounts of an
        // organization, whoever makes one.
        matches!(self.member.as_str(), "allUsers" | "allAuthenticatedUsers")
            || (self.member.starts_with("principalset:")
                || self.member.starts_with("principalSet:"))
                && (self.member.ends_with("/*") || self.member.contains("/type/"))
    }
}

/// The form in which two spellings of one member are equal: the case of e-mail addresses and
/// domains does not count.
pub fn member_key(member: &str) -> String {
    match member.split_once(':') {
        Some((kind @ ("user" | "group" | "serviceAccount" | "domain"), rest)) => {
            format!("{kind}:{}", rest.to_ascii_lowercase())
        }
        _ => member.to_owned(),
    }
}

/// Takes a condition apart. `expires` becomes `request.time < timestamp("…")`, behind an own
/// expression where there is one.
fn condition(v: &Value) -> Option<Condition> {
    if !v.is_object() {
        return None;
    }
    let text = |k: &str| v[k].as_str().unwrap_or_default().to_owned();
    let expression = text("expression");
    let end = |e: &str| -> Option<Timestamp> {
        e.strip_prefix("request.time < timestamp(\"")?
            .strip_suffix("\")")?
            .parse()
            .ok()
    };
    if let Some(ends) = end(&expression) {
        return Some(Condition {
            own: None,
            ends: Some(ends),
        });
    }
    if let Some((own, clock)) = expression.rsplit_once(" && ")
        && let (Some(ends), Some(own)) = (
            end(clock),
            own.strip_prefix('(').and_then(|o| o.strip_suffix(')')),
        )
    {
        return Some(Condition {
            own: Some((text("title"), text("description"), own.to_owned())),
            ends: Some(ends),
        });
    }
    Some(Condition {
        own: Some((text("title"), text("description"), expression)),
        ends: None,
    })
}

fn bindings(policy: &Value) -> impl Iterator<Item = &Value> {
    policy["bindings"].as_array().into_iter().flatten()
}

fn is_managed(binding: &Value) -> bool {
    binding["role"].as_str().is_some_and(|r| ROLES.contains(&r))
}

/// Every grant of a managed role.
pub fn grants(policy: &Value) -> BTreeSet<Grant> {
    let mut found = BTreeSet::new();
    for b in bindings(policy).filter(|b| is_managed(b)) {
        for m in b["members"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            let role = b["role"].as_str().unwrap_or_default().to_owned();
            found.insert(Grant {
                role,
                member: member_key(m),
                condition: condition(&b["condition"]),
            });
        }
    }
    found
}

/// What nobody may touch: other roles, every field besides bindings and etag.
pub fn foreign(policy: &Value) -> (Vec<&Value>, Vec<(&String, &Value)>) {
    let others = bindings(policy).filter(|b| !is_managed(b)).collect();
    let fields = policy.as_object().into_iter().flatten();
    (
        others,
        fields
            .filter(|(k, _)| !matches!(k.as_str(), "bindings" | "etag" | "version"))
            .collect(),
    )
}

/// Members of managed roles as they are spelled, with what tells their binding apart, in order.
pub fn spelled(policy: &Value) -> Vec<(String, String)> {
    let managed = bindings(policy).filter(|b| is_managed(b));
    managed
        .flat_map(|b| {
            let place = format!("{}{}", b["role"], b["condition"]);
            let members = b["members"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            members
                .map(|m| (place.clone(), m.to_owned()))
                .collect::<Vec<_>>()
        })
        .collect()
}
