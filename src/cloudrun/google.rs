//! [`CloudRun`] over Google's official SDK, and over v1 REST for the one call that the SDK does not have.

use std::{collections::BTreeMap, time::Duration};

use google_cloud_auth::credentials::{CacheableResource, Credentials};
use google_cloud_gax::{
    error::{Error, rpc::StatusDetails},
    options::RequestOptionsBuilder as _,
    paginator::Paginator as _,
    retry_policy::NeverRetry,
};
use google_cloud_run_v2::client::Services;
use serde::Deserialize;

use super::{CloudRun, Lane, Listing, Scope};
use crate::{
    fault::{Fault, FaultClass},
    iam::{Front, Policy, RunService, ServiceInfo},
};

/// Where Google's global endpoint is.
pub const DEFAULT_ENDPOINT: &str = "https://run.googleapis.com";

/// Another API of Google.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    ResourceManager,
    PubSub,
    Logging,
}

impl Side {
    fn endpoint(self) -> &'static str {
        match self {
            Self::ResourceManager => "https://cloudresourcemanager.googleapis.com",
            Self::PubSub => "https://pubsub.googleapis.com",
            Self::Logging => "https://logging.googleapis.com",
        }
    }
}

const PAGE_SIZE: i32 = 500;
/// A listing that never ends would hold a worker for ever; Cloud Run allows 1,000 services per project and region.
const MAX_PAGES: usize = 500;

/// How to reach Cloud Run.
#[derive(Clone, Debug)]
pub struct Options {
    pub endpoint: String,
    pub credentials: Credentials,
    /// How long one call may take.
    pub timeout: Duration,
    /// Project that pays quota, sent as `x-goog-user-project`; the credential's own if `None`.
    pub quota_project: Option<String>,
}

/// Application Default Credentials, as gcloud has them; or none at all, for emulators.
///
/// # Errors
/// [`FaultClass::Credentials`] if there are none.
pub fn credentials(anonymous: bool) -> Result<Credentials, Fault> {
    if anonymous {
        return Ok(google_cloud_auth::credentials::anonymous::Builder::new().build());
    }
    google_cloud_auth::credentials::Builder::default().build().map_err(|e| {
        Fault::new(
            FaultClass::Credentials,
            format!(
                "no Application Default Credentials ({}): use Workload Identity, or run gcloud auth application-default login",
                chain(&e)
            ),
        )
    })
}

/// The real Cloud Run.
#[derive(Clone, Debug)]
pub struct Google {
    client: Services,
    http: reqwest::Client,
    options: Options,
}

impl Google {
    /// Builds the clients. No call is made.
    ///
    /// # Errors
    /// When the SDK refuses the endpoint or the credentials.
    pub async fn connect(options: Options) -> Result<Self, Fault> {
        let client = Services::builder()
            .with_endpoint(options.endpoint.clone())
            .with_credentials(options.credentials.clone())
            // Retries are the queue's: the SDK's never cover 409 or 429, and they hide time.
            .with_retry_policy(NeverRetry)
            .with_attempt_timeout(options.timeout)
            .build()
            .await
            .map_err(|e| Fault::new(FaultClass::Credentials, e.to_string()))?;
        let http = reqwest::Client::builder()
            .timeout(options.timeout)
            .build()
            .map_err(|e| Fault::new(FaultClass::Unavailable, e.to_string()))?;
        Ok(Self { client, http, options })
    }

    /// What a service says of itself that decides whether a request gets through.
    ///
    /// # Errors
    /// The fault of the one call that this makes (`run.services.get`).
    pub async fn front(&self, service: &RunService) -> Result<Front, Fault> {
        let mut request = self.client.get_service().set_name(service.resource_name());
        if let Some(quota) = &self.options.quota_project {
            request = request.with_quota_project(quota.clone());
        }
        let found = request.send().await.map_err(|e| from_sdk(&e))?;
        let mut urls: Vec<String> = found.urls;
        if !found.uri.is_empty() && !urls.contains(&found.uri) {
            urls.insert(0, found.uri);
        }
        Ok(Front {
            ingress: found.ingress.name().unwrap_or("INGRESS_TRAFFIC_UNSPECIFIED").to_owned(),
            default_url_disabled: found.default_uri_disabled,
            iap: found.iap_enabled,
            invoker_iam_disabled: found.invoker_iam_disabled,
            custom_audiences: found.custom_audiences,
            urls,
            reconciling: found.reconciling,
        })
    }

    /// The project's own allow policy, by the Resource Manager (`resourcemanager.projects.getIamPolicy`). Reached at the Cloud
    /// Run endpoint where that is not Google's, as emulators have everything in one place.
    ///
    /// # Errors
    /// The fault of the one call that this makes.
    pub async fn project_policy(&self, project: &str) -> Result<Policy, Fault> {
        let body = serde_json::json!({"options": {"requestedPolicyVersion": 3}});
        let path = format!("v3/projects/{project}:getIamPolicy");
        let answer = self.ask(Side::ResourceManager, &path, Some(&body)).await?;
        serde_json::from_value(answer)
            .map_err(|e| Fault::new(FaultClass::Unexpected, format!("the project's policy is not as documented: {e}")))
    }

