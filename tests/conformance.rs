//! The sandbox's Kubernetes API against a real API server: the same requests to both, and the
//! answers compared. Runs where `KUBEBUILDER_ASSETS` says where a real one is.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]
#![expect(clippy::print_stdout, reason = "says how much it compared")]

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
    let Some(server) = Envtest::start("whether the sandbox answers as it does").await else {
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

/// Columns that may be empty behind an apply, and why kubectl cannot show anything there.
const MAY_BE_EMPTY: &[(&str, &str)] = &[
    // What is omitted there is without a limit, or the operator's own limit: a path finds no words
    // for what is not there, and a default in the spec would be a limit that was never written.
    ("InvokerGuardrail", "Namespaces"),
    ("InvokerGuardrail", "Projects"),
    ("InvokerGuardrail", "Max Lifetime"),
    ("InvokerGuardrail", "Max Removals"),
    // Access has no end before it is granted, an approval no change before it is used, and until when
    // it may be used follows from when it was created: no default can know these.
    ("InvokerAccessRequest", "Until"),
    ("InvokerAccessRequest", "Approval"),
    ("InvokerApproval", "Ends"),
    ("InvokerApproval", "Change"),
    // One of the two; the column For has either.
    ("InvokerApproval", "Policy"),
    ("InvokerApproval", "Request"),
    // Nothing was changed yet.
    ("InvokerPolicy", "Last Change"),
    // Nobody applies a ledger, and nearly none has a removal that waits, or a write under way.
    ("InvokerLedger", "Held"),
    ("InvokerLedger", "Pending"),
];

/// The smallest object of each kind that somebody, or the operator, can apply.
fn smallest() -> Vec<Value> {
    let plan = "a".repeat(40);
    let service = json!({"name": "web", "region": "europe-west1"});
    let place = json!({"project": "acme-prod", "region": "europe-west1", "service": "web"});
    let mut change = json!({"reason": "SpecChanged", "at": "2026-01-01T00:00:00.000000Z", "policies": [], "added": [], "addedCount": 0,
        "removed": [], "removedCount": 0, "before": [], "etagBefore": "BwX=", "outcome": {"phase": "Applied"}});
    let place = place.as_object().unwrap().clone();
    change.as_object_mut().unwrap().extend(place.clone());
    let object = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let invokers = json!([{"member": "user:a@acme.com"}]);
    vec![
        object(
            "InvokerPolicy",
            "p",
            json!({"project": "acme-prod", "services": [service], "invokers": invokers}),
        ),
        object("InvokerGuardrail", "g", json!({})),
        object("InvokerChange", "c", change),
        object("InvokerLedger", "l", Value::Object(place)),
        object(
            "InvokerApproval",
            "of-a-policy",
            json!({"policy": "p", "plan": plan, "reason": "CHG-1"}),
        ),
        object(
            "InvokerApproval",
            "of-a-request",
            json!({"request": "inc-1", "plan": plan, "reason": "CHG-1"}),
        ),
        object(
            "InvokerAccessRequest",
            "inc-1",
            json!({"project": "acme-prod", "services": [service], "member": "user:a@acme.com", "duration": "1h", "reason": "INC-1"}),
        ),
    ]
}

/// Each object as a row of its table: kind, name, and its columns with what is in them.
async fn rows(client: &Client) -> Vec<(String, Vec<(String, Value)>)> {
    let definitions = run_invoker::api::definitions();
    let mut rows = Vec::new();
    for object in smallest() {
        let kind = object["kind"].as_str().unwrap();
        let crd = definitions.iter().find(|d| d.spec.names.kind == kind);
        let crd = crd.unwrap();
        let place = match crd.spec.scope.as_str() {
            "Namespaced" => "namespaces/default/",
            _ => "",
        };
        let base = format!(
            "/apis/run-invoker.dev/v1alpha1/{place}{}",
            crd.spec.names.plural
        );
        let created = request("apply", "POST", &base, JSON, object.clone());
        let (status, answer) = ask(client, &created).await;
        assert_eq!(status, 201, "{answer}");
        let name = object["metadata"]["name"].as_str().unwrap();
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let asked = http::Request::get(format!("{base}/{name}"))
            .header("accept", accept)
            .body(Vec::new())
            .unwrap();
        let table: Value = client.request(asked).await.unwrap();
        let columns = table["columnDefinitions"].as_array().unwrap();
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        let named = columns
            .iter()
            .zip(cells)
            .map(|(column, cell)| (column["name"].as_str().unwrap().to_owned(), cell.clone()))
            .filter(|(column, _)| column != "Age")
            .collect();
        rows.push((kind.to_owned(), named));
    }
    rows
}

/// What is applied and was seen by no operator: both servers fill the columns in alike, and none is
/// empty without a reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn columns_are_filled_in_before_an_operator_has_seen_anything() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let ours = rows(&client).await;
    let mut used = BTreeSet::new();
    for (kind, row) in &ours {
        assert!(row.len() > 3, "{kind}: {row:?}");
        for (column, cell) in row {
            let excused = (kind.as_str(), column.as_str());
            if cell.is_null() || cell == "" {
                assert!(MAY_BE_EMPTY.contains(&excused), "{kind}: {column} is empty");
                used.insert(excused);
            }
        }
    }
    assert_eq!(
        used.len(),
        MAY_BE_EMPTY.len(),
        "an excuse that nobody needs"
    );
    let Some(server) = Envtest::start("whether columns are filled in as there").await else {
        return;
    };
    let client = common::client(&server.kubeconfig()).await;
    common::install(&client).await;
    assert_eq!(rows(&client).await, ours);
}

