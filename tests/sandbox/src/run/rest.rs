//! The REST paths of v1 and v2.

use axum::{body::Body, http::Response};
use serde_json::{Value, json};

use super::{
    Problem, Run, Service, ServiceKey,
    audit::{Caller, Change},
    gate::Wish,
    with_type,
};
use crate::{
    exchange::{Call, json as respond},
    google::{
        self,
        refusal::{LOGGING, RUN},
    },
};

/// Answers one request.
pub fn answer(run: &Run, call: &Call) -> Response<Body> {
    match route(run, call) {
        Ok(value) => respond(200, &value),
        Err(problem) if problem.status.is_empty() => {
            // A path that no API knows gets Google's HTML page.
            let page = format!(
                "<!DOCTYPE html>\n<html lang=en>\n  <title>Error 404 (Not Found)!!1</title>\n  <p><b>404.</b> <ins>That’s an error.</ins>\n  <p>The requested URL <code>{}</code> was not found on this server.\n",
                call.path
            );
            let mut response = Response::new(Body::from(page));
            *response.status_mut() = axum::http::StatusCode::NOT_FOUND;
            response.headers_mut().insert(
                "content-type",
                axum::http::HeaderValue::from_static("text/html; charset=UTF-8"),
            );
            response
        }
        Err(problem) => respond(problem.code, &problem.to_value()),
    }
}

pub(crate) fn unknown_path() -> Problem {
    Problem::new(404, "", "")
}

