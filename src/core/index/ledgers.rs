//! The ledgers of all services, as the store has them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::names::Interner;
use crate::{
    api::{HeldRemoval, InvokerLedger, UsedApproval},
    iam::{Grant, RunService},
    intent::PolicyId,
    ledger::{Corrected, Ledger, Pending, Version, from_object, service_of},
};

/// A line in the form in which ten thousand ledgers are stored.
#[derive(Debug)]
struct Line {
    grant: Grant,
    /// Shared by the lines of a ledger: most belong to the same policies.
    owners: Arc<[PolicyId]>,
}

/// One ledger as it is stored.
#[derive(Debug, Default)]
struct Entry {
    lines: Box<[Line]>,
    /// Most ledgers hold nothing else for long.
    written_at: Option<Timestamp>,
    rest: Option<Box<Rest>>,
    version: Option<Version>,
    /// The object is there and cannot be read, and this is why.
    unreadable: Option<Box<str>>,
    /// It was deleted here at `version`; kept until the watch says so too, or events that are still
    /// on their way would bring it back.
    deleted: bool,
}

/// What most ledgers have nothing of.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rest {
    pending: Vec<Pending>,
    corrections: BTreeMap<Grant, Corrected>,
    corrected_under: Option<u64>,
    held: Option<HeldRemoval>,
    approvals: BTreeSet<Arc<str>>,
    used: Vec<UsedApproval>,
}

/// Services with a grant of one policy.
#[derive(Debug, Default)]
struct Owned {
    services: BTreeSet<RunService>,
    /// The number of the last change.
    stamp: u64,
}

/// Every ledger.
#[derive(Debug, Default)]
pub struct Ledgers {
    by_service: HashMap<RunService, Entry>,
    /// Services with a grant of a policy, by its uid.
    by_owner: HashMap<Arc<str>, Owned>,
    /// Services on which an approval of a plan was used, by the plan.
    by_plan: HashMap<Arc<str>, BTreeSet<RunService>>,
    /// Counts changes of what belongs to anybody.
    changes: u64,
    /// What a list in progress has shown.
    listing: Option<HashSet<RunService>>,
}

impl Ledgers {
    /// A list begins: what is not in it is gone.
    pub fn begin_list(&mut self) {
        self.listing = Some(HashSet::new());
    }

    /// The list is complete. Returns the services whose ledgers went.
    pub fn end_list(&mut self) -> Vec<RunService> {
        let Some(seen) = self.listing.take() else {
            return vec![];
        };
        let gone: Vec<RunService> = self
            .by_service
            .keys()
            .filter(|s| !seen.contains(*s))
            .cloned()
            .collect();
        for service in &gone {
            self.drop(service);
        }
        gone
    }

    /// Takes in an object as a watch has it. False: it is older than what is known, or the same.
    pub fn apply(&mut self, object: &InvokerLedger, names: &mut Interner) -> bool {
        let service = service_of(&object.spec);
        if let Some(seen) = &mut self.listing {
            seen.insert(service.clone());
        }
        let version = Version::new(
            object
                .metadata
                .resource_version
                .as_deref()
                .unwrap_or_default(),
        );
        let known = self
            .by_service
            .get(&service)
            .and_then(|k| k.version.as_ref());
        if known.is_some_and(|k| *k == version || version.is_older_than(k)) {
            return false;
        }
        match from_object(object) {
            Ok(ledger) => self.set(&service, &ledger, Some(version), names),
            Err(why) => self.spoil(&service, &why, Some(version)),
        }
        true
    }

    /// An object that is there and cannot be read: what was known of it stays, and nothing may be
    /// done on its ground.
    pub fn spoil(&mut self, service: &RunService, why: &str, version: Option<Version>) {
        if let Some(seen) = &mut self.listing {
            seen.insert(service.clone());
        }
        let entry = self.by_service.entry(service.clone()).or_default();
        entry.unreadable = Some(why.into());
        entry.version = version;
    }

