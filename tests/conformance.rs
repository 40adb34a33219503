//! The sandbox's Kubernetes API against a real API server: the same requests to both, and the
//! answers compared. Runs where `KUBEBUILDER_ASSETS` says where a real one is.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::collections::BTreeSet;

use common::Envtest;
use kube::Client;
use sandbox::Sandbox;
use serde_json::{Value, json};

const BASE: &str = "/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies";
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
const PATCH: &str = "application/json-patch+json";
const JSON: &str = "application/json";

struct Request {
    what: &'static str,
    method: &'static str,
    path: String,
    content: &'static str,
    body: Value,
}

fn request(
    what: &'static str,
    method: &'static str,
    path: &str,
    content: &'static str,
    body: Value,
) -> Request {
    Request {
        what,
        method,
        path: path.to_owned(),
        content,
        body,
    }
}

fn policy(name: &str, spec: Value) -> Value {
    let mut full = json!({"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "invokers": [{"member": "user:a@acme.com"}]});
    full.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": name, "namespace": "default"}, "spec": full})
}

/// The story that both servers are told.
fn story() -> Vec<Request> {
    let one = format!("{BASE}/one");
    let by = |path: &str, manager: &str| format!("{path}?fieldManager={manager}");
    let ready = json!({"type": "Ready", "status": "True", "reason": "InSync", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1});
    vec![
        request("get what is not there", "GET", &one, JSON, Value::Null),
        request(
            "create with defaults",
            "POST",
            &by(BASE, "maker"),
            JSON,
            policy("one", json!({})),
        ),
        request(
            "create it again",
            "POST",
            &by(BASE, "maker"),
            JSON,
            policy("one", json!({})),
        ),
        request("read it", "GET", &one, JSON, Value::Null),
        request(
            "unknown field, strict",
            "POST",
            &format!("{BASE}?fieldManager=maker&fieldValidation=Strict"),
            JSON,
            policy("two", json!({"nope": 1})),
        ),
        request(
            "unknown field, pruned",
            "POST",
            &format!("{BASE}?fieldManager=maker&fieldValidation=Ignore"),
            JSON,
            policy("two", json!({"nope": 1})),
        ),
        request(
            "dry run",
            "POST",
            &format!("{BASE}?fieldManager=maker&dryRun=All"),
            JSON,
            policy("three", json!({})),
        ),
        request(
            "which made nothing",
            "GET",
            &format!("{BASE}/three"),
            JSON,
            Value::Null,
        ),
        request(
            "wrong enum",
            "POST",
            BASE,
            JSON,
            policy("bad", json!({"mode": "Loud"})),
        ),
        request(
            "wrong type",
            "POST",
            BASE,
            JSON,
            policy("bad", json!({"suspend": "yes"})),
        ),
        request(
            "too short",
            "POST",
            BASE,
            JSON,
            policy("bad", json!({"project": "abc"})),
        ),
        request(
            "required missing",
            "POST",
            BASE,
            JSON,
            policy(
                "bad",
                json!({"invokers": [{"expires": "2099-01-01T00:00:00Z"}]}),
            ),
        ),
        request(
            "a rule is broken",
            "POST",
            BASE,
            JSON,
            policy("bad", json!({"project": "UPPER-case"})),
        ),
        request(
            "rules deep inside are broken",
            "POST",
            BASE,
            JSON,
            policy(
                "bad",
                json!({"services": [{"name": "web"}], "invokers": [{"member": "AllUsers"}]}),
            ),
        ),
        request(
            "a rule about the whole list",
            "POST",
            BASE,
            JSON,
            policy(
                "bad",
                json!({"invokers": [{"member": "user:a@b.co"}, {"member": "user:a@b.co"}]}),
            ),
        ),
        request(
            "an empty list",
            "POST",
            BASE,
            JSON,
            policy("bad", json!({"invokers": []})),
        ),
        request(
            "no name",
            "POST",
            BASE,
            JSON,
            json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {}, "spec": {}}),
        ),
        request(
            "bad name",
            "POST",
            BASE,
            JSON,
            policy("Bad_Name", json!({})),
        ),
        request(
            "merge patch",
            "PATCH",
            &by(&one, "merger"),
            MERGE,
            json!({"spec": {"mode": "Enforce"}}),
        ),
        request(
            "merge patch that changes nothing",
            "PATCH",
            &by(&one, "merger"),
            MERGE,
            json!({"spec": {"mode": "Enforce"}}),
        ),
        request(
            "json patch",
            "PATCH",
            &by(&one, "merger"),
            PATCH,
            json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]),
        ),
        request(
            "json patch that does not fit",
            "PATCH",
            &by(&one, "merger"),
            PATCH,
            json!([{"op": "test", "path": "/spec/mode", "value": "Audit"}]),
        ),
        request(
            "strategic merge patch",
            "PATCH",
            &by(&one, "merger"),
            "application/strategic-merge-patch+json",
            json!({"spec": {"mode": "Audit"}}),
        ),
        request(
            "immutable field",
            "PATCH",
            &by(&one, "merger"),
            MERGE,
            json!({"spec": {"project": "other-prod"}}),
        ),
        request(
            "stale resourceVersion",
            "PATCH",
            &by(&one, "merger"),
            MERGE,
            json!({"metadata": {"resourceVersion": "1"}, "spec": {"mode": "Audit"}}),
        ),
        request(
            "status through the main door is ignored",
            "PATCH",
            &by(&one, "merger"),
            MERGE,
            json!({"status": {"observedGeneration": 7}}),
        ),
        request(
            "status",
            "PATCH",
            &by(&format!("{one}/status"), "operator"),
            MERGE,
            json!({"status": {"observedGeneration": 1, "conditions": [ready]}}),
        ),
        request(
            "status takes nothing else",
            "PATCH",
            &by(&format!("{one}/status"), "operator"),
            MERGE,
            json!({"spec": {"mode": "Audit"}, "metadata": {"labels": {"x": "y"}}}),
        ),
        request(
            "status of the wrong type",
            "PATCH",
            &by(&format!("{one}/status"), "operator"),
            MERGE,
            json!({"status": {"observedGeneration": "one"}}),
        ),
        request(
            "server-side apply",
            "PATCH",
            &by(&format!("{BASE}/applied"), "git"),
            APPLY,
            policy("applied", json!({"interval": "1m"})),
        ),
        request(
            "apply without a manager",
            "PATCH",
            &format!("{BASE}/applied"),
            APPLY,
            policy("applied", json!({})),
        ),
        request(
            "apply again",
            "PATCH",
            &by(&format!("{BASE}/applied"), "git"),
            APPLY,
            policy("applied", json!({"interval": "1m"})),
        ),
        request(
            "apply by another, same values",
            "PATCH",
            &by(&format!("{BASE}/applied"), "second"),
            APPLY,
            json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "applied"}, "spec": {"interval": "1m"}}),
        ),
        request(
            "apply by another, in conflict",
            "PATCH",
            &by(&format!("{BASE}/applied"), "second"),
            APPLY,
            json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "applied"}, "spec": {"interval": "2m"}}),
        ),
        request(
            "apply by another, by force",
            "PATCH",
            &format!("{BASE}/applied?fieldManager=second&force=true"),
            APPLY,
            json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "applied", "labels": {"l": "1"}}, "spec": {"interval": "2m"}}),
        ),
        request(
            "apply without a field that was applied",
            "PATCH",
            &by(&format!("{BASE}/applied"), "second"),
            APPLY,
            json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "applied"}, "spec": {"interval": "2m"}}),
        ),
        request(
            "apply of status",
            "PATCH",
            &format!("{BASE}/applied/status?fieldManager=operator&force=true"),
            APPLY,
            json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "applied"}, "status": {"observedGeneration": 2, "conditions": [ready]}}),
        ),
        request(
            "finalizer",
            "PATCH",
            &by(&one, "operator"),
            MERGE,
            json!({"metadata": {"finalizers": ["run-invoker.dev/revoke"]}}),
        ),
        request("delete with a finalizer", "DELETE", &one, JSON, Value::Null),
        request("it is marked", "GET", &one, JSON, Value::Null),
        request(
            "no new finalizer while it goes",
            "PATCH",
            &by(&one, "operator"),
            MERGE,
            json!({"metadata": {"finalizers": ["run-invoker.dev/revoke", "x.dev/y"]}}),
        ),
        request(
            "spec may still change",
            "PATCH",
            &by(&one, "operator"),
            MERGE,
            json!({"spec": {"onDelete": "Retain"}}),
        ),
        request(
            "the finalizer goes",
            "PATCH",
            &by(&one, "operator"),
            MERGE,
            json!({"metadata": {"finalizers": null}}),
        ),
        request("and with it the object", "GET", &one, JSON, Value::Null),
        request(
            "delete what is not there",
            "DELETE",
            &one,
            JSON,
            Value::Null,
        ),
        request(
            "wrong uid in a precondition",
            "DELETE",
            &format!("{BASE}/two"),
            JSON,
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}),
        ),
        request(
            "a list by field",
            "GET",
            &format!("{BASE}?fieldSelector=metadata.name%3Dtwo"),
            JSON,
            Value::Null,
        ),
        request(
            "a list by a field that is not indexed",
            "GET",
            &format!("{BASE}?fieldSelector=spec.mode%3DAudit"),
            JSON,
            Value::Null,
        ),
        request(
            "a list by label",
            "GET",
            &format!("{BASE}?labelSelector=l%20in%20(1,2)"),
            JSON,
            Value::Null,
        ),
        request(
            "a list by absence",
            "GET",
            &format!("{BASE}?labelSelector=!l"),
            JSON,
            Value::Null,
        ),
        request(
            "a chunk",
            "GET",
            &format!("{BASE}?limit=1"),
            JSON,
            Value::Null,
        ),
        request(
            "another kind of patch",
            "PATCH",
            &format!("{BASE}/two"),
            "text/plain",
            json!({}),
        ),
        request(
            "a resource that is not served",
            "GET",
            "/apis/run-invoker.dev/v1alpha1/namespaces/default/nothings",
            JSON,
            Value::Null,
        ),
        request(
            "a group that is not served",
            "GET",
            "/apis/nothing.dev/v1",
            JSON,
            Value::Null,
        ),
    ]
}

