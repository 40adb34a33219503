//! Listings of projects: each once per interval for all policies together, and sooner where a
//! declaration or an event needs it, but never faster than a pace that nobody's edits can raise.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet, time::Instant};

use super::{
    Controller, Priority,
    due::{Crowd, Due, Place as Seat},
    next_slot,
    owned::{Owned, Rank},
    reconcile::backoff,
    spread,
};
use crate::{
    cloudrun::{
        CloudRun, Listing, MAX_PAGES, Scope, endless,
        limit::{Needs, Place},
    },
    fault::{Fault, Retry},
    leader::InFlightGuard,
};

/// Listings of one project because somebody asks: so many at once, and then one in each period.
const BURST: u32 = 3;
const PERIOD: Duration = Duration::from_secs(5);
/// Listings that began lately, and all that are under way.
const FRESH: usize = 16;
const MOST: usize = 256;

#[derive(Debug, Default)]
struct State {
    due: Due<Arc<str>>,
    /// Somebody asked, and waits for its turn.
    asked: BTreeSet<Arc<str>>,
    busy: BTreeMap<Arc<str>, Seat>,
    crowd: Crowd,
    /// When the allowance of each project is whole again.
    paced: HashMap<Arc<str>, Instant>,
    failures: HashMap<Arc<str>, u32>,
}

/// Which projects are to be listed.
#[derive(Debug)]
pub(super) struct Listings {
    state: Owned<State>,
    changed: Notify,
    /// Of the next listing: an answer that was asked for earlier never wins over a later one.
    number: AtomicU64,
}

impl Default for Listings {
    fn default() -> Self {
        let state = Owned::new(Rank::Listings, State::default());
        Self {
            state,
            changed: Notify::new(),
            number: AtomicU64::new(1),
        }
    }
}

impl State {
    /// When a project may be listed because somebody asks.
    fn pace(&mut self, project: &Arc<str>, now: Instant) -> Instant {
        if self.paced.len() > 1000 {
            self.paced.retain(|_, whole| *whole > now);
        }
        let whole = self.paced.entry(project.clone()).or_insert(now);
        *whole = (*whole).max(now) + PERIOD;
        (*whole - PERIOD * BURST).max(now)
    }
}

impl Listings {
    /// Lists a project soon.
    pub fn soon(&self, project: &Arc<str>) {
        let now = Instant::now();
        self.state.with(|s| {
            if s.asked.insert(project.clone()) {
                let at = s.pace(project, now);
                s.due.no_later(project, at);
            }
        });
        self.changed.notify_one();
    }

    /// Lists a project no later than `at`.
    pub fn no_later(&self, project: &Arc<str>, at: Instant) {
        self.state.with(|s| s.due.no_later(project, at));
        self.changed.notify_one();
    }

    pub fn let_go(&self, among: impl Fn(&str) -> bool) {
        self.state.with(|s| {
            s.due.retain(|p| !among(p));
            s.asked.retain(|p| !among(p));
            s.paced.retain(|p, _| !among(p));
            s.failures.retain(|p, _| !among(p));
        });
    }

    fn next(&self) -> Result<(Arc<str>, u64), Option<Instant>> {
        let now = Instant::now();
        self.state.with(|s| {
            if !s.crowd.has_room(now, FRESH, MOST) {
                return Err(s.crowd.wake());
            }
            let busy = &s.busy;
            let Some(project) = s.due.take(now, |p| !busy.contains_key(p)) else {
                return Err(s.due.wake(|p| !busy.contains_key(p)));
            };
            s.asked.remove(&project);
            let seat = s.crowd.enter(now);
            s.busy.insert(project.clone(), seat);
            Ok((project, self.number.fetch_add(1, Ordering::Relaxed)))
        })
    }

