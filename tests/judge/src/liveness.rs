//! What must come about once weather and people rest: L1 no orphan, L2 deletions end, L3 quiet, L5 the truth is told.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Judge, Real, Violation, Write,
    declared::{self, Policy, Service, Target},
    iam::{self, Grant},
};

/// The world at the end.
#[derive(Clone, Debug, Default)]
pub struct End {
    pub services: BTreeMap<Service, Real>,
    /// Members that IAM refuses.
    pub refused: BTreeSet<String>,
}

/// Requests while nothing happened.
#[derive(Clone, Debug, Default)]
pub struct Quiet {
    pub seconds: i64,
    pub reads: BTreeMap<Service, usize>,
    pub iam_writes: usize,
    /// Writes to the Kubernetes API, those of Leases left out.
    pub kube_writes: Vec<String>,
}

impl Judge {
    /// What is not yet as it must be in the end.
    pub fn unsettled(&mut self, at: Timestamp, end: &End) -> Vec<Violation> {
        let mut found = Vec::new();
        for (service, real) in &end.services {
            self.orphans(at, service, real, end, &mut |rule, what| found.push(Violation { rule, at, what }));
        }
        for p in self.store.declared.readable() {
            let status = self.statuses.get(&(p.namespace.clone(), p.name.clone())).cloned().unwrap_or_default();
            if p.deleting {
                if !condition(&status, "Stalled").is_some_and(|c| c["status"] == "True") {
                    found.push(Violation {
                        rule: "L2",
                        at,
                        what: format!(
                            "{}/{} is still being deleted and does not say why: {status}",
                            p.namespace, p.name
                        ),
                    });
                }
                continue;
            }
            if let Some(what) = self.untrue(at, p, &status, end) {
                found.push(Violation { rule: "L5", at, what });
            }
        }
        found
    }

    /// History, once everything is settled.
    pub fn history(&self, at: Timestamp, writes: &[Write]) -> Vec<Violation> {
        self.records.lies(writes).into_iter().map(|what| Violation { rule: "S5", at, what }).collect()
    }