/// Namespaces that end, and who may do what: told to both servers, by an admin and by ServiceAccounts.
/// Refusals must be equal word for word; of other answers, what people look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn namespaces_end_and_rights_are_refused_in_the_same_words() {
    let Some(server) =
        Envtest::start("whether the sandbox ends namespaces and refuses rights as it does").await
    else {
        return;
    };
    let places = [
        server.behind_a_sandbox().await,
        Sandbox::start(Default::default()).await.unwrap(),
    ];
    let mut answers = Vec::new();
    for sandbox in &places {
        answers.push(namespaces_and_rights(sandbox).await);
    }
    let (real, ours) = (&answers[0], &answers[1]);
    assert_eq!(real.len(), ours.len());
    let differences: Vec<String> = real
        .iter()
        .zip(ours)
        .filter(|(a, b)| a != b)
        .map(|((what, a), (_, b))| format!("{what}\n  real    {a}\n  sandbox {b}"))
        .collect();
    println!("{} requests compared", real.len());
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

async fn namespaces_and_rights(sandbox: &Sandbox) -> Vec<(&'static str, Value)> {
    const POLICIES: &str = "/apis/run-invoker.dev/v1alpha1/namespaces";
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let admin = common::client(&sandbox.kubeconfig()).await;
    let editor = common::client(&sandbox.kubeconfig_of("team-a", "editor")).await;
    let viewer = common::client(&sandbox.kubeconfig_of("team-a", "viewer")).await;
    common::install(&admin).await;
    common::namespace(&admin, "team-a").await;
    let named = |kind: &str, name: &str, more: Value| {
        let group = if kind == "Namespace" {
            "v1"
        } else {
            "rbac.authorization.k8s.io/v1"
        };
        let mut object = json!({"apiVersion": group, "kind": kind, "metadata": {"name": name}});
        object
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        object
    };
    let in_namespace = |namespace: &str, name: &str, finalizers: Value| {
        let mut object = policy(name, json!({}));
        object["metadata"] =
            json!({"name": name, "namespace": namespace, "finalizers": finalizers});
        object
    };
    let rules = json!({"rules": [
        {"apiGroups": ["run-invoker.dev"], "resources": ["invokerpolicies"], "verbs": ["get", "list", "patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"], "resourceNames": ["mine"]}]});
    let binding = json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "some"},
        "subjects": [{"kind": "ServiceAccount", "name": "editor", "namespace": "team-a"}]});
    let at = |namespace: &str, rest: &str| format!("{POLICIES}/{namespace}/invokerpolicies{rest}");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/team-a/leases";
    let note = json!({"metadata": {"labels": {"l": "1"}}});
    let whole = |name: &str| json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": name}, "spec": policy(name, json!({}))["spec"]});
    let none = Value::Null;
    let story: Vec<(
        &'static str,
        &Client,
        &'static str,
        String,
        &'static str,
        Value,
    )> = vec![
        (
            "a namespace that is not there",
            &admin,
            "GET",
            "/api/v1/namespaces/ends".into(),
            JSON,
            none.clone(),
        ),
        (
            "a policy in it",
            &admin,
            "POST",
            at("ends", ""),
            JSON,
            in_namespace("ends", "one", json!([])),
        ),
        (
            "a namespace is made",
            &admin,
            "POST",
            "/api/v1/namespaces".into(),
            JSON,
            named("Namespace", "ends", json!({})),
        ),
        (
            "made twice",
            &admin,
            "POST",
            "/api/v1/namespaces".into(),
            JSON,
            named("Namespace", "ends", json!({})),
        ),
        (
            "a policy that stays for a while",
            &admin,
            "POST",
            at("ends", ""),
            JSON,
            in_namespace("ends", "one", json!(["acme.com/wait"])),
        ),
        (
            "and one that does not",
            &admin,
            "POST",
            at("ends", ""),
            JSON,
            in_namespace("ends", "two", json!([])),
        ),
        (
            "the namespace goes",
            &admin,
            "DELETE",
            "/api/v1/namespaces/ends".into(),
            JSON,
            none.clone(),
        ),
        (
            "nothing new in it",
            &admin,
            "POST",
            at("ends", ""),
            JSON,
            in_namespace("ends", "three", json!([])),
        ),
        (
            "nor by server-side apply",
            &admin,
            "PATCH",
            at("ends", "/four?fieldManager=t"),
            APPLY,
            whole("four"),
        ),
        (
            "what is there may change",
            &admin,
            "PATCH",
            at("ends", "/one"),
            MERGE,
            note.clone(),
        ),
        (
            "until it is let go",
            &admin,
            "PATCH",
            at("ends", "/one"),
            MERGE,
            json!({"metadata": {"finalizers": null}}),
        ),
        (
            "no rights: get",
            &editor,
            "GET",
            at("team-a", "/one"),
            JSON,
            none.clone(),
        ),
        (
            "no rights: list",
            &editor,
            "GET",
            at("team-a", ""),
            JSON,
            none.clone(),
        ),
        (
            "no rights: everywhere",
            &editor,
            "GET",
            "/apis/run-invoker.dev/v1alpha1/invokerpolicies".into(),
            JSON,
            none.clone(),
        ),
        (
            "no rights: core",
            &editor,
            "GET",
            "/api/v1/namespaces/team-a/serviceaccounts".into(),
            JSON,
            none.clone(),
        ),
        (
            "no rights: a namespace",
            &editor,
            "GET",
            "/api/v1/namespaces/team-a".into(),
            JSON,
            none.clone(),
        ),
        (
            "no rights: what is not served",
            &editor,
            "GET",
            "/apis/run-invoker.dev/v1alpha1/namespaces/team-a/nothings".into(),
            JSON,
            none.clone(),
        ),
        (
            "a role",
            &admin,
            "POST",
            format!("{RBAC}/namespaces/team-a/roles"),
            JSON,
            named("Role", "some", rules),
        ),
        (
            "and its binding",
            &admin,
            "POST",
            format!("{RBAC}/namespaces/team-a/rolebindings"),
            JSON,
            named("RoleBinding", "some", binding),
        ),
        (
            "now there is nothing",
            &editor,
            "GET",
            at("team-a", "/one"),
            JSON,
            none.clone(),
        ),
        (
            "not for others",
            &viewer,
            "GET",
            at("team-a", "/one"),
            JSON,
            none.clone(),
        ),
        (
            "no create",
            &editor,
            "POST",
            at("team-a", ""),
            JSON,
            in_namespace("team-a", "one", json!([])),
        ),
        (
            "nor by server-side apply",
            &editor,
            "PATCH",
            at("team-a", "/one?fieldManager=t"),
            APPLY,
            whole("one"),
        ),
        (
            "an admin makes it",
            &admin,
            "POST",
            at("team-a", ""),
            JSON,
            in_namespace("team-a", "one", json!([])),
        ),
        (
            "patch is allowed",
            &editor,
            "PATCH",
            at("team-a", "/one"),
            MERGE,
            note.clone(),
        ),
        (
            "not its status",
            &editor,
            "PATCH",
            at("team-a", "/one/status"),
            MERGE,
            json!({"status": {"observedGeneration": 1}}),
        ),
        (
            "not update",
            &editor,
            "PUT",
            at("team-a", "/one"),
            JSON,
            in_namespace("team-a", "one", json!([])),
        ),
        (
            "not delete",
            &editor,
            "DELETE",
            at("team-a", "/one"),
            JSON,
            none.clone(),
        ),
        (
            "not all of them",
            &editor,
            "DELETE",
            at("team-a", ""),
            JSON,
            none.clone(),
        ),
        (
            "not a watch",
            &editor,
            "GET",
            at("team-a", "?watch=true&timeoutSeconds=1"),
            JSON,
            none.clone(),
        ),
        (
            "one object by its name",
            &editor,
            "GET",
            format!("{leases}/mine"),
            JSON,
            none.clone(),
        ),
        (
            "not another",
            &editor,
            "GET",
            format!("{leases}/yours"),
            JSON,
            none.clone(),
        ),
        ("nor all", &editor, "GET", leases.into(), JSON, none),
    ];
    let mut answers = Vec::new();
    for (what, who, method, path, content, body) in story {
        let wait = path.clone();
        let request = request(what, method, &path, content, body);
        let (code, answer) = ask(who, &request).await;
        let seen = if answer["kind"] == "Status" {
            json!({"code": code, "reason": answer["reason"], "message": answer["message"], "causes": answer["details"]["causes"][0]["reason"]})
        } else {
            json!({"code": code, "kind": answer["kind"], "phase": answer["status"]["phase"], "labels": answer["metadata"]["labels"]["l"],
                "deleted": answer["metadata"]["deletionTimestamp"].is_string(), "text": answer["text"]})
        };
        answers.push((what, seen));
        // What a real API server does in the background.
        match what {
            // A full API server says Terminating in this answer already.
            "the namespace goes" => {
                if let Some((_, answer)) = answers.last_mut() {
                    answer["phase"] = Value::Null;
                }
                common::eventually(std::time::Duration::from_secs(10), what, || async {
                    let (two, _) = ask(&admin, &request_to(&at("ends", "/two"))).await;
                    let (_, ends) = ask(&admin, &request_to("/api/v1/namespaces/ends")).await;
                    match (two == 404, ends["status"]["phase"] == "Terminating") {
                        (true, true) => Ok(()),
                        both => Err(format!("{both:?}")),
                    }
                })
                .await;
            }
            "until it is let go" => {
                common::eventually(std::time::Duration::from_secs(10), what, || async {
                    let gone = ask(&admin, &request_to("/api/v1/namespaces/ends")).await;
                    if gone.0 == 404 {
                        Ok(())
                    } else {
                        Err(gone.1.to_string())
                    }
                })
                .await;
            }
            // Roles act when the server's cache has them.
            "and its binding" => {
                common::eventually(std::time::Duration::from_secs(10), what, || async {
                    let code = ask(&editor, &request_to(&at("team-a", "/one"))).await.0;
                    if code == 404 {
                        Ok(())
                    } else {
                        Err(format!("{code} {wait}"))
                    }
                })
                .await;
            }
            _ => {}
        }
    }
    answers
}

fn request_to(path: &str) -> Request {
    request("", "GET", path, JSON, Value::Null)
}
