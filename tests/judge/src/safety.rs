//! What must never happen: S1 to S6, at every write that the world accepts, and S7,
//! at every status.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::{
    Judge, Known, Write,
    declared::{Declared, Policy, Service},
    iam::{self, Grant},
};

/// How long a status may be on its way.
const IN_FLIGHT: SignedDuration = SignedDuration::from_secs(15);

/// Cloud Run lets no federated identity invoke; of workforce pools Google's pages say both.
fn can_invoke(grant: &Grant) -> bool {
    let member = grant.member.as_str();
    !member.starts_with("deleted:")
        && (!member.starts_with("principal") || member.contains("/workforcePools/"))
}

/// What a request is about.
#[derive(Clone, Debug)]
pub enum Asked {
    Service(Service),
    /// A list of a project, of one region or all.
    List(String, Option<String>),
}

/// What a write changes.
struct Change {
    added: BTreeSet<Grant>,
    removed: BTreeSet<Grant>,
    left: BTreeSet<Grant>,
}

/// What of a write needs approval.
struct Needed<'a> {
    what: String,
    counted: BTreeSet<&'a Grant>,
    /// The annotation on a policy counts for nothing.
    approver: bool,
}

impl Judge {
    /// S7: a status that says that IAM had the time to act everywhere, a moment after a write. What
    /// was on its way when the write arrived is not held against it.
    pub(crate) fn propagated_too_early(
        &mut self,
        at: Timestamp,
        key: &(String, String),
        policy: &serde_json::Value,
    ) {
        let status = &policy["status"];
        let conditions = status["conditions"].as_array();
        let done = |c: &serde_json::Value| c["type"] == "Propagated" && c["status"] == "True";
        if !conditions.is_some_and(|all| all.iter().any(done)) {
            return;
        }
        let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        let project = text(&policy["spec"]["project"]);
        let entries = status["services"].as_array().into_iter().flatten();
        let services: Vec<Service> = entries
            .map(|s| (project.clone(), text(&s["region"]), text(&s["name"])))
            .collect();
        let window = SignedDuration::from_secs(self.settings.propagation);
        // Where a guardrail keeps a policy out, nothing that happens is its change.
        let rails: Vec<_> = self.store.declared.rails(&key.0).cloned().collect();
        let allowed = |s: &Service| rails.iter().all(|g| g.allows_service(s));
        for service in services.into_iter().filter(allowed) {
            let since = self.wrote.get(&service).map(|w| at.duration_since(*w));
            if since.is_some_and(|s| s > IN_FLIGHT && s + IN_FLIGHT < window) {
                let what = format!(
                    "{}/{} says that nothing changed lately, and the operator wrote {} {} s ago",
                    key.0,
                    key.1,
                    service.2,
                    since.unwrap_or_default().as_secs()
                );
                self.accuse("S7", at, what);
            }
        }
    }

    /// A replica sends a request to Google: S4, nobody's service and nobody's project is ever
    /// named.
    pub fn asked(&mut self, replica: usize, at: Timestamp, asked: &Asked) {
        let known = self.known(replica, at);
        let may = |k: &Known| {
            let d = &k.declared;
            // An unreadable object says nothing that could be held against anybody.
            d.policies.values().any(Option::is_none)
                || match asked {
                    Asked::Service(s) => d.readable().any(|p| names(d, p, s)),
                    Asked::List(project, _) => d.readable().any(|p| {
                        p.project == *project
                            && d.rails(&p.namespace).all(|g| g.allows_project(project))
                    }),
                }
        };
        // What the operator granted, it may come back to.
        let ours = match asked {
            Asked::Service(s) => self.listed.keys().any(|(l, _)| l == s),
            Asked::List(..) => false,
        };
        if !ours && !known.iter().any(|k| may(k)) {
            self.accuse(
                "S4",
                at,
                format!("replica {replica} asks about {asked:?}, which no namespace may touch"),
            );
        }
    }

