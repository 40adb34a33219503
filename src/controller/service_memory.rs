//! What is remembered of a service between reconciles, and nowhere in the store: under which
//! declarations it was settled, which members IAM refused, and which of several it may be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::owned::{Owned, Rank};
use crate::{
    fault::Fault,
    iam::{Grant, RunService},
    plan::{RejectedMember, Search, drift::Memory},
};

/// A member that was just made is unknown to IAM for some minutes; later the same refusal is a
/// mistake.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(3600);

/// Services beyond which those that nobody is about any more are forgotten altogether.
const MANY_RECALLED: usize = 1000;

/// A member that IAM refused, and when it is tried again.
#[derive(Clone, Debug)]
struct Rejected {
    member: RejectedMember,
    fault: Fault,
    until: Instant,
    times: u32,
    /// Fingerprint of the declarations that asked; another one is a reason to try at once.
    asked_by: u64,
}

#[derive(Debug, Default)]
struct Entry {
    drift: Memory,
    rejected: BTreeMap<Grant, Rejected>,
    search: Search,
    observed_at: Option<Instant>,
}

/// What is known of members that IAM refused.
#[derive(Clone, Debug, Default)]
pub(super) struct Rejections {
    /// Not to be tried now.
    pub rejected: BTreeMap<Grant, RejectedMember>,
    /// To be tried again, each by itself.
    pub alone: BTreeMap<Grant, RejectedMember>,
}

/// The memories of all services that somebody is about.
#[derive(Debug)]
pub(super) struct ServiceMemories {
    state: Owned<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<RunService, Box<Entry>>,
    /// Where the statuses were asked what they know of the time before this process. It outlives
    /// what is remembered: what they say later may be older than what this process did.
    recalled: HashSet<RunService>,
}

impl Default for ServiceMemories {
    fn default() -> Self {
        Self {
            state: Owned::new(Rank::ServiceMemory, State::default()),
        }
    }
}

impl ServiceMemories {
    fn entry<R>(&self, service: &RunService, f: impl FnOnce(&mut Entry) -> R) -> R {
        self.state
            .with(|s| f(s.entries.entry(service.clone()).or_default()))
    }

    /// Whether this process has not asked the statuses yet what they know of a service.
    pub fn must_recall(&self, service: &RunService) -> bool {
        self.state.with(|s| s.recalled.insert(service.clone()))
    }

    /// What of drift is remembered.
    pub fn drift(&self, service: &RunService) -> Memory {
        self.entry(service, |e| e.drift.clone())
    }

    /// The service is as declared by `fingerprint`, but for what is `outstanding`.
    pub fn settle(&self, service: &RunService, fingerprint: u64, outstanding: BTreeSet<Grant>) {
        self.entry(service, |e| e.drift.settle(fingerprint, outstanding));
    }

    /// Drift that is known and not corrected yet.
    pub fn waits(&self, service: &RunService, drift: BTreeSet<Grant>) {
        self.entry(service, |e| e.drift.waiting = drift);
    }

    /// A reconcile is over; returns how long ago the one before was.
    pub fn observed(&self, service: &RunService) -> Option<Duration> {
        let now = Instant::now();
        self.entry(service, |e| e.observed_at.replace(now))
            .map(|before| now.saturating_duration_since(before))
    }

    /// Members that are not to be tried now, and those that are tried alone. `declared` says of a
    /// grant whether anybody still lists it.
    pub fn rejections(
        &self,
        service: &RunService,
        asked_by: u64,
        declared: impl Fn(&Grant) -> bool,
    ) -> Rejections {
        let now = Instant::now();
        self.entry(service, |e| {
            e.rejected.retain(|grant, _| declared(grant));
            let (waiting, due): (Vec<_>, Vec<_>) = e
                .rejected
                .iter()
                .partition(|(_, r)| r.until > now && r.asked_by == asked_by);
            Rejections {
                rejected: waiting
                    .into_iter()
                    .map(|(g, r)| (g.clone(), r.member.clone()))
                    .collect(),
                alone: due
                    .into_iter()
                    .map(|(g, r)| (g.clone(), r.member.clone()))
                    .collect(),
            }
        })
    }

