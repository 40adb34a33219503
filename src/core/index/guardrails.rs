//! Guardrails, and what each namespace has to satisfy.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::intent::{Guardrail, Limits, Terms};

/// Every guardrail, and the terms of every namespace that somebody asked for.
#[derive(Debug, Default)]
pub struct Guardrails {
    rails: BTreeMap<Arc<str>, Arc<Guardrail>>,
    terms: HashMap<Arc<str>, Arc<Terms>>,
    limits: Limits,
    listing: Option<HashSet<Arc<str>>>,
    /// A list in progress has changed something.
    changed: bool,
    /// A list was complete.
    listed: bool,
}

impl Guardrails {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// What a namespace has to satisfy.
    pub fn terms(&mut self, namespace: &Arc<str>) -> Arc<Terms> {
        let terms = self.terms.entry(namespace.clone());
        terms
            .or_insert_with(|| Arc::new(Terms::of(namespace, self.rails.values(), self.limits)))
            .clone()
    }

    /// The same, without following them from now on.
    pub fn terms_of(&self, namespace: &str) -> Arc<Terms> {
        let known = self.terms.get(namespace).cloned();
        known.unwrap_or_else(|| Terms::of(namespace, self.rails.values(), self.limits).into())
    }

    /// No policy is left in a namespace.
    pub fn forget(&mut self, namespace: &str) {
        self.terms.remove(namespace);
    }

    /// Takes in a guardrail as it is in the store. Returns the namespaces whose terms change; while
    /// a list comes in, they follow at its end.
    pub fn apply(&mut self, guardrail: Guardrail) -> BTreeSet<Arc<str>> {
        let name = guardrail.name.clone();
        if let Some(seen) = &mut self.listing {
            seen.insert(name.clone());
        }
        if self
            .rails
            .get(&name)
            .is_some_and(|known| **known == guardrail)
        {
            return BTreeSet::new();
        }
        self.rails.insert(name, Arc::new(guardrail));
        self.settle()
    }

    /// Takes in a guardrail that cannot be read: what was known of it holds on, and if nothing was,
    /// nobody knows what it forbids.
    pub fn apply_unreadable(&mut self, name: &str, why: String) -> BTreeSet<Arc<str>> {
        match self.rails.get(name).map(|known| known.name.clone()) {
            Some(known) => {
                if let Some(seen) = &mut self.listing {
                    seen.insert(known);
                }
                BTreeSet::new()
            }
            None => self.apply(Guardrail::unreadable(name.into(), why)),
        }
    }

    pub fn remove(&mut self, name: &str) -> BTreeSet<Arc<str>> {
        match self.rails.remove(name) {
            Some(_) => self.settle(),
            None => BTreeSet::new(),
        }
    }

    /// Whether a list was complete, so that what is not known is not there.
    pub fn are_listed(&self) -> bool {
        self.listed
    }

    pub fn begin_list(&mut self) {
        self.listing = Some(HashSet::new());
        self.changed = false;
    }

    /// The list is complete: what is not in it is gone. Returns the namespaces whose terms change.
    pub fn end_list(&mut self) -> BTreeSet<Arc<str>> {
        self.listed = true;
        if let Some(seen) = self.listing.take() {
            let before = self.rails.len();
            self.rails.retain(|name, _| seen.contains(name));
            self.changed |= self.rails.len() != before;
        }
        if std::mem::take(&mut self.changed) {
            self.settle()
        } else {
            BTreeSet::new()
        }
    }

    /// Makes the terms anew; the namespaces where they are others now.
    fn settle(&mut self) -> BTreeSet<Arc<str>> {
        if self.listing.is_some() {
            self.changed = true;
            return BTreeSet::new();
        }
        let (rails, limits) = (&self.rails, self.limits);
        let mut changed = BTreeSet::new();
        for (namespace, terms) in &mut self.terms {
            let next = Terms::of(namespace, rails.values(), limits);
            if next != **terms {
                *terms = Arc::new(next);
                changed.insert(namespace.clone());
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rail(name: &str, spec: serde_json::Value) -> Guardrail {
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": name}, "spec": spec});
        Guardrail::from_object(&serde_json::from_value(object).unwrap())
    }
    fn asked() -> Guardrails {
        let mut g = Guardrails::new(Limits::default());
        g.terms(&"a".into());
        g.terms(&"b".into());
        g
    }
    fn names(list: &[&str]) -> BTreeSet<Arc<str>> {
        list.iter().map(|n| Arc::from(*n)).collect()
    }

    #[test]
    fn only_namespaces_whose_terms_change_are_named() {
        let mut g = asked();
        assert_eq!(
            g.apply(rail(
                "r",
                json!({"namespaces": ["a"], "projects": ["acme-*"]})
            )),
            names(&["a"])
        );
        assert!(
            g.apply(rail(
                "r",
                json!({"namespaces": ["a"], "projects": ["acme-*"]})
            ))
            .is_empty(),
            "nothing new"
        );
        assert_eq!(
            g.apply(rail("r", json!({"projects": ["acme-*"]}))),
            names(&["b"])
        );
        assert_eq!(g.remove("r"), names(&["a", "b"]));
        assert!(g.remove("r").is_empty());
    }

    #[test]
    fn a_relist_that_shows_nothing_new_changes_nothing() {
        let mut g = asked();
        g.apply(rail("r", json!({"projects": ["acme-*"]})));
        g.begin_list();
        assert!(
            g.apply(rail("r", json!({"projects": ["acme-*"]})))
                .is_empty()
        );
        assert!(g.end_list().is_empty());
        g.begin_list();
        assert_eq!(g.end_list(), names(&["a", "b"]), "it went in between");
    }

    #[test]
    fn what_cannot_be_read_any_more_holds_on_and_what_never_could_freezes() {
        let mut g = asked();
        g.apply(rail("r", json!({"projects": ["acme-*"]})));
        assert!(g.apply_unreadable("r", "broken".into()).is_empty());
        assert!(g.terms(&"a".into()).refuse_project("other").is_some());
        g.begin_list();
        g.apply_unreadable("r", "broken".into());
        assert!(g.end_list().is_empty(), "it is still there");
        assert_eq!(g.apply_unreadable("s", "broken".into()), names(&["a", "b"]));
        assert!(g.terms(&"a".into()).frozen().is_some());
    }
}
