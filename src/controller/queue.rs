//! The queue of services: four lanes that age, one worker per service, requests that fold into one.
//!
//! Waiting work is kept by project and region, so that a place whose budget is spent holds nobody else up.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{cloudrun::Priority, iam::RunService};

/// Services of one project and region that are worked on at once; a declared change may go a little beyond.
const PER_PLACE: usize = 32;
const EXTRA_FOR_DECLARED: usize = 8;
/// Every so many turns the one that waited longest is served, whatever its lane: no lane can starve.
const AGED_TURN: u64 = 4;

type Place = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Item {
    /// Lane, ticket and since when, if it waits.
    queued: Option<(Priority, u64, Instant)>,
    running: Option<Instant>,
    /// Came in while it was worked on: once more after that.
    again: Option<Priority>,
    timer: Option<(Instant, u64, Priority)>,
    failures: u32,
}

#[derive(Debug, Default)]
struct Waiting {
    lanes: [BTreeMap<u64, RunService>; 4],
    running: usize,
}

#[derive(Debug, Default)]
struct Inner {
    items: HashMap<RunService, Item>,
    places: BTreeMap<Place, Waiting>,
    timers: BTreeSet<(Instant, u64, RunService)>,
    ticket: u64,
    turns: u64,
    /// Where the next round over the places begins.
    cursor: Option<Place>,
}

