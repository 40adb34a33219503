//! From what Google says to what it means (reference §1.7, §4.4, §6, §7.1, §14.2).

use std::time::Duration;

use super::{About, document::Answer, foreign};
use crate::{
    fault::{DENIAL, Fault, FaultClass},
    iam::RunService,
};

/// The longest that an answer may silence what it was about. Whoever sends more may not be Google.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The type of a violation of a perimeter, with or without an `ErrorInfo` next to it.
const PERIMETER: &str = "VPC_SERVICE_CONTROLS";

pub(super) fn classify(answer: Answer, about: About<'_>) -> Fault {
    let class = class_of(&answer, about);
    let mut message = answer.message.clone();
    let more = particulars(&answer, class);
    if !more.is_empty() {
        message.truncate(message.trim_end_matches('.').len());
    }
    for more in more {
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
    fault.quota_limit = quota_limit(&answer);
    fault.retry_after = answer.retry.map(|wait| wait.min(LONGEST_WAIT));
    fault.request_id = answer.request_id;
    fault
}

/// What a person needs to look further, which the text does not always have.
fn particulars(answer: &Answer, class: FaultClass) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        if !text.is_empty() && !answer.message.contains(text) {
            found.push(text.to_owned());
        }
    };
    match class {
        FaultClass::OrganizationPolicy => {
            add(answer.metadata("customConstraints").unwrap_or_default());
            // This text belongs to either of two constraints.
            if is_domain_restriction(answer) && answer.violations.is_empty() {
                add("iam.allowedPolicyMemberDomains or iam.managed.allowedPolicyMembers");
            }
        }
        FaultClass::PerimeterDenied => {
            let of_violation = answer.violations.iter().find(|v| v.kind == PERIMETER);
            let id = answer
                .metadata("uid")
                .or(of_violation.map(|v| v.description.as_str()))
                .unwrap_or_default();
            if !id.is_empty() && !answer.message.contains(id) {
                add(&format!("{DENIAL}{id}"));
            }
        }
        FaultClass::ConsumerUnavailable => add(answer.metadata("consumer").unwrap_or_default()),
        FaultClass::PermissionDenied => {
            add(answer.metadata("permission").unwrap_or_default());
        }
        _ => {}
    }
    let perimeter = class == FaultClass::PerimeterDenied;
    let violations = answer.violations.iter();
    for violation in violations.filter(|v| !(perimeter && v.kind == PERIMETER)) {
        add(&violation.kind);
        add(&violation.description);
    }
    if let Some(domain) = &answer.foreign_domain {
        add(&format!("a reason of {domain}, which is not Google's"));
    }
    add(answer.help.as_deref().unwrap_or_default());
    found
}

/// Calls a minute that Google says it allows.
fn quota_limit(answer: &Answer) -> Option<u32> {
    let unit = answer.metadata("quota_unit");
    let limit = answer.metadata("quota_limit_value")?.parse().ok();
    limit.filter(|_| unit.is_none_or(|u| u.starts_with("1/min")))
}

fn class_of(answer: &Answer, about: About<'_>) -> FaultClass {
    use FaultClass as C;
    let consumer = answer
        .metadata("consumer")
        .map(|c| c.trim_start_matches("projects/"));
    // Without a word about the consumer, or with its number, it cannot be told whether the target
    // is meant.
    let is_target = consumer == Some(about.project());
    // Another API that is off says nothing about services of Cloud Run.
    let is_run = answer
        .metadata("service")
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
        (403, _) if is_perimeter(answer) => C::PerimeterDenied,
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

/// VPC Service Controls without the `ErrorInfo` that would say so (reference §8.7).
fn is_perimeter(answer: &Answer) -> bool {
    answer.violations.iter().any(|v| v.kind == PERIMETER)
        || answer.message.contains(DENIAL.trim_end_matches(": "))
}

/// "One or more users named in the policy do not belong to a permitted customer", with either one
/// or two spaces later on.
fn is_domain_restriction(answer: &Answer) -> bool {
    answer
        .message
        .contains("do not belong to a permitted customer")
}

/// Without an `ErrorInfo`. The texts are "Operation denied by org policy", "… by custom org policy"
/// and the plural of each.
fn forbidden_by_organization(answer: &Answer) -> bool {
    let texts = ["denied by org polic", "denied by custom org polic"];
    is_domain_restriction(answer)
        || texts.iter().any(|text| answer.message.contains(text))
        || answer
            .violations
            .iter()
            .any(|v| v.kind.starts_with("constraints/") || v.kind.starts_with("customConstraints/"))
}

/// Whether a text names another region, project or service than that one. A project's number may be
/// that of its id.
fn names_another(message: &str, service: &RunService) -> bool {
    let after = |word: &str| {
        let (_, rest) = message.split_once(&format!("{word} '"))?;
        rest.split_once('\'').map(|(name, _)| name)
    };
    let is_number = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    let is_project = |name: &str| name == &*service.project || is_number(name);
    let is_this = |path: &str| match path.split('/').collect::<Vec<_>>().as_slice() {
        [project, "locations", region, "services", name, ..] => {
            let ends = |c: char| !c.is_ascii_alphanumeric() && c != '-';
            let name = name.split(ends).next().unwrap_or_default();
            is_project(project) && *region == &*service.region && name == &*service.name
        }
        _ => true,
    };
    after("region").is_some_and(|r| r != &*service.region)
        || after("project").is_some_and(|p| !is_project(p))
        || message
            .split("projects/")
            .skip(1)
            .any(|path| !is_this(path))
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
            if absent
                && (quoted(&s.name) || message.contains(&s.resource_name()))
                && !names_another(message, s) =>
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