    /// IAM refuses a member.
    pub fn reject(&self, service: &RunService, grant: &Grant, fault: &Fault, asked_by: u64) {
        let now = Instant::now();
        self.entry(service, |e| {
            let (times, member) = match e.rejected.get(grant) {
                // What is said again is no news, although every request has its own id.
                Some(r) if r.fault.says_the_same(fault) => (r.times, r.member.clone()),
                known => (
                    known.map_or(0, |r| r.times),
                    RejectedMember {
                        reason: fault.class.row().reason,
                        message: fault.advice(),
                    },
                ),
            };
            let wait = FIRST_RETRY
                .saturating_mul(2u32.saturating_pow(times.min(7)))
                .min(LAST_RETRY);
            let times = times.saturating_add(1);
            let rejected = Rejected {
                member,
                fault: fault.clone(),
                until: now + wait,
                times,
                asked_by,
            };
            e.rejected.insert(grant.clone(), rejected);
            e.search.settle(grant);
        });
    }

    /// IAM took these: whatever was held against them is over.
    pub fn accept(&self, service: &RunService, grants: &BTreeSet<Grant>) {
        self.entry(service, |e| e.rejected.retain(|g, _| !grants.contains(g)));
    }

    /// When a member that is not to be tried now is tried again.
    pub fn next_try(&self, service: &RunService) -> Option<Instant> {
        let now = Instant::now();
        self.entry(service, |e| {
            e.rejected
                .values()
                .map(|r| r.until)
                .filter(|u| *u > now)
                .min()
        })
    }

    /// Goes on with the search for a refused member.
    pub fn search<R>(&self, service: &RunService, f: impl FnOnce(&mut Search) -> R) -> R {
        self.entry(service, |e| f(&mut e.search))
    }

    pub fn forget(&self, service: &RunService) {
        self.state.with(|state| {
            state.entries.remove(service);
            // Services come and go for years. Of those long gone no status says anything.
            if state.recalled.len() > MANY_RECALLED + 2 * state.entries.len() {
                let entries = &state.entries;
                state.recalled.retain(|s| entries.contains_key(s));
            }
        });
    }

    pub fn let_go(&self, among: impl Fn(&RunService) -> bool) {
        self.state.with(|state| {
            state.entries.retain(|s, _| !among(s));
            state.recalled.retain(|s| !among(s));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fault::FaultClass,
        iam::{Principal, Role},
    };

    #[test]
    fn services_that_come_and_go_leave_nothing_behind() {
        let memories = ServiceMemories::default();
        for i in 0..10 * MANY_RECALLED {
            let service = RunService::new("p", "r", format!("s{i}"));
            memories.must_recall(&service);
            memories.drift(&service);
            memories.forget(&service);
        }
        let kept = memories.state.with(|s| s.recalled.len());
        assert!(kept <= MANY_RECALLED, "{kept}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_member_is_tried_again_ever_more_rarely_and_alone() {
        let (memories, service) = (ServiceMemories::default(), RunService::new("p", "r", "s"));
        let grant = Grant::new(Principal::from_live("user:a@a.co"), Role::Invoker);
        let fault = Fault::new(FaultClass::InvalidMember, "no");
        let mut waits = Vec::new();
        for _ in 0..9 {
            memories.reject(&service, &grant, &fault, 1);
            assert_eq!(memories.rejections(&service, 1, |_| true).rejected.len(), 1);
            assert_eq!(
                memories.rejections(&service, 2, |_| true).alone.len(),
                1,
                "somebody asks in other words"
            );
            let until = memories.next_try(&service).unwrap();
            waits.push((until - Instant::now()).as_secs());
            tokio::time::sleep_until(until).await;
            let due = memories.rejections(&service, 1, |_| true);
            assert_eq!((due.rejected.len(), due.alone.len()), (0, 1));
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        memories.rejections(&service, 1, |_| false);
        assert!(
            memories.rejections(&service, 1, |_| true).alone.is_empty(),
            "nobody lists it any more"
        );
    }
}
