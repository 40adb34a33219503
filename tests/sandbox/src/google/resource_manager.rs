//! Resource Manager, v1 to v3: projects, folders, organizations, and their allow policies.
//!
//! Sources: <https://docs.cloud.google.com/resource-manager/reference/rest> (v1, v2, v3). Other than
//! on Cloud Run, `getIamPolicy` is a POST. A project that does not exist answers as one that the
//! caller may not see.

use serde_json::{Value, json};

use super::{
    hierarchy::{Kind, Node},
    refusal::{RESOURCE_MANAGER, denied},
    request::{NodeRequest, NodeVerb},
};
use crate::{
    exchange::Call,
    run::{Problem, Run, State, rest::held_permissions},
};

pub fn answer(run: &Run, call: &Call, request: &NodeRequest<'_>) -> Result<Value, Problem> {
    let mut state = run.lock();
    let asked = format!("{}/{}", request.kind.collection(), request.id);
    let found = state.google.hierarchy.resolve(request.kind, request.id);
    let name = found.filter(|n| !state.is_gone(n));
    state.admit(call, RESOURCE_MANAGER, name.as_deref().unwrap_or(&asked))?;
    if request.verb == NodeVerb::TestIamPermissions {
        return permissions(&state, call, name.as_deref());
    }
    let permission = permission(request);
    let name = match name {
        Some(name) if !state.lacks(&name, &permission) => name,
        _ => return Err(refused(request, &permission, &asked)),
    };
    match request.verb {
        NodeVerb::GetAncestry => return Ok(ancestry(&state, &name)),
        NodeVerb::SetIamPolicy => return set_policy(run, &mut state, call, request.kind, &name),
        _ => {}
    }
    let Some(node) = state.google.hierarchy.get(&name) else {
        return Err(refused(request, &permission, &asked));
    };
    match request.verb {
        NodeVerb::GetIamPolicy => Ok(node.policy.view(requested_version(call)?)),
        _ => Ok(describe(&state, request, &name, node)),
    }
}

fn permission(request: &NodeRequest<'_>) -> String {
    let verb = match request.verb {
        NodeVerb::GetIamPolicy => "getIamPolicy",
        NodeVerb::SetIamPolicy => "setIamPolicy",
        NodeVerb::Get | NodeVerb::GetAncestry | NodeVerb::TestIamPermissions => "get",
    };
    format!("resourcemanager.{}.{verb}", request.kind.collection())
}

/// v3 names the permission, v1 and v2 only say no; public reports have both.
fn refused(request: &NodeRequest<'_>, permission: &str, resource: &str) -> Problem {
    let message = if request.version == "v3" {
        format!(
            "Permission '{permission}' denied on resource '//cloudresourcemanager.googleapis.com/{resource}' (or it may not exist)."
        )
    } else {
        "The caller does not have permission".to_owned()
    };
    denied(RESOURCE_MANAGER, message, permission, resource)
}

/// `GetPolicyOptions.requestedPolicyVersion`, in the body.
pub fn requested_version(call: &Call) -> Result<i64, Problem> {
    let body = body(call)?;
    let asked = &body["options"]["requestedPolicyVersion"];
    if asked.is_null() {
        return Ok(0);
    }
    let version = asked.as_i64().filter(|v| [0, 1, 3].contains(v));
    version.ok_or_else(|| Problem::invalid(format!("Invalid requested policy version: {asked}.")))
}

/// The body as a JSON object; an empty one is an empty message.
pub fn body(call: &Call) -> Result<Value, Problem> {
    if call.body.is_empty() {
        return Ok(json!({}));
    }
    let body: Value = serde_json::from_slice(&call.body)
        .map_err(|e| Problem::invalid(format!("Invalid JSON payload received. {e}")))?;
    if body.is_object() {
        Ok(body)
    } else {
        Err(Problem::invalid(
            "Invalid JSON payload received. An object is expected.",
        ))
    }
}

/// What the caller holds of what was asked for; of a resource that is not there, nothing.
fn permissions(state: &State, call: &Call, name: Option<&str>) -> Result<Value, Problem> {
    let asked = body(call)?;
    let Some(name) = name else {
        return Ok(json!({}));
    };
    let held = held_permissions(
        state,
        name.strip_prefix("projects/").unwrap_or(name),
        &asked,
    );
    Ok(if held.is_empty() {
        json!({})
    } else {
        json!({"permissions": held})
    })
}

