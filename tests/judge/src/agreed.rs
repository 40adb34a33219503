//! Who agreed to what: by annotation, on a ledger, or by an InvokerApproval, which works once.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{Judge, Place, declared::Declared, declared::Service};

/// An InvokerApproval that somebody created.
#[derive(Clone, Debug)]
pub struct Agreement {
    /// Its own namespace and name: one that is made again as it was is no other.
    at: Place,
    spec: Value,
    used: bool,
}

impl Agreement {
    /// The plan, and the policy for which it is.
    fn plan(&self) -> (String, Option<Place>) {
        let text = |k: &str| self.spec[k].as_str().unwrap_or_default().to_owned();
        (text("plan"), Some((self.at.0.clone(), text("policy"))))
    }

    pub(crate) fn of(at: Place, object: &Value) -> Self {
        Self {
            at,
            spec: object["spec"].clone(),
            used: false,
        }
    }

    /// Whether it is about this plan of a request.
    pub(crate) fn is_of_request(&self, place: &Place, plan: &str) -> bool {
        let name = self.spec["request"].as_str().unwrap_or_default();
        self.at.0 == place.0 && place.1 == format!("request/{name}") && self.spec["plan"] == plan
    }

    pub(crate) fn denies(&self) -> bool {
        self.spec["decision"] == "Deny"
    }
}

impl Judge {
    /// Somebody created an approval.
    pub(crate) fn note_agreement(&mut self, at: Place, object: &Value) {
        let agreement = Agreement::of(at, object);
        let is_known = |a: &Agreement| a.at == agreement.at && a.spec == agreement.spec;
        if !self.agreements.iter().any(is_known) {
            self.agreements.push(agreement);
        }
    }

    /// Those who may go from a service by what somebody agreed to there. `by_annotation`: the
    /// annotation on a policy counts.
    pub(crate) fn agreed(
        &self,
        d: &Declared,
        service: &Service,
        by_annotation: bool,
    ) -> BTreeSet<&String> {
        let by_policies = d.readable().filter(|_| by_annotation).flat_map(|p| {
            let place = (p.namespace.clone(), p.name.clone());
            p.approvals
                .iter()
                .map(move |hash| (hash.clone(), Some(place.clone())))
        });
        let by_ledgers = self
            .agreed_on_ledgers
            .iter()
            .map(|hash| (hash.clone(), None));
        // Whoever agrees does so for what was shown there, and for nothing else.
        by_policies
            .chain(by_ledgers)
            .filter_map(|k| self.shown(&k, service))
            .flatten()
            .collect()
    }

    fn shown(&self, key: &(String, Option<Place>), service: &Service) -> Option<&BTreeSet<String>> {
        let (about, members) = self.published.get(key)?;
        (about == service).then_some(members)
    }

    /// Those who may go by approvals that were not used.
    pub(crate) fn approved(&self, service: &Service) -> BTreeSet<&String> {
        let fresh = self.agreements.iter().filter(|a| !a.used && !a.denies());
        fresh
            .filter_map(|a| self.shown(&a.plan(), service))
            .flatten()
            .collect()
    }

    /// A write took these away, and needed approvals for it: every one that is about any of them is
    /// used.
    pub(crate) fn use_approvals(&mut self, service: &Service, taken: &BTreeSet<String>) {
        let about = |j: &Self, a: &Agreement| {
            j.shown(&a.plan(), service)
                .is_some_and(|members| !members.is_disjoint(taken))
        };
        let used: Vec<bool> = self.agreements.iter().map(|a| about(self, a)).collect();
        for (agreement, is_used) in self.agreements.iter_mut().zip(used) {
            agreement.used |= is_used;
        }
    }
}
