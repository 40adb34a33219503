//! All that the plan for one service depends on besides what is real, brought into one place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{Index, approvals::without_used};
use crate::{
    iam::{Grant, Policy, RunService, ServiceInfo},
    intent::Agreement,
    ledger::{Ledger, Pending, Version},
    plan::{
        Input, Owners, PolicyOnService, RejectedMember, Settings, UnansweredSelectors, claim,
        drift::Memory,
    },
};

/// What is known of a service without asking anybody: what is declared, what the ledger has, what
/// is remembered.
#[derive(Clone, Debug)]
pub struct PlanInputs {
    pub service: RunService,
    pub claims: Vec<PolicyOnService>,
    pub ledger: Ledger,
    /// The ledger's version in the store; none: there is no object.
    pub version: Option<Version>,
    pub owners: BTreeMap<Grant, Owners>,
    /// Hashes of plans that somebody agreed to on the ledger.
    pub approvals: BTreeSet<Arc<str>>,
    pub info: Option<ServiceInfo>,
    pub unanswered: UnansweredSelectors,
    /// From when on there is something to reconcile that no policy asks for:
    /// [`Index::left_behind_from`].
    pub left_behind_from: Option<Timestamp>,
    /// Members that IAM refused lately, not to be tried now.
    pub rejected: BTreeMap<Grant, RejectedMember>,
    /// Members that IAM refused, to be tried again, each by itself.
    pub alone: BTreeMap<Grant, RejectedMember>,
    /// Those, and whoever else it may be that IAM refuses.
    pub doubtful: BTreeSet<Grant>,
    pub drift: Memory,
    pub circuit_open: bool,
}

impl PlanInputs {
    /// Reads the index; what only a running operator remembers is empty.
    pub fn of(service: &RunService, index: &Index) -> Self {
        let (ledger, version) = index.ledgers().get(service);
        Self {
            service: service.clone(),
            claims: index.words(service),
            ledger,
            version,
            owners: index.owners(service),
            approvals: index.ledgers().approvals(service).cloned().collect(),
            info: index.info(service).cloned(),
            unanswered: index.unanswered(service),
            left_behind_from: index.left_behind_from(service),
            rejected: BTreeMap::new(),
            alone: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            drift: Memory::default(),
            circuit_open: false,
        }
    }

    /// Whether there is a reason to read the live policy at all. A suspended policy asks for
    /// nothing, reading included, and so does one whose guardrails cannot be read.
    pub fn needs_read(&self, now: Timestamp) -> bool {
        let asks = |c: &PolicyOnService| {
            (!c.intent.suspended || c.intent.deleting) && c.terms.frozen().is_none()
        };
        self.is_left_behind(now) || self.claims.iter().any(asks)
    }

    /// Whether there is something to reconcile that no policy asks for.
    pub fn is_left_behind(&self, now: Timestamp) -> bool {
        self.left_behind_from.is_some_and(|from| from <= now)
    }

    /// A write that was open was made, or may have been: its approvals work no more.
    pub fn spend(&mut self, pending: &Pending) {
        self.ledger.spend(pending);
        let used = &self.ledger.used;
        for claim in &mut self.claims {
            without_used(&mut claim.agreements, used);
            let is_on_record = |a: &Arc<Agreement>| used.iter().any(|u| u.approval == *a.digest);
            claim.reached_by = claim.reached_by.take().filter(|a| !is_on_record(a));
        }
    }

    /// Stands for exactly these declarations.
    pub fn fingerprint(&self) -> u64 {
        claim::fingerprint(&self.claims)
    }

    /// The input of a plan.
    pub fn input<'a>(
        &'a self,
        live: &'a Policy,
        settings: &'a Settings,
        now: Timestamp,
    ) -> Input<'a> {
        Input {
            service: &self.service,
            claims: &self.claims,
            live,
            ledger: &self.owners,
            unanswered: &self.unanswered,
            rejected: &self.rejected,
            doubtful: &self.doubtful,
            approvals: &self.approvals,
            memory: &self.drift,
            circuit_open: self.circuit_open,
            settings,
            now,
        }
    }
}
