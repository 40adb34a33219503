//! All that the plan for one service needs, brought into one place: what is declared, what is remembered, what is real.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    cloudrun::{CloudRun, Lane},
    cluster::index::{Index, Ledger},
    fault::Fault,
    iam::{Grant, Policy, RunService, ServiceInfo},
    intent::Intent,
    plan::{Aside, Input, Settings, Standing},
};

/// What is known without asking Google.
#[derive(Debug)]
pub struct Declared {
    pub service: RunService,
    pub intents: Vec<Arc<Intent>>,
    pub ledger: Ledger,
    pub standing: BTreeMap<Grant, Standing>,
    pub info: Option<ServiceInfo>,
}

impl Declared {
    /// Reads the caches.
    pub fn of(service: &RunService, index: &Index) -> Self {
        Self {
            service: service.clone(),
            intents: index.intents(service),
            ledger: index.ledger(service),
            standing: index.standing(service),
            info: index.info(service).cloned(),
        }
    }

    /// Whether there is a reason to read reality at all. A suspended policy asks for nothing, reading included.
    pub fn wants_a_look(&self) -> bool {
        self.intents.iter().any(|i| !i.suspended || i.deleting)
            || (self.intents.is_empty() && !self.standing.is_empty())
    }

    /// Runs `f` on the input of a plan.
    pub fn with_input<R>(
        &self,
        live: &Policy,
        aside: &BTreeMap<Grant, Aside>,
        settings: &Settings,
        now: Timestamp,
        f: impl FnOnce(&Input<'_>) -> R,
    ) -> R {
        let intents: Vec<&Intent> = self.intents.iter().map(|i| &**i).collect();
        f(&Input { service: &self.service, intents: &intents, live, ledger: &self.standing, aside, settings, now })
    }
}

/// Reads what is real.
///
/// # Errors
/// The fault of the one call that this makes.
pub async fn reality<C: CloudRun>(cloud: &C, service: &RunService, lane: Lane) -> Result<Policy, Fault> {
    cloud.read_policy(service, lane).await
}
