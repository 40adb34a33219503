//! Policy Troubleshooter v3: whether a principal has a permission on a resource, and why.
//!
//! Source: <https://docs.cloud.google.com/policy-intelligence/docs/reference/policytroubleshooter/rest/v3/iam/troubleshoot>,
//! <https://docs.cloud.google.com/policy-intelligence/docs/troubleshoot-access>. It looks at the allow
//! policies of the resource and of all above it, and at the deny policies of the project and of all
//! above that. What whoever asks may not see makes the answer `UNKNOWN_INFO`: a resource that does not
//! exist looks the same. Which of two unknowns counts is not documented; here it is what may not be
//! seen. Groups and domains are unknown unless [`Run::set_group`] has told who is in them.

mod allow;
mod deny;
#[cfg(test)]
mod tests;
mod verdict;

use serde_json::{Value, json};

use super::{
    hierarchy::{self, Kind},
    refusal::TROUBLESHOOTER,
    resource_manager::body,
    service_key,
};
use crate::{
    exchange::Call,
    run::{Problem, Run, State},
};
use verdict::Verdict;

/// Who wants to do what.
pub struct Access {
    /// An e-mail address.
    principal: String,
    /// As roles have it: `run.routes.invoke`.
    permission: String,
    /// As deny policies have it: `run.googleapis.com/routes.invoke`.
    permission_fqdn: String,
    context: Value,
}

/// A resource whose policies count.
pub struct Place {
    /// Relative, as it is kept.
    name: String,
    full_name: String,
}

/// `POST /v3/iam:troubleshoot`.
pub fn answer(run: &Run, call: &Call) -> Result<Value, Problem> {
    let request = body(call)?;
    let tuple = &request["accessTuple"];
    if !tuple.is_object() {
        return Err(Problem::invalid("access_tuple is required."));
    }
    let mut state = run.lock();
    let chain = chain(&state, text(tuple, "fullResourceName")?)?;
    let project = chain.iter().find(|p| p.name.starts_with("projects/"));
    let consumer = project.map_or("-", |p| p.name.as_str()).to_owned();
    state.admit(call, TROUBLESHOOTER, &consumer)?;
    let access = access(&state, tuple)?;
    let (allow, allow_explanation) = allow::explain(&state, &access, &chain);
    let (deny, deny_explanation) = deny::explain(&state, &access, &chain);
    let mut echoed = tuple.clone();
    echoed["permissionFqdn"] = json!(access.permission_fqdn);
    Ok(
        json!({"overallAccessState": Verdict::overall(allow, deny), "accessTuple": echoed,
        "allowPolicyExplanation": allow_explanation, "denyPolicyExplanation": deny_explanation}),
    )
}

fn text<'a>(tuple: &'a Value, field: &str) -> Result<&'a str, Problem> {
    let text = tuple[field].as_str().filter(|t| !t.is_empty());
    text.ok_or_else(|| Problem::invalid(format!("access_tuple.{field} is required.")))
}

fn access(state: &State, tuple: &Value) -> Result<Access, Problem> {
    let principal = text(tuple, "principal")?;
    // "The principal must be a Google Account or a service account. Other types of principals are
    // not supported."
    let is_email = principal.contains('@') && !principal.contains([':', '/', ' ']);
    if !is_email {
        return Err(Problem::invalid(format!(
            "Invalid principal {principal}: it must be the e-mail address of a Google Account or a service account."
        )));
    }
    let asked = text(tuple, "permission")?;
    let (permission, permission_fqdn) = permission(asked)
        .ok_or_else(|| Problem::invalid(format!("Invalid permission {asked}.")))?;
    if !state
        .google
        .roles
        .known_permissions()
        .contains(&permission.as_str())
    {
        return Err(Problem::invalid(format!(
            "Invalid permission {asked}: the sandbox does not know which roles contain it."
        )));
    }
    let context = tuple["conditionContext"].clone();
    Ok(Access {
        principal: principal.to_owned(),
        permission,
        permission_fqdn,
        context,
    })
}

/// A permission in both formats, v1 and v2.
fn permission(asked: &str) -> Option<(String, String)> {
    const SUFFIX: &str = ".googleapis.com/";
    let (service, rest) = match asked.split_once(SUFFIX) {
        Some((service, rest)) => (service.trim_start_matches("cloud"), rest),
        None => asked.split_once('.')?,
    };
    if service.is_empty() || !rest.contains('.') || asked.contains('*') {
        return None;
    }
    // Only here do the names of the service differ.
    let host = if service == "resourcemanager" {
        "cloudresourcemanager"
    } else {
        service
    };
    Some((format!("{service}.{rest}"), format!("{host}{SUFFIX}{rest}")))
}

/// A resource and all above it, the resource first. Of a project that does not exist nothing is
/// known.
fn chain(state: &State, full_name: &str) -> Result<Vec<Place>, Problem> {
    let invalid = || {
        Problem::invalid(format!(
            "Invalid full resource name {full_name}: the sandbox knows //run.googleapis.com/projects/P/locations/R/services/S and //cloudresourcemanager.googleapis.com/ with projects/P, folders/N or organizations/N."
        ))
    };
    let hierarchy = &state.google.hierarchy;
    let (service, node) = if let Some(name) = full_name.strip_prefix("//run.googleapis.com/") {
        let (project, region, service) = service_key(name).ok_or_else(invalid)?;
        let node = hierarchy.resolve(Kind::Project, &project);
        let id = node
            .as_deref()
            .and_then(|n| n.strip_prefix("projects/"))
            .unwrap_or(&project);
        let name = format!("projects/{id}/locations/{region}/services/{service}");
        (
            Some(name),
            node.unwrap_or_else(|| format!("projects/{project}")),
        )
    } else {
        let name = full_name.strip_prefix("//cloudresourcemanager.googleapis.com/");
        let name = name.ok_or_else(invalid)?;
        let (kind, id) = hierarchy::parse(name).ok_or_else(invalid)?;
        (
            None,
            hierarchy
                .resolve(kind, id)
                .unwrap_or_else(|| name.to_owned()),
        )
    };
    let services = service.map(|name| {
        let full_name = format!("//run.googleapis.com/{name}");
        Place { name, full_name }
    });
    let nodes = hierarchy.chain(&node).into_iter().map(|name| {
        let full_name = format!("//cloudresourcemanager.googleapis.com/{name}");
        Place { name, full_name }
    });
    Ok(services.into_iter().chain(nodes).collect())
}
