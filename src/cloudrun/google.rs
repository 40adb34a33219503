//! [`CloudRun`] over Google's official SDK, and over v1 REST for the one call that the SDK does not
//! have.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use google_cloud_auth::credentials::{CacheableResource, Credentials};
use google_cloud_gax::{options::RequestOptionsBuilder as _, retry_policy::NeverRetry};
use google_cloud_run_v2::{client::Services, model::ListServicesResponse};

use super::{
    CloudRun, Listing, Scope,
    assets::AssetSearch,
    errors::{About, chain, foreign, from_body, from_reqwest, from_sdk},
    list_v1::read_page,
};
use crate::{
    fault::{Fault, FaultClass},
    iam::{Ingress, Policy, RunService, ServiceInfo, ServiceSettings},
    inherited::SearchScope,
};

/// Where Google's global endpoint is.
pub const DEFAULT_ENDPOINT: &str = "https://run.googleapis.com";

/// Another API of Google.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    ResourceManager,
    PubSub,
    Logging,
    Iap,
    Asset,
    PolicyTroubleshooter,
}

impl Side {
    fn endpoint(self) -> &'static str {
        match self {
            Self::ResourceManager => "https://cloudresourcemanager.googleapis.com",
            Self::PubSub => "https://pubsub.googleapis.com",
            Self::Logging => "https://logging.googleapis.com",
            Self::Iap => "https://iap.googleapis.com",
            Self::Asset => "https://cloudasset.googleapis.com",
            Self::PolicyTroubleshooter => "https://policytroubleshooter.googleapis.com",
        }
    }

    /// Where it is reached by somebody who reaches Cloud Run at `own`: there too where that is not
    /// Google's, as emulators have everything in one place.
    pub fn endpoint_beside(self, own: &str) -> &str {
        match own.trim_end_matches('/') {
            DEFAULT_ENDPOINT => self.endpoint(),
            own => own,
        }
    }
}

const PAGE_SIZE: i32 = 500;

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
    google_cloud_auth::credentials::Builder::default()
        .build()
        .map_err(|e| {
            Fault::new(
                FaultClass::Credentials,
                format!("no Application Default Credentials ({})", chain(&e)),
            )
        })
}

/// The same, or those of a service account that they may act as.
///
/// # Errors
/// [`FaultClass::Credentials`] if there are none. That they may not act as the account shows at the
/// first call.
pub fn credentials_as(anonymous: bool, account: Option<&str>) -> Result<Credentials, Fault> {
    let own = credentials(anonymous)?;
    let Some(account) = account.filter(|_| !anonymous) else {
        return Ok(own);
    };
    google_cloud_auth::credentials::impersonated::Builder::from_source_credentials(own)
        .with_target_principal(account)
        .build()
        .map_err(|e| Fault::new(FaultClass::Credentials, chain(&e)))
}

/// Plain HTTP to Google, for what the SDK has no call for.
pub trait Rest: std::fmt::Debug + Send + Sync {
    /// Sends one request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there was no answer.
    fn send(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> BoxFuture<'_, Result<http::Response<bytes::Bytes>, Fault>>;
}

impl Rest for reqwest::Client {
    fn send(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> BoxFuture<'_, Result<http::Response<bytes::Bytes>, Fault>> {
        Box::pin(async move {
            let request = reqwest::Request::try_from(request).map_err(from_reqwest)?;
            let response = self.execute(request).await.map_err(from_reqwest)?;
            let mut answer = http::Response::builder().status(response.status());
            if let Some(headers) = answer.headers_mut() {
                headers.clone_from(response.headers());
            }
            let body = response.bytes().await.map_err(from_reqwest)?;
            answer
                .body(body)
                .map_err(|e| Fault::new(FaultClass::Unexpected, e.to_string()))
        })
    }
}

/// The real Cloud Run.
#[derive(Clone, Debug)]
pub struct Google {
    client: Services,
    rest: Arc<dyn Rest>,
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
        let rest = reqwest::Client::builder()
            .timeout(options.timeout)
            // Google's APIs never send anybody elsewhere: whoever answers so is not Google, and what
            // stands there is no answer of Google's.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| Fault::new(FaultClass::Unavailable, e.to_string()))?;
        Ok(Self::over(client, Arc::new(rest), options))
    }

