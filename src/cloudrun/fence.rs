//! [`CloudRun`] behind a last question: may this process still write for the project? It stands
//! behind the limiter, so that a process that was stopped for a while lets no write out on stale
//! belief.

use std::sync::Arc;

use super::{CloudRun, Listing, Scope};
use crate::{
    fault::{Fault, FaultClass},
    iam::{Policy, RunService},
};

/// Whether writes for a project may begin now.
pub type Permit = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A client that writes only with a permit.
pub struct Fenced<C> {
    inner: C,
    permit: Permit,
}

impl<C> Fenced<C> {
    pub fn new(inner: C, permit: Permit) -> Self {
        Self { inner, permit }
    }
}

/// The permit is over; nothing was sent.
pub fn refused() -> Fault {
    Fault::new(
        FaultClass::LeaseLost,
        "another replica may be at work on this project; nothing was written",
    )
}

impl<C: CloudRun> CloudRun for Fenced<C> {
    async fn read_policy(&self, service: &RunService) -> Result<Policy, Fault> {
        self.inner.read_policy(service).await
    }

    async fn write_policy(&self, service: &RunService, policy: &Policy) -> Result<Policy, Fault> {
        if !(self.permit)(&service.project) {
            return Err(refused());
        }
        self.inner.write_policy(service, policy).await
    }

    async fn list_page(
        &self,
        project: &str,
        scope: &Scope,
        page: &str,
    ) -> Result<(Listing, String), Fault> {
        self.inner.list_page(project, scope, page).await
    }
}
