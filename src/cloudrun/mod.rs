//! The one door to Cloud Run.

pub mod errors;
pub mod fence;
pub mod google;
pub mod limit;
pub mod list_v1;

use std::{collections::BTreeSet, future::Future, time::Duration};

use crate::{
    fault::Fault,
    iam::{Policy, RunService, ServiceInfo},
};

/// Why a call is made, in the order in which it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A person declared something and waits.
    Declared,
    /// Something says that reality changed.
    Drift,
    /// Work that failed is taken up again.
    Retry,
    /// The regular look.
    Periodic,
}

impl Priority {
    pub const ALL: [Self; 4] = [Self::Declared, Self::Drift, Self::Retry, Self::Periodic];

    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Drift => "drift",
            Self::Retry => "retry",
            Self::Periodic => "periodic",
        }
    }
}

/// The calls that the operator makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    GetIamPolicy,
    SetIamPolicy,
    ListServices,
}

impl Method {
    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::GetIamPolicy => "GetIamPolicy",
            Self::SetIamPolicy => "SetIamPolicy",
            Self::ListServices => "ListServices",
        }
    }
}

/// Where services are looked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One region, by the v2 API.
    Region(std::sync::Arc<str>),
    /// Every region at once, by the v1 API: v2 has no such call.
    AllRegions,
}

/// The services of a project, as far as they could be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub services: Vec<ServiceInfo>,
    /// Regions that did not answer: what is in them is unknown, not gone.
    pub unreachable: BTreeSet<String>,
}

/// Cloud Run, as far as this operator uses it.
///
/// # Contract
/// Every failure is classified. No call is repeated inside: whoever calls decides about that, with what it knows of
/// etags and of what else waits. A call may be dropped at any time.
pub trait CloudRun: Send + Sync + 'static {
    /// Reads the allow policy in version 3, etag included.
    fn read_policy(&self, service: &RunService, lane: Priority) -> impl Future<Output = Result<Policy, Fault>> + Send;

    /// Replaces the allow policy, if it still has the etag that `policy` carries; [`crate::fault::FaultClass::Conflict`]
    /// if not. After a timeout or a reset the write may have happened: read to know.
    fn write_policy(
        &self,
        service: &RunService,
        policy: &Policy,
        lane: Priority,
    ) -> impl Future<Output = Result<Policy, Fault>> + Send;

    /// Lists services through all pages.
    fn list_services(
        &self,
        project: &str,
        scope: &Scope,
        lane: Priority,
    ) -> impl Future<Output = Result<Listing, Fault>> + Send;
}

/// Hears of every call and every wait for one; implemented by the metrics.
pub trait Observer: Send + Sync + 'static {
    /// A call ended. `code` is `ok` or the label of the fault's class.
    fn called(&self, method: Method, code: &'static str, took: Duration);
    /// A call waited for its turn.
    fn waited(&self, lane: Priority, took: Duration);
}