/// `GetAncestryResponse` of v1: the project first, the organization last.
fn ancestry(state: &State, name: &str) -> Value {
    let chain = state.google.hierarchy.chain(name);
    let entry = |name: &String| {
        let (kind, id) = super::hierarchy::parse(name)?;
        Some(json!({"resourceId": {"type": kind.singular(), "id": id}}))
    };
    json!({"ancestor": chain.iter().filter_map(entry).collect::<Vec<_>>()})
}

fn describe(state: &State, request: &NodeRequest<'_>, name: &str, node: &Node) -> Value {
    let created = &node.created;
    let customer = "C01sandbox";
    let id = name.split_once('/').map_or(name, |(_, id)| id);
    match (request.kind, request.version) {
        (Kind::Project, "v1") => {
            let mut project = json!({"projectNumber": node.number, "projectId": id,
                "lifecycleState": "ACTIVE", "name": node.display_name, "createTime": created});
            if let Some((kind, id)) = node.parent.as_deref().and_then(super::hierarchy::parse) {
                project["parent"] = json!({"type": kind.singular(), "id": id});
            }
            project
        }
        (Kind::Organization, "v1") => {
            json!({"name": name, "displayName": node.display_name, "creationTime": created,
                "owner": {"directoryCustomerId": customer}, "lifecycleState": "ACTIVE"})
        }
        (Kind::Organization, _) => {
            json!({"name": name, "displayName": node.display_name, "state": "ACTIVE",
                "directoryCustomerId": customer, "createTime": created, "updateTime": created,
                "etag": "W/\"sandbox\""})
        }
        (Kind::Folder, "v2") => {
            json!({"name": name, "parent": node.parent, "displayName": node.display_name,
                "lifecycleState": "ACTIVE", "createTime": created})
        }
        (Kind::Folder | Kind::Project, _) => {
            let mut found = json!({"name": state.google.hierarchy.numbered(name),
                "parent": node.parent, "displayName": node.display_name, "state": "ACTIVE",
                "createTime": created, "updateTime": created, "etag": "W/\"sandbox\""});
            if request.kind == Kind::Project {
                found["projectId"] = json!(id);
            }
            found
        }
    }
}

fn set_policy(
    run: &Run,
    state: &mut State,
    call: &Call,
    kind: Kind,
    name: &str,
) -> Result<Value, Problem> {
    let request = body(call)?;
    if !request["policy"].is_object() {
        return Err(Problem::invalid("policy is required"));
    }
    if kind == Kind::Project && names_the_public(&request["policy"]) {
        return Err(Problem::invalid("Request contains an invalid argument."));
    }
    let etag = state.google.etags.next(&run.clock);
    let world = state.world.clone();
    let Some(node) = state.google.hierarchy.get_mut(name) else {
        return Err(Problem::new(
            404,
            "NOT_FOUND",
            "Requested entity was not found.",
        ));
    };
    node.policy
        .set(&request, &world, etag)
        .map_err(|p| in_own_words(p, name))?;
    let view = node.policy.view(3);
    state.changed(&run.clock, name);
    Ok(view)
}

/// "Project does not support `allUsers` and `allAuthenticatedUsers` as `members`"
/// (<https://docs.cloud.google.com/resource-manager/reference/rest/v3/projects/setIamPolicy>).
fn names_the_public(policy: &Value) -> bool {
    let bindings = policy["bindings"].as_array().into_iter().flatten();
    bindings
        .flat_map(|b| b["members"].as_array().into_iter().flatten())
        .any(|m| m == "allUsers" || m == "allAuthenticatedUsers")
}

/// Domain restricted sharing: Resource Manager's sentence ends sooner than Cloud Run's, and has
/// details.
fn in_own_words(mut problem: Problem, name: &str) -> Problem {
    if problem.status == "FAILED_PRECONDITION" && problem.details.is_empty() {
        problem.message =
            "One or more users named in the policy do not belong to a permitted customer.".into();
        problem.details = vec![
            json!({"@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": "constraints/iam.allowedPolicyMemberDomains",
                "subject": format!("orgpolicy:{name}"),
                "description": "A member is not in a permitted organization."}]}),
        ];
    }
    problem
}
