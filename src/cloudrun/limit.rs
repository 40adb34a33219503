//! [`CloudRun`] within a budget: token buckets per project and region, served by lane, and a cap on calls at once.
//!
//! A bucket never lets more through in any 60 seconds than its budget: burst and refill add up to it. A 429 halves the
//! refill and stops the bucket for as long as Google asked; it recovers within two minutes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{CloudRun, Listing, Method, Observer, Priority, Scope};
use crate::{
    fault::{Fault, FaultClass},
    iam::{Policy, RunService},
};

/// Calls per minute, for each project and region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    pub reads_per_minute: u32,
    /// Projects start with 60 in a minute and region; half of it leaves room for people and pipelines.
    pub writes_per_minute: u32,
    /// Calls under way at once, over everything.
    pub concurrency: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { reads_per_minute: 600, writes_per_minute: 30, concurrency: 64 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Read,
    Write,
}

/// Without a hint from Google, how long a bucket stands still after a 429.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);
const RECOVERY: Duration = Duration::from_secs(120);
const LEAST_SHARE: f64 = 0.125;

#[derive(Debug)]
struct Bucket {
    /// Tokens per second when healthy.
    rate: f64,
    burst: f64,
    tokens: f64,
    /// What a 429 left of the rate, from [`LEAST_SHARE`] to 1.
    share: f64,
    at: Instant,
    paused_until: Option<Instant>,
    waiting: BTreeSet<(Priority, u64)>,
    notify: Arc<Notify>,
}

impl Bucket {
    fn new(per_minute: u32, now: Instant) -> Self {
        let budget = f64::from(per_minute.max(1));
        let burst = (budget / 3.0).clamp(1.0, 20.0);
        let rate = ((budget - burst) / 60.0).max(1.0 / 60.0);
        Self {
            rate,
            burst,
            tokens: burst,
            share: 1.0,
            at: now,
            paused_until: None,
            waiting: BTreeSet::new(),
            notify: Arc::default(),
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * self.rate * self.share).min(self.burst);
        self.share = (self.share + passed / RECOVERY.as_secs_f64()).min(1.0);
    }

    /// Takes a token, or says how long the first in line has to wait.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if let Some(until) = self.paused_until {
            if until > now {
                return Err(until - now);
            }
            self.paused_until = None;
        }
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / (self.rate * self.share)).max(Duration::from_millis(1)))
    }

    fn pushed_back(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.refill(now);
        self.share = (self.share / 2.0).max(LEAST_SHARE);
        self.tokens = 0.0;
        let until = now + retry_after.unwrap_or(DEFAULT_PAUSE);
        self.paused_until = Some(self.paused_until.map_or(until, |p| p.max(until)));
    }
}

type Key = (Arc<str>, Arc<str>, Kind);

/// A [`CloudRun`] that stays within its budget.
pub struct Limited<C> {
    inner: C,
    budget: Budget,
    buckets: Mutex<HashMap<Key, Bucket>>,
    sequence: std::sync::atomic::AtomicU64,
    slots: tokio::sync::Semaphore,
    observer: Arc<dyn Observer>,
}

impl<C: CloudRun> Limited<C> {
    pub fn new(inner: C, budget: Budget, observer: Arc<dyn Observer>) -> Self {
        Self {
            inner,
            budget,
            buckets: Mutex::default(),
            sequence: Default::default(),
            slots: tokio::sync::Semaphore::new(budget.concurrency.max(1)),
            observer,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_bucket<R>(&self, key: &Key, f: impl FnOnce(&mut Bucket) -> R) -> R {
        let per_minute = match key.2 {
            Kind::Read => self.budget.reads_per_minute,
            Kind::Write => self.budget.writes_per_minute,
        };
        f(self.lock().entry(key.clone()).or_insert_with(|| Bucket::new(per_minute, Instant::now())))
    }

    /// Waits for a token, behind every lane that goes before.
    async fn admit(&self, key: &Key, lane: Priority) {
        let ticket = (lane, self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let notify = self.with_bucket(key, |b| {
            b.waiting.insert(ticket);
            b.notify.clone()
        });
        // A caller that is dropped must not stay first in line for ever.
        let _place = Place { limiter: self, key, ticket, notify: notify.clone() };
        loop {
            let changed = notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = self.with_bucket(key, |b| {
                if b.waiting.first() != Some(&ticket) {
                    return Some(None);
                }
                b.take(Instant::now()).err().map(Some)
            });
            match wait {
                None => return,
                Some(None) => changed.await,
                // First in line: woken early if an earlier lane comes in between.
                Some(Some(pause)) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(pause) => {}
                        () = changed => {}
                    }
                }
            }
        }
    }

    async fn call<T>(
        &self,
        key: Key,
        method: Method,
        lane: Priority,
        call: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let asked = Instant::now();
        self.admit(&key, lane).await;
        let slot = self.slots.acquire().await;
        let started = Instant::now();
        self.observer.waited(lane, started - asked);
        let result = call.await;
        drop(slot);
        let code = match &result {
            Ok(_) => "ok",
            Err(fault) => {
                if fault.class == FaultClass::QuotaExceeded {
                    self.with_bucket(&key, |b| b.pushed_back(Instant::now(), fault.retry_after));
                }
                fault.class.row().label
            }
        };
        self.observer.called(method, code, started.elapsed());
        result
    }
}

struct Place<'a, C: CloudRun> {
    limiter: &'a Limited<C>,
    key: &'a Key,
    ticket: (Priority, u64),
    notify: Arc<Notify>,
}