async fn ask(client: &Client, r: &Request) -> (u16, Value) {
    let body = if r.body.is_null() {
        vec![]
    } else {
        r.body.to_string().into_bytes()
    };
    let request = http::Request::builder()
        .method(r.method)
        .uri(&r.path)
        .header("content-type", r.content)
        .header("accept", JSON)
        .body(body)
        .unwrap();
    let answer = client
        .send(request.map(kube::client::Body::from))
        .await
        .unwrap();
    let status = answer.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(answer.into_body())
        .await
        .unwrap()
        .to_bytes();
    (
        status,
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!({"text": String::from_utf8_lossy(&bytes)})),
    )
}

/// What must be equal: code, reason and fields of a refusal; the whole object but for times, ids
/// and versions.
fn essence(status: u16, value: &Value) -> Value {
    if value["kind"] == "Status" || value["text"].is_string() {
        let fields: BTreeSet<String> = value["details"]["causes"]
            .as_array()
            .into_iter()
            .flatten()
            // The real server adds a line about rules that it did not run, without a field.
            .filter_map(|c| c["field"].as_str())
            .filter(|f| *f != "<nil>")
            .map(str::to_owned)
            .collect();
        let reason = if status >= 500 || value["text"].is_string() {
            Value::Null
        } else {
            value["reason"].clone()
        };
        return json!({"code": status, "reason": reason, "fields": fields});
    }
    let mut value = value.clone();
    scrub(&mut value);
    json!({"code": status, "object": value})
}

