//! Google's SDK over a [`Cable`]: the operator's own client for Cloud Run, error classification
//! included, with the world in place of the network.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::{HeaderMap, Method, Uri};
use bytes::Bytes;
use futures::future::BoxFuture;
use google_cloud_gax::{
    error::{Error, rpc::Status},
    options::RequestOptions,
    response::Response,
};
use google_cloud_iam_v1::model::{GetIamPolicyRequest, Policy, SetIamPolicyRequest};
use google_cloud_run_v2::model::{ListServicesRequest, ListServicesResponse};
use judge::Delivery;
use run_invoker::{
    cloudrun::google::{Google, Options, Rest},
    fault::{Fault, FaultClass},
};
use sandbox::Call;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    net::{Answer, Broken, CLOUD_TIMEOUT, Cable, Carried},
    story::Side,
};

/// By project and region: what was found so far, and regions that did not answer.
type Pages = HashMap<(String, String), (Found, Vec<String>)>;
type Found = Vec<(judge::declared::Service, BTreeMap<String, String>)>;

/// The SDK's calls, carried by a cable.
pub struct Sdk {
    cable: Arc<Cable>,
    /// Pages of lists that are not complete yet.
    pages: Mutex<Pages>,
}

impl std::fmt::Debug for Sdk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sdk")
    }
}

/// The operator's client over a cable.
pub fn google(cable: Arc<Cable>) -> Google {
    let sdk = Arc::new(Sdk {
        cable,
        pages: Mutex::default(),
    });
    let options = Options {
        endpoint: "https://run.googleapis.com".into(),
        credentials: google_cloud_auth::credentials::anonymous::Builder::new().build(),
        timeout: CLOUD_TIMEOUT,
        quota_project: None,
    };
    Google::over(
        google_cloud_run_v2::client::Services::from_stub::<Sdk>(sdk.clone()),
        sdk,
        options,
    )
}

enum Lack {
    Broken,
    Timeout,
}

impl Sdk {
    async fn send(&self, method: Method, target: &str, body: Bytes) -> Result<Answer, Lack> {
        let uri: Uri = target.parse().map_err(|_| Lack::Broken)?;
        let mut headers = HeaderMap::new();
        headers.insert(
            "authorization",
            axum::http::HeaderValue::from_static("Bearer as:operator@acme.com"),
        );
        headers.insert(
            "user-agent",
            axum::http::HeaderValue::from_static("run-invoker"),
        );
        let call = Call::new(method, &uri, headers, body);
        match tokio::time::timeout(CLOUD_TIMEOUT, self.cable.carry(Side::Run, call)).await {
            Ok(Ok(Carried::Whole(answer))) => Ok(answer),
            Ok(Ok(Carried::Watch(_)) | Err(Broken)) => Err(Lack::Broken),
            Err(_) => Err(Lack::Timeout),
        }
    }

    /// One call as the SDK makes it, and its errors as the SDK builds them.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Value,
    ) -> Result<T, Error> {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let answer = self
            .send(method, target, body)
            .await
            .map_err(|lack| match lack {
                Lack::Broken => Error::io("connection reset"),
                Lack::Timeout => Error::timeout("deadline exceeded"),
            })?;
        if !(200..300).contains(&answer.status) {
            return Err(match Status::try_from(&answer.body) {
                Ok(status) => Error::service_with_http_metadata(
                    status,
                    Some(answer.status),
                    Some(answer.headers),
                ),
                Err(_) => Error::http(answer.status, answer.headers, answer.body),
            });
        }
        serde_json::from_slice(&answer.body).map_err(Error::deser)
    }

    /// A page of a list came in; the last one completes what the replica knows.
    fn page(
        &self,
        project: &str,
        region: &str,
        first: bool,
        found: Found,
        unreachable: Vec<String>,
        last: bool,
    ) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (project.to_owned(), region.to_owned());
        if first {
            pages.remove(&key);
        }
        let entry = pages.entry(key.clone()).or_default();
        entry.0.extend(found);
        entry.1.extend(unreachable);
        if !last {
            return;
        }
        let (found, unreachable) = pages.remove(&key).unwrap_or_default();
        let region = (region != "-").then(|| region.to_owned());
        let delivery = Delivery::Services {
            project: project.to_owned(),
            region,
            found,
            unreachable,
        };
        let net = &self.cable.net;
        net.lock()
            .judge
            .tell(self.cable.replica, net.now(), delivery);
    }
}