    /// L3: one read for each service and interval, and no write of any kind.
    pub fn quiet(&self, at: Timestamp, quiet: &Quiet, end: &End) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut accuse = |what| found.push(Violation { rule: "L3", at, what });
        if quiet.iam_writes > 0 {
            accuse(format!("{} writes to IAM although nothing happened", quiet.iam_writes));
        }
        if !quiet.kube_writes.is_empty() {
            accuse(format!("writes to the cluster although nothing happened: {:?}", quiet.kube_writes));
        }
        for service in end.services.keys() {
            let asks = |p: &&Policy| !p.suspended && !p.deleting && !self.store.declared.is_frozen(&p.namespace);
            let interval = self.store.declared.on(service).filter(asks).map(|p| p.interval).min();
            let reads = quiet.reads.get(service).copied().unwrap_or(0) as i64;
            let wanted = interval.map_or(0, |i| quiet.seconds / i);
            if interval.is_some() && (reads - wanted).abs() > 1 || interval.is_none() && reads > quiet.seconds / 60 {
                accuse(format!(
                    "{} was read {reads} times in {} s, at an interval of {interval:?}",
                    service.2, quiet.seconds
                ));
            }
        }
        found
    }

    /// L1: what must be there is there, what must go is gone.
    fn orphans(
        &self,
        at: Timestamp,
        service: &Service,
        real: &Real,
        end: &End,
        accuse: &mut dyn FnMut(&'static str, String),
    ) {
        let d = &self.store.declared;
        let live = iam::grants(&real.policy);
        let on: Vec<&Policy> = d.on(service).filter(|p| !p.deleting).collect();
        let wants = |p: &Policy| {
            d.goes_back_to(p, service, at, self.settings.public).unwrap_or_else(|| d.lists(p, at, self.settings.public))
        };
        let held = self.is_held(service);
        let active: Vec<&&Policy> = on.iter().filter(|p| p.acts() && !d.is_frozen(&p.namespace)).collect();
        for p in active.iter().filter(|p| !self.is_stopped(p)) {
            for g in wants(p).iter().filter(|g| !live.contains(g) && !end.refused.contains(&g.member)) {
                if !held {
                    accuse("L1", format!("{}/{} wants {g} on {}, and it is not there", p.namespace, p.name, service.2));
                }
            }
        }
        // What anybody lists may stay, what a spec lists that is gone back from too.
        let listed: BTreeSet<Grant> = on.iter().flat_map(|p| wants(p)).collect();
        let frozen = on.iter().any(|p| d.is_frozen(&p.namespace)) || d.guardrails.values().any(|g| !g.readable);
        let unreadable = d.policies.values().any(Option::is_none);
        let forbidden: BTreeSet<Grant> =
            on.iter().flat_map(|p| d.spelled_out(p)).filter(|g| !listed.contains(g)).collect();
        for g in live.iter().filter(|g| !listed.contains(g)) {
            let complete = |p: &Policy| p.authoritative && p.role == g.role && !self.is_stopped(p);
            let protected = declared::matches(&self.settings.protected.to_lowercase(), &g.member.to_lowercase());
            let unlisted = active.iter().any(|p| complete(p)) && g.is_plain() && !protected && !forbidden.contains(g);
            let made = self.made.get(service).is_some_and(|m| m.contains(g));
            let owners = self.listed.get(&(service.clone(), g.clone()));
            let of = |uid: &String| d.readable().find(|p| p.uid == *uid);
            // Some policy behind it rests, or let go of it on purpose.
            let excused = owners.is_some_and(|o| {
                o.iter().any(|uid| {
                    self.let_go.contains(uid)
                        || of(uid).is_some_and(|p| !p.acts() || d.is_frozen(&p.namespace) || self.is_stopped(p))
                })
            });
            if (unlisted || made && !excused) && !held && !frozen && !unreadable {
                accuse(
                    "L1",
                    format!("{g} is still on {}, and nobody wants it (made by the operator: {made})", service.2),
                );
            }
        }
    }

    /// Whether a plan on the service waits for a person, and somebody is told.
    fn is_held(&self, service: &Service) -> bool {
        let mine = |s: &Value| {
            let entries = s["services"].as_array().into_iter().flatten();
            entries
                .into_iter()
                .any(|e| e["name"] == service.2.as_str() && e["region"] == service.1.as_str() && e["state"] == "Held")
                || condition(s, "Ready").is_some_and(|c| c["reason"] == "ApprovalRequired")
        };
        self.statuses.iter().any(|(key, s)| {
            let of = self.store.declared.policies.get(key).and_then(Option::as_ref);
            of.is_some_and(|p| p.project == service.0) && mine(s)
        })
    }

    /// Whether a policy goes back to something that is not there, so that nothing is done for it.
    fn is_stopped(&self, p: &Policy) -> bool {
        let known = |r: &String| self.store.declared.records.contains_key(&(p.namespace.clone(), r.clone()));
        let about = |r: &String| {
            let (s, _) = &self.store.declared.records[&(p.namespace.clone(), r.clone())];
            p.means(s, self.store.declared.labels.get(s))
        };
        p.rollbacks.iter().any(|r| !known(r) || !about(r))
    }

    /// L5: what a status says that is not so, or does not say.
    fn untrue(&self, at: Timestamp, p: &Policy, status: &Value, end: &End) -> Option<String> {
        let d = &self.store.declared;
        let name = format!("{}/{}", p.namespace, p.name);
        let ready = condition(status, "Ready").cloned().unwrap_or_default();
        let says = ready["status"].as_str().unwrap_or("nothing").to_owned();
        if p.suspended {
            return (says == "True").then(|| format!("{name} is suspended and says that it is ready"));
        }
        if status["observedGeneration"].as_i64() != Some(p.generation)
            && !d.is_frozen(&p.namespace)
            && !self.is_stopped(p)
        {
            return Some(format!(
                "{name} is at generation {} and its status at {}",
                p.generation, status["observedGeneration"]
            ));
        }
        let fault = self.fault(at, p, end);
        match (&fault, says.as_str()) {
            (None, "True") => None,
            (None, _) => Some(format!("everything is as {name} declares, and its status says {ready}")),
            (Some(why), "True") => Some(format!("{name} says that it is ready, and {why}")),
            (Some(_), _) => None,
        }
    }

    /// Why a policy must not be called ready.
    fn fault(&self, at: Timestamp, p: &Policy, end: &End) -> Option<String> {
        let d = &self.store.declared;
        if d.is_frozen(&p.namespace) {
            return Some("a guardrail cannot be read".into());
        }
        if self.is_stopped(p) {
            return Some("what it goes back to is not there".into());
        }
        for t in &p.targets {
            let Target::Named { region, name } = t else { continue };
            let service = (p.project.clone(), region.clone(), name.clone());
            if !d.rails(&p.namespace).all(|g| g.allows_service(&service)) {
                return Some(format!("a guardrail forbids {name}"));
            }
            if !end.services.contains_key(&service) {
                return Some(format!("{name} is not there"));
            }
        }
        if d.rails(&p.namespace).any(|g| !g.allows_project(&p.project)) {
            return Some("a guardrail forbids its project".into());
        }
        let spelled = d.spelled_out(p);
        if spelled.len() < p.entries.len() {
            return Some("a ServiceAccount stands for nobody".into());
        }
        for (service, real) in end.services.iter().filter(|(s, _)| d.on(s).any(|o| o.uid == p.uid)) {
            if self.is_held(service) {
                return Some("something is held".into());
            }
            let live = iam::grants(&real.policy);
            let allowed = d.lists(p, at, self.settings.public);
            if let Some(g) = spelled.iter().find(|g| g.in_force(at) && !allowed.contains(g)) {
                return Some(format!("a guardrail forbids {g}"));
            }
            if !p.enforced {
                continue;
            }
            let wanted = d.goes_back_to(p, service, at, self.settings.public).unwrap_or(allowed);
            if let Some(g) = wanted.iter().find(|g| !live.contains(g)) {
                return Some(format!("{g} is not on {}", service.2));
            }
            let listed: BTreeSet<Grant> = d
                .on(service)
                .filter(|o| !o.deleting)
                .flat_map(|o| d.lists(o, at, self.settings.public).into_iter().chain(wanted.clone()))
                .collect();
            let protected =
                |g: &Grant| declared::matches(&self.settings.protected.to_lowercase(), &g.member.to_lowercase());
            let extra = live.iter().find(|g| {
                p.authoritative
                    && g.role == p.role
                    && g.is_plain()
                    && !listed.contains(g)
                    && !protected(g)
                    && !spelled.contains(g)
            });
            // What another policy declares and may not is nobody's to take away.
            let disputed = |g: &Grant| d.on(service).any(|o| d.spelled_out(o).contains(g));
            if let Some(g) = extra.filter(|g| !disputed(g)) {
                return Some(format!("{g} is on {} and nobody lists it", service.2));
            }
        }
        None
    }
}

fn condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == type_)
}