    /// An object that is gone, as a watch has it. False: a newer one is known, or it was deleted
    /// here.
    pub fn remove(&mut self, service: &RunService, version: &Version) -> bool {
        let Some(entry) = self.by_service.get(service) else {
            return false;
        };
        if entry
            .version
            .as_ref()
            .is_some_and(|v| version.is_older_than(v))
        {
            return false;
        }
        let is_news = !entry.deleted;
        self.drop(service);
        is_news
    }

    fn drop(&mut self, service: &RunService) {
        self.disown(service);
        self.by_service.remove(service);
    }

    /// Takes a ledger out of what is found by owner and by plan.
    fn disown(&mut self, service: &RunService) {
        let rest = self.by_service.get(service).and_then(|k| k.rest.as_ref());
        let plans: Vec<Arc<str>> = rest.map_or(vec![], |r| plans(&r.used).collect());
        for plan in plans {
            if let Some(services) = self.by_plan.get_mut(&plan) {
                services.remove(service);
                if services.is_empty() {
                    self.by_plan.remove(&plan);
                }
            }
        }
        let owners = self
            .by_service
            .get(service)
            .into_iter()
            .flat_map(|k| k.lines.iter())
            .flat_map(|l| l.owners.iter());
        let uids: BTreeSet<Arc<str>> = owners.map(|o| o.uid.clone()).collect();
        for uid in uids {
            if let Some(owned) = self.by_owner.get_mut(&uid) {
                self.changes += 1;
                owned.stamp = self.changes;
                owned.services.remove(service);
                if owned.services.is_empty() {
                    self.by_owner.remove(&uid);
                }
            }
        }
    }

    /// Puts a ledger in place; `None` for a version: there is no object.
    pub fn set(
        &mut self,
        service: &RunService,
        ledger: &Ledger,
        version: Option<Version>,
        names: &mut Interner,
    ) {
        self.disown(service);
        if ledger.is_empty() && version.is_none() {
            self.by_service.remove(service);
            return;
        }
        let service = &names.share_service(service);
        let mut owners_of_lines: BTreeMap<&BTreeSet<PolicyId>, Arc<[PolicyId]>> = BTreeMap::new();
        for owners in ledger.lines.values() {
            owners_of_lines
                .entry(owners)
                .or_insert_with(|| owners.iter().map(|id| names.share_policy(id)).collect());
        }
        let lines = ledger.lines.iter().map(|(grant, owners)| Line {
            grant: Grant {
                principal: grant.principal.shared(|t| names.share(t)),
                role: grant.role,
                condition: grant.condition.as_ref().map(|c| names.share_condition(c)),
            },
            owners: owners_of_lines.get(owners).cloned().unwrap_or_default(),
        });
        let rest = Rest {
            pending: ledger.pending.clone(),
            corrections: ledger.corrections.clone(),
            corrected_under: ledger.corrected_under,
            held: ledger.held.clone(),
            approvals: ledger.approvals.clone(),
            used: ledger.used.clone(),
        };
        let is_plain = rest == Rest::default();
        let entry = Entry {
            lines: lines.collect(),
            written_at: ledger.written_at,
            rest: (!is_plain).then(|| Box::new(rest)),
            version,
            unreadable: None,
            deleted: false,
        };
        for plan in plans(&ledger.used) {
            let services = self.by_plan.entry(plan).or_default();
            services.insert(service.clone());
        }
        let owners: BTreeSet<&PolicyId> = owners_of_lines.values().flat_map(|o| o.iter()).collect();
        for id in owners {
            let owned = self.by_owner.entry(id.uid.clone()).or_default();
            self.changes += 1;
            owned.stamp = self.changes;
            owned.services.insert(service.clone());
        }
        self.by_service.insert(service.clone(), entry);
    }

