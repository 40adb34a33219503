//! All that the plan for one service needs, brought into one place: what is declared, what is remembered, what is real.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use crate::{
    cloudrun::{CloudRun, Priority},
    cluster::index::{Index, Ledger},
    fault::Fault,
    iam::{Grant, Policy, RunService, ServiceInfo},
    intent::PolicyId,
    plan::{Input, OwnerState, PolicyOnService, RejectedMember, Settings, UnansweredSelectors, drift::Memory},
};

/// What is known without asking Google.
#[derive(Debug)]
pub struct Declared {
    pub service: RunService,
    pub claims: Vec<PolicyOnService>,
    pub ledger: Ledger,
    pub standing: BTreeMap<Grant, OwnerState>,
    /// Hashes of plans that somebody agreed to.
    pub approvals: BTreeSet<Arc<str>>,
    /// The policies that something was granted for here.
    pub owners: BTreeSet<PolicyId>,
    pub info: Option<ServiceInfo>,
    pub unanswered: UnansweredSelectors,
    /// Something that a claim rests on is not known yet.
    pub loading: bool,
}

impl Declared {
    /// Reads the caches.
    pub fn of(service: &RunService, index: &Index) -> Self {
        Self {
            service: service.clone(),
            claims: index.claims(service),
            ledger: index.ledger(service),
            standing: index.standing(service),
            approvals: index.approvals(service),
            owners: index.owners(service),
            info: index.info(service).cloned(),
            unanswered: index.unanswered(service),
            loading: index.is_loading(service),
        }
    }

    /// Whether there is a reason to read reality at all. A suspended policy asks for nothing, reading included, and so
    /// does one whose guardrails cannot be read.
    pub fn wants_a_look(&self) -> bool {
        let asks = |c: &PolicyOnService| (!c.intent.suspended || c.intent.deleting) && c.terms.frozen().is_none();
        // What rests because its policy may not write, or may yet turn out to mean it, is left alone.
        let left_behind = || self.standing.values().any(|s| *s != OwnerState::Passive);
        self.claims.iter().any(asks) || (self.claims.is_empty() && left_behind())
    }
}

/// What a plan depends on besides the declarations and reality.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Members that IAM refused lately.
    pub aside: BTreeMap<Grant, RejectedMember>,
    pub memory: Memory,
    pub circuit_open: bool,
}

impl Declared {
    /// The input of a plan.
    pub fn input<'a>(
        &'a self,
        live: &'a Policy,
        remembered: &'a Remembered,
        settings: &'a Settings,
        now: Timestamp,
    ) -> Input<'a> {
        Input {
            service: &self.service,
            claims: &self.claims,
            live,
            ledger: &self.standing,
            unanswered: &self.unanswered,
            aside: &remembered.aside,
            approvals: &self.approvals,
            memory: &remembered.memory,
            circuit_open: remembered.circuit_open,
            settings,
            now,
        }
    }
}

/// Reads what is real.
///
/// # Errors
/// The fault of the one call that this makes.
pub async fn reality<C: CloudRun>(cloud: &C, service: &RunService, lane: Priority) -> Result<Policy, Fault> {
    cloud.read_policy(service, lane).await
}
