//! [`CloudRun`] behind a last question: may this process still write for the project? It stands behind the limiter, so that
//! neither a wait for quota nor a process that was stopped for a while lets a write out on stale belief.

use std::sync::Arc;

use super::{CloudRun, Listing, Priority, Scope};
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
    Fault::new(FaultClass::Kubernetes, "another replica may be at work on this project; nothing was written")
}

impl<C: CloudRun> CloudRun for Fenced<C> {
    async fn read_policy(&self, service: &RunService, lane: Priority) -> Result<Policy, Fault> {
        self.inner.read_policy(service, lane).await
    }

    async fn write_policy(&self, service: &RunService, policy: &Policy, lane: Priority) -> Result<Policy, Fault> {
        if !(self.permit)(&service.project) {
            return Err(refused());
        }
        self.inner.write_policy(service, policy, lane).await
    }

    async fn list_services(&self, project: &str, scope: &Scope, lane: Priority) -> Result<Listing, Fault> {
        self.inner.list_services(project, scope, lane).await
    }
}