    /// The object of a service was deleted here; `last` was its version.
    pub fn erase(&mut self, service: &RunService, last: Version) {
        self.disown(service);
        // The watch can be faster than the answer.
        if !self.by_service.contains_key(service) {
            return;
        }
        let gone = Entry {
            version: Some(last),
            deleted: true,
            ..Entry::default()
        };
        self.by_service.insert(service.clone(), gone);
    }

    /// What is answered for on a service, and the version of the object; no version where there is
    /// none.
    pub fn get(&self, service: &RunService) -> (Ledger, Option<Version>) {
        let Some(entry) = self.by_service.get(service) else {
            return (Ledger::default(), None);
        };
        let lines = entry
            .lines
            .iter()
            .map(|l| (l.grant.clone(), l.owners.iter().cloned().collect()))
            .collect();
        let Rest {
            pending,
            corrections,
            corrected_under,
            held,
            approvals,
            used,
        } = entry.rest.as_deref().cloned().unwrap_or_default();
        (
            Ledger {
                lines,
                pending,
                corrections,
                corrected_under,
                written_at: entry.written_at,
                held,
                approvals,
                used,
            },
            entry.version.clone().filter(|_| !entry.deleted),
        )
    }

    /// Why the ledger of a service cannot be read, if so.
    pub fn unreadable(&self, service: &RunService) -> Option<&str> {
        self.by_service.get(service)?.unreadable.as_deref()
    }

    pub fn contains(&self, service: &RunService) -> bool {
        self.by_service.get(service).is_some_and(|k| !k.deleted)
    }

    /// Services with a ledger.
    pub fn services(&self) -> impl Iterator<Item = &RunService> {
        self.by_service
            .iter()
            .filter(|(_, k)| !k.deleted)
            .map(|(s, _)| s)
    }

    /// Services on which a grant belongs to this policy.
    pub fn owned_by(&self, uid: &str) -> impl Iterator<Item = &RunService> {
        let owned = self.by_owner.get(uid).into_iter();
        owned.flat_map(|o| &o.services)
    }

    /// Another one whenever other services than before may be [`Self::owned_by`] a policy.
    pub fn stamp(&self, uid: &str) -> u64 {
        self.by_owner.get(uid).map_or(0, |o| o.stamp)
    }

    pub fn owns(&self, uid: &str, service: &RunService) -> bool {
        self.by_owner
            .get(uid)
            .is_some_and(|o| o.services.contains(service))
    }

    /// Whom grants on a service belong to, each once.
    pub fn owners(&self, service: &RunService) -> BTreeSet<&PolicyId> {
        self.by_service
            .get(service)
            .into_iter()
            .flat_map(|k| k.lines.iter())
            .flat_map(|l| l.owners.iter())
            .collect()
    }

    /// Whether the operator answers for a grant on some service of a project.
    pub fn has_line(&self, project: &str, grant: &Grant) -> bool {
        let mut all = self.by_service.iter();
        all.any(|(s, k)| *s.project == *project && k.lines.iter().any(|l| l.grant == *grant))
    }

    /// Grants on a service that are nobody's any more.
    pub fn abandoned(&self, service: &RunService) -> impl Iterator<Item = &Grant> {
        let lines = self
            .by_service
            .get(service)
            .into_iter()
            .flat_map(|k| k.lines.iter());
        lines.filter(|l| l.owners.is_empty()).map(|l| &l.grant)
    }

    /// Whether a ledger has no grants.
    pub fn is_bare(&self, service: &RunService) -> bool {
        self.by_service
            .get(service)
            .is_some_and(|k| !k.deleted && k.lines.is_empty())
    }

    /// Whether a write is under way on a service, or one whose end nobody has seen.
    pub fn is_pending(&self, service: &RunService) -> bool {
        self.by_service
            .get(service)
            .and_then(|k| k.rest.as_ref())
            .is_some_and(|r| !r.pending.is_empty())
    }

