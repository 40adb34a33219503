//! One policy's word on one service: what it declares there, under which terms, and what keeps it
//! from being carried out.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use jiff::Timestamp;

use super::effect::HeldPlan;
use crate::{
    iam::{Grant, RunService},
    intent::{Agreement, Declared, Intent, Refusal, Terms},
};

/// Why a policy is not carried out on a service that a selector found for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorImpact {
    /// It is not yet known how many services this discovery changes.
    Counting { unseen: usize },
    /// So many services would change at once that a person has to agree.
    Held {
        services: usize,
        limit: usize,
        /// What the annotation names.
        hash: Arc<str>,
        /// What an InvokerApproval names.
        plan: HeldPlan,
    },
}

/// Access to go back to, in place of what the spec says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// Name of the InvokerChange.
    pub change: Arc<str>,
    /// What was there before it, as if it were declared.
    pub declared: Box<[Declared]>,
}

/// One policy that names a service.
#[derive(Clone, Debug)]
pub struct PolicyOnService {
    pub intent: Arc<Intent>,
    /// What the policy's namespace has to satisfy.
    pub terms: Arc<Terms>,
    pub spread: Option<SelectorImpact>,
    pub rollback: Option<Arc<Rollback>>,
    /// Why this policy is not carried out at all now, in words.
    pub stopped: Option<Arc<str>>,
    /// It means the service no more; something there still belongs to it.
    pub left: bool,
    /// Approvals of plans of the policy that were not used yet, the earliest first.
    pub agreements: Vec<Arc<Agreement>>,
    /// Those that say no to a plan of the policy.
    pub denials: Vec<Arc<Agreement>>,
    /// The approval that lets its selectors reach the service, until that is on record there.
    pub reached_by: Option<Arc<Agreement>>,
}

impl PolicyOnService {
    /// A claim that nothing stands in the way of.
    pub fn new(intent: Arc<Intent>, terms: Arc<Terms>) -> Self {
        Self {
            intent,
            terms,
            spread: None,
            rollback: None,
            stopped: None,
            left: false,
            agreements: Vec::new(),
            denials: Vec::new(),
            reached_by: None,
        }
    }

    /// What is declared here.
    pub fn declared(&self) -> &[Declared] {
        if self.left {
            return &[];
        }
        self.rollback
            .as_ref()
            .map_or(&self.intent.declared, |r| &r.declared)
    }

    /// Whether this policy may change the service now.
    pub fn enforces(&self) -> bool {
        self.intent.enforces() && self.spread.is_none() && self.stopped.is_none()
    }

    /// Whether it is shown what differs, and changes nothing.
    pub fn only_reports(&self) -> bool {
        let is_over = self.intent.deleting || self.left || self.stopped.is_some();
        !self.enforces() && !is_over
    }

    /// Grants that are declared and not over at `now`.
    pub fn grants_at(&self, now: Timestamp) -> impl Iterator<Item = &Grant> {
        self.declared()
            .iter()
            .filter(move |d| d.expires.is_none_or(|e| e > now))
            .map(|d| &d.grant)
    }

    /// Why something declared may not be granted on `service`.
    pub fn refuse(
        &self,
        service: &RunService,
        declared: &Declared,
        now: Timestamp,
    ) -> Option<Refusal> {
        self.terms
            .refuse_service(service)
            .or_else(|| self.terms.refuse_grant(declared, now))
    }

    /// Whether it declares `grant` and may not have it on `service`.
    pub fn is_refused(&self, service: &RunService, grant: &Grant, now: Timestamp) -> bool {
        self.declared()
            .iter()
            .any(|d| d.grant == *grant && self.refuse(service, d, now).is_some())
    }
}

/// Stands for exactly these declarations: two reconciles with one fingerprint were asked for by the
/// same words.
pub fn fingerprint(claims: &[PolicyOnService]) -> u64 {
    let mut hasher = DefaultHasher::new();
    // A policy that leaves declares nothing, and that it is gone at last is no news.
    for claim in claims.iter().filter(|c| !c.intent.deleting && !c.left) {
        let i = &claim.intent;
        (&i.id.uid, i.generation, claim.enforces()).hash(&mut hasher);
        claim.rollback.as_ref().map(|r| &r.change).hash(&mut hasher);
        // The declaration can change without its generation: a ServiceAccount gets another
        // annotation.
        for d in claim.declared() {
            d.grant.principal.key().hash(&mut hasher);
        }
    }
    hasher.finish()
}
