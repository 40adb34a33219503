//! The one door to Cloud Run.

pub mod assets;
pub mod errors;
pub mod fence;
pub mod google;
pub mod limit;
pub mod list_v1;

use std::{future::Future, time::Duration};

pub use crate::index::{Listing, Scope};
use crate::{
    fault::{Fault, FaultClass},
    iam::{Policy, RunService},
};

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

/// Cloud Run, as far as this operator uses it.
///
/// # Contract
/// Every failure is classified. No call is repeated inside: whoever calls decides about that, with
/// what it knows of etags and of what else waits. A call may be dropped at any time.
pub trait CloudRun: Send + Sync + 'static {
    /// Reads the allow policy in version 3, etag included.
    fn read_policy(
        &self,
        service: &RunService,
    ) -> impl Future<Output = Result<Policy, Fault>> + Send;

    /// Replaces the allow policy, if it still has the etag that `policy` carries;
    /// [`crate::fault::FaultClass::Conflict`] if not. After a timeout or a reset the write may have
    /// happened: read to know.
    fn write_policy(
        &self,
        service: &RunService,
        policy: &Policy,
    ) -> impl Future<Output = Result<Policy, Fault>> + Send;

    /// Lists one page of services; the second part names the next page, empty at the end.
    fn list_page(
        &self,
        project: &str,
        scope: &Scope,
        page: &str,
    ) -> impl Future<Output = Result<(Listing, String), Fault>> + Send;
}

/// A list that never ends would go on for ever; Cloud Run allows 1,000 services for each project
/// and region.
pub const MAX_PAGES: usize = 500;

/// Lists services through all pages.
///
/// # Errors
/// Those of [`CloudRun::list_page`], and [`FaultClass::Unexpected`] for a list without an end.
pub async fn list_services(
    cloud: &impl CloudRun,
    project: &str,
    scope: &Scope,
) -> Result<Listing, Fault> {
    let (mut whole, mut page) = (Listing::default(), String::new());
    for _ in 0..MAX_PAGES {
        let (part, next) = cloud.list_page(project, scope, &page).await?;
        whole.services.extend(part.services);
        whole.unreachable.extend(part.unreachable);
        if next.is_empty() {
            return Ok(whole);
        }
        page = next;
    }
    Err(endless())
}

/// A list with more pages than there can be.
pub fn endless() -> Fault {
    Fault::new(
        FaultClass::Unexpected,
        format!("the list has over {MAX_PAGES} pages"),
    )
}

/// Hears of every call; implemented by the metrics.
pub trait Observer: Send + Sync + 'static {
    /// A call ended. `code` is `ok` or the label of the fault's class.
    fn called(&self, method: Method, code: &'static str, took: Duration);
}
