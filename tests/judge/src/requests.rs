//! Requests for access. What is granted by one is a policy with one entry that ends; whether it may
//! be granted is a rule of its own (S8).
//!
//! Source: docs/approvals.md, "Access on request".

use jiff::{SignedDuration, Timestamp};
use regex::Regex;
use serde_json::{Value, json};

use crate::{
    Delivery, Judge, Kind, Place, Violation,
    declared::{Declared, Policy, seconds},
    iam::{Condition, Grant, member_key},
};

/// In front of the name of a request where names of policies stand.
const PREFIX: &str = "request/";

/// Whether a policy stands for a request.
pub fn is_request(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Where a request stands among policies.
pub fn place(object: &Value) -> Place {
    let text = |k: &str| object["metadata"][k].as_str().unwrap_or_default();
    (
        text("namespace").to_owned(),
        format!("{PREFIX}{}", text("name")),
    )
}

fn phase(object: &Value) -> &str {
    object["status"]["phase"].as_str().unwrap_or_default()
}

fn takes_back(phase: &str) -> bool {
    ["Ended", "Denied", "Refused"].contains(&phase)
}

fn until(object: &Value) -> Option<Timestamp> {
    object["status"]["until"].as_str()?.parse().ok()
}

/// The policy that a request is once it was granted.
pub fn as_policy(object: &Value) -> Option<Policy> {
    let end = object["status"]["until"].as_str()?;
    let (meta, spec) = (&object["metadata"], &object["spec"]);
    let mut policy = json!({"metadata": {"namespace": meta["namespace"], "name": place(object).1, "uid": meta["uid"],
            "generation": 1, "finalizers": meta["finalizers"], "deletionTimestamp": meta["deletionTimestamp"]},
        "spec": {"project": spec["project"], "services": spec["services"], "mode": "Enforce", "membership": "Additive",
            "role": spec["role"], "invokers": [{"member": spec["member"], "expires": end}]}});
    if takes_back(phase(object)) {
        policy["metadata"]["deletionTimestamp"] = json!(end);
    }
    Policy::read(&policy)
}

/// What a request may be, as the guardrails of its namespace say.
enum Consent {
    Nobody,
    Approver,
    Itself,
}

fn consent(d: &Declared, object: &Value, ends: Timestamp) -> Consent {
    let text = |k: &str| object["spec"][k].as_str().unwrap_or_default();
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let rails: Vec<_> = d.rails(namespace).collect();
    let grant = Grant {
        role: "roles/run.invoker".into(),
        member: member_key(text("member")),
        condition: Some(Condition {
            own: None,
            ends: Some(ends),
        }),
    };
    let services = object["spec"]["services"].as_array().into_iter().flatten();
    let services: Vec<_> = services
        .map(|s| {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let project = text(&object["spec"]["project"]);
            (project, text(&s["region"]), text(&s["name"]))
        })
        .collect();
    let fits = rails.iter().all(|g| {
        g.readable && g.allows_grant(&grant) && services.iter().all(|s| g.allows_service(s))
    });
    let asked: Vec<_> = rails.iter().filter_map(|g| g.requests.as_ref()).collect();
    let duration = seconds(text("duration")).unwrap_or(i64::MAX);
    let within = asked.iter().all(|r| {
        let fits = |p: &String| Regex::new(p).is_ok_and(|p| p.is_match(text("reason")));
        duration <= r.longest && r.reason.as_ref().is_none_or(fits)
    });
    if asked.is_empty() || !fits || !within {
        return Consent::Nobody;
    }
    if asked.iter().all(|r| r.approves_by_itself(&grant.member)) {
        Consent::Itself
    } else {
        Consent::Approver
    }
}

impl Judge {
    /// A request changed in the store.
    pub(crate) fn request_stored(
        &mut self,
        at: Timestamp,
        replica: Option<usize>,
        object: &Value,
        gone: bool,
    ) {
        let place = place(object);
        let before = self.store.declared.policies.get(&place).cloned().flatten();
        if let Some(replica) = replica.filter(|_| !gone) {
            self.granted_rightly(at, replica, &place, object);
            // It knows what it wrote.
            let (kind, object) = (Kind::Request, object.clone());
            let delivery = Delivery::Object { kind, object, gone };
            self.tell(replica, at, delivery);
        }
        if gone {
            self.requests.remove(&place);
            self.store.drop(Kind::Request, &place);
        } else {
            self.requests.insert(place.clone(), object.clone());
            self.store.put(Kind::Request, object);
        }
        if self.store.declared.policies.get(&place).cloned().flatten() != before {
            self.declared_at = at;
        }
        self.note_listed();
    }

    /// S8: that somebody may have access, and until when, is written only if a guardrail lets it be
    /// requested, and an approver agreed to exactly that or the guardrail needs none; it is never
    /// prolonged.
    fn granted_rightly(&mut self, at: Timestamp, replica: usize, place: &Place, object: &Value) {
        let uid = object["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let plan = object["status"]["plan"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let shown = (place.clone(), plan.clone());
        let owner = self.requested.entry(shown).or_insert_with(|| uid.clone());
        if *owner != uid {
            let what = format!("two requests {} have one plan {plan}", place.1);
            self.accuse("S8", at, what);
        }
        let Some(end) = until(object) else {
            return;
        };
        self.granted_requests.insert(uid.clone());
        let before = self.requests.get(place);
        let before = before.filter(|b| b["metadata"]["uid"] == uid.as_str());
        let was = before.and_then(until);
        if was == Some(end) {
            return;
        }
        let duration = object["spec"]["duration"].as_str().and_then(seconds);
        let longest = at + SignedDuration::from_secs(duration.unwrap_or(0));
        let known = self.known(replica, at);
        let said = |deny: bool| {
            let mut all = self.agreements.iter();
            all.any(|a| a.is_of_request(place, &plan) && a.denies() == deny)
        };
        let states = known
            .iter()
            .map(|k| &k.declared)
            .chain([&self.store.declared]);
        let protected = self
            .settings
            .protects(object["spec"]["member"].as_str().unwrap_or(""));
        let may = |d: &Declared| match consent(d, object, end) {
            _ if protected => false,
            Consent::Nobody => false,
            Consent::Approver => said(false),
            Consent::Itself => true,
        };
        let mut wrong = Vec::new();
        if was.is_some() {
            wrong.push("was granted until another time before".to_owned());
        }
        if end > longest {
            wrong.push(format!("lasts until {end}, longer than it asks for"));
        }
        if !states.into_iter().any(may) {
            wrong.push("nobody agreed to it, or no guardrail allows it".to_owned());
        }
        for why in wrong {
            self.accuse("S8", at, format!("{} is granted, and it {why}", place.1));
        }
    }

    /// L2, L5: where requests stand once everybody rests.
    pub(crate) fn requests_untrue(&self, at: Timestamp) -> Vec<Violation> {
        let mut found = Vec::new();
        let d = &self.store.declared;
        for ((namespace, name), object) in &self.requests {
            if d.is_frozen(namespace) {
                continue;
            }
            let mut accuse = |rule, what: &str| {
                let what = format!("{namespace}/{name} {what}: {}", object["status"]);
                found.push(Violation { rule, at, what });
            };
            if object["metadata"]["deletionTimestamp"].is_string() {
                accuse("L2", "is still being deleted");
                continue;
            }
            let (phase, end) = (phase(object), until(object));
            let plan = object["status"]["plan"].as_str().unwrap_or_default();
            let place = (namespace.clone(), name.clone());
            let says = |deny: bool| {
                let mut all = self.approvals.values();
                all.any(|a| a.is_of_request(&place, plan) && a.denies() == deny)
            };
            let ever_denied = || {
                let mut all = self.agreements.iter();
                all.any(|a| a.is_of_request(&place, plan) && a.denies())
            };
            let is_over = end.is_some_and(|end| end <= at);
            let member = object["spec"]["member"].as_str().unwrap_or_default();
            let right: &[&str] = match consent(d, object, end.unwrap_or(at)) {
                _ if says(true) && phase != "Ended" => &["Denied"],
                _ if phase == "Denied" && ever_denied() => &["Denied"],
                _ if is_over => &["Ended", "Denied"],
                Consent::Nobody => &["Refused"],
                _ if end.is_none() && self.settings.protects(member) => &["Refused"],
                _ if end.is_some() => &["Approved", "Active"],
                Consent::Itself => &[],
                Consent::Approver if says(false) => &[],
                Consent::Approver => &["Pending"],
            };
            if !right.contains(&phase) {
                accuse("L5", &format!("is {phase:?}, and should be {right:?}"));
            }
        }
        found
    }
}