    /// Asks another of Google's APIs, which no reconciling needs: a GET, or a POST where there is a body. Reached at the
    /// Cloud Run endpoint where that is not Google's, as emulators have everything in one place.
    ///
    /// # Errors
    /// The fault of the one call that this makes.
    pub async fn ask(
        &self,
        side: Side,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value, Fault> {
        let own = self.options.endpoint.trim_end_matches('/');
        let base = if own == DEFAULT_ENDPOINT { side.endpoint() } else { own };
        let url = format!("{base}/{path}");
        let request = match body {
            Some(body) => self.http.post(url).json(body),
            None => self.http.get(url),
        };
        let response = request.headers(self.headers().await?).send().await.map_err(from_reqwest)?;
        let (code, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(from_reqwest)?;
        if !code.is_success() {
            return Err(from_body(code.as_u16(), &headers, &body));
        }
        serde_json::from_slice(&body)
            .map_err(|e| Fault::new(FaultClass::Unexpected, format!("the answer is not as documented: {e}")))
    }

    /// Credentials and the project that pays.
    async fn headers(&self) -> Result<http::HeaderMap, Fault> {
        let credentials = |e: &dyn std::fmt::Display| Fault::new(FaultClass::Credentials, e.to_string());
        let mut headers = match self.options.credentials.headers(http::Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => data,
            Ok(CacheableResource::NotModified) => http::HeaderMap::new(),
            Err(e) => return Err(credentials(&e)),
        };
        if let Some(quota) = &self.options.quota_project {
            headers.insert("x-goog-user-project", quota.parse().map_err(|e| credentials(&e))?);
        }
        Ok(headers)
    }

    /// One page of `GET /v1/projects/P/locations/-/services`.
    async fn page_of_all_regions(&self, project: &str, token: &str) -> Result<(Listing, String), Fault> {
        let headers = self.headers().await?;
        let url = format!("{}/v1/projects/{project}/locations/-/services", self.options.endpoint.trim_end_matches('/'));
        let limit = PAGE_SIZE.to_string();
        let mut query = vec![("limit", limit.as_str())];
        if !token.is_empty() {
            query.push(("continue", token));
        }
        let response = self.http.get(url).query(&query).headers(headers).send().await.map_err(from_reqwest)?;
        let (code, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(from_reqwest)?;
        if !code.is_success() {
            return Err(from_body(code.as_u16(), &headers, &body));
        }
        read_page(project, &body)
    }
}

/// Reads one page of the v1 list of services; the second part is the token of the next page, empty at the end.
///
/// # Errors
/// [`FaultClass::Unexpected`] if any entry is not as documented: a service that is skipped would look deleted.
pub fn read_page(project: &str, body: &[u8]) -> Result<(Listing, String), Fault> {
    let page: v1::ServiceList = serde_json::from_slice(body)
        .map_err(|e| Fault::new(FaultClass::Unexpected, format!("the list of services is not as documented: {e}")))?;
    let mut services = Vec::with_capacity(page.items.len());
    for item in page.items {
        services.push(item.into_info(project).ok_or_else(|| {
            Fault::new(FaultClass::Unexpected, "the list of services has an entry without a proper name or region")
        })?);
    }
    Ok((Listing { services, unreachable: page.unreachable.into_iter().collect() }, page.metadata.r#continue))
}

impl CloudRun for Google {
    async fn read_policy(&self, service: &RunService, _: Lane) -> Result<Policy, Fault> {
        let options = google_cloud_iam_v1::model::GetPolicyOptions::new().set_requested_policy_version(3);
        let mut request = self.client.get_iam_policy().set_resource(service.resource_name()).set_options(options);
        if let Some(quota) = &self.options.quota_project {
            request = request.with_quota_project(quota.clone());
        }
        from_wire(&request.send().await.map_err(|e| from_sdk(&e))?)
    }

    async fn write_policy(&self, service: &RunService, policy: &Policy, _: Lane) -> Result<Policy, Fault> {
        if policy.etag.is_empty() {
            // Without an etag IAM overwrites whatever is there.
            return Err(Fault::new(
                FaultClass::Unexpected,
                "the policy was read without an etag, so nothing is written",
            ));
        }
        let mut request =
            self.client.set_iam_policy().set_resource(service.resource_name()).set_policy(to_wire(policy)?);
        if let Some(quota) = &self.options.quota_project {
            request = request.with_quota_project(quota.clone());
        }
        from_wire(&request.send().await.map_err(|e| from_sdk(&e))?)
    }

    async fn list_services(&self, project: &str, scope: &Scope, _: Lane) -> Result<Listing, Fault> {
        let mut listing = Listing::default();
        match scope {
            Scope::Region(region) => {
                let mut request = self
                    .client
                    .list_services()
                    .set_parent(format!("projects/{project}/locations/{region}"))
                    .set_page_size(PAGE_SIZE);
                if let Some(quota) = &self.options.quota_project {
                    request = request.with_quota_project(quota.clone());
                }
                let mut pages = request.by_page();
                while let Some(page) = pages.next().await {
                    let page = page.map_err(|e| from_sdk(&e))?;
                    listing.unreachable.extend(page.unreachable);
                    for s in page.services {
                        let Some(name) = s.name.rsplit('/').next().filter(|n| !n.is_empty()) else { continue };
                        listing.services.push(ServiceInfo {
                            service: RunService::new(project, region.clone(), name),
                            uid: s.uid.as_str().into(),
                            labels: s.labels.into_iter().collect(),
                            invoker_iam_disabled: s.invoker_iam_disabled,
                        });
                    }
                }
            }
            Scope::AllRegions => {
                let mut token = String::new();
                for _ in 0..MAX_PAGES {
                    let (page, next) = self.page_of_all_regions(project, &token).await?;
                    listing.unreachable.extend(page.unreachable);
                    listing.services.extend(page.services);
                    token = next;
                    if token.is_empty() {
                        return Ok(listing);
                    }
                }
                return Err(Fault::new(
                    FaultClass::Unexpected,
                    format!("the list of services has over {MAX_PAGES} pages"),
                ));
            }
        }
        Ok(listing)
    }
}

/// The Knative form in which v1 lists services.
mod v1 {
    use super::{BTreeMap, Deserialize, RunService, ServiceInfo};

    #[derive(Deserialize)]
    pub struct ServiceList {
        #[serde(default)]
        pub items: Vec<Item>,
        #[serde(default)]
        pub metadata: ListMeta,
        #[serde(default)]
        pub unreachable: Vec<String>,
    }
    #[derive(Deserialize, Default)]
    pub struct ListMeta {
        #[serde(default)]
        pub r#continue: String,
    }
    #[derive(Deserialize)]
    pub struct Item {
        metadata: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        name: String,
        #[serde(default)]
        uid: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }

    /// Carries the region of a service in v1.
    const LOCATION: &str = "cloud.googleapis.com/location";

    impl Item {
        pub fn into_info(self, project: &str) -> Option<ServiceInfo> {
            let Meta { name, uid, mut labels, annotations } = self.metadata;
            let region = labels.remove(LOCATION)?;
            // They become part of URLs.
            let is_name =
                |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !is_name(&name) || !is_name(&region) {
                return None;
            }
            Some(ServiceInfo {
                service: RunService::new(project, region, name),
                uid: uid.into(),
                labels,
                invoker_iam_disabled: annotations
                    .get("run.googleapis.com/invoker-iam-disabled")
                    .is_some_and(|v| v.eq_ignore_ascii_case("true")),
            })
        }
    }
}

/// SDK model to ours. Both follow the same JSON form, and both keep unknown fields.
fn from_wire(policy: &google_cloud_iam_v1::model::Policy) -> Result<Policy, Fault> {
    serde_json::to_value(policy)
        .and_then(serde_json::from_value)
        .map_err(|e| Fault::new(FaultClass::Unexpected, format!("the policy is not as documented: {e}")))
}

fn to_wire(policy: &Policy) -> Result<google_cloud_iam_v1::model::Policy, Fault> {
    serde_json::to_value(policy)
        .and_then(serde_json::from_value)
        .map_err(|e| Fault::new(FaultClass::Unexpected, format!("the policy cannot be written as JSON: {e}")))
}

fn from_reqwest(e: reqwest::Error) -> Fault {
    let class = if e.is_timeout() { FaultClass::Timeout } else { FaultClass::Unavailable };
    Fault::new(class, chain(&e))
}

/// An error with its causes, so that "error sending request" says why.
fn chain(e: &dyn std::error::Error) -> String {
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
fn from_sdk(error: &Error) -> Fault {
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

/// Body of a v1 answer to [`Fault`].
fn from_body(http: u16, headers: &http::HeaderMap, body: &[u8]) -> Fault {
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

    #[test]
    fn a_policy_keeps_unknown_fields_through_the_sdk() {
        let document = serde_json::json!({"version": 3, "etag": "BwX2QrNt1Ow=", "newField": {"a": 1}, "auditConfigs": [{"service": "allServices", "auditLogConfigs": [{"logType": 1, "exemptedMembers": ["user:a@b.co"]}]}],
            "bindings": [{"role": "roles/run.invoker", "members": ["user:A@b.co"], "bindingId": "x",
                "condition": {"title": "t", "expression": "e", "extra": true}}]});
        let sdk: google_cloud_iam_v1::model::Policy = serde_json::from_value(document).unwrap();
        let ours = from_wire(&sdk).unwrap();
        assert_eq!(to_wire(&ours).unwrap(), sdk);
        assert_eq!(ours.bindings[0].extra["bindingId"], "x");
        assert_eq!(ours.extra["newField"]["a"], 1);
    }
}
