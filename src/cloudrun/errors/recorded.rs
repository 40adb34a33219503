//! Whole answers of Google's, and of others, with what each means: the table that both ways of an
//! answer are held to.

use serde_json::{Value, json};

use crate::fault::FaultClass::{self, *};

pub(super) struct Recorded {
    pub http: u16,
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: String,
    pub class: FaultClass,
    /// Contained in what a person is shown.
    pub says: &'static str,
}

impl Recorded {
    fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

pub(super) fn raw(http: u16, body: &str, class: FaultClass) -> Recorded {
    let says = if class == ForeignAnswer {
        "not an answer of Cloud Run's"
    } else {
        ""
    };
    Recorded {
        http,
        headers: vec![],
        body: body.to_owned(),
        class,
        says,
    }
}

fn document(http: u16, status: &str, message: &str, details: Value) -> String {
    let mut error = json!({"code": http, "message": message});
    if !status.is_empty() {
        error["status"] = json!(status);
    }
    if details.as_array().is_some_and(|d| !d.is_empty()) {
        error["details"] = details;
    }
    json!({"error": error}).to_string()
}

/// An answer without details: what is shown is Google's text.
fn plain(http: u16, status: &str, message: &'static str, class: FaultClass) -> Recorded {
    Recorded {
        says: message,
        ..raw(http, &document(http, status, message, json!([])), class)
    }
}

fn detailed(
    (http, status, message): (u16, &str, &str),
    details: Value,
    class: FaultClass,
    says: &'static str,
) -> Recorded {
    Recorded {
        says,
        ..raw(http, &document(http, status, message, details), class)
    }
}

fn info(reason: &str, metadata: Value) -> Value {
    json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": metadata})
}

fn help(url: &str) -> Value {
    json!({"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": "Google developers console", "url": url}]})
}

fn violation(kind: &str, description: &str) -> Value {
    json!({"@type": "type.googleapis.com/google.rpc.PreconditionFailure",
        "violations": [{"type": kind, "subject": "orgpolicy:projects/acme-prod", "description": description}]})
}

/// Every answer, with `acme-prod/europe-west1/web` as what was asked for.
pub(super) fn all() -> Vec<Recorded> {
    let mut all = of_iam();
    all.extend(of_consumers());
    all.extend(of_organizations());
    all.extend(of_absence());
    all.extend(of_quotas_and_servers());
    all.extend(of_others());
    all
}

fn of_iam() -> Vec<Recorded> {
    let lacks = "Permission 'run.services.setIamPolicy' denied on resource 'projects/acme-prod/locations/europe-west1/services/web' (or resource may not exist).";
    let lacking = json!({"permission": "run.services.setIamPolicy", "resource": "projects/acme-prod/locations/europe-west1/services/web"});
    let info_of_iam = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED", "domain": "iam.googleapis.com", "metadata": lacking});
    vec![
        plain(
            409,
            "ABORTED",
            "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff.",
            Conflict,
        ),
        plain(
            401,
            "UNAUTHENTICATED",
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
            Credentials,
        ),
        plain(403, "PERMISSION_DENIED", lacks, PermissionDenied),
        detailed(
            (403, "PERMISSION_DENIED", lacks),
            json!([info_of_iam]),
            PermissionDenied,
            lacks,
        ),
        detailed(
            (
                403,
                "PERMISSION_DENIED",
                "The caller does not have permission",
            ),
            json!([info_of_iam]),
            PermissionDenied,
            "run.services.setIamPolicy",
        ),
        plain(
            400,
            "INVALID_ARGUMENT",
            "Service account x@p.iam.gserviceaccount.com does not exist.",
            InvalidMember,
        ),
        plain(
            400,
            "INVALID_ARGUMENT",
            "Request contains an invalid argument.",
            InvalidMember,
        ),
        plain(400, "", "Group g@acme.com does not exist.", InvalidMember),
        plain(
            400,
            "INVALID_ARGUMENT",
            "Identity Pool does not exist (acme.svc.id.goog)",
            InvalidMember,
        ),
    ]
}

