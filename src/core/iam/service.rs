//! Cloud Run services as this operator sees them: a name, and the few facts that matter for access.

use std::{cmp::Ordering, collections::BTreeMap, fmt, ops::Deref, sync::Arc};

/// A Cloud Run service by name. It is the unit of work: policies that name the same service meet
/// here.
///
/// As small as a pointer, and cheap to clone: every index has it as a key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RunService(Arc<ServiceName>);

/// What a service is named by.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub project: Arc<str>,
    pub region: Arc<str>,
    pub name: Arc<str>,
}

impl Deref for RunService {
    type Target = ServiceName;

    fn deref(&self) -> &ServiceName {
        &self.0
    }
}

impl PartialOrd for RunService {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RunService {
    fn cmp(&self, other: &Self) -> Ordering {
        // Indexes share one copy, so that a search ends here.
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.0.cmp(&other.0)
    }
}

impl RunService {
    pub fn new(
        project: impl Into<Arc<str>>,
        region: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
    ) -> Self {
        Self(Arc::new(ServiceName {
            project: project.into(),
            region: region.into(),
            name: name.into(),
        }))
    }

    /// Whether this is the only copy.
    pub fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.0) == 1
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
    pub labels: Arc<BTreeMap<String, String>>,
    /// The invoker check is switched off: IAM is not asked, anyone who passes ingress may call.
    pub invoker_iam_disabled: bool,
    pub ingress: Ingress,
    /// Identity-Aware Proxy stands in front: who has no account gets its 302, whatever IAM says of
    /// the service.
    pub iap: bool,
}

impl ServiceInfo {
    /// From where somebody without an account could call it, if its IAM let everybody: `None` where
    /// nobody could. A service that no listing has shown yet may be on the internet.
    pub fn open_to(info: Option<&Self>) -> Option<&'static str> {
        let Some(info) = info else {
            return Ingress::default().lets_in();
        };
        info.ingress.lets_in().filter(|_| !info.iap)
    }
}

/// Which network a call has to come from.
///
/// Source: <https://cloud.google.com/run/docs/securing/ingress>.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ingress {
    #[default]
    All,
    /// Google's load balancers, and what `Internal` lets in.
    LoadBalancer,
    /// Networks of the project and its perimeter, and some Google services.
    Internal,
    Nobody,
}

impl Ingress {
    /// From the name of the enum in v2. What is not known is taken for the widest.
    pub fn from_v2(name: &str) -> Self {
        match name {
            "INGRESS_TRAFFIC_INTERNAL_ONLY" => Self::Internal,
            "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER" => Self::LoadBalancer,
            "INGRESS_TRAFFIC_NONE" => Self::Nobody,
            _ => Self::All,
        }
    }

    /// From the annotation `run.googleapis.com/ingress` of v1. What is not known is taken for the
    /// widest.
    pub fn from_v1(annotation: &str) -> Self {
        match annotation {
            "internal" => Self::Internal,
            "internal-and-cloud-load-balancing" => Self::LoadBalancer,
            "none" => Self::Nobody,
            _ => Self::All,
        }
    }

    fn lets_in(self) -> Option<&'static str> {
        match self {
            Self::All => Some("from the internet"),
            Self::LoadBalancer => Some(
                "through a load balancer and from its VPC networks, not directly from the internet",
            ),
            Self::Internal => Some("from its VPC networks, not from the internet"),
            Self::Nobody => None,
        }
    }
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
