//! What Google's errors mean, whatever brought them: the SDK, or REST of our own.

use std::time::Duration;

use google_cloud_gax::error::{Error, rpc::StatusDetails};

use crate::fault::{Fault, FaultClass};

pub(super) fn from_reqwest(e: reqwest::Error) -> Fault {
    let class = if e.is_timeout() { FaultClass::Timeout } else { FaultClass::Unavailable };
    Fault::new(class, chain(&e))
}

/// An error with its causes, so that "error sending request" says why.
pub(super) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The error document of the REST API, as far as it matters here.
#[derive(Default)]
struct Answer {
    http: u16,
    status: String,
    message: String,
    /// `reason` of an `ErrorInfo`.
    info: Option<String>,
    /// A `PreconditionFailure` names a constraint of the organization.
    constraint: Option<String>,
    retry: Option<Duration>,
    request_id: Option<String>,
}

/// SDK error to [`Fault`].
pub(super) fn from_sdk(error: &Error) -> Fault {
    // When a time limit ran out the SDK wraps the real error; it is the one that says what happened.
    let mut error = error;
    while error.http_status_code().is_none() {
        match std::error::Error::source(error).and_then(|s| s.downcast_ref::<Error>()) {
            Some(inner) => error = inner,
            None => break,
        }
    }
    if error.is_authentication() {
        return Fault::new(FaultClass::Credentials, chain(error));
    }
    let Some(http) = error.http_status_code() else {
        let class =
            if error.is_timeout() || error.is_exhausted() { FaultClass::Timeout } else { FaultClass::Unavailable };
        let class = if error.is_binding() || error.is_serialization() { FaultClass::Unexpected } else { class };
        return Fault::new(class, chain(error));
    };
    let mut answer = Answer { http, ..Answer::default() };
    if let Some(headers) = error.http_headers() {
        read_headers(headers, &mut answer);
    }
    match error.status() {
        Some(status) => {
            answer.status = status.code.name().to_owned();
            answer.message = status.message.clone();
            for detail in &status.details {
                match detail {
                    StatusDetails::ErrorInfo(i) => answer.info = Some(i.reason.clone()),
                    StatusDetails::RequestInfo(r) => answer.request_id = Some(r.request_id.clone()),
                    StatusDetails::PreconditionFailure(p) => {
                        answer.constraint = p.violations.first().map(|v| v.r#type.clone());
                    }
                    StatusDetails::RetryInfo(r) => {
                        answer.retry = r.retry_delay.and_then(|d| Duration::try_from(d).ok()).or(answer.retry);
                    }
                    _ => {}
                }
            }
        }
        None => {
            let body = error.http_payload().map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
            answer.message = first_line(&body, http);
        }
    }
    classify(answer)
}

/// A REST answer that is no success to [`Fault`].
pub fn from_body(http: u16, headers: &http::HeaderMap, body: &[u8]) -> Fault {
    let mut answer = Answer { http, ..Answer::default() };
    read_headers(headers, &mut answer);
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(document) => {
            let error = &document["error"];
            let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
            answer.status = text(&error["status"]);
            answer.message = text(&error["message"]);
            for detail in error["details"].as_array().into_iter().flatten() {
                match detail["@type"].as_str().unwrap_or_default().rsplit('.').next() {
                    Some("ErrorInfo") => answer.info = detail["reason"].as_str().map(str::to_owned),
                    Some("RequestInfo") => answer.request_id = detail["requestId"].as_str().map(str::to_owned),
                    _ => {}
                }
            }
        }
        Err(_) => answer.message = first_line(&String::from_utf8_lossy(body), http),
    }
    classify(answer)
}

/// What is worth showing of a body that is not Google's error document, such as an HTML page.
fn first_line(body: &str, http: u16) -> String {
    let line = body.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('<')).unwrap_or_default();
    format!("HTTP {http} {}", line.chars().take(200).collect::<String>()).trim_end().to_owned()
}