    /// Over clients that are there already: a test brings its own.
    pub fn over(client: Services, rest: Arc<dyn Rest>, options: Options) -> Self {
        Self {
            client,
            rest,
            options,
        }
    }

    /// What a service says of itself that decides whether a request gets through.
    ///
    /// # Errors
    /// The fault of the one call that this makes (`run.services.get`).
    pub async fn front(&self, service: &RunService) -> Result<ServiceSettings, Fault> {
        let mut request = self.client.get_service().set_name(service.resource_name());
        if let Some(quota) = &self.options.quota_project {
            request = request.with_quota_project(quota.clone());
        }
        let found = request
            .send()
            .await
            .map_err(|e| from_sdk(&e, About::Service(service)))?;
        let mut urls: Vec<String> = found.urls;
        if !found.uri.is_empty() && !urls.contains(&found.uri) {
            urls.insert(0, found.uri);
        }
        Ok(ServiceSettings {
            ingress: found
                .ingress
                .name()
                .unwrap_or("INGRESS_TRAFFIC_UNSPECIFIED")
                .to_owned(),
            default_url_disabled: found.default_uri_disabled,
            iap: found.iap_enabled,
            invoker_iam_disabled: found.invoker_iam_disabled,
            custom_audiences: found.custom_audiences,
            urls,
            tag_urls: found
                .traffic_statuses
                .into_iter()
                .filter(|t| !t.tag.is_empty())
                .map(|t| t.uri)
                .collect(),
            labels: found.labels.into_iter().collect(),
            reconciling: found.reconciling,
        })
    }

    /// Who may pass Identity-Aware Proxy in front of a service: by the policies of its resources for
    /// the service (`iap.webServices.getIamPolicy`), its region (`iap.webTypes.getIamPolicy`) and its
    /// project (`iap.web.getIamPolicy`). What is granted above holds below.
    ///
    /// Source: gcloud's `iap web get-iam-policy --resource-type=cloud-run`.
    ///
    /// # Errors
    /// The fault of each of the three calls that this makes.
    pub async fn iap_policies(&self, service: &RunService) -> [Result<Policy, Fault>; 3] {
        let project = format!("v1/projects/{}/iap_web", service.project);
        let region = format!("{project}/cloud_run-{}", service.region);
        let own = format!("{region}/services/{}:getIamPolicy", service.name);
        let (region, project) = (
            format!("{region}:getIamPolicy"),
            format!("{project}:getIamPolicy"),
        );
        let at = |path| self.policy_at(Side::Iap, path);
        let (own, region, project) = tokio::join!(at(&own), at(&region), at(&project));
        [own, region, project]
    }

    /// The project's own allow policy, by the Resource Manager
    /// (`resourcemanager.projects.getIamPolicy`). Reached at the Cloud Run endpoint where that is
    /// not Google's, as emulators have everything in one place.
    ///
    /// # Errors
    /// The fault of the one call that this makes.
    pub async fn project_policy(&self, project: &str) -> Result<Policy, Fault> {
        let path = format!("v3/projects/{project}:getIamPolicy");
        self.policy_at(Side::ResourceManager, &path).await
    }

    /// The allow policy of a folder (`resourcemanager.folders.getIamPolicy`) or an organization
    /// (`resourcemanager.organizations.getIamPolicy`), by its name: `folders/11`.
    ///
    /// # Errors
    /// The fault of the one call that this makes.
    pub async fn policy_above(&self, name: &str) -> Result<Policy, Fault> {
        let path = format!("v3/{name}:getIamPolicy");
        self.policy_at(Side::ResourceManager, &path).await
    }

    /// An allow policy of another API than Cloud Run's.
    async fn policy_at(&self, side: Side, path: &str) -> Result<Policy, Fault> {
        let body = serde_json::json!({"options": {"requestedPolicyVersion": 3}});
        let answer = self.ask(side, path, Some(&body)).await?;
        serde_json::from_value(answer).map_err(|e| {
            Fault::new(
                FaultClass::Unexpected,
                format!("the policy is not as documented: {e}"),
            )
        })
    }

