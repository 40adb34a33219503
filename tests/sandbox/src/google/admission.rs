//! What stands before a call of an API other than Cloud Run: credentials, whether the API is on,
//! its quota, the caller's rights.

use serde_json::{Value, json};

use crate::{
    exchange::Call,
    run::{Problem, State},
};

/// An API by its service name and its title.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    pub service: &'static str,
    pub title: &'static str,
}

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

impl State {
    /// Refuses what an API refuses before it looks at a request. The consumer is the quota project
    /// if there is one, else the project that the request is about.
    pub(crate) fn admit(&mut self, call: &Call, api: Api, resource: &str) -> Result<(), Problem> {
        self.authenticate()?;
        let quota_project = call.header("x-goog-user-project");
        let consumer = match quota_project {
            "" => resource
                .strip_prefix("projects/")
                .and_then(|r| r.split('/').next()),
            project => Some(project),
        };
        let consumer = consumer.unwrap_or("-").to_owned();
        let off = |project: &str| {
            let key = (project.to_owned(), api.service.to_owned());
            self.world.disabled_services.contains(&key)
        };
        if off(&consumer) || off("*") {
            return Err(disabled(api, &consumer));
        }
        self.spend(api, consumer)
    }

    fn spend(&mut self, api: Api, consumer: String) -> Result<(), Problem> {
        let Some(quota) = self.world.quotas.get(api.service).copied() else {
            return Ok(());
        };
        let used = self
            .google
            .used
            .entry((consumer.clone(), api.service))
            .or_default();
        if !used.spend(quota) {
            return Err(exhausted(api, &consumer, quota));
        }
        Ok(())
    }

    /// Whether the caller lacks a permission on a resource: `projects/P`, `folders/N`,
    /// `organizations/N`, or what is in a project.
    pub(crate) fn lacks(&self, resource: &str, permission: &str) -> bool {
        let holder = match resource.strip_prefix("projects/") {
            Some(rest) => rest.split('/').next().unwrap_or_default(),
            None => resource,
        };
        self.world
            .denied
            .contains(&(holder.to_owned(), permission.to_owned()))
    }
}

/// An API that is off (<https://docs.cloud.google.com/service-usage/docs/enable-disable>).
fn disabled(api: Api, consumer: &str) -> Problem {
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

/// Quota that is used up: without a word about when to come back, as Google answers.
fn exhausted(api: Api, consumer: &str, quota: usize) -> Problem {
    let service = api.service;
    let mut problem = Problem::new(
        429,
        "RESOURCE_EXHAUSTED",
        format!(
            "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service '{service}' for consumer 'project_number:1'."
        ),
    );
    let metadata = json!({"service": service, "consumer": format!("projects/{consumer}"),
        "quota_location": "global", "quota_limit": "RequestsPerMinutePerProject",
        "quota_metric": format!("{service}/requests"), "quota_unit": "1/min/{project}",
        "quota_limit_value": quota.to_string()});
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
