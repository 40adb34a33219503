//! Deny policies: IAM v2, at projects, folders and organizations.
//!
//! Sources: <https://docs.cloud.google.com/iam/docs/reference/rest/v2/policies>,
//! <https://docs.cloud.google.com/iam/docs/deny-access>. The attachment point in a name is a full
//! resource name whose slashes are written `%2F`. Reads are few: 5 a minute and project
//! (<https://docs.cloud.google.com/iam/quotas>), which `World::quotas` can enforce.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

use super::{
    hierarchy::{self, Kind},
    refusal::{IAM, denied},
    request::DenyRequest,
};
use crate::{
    exchange::Call,
    run::{Problem, Run, State},
};

/// The most policies on a page.
const MAX_PAGE: usize = 1000;

/// A deny policy as it was set.
#[derive(Clone, Debug)]
pub struct DenyPolicy {
    pub id: String,
    pub display_name: String,
    /// Rules of the form `{description?, denyRule}`.
    pub rules: Vec<Value>,
    pub created: String,
    pub etag: String,
}

impl DenyPolicy {
    /// Reads `{id, displayName?, rules}`.
    ///
    /// # Errors
    /// When a rule has no principals or permissions that it denies, or those are not of their form.
    pub fn parse(value: &Value, now: &str, etag: String) -> Result<Self, String> {
        let id = value["id"]
            .as_str()
            .filter(|id| !id.is_empty() && !id.contains('/'));
        let rules = value["rules"].as_array().cloned().unwrap_or_default();
        for rule in &rules {
            check(&rule["denyRule"])?;
        }
        Ok(Self {
            id: id.ok_or("a deny policy needs an id")?.to_owned(),
            display_name: value["displayName"].as_str().unwrap_or_default().to_owned(),
            rules,
            created: now.to_owned(),
            etag,
        })
    }

    /// As the API shows it. Lists have no rules.
    pub fn show(&self, state: &State, node: &str, with_rules: bool) -> Value {
        // "Responses always contain the numeric ID."
        let point = state.google.hierarchy.numbered(node).replace('/', "%2F");
        let mut hasher = DefaultHasher::new();
        (node, &self.id).hash(&mut hasher);
        let uid = hasher.finish() & 0xffff_ffff_ffff;
        let mut shown = json!({
            "name": format!("policies/cloudresourcemanager.googleapis.com%2F{point}/denypolicies/{}", self.id),
            "uid": format!("00000000-0000-4000-a000-{uid:012x}"),
            "kind": "DenyPolicy", "etag": self.etag,
            "createTime": self.created, "updateTime": self.created});
        if !self.display_name.is_empty() {
            shown["displayName"] = json!(self.display_name);
        }
        if with_rules {
            shown["rules"] = json!(self.rules);
        }
        shown
    }
}

/// Principals and permissions have the forms of IAM v2
/// (<https://docs.cloud.google.com/iam/docs/deny-overview>).
fn check(rule: &Value) -> Result<(), String> {
    let texts = |field: &str| -> Vec<&str> {
        rule[field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    };
    let is_principal = |p: &&str| {
        let p = p.strip_prefix("deleted:").unwrap_or(p);
        p.starts_with("principal://") || p.starts_with("principalSet://")
    };
    for field in ["deniedPrincipals", "exceptionPrincipals"] {
        if let Some(odd) = texts(field).iter().find(|p| !is_principal(p)) {
            return Err(format!(
                "{field}: {odd} is not principal://... or principalSet://..."
            ));
        }
    }
    for field in ["deniedPermissions", "exceptionPermissions"] {
        if let Some(odd) = texts(field)
            .iter()
            .find(|p| !p.contains(".googleapis.com/"))
        {
            return Err(format!(
                "{field}: {odd} is not SERVICE.googleapis.com/RESOURCE.VERB"
            ));
        }
    }
    for field in ["deniedPrincipals", "deniedPermissions"] {
        if texts(field).is_empty() {
            return Err(format!("denyRule.{field} is needed"));
        }
    }
    Ok(())
}

pub fn answer(run: &Run, call: &Call, request: &DenyRequest) -> Result<Value, Problem> {
    let mut state = run.lock();
    let Some((kind, id)) = hierarchy::parse(&request.node) else {
        return Err(Problem::invalid(format!(
            "Invalid attachment point {}.",
            request.node
        )));
    };
    let found = state
        .google
        .hierarchy
        .resolve(kind, id)
        .filter(|n| !state.is_gone(n));
    state.admit(call, IAM, found.as_deref().unwrap_or(&request.node))?;
    let permission = match request.id {
        Some(_) => "iam.denypolicies.get",
        None => "iam.denypolicies.list",
    };
    let Some(node) = found.filter(|n| !state.lacks(n, permission)) else {
        let message = format!(
            "Permission '{permission}' denied on resource '//cloudresourcemanager.googleapis.com/{}' (or it may not exist).",
            request.node
        );
        return Err(denied(IAM, message, permission, &request.node));
    };
    let attached = state
        .google
        .deny
        .get(&node)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let Some(id) = &request.id else {
        return list(&state, call, &node, attached);
    };
    let policy = attached.iter().find(|p| p.id == *id);
    policy
        .map(|p| p.show(&state, &node, true))
        .ok_or_else(|| Problem::new(404, "NOT_FOUND", "Requested entity was not found."))
}

/// "The response lists only policy metadata. In particular, policy rules are omitted."
fn list(state: &State, call: &Call, node: &str, attached: &[DenyPolicy]) -> Result<Value, Problem> {
    let number = |name: &str| match call.param(name).unwrap_or_default() {
        "" => Ok(0),
        text => text
            .parse::<usize>()
            .map_err(|_| Problem::invalid(format!("Invalid value for {name}: {text}."))),
    };
    let (size, start) = (number("pageSize")?, number("pageToken")?);
    let size = if size == 0 {
        MAX_PAGE
    } else {
        size.min(MAX_PAGE)
    };
    let page: Vec<Value> = attached
        .iter()
        .skip(start)
        .take(size)
        .map(|p| p.show(state, node, false))
        .collect();
    let end = start.saturating_add(page.len());
    let mut answer = if page.is_empty() {
        json!({})
    } else {
        json!({"policies": page})
    };
    if end < attached.len() {
        answer["nextPageToken"] = json!(end.to_string());
    }
    Ok(answer)
}

impl Run {
    /// Attaches deny policies to a project, folder or organization instead of those that are there:
    /// `[{id, displayName?, rules: [{denyRule: {deniedPrincipals, deniedPermissions, …}}]}]`.
    ///
    /// # Errors
    /// When there is no such resource, or a policy is not of its form.
    pub fn set_deny_policies(&self, node: &str, policies: &Value) -> Result<(), String> {
        let mut state = self.lock();
        let now = self.clock.now().to_string();
        let parsed = hierarchy::parse(node);
        if let Some((Kind::Project, id)) = parsed
            && state.google.hierarchy.resolve(Kind::Project, id).is_none()
        {
            state.google.hierarchy.know_project(id, &now);
        }
        let found = parsed.and_then(|(kind, id)| state.google.hierarchy.resolve(kind, id));
        let found = found.ok_or_else(|| format!("{node} does not exist"))?;
        let mut attached = Vec::new();
        for policy in policies.as_array().ok_or("policies must be a list")? {
            let etag = state.google.etags.next(&self.clock);
            attached.push(DenyPolicy::parse(policy, &now, base64_of(&etag))?);
        }
        state.google.deny.insert(found, attached);
        Ok(())
    }
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}
