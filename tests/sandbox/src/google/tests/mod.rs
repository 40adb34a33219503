//! The APIs over their paths, as tables.

use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};

use crate::{
    Clock,
    exchange::Call,
    run::{Run, rest},
};

mod refusals;
mod resources;
mod search;

/// What is asked of a search in most of these tests.
const INVOKE: &str = "query=policy.role.permissions%3Arun.routes.invoke";

/// What a path answers: the status and the JSON.
async fn ask(run: &Run, method: Method, target: &str, body: Value) -> (u16, Value) {
    ask_with(run, method, target, body, HeaderMap::new()).await
}

async fn ask_with(
    run: &Run,
    method: Method,
    target: &str,
    body: Value,
    headers: HeaderMap,
) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let call = Call::new(method, &target.parse().unwrap(), headers, body.into());
    let response = rest::answer(run, &call);
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

pub async fn get(run: &Run, target: &str) -> (u16, Value) {
    ask(run, Method::GET, target, Value::Null).await
}

pub async fn post(run: &Run, target: &str, body: Value) -> (u16, Value) {
    ask(run, Method::POST, target, body).await
}

pub fn to(role: &str, members: &[&str]) -> Value {
    json!({"role": role, "members": members})
}

/// organizations/1 > folders/10 > folders/11 > shop (number 77), with a service; and another
/// project under the default organization.
pub fn world() -> Run {
    let run = Run::new(Clock::default());
    run.put_organization("organizations/1", None).unwrap();
    run.put_folder("folders/10", Some("eu"), Some("organizations/1"))
        .unwrap();
    run.put_folder("folders/11", None, Some("folders/10"))
        .unwrap();
    run.put_project("shop", Some("77"), Some("folders/11"))
        .unwrap();
    run.deploy("shop", "europe-west1", "web", &[]);
    run.deploy("other", "europe-west1", "api", &[]);
    let bindings = json!([
        to("roles/run.invoker", &["user:a@acme.com"]),
        to("roles/run.viewer", &["user:v@acme.com"])
    ]);
    run.set_bindings("shop", "europe-west1", "web", &bindings);
    run.set_bindings(
        "other",
        "europe-west1",
        "api",
        &json!([to("roles/run.invoker", &["allUsers"])]),
    );
    run.set_policy(
        "projects/shop",
        &json!([to("roles/editor", &["user:e@acme.com"])]),
    )
    .unwrap();
    run.set_policy(
        "folders/10",
        &json!([to("roles/run.admin", &["group:ops@acme.com"])]),
    )
    .unwrap();
    run.set_policy(
        "folders/11",
        &json!([to("roles/viewer", &["user:v@acme.com"])]),
    )
    .unwrap();
    run.set_policy(
        "organizations/1",
        &json!([to("roles/owner", &["user:o@acme.com"])]),
    )
    .unwrap();
    run
}