    /// A write was accepted.
    pub fn written(&mut self, w: &Write) {
        let (was, is) = (iam::grants(&w.before), iam::grants(&w.after));
        let change = Change {
            added: is.difference(&was).cloned().collect(),
            removed: was.difference(&is).cloned().collect(),
            left: is.clone(),
        };
        let mut found: Vec<(&'static str, String)> = Vec::new();
        found.extend(foreign_parts(w).map(|why| ("S1", why)));
        // A write is excused if either state of knowledge excuses it.
        let verdicts: Vec<_> = w
            .known
            .iter()
            .map(|k| self.judge_change(k, w, &change))
            .collect();
        if verdicts.iter().all(|v| !v.is_empty()) {
            found.extend(verdicts.into_iter().next().into_iter().flatten());
        }
        self.note_use(w, &change);
        if !self.records.is_open(&w.service, &w.before["etag"]) {
            found.push(("S5", "no open record stood before the write".into()));
        }
        found.extend(self.judge_lease(w).map(|why| ("S6", why)));
        found.extend(
            self.judge_fight(w, &change)
                .into_iter()
                .map(|why| ("S6", why)),
        );
        for (rule, why) in found {
            let what = format!(
                "write of replica {} to {} sent at {}: {why}",
                w.replica, w.service.2, w.issued
            );
            self.accuse(rule, w.arrived, what);
        }
        self.last_write = Some(w.arrived);
        self.wrote.insert(w.service.clone(), w.arrived);
        let made = self.made.entry(w.service.clone()).or_default();
        made.retain(|g| is.contains(g));
        made.extend(change.added);
    }

    /// S2, S3 and the limits of S6 under one state of knowledge.
    fn judge_change(
        &self,
        known: &Known,
        w: &Write,
        change: &Change,
    ) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let (d, now) = (&known.declared, w.issued);
        let policies = self.about(known, &w.service);
        let wants = |p: &Policy, g: &Grant| self.wants(d, p, &w.service, now).contains(g);
        for g in &change.added {
            let acts = |p: &&&Policy| p.acts() && !p.deleting && !d.is_frozen(&p.namespace);
            if !policies.iter().filter(acts).any(|p| wants(p, g)) {
                found.push((
                    "S3",
                    format!("grants {g}, which no policy that it knew of lists and may list"),
                ));
            }
        }
        for g in &change.removed {
            let shields = |p: &&Policy| {
                !p.deleting
                    && d.lists(p, now, self.settings.public).contains(g)
                    && p.rollbacks.is_empty()
                    || !p.deleting
                        && !p.rollbacks.is_empty()
                        && wants(p, g)
                        && d.spelled_out(p).contains(g)
            };
            if let Some(p) = policies.iter().find(|p| shields(p)) {
                found.push((
                    "S2",
                    format!("takes {g} away, which {}/{} lists", p.namespace, p.name),
                ));
            } else if !self.may_go(&policies, d, g, (&w.service, w.issued)) {
                found.push((
                    "S2",
                    format!("takes {g} away, which was never its own, and no complete list says that it must go"),
                ));
            }
        }
        found.extend(
            self.judge_radius(&policies, d, w, change)
                .map(|why| ("S6", why)),
        );
        found
    }

    /// What a policy wants on a service: its spec, or what it goes back to.
    fn wants(&self, d: &Declared, p: &Policy, service: &Service, now: Timestamp) -> Vec<Grant> {
        // Records are read when they are needed; those of the store are meant.
        let back = self
            .store
            .declared
            .goes_back_to(p, service, now, self.settings.public);
        back.unwrap_or_else(|| d.lists(p, now, self.settings.public))
    }

