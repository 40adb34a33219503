//! Decides whether a run-invoker operator kept its word.
//!
//! It knows `product.md` and nothing of the operator: what is declared it reads from the objects
//! that people wrote, what is real from the allow policies of the world, what a replica could know
//! from what was delivered to it. The rules have the names that docs/testing.md gives them: S for
//! what must never happen, L for what must come about once everybody rests.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod agreed;
mod bypassed;
pub mod declared;
pub mod iam;
mod liveness;
mod records;
mod requests;
mod safety;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use serde_json::Value;

use declared::{Policy, Service};
use iam::Grant;
pub use liveness::{End, Quiet};
pub use safety::Asked;
pub use told::{Delivery, Kind, Known, Told};

/// What the operator was started with, as far as its promises depend on it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub max_removals: usize,
    pub public: bool,
    /// Corrections in so many seconds that open the circuit breaker.
    pub breaker: (usize, i64),
    /// Pattern of members that are never removed because nobody listed them.
    pub protected: String,
    /// Leases by which replicas agree begin with this.
    pub lease: String,
    /// Seconds between periodic looks where audit events tell of changes.
    pub event_interval: Option<i64>,
    /// Seconds that IAM may take to act on a change everywhere.
    pub propagation: i64,
    /// Grants above the services are searched for, in the whole organization.
    pub inherited: bool,
}

impl Settings {
    /// Whether access of a member is never taken away.
    fn protects(&self, member: &str) -> bool {
        declared::matches(&self.protected.to_lowercase(), &member.to_lowercase())
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name of the rule, such as `S2`.
    pub rule: &'static str,
    pub at: Timestamp,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.rule, self.what)
    }
}

/// A service as it really is.
#[derive(Clone, Debug, Default)]
pub struct Real {
    pub policy: Value,
    pub labels: BTreeMap<String, String>,
}

/// A write to IAM that the world accepted.
#[derive(Clone, Debug)]
pub struct Write {
    pub replica: usize,
    /// Who the replica was when it sent the write: it may have died and come back since.
    pub identity: String,
    pub service: Service,
    /// What the replica had been told when it sent the write.
    pub known: [std::sync::Arc<Known>; 2],
    pub issued: Timestamp,
    pub arrived: Timestamp,
    pub before: Value,
    pub after: Value,
}

/// Who changed something in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Replica(usize),
    Somebody,
}

/// A Lease as it was last stored.
#[derive(Clone, Debug)]
struct Held {
    holder: String,
    /// Until when nobody else may take it.
    until: Timestamp,
}

/// The judge of one world.
pub struct Judge {
    settings: Settings,
    told: BTreeMap<usize, Told>,
    identities: BTreeMap<usize, String>,
    /// The store as it is.
    pub store: Known,
    statuses: BTreeMap<(String, String), Value>,
    leases: BTreeMap<String, Held>,
    records: records::Records,
    /// Everything that an enforced policy ever listed on a service, with the policies.
    listed: BTreeMap<(Service, Grant), BTreeSet<String>>,
    /// What the operator granted on a service since it was deployed.
    made: BTreeMap<Service, BTreeSet<Grant>>,
    /// Uids of policies that let go of their grants on purpose.
    let_go: BTreeSet<String>,
    /// Hash of a held plan, and the policy that was shown it (none: the ledger), to the service and
    /// those who would lose access as far as that was shown.
    published: BTreeMap<(String, Option<Place>), (Service, BTreeSet<String>)>,
    /// InvokerApprovals that somebody created.
    agreements: Vec<agreed::Agreement>,
    /// Those that are there now.
    approvals: BTreeMap<Place, agreed::Agreement>,
    /// Requests, by their place among policies.
    requests: BTreeMap<Place, Value>,
    /// Uids of requests that were ever granted.
    granted_requests: BTreeSet<String>,
    /// Plan of a request that its status showed, to the uid of the request.
    requested: BTreeMap<(Place, String), String>,
    /// Hashes that somebody agreed to on a ledger.
    agreed_on_ledgers: BTreeSet<String>,
    /// Services on which a removal waits for approval although no policy is left, as the ledger
    /// says.
    held_alone: BTreeSet<Service>,
    /// When the operator last wrote to IAM.
    last_write: Option<Timestamp>,
    /// When it last wrote each service.
    wrote: BTreeMap<Service, Timestamp>,
    /// When somebody outside last changed a grant, and what the operator undid since.
    fights: BTreeMap<(Service, Grant), Vec<Timestamp>>,
    outside: BTreeMap<(Service, Grant), Outside>,
    /// What the operator last read of a service: which replica, when and what.
    read: BTreeMap<Service, (usize, Timestamp, BTreeSet<Grant>)>,
    /// When a status last told of a service.
    told_of: BTreeMap<Service, Timestamp>,
    /// When a declaration was last changed.
    declared_at: Timestamp,
    corrections: Vec<Timestamp>,
    pub violations: Vec<Violation>,
}

