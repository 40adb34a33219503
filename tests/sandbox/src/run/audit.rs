//! Cloud Audit Logs: an entry for every change, kept, and published to a Pub/Sub topic if there is
//! one.
//!
//! Sources:
//! <https://docs.cloud.google.com/logging/docs/reference/audit/auditlog/rest/Shared.Types/AuditLog>,
//! <https://docs.cloud.google.com/run/docs/audit-logging>,
//! <https://docs.cloud.google.com/logging/docs/export/pubsub>, and entries of Cloud Run in public
//! detection rules: the name of the service is in `resourceName`, the label `service_name` is
//! empty; operations that take long log twice, the second time in `system_event`. Functions are
//! deployed by the robot of Cloud Functions with methods of their own, and have the label filled.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::ServiceKey;
use crate::{clock::Clock, exchange::Call};

/// Entries that are kept; the oldest go first.
const CAPACITY: usize = 4_000;
/// Messages in one request, as Pub/Sub allows.
const BATCH: usize = 1000;

/// Who calls, and with what.
#[derive(Clone, Debug)]
pub struct Caller {
    pub principal: String,
    /// Those who impersonate the principal.
    pub via: Vec<String>,
    pub user_agent: String,
}

impl Caller {
    /// A bearer token `as:E-MAIL` or `as:E-MAIL,E-MAIL…` says who calls, and who is behind; any
    /// other is nobody in particular.
    pub fn of(call: &Call) -> Self {
        let token = call
            .header("authorization")
            .trim_start_matches("Bearer ")
            .trim();
        let mut names = token
            .strip_prefix("as:")
            .unwrap_or("somebody@acme.com")
            .split(',')
            .map(str::to_owned);
        Self {
            principal: names.next().unwrap_or_default(),
            via: names.collect(),
            user_agent: call.header("user-agent").to_owned(),
        }
    }

    /// What deploys functions.
    pub fn functions_robot() -> Self {
        Self {
            principal: "service-123456789012@gcf-admin-robot.iam.gserviceaccount.com".into(),
            via: vec![],
            user_agent: String::new(),
        }
    }

    /// Somebody in the console, who needs no request of this sandbox.
    pub fn console() -> Self {
        Self {
            principal: "clicker@acme.com".into(),
            via: vec![],
            user_agent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36,gzip(gfe)".into(),
        }
    }
}

/// What is to be entered.
pub struct Change<'a> {
    /// `v1` or `v2`; `internal` is how Cloud Functions deploys.
    pub version: &'a str,
    /// `SetIamPolicy`, `CreateService` and so on.
    pub verb: &'a str,
    pub service: &'a ServiceKey,
    pub request: Value,
    pub response: Value,
    /// Bindings before and after, if the allow policy was to be changed.
    pub bindings: Option<(Value, Value)>,
    /// Code of `google.rpc.Status` and message, of a call that failed.
    pub failed: Option<(i64, String)>,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Value>,
    /// Entries have `serviceData` with what was added and removed.
    with_delta: bool,
    sink: Option<mpsc::UnboundedSender<Value>>,
    numbers: u64,
}

/// The log.
#[derive(Debug, Default)]
pub struct Audit {
    state: Mutex<State>,
}

impl Audit {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether entries say themselves what was added and removed. Both kinds are found in the wild.
    pub fn set_delta(&self, with_delta: bool) {
        self.lock().with_delta = with_delta;
    }

    /// The entries so far.
    pub fn entries(&self) -> Vec<Value> {
        self.lock().entries.iter().cloned().collect()
    }

    /// Publishes from now on to a topic, `projects/P/topics/T`, at the endpoint of Pub/Sub (REST),
    /// as a sink does. What cannot be published is tried again until it can.
    pub fn publish_to(&self, endpoint: &str, topic: &str) {
        let (tx, mut rx) = mpsc::unbounded_channel::<Value>();
        self.lock().sink = Some(tx);
        let url = format!("{}/v1/{topic}:publish", endpoint.trim_end_matches('/'));
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut batch = Vec::new();
            while rx.recv_many(&mut batch, BATCH).await > 0 {
                let messages: Vec<Value> = batch
                    .drain(..)
                    .map(|e| json!({"data": STANDARD.encode(e.to_string()), "attributes": {"logging.googleapis.com/timestamp": e["timestamp"]}}))
                    .collect();
                let body = json!({"messages": messages});
                loop {
                    match client.post(&url).json(&body).send().await {
                        Ok(answer) if answer.status().is_success() => break,
                        _ => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            }
        });
    }

