//! Records of writes: what stood open before one, and what history says of it in the end.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{By, Write, declared::Service, iam};

/// Every record that the operator made, as it was last stored, by name: one write has one name in
/// all its namespaces.
#[derive(Debug, Default)]
pub struct Records {
    made: BTreeMap<String, Value>,
    /// Open records in ledgers, by service.
    ledgers: BTreeMap<Service, Vec<Value>>,
    /// Services with a ledger.
    remembered: BTreeSet<Service>,
    /// What others changed, and when.
    others: Vec<(Service, Timestamp, BTreeSet<iam::Grant>)>,
}

fn service(spec: &Value) -> Service {
    let text = |k: &str| spec[k].as_str().unwrap_or_default().to_owned();
    (text("project"), text("region"), text("service"))
}

/// Whether a ledger holds nothing but approvals that were used, which outlive what they were for.
pub fn only_uses(ledger: &Value) -> bool {
    let is_bare = |k: &str| ledger[k].as_array().is_none_or(Vec::is_empty);
    let rest = ["grants", "pending", "corrections"];
    !is_bare("usedApprovals") && rest.iter().all(|k| is_bare(k)) && ledger["held"].is_null()
}

/// Grants of a list in a record.
fn grants(list: &Value) -> BTreeSet<iam::Grant> {
    let bindings: Vec<Value> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|g| json!({"role": g["role"], "members": [g["member"]], "condition": g["condition"]}))
        .collect();
    iam::grants(&json!({"bindings": bindings}))
}

/// What was there before the write of a record.
pub fn before(object: &Value) -> Option<(Service, Vec<iam::Grant>)> {
    let spec = object.get("spec").filter(|s| s["before"].is_array())?;
    Some((service(spec), grants(&spec["before"]).into_iter().collect()))
}

/// What was really added and taken away.
fn change_of(w: &Write) -> (BTreeSet<iam::Grant>, BTreeSet<iam::Grant>) {
    let (was, is) = (iam::grants(&w.before), iam::grants(&w.after));
    (
        is.difference(&was).cloned().collect(),
        was.difference(&is).cloned().collect(),
    )
}

/// What a record says was added and taken away.
fn told_by(record: &Value) -> (BTreeSet<iam::Grant>, BTreeSet<iam::Grant>) {
    (
        grants(&record["spec"]["added"]),
        grants(&record["spec"]["removed"]),
    )
}

/// What was written from one version of a policy, and what history says of that.
type Told<'a> = (Vec<&'a Write>, Vec<&'a Value>);

/// The etag of a policy that nobody has ever written, as Cloud Run answers it.
const UNTOUCHED: &str = "ACAB";

impl Records {
    /// Until when a write may still arrive that nobody got an answer to: Google gives no bound; a
    /// quarter of an hour is far beyond any that was seen. Until then it stands open in its ledger.
    pub fn last_arrival(&self) -> impl Iterator<Item = Timestamp> {
        let opened = |record: &Value| record["at"].as_str()?.parse::<Timestamp>().ok();
        let until = |at: Timestamp| at + SignedDuration::from_mins(15);
        self.ledgers
            .values()
            .flatten()
            .filter_map(opened)
            .map(until)
    }

    /// Somebody outside changed these grants.
    pub fn others_changed(
        &mut self,
        service: &Service,
        at: Timestamp,
        changed: BTreeSet<iam::Grant>,
    ) {
        self.others.push((service.clone(), at, changed));
    }

    /// Whether others touched a service since a record was opened; of `grants` one at least, where
    /// some are given.
    fn others_since(&self, record: &Value, grants: Option<&BTreeSet<iam::Grant>>) -> bool {
        let Some(begun) = record["spec"]["at"]
            .as_str()
            .and_then(|t| t.parse::<Timestamp>().ok())
        else {
            return false;
        };
        let of = service(&record["spec"]);
        self.others.iter().any(|(s, at, changed)| {
            *s == of && *at >= begun && grants.is_none_or(|g| !g.is_disjoint(changed))
        })
    }

    pub fn stored(&mut self, by: By, plural: &str, object: &Value, gone: bool) {
        let spec = &object["spec"];
        if plural == "invokerledgers" {
            if gone || only_uses(spec) {
                self.remembered.remove(&service(spec));
            } else {
                self.remembered.insert(service(spec));
            }
            let open = spec["pending"].as_array().cloned().unwrap_or_default();
            if gone || open.is_empty() {
                self.ledgers.remove(&service(spec));
            } else {
                self.ledgers.insert(service(spec), open);
            }
            return;
        }
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let known = self.made.contains_key(&name);
        if gone {
            // One that never came to anything may be taken away again.
            if self
                .made
                .get(&name)
                .is_some_and(|o| o["spec"]["outcome"]["phase"] == "Pending")
            {
                self.made.remove(&name);
            }
        } else if matches!(by, By::Replica(_)) || known {
            self.made.insert(name, object.clone());
        }
    }