fn of_consumers() -> Vec<Recorded> {
    let off = "Cloud Run Admin API has not been used in project acme-prod before or it is disabled. Enable it by visiting https://console.developers.google.com/apis/api/run.googleapis.com/overview?project=acme-prod then retry.";
    let activation = "https://console.developers.google.com/apis/api/run.googleapis.com/overview?project=acme-prod";
    let of = |reason: &str, message: &str, consumer: &str, class, says| {
        let metadata = json!({"service": "run.googleapis.com", "serviceTitle": "Cloud Run Admin API",
            "consumer": consumer, "containerInfo": consumer.trim_start_matches("projects/"), "activationUrl": activation});
        detailed(
            (403, "PERMISSION_DENIED", message),
            json!([info(reason, metadata), help(activation)]),
            class,
            says,
        )
    };
    vec![
        of(
            "SERVICE_DISABLED",
            off,
            "projects/acme-prod",
            ApiDisabled,
            activation,
        ),
        of(
            "SERVICE_DISABLED",
            "Cloud Run Admin API has not been used in project 99 before or it is disabled.",
            "projects/99",
            ConsumerUnavailable,
            "(projects/99) (https://console",
        ),
        of(
            "CONSUMER_INVALID",
            "Permission denied on resource project acme-prod.",
            "projects/acme-prod",
            ProjectNotFound,
            "Permission denied on resource project acme-prod (https://console",
        ),
        of(
            "CONSUMER_INVALID",
            "Permission denied on resource project acme-ops.",
            "projects/acme-ops",
            ConsumerUnavailable,
            "projects/acme-ops",
        ),
        of(
            "CONSUMER_SUSPENDED",
            "Permission denied: Consumer 'projects/acme-ops' has been suspended.",
            "projects/acme-ops",
            ConsumerUnavailable,
            "suspended",
        ),
        of(
            "BILLING_DISABLED",
            "This API method requires billing to be enabled. Please enable billing on project #acme-ops by visiting https://console.developers.google.com/billing/enable?project=acme-ops then retry.",
            "projects/acme-ops",
            ConsumerUnavailable,
            "(projects/acme-ops)",
        ),
        of(
            "USER_PROJECT_DENIED",
            "Caller does not have required permission to use project acme-ops. Grant the caller the roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission.",
            "projects/acme-ops",
            ConsumerUnavailable,
            "serviceusage.services.use",
        ),
    ]
}

