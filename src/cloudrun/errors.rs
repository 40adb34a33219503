//! What Google's errors mean, whatever brought them: the SDK, or REST of our own.
//!
//! They are told apart by `ErrorInfo.reason`, not by their texts, and the consumer (the project
//! that pays for the call) is told from the target. That something is gone needs proof: an answer
//! that only Cloud Run can have given, which names it.

use std::{collections::BTreeMap, time::Duration};

use google_cloud_gax::error::{Error, rpc::StatusDetails};

use crate::{
    fault::{Fault, FaultClass},
    iam::RunService,
};

/// The longest that an answer may silence what it was about. Whoever sends more may not be Google.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// What was asked for: an answer is about that, or it is not.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    Service(&'a RunService),
    /// A list of its services.
    Project(&'a str),
    /// Something of another API, by the last part of its name.
    Resource(&'a str),
}

impl About<'_> {
    fn project(&self) -> &str {
        match self {
            Self::Service(service) => &service.project,
            Self::Project(project) => project,
            // Whose project it is in, the answer would have to say.
            Self::Resource(_) => "",
        }
    }
}

pub(super) fn from_reqwest(e: reqwest::Error) -> Fault {
    let class = if e.is_timeout() {
        FaultClass::Timeout
    } else {
        FaultClass::Unavailable
    };
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

/// The error document of Google's APIs, as far as it matters here.
#[derive(Debug, Default)]
struct Answer {
    http: u16,
    /// It is an error document at all, not a page of a proxy or of nobody.
    is_document: bool,
    status: String,
    message: String,
    /// `reason` of the `ErrorInfo`, if its domain is Google's: another's words may mean something
    /// else.
    reason: String,
    /// Where Google says what to do.
    help: Option<String>,
    metadata: BTreeMap<String, String>,
    /// Types of a `PreconditionFailure`: constraints of the organization, perimeters.
    violations: Vec<String>,
    retry: Option<Duration>,
    request_id: Option<String>,
}

/// SDK error to [`Fault`].
pub(super) fn from_sdk(error: &Error, about: About<'_>) -> Fault {
    // When a time limit ran out the SDK wraps the real error; it is the one that says what
    // happened.
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
        let class = if error.is_timeout() || error.is_exhausted() {
            FaultClass::Timeout
        } else {
            FaultClass::Unavailable
        };
        let class = if error.is_binding() || error.is_serialization() {
            FaultClass::Unexpected
        } else {
            class
        };
        return Fault::new(class, chain(error));
    };
    let mut answer = Answer {
        http,
        ..Answer::default()
    };
    if let Some(headers) = error.http_headers() {
        read_headers(headers, &mut answer);
    }
    match error.status() {
        Some(status) => {
            answer.is_document = true;
            answer.status = status.code.name().to_owned();
            answer.message = status.message.clone();
            for detail in &status.details {
                read_detail(detail, &mut answer);
            }
        }
        None => {
            let body = error
                .http_payload()
                .map(|b| String::from_utf8_lossy(b).into_owned())
                .unwrap_or_default();
            answer.message = first_line(&body, http);
        }
    }
    classify(answer, about)
}