    /// Hashes of removals on a service that somebody agreed to on the ledger itself.
    pub fn approvals(&self, service: &RunService) -> impl Iterator<Item = &Arc<str>> {
        self.by_service
            .get(service)
            .and_then(|k| k.rest.as_ref())
            .into_iter()
            .flat_map(|r| &r.approvals)
    }

    /// Approvals that were used on a service.
    pub fn used(&self, service: &RunService) -> &[UsedApproval] {
        let rest = self.by_service.get(service).and_then(|k| k.rest.as_ref());
        rest.map_or(&[], |r| &r.used)
    }

    /// Every use of an approval of this plan, with the service.
    pub fn uses(&self, plan: &str) -> impl Iterator<Item = (&RunService, &UsedApproval)> {
        let services = self.by_plan.get(plan).into_iter().flatten();
        services.flat_map(move |service| {
            let rest = self.by_service.get(service).and_then(|k| k.rest.as_ref());
            let used = rest.into_iter().flat_map(|r| &r.used);
            used.filter(move |u| u.plan == plan)
                .map(move |u| (service, u))
        })
    }

    /// Services on which a removal waits, and no policy is left to say so.
    pub fn held(&self) -> impl Iterator<Item = &RunService> {
        self.by_service
            .iter()
            .filter(|(_, k)| k.rest.as_ref().is_some_and(|r| r.held.is_some()))
            .map(|(s, _)| s)
    }

    /// Services with a write whose end nobody has seen.
    pub fn pending(&self) -> impl Iterator<Item = &RunService> {
        self.by_service.keys().filter(|s| self.is_pending(s))
    }

    /// When drift was corrected, over all services: one time for each write.
    pub fn corrections(&self) -> impl Iterator<Item = (&RunService, Timestamp)> {
        self.by_service.iter().flat_map(|(s, k)| {
            let times: BTreeSet<Timestamp> = k
                .rest
                .iter()
                .flat_map(|r| r.corrections.values())
                .flat_map(|c| c.at.iter().copied())
                .collect();
            times.into_iter().map(move |t| (s, t))
        })
    }

    /// When the last write to a service that was made was over.
    pub fn written_at(&self, service: &RunService) -> Option<Timestamp> {
        self.by_service.get(service)?.written_at
    }

    /// When drift was corrected on one service.
    pub fn corrections_of(&self, service: &RunService) -> BTreeSet<Timestamp> {
        let rest = self.by_service.get(service).and_then(|k| k.rest.as_ref());
        rest.iter()
            .flat_map(|r| r.corrections.values())
            .flat_map(|c| c.at.iter().copied())
            .collect()
    }
}