fn route(run: &Run, call: &Call) -> Result<Value, Problem> {
    let parts: Vec<&str> = call.path.split('/').filter(|p| !p.is_empty()).collect();
    let method = call.method.as_str();
    if let Some(request) = google::Request::of(method, &parts) {
        return google::answer(run, call, &request);
    }
    match (method, parts.as_slice()) {
        ("GET", ["v2", "projects", p, "locations", r, "services"]) => list_v2(run, call, p, r),
        // Cloud Logging, and Pub/Sub as far as it is looked at.
        ("GET", ["v2", "projects", p, "sinks"]) => sinks(run, call, p),
        ("GET", ["v1", "projects", p, "subscriptions", s]) => subscription(run, p, s),
        ("POST", ["v1", "projects", p, "subscriptions", s]) => match s.split_once(':') {
            Some((s, "testIamPermissions")) => subscription(run, p, s)
                .map(|_| call.json())
                .map(|asked| json!({"permissions": asked["permissions"]})),
            _ => Err(unknown_path()),
        },
        ("GET", ["v1", "projects", p, "locations"]) => locations(run, call, p),
        ("GET", ["v1", "projects", p, "locations", r, "services"]) => {
            list_v1(run, call, p, (*r != "-").then_some(*r))
        }
        (
            "GET",
            [
                "apis",
                "serving.knative.dev",
                "v1",
                "namespaces",
                p,
                "services",
            ],
        ) => list_v1(run, call, p, Some(&region_of_host(call)?)),
        (
            "GET",
            [
                "apis",
                "serving.knative.dev",
                "v1",
                "namespaces",
                p,
                "services",
                s,
            ],
        ) => get(run, call, p, &region_of_host(call)?, s, Version::V1),
        (
            _,
            [
                version @ ("v1" | "v2"),
                "projects",
                p,
                "locations",
                r,
                "services",
                s,
            ],
        ) => {
            let (name, verb) = s.split_once(':').map_or((*s, ""), |(n, v)| (n, v));
            let version = if *version == "v1" {
                Version::V1
            } else {
                Version::V2
            };
            match (method, verb) {
                ("GET", "") => get(run, call, p, r, name, version),
                ("GET", "getIamPolicy") => get_policy(run, call, p, r, name),
                ("POST", "setIamPolicy") => set_policy(run, call, version, p, r, name),
                ("POST", "testIamPermissions") => test_permissions(run, call, p, r, name),
                _ => Err(unknown_path()),
            }
        }
        _ => Err(unknown_path()),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    V1,
    V2,
}

/// `$alt=json;enum-encoding=int` asks for enums as numbers.
pub(crate) fn integers(call: &Call) -> bool {
    call.param("$alt")
        .is_some_and(|v| v.contains("enum-encoding=int"))
}

/// Knative-style paths are served by regional hosts: `REGION-run.googleapis.com`.
fn region_of_host(call: &Call) -> Result<String, Problem> {
    let host = call.header("host");
    let found = regex::Regex::new(r"^([a-z]+-[a-z]+[0-9]+)-")
        .ok()
        .and_then(|r| Some(r.captures(host)?[1].to_owned()));
    found.ok_or_else(|| {
        Problem::new(
            404,
            "NOT_FOUND",
            "Knative-style requests need a regional host such as europe-west1-run.googleapis.com",
        )
    })
}

fn resource(p: &str, r: &str, s: &str) -> String {
    format!("projects/{p}/locations/{r}/services/{s}")
}

/// A read that needs a permission.
fn read<'a>(permission: &'a str, project: &'a str, region: &'a str, resource: &'a str) -> Wish<'a> {
    Wish {
        project,
        region,
        permission: Some(permission),
        resource,
        write: false,
    }
}

fn missing(p: &str, r: &str, s: &str) -> Problem {
    Problem::new(
        404,
        "NOT_FOUND",
        format!(
            "Resource '{s}' of kind 'SERVICE' in region '{r}' in project '{p}' does not exist."
        ),
    )
}

fn key(p: &str, r: &str, s: &str) -> ServiceKey {
    (p.into(), r.into(), s.into())
}

fn get_policy(run: &Run, call: &Call, p: &str, r: &str, s: &str) -> Result<Value, Problem> {
    let mut state = run.lock();
    state.gate(
        call,
        RUN,
        read("run.services.getIamPolicy", p, r, &resource(p, r, s)),
    )?;
    let asked = call.param("options.requestedPolicyVersion").unwrap_or("0");
    let version = asked
        .parse::<i64>()
        .ok()
        .filter(|v| [0, 1, 3].contains(v))
        .ok_or_else(|| Problem::invalid(format!("Invalid requested policy version: {asked}.")))?;
    state
        .services
        .get(&key(p, r, s))
        .map(|x| x.policy.view(version))
        .ok_or_else(|| missing(p, r, s))
}

/// Sets a policy, and enters that in the audit log, refusals included. Requests beyond the quota do
/// not get that far.
fn set_policy(
    run: &Run,
    call: &Call,
    version: Version,
    p: &str,
    r: &str,
    s: &str,
) -> Result<Value, Problem> {
    let mut bindings = None;
    let result = try_set_policy(run, call, p, r, s, &mut bindings);
    let failed = match &result {
        Ok(_) => None,
        Err(problem) if problem.code == 429 => return result,
        Err(problem) => {
            let code = match problem.status {
                "INVALID_ARGUMENT" => 3,
                "NOT_FOUND" => 5,
                "PERMISSION_DENIED" => 7,
                "FAILED_PRECONDITION" => 9,
                "ABORTED" => 10,
                _ => 2,
            };
            Some((code, problem.message.clone()))
        }
    };
    let mut request: Value = serde_json::from_slice(&call.body).unwrap_or_default();
    request["@type"] = json!("type.googleapis.com/google.iam.v1.SetIamPolicyRequest");
    let change = Change {
        version: if version == Version::V1 { "v1" } else { "v2" },
        verb: "SetIamPolicy",
        service: &key(p, r, s),
        request,
        response: result.as_ref().map_or(Value::Null, with_type),
        bindings,
        failed,
    };
    run.audit.enter(&run.clock, &Caller::of(call), change);
    result
}

fn try_set_policy(
    run: &Run,
    call: &Call,
    p: &str,
    r: &str,
    s: &str,
    bindings: &mut Option<(Value, Value)>,
) -> Result<Value, Problem> {
    let mut state = run.lock();
    let resource_name = resource(p, r, s);
    let wish = Wish {
        write: true,
        ..read("run.services.setIamPolicy", p, r, &resource_name)
    };
    state.gate(call, RUN, wish)?;
    let request: Value = serde_json::from_slice(&call.body)
        .map_err(|e| Problem::invalid(format!("Invalid JSON payload received. {e}")))?;
    if !request["policy"].is_object() {
        return Err(Problem::invalid("policy is required"));
    }
    let etag = state.etags.next(&run.clock);
    let world = state.world.clone();
    let service = state
        .services
        .get_mut(&key(p, r, s))
        .ok_or_else(|| missing(p, r, s))?;
    let before = service.policy.view(3);
    service.policy.set(&request, &world, etag)?;
    let after = service.policy.view(3);
    *bindings = Some((before["bindings"].clone(), after["bindings"].clone()));
    state.changed(&run.clock, &resource(p, r, s));
    Ok(after)
}

/// What the caller holds of what was asked for.
pub(crate) fn held_permissions(state: &super::State, p: &str, asked: &Value) -> Vec<Value> {
    let list = asked["permissions"].as_array().into_iter().flatten();
    list.filter(|v| {
        v.as_str()
            .is_some_and(|v| !state.world.denied.contains(&(p.to_owned(), v.to_owned())))
    })
    .cloned()
    .collect()
}

fn sinks(run: &Run, call: &Call, p: &str) -> Result<Value, Problem> {
    let mut state = run.lock();
    state.gate(
        call,
        LOGGING,
        read("logging.sinks.list", p, "-", &format!("projects/{p}")),
    )?;
    let list = state.world.sinks.get(p).cloned().unwrap_or_default();
    Ok(if list.is_empty() {
        json!({})
    } else {
        json!({"sinks": list})
    })
}

fn subscription(run: &Run, p: &str, s: &str) -> Result<Value, Problem> {
    let name = format!("projects/{p}/subscriptions/{s}");
    let state = run.lock();
    let mut found = state
        .world
        .subscriptions
        .get(&name)
        .cloned()
        .ok_or_else(|| {
            Problem::new(
                404,
                "NOT_FOUND",
                format!("Resource not found (resource={s})."),
            )
        })?;
    found["name"] = json!(name);
    Ok(found)
}

fn test_permissions(run: &Run, call: &Call, p: &str, r: &str, s: &str) -> Result<Value, Problem> {
    let mut state = run.lock();
    let resource_name = resource(p, r, s);
    let wish = Wish {
        permission: None,
        ..read("", p, r, &resource_name)
    };
    state.gate(call, RUN, wish)?;
    if !state.services.contains_key(&key(p, r, s)) {
        return Ok(json!({}));
    }
    let held = held_permissions(&state, p, &call.json());
    Ok(if held.is_empty() {
        json!({})
    } else {
        json!({"permissions": held})
    })
}

fn get(
    run: &Run,
    call: &Call,
    p: &str,
    r: &str,
    s: &str,
    version: Version,
) -> Result<Value, Problem> {
    let mut state = run.lock();
    state.gate(
        call,
        RUN,
        read("run.services.get", p, r, &resource(p, r, s)),
    )?;
    match (state.services.get(&key(p, r, s)), version) {
        (Some(service), Version::V2) => Ok(v2(&key(p, r, s), service, integers(call))),
        (Some(service), Version::V1) => Ok(v1(&state, &key(p, r, s), service)),
        (None, Version::V2) => Err(Problem::new(
            404,
            "NOT_FOUND",
            format!("service \"{}\" not found", resource(p, r, s)),
        )),
        (None, Version::V1) => Err(missing(p, r, s)),
    }
}

fn locations(run: &Run, call: &Call, p: &str) -> Result<Value, Problem> {
    let mut state = run.lock();
    state.gate(
        call,
        RUN,
        read("run.locations.list", p, "-", &format!("projects/{p}")),
    )?;
    let mut regions: Vec<&str> = vec!["europe-west1", "us-central1", "asia-northeast1"];
    regions.extend(
        state
            .services
            .keys()
            .filter(|k| k.0 == p)
            .map(|k| k.1.as_str()),
    );
    regions.sort_unstable();
    regions.dedup();
    let list: Vec<Value> = regions
        .iter()
        .map(|r| json!({"name": format!("projects/{p}/locations/{r}"), "locationId": r}))
        .collect();
    Ok(json!({"locations": list}))
}

fn list_v2(run: &Run, call: &Call, p: &str, r: &str) -> Result<Value, Problem> {
    if r == "-" {
        return Err(Problem::invalid(
            "The parent location must be a valid GCP region and cannot be the - wildcard.",
        ));
    }
    let mut state = run.lock();
    state.gate(
        call,
        RUN,
        read(
            "run.services.list",
            p,
            r,
            &format!("projects/{p}/locations/{r}"),
        ),
    )?;
    let size = call
        .param("pageSize")
        .and_then(|v| v.parse::<usize>().ok())
        .filter(|n| *n > 0)
        .unwrap_or(100);
    let (page, next) = page(
        &state,
        p,
        Some(r),
        size,
        call.param("pageToken").unwrap_or_default(),
    )?;
    let mut value =
        json!({"services": page.iter().map(|(k, s)| v2(k, s, integers(call))).collect::<Vec<_>>()});
    if let Some(next) = next {
        value["nextPageToken"] = json!(next);
    }
    Ok(value)
}

fn list_v1(run: &Run, call: &Call, p: &str, region: Option<&str>) -> Result<Value, Problem> {
    let mut state = run.lock();
    let place = region.unwrap_or("-");
    state.gate(
        call,
        RUN,
        read(
            "run.services.list",
            p,
            place,
            &format!("projects/{p}/locations/{place}"),
        ),
    )?;
    let size = call
        .param("limit")
        .and_then(|v| v.parse::<usize>().ok())
        .filter(|n| *n > 0)
        .unwrap_or(usize::MAX);
    let (page, next) = page(
        &state,
        p,
        region,
        size,
        call.param("continue").unwrap_or_default(),
    )?;
    let mut meta = json!({"selfLink": "/apis/serving.knative.dev/v1/namespaces/services", "resourceVersion": "0"});
    if let Some(next) = next {
        meta["continue"] = json!(next);
    }
    let mut value = json!({"apiVersion": "serving.knative.dev/v1", "kind": "ServiceList", "metadata": meta,
        "items": page.iter().map(|(k, s)| v1(&state, k, s)).collect::<Vec<_>>()});
    if region.is_none() && !state.world.unreachable.is_empty() {
        value["unreachable"] = json!(state.world.unreachable);
    }
    Ok(value)
}

type Found<'a> = (&'a ServiceKey, &'a Service);

fn page<'a>(
    state: &'a super::State,
    p: &str,
    region: Option<&str>,
    size: usize,
    token: &str,
) -> Result<(Vec<Found<'a>>, Option<String>), Problem> {
    let size = size.min(state.world.page_cap.unwrap_or(usize::MAX));
    let start: usize = if token.is_empty() {
        0
    } else {
        token
            .strip_prefix("page-")
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| Problem::invalid("Invalid page token."))?
    };
    let fits = |k: &ServiceKey| {
        k.0 == p && region.map_or(!state.world.unreachable.contains(&k.1), |r| k.1 == r)
    };
    let all: Vec<Found<'a>> = state.services.iter().filter(|(k, _)| fits(k)).collect();
    let rest = all.get(start..).unwrap_or_default();
    let next = (rest.len() > size).then(|| format!("page-{}", start + size));
    Ok((rest.iter().take(size).copied().collect(), next))
}

