//! What must come about once weather and people rest: L1 no orphan, L2 deletions end, L3 quiet, L4
//! nobody waits for others, L5 the truth is told.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    Judge, Real, Violation, Write,
    declared::{Policy, Service, Target},
    iam::{self, Grant},
    requests,
};

/// The world at the end.
#[derive(Clone, Debug, Default)]
pub struct End {
    pub services: BTreeMap<Service, Real>,
    /// Members that IAM refuses.
    pub refused: BTreeSet<String>,
    /// Projects, folders and the organization by name: `parent` and `policy`.
    pub above: Value,
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
    /// Whether a ledger has something to remember that no policy lists: access of a protected member
    /// that the operator gave for a time, and takes away when that has ended.
    fn stays(&self, service: &Service, at: Timestamp, end: &End) -> bool {
        let made = self.made.get(service);
        let live = end.services.get(service).map(|r| iam::grants(&r.policy));
        live.into_iter().flatten().any(|g| {
            let ends = g.condition.as_ref().and_then(|c| c.ends);
            let ours = made.is_some_and(|m| m.contains(&g))
                || self.listed.contains_key(&(service.clone(), g.clone()));
            ends.is_some() && g.in_force(at) && ours && self.settings.protects(&g.member)
        })
    }

    /// What is not yet as it must be in the end.
    pub fn unsettled(&mut self, at: Timestamp, end: &End) -> Vec<Violation> {
        let mut found = Vec::new();
        if !self.store.declared.spoiled.is_empty() {
            // A replica that began before knows what it said, and one that began after knows
            // nothing: both are right.
            return found;
        }
        for (service, real) in &end.services {
            self.orphans(at, service, real, end, &mut |rule, what| {
                found.push(Violation { rule, at, what })
            });
        }
        for service in self.records.remembered() {
            let d = &self.store.declared;
            let is_anybodys = d
                .policies
                .values()
                .any(|p| p.as_ref().is_none_or(|p| p.project == service.0));
            if !is_anybodys && !self.held_alone.contains(service) && !self.stays(service, at, end) {
                let what = format!(
                    "there is a ledger of {} and no policy in the project",
                    service.2
                );
                found.push(Violation {
                    rule: "L1",
                    at,
                    what,
                });
            }
        }
        found.extend(self.requests_untrue(at));
        let is_policy = |p: &&Policy| !requests::is_request(&p.name);
        for p in self.store.declared.readable().filter(is_policy) {
            let status = self
                .statuses
                .get(&(p.namespace.clone(), p.name.clone()))
                .cloned()
                .unwrap_or_default();
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
                found.push(Violation {
                    rule: "L5",
                    at,
                    what,
                });
            }
            if let Some(what) = self.bypass_untrue(at, p, &status, end) {
                found.push(Violation {
                    rule: "L6",
                    at,
                    what,
                });
            }
        }
        found
    }

    /// L4: whatever others do, what this policy declares is in force by now, and told.
    pub fn expect(&mut self, at: Timestamp, namespace: &str, name: &str, end: &End) {
        let place = (namespace.to_owned(), name.to_owned());
        let d = &self.store.declared;
        let policy = d
            .readable()
            .find(|p| p.namespace == namespace && p.name == name);
        let Some(p) = policy else {
            return;
        };
        let status = self.statuses.get(&place).cloned().unwrap_or_default();
        if let Some(what) = self.untrue(at, p, &status, end) {
            self.violations.push(Violation {
                rule: "L4",
                at,
                what,
            });
        } else if let Some(what) = self.fault(at, p, end) {
            self.violations.push(Violation {
                rule: "L4",
                at,
                what,
            });
        }
    }

    /// When the last thing ends that ends by itself within the next hours: access, a fight or an open
    /// breaker, which are told, and the wait for a write whose answer was lost.
    pub fn last_end(&self, now: Timestamp, end: &End) -> Option<Timestamp> {
        let d = &self.store.declared;
        let is_contested =
            |s: &Value| condition(s, "Contested").is_some_and(|c| c["status"] == "True");
        let contested = self.statuses.values().any(is_contested);
        // It is over an hour after the last correction, and that is seen by the next look.
        let look = SignedDuration::from_secs(self.settings.event_interval.unwrap_or_default());
        let over = |last: Timestamp| last + SignedDuration::from_hours(1) + look;
        let fights = self.last_write.filter(|_| contested).map(over);
        // An open breaker, which is told, lets corrections through one after the other, as its window
        // goes on; each is seen by a look.
        // A condition has one reason, and there may be a graver one.
        let is_open = |s: &Value| s.to_string().contains("circuit breaker");
        let breaker = self.statuses.values().any(is_open);
        let longest = d.readable().map(|p| p.interval).max().unwrap_or_default();
        let window = SignedDuration::from_secs(self.settings.breaker.1 + longest) + look;
        let breaker = self
            .last_write
            .filter(|_| breaker)
            .map(|last| last + window);
        // What nobody lists any more and is held ends, too: then there is less to be held.
        let real = end.services.values().flat_map(|s| iam::grants(&s.policy));
        let all = d.readable().flat_map(|p| d.spelled_out(p)).chain(real);
        let ends = all.filter_map(|g| g.condition?.ends);
        ends.chain(fights)
            .chain(breaker)
            .chain(self.records.last_arrival())
            .filter(|e| *e > now && e.duration_since(now) < SignedDuration::from_hours(3))
            .max()
    }

    /// History, once everything is settled.
    pub fn history(&self, at: Timestamp, writes: &[Write], end: &End) -> Vec<Violation> {
        let etags = end
            .services
            .iter()
            .map(|(s, real)| (s.clone(), &real.policy["etag"]))
            .collect();
        self.records
            .lies(writes, &etags)
            .into_iter()
            .map(|what| Violation {
                rule: "S5",
                at,
                what,
            })
            .collect()
    }

    /// L3: one read for each service and interval, and no write of any kind.
    pub fn quiet(&self, at: Timestamp, quiet: &Quiet, end: &End) -> Vec<Violation> {
        let mut found = Vec::new();
        if !self.store.declared.spoiled.is_empty() {
            // Nobody can say when such a world is settled.
            return found;
        }
        let mut accuse = |what| {
            found.push(Violation {
                rule: "L3",
                at,
                what,
            })
        };
        if quiet.iam_writes > 0 {
            accuse(format!(
                "{} writes to IAM although nothing happened",
                quiet.iam_writes
            ));
        }
        // Members that IAM refuses are tried again, ever more rarely, and each try is written down.
        let retries: Vec<String> = end
            .services
            .keys()
            .filter(|s| self.wants_refused(at, s, end))
            .map(ledger)
            .collect();
        let made = |w: &str| w.starts_with("POST ") && w.contains("/invokerledgers?");
        // What a try finds out is told, too.
        let told = |w: &str| w.starts_with("PATCH ") && w.contains("/status?");
        let is_retry = |w: &&String| {
            !retries.is_empty() && (made(w) || told(w) || retries.iter().any(|r| w.contains(r)))
        };
        let tries = quiet.kube_writes.iter().filter(is_retry).count();
        if tries > 40 * retries.len() {
            accuse(format!(
                "{tries} writes for the sake of members that IAM refuses"
            ));
        }
        // The first try after the weather may find another reason than the last one before it: one
        // event, which is made, or counted on one that is there.
        let is_event = |w: &&String| w.contains("/events.k8s.io/");
        let events = quiet.kube_writes.iter().filter(is_event).count();
        let is_news = |w: &&String| is_event(w) && events <= 2 * retries.len();
        let writes = quiet.kube_writes.iter();
        let writes: Vec<&String> = writes.filter(|w| !is_retry(w) && !is_news(w)).collect();
        if !writes.is_empty() {
            accuse(format!(
                "writes to the cluster although nothing happened: {writes:?}"
            ));
        }
        for service in end.services.keys() {
            let asks = |p: &&Policy| {
                !p.suspended && !p.deleting && !self.store.declared.is_frozen(&p.namespace)
            };
            let d = &self.store.declared;
            let interval = d.on(service).filter(asks).map(|p| p.interval).min();
            // What was left, or is left by a deletion, and waits there for somebody, is looked at
            // too.
            let waits = |p: &&Policy| p.project == service.0 && self.names(p, service);
            let most = d
                .readable()
                .filter(waits)
                .map(|p| p.interval)
                .chain(interval)
                .min()
                .unwrap_or(60);
            let reads = quiet.reads.get(service).copied().unwrap_or(0) as i64;
            let tries = if self.wants_refused(at, service, end) {
                12
            } else {
                0
            };
            let rarest = self.settings.event_interval.unwrap_or_default();
            let least = interval.map_or(0, |i| quiet.seconds / i.max(rarest) - 1);
            if reads < least || reads > quiet.seconds / most + 1 + tries {
                accuse(format!(
                    "{} was read {reads} times in {} s, at an interval of {interval:?}; {:?}",
                    service.2, quiet.seconds, self.statuses
                ));
            }
        }
        found
    }

    /// Whether somebody wants a member on a service that IAM refuses.
    fn wants_refused(&self, at: Timestamp, service: &Service, end: &End) -> bool {
        let d = &self.store.declared;
        let wanted = d
            .on(service)
            .filter(|p| p.acts() && !p.deleting)
            .flat_map(|p| {
                let back = d.goes_back_to(p, service, at, self.settings.public);
                back.unwrap_or_else(|| d.lists(p, at, self.settings.public))
            });
        wanted.into_iter().any(|g| end.refused.contains(&g.member))
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
            d.goes_back_to(p, service, at, self.settings.public)
                .unwrap_or_else(|| d.lists(p, at, self.settings.public))
        };
        let held = self.is_held(service);
        let active: Vec<&&Policy> = on
            .iter()
            .filter(|p| p.acts() && !d.is_frozen(&p.namespace))
            .collect();
        for p in active.iter().filter(|p| !self.is_stopped(p)) {
            let wanted = wants(p);
            // A plan that waits for somebody takes less away and grants all the same; what selectors
            // newly reach gets nothing until somebody agreed.
            let may_be_new = p.has_selector() && !wanted.iter().any(|g| live.contains(g));
            if held && may_be_new {
                continue;
            }
            let absent = |g: &&Grant| !live.contains(g) && !end.refused.contains(&g.member);
            for g in wanted.iter().filter(absent) {
                let what = format!(
                    "{}/{} wants {g} on {}, and it is not there",
                    p.namespace, p.name, service.2
                );
                accuse("L1", what);
            }
        }
        // What anybody lists may stay, what a spec lists that is gone back from too.
        let listed: BTreeSet<Grant> = on.iter().flat_map(|p| wants(p)).collect();
        let frozen = on.iter().any(|p| d.is_frozen(&p.namespace))
            || d.guardrails.values().any(|g| !g.readable);
        let unreadable = d.policies.values().any(Option::is_none);
        let said = |p: &&&Policy| {
            d.spelled_out(p)
                .into_iter()
                .chain(d.went_back_to(p, service))
                .collect::<Vec<_>>()
        };
        let forbidden: BTreeSet<Grant> = on
            .iter()
            .flat_map(|p| said(&p))
            .filter(|g| !listed.contains(g))
            .collect();
        for g in live.iter().filter(|g| !listed.contains(g)) {
            let complete = |p: &Policy| p.authoritative && p.role == g.role && !self.is_stopped(p);
            let protected = self.settings.protects(&g.member);
            let unlisted = active.iter().any(|p| complete(p))
                && g.is_plain()
                && !protected
                && !forbidden.contains(g);
            let made = self.made.get(service).is_some_and(|m| m.contains(g));
            let owners = self.listed.get(&(service.clone(), g.clone()));
            let of = |uid: &String| d.readable().find(|p| p.uid == *uid);
            // Some policy behind it rests, or let go of it on purpose.
            let rests = |p: &Policy| !p.acts() || d.is_frozen(&p.namespace) || self.is_stopped(p);
            let excuses = |uid: &String| self.let_go.contains(uid) || of(uid).is_some_and(rests);
            // It is also behind what was passed on to it because its spec lists it, whatever it
            // goes back to.
            let excused = owners.is_some_and(|o| o.iter().any(excuses))
                || on.iter().any(|p| rests(p) && d.spelled_out(p).contains(g));
            if (unlisted || made && !excused && !protected) && !held && !frozen && !unreadable {
                accuse(
                    "L1",
                    format!(
                        "{g} is still on {}, and nobody wants it (made by the operator: {made})",
                        service.2
                    ),
                );
            }
        }
    }

    /// Whether a plan on the service waits for approval, and somebody is told.
    fn is_held(&self, service: &Service) -> bool {
        let asks = |e: &Value| e["plan"].as_str().is_some_and(|a| !a.is_empty());
        self.held_alone.contains(service)
            || self
                .store
                .declared
                .readable()
                .filter(|p| p.project == service.0)
                .any(|p| self.says(p, service, asks))
    }

    /// Whether a policy is told that something on the service waits for a person.
    fn is_held_for(&self, p: &Policy, service: &Service) -> bool {
        self.says(p, service, |e| e["state"] == "Held")
    }

    fn says(&self, p: &Policy, service: &Service, what: impl Fn(&Value) -> bool) -> bool {
        let Some(status) = self.statuses.get(&(p.namespace.clone(), p.name.clone())) else {
            return false;
        };
        let waits = condition(status, "Ready").is_some_and(|c| c["reason"] == "ApprovalRequired");
        waits || entries_of(status, service).any(what)
    }

    /// Whether a status has an entry about a service.
    fn names(&self, p: &Policy, service: &Service) -> bool {
        let status = self.statuses.get(&(p.namespace.clone(), p.name.clone()));
        status.is_some_and(|s| entries_of(s, service).next().is_some())
    }

    /// Whether a policy goes back to something that is not there, so that nothing is done for it.
    fn is_stopped(&self, p: &Policy) -> bool {
        let known = |r: &String| {
            self.store
                .declared
                .records
                .contains_key(&(p.namespace.clone(), r.clone()))
        };
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
            return (says == "True")
                .then(|| format!("{name} is suspended and says that it is ready"));
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
            (None, _) => Some(format!(
                "everything is as {name} declares, and its status says {ready}"
            )),
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
            let Target::Named { region, name } = t else {
                continue;
            };
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
        let status = self.statuses.get(&(p.namespace.clone(), p.name.clone()));
        let mut entries = status
            .and_then(|s| s["services"].as_array())
            .into_iter()
            .flatten();
        let is_named = |e: &Value| {
            d.on(&(p.project.clone(), text(&e["region"]), text(&e["name"])))
                .any(|o| o.uid == p.uid)
        };
        if entries.any(|e| e["state"] == "Held" && !is_named(e)) {
            return Some("something is held where it was before".into());
        }
        let spelled = d.spelled_out(p);
        if spelled.len() < p.entries.len() {
            return Some("a ServiceAccount stands for nobody".into());
        }
        for (service, real) in end
            .services
            .iter()
            .filter(|(s, _)| d.on(s).any(|o| o.uid == p.uid))
        {
            if self.is_held_for(p, service) {
                return Some("something is held".into());
            }
            let live = iam::grants(&real.policy);
            let allowed = d.lists(p, at, self.settings.public);
            let back = d
                .goes_back_to(p, service, at, self.settings.public)
                .is_some();
            if let Some(g) = spelled
                .iter()
                .find(|g| !back && g.in_force(at) && !allowed.contains(g))
            {
                return Some(format!("a guardrail forbids {g}"));
            }
            if !p.enforced {
                continue;
            }
            let wanted = d
                .goes_back_to(p, service, at, self.settings.public)
                .unwrap_or(allowed);
            if let Some(g) = wanted.iter().find(|g| !live.contains(g)) {
                return Some(format!("{g} is not on {}", service.2));
            }
            let listed: BTreeSet<Grant> = d
                .on(service)
                .filter(|o| !o.deleting)
                .flat_map(|o| {
                    let back = d
                        .goes_back_to(o, service, at, self.settings.public)
                        .unwrap_or_default();
                    d.lists(o, at, self.settings.public)
                        .into_iter()
                        .chain(back)
                        .chain(wanted.clone())
                })
                .collect();
            let protected = |g: &Grant| self.settings.protects(&g.member);
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

/// How requests about the ledger of a service are told: by its name, or, where it is made, by the
/// kind alone.
fn ledger(service: &Service) -> String {
    format!("/invokerledgers/{}.{}.{}?", service.0, service.1, service.2)
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn entries_of<'a>(status: &'a Value, service: &'a Service) -> impl Iterator<Item = &'a Value> {
    let here = |e: &&Value| e["name"] == service.2.as_str() && e["region"] == service.1.as_str();
    status["services"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(here)
}

pub(crate) fn condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == type_)
}