    /// Entries from now on, for whoever delivers them in another way.
    pub fn follow(&self) -> mpsc::UnboundedReceiver<Value> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.lock().sink = Some(tx);
        rx
    }

    /// Stops to publish.
    pub fn cut_sink(&self) {
        self.lock().sink = None;
    }

    /// Enters a change.
    pub fn enter(&self, clock: &Clock, caller: &Caller, change: Change<'_>) {
        let (project, region, name) = change.service;
        let sets_policy = change.verb == "SetIamPolicy";
        // The Knative paths of v1 name a service without its region; those of IAM do not.
        let is_function = change.version == "internal";
        let resource = if (change.version == "v1" || is_function) && !sets_policy {
            format!("namespaces/{project}/services/{name}")
        } else {
            format!("projects/{project}/locations/{region}/services/{name}")
        };
        let mut state = self.lock();
        let mut authentication = json!({"principalEmail": caller.principal});
        if !caller.via.is_empty() {
            authentication["serviceAccountDelegationInfo"] = caller
                .via
                .iter()
                .map(|v| json!({"firstPartyPrincipal": {"principalEmail": v}}))
                .collect();
        }
        let permission = if sets_policy {
            "run.services.setIamPolicy"
        } else {
            "run.services.update"
        };
        let mut payload = json!({
            "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
            "serviceName": "run.googleapis.com",
            "methodName": change.method(),
            "resourceName": resource,
            "authenticationInfo": authentication,
            "authorizationInfo": [{"permission": permission, "granted": change.failed.is_none(), "resource": resource, "resourceAttributes": {}}],
            "requestMetadata": {"callerIp": "203.0.113.7", "callerSuppliedUserAgent": caller.user_agent, "requestAttributes": {}, "destinationAttributes": {}},
            "resourceLocation": {"currentLocations": [region]},
            "request": change.request,
            "response": change.response,
        });
        if let Some((code, message)) = &change.failed {
            payload["status"] = json!({"code": code, "message": message});
        }
        if let (true, Some((before, after))) = (state.with_delta, &change.bindings) {
            let deltas = deltas(before, after);
            if !deltas.is_empty() {
                payload["serviceData"] = json!({"@type": "type.googleapis.com/google.iam.v1.logging.AuditData", "policyDelta": {"bindingDeltas": deltas}});
            }
        }
        let severity = if change.failed.is_some() {
            "ERROR"
        } else {
            "NOTICE"
        };
        // What takes long logs when it begins and when it has ended, each in a log of its own.
        let parts: &[Option<&str>] = if sets_policy {
            &[None]
        } else {
            &[Some("first"), Some("last")]
        };
        for part in parts {
            state.numbers += 1;
            let now = clock.now().to_string();
            let is_completion = *part == Some("last");
            let log = if is_completion {
                "system_event"
            } else {
                "activity"
            };
            let mut entry = json!({
                "insertId": format!("sandbox{:08x}", state.numbers),
                "logName": format!("projects/{project}/logs/cloudaudit.googleapis.com%2F{log}"),
                "severity": severity,
                "timestamp": now,
                "receiveTimestamp": now,
                "resource": {"type": "cloud_run_revision", "labels": {"project_id": project, "location": region,
                    "service_name": if is_function { name.as_str() } else { "" }, "revision_name": "", "configuration_name": ""}},
                "protoPayload": payload,
            });
            if is_completion {
                complete(&mut entry, project, name);
            }
            if let Some(part) = part {
                entry["operation"] = json!({"id": format!("operation-{:08x}", state.numbers), "producer": "run.googleapis.com", *part: true});
            }
            if let Some(sink) = &state.sink {
                let _ = sink.send(entry.clone());
            }
            if state.entries.len() == CAPACITY {
                state.entries.pop_front();
            }
            state.entries.push_back(entry);
        }
    }
}

impl Change<'_> {
    fn method(&self) -> String {
        match self.version {
            "internal" => {
                let verb = self.verb.trim_end_matches("Service");
                format!("google.cloud.serverless.internal.InternalServices.{verb}InternalService")
            }
            version => format!("google.cloud.run.{version}.Services.{}", self.verb),
        }
    }
}

/// The completion of a change: nobody asks for it, and it is about the revision that came of it.
fn complete(entry: &mut Value, project: &str, name: &str) {
    let payload = &mut entry["protoPayload"];
    payload["methodName"] = json!("/Services.ReplaceService");
    payload["resourceName"] = json!(format!("namespaces/{project}/revisions/{name}-00001-abc"));
    if let Some(payload) = payload.as_object_mut() {
        for field in [
            "authenticationInfo",
            "authorizationInfo",
            "requestMetadata",
            "request",
        ] {
            payload.remove(field);
        }
    }
}

/// One line for each member that came or went.
fn deltas(before: &Value, after: &Value) -> Vec<Value> {
    let members = |bindings: &Value| -> BTreeSet<(String, String, String)> {
        let list = bindings.as_array().into_iter().flatten();
        list.flat_map(|b| {
            let condition = if b["condition"].is_null() {
                String::new()
            } else {
                b["condition"].to_string()
            };
            let role = b["role"].as_str().unwrap_or_default().to_owned();
            let names = b["members"].as_array().cloned().unwrap_or_default();
            names.into_iter().filter_map(move |m| {
                Some((role.clone(), m.as_str()?.to_owned(), condition.clone()))
            })
        })
        .collect()
    };
    let (before, after) = (members(before), members(after));
    let line = |action: &str, (role, member, condition): &(String, String, String)| {
        let mut line = json!({"action": action, "role": role, "member": member});
        if let Ok(condition) = serde_json::from_str::<Value>(condition) {
            line["condition"] = condition;
        }
        line
    };
    let added = after.difference(&before).map(|m| line("ADD", m));
    added
        .chain(before.difference(&after).map(|m| line("REMOVE", m)))
        .collect()
}