    /// Asks another of Google's APIs, which no reconciling needs: a GET, or a POST where there is a
    /// body.
    ///
    /// # Errors
    /// The fault of the one call that this makes.
    pub async fn ask(
        &self,
        side: Side,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value, Fault> {
        let base = side.endpoint_beside(&self.options.endpoint);
        let body = body.map(serde_json::Value::to_string);
        let last = path.rsplit('/').next().unwrap_or_default();
        // The verb is behind the last colon; the id of a domain's project has one of its own.
        let name = last.rsplit_once(':').map_or(last, |(name, _)| name);
        let body = self
            .call(&format!("{base}/{path}"), body, About::Resource(name))
            .await?;
        serde_json::from_slice(&body).map_err(|e| {
            Fault::new(
                FaultClass::Unexpected,
                format!("the answer is not as documented: {e}"),
            )
        })
    }

    /// One REST call: a POST where there is a body.
    async fn call(
        &self,
        url: &str,
        body: Option<String>,
        about: About<'_>,
    ) -> Result<bytes::Bytes, Fault> {
        let unexpected = |e: http::Error| Fault::new(FaultClass::Unexpected, e.to_string());
        let mut request = http::Request::get(url);
        if body.is_some() {
            request = http::Request::post(url).header("content-type", "application/json");
        }
        let mut request = request
            .body(body.unwrap_or_default().into_bytes())
            .map_err(unexpected)?;
        request.headers_mut().extend(self.headers().await?);
        let response = self.rest.send(request).await?;
        if !response.status().is_success() {
            return Err(from_body(
                response.status().as_u16(),
                response.headers(),
                response.body(),
                about,
            ));
        }
        Ok(response.into_body())
    }

    /// Gets a token, as every call does before it is sent.
    ///
    /// # Errors
    /// [`FaultClass::Credentials`], or [`FaultClass::Timeout`] where nobody answers.
    pub async fn authenticate(&self) -> Result<(), Fault> {
        match tokio::time::timeout(self.options.timeout, self.headers()).await {
            Ok(headers) => headers.map(|_| ()),
            Err(_) => Err(Fault::new(
                FaultClass::Timeout,
                "nobody answered the request for a token",
            )),
        }
    }

    /// Credentials and the project that pays.
    async fn headers(&self) -> Result<http::HeaderMap, Fault> {
        let credentials = |e: &dyn std::error::Error| Fault::new(FaultClass::Credentials, chain(e));
        let mut headers = match self
            .options
            .credentials
            .headers(http::Extensions::new())
            .await
        {
            Ok(CacheableResource::New { data, .. }) => data,
            Ok(CacheableResource::NotModified) => http::HeaderMap::new(),
            Err(e) => return Err(credentials(&e)),
        };
        if let Some(quota) = &self.options.quota_project {
            headers.insert(
                "x-goog-user-project",
                quota.parse().map_err(|e| credentials(&e))?,
            );
        }
        Ok(headers)
    }

    /// One page of `GET /v1/projects/P/locations/-/services`.
    async fn page_of_all_regions(
        &self,
        project: &str,
        token: &str,
    ) -> Result<(Listing, String), Fault> {
        let base = self.options.endpoint.trim_end_matches('/');
        let mut url =
            format!("{base}/v1/projects/{project}/locations/-/services?limit={PAGE_SIZE}");
        if !token.is_empty() {
            let token: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
            url.push_str(&format!("&continue={token}"));
        }
        let body = self.call(&url, None, About::Project(project)).await?;
        read_page(project, &body)
    }
}

impl AssetSearch for Google {
    fn search_page<'a>(
        &'a self,
        scope: &'a SearchScope,
        page: &'a str,
    ) -> BoxFuture<'a, Result<serde_json::Value, Fault>> {
        Box::pin(async move {
            let path = crate::inherited::search_path(scope, page);
            self.ask(Side::Asset, &path, None).await
        })
    }

    fn ancestry<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<serde_json::Value, Fault>> {
        Box::pin(async move {
            let path = format!("v1/projects/{project}:getAncestry");
            let body = serde_json::json!({});
            self.ask(Side::ResourceManager, &path, Some(&body)).await
        })
    }
}

