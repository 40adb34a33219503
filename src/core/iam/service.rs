//! Cloud Run services as this operator sees them: a name, and the few facts that matter for access.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// A Cloud Run service by name. It is the unit of work: policies that name the same service meet
/// here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunService {
    pub project: Arc<str>,
    pub region: Arc<str>,
    pub name: Arc<str>,
}

impl RunService {
    pub fn new(
        project: impl Into<Arc<str>>,
        region: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            project: project.into(),
            region: region.into(),
            name: name.into(),
        }
    }

    /// `projects/P/locations/R/services/S`, as the Admin API wants it.
    pub fn resource_name(&self) -> String {
        format!(
            "projects/{}/locations/{}/services/{}",
            self.project, self.region, self.name
        )
    }
}

impl fmt::Display for RunService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.project, self.region, self.name)
    }
}
impl fmt::Debug for RunService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a listing says of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    pub service: RunService,
    /// Changes when a service is deleted and made again under its name.
    pub uid: Arc<str>,
    /// The user's labels, for selectors.
    pub labels: BTreeMap<String, String>,
    /// The invoker check is switched off: IAM is not asked, anyone who passes ingress may call.
    pub invoker_iam_disabled: bool,
}

/// What stands before a service, besides IAM.
///
/// Source: <https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services>.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSettings {
    /// `INGRESS_TRAFFIC_ALL`, `INGRESS_TRAFFIC_INTERNAL_ONLY`,
    /// `INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER`, `INGRESS_TRAFFIC_NONE`.
    pub ingress: String,
    /// The `run.app` URLs are switched off.
    pub default_url_disabled: bool,
    /// Identity-Aware Proxy stands in front.
    pub iap: bool,
    /// IAM is not asked: anyone who passes ingress may call.
    pub invoker_iam_disabled: bool,
    /// Audiences of tokens that are accepted besides the URLs.
    pub custom_audiences: Vec<String>,
    pub urls: Vec<String>,
    /// URLs of tags, each of which leads to one revision.
    pub tag_urls: Vec<String>,
    /// The user's labels, for selectors.
    pub labels: BTreeMap<String, String>,
    /// A change of the service is under way.
    pub reconciling: bool,
}
