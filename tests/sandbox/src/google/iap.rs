//! Identity-Aware Proxy in front of Cloud Run: allow policies and settings of its web resources.
//!
//! Source: <https://docs.cloud.google.com/iap/docs/reference/rest/v1/TopLevel> (`getIamPolicy` and
//! `setIamPolicy` are POSTs, `getIapSettings` is `GET …:iapSettings`), and the resource names that
//! gcloud builds: `projects/NUMBER/iap_web`, below it `cloud_run-REGION`, below that `services/S`.
//! What is granted above holds below.

use serde_json::{Value, json};

use super::{
    hierarchy::Kind,
    refusal::{IAP, denied},
    request::{IapRequest, IapVerb},
    resource_manager::{body, requested_version},
};
use crate::{
    exchange::Call,
    run::{Problem, Run, State, policy::StoredPolicy},
};

/// A web resource: its policy and its settings.
#[derive(Debug, Default)]
pub struct WebResource {
    pub policy: StoredPolicy,
    /// `IapSettings` without its name.
    pub settings: Value,
}

pub fn answer(run: &Run, call: &Call, request: &IapRequest<'_>) -> Result<Value, Problem> {
    let mut state = run.lock();
    let asked = format!("projects/{}/{}", request.project, request.path);
    let found = state
        .google
        .hierarchy
        .resolve(Kind::Project, request.project);
    let project = found.filter(|n| !state.is_gone(n));
    state.admit(call, IAP, project.as_deref().unwrap_or(&asked))?;
    let permission = permission(request);
    let project = match project {
        Some(project) if !state.lacks(&project, &permission) => project,
        _ => {
            let message = format!(
                "Permission '{permission}' denied on resource '{asked}' (or resource may not exist)."
            );
            return Err(denied(IAP, message, &permission, &asked));
        }
    };
    let name = format!("{project}/{}", request.path);
    match request.verb {
        IapVerb::GetIamPolicy => {
            let version = requested_version(call)?;
            let kept = state.google.iap.get(&name);
            Ok(kept.map_or_else(
                || StoredPolicy::default().view(version),
                |w| w.policy.view(version),
            ))
        }
        IapVerb::SetIamPolicy => set_policy(run, &mut state, call, &name),
        IapVerb::GetIapSettings => Ok(settings(&state, &project, &name, request.path.as_str())),
    }
}

/// <https://docs.cloud.google.com/iap/docs/managing-access>: one permission for each depth.
fn permission(request: &IapRequest<'_>) -> String {
    let resource = match request.path.matches('/').count() {
        0 => "iap.web",
        1 => "iap.webTypes",
        _ => "iap.webServices",
    };
    let verb = match request.verb {
        IapVerb::GetIamPolicy => "getIamPolicy",
        IapVerb::SetIamPolicy => "setIamPolicy",
        IapVerb::GetIapSettings => "getSettings",
    };
    format!("{resource}.{verb}")
}

fn set_policy(run: &Run, state: &mut State, call: &Call, name: &str) -> Result<Value, Problem> {
    let request = body(call)?;
    if !request["policy"].is_object() {
        return Err(Problem::invalid("policy is required"));
    }
    let etag = state.google.etags.next(&run.clock);
    let world = state.world.clone();
    let kept = state.google.iap.entry(name.to_owned()).or_default();
    kept.policy.set(&request, &world, etag)?;
    Ok(kept.policy.view(3))
}

/// The settings of exactly this resource: what is inherited is not shown. Names have the project's
/// number.
fn settings(state: &State, project: &str, name: &str, path: &str) -> Value {
    let kept = state.google.iap.get(name).map(|w| w.settings.clone());
    let mut settings = kept.filter(Value::is_object).unwrap_or_else(|| json!({}));
    settings["name"] = json!(format!(
        "{}/{path}",
        state.google.hierarchy.numbered(project)
    ));
    settings
}