/// A change of somebody outside to what the operator had seen as declared.
#[derive(Clone, Copy, Debug)]
struct Outside {
    at: Timestamp,
    seen_by: usize,
    seen_at: Timestamp,
}

/// Namespace and name.
type Place = (String, String);

impl Judge {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            told: BTreeMap::new(),
            identities: BTreeMap::new(),
            store: Known::default(),
            statuses: BTreeMap::new(),
            leases: BTreeMap::new(),
            records: records::Records::default(),
            listed: BTreeMap::new(),
            made: BTreeMap::new(),
            let_go: BTreeSet::new(),
            published: BTreeMap::new(),
            agreements: Vec::new(),
            approvals: BTreeMap::new(),
            requests: BTreeMap::new(),
            requested: BTreeMap::new(),
            granted_requests: BTreeSet::new(),
            agreed_on_ledgers: BTreeSet::new(),
            held_alone: BTreeSet::new(),
            last_write: None,
            wrote: BTreeMap::new(),
            fights: BTreeMap::new(),
            outside: BTreeMap::new(),
            read: BTreeMap::new(),
            told_of: BTreeMap::new(),
            declared_at: Timestamp::MIN,
            corrections: Vec::new(),
            violations: Vec::new(),
        }
    }

    fn accuse(&mut self, rule: &'static str, at: Timestamp, what: String) {
        self.violations.push(Violation { rule, at, what });
    }

    /// A replica begins, and knows nothing.
    pub fn begins(&mut self, replica: usize, identity: &str) {
        // What it saw and told nobody is lost.
        let told_of = &self.told_of;
        let was_told = |s: &Service, at: Timestamp| told_of.get(s).is_some_and(|told| at < *told);
        self.read
            .retain(|s, (by, at, _)| *by != replica || was_told(s, *at));
        self.outside
            .retain(|(s, _), o| o.seen_by != replica || was_told(s, o.seen_at));
        self.told.insert(replica, Told::default());
        self.identities.insert(replica, identity.to_owned());
    }

    /// Who a replica is now.
    pub fn identity(&self, replica: usize) -> String {
        self.identities.get(&replica).cloned().unwrap_or_default()
    }

    /// Something reached a replica.
    pub fn tell(&mut self, replica: usize, at: Timestamp, delivery: Delivery) {
        self.told.entry(replica).or_default().take(at, delivery);
    }

    /// What a replica knows at this moment.
    pub fn known(&mut self, replica: usize, at: Timestamp) -> [std::sync::Arc<Known>; 2] {
        self.told.entry(replica).or_default().states(at)
    }

    /// An object changed in the store. `plural` is the name of its kind in paths.
    pub fn stored(&mut self, at: Timestamp, by: By, plural: &str, object: &Value, gone: bool) {
        let text = |k: &str| {
            object["metadata"][k]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let key = (text("namespace"), text("name"));
        let kind = match plural {
            "invokerpolicies" => Kind::Policy,
            "invokerguardrails" => Kind::Guardrail,
            "serviceaccounts" => Kind::Account,
            "invokerapprovals" => {
                if by == By::Somebody && !gone {
                    self.note_agreement(key.clone(), object);
                }
                if gone {
                    self.approvals.remove(&key);
                } else {
                    let agreement = agreed::Agreement::of(key.clone(), object);
                    self.approvals.insert(key, agreement);
                }
                return;
            }
            "invokeraccessrequests" => {
                let replica = match by {
                    By::Replica(replica) => Some(replica),
                    By::Somebody => None,
                };
                return self.request_stored(at, replica, object, gone);
            }
            "leases" => {
                // Somebody closes the circuit breaker by deleting its Lease: it counts anew.
                if gone && by == By::Somebody && key.1.ends_with("-circuit") {
                    self.corrections.clear();
                }
                return self.lease(at, &key.1, object, gone);
            }
            "invokerchanges" | "invokerledgers" => {
                self.records.stored(by, plural, object, gone);
                if plural == "invokerledgers" {
                    self.note_held(object, gone);
                    let spec = &object["spec"];
                    let forgets = records::only_uses(spec) && spec["writtenAt"].is_null();
                    if gone || forgets {
                        // Nothing is left there that the operator answers for: what it took away
                        // is nothing that anybody who comes later waits for.
                        let spec =
                            |k: &str| object["spec"][k].as_str().unwrap_or_default().to_owned();
                        let service = (spec("project"), spec("region"), spec("service"));
                        self.wrote.remove(&service);
                    }
                }
                if let Some(found) = records::before(object) {
                    self.store.declared.records.insert(key, found);
                }
                return;
            }
            _ => return,
        };
        if kind == Kind::Policy {
            self.policy_stored(at, by, &key, object, gone);
        } else {
            self.declared_at = at;
        }
        if gone {
            self.store.drop(kind, &key);
        } else {
            self.store.put(kind, object);
        }
        self.note_listed();
    }

    fn policy_stored(
        &mut self,
        at: Timestamp,
        by: By,
        key: &(String, String),
        object: &Value,
        gone: bool,
    ) {
        let before = self.store.declared.policies.get(key).cloned().flatten();
        let now = Policy::read(object);
        if gone {
            let last = now.or(before);
            // Retain says so; a finalizer that somebody else took off says so too.
            let by_hand = by == By::Somebody && last.as_ref().is_some_and(|p| p.deleting);
            if let Some(p) = last.filter(|p| p.retain || by_hand) {
                self.let_go.insert(p.uid);
            }
            self.statuses.remove(key);
            self.declared_at = at;
            return;
        }
        if let (Some(b), Some(n)) = (&before, &now)
            && by == By::Somebody
            && b.uid == n.uid
            && b.finalizer
            && !n.finalizer
        {
            self.let_go.insert(n.uid.clone());
        }
        let same = before.as_ref().is_some_and(|b| {
            now.as_ref().is_some_and(|n| {
                (b.generation, &b.uid, b.deleting, &b.approvals, &b.rollbacks)
                    == (n.generation, &n.uid, n.deleting, &n.approvals, &n.rollbacks)
            })
        });
        if !same {
            self.declared_at = at;
        }
        if let By::Replica(_) = by {
            for s in object["status"]["services"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                let service = (
                    text(&object["spec"]["project"]),
                    text(&s["region"]),
                    text(&s["name"]),
                );
                self.told_of.insert(service, at);
            }
            // A change of something else leaves what was said before, and says nothing anew.
            if self.statuses.get(key) != Some(&object["status"]) {
                self.propagated_too_early(at, key, object);
            }
            self.note_approvals(key, object);
        }
        self.statuses.insert(key.clone(), object["status"].clone());
    }

    /// A status asks somebody to agree: what for?
    fn note_approvals(&mut self, key: &(String, String), object: &Value) {
        let project = object["spec"]["project"].as_str().unwrap_or_default();
        for s in object["status"]["services"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let text = |k: &str| s[k].as_str().unwrap_or_default().to_owned();
            let hashes = [text("approve"), text("plan")];
            for hash in hashes.into_iter().filter(|h| !h.is_empty()) {
                let service = (project.to_owned(), text("region"), text("name"));
                let members = s["unexpected"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str);
                let members: BTreeSet<String> = members
                    .map(|m| iam::member_key(m.split(' ').next().unwrap_or(m)))
                    .collect();
                let shown = (hash, Some(key.clone()));
                let entry = self
                    .published
                    .entry(shown)
                    .or_insert_with(|| (service, BTreeSet::new()));
                entry.1.extend(members);
            }
        }
    }

    /// A ledger asks somebody to agree to a removal, or does so no more.
    fn note_held(&mut self, ledger: &Value, gone: bool) {
        let agreed = ledger["metadata"]["annotations"]["run-invoker.dev/approve"]
            .as_str()
            .unwrap_or_default();
        self.agreed_on_ledgers.extend(
            agreed
                .split([',', ' '])
                .filter(|h| !h.is_empty())
                .map(str::to_owned),
        );
        let spec = &ledger["spec"];
        let text = |k: &str| spec[k].as_str().unwrap_or_default().to_owned();
        let service = (text("project"), text("region"), text("service"));
        let Some(hash) = spec["held"]["approve"].as_str().filter(|_| !gone) else {
            self.held_alone.remove(&service);
            return;
        };
        let grants = spec["grants"].as_array().into_iter().flatten();
        let nobodys = grants.filter(|g| g["ownedBy"].as_array().is_none_or(Vec::is_empty));
        let members = nobodys
            .filter_map(|g| g["member"].as_str())
            .map(iam::member_key)
            .collect();
        self.published
            .insert((hash.to_owned(), None), (service.clone(), members));
        self.held_alone.insert(service);
    }

    /// Remembers what enforced policies list now, wherever they mean.
    fn note_listed(&mut self) {
        let declared = &self.store.declared;
        for p in declared.readable().filter(|p| p.acts()) {
            let named = p.targets.iter().filter_map(|t| match t {
                declared::Target::Named { region, name } => {
                    Some((p.project.clone(), region.clone(), name.clone()))
                }
                declared::Target::Selected { .. } => None,
            });
            let selected = declared
                .labels
                .iter()
                .filter(|(s, l)| p.means(s, Some(l)))
                .map(|(s, _)| s.clone());
            for service in named.chain(selected).collect::<BTreeSet<_>>() {
                let back = declared
                    .goes_back_to(p, &service, Timestamp::MIN, true)
                    .unwrap_or_default();
                for grant in declared.spelled_out(p).into_iter().chain(back) {
                    self.listed
                        .entry((service.clone(), grant))
                        .or_default()
                        .insert(p.uid.clone());
                }
            }
        }
    }

    fn lease(&mut self, at: Timestamp, name: &str, object: &Value, gone: bool) {
        let rest = name.strip_prefix(&self.settings.lease);
        // Of the shards, or of the only one; not the marks and not the list of members.
        if rest.is_none_or(|r| !(r.is_empty() || r.contains("-of-") && !r.starts_with("-members")))
        {
            return;
        }
        let spec = &object["spec"];
        let holder = spec["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let seconds = spec["leaseDurationSeconds"].as_i64().unwrap_or(0);
        let until = at + jiff::SignedDuration::from_secs(seconds);
        if gone || holder.is_empty() {
            self.leases.remove(name);
        } else {
            self.leases.insert(name.to_owned(), Held { holder, until });
        }
    }

    /// The operator got an answer to what a service allows.
    pub fn read(&mut self, replica: usize, at: Timestamp, service: &Service, policy: &Value) {
        self.read
            .insert(service.clone(), (replica, at, iam::grants(policy)));
    }

    /// Somebody outside changed what a service allows, or the service itself; `None`: it is gone.
    pub fn outside(
        &mut self,
        at: Timestamp,
        service: &Service,
        before: Option<&Real>,
        after: Option<&Real>,
    ) {
        let grants = |r: Option<&Real>| r.map(|r| iam::grants(&r.policy)).unwrap_or_default();
        let (was, is) = (grants(before), grants(after));
        for grant in was.symmetric_difference(&is) {
            // What the operator has not seen as declared yet, it cannot know to be somebody else's
            // doing.
            let seen = self.read.get(service).filter(|(_, when, grants)| {
                *when >= self.declared_at && grants.contains(grant) == was.contains(grant)
            });
            if let Some((seen_by, seen_at, _)) = seen {
                let outside = Outside {
                    at,
                    seen_by: *seen_by,
                    seen_at: *seen_at,
                };
                self.outside
                    .insert((service.clone(), grant.clone()), outside);
            }
        }
        self.records.others_changed(
            service,
            at,
            was.symmetric_difference(&is).cloned().collect(),
        );
        // What somebody else took away and gave again is theirs.
        let left: Vec<Grant> = was.difference(&is).cloned().collect();
        let made = self.made.entry(service.clone()).or_default();
        made.retain(|g| !left.contains(g));
        match after {
            None => {
                // Another service under the name is another story.
                self.outside.retain(|(s, _), _| s != service);
                self.fights.retain(|(s, _), _| s != service);
                self.made.remove(service);
                self.wrote.remove(service);
                self.store.declared.labels.remove(service);
            }
            Some(real) => {
                self.store
                    .declared
                    .labels
                    .insert(service.clone(), real.labels.clone());
            }
        }
        self.note_listed();
    }
}