fn read_headers(headers: &http::HeaderMap, answer: &mut Answer) {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    answer.retry = text("retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
    answer.request_id = ["x-goog-request-id", "x-request-id", "x-cloud-trace-context"].iter().find_map(|n| text(n));
}

/// The error table of product.md §4, from what Google says (reference §1.7, §4.4, §6, §7.1).
fn classify(answer: Answer) -> Fault {
    use FaultClass as C;
    let m = answer.message.as_str();
    let disabled = answer.info.as_deref() == Some("SERVICE_DISABLED") || m.contains("has not been used in project");
    // Two forms are known: "One or more users named in the policy do not belong to a permitted customer" (with either
    // one or two spaces later on), and "Operation denied by org policy".
    let organization = m.contains("do not belong to a permitted customer")
        || m.contains("denied by org policy")
        || answer.constraint.as_deref().is_some_and(|c| c.starts_with("constraints/"));
    let class = match (answer.http, answer.status.as_str()) {
        (409, _) | (_, "ABORTED") => C::Conflict,
        (429, _) | (_, "RESOURCE_EXHAUSTED") => C::QuotaExceeded,
        (403, _) | (_, "PERMISSION_DENIED") if disabled => C::ApiDisabled,
        (403, _) | (_, "PERMISSION_DENIED") if organization => C::OrganizationPolicy,
        (403, _) | (_, "PERMISSION_DENIED") if project_is_gone(m) => C::ProjectNotFound,
        (401 | 403, _) | (_, "PERMISSION_DENIED") => C::PermissionDenied,
        (404, _) if project_is_gone(m) => C::ProjectNotFound,
        (404, _) => C::ServiceNotFound,
        (400, _) if organization => C::OrganizationPolicy,
        (400, _) if m.contains("CONSUMER_INVALID") || project_is_gone(m) => C::ProjectNotFound,
        (400, "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "") => C::InvalidMember,
        (408 | 504, _) => C::Timeout,
        (500..=599, _) => C::Unavailable,
        _ => C::Unexpected,
    };
    let member = if class == C::InvalidMember { named_member(m) } else { None };
    Fault { class, member, message: answer.message, request_id: answer.request_id, retry_after: answer.retry }
}

/// `Project 'x' not found or deleted`, `Project x has been deleted`, and the like.
fn project_is_gone(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    (lower.starts_with("project ") || lower.contains("consumer 'project"))
        && (lower.contains("not found") || lower.contains("deleted") || lower.contains("is invalid"))
}

/// The identifier in `Service account X does not exist.` and its family (reference §4.4), without its prefix.
fn named_member(message: &str) -> Option<String> {
    let rest = ["Service account ", "Group ", "User ", "Principal ", "Domain "]
        .iter()
        .find_map(|p| message.strip_prefix(p))?;
    let (name, tail) = rest.split_once(' ')?;
    tail.starts_with("does not exist").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(http: u16, status: &str, message: &str) -> Fault {
        classify(Answer { http, status: status.into(), message: message.into(), ..Answer::default() })
    }

    #[test]
    fn every_documented_answer_has_its_class() {
        use FaultClass as C;
        for (http, status, message, class) in [
            (
                409,
                "ABORTED",
                "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff.",
                C::Conflict,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Permission 'run.services.setIamPolicy' denied on resource 'projects/p/locations/l/services/s' (or resource may not exist).",
                C::PermissionDenied,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Cloud Run Admin API has not been used in project 1 before or it is disabled. Enable it by visiting https://x",
                C::ApiDisabled,
            ),
            (
                404,
                "NOT_FOUND",
                "Resource 's' of kind 'SERVICE' in region 'r' in project 'p' does not exist.",
                C::ServiceNotFound,
            ),
            (404, "NOT_FOUND", "Project 'p' not found or deleted.", C::ProjectNotFound),
            (404, "", "HTTP 404", C::ServiceNotFound),
            (400, "INVALID_ARGUMENT", "Service account x@p.iam.gserviceaccount.com does not exist.", C::InvalidMember),
            (400, "INVALID_ARGUMENT", "Request contains an invalid argument.", C::InvalidMember),
            (
                400,
                "FAILED_PRECONDITION",
                "One or more users named in the policy do not belong to a permitted customer,  perhaps due to an organization policy.",
                C::OrganizationPolicy,
            ),
            (429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Write requests'", C::QuotaExceeded),
            (503, "UNAVAILABLE", "The service is currently unavailable.", C::Unavailable),
            (500, "INTERNAL", "Internal error encountered.", C::Unavailable),
            (504, "DEADLINE_EXCEEDED", "Deadline exceeded.", C::Timeout),
            (418, "", "teapot", C::Unexpected),
        ] {
            assert_eq!(fault(http, status, message).class, class, "{message}");
        }
    }

    #[test]
    fn the_member_that_iam_names_is_found() {
        assert_eq!(
            fault(400, "INVALID_ARGUMENT", "Group g@acme.com does not exist.").member.as_deref(),
            Some("g@acme.com")
        );
        assert_eq!(fault(400, "INVALID_ARGUMENT", "Request contains an invalid argument.").member, None);
    }
}