    /// Services that there is a ledger of.
    pub fn remembered(&self) -> impl Iterator<Item = &Service> {
        self.remembered.iter()
    }

    /// Whether an open record stands for a write that is planned from `etag`.
    pub fn is_open(&self, of: &Service, etag: &Value) -> bool {
        let pending = |o: &Value| o["spec"]["outcome"]["phase"] == "Pending";
        let fits = |o: &Value| service(&o["spec"]) == *of && o["spec"]["etagBefore"] == *etag;
        self.made.values().any(|o| pending(o) && fits(o))
            || self
                .ledgers
                .get(of)
                .into_iter()
                .flatten()
                .any(|p| p["etagBefore"] == *etag)
    }

    /// What history says that is not so, and what it does not say. `etags` are the versions that
    /// are real now: a write that was planned from one of them and had no answer may still arrive,
    /// and is truly open.
    pub fn lies(&self, writes: &[Write], etags: &BTreeMap<Service, &Value>) -> Vec<String> {
        let mut found = Vec::new();
        for o in self
            .made
            .values()
            .filter(|o| o["spec"]["outcome"]["phase"] == "Pending")
        {
            found.push(format!(
                "the record {} was never closed",
                o["metadata"]["name"]
            ));
        }
        let entries = self
            .ledgers
            .iter()
            .flat_map(|(s, open)| open.iter().map(move |o| (s, o)));
        for (s, open) in
            entries.filter(|(s, o)| etags.get(s).is_none_or(|e| **e != o["etagBefore"]))
        {
            found.push(format!(
                "the ledger of {} still has an open record: {open}",
                s.2
            ));
        }
        let mut by_origin: BTreeMap<(Service, String), Told<'_>> = BTreeMap::new();
        for w in writes {
            let etag = w.before["etag"].as_str().unwrap_or_default().to_owned();
            by_origin
                .entry((w.service.clone(), etag))
                .or_default()
                .0
                .push(w);
        }
        for o in self
            .made
            .values()
            .filter(|o| o["spec"]["outcome"]["phase"] != "NotApplied")
        {
            let etag = o["spec"]["etagBefore"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            by_origin
                .entry((service(&o["spec"]), etag))
                .or_default()
                .1
                .push(o);
        }
        for ((s, etag), (mut writes, mut records)) in by_origin {
            // Every service starts with the same etag. One that was deleted and made again before
            // anybody saw whether a write arrived looks as if it had not, and Google offers no way
            // to tell: the same change, once more, under the record that is still open.
            if etag == UNTOUCHED && records.len() < writes.len() {
                let mut told = BTreeSet::new();
                writes.retain(|w| told.insert(change_of(w)));
            }
            records.sort_by_key(|o| o["spec"]["at"].as_str().map(str::to_owned));
            // Where others wrote before the operator could look, nobody can tell, and the record
            // says so, or what others did looks like it. Nothing else excuses a record without a
            // write.
            if records.len() > writes.len() {
                let excused = |o: &&Value| {
                    let touched: BTreeSet<_> = grants(&o["spec"]["added"])
                        .union(&grants(&o["spec"]["removed"]))
                        .cloned()
                        .collect();
                    let grants = (o["spec"]["outcome"]["phase"] != "Unknown").then_some(&touched);
                    self.others_since(o, grants)
                };
                // Two services one after the other, with one etag: it says that it does not know.
                let unsure =
                    |o: &&Value| etag == UNTOUCHED && o["spec"]["outcome"]["phase"] == "Unknown";
                let mut excess = records.len() - writes.len();
                records.retain(|o| {
                    let matches = writes.iter().any(|w| change_of(w) == told_by(o));
                    let goes = excess > 0 && (unsure(o) || (!matches && excused(o)));
                    excess -= usize::from(goes);
                    !goes
                });
            }
            if writes.len() != records.len() {
                let names: Vec<&Value> = records.iter().map(|o| &o["metadata"]["name"]).collect();
                found.push(format!(
                    "{} writes to {} from {etag} have {} records {names:?}",
                    writes.len(),
                    s.2,
                    records.len()
                ));
                continue;
            }
            for (w, o) in writes.iter().zip(records) {
                let ((added, removed), (really, gone)) = (told_by(o), change_of(w));
                if (&added, &removed) != (&really, &gone) {
                    found.push(format!(
                        "the record {} of {} says +{added:?} -{removed:?}, and really it was +{really:?} -{gone:?}",
                        o["metadata"]["name"], s.2
                    ));
                }
                if grants(&o["spec"]["before"]) != iam::grants(&w.before) {
                    found.push(format!(
                        "the record {} of {} says that before there was {}",
                        o["metadata"]["name"], s.2, o["spec"]["before"]
                    ));
                }
            }
        }
        found
    }
}