/// The plans that approvals were used for.
fn plans(used: &[UsedApproval]) -> impl Iterator<Item = Arc<str>> + '_ {
    used.iter().map(|u| Arc::from(u.plan.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        iam::{Principal, Role},
        ledger::to_spec,
    };

    fn web() -> RunService {
        RunService::new("acme-prod", "europe-west1", "web")
    }
    fn id(name: &str) -> PolicyId {
        PolicyId {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
        }
    }
    fn grant(member: &str) -> Grant {
        Grant::new(Principal::from_live(member), Role::Invoker)
    }
    fn ledger(lines: &[(&str, &[&str])]) -> Ledger {
        let lines = lines
            .iter()
            .map(|(m, o)| (grant(m), o.iter().map(|n| id(n)).collect()))
            .collect();
        Ledger {
            lines,
            ..Ledger::default()
        }
    }
    fn object(ledger: &Ledger, version: &str) -> InvokerLedger {
        let mut object = InvokerLedger::new("x", to_spec(&web(), ledger));
        object.metadata.resource_version = Some(version.into());
        object
    }
    fn known(ledgers: &Ledgers) -> Vec<String> {
        ledgers
            .get(&web())
            .0
            .lines
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_condition_that_many_ledgers_have_is_stored_once() {
        let (mut ledgers, mut names) = (Ledgers::default(), Interner::default());
        let mut conditional = grant("user:a@x.co");
        let condition = crate::iam::Condition::new("t", String::new(), "e");
        let shared = ["web", "api"].map(|name| {
            let service = RunService::new("acme-prod", "europe-west1", name);
            conditional.condition = Some(Arc::new(condition.clone()));
            let mut read = ledger(&[]);
            read.lines.insert(conditional.clone(), [id("p")].into());
            ledgers.set(&service, &read, Some(Version::new("1")), &mut names);
            let (grant, _) = ledgers.get(&service).0.lines.pop_first().unwrap();
            grant.condition.unwrap()
        });
        assert!(Arc::ptr_eq(&shared[0], &shared[1]));
    }

    #[test]
    fn a_late_event_of_a_watch_does_not_undo_what_was_written() {
        let (mut ledgers, mut names) = (Ledgers::default(), Interner::default());
        ledgers.set(
            &web(),
            &ledger(&[("user:new@x.co", &["p"])]),
            Some(Version::new("12")),
            &mut names,
        );
        assert!(!ledgers.apply(
            &object(&ledger(&[("user:old@x.co", &["p"])]), "9"),
            &mut names
        ));
        assert!(!ledgers.remove(&web(), &Version::new("10")));
        assert_eq!(known(&ledgers), ["user:new@x.co"]);
        assert!(ledgers.apply(
            &object(&ledger(&[("user:newer@x.co", &["q"])]), "100"),
            &mut names
        ));
        assert_eq!(known(&ledgers), ["user:newer@x.co"]);
        assert_eq!(ledgers.owned_by("uid-p").count(), 0);
        assert!(ledgers.owns("uid-q", &web()));
        assert!(ledgers.remove(&web(), &Version::new("101")));
        assert!(!ledgers.contains(&web()) && ledgers.owned_by("uid-q").count() == 0);
    }

    #[test]
    fn what_was_deleted_here_does_not_come_back_with_a_late_event() {
        let (mut ledgers, mut names) = (Ledgers::default(), Interner::default());
        let old = ledger(&[("user:a@x.co", &["p"])]);
        ledgers.set(&web(), &old, Some(Version::new("5")), &mut names);
        ledgers.erase(&web(), Version::new("5"));
        assert!(!ledgers.contains(&web()) && ledgers.get(&web()).1.is_none());
        assert!(
            !ledgers.apply(&object(&old, "4"), &mut names)
                && !ledgers.apply(&object(&old, "5"), &mut names)
        );
        assert!(known(&ledgers).is_empty());
        assert!(
            ledgers.apply(&object(&old, "8"), &mut names),
            "somebody else made it anew"
        );
        ledgers.erase(&web(), Version::new("8"));
        assert!(!ledgers.remove(&web(), &Version::new("9")), "no news");
        assert_eq!(ledgers.services().count(), 0);
    }

    #[test]
    fn what_a_list_does_not_show_is_gone_and_what_it_cannot_read_stays() {
        let (mut ledgers, mut names) = (Ledgers::default(), Interner::default());
        let other = RunService::new("acme-prod", "europe-west1", "other");
        for s in [&web(), &other] {
            ledgers.set(
                s,
                &ledger(&[("user:a@x.co", &["p"])]),
                Some(Version::new("1")),
                &mut names,
            );
        }
        ledgers.begin_list();
        ledgers.spoil(&web(), "broken", Some(Version::new("2")));
        assert_eq!(ledgers.end_list(), [other]);
        assert_eq!(known(&ledgers), ["user:a@x.co"]);
        assert_eq!(ledgers.unreadable(&web()), Some("broken"));
        assert!(ledgers.apply(&object(&ledger(&[]), "3"), &mut names));
        assert_eq!(ledgers.unreadable(&web()), None);
    }
}