impl<C: CloudRun> Drop for Place<'_, C> {
    fn drop(&mut self) {
        self.limiter.with_bucket(self.key, |b| b.waiting.remove(&self.ticket));
        self.notify.notify_waiters();
    }
}

impl<C: CloudRun> CloudRun for Limited<C> {
    async fn read_policy(&self, service: &RunService, lane: Priority) -> Result<Policy, Fault> {
        let key = (service.project.clone(), service.region.clone(), Kind::Read);
        self.call(key, Method::GetIamPolicy, lane, self.inner.read_policy(service, lane)).await
    }

    async fn write_policy(&self, service: &RunService, policy: &Policy, lane: Priority) -> Result<Policy, Fault> {
        let key = (service.project.clone(), service.region.clone(), Kind::Write);
        self.call(key, Method::SetIamPolicy, lane, self.inner.write_policy(service, policy, lane)).await
    }

    async fn list_services(&self, project: &str, scope: &Scope, lane: Priority) -> Result<Listing, Fault> {
        let region: Arc<str> = match scope {
            Scope::Region(region) => region.clone(),
            Scope::AllRegions => "-".into(),
        };
        let key = (project.into(), region, Kind::Read);
        self.call(key, Method::ListServices, lane, self.inner.list_services(project, scope, lane)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Quiet;
    impl Observer for Quiet {
        fn called(&self, _: Method, _: &'static str, _: Duration) {}
        fn waited(&self, _: Priority, _: Duration) {}
    }
    /// Answers with what it is told, and notes when and for whom it was called.
    #[derive(Default)]
    struct Script {
        calls: Arc<Mutex<Vec<(Instant, Priority)>>>,
        answers: Mutex<Vec<Fault>>,
    }
    impl CloudRun for Script {
        async fn read_policy(&self, _: &RunService, _: Priority) -> Result<Policy, Fault> {
            Ok(Policy::default())
        }
        async fn write_policy(&self, _: &RunService, _: &Policy, lane: Priority) -> Result<Policy, Fault> {
            self.calls.lock().unwrap().push((Instant::now(), lane));
            self.answers.lock().unwrap().pop().map_or(Ok(Policy::default()), Err)
        }
        async fn list_services(&self, _: &str, _: &Scope, _: Priority) -> Result<Listing, Fault> {
            Ok(Listing::default())
        }
    }
    fn service(project: &str) -> RunService {
        RunService::new(project, "europe-west1", "web")
    }
    type Calls = Arc<Mutex<Vec<(Instant, Priority)>>>;
    fn limited(script: Script, writes: u32) -> (Arc<Limited<Script>>, Calls) {
        let calls = script.calls.clone();
        let budget = Budget { writes_per_minute: writes, ..Budget::default() };
        (Arc::new(Limited::new(script, budget, Arc::new(Quiet))), calls)
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_sees_more_writes_than_the_budget() {
        let (limited, calls) = limited(Script::default(), 30);
        let work = (0..90).map(|_| {
            let limited = limited.clone();
            async move { limited.write_policy(&service("p"), &Policy::default(), Priority::Periodic).await }
        });
        futures::future::join_all(work).await;
        let times: Vec<_> = calls.lock().unwrap().iter().map(|c| c.0).collect();
        assert_eq!(times.len(), 90);
        for (i, start) in times.iter().enumerate() {
            let within = times[i..].iter().take_while(|t| **t - *start < Duration::from_secs(60)).count();
            assert!(within <= 30, "{within} writes in a minute");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_declared_change_goes_before_a_hundred_periodic_ones() {
        let (limited, calls) = limited(Script::default(), 30);
        let mut tasks = Vec::new();
        for i in 0..101 {
            let limited = limited.clone();
            let lane = if i == 100 { Priority::Declared } else { Priority::Periodic };
            tasks
                .push(tokio::spawn(async move { limited.write_policy(&service("p"), &Policy::default(), lane).await }));
            tokio::task::yield_now().await;
        }
        futures::future::join_all(tasks).await;
        let position = calls.lock().unwrap().iter().position(|c| c.1 == Priority::Declared).unwrap();
        assert!(position <= 10, "served as number {position}");
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_stops_one_bucket_and_not_the_others() {
        let mut fault = Fault::new(FaultClass::QuotaExceeded, "slow down");
        fault.retry_after = Some(Duration::from_secs(30));
        let script = Script { answers: Mutex::new(vec![fault]), ..Script::default() };
        let (limited, _) = limited(script, 30);
        assert!(limited.write_policy(&service("p"), &Policy::default(), Priority::Declared).await.is_err());
        let start = Instant::now();
        limited.write_policy(&service("q"), &Policy::default(), Priority::Declared).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
        limited.write_policy(&service("p"), &Policy::default(), Priority::Declared).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(30));
    }
}