fn scrub(value: &mut Value) {
    if let Some(items) = value["items"].as_array_mut() {
        items.iter_mut().for_each(scrub);
    }
    let Some(meta) = value["metadata"].as_object_mut() else {
        return;
    };
    for key in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
    ] {
        if let Some(v) = meta.get_mut(key) {
            *v = json!("set");
        }
    }
    if let Some(token) = meta.get_mut("continue") {
        *token = json!(!token.as_str().unwrap_or_default().is_empty());
    }
    if let Some(list) = meta.get_mut("managedFields").and_then(Value::as_array_mut) {
        for entry in list.iter_mut() {
            entry["time"] = Value::Null;
            scrub_fields(&mut entry["fieldsV1"]);
        }
        list.sort_by_key(|e| format!("{} {} {}", e["manager"], e["operation"], e["subresource"]));
    }
}

/// `.` marks that a container itself is owned. The sandbox keeps leaves only, which no client looks
/// at.
fn scrub_fields(fields: &mut Value) {
    if let Some(map) = fields.as_object_mut() {
        map.remove(".");
        map.values_mut().for_each(scrub_fields);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_sandbox_answers_as_a_real_api_server_does() {
    let Some(server) = Envtest::start("the sandbox is compared with nothing").await else {
        return;
    };
    let real = common::client(&server.kubeconfig()).await;
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let ours = common::client(&sandbox.kubeconfig()).await;
    common::install(&real).await;
    common::install(&ours).await;
    let story = story();
    let mut differences = Vec::new();
    for r in &story {
        let (a, b) = (ask(&real, r).await, ask(&ours, r).await);
        let (wanted, have) = (essence(a.0, &a.1), essence(b.0, &b.1));
        if wanted != have {
            differences.push(format!(
                "{}\n  real    {wanted}\n  sandbox {have}\n  ({} / {})",
                r.what, a.1["message"], b.1["message"]
            ));
        }
    }
    println!("{} requests compared", story.len());
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}