    /// Policies that mean a service, as far as a replica can know: where no listing came in yet, as
    /// it really is.
    fn about<'a>(&'a self, known: &'a Known, service: &'a Service) -> Vec<&'a Policy> {
        let d = &known.declared;
        let mut found: Vec<&Policy> = d.on(service).collect();
        if !known.knows_services(service) {
            let labels = self.store.declared.labels.get(service);
            found.extend(
                d.readable()
                    .filter(|p| p.has_selector() && p.means(service, labels))
                    .filter(|p| d.rails(&p.namespace).all(|g| g.allows_service(service))),
            );
        }
        found
    }

    /// Whether a grant that nobody lists may be taken away at all.
    fn may_go(
        &self,
        policies: &[&Policy],
        d: &Declared,
        g: &Grant,
        (service, at): (&Service, Timestamp),
    ) -> bool {
        let protected = self.settings.protects(&g.member);
        // Never, as long as it is an access at all.
        if protected && g.in_force(at) {
            return false;
        }
        // It may also have been granted when a listing still said that a policy means the service.
        let granted = self.made.get(service).is_some_and(|made| made.contains(g));
        if granted || self.listed.contains_key(&(service.clone(), g.clone())) {
            return true;
        }
        let complete = |p: &&&Policy| {
            p.acts()
                && p.authoritative
                && p.role == g.role
                && !p.deleting
                && !d.is_frozen(&p.namespace)
        };
        let in_use = |p: &&Policy| {
            d.spelled_out(p).iter().any(|l| {
                l.condition.as_ref().map(|c| &c.own) == g.condition.as_ref().map(|c| &c.own)
            })
        };
        policies.iter().any(|p| complete(&p))
            && !protected
            && (g.is_plain() || policies.iter().any(in_use))
    }

    /// More than may go without asking, or everybody: only with approval of exactly that.
    fn judge_radius(
        &self,
        policies: &[&Policy],
        d: &Declared,
        w: &Write,
        change: &Change,
    ) -> Option<String> {
        let needed = self.needed(policies, d, w, change)?;
        let mut agreed = self.agreed(d, &w.service, !needed.approver);
        agreed.extend(self.approved(&w.service));
        let agreed = needed.counted.iter().all(|g| agreed.contains(&g.member));
        let who: Vec<String> = needed.counted.iter().map(ToString::to_string).collect();
        let what = needed.what;
        (!agreed).then(|| format!("takes {what} away without approval: {}", who.join(", ")))
    }

    /// Approvals work once: those that a write needed, whatever the operator knew, are used.
    fn note_use(&mut self, w: &Write, change: &Change) {
        let needs = |k: &Known| {
            let d = &k.declared;
            let needed = self.needed(&self.about(k, &w.service), d, w, change)?;
            let agreed = self.agreed(d, &w.service, !needed.approver);
            let open = needed.counted.iter().map(|g| &g.member);
            let open: BTreeSet<String> = open.filter(|m| !agreed.contains(m)).cloned().collect();
            (!open.is_empty()).then_some(open)
        };
        let open: Option<Vec<BTreeSet<String>>> = w.known.iter().map(|k| needs(k)).collect();
        for taken in open.unwrap_or_default() {
            self.use_approvals(&w.service, &taken);
        }
    }

    /// What of a write needs approval; `None`: nothing.
    fn needed<'a>(
        &self,
        policies: &[&Policy],
        d: &Declared,
        w: &Write,
        change: &'a Change,
    ) -> Option<Needed<'a>> {
        // A policy lists what its spec says, and what it went back to.
        let forbidden = |g: &Grant| {
            let listed_by = |p: &&&Policy| {
                d.spelled_out(p).contains(g)
                    || self.store.declared.went_back_to(p, &w.service).contains(g)
            };
            let allowed = |p: &Policy| {
                d.lists(p, w.issued, self.settings.public).contains(g)
                    || self.wants(d, p, &w.service, w.issued).contains(g)
            };
            let mut by = policies.iter().filter(listed_by).peekable();
            by.peek().is_some() && by.all(|p| !allowed(p))
        };
        // Where the service itself is forbidden to its namespace now, what was granted there is
        // taken back without asking.
        let shut_out = |g: &Grant| {
            let of = self.listed.get(&(w.service.clone(), g.clone()));
            let owner = |p: &&Policy| of.is_some_and(|of| of.contains(&p.uid));
            let mut owners = d.readable().filter(|p| owner(p)).peekable();
            owners.peek().is_some()
                && owners.all(|p| !d.rails(&p.namespace).all(|g| g.allows_service(&w.service)))
        };
        // What was only ever given on request ends without asking.
        let on_request = |g: &Grant| {
            let of = self.listed.get(&(w.service.clone(), g.clone()));
            of.is_some_and(|of| of.is_subset(&self.granted_requests))
        };
        let counted: BTreeSet<&Grant> = change
            .removed
            .iter()
            .filter(|g| g.in_force(w.issued) && !forbidden(g) && !shut_out(g) && !on_request(g))
            .collect();
        if counted.is_empty() {
            return None;
        }
        let acting: Vec<&&Policy> = policies.iter().filter(|p| p.acts()).collect();
        // Also those that mean the service no more and answer for what is taken away there.
        let answers = |p: &&Policy| {
            let listed = |g: &Grant| {
                self.listed
                    .get(&(w.service.clone(), g.clone()))
                    .is_some_and(|l| l.contains(&p.uid))
            };
            p.acts() && change.removed.iter().any(listed)
        };
        let answering: Vec<&Policy> = d.readable().filter(answers).collect();
        let limits = acting.iter().copied().chain(&answering).map(|p| {
            let rails = d.rails(&p.namespace).filter_map(|g| g.max_removals).min();
            rails.unwrap_or(self.settings.max_removals)
        });
        let limit = limits.min().unwrap_or(self.settings.max_removals);
        let standing: Vec<_> = acting.iter().filter(|p| !p.deleting).collect();
        let emptied = !standing.is_empty()
            && !standing
                .iter()
                .any(|p| p.allow_empty && p.entries.is_empty())
            && counted.iter().any(|g| can_invoke(g))
            && !change
                .left
                .iter()
                .any(|g| g.in_force(w.issued) && can_invoke(g));
        if counted.len() <= limit && !emptied {
            return None;
        }
        let what = if emptied {
            "the last invoker".to_owned()
        } else {
            format!("{} of at most {limit}", counted.len())
        };
        let mut concerned = acting.iter().copied().chain(&answering);
        Some(Needed {
            what,
            counted,
            approver: concerned.any(|p| d.rails(&p.namespace).any(|g| g.approver)),
        })
    }

    /// No write after the Lease could have been somebody else's.
    fn judge_lease(&self, w: &Write) -> Option<String> {
        let identity = &w.identity;
        let held = self
            .leases
            .values()
            .any(|h| h.holder == *identity && w.issued < h.until);
        (!held).then(|| {
            format!(
                "{identity} holds no Lease any more: {:?}",
                self.leases
                    .values()
                    .map(|h| (&h.holder, h.until))
                    .collect::<Vec<_>>()
            )
        })
    }

    /// The distances of a fight, and the circuit breaker.
    fn judge_fight(&mut self, w: &Write, change: &Change) -> Vec<String> {
        let mut found = Vec::new();
        let mut corrects = false;
        for g in change.added.iter().chain(&change.removed) {
            let key = (w.service.clone(), g.clone());
            let Some(changed) = self.outside.remove(&key) else {
                continue;
            };
            if self.declared_at >= changed.at {
                // Somebody declared something since: it may be that.
                self.fights.remove(&key);
                continue;
            }
            corrects = true;
            let times = self.fights.entry(key).or_default();
            times.retain(|t| w.issued.duration_since(*t) < SignedDuration::from_hours(1));
            times.push(w.issued);
            let lately = times
                .iter()
                .filter(|t| w.issued.duration_since(**t) < SignedDuration::from_mins(5))
                .count();
            if lately > 3 || times.len() > 9 {
                found.push(format!(
                    "corrects {g} for the {}th time within an hour, {lately} of them within five minutes",
                    times.len()
                ));
            }
        }
        if corrects {
            let (most, window) = self.settings.breaker;
            self.corrections
                .retain(|t| w.issued.duration_since(*t) < SignedDuration::from_secs(window));
            self.corrections.push(w.issued);
            if self.corrections.len() > most {
                found.push(format!(
                    "is correction number {} within the window of the circuit breaker",
                    self.corrections.len()
                ));
            }
        }
        found
    }
}

/// Whether a policy may touch a service, and says that it means it.
fn names(d: &Declared, p: &Policy, service: &Service) -> bool {
    p.means(service, d.labels.get(service))
        && d.rails(&p.namespace).all(|g| g.allows_service(service))
}

/// S1: whether anything but managed members changed, or how those that stay are written.
fn foreign_parts(w: &Write) -> Option<String> {
    if iam::foreign(&w.before) != iam::foreign(&w.after) {
        return Some(format!(
            "changes what is not its own: {} became {}",
            w.before, w.after
        ));
    }
    let after = iam::spelled(&w.after);
    let stays: Vec<_> = iam::spelled(&w.before)
        .into_iter()
        .filter(|m| after.contains(m))
        .collect();
    let kept: Vec<_> = after.into_iter().filter(|m| stays.contains(m)).collect();
    if stays != kept {
        return Some(format!(
            "writes members that stay in another way: {stays:?} became {kept:?}"
        ));
    }
    let respelled = iam::grants(&w.before)
        .intersection(&iam::grants(&w.after))
        .count()
        > stays.len();
    respelled.then(|| "spells a member that stays in another way".to_owned())
}