fn of_organizations() -> Vec<Recorded> {
    let perimeter = "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: AbC-123";
    let bare = "Request is prohibited by organization's policy.";
    let uid = json!({"uid": "AbC-123", "service": "run.googleapis.com", "consumer": "projects/99"});
    let troubleshoot =
        "https://console.cloud.google.com/security/service-perimeter/troubleshoot;uniqueId=AbC-123";
    let custom = "Operation denied by custom org policy: [\"customConstraints/custom.noGroups\": \"no groups\"].";
    let several = "Operation denied by custom org policies: [\"customConstraints/custom.noGroups\": \"no groups\"].";
    let managed =
        "Operation denied by org policy: [\"constraints/iam.managed.allowedPolicyMembers\": \"\"].";
    let domains = "One or more users named in the policy do not belong to a permitted customer,  perhaps due to an organization policy.";
    let denied = (403, "PERMISSION_DENIED", bare);
    let refused = |message| (400, "FAILED_PRECONDITION", message);
    vec![
        plain(403, "PERMISSION_DENIED", perimeter, PerimeterDenied),
        detailed(
            denied,
            json!([
                info("SECURITY_POLICY_VIOLATED", uid.clone()),
                help(troubleshoot)
            ]),
            PerimeterDenied,
            "(vpcServiceControlsUniqueIdentifier: AbC-123) (https://console",
        ),
        detailed(
            denied,
            json!([violation("VPC_SERVICE_CONTROLS", "AbC-123")]),
            PerimeterDenied,
            "(vpcServiceControlsUniqueIdentifier: AbC-123)",
        ),
        detailed(
            denied,
            json!([
                violation("VPC_SERVICE_CONTROLS", "AbC-123"),
                info("SECURITY_POLICY_VIOLATED", uid)
            ]),
            PerimeterDenied,
            "vpcServiceControlsUniqueIdentifier: AbC-123",
        ),
        detailed(
            refused(custom),
            json!([info(
                "CUSTOM_ORG_POLICY_VIOLATION",
                json!({"customConstraints": "customConstraints/custom.noGroups"})
            )]),
            OrganizationPolicy,
            custom,
        ),
        detailed(
            refused("Operation denied."),
            json!([info(
                "CUSTOM_ORG_POLICY_VIOLATION",
                json!({"customConstraints": "customConstraints/custom.noGroups"})
            )]),
            OrganizationPolicy,
            "(customConstraints/custom.noGroups)",
        ),
        plain(400, "FAILED_PRECONDITION", custom, OrganizationPolicy),
        plain(400, "FAILED_PRECONDITION", several, OrganizationPolicy),
        plain(400, "FAILED_PRECONDITION", managed, OrganizationPolicy),
        detailed(
            refused(domains),
            json!([]),
            OrganizationPolicy,
            "(iam.allowedPolicyMemberDomains or iam.managed.allowedPolicyMembers)",
        ),
        detailed(
            refused("One or more users named in the policy do not belong to a permitted customer."),
            json!([violation(
                "constraints/iam.allowedPolicyMemberDomains",
                "User x@other.com is not in permitted organization."
            )]),
            OrganizationPolicy,
            "customer (constraints/iam.allowedPolicyMemberDomains) (User x@other.com is not in permitted organization.)",
        ),
    ]
}

fn of_absence() -> Vec<Recorded> {
    vec![
        plain(
            404,
            "NOT_FOUND",
            "Resource 'web' of kind 'SERVICE' in region 'europe-west1' in project 'acme-prod' does not exist.",
            ServiceNotFound,
        ),
        plain(
            404,
            "NOT_FOUND",
            "service \"projects/acme-prod/locations/europe-west1/services/web\" not found",
            ServiceNotFound,
        ),
        plain(
            404,
            "NOT_FOUND",
            "Project 'acme-prod' not found or deleted.",
            ProjectNotFound,
        ),
        plain(
            404,
            "NOT_FOUND",
            "Resource 'other' of kind 'SERVICE' in region 'europe-west1' in project 'acme-prod' does not exist.",
            ForeignAnswer,
        ),
        plain(
            404,
            "NOT_FOUND",
            "Resource 'web' of kind 'SERVICE' in region 'us-central1' in project 'acme-prod' does not exist.",
            ForeignAnswer,
        ),
        plain(
            404,
            "NOT_FOUND",
            "Resource 'web' of kind 'SERVICE' in region 'europe-west1' in project 'other' does not exist.",
            ForeignAnswer,
        ),
        plain(
            404,
            "NOT_FOUND",
            "Resource 'web' of kind 'SERVICE' in region 'europe-west1' in project '306564062123' does not exist.",
            ServiceNotFound,
        ),
        plain(
            404,
            "NOT_FOUND",
            "Resource \"web\" not found: projects/acme-prod/locations/us-central1/services/web",
            ForeignAnswer,
        ),
        plain(
            404,
            "NOT_FOUND",
            "Requested entity was not found.",
            ForeignAnswer,
        ),
        plain(404, "", "web not found", ForeignAnswer),
    ]
}