fn host(k: &ServiceKey) -> String {
    format!(
        "https://{}-abcdefghij-{}.a.run.app",
        k.2,
        k.1.chars()
            .filter(|c| c.is_ascii_alphanumeric())
            .take(2)
            .collect::<String>()
    )
}

fn v2(k: &ServiceKey, s: &Service, integers: bool) -> Value {
    let (ingress, stage, succeeded): (Value, Value, Value) = if integers {
        (json!(1), json!(4), json!(4))
    } else {
        (
            json!("INGRESS_TRAFFIC_ALL"),
            json!("GA"),
            json!("CONDITION_SUCCEEDED"),
        )
    };
    let mut v = json!({"name": resource(&k.0, &k.1, &k.2), "uid": s.uid, "generation": s.generation.to_string(), "observedGeneration": s.generation.to_string(),
        "createTime": s.created, "updateTime": s.created, "creator": "deployer@acme.com", "lastModifier": "deployer@acme.com", "client": "gcloud",
        "ingress": ingress, "launchStage": stage, "uri": host(k), "urls": [host(k)],
        "template": {"containers": [{"image": "us-docker.pkg.dev/cloudrun/container/hello"}]},
        "terminalCondition": {"type": "Ready", "state": succeeded, "lastTransitionTime": s.created}, "etag": "\"CKjx\""});
    if !s.labels.is_empty() {
        v["labels"] = json!(s.labels);
    }
    if s.invoker_iam_disabled {
        v["invokerIamDisabled"] = json!(true);
    }
    for (name, value) in s.front.as_object().into_iter().flatten() {
        v[name] = match value.as_str().filter(|_| integers && name == "ingress") {
            Some(ingress) => json!(INGRESS.iter().position(|i| *i == ingress)),
            None => value.clone(),
        };
    }
    v
}