fn read_detail(detail: &StatusDetails, answer: &mut Answer) {
    match detail {
        StatusDetails::ErrorInfo(info) => {
            if is_googles(&info.domain) {
                answer.reason = info.reason.clone();
            }
            answer.metadata = info.metadata.clone().into_iter().collect();
        }
        StatusDetails::RequestInfo(r) => answer.request_id = Some(r.request_id.clone()),
        StatusDetails::PreconditionFailure(p) => {
            answer.violations = p.violations.iter().map(|v| v.r#type.clone()).collect();
        }
        StatusDetails::Help(help) => {
            answer.help = help.links.first().map(|l| l.url.clone());
        }
        StatusDetails::RetryInfo(r) => {
            answer.retry = r
                .retry_delay
                .and_then(|d| Duration::try_from(d).ok())
                .or(answer.retry);
        }
        _ => {}
    }
}

/// A REST answer that is no success to [`Fault`].
pub fn from_body(http: u16, headers: &http::HeaderMap, body: &[u8], about: About<'_>) -> Fault {
    let mut answer = Answer {
        http,
        ..Answer::default()
    };
    read_headers(headers, &mut answer);
    let document = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    let error = &document["error"];
    if !error.is_object() {
        answer.message = first_line(&String::from_utf8_lossy(body), http);
        return classify(answer, about);
    }
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    answer.is_document = true;
    answer.status = text(&error["status"]);
    answer.message = text(&error["message"]);
    for detail in error["details"].as_array().into_iter().flatten() {
        match detail["@type"]
            .as_str()
            .unwrap_or_default()
            .rsplit('.')
            .next()
        {
            Some("ErrorInfo") => {
                if is_googles(&text(&detail["domain"])) {
                    answer.reason = text(&detail["reason"]);
                }
                let metadata = detail["metadata"].as_object().into_iter().flatten();
                answer.metadata = metadata.map(|(k, v)| (k.clone(), text(v))).collect();
            }
            Some("RequestInfo") => {
                answer.request_id = detail["requestId"].as_str().map(str::to_owned)
            }
            Some("PreconditionFailure") => {
                let violations = detail["violations"].as_array().into_iter().flatten();
                answer.violations = violations.map(|v| text(&v["type"])).collect();
            }
            Some("Help") => {
                answer.help = detail["links"][0]["url"].as_str().map(str::to_owned);
            }
            Some("RetryInfo") => {
                let delay = detail["retryDelay"]
                    .as_str()
                    .and_then(|d| d.strip_suffix('s')?.parse::<f64>().ok());
                answer.retry = delay
                    .and_then(|d| Duration::try_from_secs_f64(d).ok())
                    .or(answer.retry);
            }
            _ => {}
        }
    }
    classify(answer, about)
}

/// The domain of the reasons of reference §14.2. Cloud Run's mocks and older answers leave it out.
fn is_googles(domain: &str) -> bool {
    domain.is_empty() || domain == "googleapis.com"
}

/// What is worth showing of a body that is not Google's error document, such as an HTML page.
fn first_line(body: &str, http: u16) -> String {
    let line = body
        .lines()
        .map(str::trim)
        .find(|l| !l.is_empty() && !l.starts_with('<'))
        .unwrap_or_default();
    format!("HTTP {http} {}", line.chars().take(200).collect::<String>())
        .trim_end()
        .to_owned()
}

fn read_headers(headers: &http::HeaderMap, answer: &mut Answer) {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    answer.retry = text("retry-after")
        .and_then(|s| s.parse().ok())
        .map(Duration::from_secs);
    answer.request_id = ["x-goog-request-id", "x-request-id", "x-cloud-trace-context"]
        .iter()
        .find_map(|n| text(n));
}

/// An answer that somebody else than Cloud Run gave; `what` it is.
pub(super) fn foreign(what: &str) -> Fault {
    Fault::new(
        FaultClass::ForeignAnswer,
        format!("{what}: this is not an answer of Cloud Run's"),
    )
}

/// From what Google says to what it means (reference §1.7, §4.4, §6, §7.1, §14.2).
fn classify(answer: Answer, about: About<'_>) -> Fault {
    let class = class_of(&answer, about);
    let mut message = answer.message.clone();
    // What a person needs to look further: the text does not always have it.
    let named = |key: &str| answer.metadata.get(key).into_iter();
    let consumer = named("consumer").filter(|_| class == FaultClass::ConsumerUnavailable);
    let more = named("customConstraints")
        .chain(&answer.violations)
        .chain(consumer)
        .chain(&answer.help);
    for more in more.filter(|m| !m.is_empty()) {
        if !message.contains(more.as_str()) {
            message.push_str(&format!(" ({more})"));
        }
    }
    let mut fault = match class {
        FaultClass::ForeignAnswer => foreign(&message),
        class => Fault::new(class, message),
    };
    fault.member = (class == FaultClass::InvalidMember)
        .then(|| named_member(&answer.message))
        .flatten();
    fault.request_id = answer.request_id;
    fault.retry_after = answer.retry.map(|wait| wait.min(LONGEST_WAIT));
    let per_minute = answer
        .metadata
        .get("quota_unit")
        .is_none_or(|u| u.starts_with("1/min"));
    fault.quota_limit = answer
        .metadata
        .get("quota_limit_value")
        .and_then(|v| v.parse().ok())
        .filter(|_| per_minute);
    fault
}

fn class_of(answer: &Answer, about: About<'_>) -> FaultClass {
    use FaultClass as C;
    let consumer = answer
        .metadata
        .get("consumer")
        .map(|c| c.trim_start_matches("projects/"));
    // Without a word about the consumer, or with its number, it cannot be told whether the target
    // is meant.
    let is_target = consumer == Some(about.project());
    // Another API that is off says nothing about services of Cloud Run.
    let is_run = answer
        .metadata
        .get("service")
        .is_none_or(|s| s == "run.googleapis.com");
    match answer.reason.as_str() {
        "SERVICE_DISABLED" if is_target && is_run => return C::ApiDisabled,
        "CONSUMER_INVALID" if is_target => return C::ProjectNotFound,
        "SERVICE_DISABLED"
        | "CONSUMER_INVALID"
        | "CONSUMER_SUSPENDED"
        | "BILLING_DISABLED"
        | "USER_PROJECT_DENIED" => {
            return C::ConsumerUnavailable;
        }
        "SECURITY_POLICY_VIOLATED" => return C::PerimeterDenied,
        "CUSTOM_ORG_POLICY_VIOLATION" => return C::OrganizationPolicy,
        "RATE_LIMIT_EXCEEDED" => return C::QuotaExceeded,
        _ => {}
    }
    match (answer.http, answer.status.as_str()) {
        (409, _) | (_, "ABORTED") => C::Conflict,
        (429, _) | (_, "RESOURCE_EXHAUSTED") => C::QuotaExceeded,
        (408 | 504, _) => C::Timeout,
        (500..=599, _) => C::Unavailable,
        _ if !answer.is_document => C::ForeignAnswer,
        (400 | 403, _) if forbidden_by_organization(answer) => C::OrganizationPolicy,
        // The credentials themselves, whatever they may do.
        (401, _) => C::Credentials,
        (403, _) | (_, "PERMISSION_DENIED") => C::PermissionDenied,
        (404, "NOT_FOUND") => what_is_gone(&answer.message, about),
        (404, _) => C::ForeignAnswer,
        (400, "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "") => C::InvalidMember,
        _ => C::Unexpected,
    }
}

/// Two forms are known: "One or more users named in the policy do not belong to a permitted
/// customer" (with either one or two spaces later on), and "Operation denied by org policy".
fn forbidden_by_organization(answer: &Answer) -> bool {
    answer
        .message
        .contains("do not belong to a permitted customer")
        || answer.message.contains("denied by org policy")
        || answer
            .violations
            .iter()
            .any(|v| v.starts_with("constraints/"))
}

/// What a 404 of Cloud Run's says is not there. A text that does not name what was asked for proves
/// nothing.
fn what_is_gone(message: &str, about: About<'_>) -> FaultClass {
    let lower = message.to_ascii_lowercase();
    let absent = lower.contains("does not exist")
        || lower.contains("not found")
        || lower.contains("deleted");
    let quoted = |name: &str| {
        [format!("'{name}'"), format!("\"{name}\"")]
            .iter()
            .any(|q| message.contains(q.as_str()))
    };
    if absent && lower.starts_with("project ") && quoted(about.project()) {
        return FaultClass::ProjectNotFound;
    }
    match about {
        About::Service(s)
            if absent && (quoted(&s.name) || message.contains(&s.resource_name())) =>
        {
            FaultClass::ServiceNotFound
        }
        About::Resource(name) if absent && message.contains(name) => FaultClass::ServiceNotFound,
        _ => FaultClass::ForeignAnswer,
    }
}

/// The identifier in `Service account X does not exist.` and its family (reference §4.4), without
/// its prefix; the pool in `Identity Pool does not exist (P.svc.id.goog)`, which stands for all of
/// its members.
fn named_member(message: &str) -> Option<String> {
    if let Some(rest) = message.strip_prefix("Identity Pool does not exist (") {
        return rest.split(')').next().map(str::to_owned);
    }
    let rest = [
        "Service account ",
        "Group ",
        "User ",
        "Principal ",
        "Domain ",
    ]
    .iter()
    .find_map(|p| message.strip_prefix(p))?;
    let (name, tail) = rest.split_once(' ')?;
    tail.starts_with("does not exist").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn web() -> RunService {
        RunService::new("acme-prod", "europe-west1", "web")
    }

    fn fault(http: u16, body: &str) -> Fault {
        from_body(
            http,
            &http::HeaderMap::new(),
            body.as_bytes(),
            About::Service(&web()),
        )
    }

    fn document(http: u16, status: &str, message: &str, details: Value) -> String {
        json!({"error": {"code": http, "message": message, "status": status, "details": details}})
            .to_string()
    }

    fn info(reason: &str, metadata: Value) -> Value {
        json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": metadata},
            {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": "d", "url": "https://x"}]}])
    }

    #[test]
    fn every_recorded_answer_has_its_class() {
        use FaultClass as C;
        let none = || json!([]);
        for (http, status, message, details, class) in [
            (
                409,
                "ABORTED",
                "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff.",
                none(),
                C::Conflict,
            ),
            (
                401,
                "UNAUTHENTICATED",
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
                none(),
                C::Credentials,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Permission 'run.services.setIamPolicy' denied on resource 'projects/p/locations/l/services/s' (or resource may not exist).",
                none(),
                C::PermissionDenied,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Cloud Run Admin API has not been used in project acme-prod before or it is disabled. Enable it by visiting https://x",
                info(
                    "SERVICE_DISABLED",
                    json!({"consumer": "projects/acme-prod"}),
                ),
                C::ApiDisabled,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Cloud Run Admin API has not been used in project 99 before or it is disabled.",
                info("SERVICE_DISABLED", json!({"consumer": "projects/99"})),
                C::ConsumerUnavailable,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Permission denied on resource project acme-prod.",
                info(
                    "CONSUMER_INVALID",
                    json!({"consumer": "projects/acme-prod"}),
                ),
                C::ProjectNotFound,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Permission denied on resource project quota.",
                info("CONSUMER_INVALID", json!({"consumer": "projects/quota"})),
                C::ConsumerUnavailable,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Consumer 'project_number:1' has been suspended.",
                info("CONSUMER_SUSPENDED", json!({"consumer": "projects/1"})),
                C::ConsumerUnavailable,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "This API method requires billing to be enabled.",
                info("BILLING_DISABLED", json!({"consumer": "projects/1"})),
                C::ConsumerUnavailable,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Caller does not have required permission to use project q.",
                info("USER_PROJECT_DENIED", json!({"consumer": "projects/q"})),
                C::ConsumerUnavailable,
            ),
            (
                403,
                "PERMISSION_DENIED",
                "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: abc",
                info("SECURITY_POLICY_VIOLATED", json!({})),
                C::PerimeterDenied,
            ),
            (
                400,
                "FAILED_PRECONDITION",
                "Operation denied by custom org policy: [\"customConstraints/custom.x\": \"no\"].",
                info(
                    "CUSTOM_ORG_POLICY_VIOLATION",
                    json!({"customConstraints": "customConstraints/custom.x"}),
                ),
                C::OrganizationPolicy,
            ),
            (
                404,
                "NOT_FOUND",
                "Resource 'web' of kind 'SERVICE' in region 'europe-west1' in project 'acme-prod' does not exist.",
                none(),
                C::ServiceNotFound,
            ),
            (
                404,
                "NOT_FOUND",
                "service \"projects/acme-prod/locations/europe-west1/services/web\" not found",
                none(),
                C::ServiceNotFound,
            ),
            (
                404,
                "NOT_FOUND",
                "Resource 'other' of kind 'SERVICE' in region 'europe-west1' in project 'acme-prod' does not exist.",
                none(),
                C::ForeignAnswer,
            ),
            (
                404,
                "NOT_FOUND",
                "Requested entity was not found.",
                none(),
                C::ForeignAnswer,
            ),
            (404, "", "web not found", none(), C::ForeignAnswer),
            (
                404,
                "NOT_FOUND",
                "Project 'acme-prod' not found or deleted.",
                none(),
                C::ProjectNotFound,
            ),
            (
                400,
                "INVALID_ARGUMENT",
                "Service account x@p.iam.gserviceaccount.com does not exist.",
                none(),
                C::InvalidMember,
            ),
            (
                400,
                "INVALID_ARGUMENT",
                "Request contains an invalid argument.",
                none(),
                C::InvalidMember,
            ),
            (
                400,
                "FAILED_PRECONDITION",
                "One or more users named in the policy do not belong to a permitted customer,  perhaps due to an organization policy.",
                none(),
                C::OrganizationPolicy,
            ),
            (
                429,
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for quota metric 'Write requests'",
                none(),
                C::QuotaExceeded,
            ),
            (
                503,
                "UNAVAILABLE",
                "The service is currently unavailable.",
                none(),
                C::Unavailable,
            ),
            (
                500,
                "INTERNAL",
                "Internal error encountered.",
                none(),
                C::Unavailable,
            ),
            (
                504,
                "DEADLINE_EXCEEDED",
                "Deadline exceeded.",
                none(),
                C::Timeout,
            ),
            (418, "", "teapot", none(), C::Unexpected),
        ] {
            assert_eq!(
                fault(http, &document(http, status, message, details)).class,
                class,
                "{message}"
            );
        }
    }

    #[test]
    fn nothing_that_is_not_googles_document_says_that_something_is_gone() {
        let html = "<!DOCTYPE html>\n<html lang=en>\n<title>Error 404 (Not Found)!!1</title>\n";
        for (http, body) in [
            (404, html),
            (404, ""),
            (404, "not found"),
            (404, "{}"),
            (404, r#"{"message": "web not found"}"#),
            (403, html),
        ] {
            let fault = fault(http, body);
            assert_eq!(fault.class, FaultClass::ForeignAnswer, "{body}");
            assert!(
                !fault.class.row().gone && fault.message.contains("not an answer of Cloud Run's")
            );
        }
        assert_eq!(fault(502, html).class, FaultClass::Unavailable);
    }

    #[test]
    fn what_a_list_of_a_project_says_is_not_about_a_service() {
        let body = document(
            404,
            "NOT_FOUND",
            "Resource 'web' does not exist.",
            json!([]),
        );
        let about = About::Project("acme-prod");
        assert_eq!(
            from_body(404, &http::HeaderMap::new(), body.as_bytes(), about).class,
            FaultClass::ForeignAnswer
        );
    }

    #[test]
    fn a_quota_that_is_named_is_learnt() {
        let message = "Quota exceeded for quota metric 'Write requests' and limit 'Write requests per minute per region' of service 'run.googleapis.com' for consumer 'project_number:1'.";
        let metadata = json!({"quota_metric": "run.googleapis.com/write_regional", "quota_unit": "1/min/{project}/{region}", "quota_limit_value": "30", "consumer": "projects/1"});
        let named = fault(
            429,
            &document(
                429,
                "RESOURCE_EXHAUSTED",
                message,
                info("RATE_LIMIT_EXCEEDED", metadata),
            ),
        );
        assert_eq!(
            (named.class, named.quota_limit),
            (FaultClass::QuotaExceeded, Some(30))
        );
        let daily = json!({"quota_unit": "1/d/{project}", "quota_limit_value": "30"});
        assert_eq!(
            fault(
                429,
                &document(
                    429,
                    "RESOURCE_EXHAUSTED",
                    message,
                    info("RATE_LIMIT_EXCEEDED", daily)
                )
            )
            .quota_limit,
            None
        );
    }

    #[test]
    fn constraints_and_perimeters_are_named() {
        let details = info(
            "CUSTOM_ORG_POLICY_VIOLATION",
            json!({"customConstraints": "customConstraints/custom.noGroups"}),
        );
        let fault = fault(
            400,
            &document(400, "FAILED_PRECONDITION", "Operation denied.", details),
        );
        assert!(
            fault.message.contains("customConstraints/custom.noGroups"),
            "{}",
            fault.message
        );
    }

    /// What is not in Google's text and in the details: whose project, and where to read on.
    #[test]
    fn consumers_and_help_are_named() {
        let details = info("BILLING_DISABLED", json!({"consumer": "projects/acme-ops"}));
        let message = "This API method requires billing to be enabled.";
        let fault = fault(403, &document(403, "PERMISSION_DENIED", message, details));
        assert_eq!(fault.class, FaultClass::ConsumerUnavailable);
        assert_eq!(
            fault.message,
            "This API method requires billing to be enabled. (projects/acme-ops) (https://x)"
        );
    }

    #[test]
    fn another_api_that_is_off_is_not_the_end_of_services() {
        let of = |service: &str| {
            let metadata = json!({"consumer": "projects/acme-prod", "service": service});
            let details = info("SERVICE_DISABLED", metadata);
            fault(403, &document(403, "PERMISSION_DENIED", "off", details)).class
        };
        assert_eq!(of("run.googleapis.com"), FaultClass::ApiDisabled);
        assert_eq!(of("iam.googleapis.com"), FaultClass::ConsumerUnavailable);
    }

    /// A reason is a word of its domain.
    #[test]
    fn a_reason_of_another_domain_is_not_googles() {
        let of = |domain: &str| {
            let details = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "CONSUMER_INVALID", "domain": domain, "metadata": {"consumer": "projects/acme-prod"}}]);
            fault(403, &document(403, "PERMISSION_DENIED", "no", details)).class
        };
        assert_eq!(of("googleapis.com"), FaultClass::ProjectNotFound);
        assert_eq!(of("proxy.acme.com"), FaultClass::PermissionDenied);
    }

    #[test]
    fn the_member_that_iam_names_is_found() {
        let named = |message: &str| {
            fault(400, &document(400, "INVALID_ARGUMENT", message, json!([]))).member
        };
        assert_eq!(
            named("Group g@acme.com does not exist.").as_deref(),
            Some("g@acme.com")
        );
        assert_eq!(
            named("Identity Pool does not exist (acme.svc.id.goog)").as_deref(),
            Some("acme.svc.id.goog")
        );
        assert_eq!(named("Request contains an invalid argument."), None);
    }

    #[test]
    fn a_message_of_any_length_is_bounded() {
        let fault = fault(
            400,
            &document(400, "INVALID_ARGUMENT", &"x".repeat(100_000), json!([])),
        );
        assert!(fault.message.len() < 4096);
    }
}
