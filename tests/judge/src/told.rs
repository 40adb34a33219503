//! What a replica of the operator was told, and when. A replica answers for what reached it, not
//! for what is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    declared::{Declared, Guardrail, Policy, Service},
    requests,
};

/// Kinds that decide what may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Policy,
    /// What is granted by it counts as a policy.
    Request,
    Guardrail,
    Account,
}

/// Something that reached a replica.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// An object by a watch; gone or there.
    Object {
        kind: Kind,
        object: Value,
        gone: bool,
    },
    /// A page of a list.
    List {
        kind: Kind,
        items: Vec<Value>,
        first: bool,
        last: bool,
    },
    /// A whole listing of a project's services, of one region or of all.
    Services {
        project: String,
        region: Option<String>,
        found: Vec<(Service, BTreeMap<String, String>)>,
        unreachable: Vec<String>,
    },
}

/// One state of what a replica knows.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub declared: Declared,
    /// Project and region that a listing has shown since the replica began; `-` for all.
    pub listed: BTreeSet<(String, String)>,
    unreachable: BTreeSet<(String, String)>,
    lists: BTreeMap<Kind, BTreeSet<(String, String)>>,
}

fn key(o: &Value) -> (String, String) {
    let text = |k: &str| o["metadata"][k].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn place(kind: Kind, object: &Value) -> (String, String) {
    match kind {
        Kind::Request => requests::place(object),
        _ => key(object),
    }
}

impl Known {
    pub fn knows_services(&self, service: &Service) -> bool {
        let place = (service.0.clone(), service.1.clone());
        self.listed.contains(&place)
            || (self.listed.contains(&(service.0.clone(), "-".into()))
                && !self.unreachable.contains(&place))
    }

    /// Takes in an object as it is in the store.
    pub fn put(&mut self, kind: Kind, object: &Value) {
        let key = key(object);
        match kind {
            Kind::Request => {
                let place = requests::place(object);
                match requests::as_policy(object) {
                    Some(policy) => drop(self.declared.policies.insert(place, Some(policy))),
                    None => drop(self.declared.policies.remove(&place)),
                }
            }
            Kind::Policy => {
                let read = Policy::read(object);
                self.declared.policies.insert(key, read);
            }
            Kind::Guardrail => {
                let read = Guardrail::read(object);
                if read.readable {
                    self.declared.spoiled.remove(&key.1);
                } else {
                    self.declared.spoiled.insert(key.1.clone());
                }
                // What cannot be read any more holds on as it was.
                if read.readable || !self.declared.guardrails.contains_key(&key.1) {
                    self.declared.guardrails.insert(key.1, read);
                }
            }
            Kind::Account => {
                let email =
                    object["metadata"]["annotations"]["iam.gke.io/gcp-service-account"].as_str();
                match email {
                    Some(email) => self.declared.accounts.insert(key, email.to_owned()),
                    None => self.declared.accounts.remove(&key),
                };
            }
        }
    }

    /// An object is gone; that of a request by its place among policies.
    pub fn drop(&mut self, kind: Kind, key: &(String, String)) {
        match kind {
            Kind::Policy | Kind::Request => drop(self.declared.policies.remove(key)),
            Kind::Guardrail => {
                self.declared.spoiled.remove(&key.1);
                self.declared.guardrails.remove(&key.1);
            }
            Kind::Account => drop(self.declared.accounts.remove(key)),
        }
    }

    fn take(&mut self, delivery: &Delivery) {
        match delivery {
            Delivery::Object {
                kind,
                object,
                gone: true,
            } => self.drop(*kind, &place(*kind, object)),
            Delivery::Object {
                kind,
                object,
                gone: false,
            } => self.put(*kind, object),
            Delivery::List {
                kind,
                items,
                first,
                last,
            } => {
                if *first {
                    self.lists.insert(*kind, BTreeSet::new());
                }
                for object in items {
                    self.put(*kind, object);
                    let seen = self.lists.entry(*kind).or_default();
                    seen.insert(place(*kind, object));
                }
                if *last {
                    let seen = self.lists.remove(kind).unwrap_or_default();
                    let d = &mut self.declared;
                    match kind {
                        // Neither list says anything of the other kind.
                        Kind::Policy => d
                            .policies
                            .retain(|k, _| requests::is_request(&k.1) || seen.contains(k)),
                        Kind::Request => d
                            .policies
                            .retain(|k, _| !requests::is_request(&k.1) || seen.contains(k)),
                        Kind::Guardrail => {
                            d.guardrails.retain(|k, _| seen.iter().any(|s| s.1 == *k));
                            d.spoiled.retain(|k| seen.iter().any(|s| s.1 == *k));
                        }
                        Kind::Account => d.accounts.retain(|k, _| seen.contains(k)),
                    }
                }
            }
            Delivery::Services {
                project,
                region,
                found,
                unreachable,
            } => {
                let covers = |s: &Service| {
                    s.0 == *project
                        && region.as_ref().is_none_or(|r| *r == s.1)
                        && !unreachable.contains(&s.1)
                };
                self.declared.labels.retain(|s, _| !covers(s));
                self.declared.labels.extend(found.iter().cloned());
                self.listed.insert((
                    project.clone(),
                    region.clone().unwrap_or_else(|| "-".into()),
                ));
                if region.is_none() {
                    self.unreachable
                        .retain(|(p, r)| p != project || unreachable.contains(r));
                    self.unreachable
                        .extend(unreachable.iter().map(|r| (project.clone(), r.clone())));
                }
            }
        }
    }
}

/// What one replica knows, exact to the moment.
#[derive(Clone, Debug, Default)]
pub struct Told {
    settled: Arc<Known>,
    fresh: Vec<(Timestamp, Delivery)>,
}

impl Told {
    pub fn take(&mut self, at: Timestamp, delivery: Delivery) {
        self.fresh.push((at, delivery));
    }

    /// What was known before `at`, and what was known with all that came in at `at`: whichever
    /// excuses a write counts.
    pub fn states(&mut self, at: Timestamp) -> [Arc<Known>; 2] {
        let ready = self.fresh.iter().take_while(|(t, _)| *t < at).count();
        let known = Arc::make_mut(&mut self.settled);
        for (_, delivery) in self.fresh.drain(..ready) {
            known.take(&delivery);
        }
        let mut all = Arc::clone(&self.settled);
        if !self.fresh.is_empty() {
            let known = Arc::make_mut(&mut all);
            self.fresh.iter().for_each(|(_, d)| known.take(d));
        }
        [Arc::clone(&self.settled), all]
    }
}