/// In the order of their numbers.
const INGRESS: [&str; 5] = [
    "INGRESS_TRAFFIC_UNSPECIFIED",
    "INGRESS_TRAFFIC_ALL",
    "INGRESS_TRAFFIC_INTERNAL_ONLY",
    "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER",
    "INGRESS_TRAFFIC_NONE",
];

/// The Knative form. `gcloud` reads many of these fields without asking whether they are there.
fn v1(state: &super::State, k: &ServiceKey, s: &Service) -> Value {
    let project = state
        .google
        .hierarchy
        .numbered(&format!("projects/{}", k.0));
    let number = project.trim_start_matches("projects/");
    let mut labels = json!(s.labels);
    labels["cloud.googleapis.com/location"] = json!(k.1);
    let mut annotations = json!({"serving.knative.dev/creator": "deployer@acme.com",
        "serving.knative.dev/lastModifier": "deployer@acme.com", "run.googleapis.com/urls": format!("[\"{}\"]", host(k))});
    if s.invoker_iam_disabled {
        annotations["run.googleapis.com/invoker-iam-disabled"] = json!("true");
    }
    if s.front["iapEnabled"] == true {
        annotations["run.googleapis.com/iap-enabled"] = json!("true");
    }
    let ingress = match s.front["ingress"].as_str() {
        Some("INGRESS_TRAFFIC_INTERNAL_ONLY") => "internal",
        Some("INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER") => "internal-and-cloud-load-balancing",
        Some("INGRESS_TRAFFIC_NONE") => "none",
        _ => "all",
    };
    for name in ["ingress", "ingress-status"] {
        annotations[format!("run.googleapis.com/{name}")] = json!(ingress);
    }
    let revision = format!("{}-00001-abc", k.2);
    let condition = |t: &str| json!({"type": t, "status": "True", "lastTransitionTime": s.created});
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": k.2, "namespace": number, "selfLink": format!("/apis/serving.knative.dev/v1/namespaces/{number}/services/{}", k.2),
            "uid": s.uid, "resourceVersion": "AAYcXyz", "generation": s.generation, "creationTimestamp": s.created, "labels": labels, "annotations": annotations},
        "spec": {"template": {"metadata": {"name": revision, "annotations": {}, "labels": {}}, "spec": {"containerConcurrency": 80, "timeoutSeconds": 300,
                "serviceAccountName": format!("{number}-compute@developer.gserviceaccount.com"),
                "containers": [{"image": "us-docker.pkg.dev/cloudrun/container/hello", "ports": [{"name": "http1", "containerPort": 8080}], "resources": {"limits": {"cpu": "1000m", "memory": "512Mi"}}}]}},
            "traffic": [{"percent": 100, "latestRevision": true}]},
        "status": {"observedGeneration": s.generation, "conditions": [condition("Ready"), condition("ConfigurationsReady"), condition("RoutesReady")],
            "latestReadyRevisionName": revision, "latestCreatedRevisionName": revision,
            "traffic": [{"revisionName": revision, "percent": 100, "latestRevision": true}], "url": host(k), "address": {"url": host(k)}}})
}