fn of_quotas_and_servers() -> Vec<Recorded> {
    let quota = "Quota exceeded for quota metric 'Write requests' and limit 'Write requests per minute per region' of service 'run.googleapis.com' for consumer 'project_number:1'.";
    let metadata = json!({"service": "run.googleapis.com", "consumer": "projects/1", "quota_location": "europe-west1",
        "quota_limit": "WritePerMinutePerProjectRegion", "quota_metric": "run.googleapis.com/write_regional",
        "quota_unit": "1/min/{project}/{region}", "quota_limit_value": "30"});
    let increase = "https://cloud.google.com/docs/quotas/help/request_increase";
    let details = json!([info("RATE_LIMIT_EXCEEDED", metadata), help(increase)]);
    let retry = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3.500s"},
        {"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": "req-1"}]);
    vec![
        plain(429, "RESOURCE_EXHAUSTED", quota, QuotaExceeded),
        detailed(
            (429, "RESOURCE_EXHAUSTED", quota),
            details,
            QuotaExceeded,
            increase,
        ),
        plain(429, "RESOURCE_EXHAUSTED", "Quota exceeded.", QuotaExceeded)
            .with_header("retry-after", "7"),
        detailed(
            (503, "UNAVAILABLE", "The service is currently unavailable."),
            retry,
            Unavailable,
            "The service is currently unavailable.",
        ),
        plain(500, "INTERNAL", "Internal error encountered.", Unavailable)
            .with_header("x-goog-request-id", "req-2"),
        plain(504, "DEADLINE_EXCEEDED", "Deadline exceeded.", Timeout),
    ]
}

/// Answers of a proxy, of a mock, or with parts that no library knows.
fn of_others() -> Vec<Recorded> {
    let html = "<!DOCTYPE html>\n<html lang=en>\n<title>Error 404 (Not Found)!!1</title>\n";
    let gone = "Permission denied on resource project acme-prod.";
    let of_proxy = json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "CONSUMER_INVALID", "domain": "proxy.acme.com",
        "metadata": {"consumer": "projects/acme-prod"}});
    let target = info(
        "CONSUMER_INVALID",
        json!({"consumer": "projects/acme-prod"}),
    );
    let unknown = json!({"@type": "type.googleapis.com/google.rpc.NotYetKnown", "reason": 7});
    let odd = json!({"@type": "type.googleapis.com/google.rpc.PreconditionFailure", "violations": [{"type": "VPC_SERVICE_CONTROLS", "description": "AbC-123", "subject": 7}]});
    let denied = |message| (403, "PERMISSION_DENIED", message);
    vec![
        raw(404, html, ForeignAnswer),
        raw(404, "", ForeignAnswer),
        raw(404, "not found", ForeignAnswer),
        raw(404, "{}", ForeignAnswer),
        raw(404, r#"{"message": "web not found"}"#, ForeignAnswer),
        raw(403, html, ForeignAnswer),
        raw(502, html, Unavailable),
        raw(418, "teapot", ForeignAnswer),
        plain(418, "", "teapot", Unexpected),
        plain(418, "NEW_STATUS", "teapot", Unexpected),
        detailed(
            denied("no"),
            json!([of_proxy]),
            PermissionDenied,
            "(a reason of proxy.acme.com, which is not Google's)",
        ),
        detailed(denied(gone), json!([unknown, target]), ProjectNotFound, gone),
        // A detail that is not of its form, one that is no object, and details that are no list.
        detailed(denied("no"), json!([odd]), PerimeterDenied, "AbC-123"),
        detailed(denied(gone), json!(["odd", target]), ProjectNotFound, gone),
        raw(
            403,
            &json!({"error": {"code": 403, "message": "no", "status": "PERMISSION_DENIED", "details": {"odd": 1}}}).to_string(),
            PermissionDenied,
        ),
        raw(
            404,
            &json!({"error": {"code": "404", "message": "service \"projects/acme-prod/locations/europe-west1/services/web\" not found", "status": "NOT_FOUND"}}).to_string(),
            ServiceNotFound,
        ),
    ]
}