    /// A listing is over; returns how many in a row failed.
    fn done(&self, project: &Arc<str>, failed: bool) -> u32 {
        self.state.with(|s| {
            if let Some(seat) = s.busy.remove(project) {
                s.crowd.leave(seat);
            }
            if !failed {
                s.failures.remove(project);
                return 0;
            }
            let failures = s.failures.entry(project.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        })
    }
}

/// A listing that is over.
struct Listed {
    project: Arc<str>,
    number: u64,
    /// `None`: nobody asks for it, or somebody else works on it.
    result: Option<(Result<Listing, Fault>, InFlightGuard)>,
}

impl<C: CloudRun> Controller<C> {
    /// Lists projects as they are due.
    pub(super) async fn list_projects(self: Arc<Self>) {
        let mut running: JoinSet<Listed> = JoinSet::new();
        loop {
            let changed = self.listings.changed.notified();
            let wake = match self.listings.next() {
                Ok((project, number)) => {
                    let this = self.clone();
                    running.spawn(async move {
                        let result = this.list_project(&project).await;
                        Listed {
                            project,
                            number,
                            result,
                        }
                    });
                    continue;
                }
                Err(wake) => wake,
            };
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                Some(Ok(listed)) = running.join_next() => self.listed(listed),
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Lists a project through all scopes and pages. Each page waits for its token; nobody waits
    /// for that.
    async fn list_project(
        &self,
        project: &Arc<str>,
    ) -> Option<(Result<Listing, Fault>, InFlightGuard)> {
        // Whoever takes its shard up lists it.
        let guard = self.enter(project)?;
        let scopes = self.index.with(|i| i.scopes(project));
        if scopes.is_empty() {
            return None;
        }
        let mut whole = Listing::default();
        for scope in &scopes {
            match self.list_scope(project, scope).await {
                Ok(part) => {
                    whole.services.extend(part.services);
                    whole.unreachable.extend(part.unreachable);
                }
                Err(fault) => return Some((Err(fault), guard)),
            }
        }
        Some((Ok(whole), guard))
    }

    async fn list_scope(&self, project: &Arc<str>, scope: &Scope) -> Result<Listing, Fault> {
        let place = Place::of_list(project, scope);
        let (mut whole, mut page) = (Listing::default(), String::new());
        for _ in 0..MAX_PAGES {
            let waited = Instant::now();
            let token = loop {
                if let Some(token) = self.cloud.wait(&place, Needs::READ).await.read() {
                    break token;
                }
            };
            self.metrics
                .waited(Priority::Periodic.label(), waited.elapsed());
            let (part, next) = self.cloud.list(project, scope, &page, token).await?;
            whole.services.extend(part.services);
            whole.unreachable.extend(part.unreachable);
            if next.is_empty() {
                return Ok(whole);
            }
            page = next;
        }
        Err(endless())
    }

    fn listed(&self, listed: Listed) {
        let Listed {
            project,
            number,
            result,
        } = listed;
        let failed = result.as_ref().is_some_and(|(r, _)| r.is_err());
        let failures = self.listings.done(&project, failed);
        let Some((result, guard)) = result else {
            return;
        };
        if !self.works_on(&project) {
            return;
        }
        let retry = result
            .as_ref()
            .err()
            .map(|f| (f.class.row().retry, f.retry_after));
        if let (Err(fault), 1) = (&result, failures) {
            tracing::warn!(%project, class = fault.class.row().label, "services could not be listed");
        }
        let (effect, interval) = self.index.with(|i| {
            let effect = i.apply_listing(&project, number, result);
            (effect, i.project_interval(&project))
        });
        self.ask(&effect.services, Priority::Drift);
        for key in &effect.policies {
            self.statuses.add(key, Duration::from_millis(300));
        }
        drop(guard);
        let Some(interval) = interval.map(|i| self.interval(&project, i)) else {
            return;
        };
        let wait = match retry {
            None => next_slot(
                self.elapsed(),
                interval,
                spread(self.options.seed, &project),
            ),
            Some((Retry::Slow, _)) => interval,
            Some((_, after)) => after
                .unwrap_or_else(|| backoff(failures, self.options.seed, &project))
                .min(interval.max(Duration::from_secs(1))),
        };
        self.listings.no_later(&project, Instant::now() + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn edits_cannot_raise_the_pace_of_listings() {
        let listings = Listings::default();
        let (project, mut listed) = (Arc::<str>::from("p"), 0);
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            listings.soon(&project);
            if let Ok((p, _)) = listings.next() {
                listed += 1;
                listings.done(&p, false);
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((12..=BURST + 12).contains(&listed), "{listed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_project_is_listed_once_at_a_time_and_again_if_it_was_asked_for_meanwhile() {
        let listings = Listings::default();
        let project = Arc::<str>::from("p");
        listings.soon(&project);
        let (_, first) = listings.next().unwrap();
        listings.soon(&project);
        assert!(listings.next().is_err());
        listings.done(&project, true);
        let (_, second) = listings.next().unwrap();
        assert!(second > first);
        assert_eq!(listings.done(&project, true), 2);
    }
}
