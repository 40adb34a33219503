//! How Google's APIs refuse, each as the whole document that is sent.

use serde_json::{Value, json};

use crate::run::{ConsumerTrouble, Problem};

/// An API by its service name and its title.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    pub service: &'static str,
    pub title: &'static str,
}

pub const RUN: Api = Api {
    service: "run.googleapis.com",
    title: "Cloud Run Admin API",
};
pub const LOGGING: Api = Api {
    service: "logging.googleapis.com",
    title: "Cloud Logging API",
};
pub const RESOURCE_MANAGER: Api = Api {
    service: "cloudresourcemanager.googleapis.com",
    title: "Cloud Resource Manager API",
};
pub const IAP: Api = Api {
    service: "iap.googleapis.com",
    title: "Cloud Identity-Aware Proxy API",
};
pub const IAM: Api = Api {
    service: "iam.googleapis.com",
    title: "Identity and Access Management (IAM) API",
};
pub const TROUBLESHOOTER: Api = Api {
    service: "policytroubleshooter.googleapis.com",
    title: "Policy Troubleshooter API",
};
pub const ASSET: Api = Api {
    service: "cloudasset.googleapis.com",
    title: "Cloud Asset API",
};

/// An API that is off (<https://docs.cloud.google.com/service-usage/docs/enable-disable>).
pub fn disabled(api: Api, consumer: &str) -> Problem {
    let Api { service, title } = api;
    let url = format!(
        "https://console.developers.google.com/apis/api/{service}/overview?project={consumer}"
    );
    let mut problem = Problem::new(
        403,
        "PERMISSION_DENIED",
        format!(
            "{title} has not been used in project {consumer} before or it is disabled. Enable it by visiting {url} then retry. If you enabled this API recently, wait a few minutes for the action to propagate to our systems and retry."
        ),
    );
    let metadata = json!({"service": service, "serviceTitle": title, "activationUrl": url,
        "consumer": format!("projects/{consumer}"), "containerInfo": consumer});
    problem.details = vec![
        info("SERVICE_DISABLED", "googleapis.com", metadata),
        json!({"@type": "type.googleapis.com/google.rpc.Help", "links": [
            {"description": "Google developers console API activation", "url": url}]}),
    ];
    problem
}

/// A permission that the caller lacks, with the `ErrorInfo` of AIP-193 and AIP-211.
pub fn denied(api: Api, message: String, permission: &str, resource: &str) -> Problem {
    let mut problem = Problem::new(403, "PERMISSION_DENIED", message);
    let metadata = json!({"permission": permission, "resource": resource});
    problem.details = vec![info("IAM_PERMISSION_DENIED", api.service, metadata)];
    problem
}

/// A project that pays and does not exist, as public reports quote it
/// (<https://github.com/google-gemini/gemini-cli/issues/4065>).
pub fn invalid_consumer(api: Api, project: &str) -> Problem {
    let message = format!("Permission denied on resource project {project}.");
    of_consumer(api, project, "CONSUMER_INVALID", message, CONSOLE)
}

/// A project that may not pay.
pub fn unable(trouble: ConsumerTrouble, api: Api, consumer: &str) -> Problem {
    let billing =
        format!("https://console.developers.google.com/billing/enable?project={consumer}");
    match trouble {
        ConsumerTrouble::Invalid => invalid_consumer(api, consumer),
        ConsumerTrouble::Suspended => {
            let message =
                format!("Permission denied: Consumer 'projects/{consumer}' has been suspended.");
            of_consumer(api, consumer, "CONSUMER_SUSPENDED", message, CONSOLE)
        }
        ConsumerTrouble::BillingDisabled => {
            let message = format!(
                "This API method requires billing to be enabled. Please enable billing on project #{consumer} by visiting {billing} then retry. If you enabled billing for this project recently, wait a few minutes for the action to propagate to our systems and retry."
            );
            of_consumer(api, consumer, "BILLING_DISABLED", message, &billing)
        }
        ConsumerTrouble::Denied => {
            let url = format!(
                "https://console.developers.google.com/iam-admin/iam/project?project={consumer}"
            );
            let message = format!(
                "Caller does not have required permission to use project {consumer}. Grant the caller the roles/serviceusage.serviceUsageConsumer role, or a custom role with the serviceusage.services.use permission, by visiting {url} and then retry. Propagation of the new permission may take a few minutes."
            );
            of_consumer(api, consumer, "USER_PROJECT_DENIED", message, &url)
        }
    }
}

const CONSOLE: &str = "https://console.developers.google.com";

fn of_consumer(api: Api, consumer: &str, reason: &str, message: String, url: &str) -> Problem {
    let metadata = json!({"service": api.service, "consumer": format!("projects/{consumer}"), "containerInfo": consumer});
    let localized = json!({"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "locale": "en-US", "message": message});
    let help = json!({"@type": "type.googleapis.com/google.rpc.Help", "links": [
        {"description": "Google developers console", "url": url}]});
    let mut problem = Problem::new(403, "PERMISSION_DENIED", message);
    problem.details = vec![info(reason, "googleapis.com", metadata), localized, help];
    problem
}

/// VPC Service Controls
/// (<https://docs.cloud.google.com/vpc-service-controls/docs/troubleshooting>). The identifier is
/// that of one denial.
pub fn behind_perimeter(api: Api, project: &str, denial: u64) -> Problem {
    let id = format!("sandbox-denial-{denial}");
    let mut problem = Problem::new(
        403,
        "PERMISSION_DENIED",
        format!(
            "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: {id}"
        ),
    );
    let metadata =
        json!({"uid": id, "service": api.service, "consumer": format!("projects/{project}")});
    problem.details = vec![
        json!({"@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": "VPC_SERVICE_CONTROLS", "description": id}]}),
        info("SECURITY_POLICY_VIOLATED", "googleapis.com", metadata),
    ];
    problem
}

/// A custom constraint that forbids a change of an allow policy.
pub fn against_constraint(name: &str, display_name: &str) -> Problem {
    let message =
        format!("Operation denied by custom org policy: [\"{name}\": \"{display_name}\"].");
    let mut problem = Problem::new(400, "FAILED_PRECONDITION", message);
    let metadata = json!({ "customConstraints": name });
    problem.details = vec![info(
        "CUSTOM_ORG_POLICY_VIOLATION",
        "googleapis.com",
        metadata,
    )];
    problem
}

/// Quota that is used up.
pub fn exhausted(api: Api, consumer: &str, quota: usize) -> Problem {
    let service = api.service;
    let metadata = json!({"service": service, "consumer": format!("projects/{consumer}"),
        "quota_location": "global", "quota_limit": "RequestsPerMinutePerProject",
        "quota_metric": format!("{service}/requests"), "quota_unit": "1/min/{project}",
        "quota_limit_value": quota.to_string()});
    over_quota(
        format!(
            "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service '{service}' for consumer 'project_number:1'."
        ),
        metadata,
    )
}

/// Without a word about when to come back, as Google answers.
pub fn over_quota(message: String, metadata: Value) -> Problem {
    let mut problem = Problem::new(429, "RESOURCE_EXHAUSTED", message);
    problem.details = vec![
        info("RATE_LIMIT_EXCEEDED", "googleapis.com", metadata),
        json!({"@type": "type.googleapis.com/google.rpc.Help", "links": [
            {"description": "Request a higher quota limit.",
             "url": "https://cloud.google.com/docs/quotas/help/request_increase"}]}),
    ];
    problem
}

fn info(reason: &str, domain: &str, metadata: Value) -> Value {
    json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason,
        "domain": domain, "metadata": metadata})
}