impl google_cloud_run_v2::stub::Services for Sdk {
    async fn get_iam_policy(
        &self,
        req: GetIamPolicyRequest,
        _: RequestOptions,
    ) -> Result<Response<Policy>, Error> {
        let version = req.options.map_or(0, |o| o.requested_policy_version);
        let target = format!(
            "/v2/{}:getIamPolicy?options.requestedPolicyVersion={version}",
            req.resource
        );
        let policy: Value = self.call(Method::GET, &target, Value::Null).await?;
        let net = &self.cable.net;
        let mut place = req
            .resource
            .split('/')
            .skip(1)
            .step_by(2)
            .map(str::to_owned);
        if let (Some(p), Some(r), Some(s)) = (place.next(), place.next(), place.next()) {
            net.lock()
                .judge
                .read(self.cable.replica, net.now(), &(p, r, s), &policy);
        }
        serde_json::from_value(policy)
            .map(Response::from)
            .map_err(Error::deser)
    }

    async fn set_iam_policy(
        &self,
        req: SetIamPolicyRequest,
        _: RequestOptions,
    ) -> Result<Response<Policy>, Error> {
        let policy = serde_json::to_value(req.policy).map_err(Error::ser)?;
        let body = json!({"policy": policy, "updateMask": "bindings,etag"});
        self.call(
            Method::POST,
            &format!("/v2/{}:setIamPolicy", req.resource),
            body,
        )
        .await
        .map(Response::from)
    }

    async fn list_services(
        &self,
        req: ListServicesRequest,
        _: RequestOptions,
    ) -> Result<Response<ListServicesResponse>, Error> {
        let target = format!(
            "/v2/{}/services?pageSize={}&pageToken={}",
            req.parent, req.page_size, req.page_token
        );
        let page: ListServicesResponse = self.call(Method::GET, &target, Value::Null).await?;
        let mut place = req.parent.split('/');
        let (project, region) = (
            place.nth(1).unwrap_or_default(),
            place.nth(1).unwrap_or_default(),
        );
        let found = page.services.iter().map(|s| {
            let name = s.name.rsplit('/').next().unwrap_or_default().to_owned();
            (
                (project.to_owned(), region.to_owned(), name),
                s.labels.clone().into_iter().collect(),
            )
        });
        let (first, last) = (req.page_token.is_empty(), page.next_page_token.is_empty());
        self.page(
            project,
            region,
            first,
            found.collect(),
            page.unreachable.clone(),
            last,
        );
        Ok(Response::from(page))
    }
}

impl Rest for Sdk {
    fn send(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> BoxFuture<'_, Result<http::Response<Bytes>, Fault>> {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let target = parts
                .uri
                .path_and_query()
                .map_or("/", |p| p.as_str())
                .to_owned();
            let answer = self
                .send(parts.method, &target, Bytes::from(body))
                .await
                .map_err(|lack| match lack {
                    Lack::Broken => Fault::new(FaultClass::Unavailable, "connection reset"),
                    Lack::Timeout => Fault::new(FaultClass::Timeout, "deadline exceeded"),
                })?;
            if answer.status == 200
                && let Ok(page) = serde_json::from_slice::<Value>(&answer.body)
            {
                self.page_v1(&target, &page);
            }
            let mut response = http::Response::builder().status(answer.status);
            if let Some(headers) = response.headers_mut() {
                *headers = answer.headers;
            }
            response
                .body(answer.body)
                .map_err(|e| Fault::new(FaultClass::Unexpected, e.to_string()))
        })
    }
}

impl Sdk {
    /// The Knative form of a list over all regions.
    fn page_v1(&self, target: &str, page: &Value) {
        let Some((project, _)) = target
            .strip_prefix("/v1/projects/")
            .and_then(|t| t.split_once("/locations/-/services"))
        else {
            return;
        };
        let found = page["items"].as_array().into_iter().flatten().map(|i| {
            let labels = i["metadata"]["labels"].as_object().into_iter().flatten();
            let mut labels: BTreeMap<String, String> = labels
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                .collect();
            let region = labels
                .remove("cloud.googleapis.com/location")
                .unwrap_or_default();
            let name = i["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            ((project.to_owned(), region, name), labels)
        });
        let unreachable = page["unreachable"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned);
        let last = page["metadata"]["continue"]
            .as_str()
            .is_none_or(str::is_empty);
        self.page(
            project,
            "-",
            !target.contains("continue="),
            found.collect(),
            unreachable.collect(),
            last,
        );
    }
}