impl CloudRun for Google {
    async fn read_policy(&self, service: &RunService) -> Result<Policy, Fault> {
        let options =
            google_cloud_iam_v1::model::GetPolicyOptions::new().set_requested_policy_version(3);
        let mut request = self
            .client
            .get_iam_policy()
            .set_resource(service.resource_name())
            .set_options(options);
        if let Some(quota) = &self.options.quota_project {
            request = request.with_quota_project(quota.clone());
        }
        from_wire(
            &request
                .send()
                .await
                .map_err(|e| from_sdk(&e, About::Service(service)))?,
        )
    }

    async fn write_policy(&self, service: &RunService, policy: &Policy) -> Result<Policy, Fault> {
        if policy.etag.is_empty() {
            // Without an etag IAM overwrites whatever is there.
            return Err(Fault::new(
                FaultClass::Unexpected,
                "the policy was read without an etag, so nothing is written",
            ));
        }
        let mut request = self
            .client
            .set_iam_policy()
            .set_resource(service.resource_name())
            .set_policy(to_wire(policy)?);
        if let Some(quota) = &self.options.quota_project {
            request = request.with_quota_project(quota.clone());
        }
        from_wire(
            &request
                .send()
                .await
                .map_err(|e| from_sdk(&e, About::Service(service)))?,
        )
    }

    async fn list_page(
        &self,
        project: &str,
        scope: &Scope,
        page: &str,
    ) -> Result<(Listing, String), Fault> {
        let Scope::Region(region) = scope else {
            return self.page_of_all_regions(project, page).await;
        };
        let mut request = self
            .client
            .list_services()
            .set_parent(format!("projects/{project}/locations/{region}"))
            .set_page_size(PAGE_SIZE)
            .set_page_token(page);
        if let Some(quota) = &self.options.quota_project {
            request = request.with_quota_project(quota.clone());
        }
        let answer = request
            .send()
            .await
            .map_err(|e| from_sdk(&e, About::Project(project)))?;
        if answer.services.is_empty() && !is_empty_page(&answer) {
            return Err(foreign("the list of services has fields that it never has"));
        }
        let mut listing = Listing {
            unreachable: answer.unreachable.into_iter().collect(),
            ..Listing::default()
        };
        for s in answer.services {
            // One that is skipped would look deleted.
            let name = name_in(&s.name, region).ok_or_else(|| {
                Fault::new(
                    FaultClass::Unexpected,
                    "the list of services has an entry without a name, or of another region",
                )
            })?;
            listing.services.push(ServiceInfo {
                service: RunService::new(project, region.clone(), name),
                uid: s.uid.as_str().into(),
                labels: Arc::new(s.labels.into_iter().collect()),
                invoker_iam_disabled: s.invoker_iam_disabled,
                ingress: Ingress::from_v2(s.ingress.name().unwrap_or_default()),
                iap: s.iap_enabled,
            });
        }
        Ok((listing, answer.next_page_token))
    }
}

/// Whether a page without services says that there are none. Every field is optional, so any JSON
/// would.
fn is_empty_page(page: &ListServicesResponse) -> bool {
    let known = ["nextPageToken", "unreachable", "services"];
    let page = serde_json::to_value(page).unwrap_or_default();
    page.as_object()
        .is_some_and(|fields| fields.keys().all(|k| known.contains(&k.as_str())))
}

/// The service's name in `projects/PROJECT/locations/REGION/services/NAME`. The project may be its
/// number.
fn name_in<'a>(resource: &'a str, region: &str) -> Option<&'a str> {
    let parts: Vec<&str> = resource.split('/').collect();
    match parts.as_slice() {
        ["projects", _, "locations", r, "services", name] if *r == region && !name.is_empty() => {
            Some(name)
        }
        _ => None,
    }
}

/// SDK model to ours. Both follow the same JSON form, and both keep unknown fields.
fn from_wire(policy: &google_cloud_iam_v1::model::Policy) -> Result<Policy, Fault> {
    serde_json::to_value(policy)
        .and_then(serde_json::from_value)
        .map_err(|e| {
            Fault::new(
                FaultClass::Unexpected,
                format!("the policy is not as documented: {e}"),
            )
        })
}

fn to_wire(policy: &Policy) -> Result<google_cloud_iam_v1::model::Policy, Fault> {
    serde_json::to_value(policy)
        .and_then(serde_json::from_value)
        .map_err(|e| {
            Fault::new(
                FaultClass::Unexpected,
                format!("the policy cannot be written as JSON: {e}"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

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