/// A queue of services.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// A service to work on, and in which lane it came up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub service: RunService,
    pub lane: Priority,
    pub waited: Duration,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a service to be worked on. Equal requests fold; the more urgent lane counts.
    pub fn add(&self, service: &RunService, lane: Priority) {
        self.lock().add(service, lane, Instant::now());
        self.changed.notify_waiters();
    }

    /// Asks for many at once.
    pub fn add_all<'a>(&self, services: impl IntoIterator<Item = &'a RunService>, lane: Priority) {
        let now = Instant::now();
        let mut inner = self.lock();
        for service in services {
            inner.add(service, lane, now);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Asks for a service at a later time, unless an earlier one is set already.
    pub fn add_at(&self, service: &RunService, lane: Priority, at: Instant) {
        self.lock().set_timer(service, lane, at);
        self.changed.notify_waiters();
    }

    /// The next job. Waits until there is one.
    pub async fn next(&self) -> Job {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (job, wake) = {
                let mut inner = self.lock();
                let now = Instant::now();
                inner.ring(now);
                (inner.pick(now), inner.timers.first().map(|t| t.0))
            };
            if let Some(job) = job {
                return job;
            }
            match wake {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(at) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// A job is over. `failed` counts towards back-off; the number of failures in a row comes back.
    pub fn done(&self, service: &RunService, failed: bool) -> u32 {
        let mut inner = self.lock();
        let failures = inner.done(service, failed, Instant::now());
        drop(inner);
        self.changed.notify_waiters();
        failures
    }

    /// Forgets timers of a service that nobody is about any more.
    pub fn forget(&self, service: &RunService) {
        let mut inner = self.lock();
        if let Some(item) = inner.items.get_mut(service) {
            let timer = item.timer.take();
            if item.queued.is_none() && item.running.is_none() {
                inner.items.remove(service);
            }
            if let Some((at, ticket, _)) = timer {
                inner.timers.remove(&(at, ticket, service.clone()));
            }
        }
    }

    /// How many wait in each lane.
    pub fn depths(&self) -> [usize; 4] {
        let inner = self.lock();
        let mut depths = [0; 4];
        for waiting in inner.places.values() {
            for (depth, lane) in depths.iter_mut().zip(&waiting.lanes) {
                *depth += lane.len();
            }
        }
        depths
    }

    /// How many are being worked on.
    pub fn running(&self) -> usize {
        self.lock().places.values().map(|p| p.running).sum()
    }

    /// Whether a service is being worked on.
    pub fn is_running(&self, service: &RunService) -> bool {
        self.lock().items.get(service).is_some_and(|i| i.running.is_some())
    }

    /// How long the longest job has been running.
    pub fn longest_running(&self) -> Duration {
        let now = Instant::now();
        self.lock().items.values().filter_map(|i| i.running).map(|since| now - since).max().unwrap_or_default()
    }
}

fn place(service: &RunService) -> Place {
    (service.project.clone(), service.region.clone())
}

impl Inner {
    fn item(&mut self, service: &RunService) -> &mut Item {
        self.items.entry(service.clone()).or_insert(Item {
            queued: None,
            running: None,
            again: None,
            timer: None,
            failures: 0,
        })
    }

    fn add(&mut self, service: &RunService, lane: Priority, now: Instant) {
        self.ticket += 1;
        let ticket = self.ticket;
        let item = self.item(service);
        if item.running.is_some() {
            item.again = Some(item.again.map_or(lane, |l| l.min(lane)));
            return;
        }
        let before = item.queued;
        if before.is_some_and(|(l, _, _)| l <= lane) {
            return;
        }
        item.queued = Some((lane, ticket, before.map_or(now, |(_, _, since)| since)));
        // Whatever was set for later is answered by this.
        let timer = item.timer.take();
        if let Some((at, t, _)) = timer {
            self.timers.remove(&(at, t, service.clone()));
        }
        let waiting = self.places.entry(place(service)).or_default();
        if let Some((l, t, _)) = before {
            waiting.lanes[l as usize].remove(&t);
        }
        waiting.lanes[lane as usize].insert(ticket, service.clone());
    }

    fn set_timer(&mut self, service: &RunService, lane: Priority, at: Instant) {
        self.ticket += 1;
        let ticket = self.ticket;
        let item = self.item(service);
        if item.queued.is_some() || item.again.is_some() || item.timer.is_some_and(|(t, _, _)| t <= at) {
            return;
        }
        let before = item.timer.replace((at, ticket, lane));
        if let Some((t, old, _)) = before {
            self.timers.remove(&(t, old, service.clone()));
        }
        self.timers.insert((at, ticket, service.clone()));
    }

    /// Moves what is due into its lane.
    fn ring(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|t| t.0 <= now) {
            let Some((_, _, service)) = self.timers.pop_first() else { break };
            let Some((_, _, lane)) = self.items.get_mut(&service).and_then(|i| i.timer.take()) else { continue };
            self.add(&service, lane, now);
        }
    }

    fn pick(&mut self, now: Instant) -> Option<Job> {
        self.turns += 1;
        let mut best: Option<(bool, Priority, Instant, Place, u64)> = None;
        let aged = self.turns.is_multiple_of(AGED_TURN);
        let start = self.cursor.clone();
        let after = self.places.range((
            start.clone().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
            std::ops::Bound::Unbounded,
        ));
        let wrapped = start.iter().flat_map(|c| self.places.range(..=c.clone()));
        'places: for (name, waiting) in after.chain(wrapped) {
            for lane in Priority::ALL {
                let room = PER_PLACE + if lane == Priority::Declared { EXTRA_FOR_DECLARED } else { 0 };
                if waiting.running >= room {
                    continue;
                }
                let Some((ticket, service)) = waiting.lanes[lane as usize].first_key_value() else { continue };
                let Some((_, _, since)) = self.items.get(service).and_then(|i| i.queued) else { continue };
                let better = match &best {
                    None => true,
                    Some((_, _, oldest, _, _)) if aged => since < *oldest,
                    Some((_, l, _, _, _)) => lane < *l,
                };
                if better {
                    best = Some((aged, lane, since, name.clone(), *ticket));
                }
                if !aged && lane == Priority::Declared {
                    break 'places;
                }
            }
        }
        let (_, lane, since, name, ticket) = best?;
        let waiting = self.places.get_mut(&name)?;
        let service = waiting.lanes[lane as usize].remove(&ticket)?;
        waiting.running += 1;
        self.cursor = Some(name);
        if let Some(item) = self.items.get_mut(&service) {
            item.queued = None;
            item.running = Some(now);
        }
        Some(Job { service, lane, waited: now.saturating_duration_since(since) })
    }

    fn done(&mut self, service: &RunService, failed: bool, now: Instant) -> u32 {
        let Some(item) = self.items.get_mut(service) else { return 0 };
        item.running = None;
        item.failures = if failed { item.failures.saturating_add(1) } else { 0 };
        let failures = item.failures;
        let again = item.again.take();
        let name = place(service);
        if let Some(waiting) = self.places.get_mut(&name) {
            waiting.running = waiting.running.saturating_sub(1);
            if waiting.running == 0 && waiting.lanes.iter().all(BTreeMap::is_empty) {
                self.places.remove(&name);
            }
        }
        if let Some(lane) = again {
            self.add(service, lane, now);
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(name: &str) -> RunService {
        RunService::new("p", "r", name)
    }
    async fn pop(q: &Queue) -> Job {
        tokio::time::timeout(Duration::from_secs(1), q.next()).await.unwrap()
    }
    async fn nothing(q: &Queue) -> bool {
        tokio::time::timeout(Duration::from_millis(1), q.next()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn equal_requests_fold_and_the_urgent_lane_counts() {
        let q = Queue::default();
        q.add(&s("a"), Priority::Periodic);
        q.add(&s("a"), Priority::Declared);
        q.add(&s("a"), Priority::Periodic);
        assert_eq!(pop(&q).await.lane, Priority::Declared);
        q.done(&s("a"), false);
        assert!(nothing(&q).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_is_never_worked_on_twice_at_once() {
        let q = Queue::default();
        q.add(&s("a"), Priority::Drift);
        pop(&q).await;
        q.add(&s("a"), Priority::Drift);
        q.add(&s("a"), Priority::Periodic);
        assert!(nothing(&q).await);
        q.done(&s("a"), false);
        assert_eq!(pop(&q).await.lane, Priority::Drift);
        q.done(&s("a"), false);
        assert!(nothing(&q).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_declared_change_does_not_wait_behind_ten_thousand_others() {
        let q = Queue::default();
        for i in 0..10_000 {
            q.add(&RunService::new("p", format!("r{}", i % 50), format!("s{i}")), Priority::Periodic);
        }
        q.add(&s("edit"), Priority::Declared);
        let mut position = 0;
        while pop(&q).await.service != s("edit") {
            position += 1;
        }
        assert!(position <= 1, "served after {position}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_lane_does_not_starve_a_lower_one() {
        let q = Queue::default();
        q.add(&s("old"), Priority::Periodic);
        tokio::time::advance(Duration::from_secs(1)).await;
        for i in 0..100 {
            q.add(&s(&format!("d{i}")), Priority::Declared);
        }
        for turn in 0..8 {
            let job = pop(&q).await;
            if job.service == s("old") {
                return;
            }
            q.done(&job.service, false);
            assert!(turn < 7, "the periodic look starved");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_full_holds_nobody_else_up() {
        let q = Queue::default();
        for i in 0..100 {
            q.add(&s(&format!("s{i}")), Priority::Drift);
        }
        for _ in 0..PER_PLACE {
            pop(&q).await;
        }
        assert!(nothing(&q).await);
        q.add(&RunService::new("other", "r", "x"), Priority::Periodic);
        assert_eq!(&*pop(&q).await.service.project, "other");
        q.add(&s("edit"), Priority::Declared);
        assert_eq!(pop(&q).await.service, s("edit"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_rings_once_and_an_earlier_request_answers_it() {
        let q = Queue::default();
        q.add_at(&s("a"), Priority::Periodic, Instant::now() + Duration::from_secs(60));
        q.add_at(&s("a"), Priority::Retry, Instant::now() + Duration::from_secs(5));
        let started = Instant::now();
        let job = tokio::time::timeout(Duration::from_secs(100), q.next()).await.unwrap();
        assert_eq!((job.lane, started.elapsed().as_secs()), (Priority::Retry, 5));
        q.done(&s("a"), true);
        assert!(tokio::time::timeout(Duration::from_secs(100), q.next()).await.is_err());
        assert_eq!(q.done(&s("a"), true), 2);
    }
}
