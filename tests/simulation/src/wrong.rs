//! Wrongs planted where the operator meets the world, each as if the operator itself did it: a
//! judge that does not see them sees nothing.

use axum::http::Method;
use bytes::Bytes;
use sandbox::Call;
use serde_json::{Value, json};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A write takes bindings of other roles away.
    TakesForeignRoles,
    /// A write spells a member otherwise than IAM has it.
    RespellsMembers,
    /// A write grants somebody whom nobody lists.
    GrantsAStranger,
    /// A write opens the service to everybody.
    GrantsThePublic,
    /// A write leaves the first member out.
    LosesAMember,
    /// A write takes all invokers away.
    TakesEverybody,
    /// A write is made without the etag that it is planned from.
    WritesBlindly,
    /// Ledgers are not stored.
    KeepsNoLedger,
    /// Records are not stored.
    KeepsNoRecord,
    /// Records tell of a member that was not there.
    RecordsLie,
    /// A status says Ready, whatever is so.
    SaysReady,
    /// Statuses are not written.
    SaysNothing,
    /// The finalizer is not taken off.
    HoldsDeletions,
    /// A Lease is not renewed, and work goes on.
    OutlivesItsLease,
    /// What is to be revoked stays.
    RevokesNothing,
    /// Every status is written with a message of its own.
    WritesForNothing,
    /// A service that nobody means is read.
    ReadsWhatIsNobodys,
    /// A request is granted although nobody agreed.
    GrantsUnasked,
    /// A request is granted for longer than it asks.
    ProlongsRequests,
    /// A status says that nobody gets past it from above.
    DeniesBypasses,
}

impl Wrong {
    pub const ALL: [Self; 20] = [
        Self::TakesForeignRoles,
        Self::RespellsMembers,
        Self::GrantsAStranger,
        Self::GrantsThePublic,
        Self::LosesAMember,
        Self::TakesEverybody,
        Self::WritesBlindly,
        Self::KeepsNoLedger,
        Self::KeepsNoRecord,
        Self::RecordsLie,
        Self::SaysReady,
        Self::SaysNothing,
        Self::HoldsDeletions,
        Self::OutlivesItsLease,
        Self::RevokesNothing,
        Self::WritesForNothing,
        Self::ReadsWhatIsNobodys,
        Self::GrantsUnasked,
        Self::ProlongsRequests,
        Self::DeniesBypasses,
    ];

    /// Distorts a request. `before` is what IAM has now, where the request is a write to IAM. An
    /// answer: the request is not carried out, and this is what the operator hears.
    pub fn distort(self, call: &mut Call, n: u64, before: Option<&Value>) -> Option<Value> {
        let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let (is_write, path) = (call.path.ends_with(":setIamPolicy"), call.path.clone());
        let on = |kind: &str| path.contains(&format!("/{kind}"));
        let changes = call.method == Method::POST
            || call.method == Method::PUT
            || call.method == Method::PATCH;
        let answer_as_sent = || Some(body.clone());
        match self {
            Self::KeepsNoLedger if on("invokerledgers") && changes => return answer_as_sent(),
            Self::KeepsNoRecord if on("invokerchanges") && changes => return answer_as_sent(),
            Self::SaysNothing if path.ends_with("/status") => return answer_as_sent(),
            Self::HoldsDeletions
                if on("invokerpolicies") && body["metadata"]["finalizers"] == json!([]) =>
            {
                return answer_as_sent();
            }
            Self::OutlivesItsLease if on("leases") && call.method == Method::PUT && n > 30 => {
                return answer_as_sent();
            }
            Self::ReadsWhatIsNobodys if path.ends_with(":getIamPolicy") && n.is_multiple_of(7) => {
                let other = path.replace("/services/", "/services/un");
                call.target = call.target.replace(&path, &other);
                call.path = other;
                return None;
            }
            _ => {}
        }
        let distorted = match self {
            Self::RecordsLie if on("invokerchanges") && call.method == Method::POST => lie(body),
            Self::SaysReady if path.ends_with("/status") => say_ready(body),
            Self::DeniesBypasses if path.ends_with("/status") => deny_bypasses(body),
            Self::GrantsUnasked if on("invokeraccessrequests") && path.ends_with("/status") => {
                grant_unasked(body)
            }
            Self::ProlongsRequests if on("invokeraccessrequests") && path.ends_with("/status") => {
                prolong(body)
            }
            Self::WritesForNothing if path.ends_with("/status") => chatter(body, n),
            _ if is_write => self.distort_policy(body, before)?,
            _ => return None,
        };
        call.body = Bytes::from(distorted.to_string());
        None
    }

    fn distort_policy(self, mut body: Value, before: Option<&Value>) -> Option<Value> {
        let policy = &mut body["policy"];
        let bindings = policy["bindings"].as_array_mut()?;
        let is_invoker = |b: &Value| b["role"] == "roles/run.invoker";
        match self {
            Self::TakesForeignRoles => bindings.retain(is_invoker),
            Self::RespellsMembers => {
                for member in bindings
                    .iter_mut()
                    .flat_map(|b| b["members"].as_array_mut().into_iter().flatten())
                {
                    *member = json!(member.as_str().unwrap_or_default().to_lowercase());
                }
            }
            Self::GrantsAStranger | Self::GrantsThePublic => {
                let member = if self == Self::GrantsAStranger {
                    "user:stranger@evil.com"
                } else {
                    "allUsers"
                };
                bindings.push(json!({"role": "roles/run.invoker", "members": [member]}));
            }
            Self::LosesAMember => {
                bindings.first_mut()?["members"].as_array_mut()?.pop();
            }
            Self::TakesEverybody => bindings.clear(),
            Self::WritesBlindly => {
                policy.as_object_mut()?.remove("etag");
            }
            Self::RevokesNothing => {
                bindings.extend(before?["bindings"].as_array()?.iter().cloned())
            }
            _ => return None,
        }
        Some(body)
    }
}

fn lie(mut record: Value) -> Value {
    record["spec"]["before"] =
        json!([{"role": "roles/run.invoker", "member": "user:nobody@acme.com"}]);
    record
}

/// As if nobody had looked above the services.
fn deny_bypasses(mut body: Value) -> Value {
    let conditions = body["status"]["conditions"].as_array_mut();
    let bypassed = conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "Bypassed");
    if let Some(condition) = bypassed {
        condition["status"] = json!("False");
    }
    body
}

fn say_ready(mut body: Value) -> Value {
    for c in body["status"]["conditions"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        match c["type"].as_str() {
            Some("Ready") => c["status"] = json!("True"),
            Some("Stalled" | "Drifted" | "Reconciling") => c["status"] = json!("False"),
            _ => {}
        }
    }
    for s in body["status"]["services"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        s["state"] = json!("InSync");
        s["missing"] = json!([]);
        s["unexpected"] = json!([]);
    }
    body
}

fn grant_unasked(mut body: Value) -> Value {
    if body["status"]["phase"] == "Pending" {
        body["status"]["phase"] = json!("Approved");
        body["status"]["until"] = json!("2026-11-24T12:04:00Z");
    }
    body
}

fn prolong(mut body: Value) -> Value {
    if body["status"]["until"].is_string() {
        body["status"]["until"] = json!("2099-01-01T00:00:00Z");
    }
    body
}

fn chatter(mut body: Value, n: u64) -> Value {
    if let Some(c) = body["status"]["conditions"].get_mut(0) {
        c["message"] = json!(format!("attempt {n}"));
    }
    body
}
