//! `metav1.Status`: how a Kubernetes API says no.

use axum::{body::Body, http::Response};
use serde_json::{Value, json};

/// A refusal.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Value,
}

/// One violated rule of a schema.
#[derive(Clone, Debug)]
pub struct Cause {
    pub reason: &'static str,
    pub field: String,
    pub message: String,
}

/// A kind with its group, as messages have it.
pub fn full_name(group: &str, plural: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

impl Refusal {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: json!({}),
        }
    }
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let full = full_name(group, plural);
        Self {
            details: json!({"name": name, "group": group, "kind": plural}),
            ..Self::new(404, "NotFound", format!("{full} \"{name}\" not found"))
        }
    }
    pub fn no_such_path() -> Self {
        Self::new(404, "", "404 page not found\n")
    }
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        Self {
            details: json!({"name": name, "group": group, "kind": plural}),
            ..Self::new(
                409,
                "Conflict",
                format!(
                    "Operation cannot be fulfilled on {} \"{name}\": {why}",
                    full_name(group, plural)
                ),
            )
        }
    }
    pub fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let lines: Vec<String> = causes
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        let text = if lines.len() == 1 {
            lines[0].clone()
        } else {
            format!("[{}]", lines.join(", "))
        };
        let list: Vec<Value> = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect();
        Self {
            details: json!({"name": name, "group": group, "kind": kind, "causes": list}),
            ..Self::new(
                422,
                "Invalid",
                format!("{kind}.{group} \"{name}\" is invalid: {text}"),
            )
        }
    }

    pub fn to_value(&self) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": self.details, "code": self.code})
    }

    pub fn into_response(self) -> Response<Body> {
        if self.code == 404 && self.reason.is_empty() {
            // What nobody serves is answered by the mux, in plain text.
            let mut response = Response::new(Body::from(self.message));
            *response.status_mut() = axum::http::StatusCode::NOT_FOUND;
            response.headers_mut().insert(
                "content-type",
                axum::http::HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            return response;
        }
        crate::exchange::json(self.code, &self.to_value())
    }
}
