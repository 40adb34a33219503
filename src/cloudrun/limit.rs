//! Cloud Run within a budget: token buckets for each project and region, reads and writes apart.
//!
//! Nothing waits in here. A call needs a [`Token`]; who gets none is told when to ask again, and
//! waits where waiting holds nothing that others need (the queue of services). A bucket never lets
//! more through in any 60 seconds than its budget: burst and refill add up to it. A 429 halves the
//! refill and stops the bucket for as long as Google asked, within reason; where it names the real
//! limit, at most half of that is used from then on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{CloudRun, Listing, Method, Observer, Scope};
use crate::{
    fault::{Fault, FaultClass},
    iam::{Policy, RunService},
};

/// Calls per minute, for each project and region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Projects were seen with 600 in a minute and region.
    pub reads_per_minute: u32,
    /// Projects were seen with 30, and with 60, in a minute and region; people and pipelines need
    /// their part.
    pub writes_per_minute: u32,
    /// Services worked on at once, over everything.
    pub concurrency: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            reads_per_minute: 300,
            writes_per_minute: 15,
            concurrency: 64,
        }
    }
}

/// A project and region: Google counts calls for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub project: Arc<str>,
    /// `-`: a list over every region.
    pub region: Arc<str>,
}

impl Place {
    /// Where a service is.
    pub fn of(service: &RunService) -> Self {
        Self {
            project: service.project.clone(),
            region: service.region.clone(),
        }
    }

    /// Where a list is counted.
    pub fn of_list(project: &Arc<str>, scope: &Scope) -> Self {
        let region = match scope {
            Scope::Region(region) => region.clone(),
            Scope::AllRegions => "-".into(),
        };
        Self {
            project: project.clone(),
            region,
        }
    }
}

/// What a call counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
}

/// How many calls somebody is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    pub reads: u32,
    pub writes: u32,
}

impl Needs {
    /// To look at a service.
    pub const READ: Self = Self {
        reads: 1,
        writes: 0,
    };
    /// To write one that was read, and read it back.
    pub const WRITE: Self = Self {
        reads: 1,
        writes: 1,
    };
    /// To look at a service that will have to be written, write it, and read it back.
    pub const CHANGE: Self = Self {
        reads: 2,
        writes: 1,
    };
}

/// Without a hint from Google, how long a bucket stands still after a 429.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause that is believed.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long a limit that Google named is believed; then it is found out anew, by a 429 at worst.
const BELIEVED: Duration = Duration::from_secs(3600);
const RECOVERY: Duration = Duration::from_secs(120);
const MINUTE: Duration = Duration::from_secs(60);
const LEAST_SHARE: f64 = 0.125;
/// Places beyond which those that are as good as new are forgotten.
const MANY_PLACES: usize = 1024;

/// How many calls there were within a minute, from the counts of this one and the one before.
#[derive(Debug)]
struct Usage {
    began: Instant,
    calls: u32,
    before: u32,
}

impl Usage {
    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_secs() / 60;
        if passed > 0 {
            self.before = if passed == 1 { self.calls } else { 0 };
            self.calls = 0;
            self.began += MINUTE * u32::try_from(passed).unwrap_or(u32::MAX);
        }
    }

    fn count(&mut self, now: Instant) {
        self.turn(now);
        self.calls += 1;
    }

    fn per_minute(&mut self, now: Instant) -> f64 {
        self.turn(now);
        let share = now.saturating_duration_since(self.began).as_secs_f64() / MINUTE.as_secs_f64();
        f64::from(self.before) * (1.0 - share).max(0.0) + f64::from(self.calls)
    }
}

#[derive(Debug)]
struct Bucket {
    kind: Kind,
    /// The real limit that a 429 named, and when; nothing stays true for ever.
    learnt: Option<(Instant, u32)>,
    budget: u32,
    per_minute: u32,
    /// Tokens per second when healthy.
    rate: f64,
    burst: f64,
    tokens: f64,
    /// Tokens that somebody holds and has not spent.
    held: u32,
    /// What a 429 left of the rate, from [`LEAST_SHARE`] to 1.
    share: f64,
    at: Instant,
    paused_until: Option<Instant>,
    usage: Usage,
}

impl Bucket {
    fn new(per_minute: u32, kind: Kind, now: Instant) -> Self {
        let mut bucket = Self {
            kind,
            learnt: None,
            budget: per_minute,
            per_minute,
            rate: 0.0,
            burst: 0.0,
            tokens: 0.0,
            held: 0,
            share: 1.0,
            at: now,
            paused_until: None,
            usage: Usage {
                began: now,
                calls: 0,
                before: 0,
            },
        };
        bucket.resize(per_minute);
        bucket.tokens = bucket.burst;
        bucket
    }

    fn resize(&mut self, per_minute: u32) {
        let budget = f64::from(per_minute.max(1));
        self.per_minute = per_minute.max(1);
        // A change needs two reads at once.
        let least = if self.kind == Kind::Read { 2.0 } else { 1.0 };
        self.burst = (budget / 3.0).clamp(least, 20.0);
        self.rate = ((budget - self.burst) / 60.0).max(1.0 / 60.0);
        self.tokens = self.tokens.min(self.burst);
    }

    fn refill(&mut self, now: Instant) {
        if self
            .learnt
            .is_some_and(|(at, _)| now.saturating_duration_since(at) > BELIEVED)
        {
            self.learnt = None;
            self.resize(self.budget);
        }
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * self.rate * self.share).min(self.burst);
        self.share = (self.share + passed / RECOVERY.as_secs_f64()).min(1.0);
    }

    /// How long until `n` more tokens can be held; zero: now.
    fn wait(&mut self, n: u32, now: Instant) -> Duration {
        self.refill(now);
        if n == 0 {
            return Duration::ZERO;
        }
        let paused = self
            .paused_until
            .map_or(Duration::ZERO, |u| u.saturating_duration_since(now));
        let missing = f64::from(self.held + n) - self.tokens;
        // More than fit are never there at once.
        let fits = f64::from(self.held + n) <= self.burst.max(1.0);
        let refill = match missing > 0.0 {
            true if fits => Duration::from_secs_f64(missing / (self.rate * self.share))
                .max(Duration::from_millis(1)),
            true => Duration::from_millis(500),
            false => Duration::ZERO,
        };
        paused.max(refill)
    }

    fn pushed_back(&mut self, now: Instant, retry_after: Option<Duration>, limit: Option<u32>) {
        self.refill(now);
        if let Some(limit) = limit.filter(|l| (1..self.per_minute.saturating_mul(2)).contains(l)) {
            let half = (limit / 2).max(1);
            self.learnt = Some((now, limit));
            self.resize(half);
        }
        self.share = (self.share / 2.0).max(LEAST_SHARE);
        // What is held stays covered.
        self.tokens = self.tokens.min(f64::from(self.held));
        let until = now + retry_after.unwrap_or(DEFAULT_PAUSE).min(LONGEST_PAUSE);
        self.paused_until = Some(self.paused_until.map_or(until, |p| p.max(until)));
    }

    fn is_as_new(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.learnt.is_none()
            && self.held == 0
            && self.share >= 1.0
            && self.tokens >= self.burst
            && self.usage.per_minute(now) < 1.0
            && self.paused_until.is_none_or(|u| u <= now)
    }
}

#[derive(Debug)]
struct Buckets {
    reads: Bucket,
    writes: Bucket,
}

impl Buckets {
    fn of(&mut self, kind: Kind) -> &mut Bucket {
        match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
        }
    }
}

/// The budgets of every place.
#[derive(Debug)]
pub struct Budgets {
    budget: Budget,
    places: Mutex<HashMap<Place, Buckets>>,
}

/// The most that a bucket lets through, as it was learnt or is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub reads_per_minute: u32,
    pub writes_per_minute: u32,
}

/// The worst of all places, each number by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tightest {
    /// Calls a minute that the operator lets itself have.
    pub budget: u32,
    /// The least limit that Google named within the last hour.
    pub limit: Option<u32>,
    /// The largest share of a budget that was used within a minute; over 1 where a budget shrank.
    pub used: f64,
}

impl Budgets {
    pub fn new(budget: Budget) -> Arc<Self> {
        Arc::new(Self {
            budget,
            places: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Buckets>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, place: &Place, now: Instant, f: impl FnOnce(&mut Buckets) -> R) -> R {
        let mut places = self.lock();
        if !places.contains_key(place) {
            if places.len() >= MANY_PLACES {
                places.retain(|_, b| !(b.reads.is_as_new(now) && b.writes.is_as_new(now)));
            }
            let buckets = Buckets {
                reads: Bucket::new(self.budget.reads_per_minute, Kind::Read, now),
                writes: Bucket::new(self.budget.writes_per_minute, Kind::Write, now),
            };
            places.insert(place.clone(), buckets);
        }
        match places.get_mut(place) {
            Some(buckets) => f(buckets),
            None => unreachable!("it was just put there"),
        }
    }

    /// How long until these calls may be made; zero: now.
    pub fn wait(&self, place: &Place, needs: Needs) -> Duration {
        let now = Instant::now();
        self.with(place, now, |b| {
            b.reads
                .wait(needs.reads, now)
                .max(b.writes.wait(needs.writes, now))
        })
    }

    /// Tokens for these calls.
    ///
    /// # Errors
    /// When to ask again. Nothing is held then.
    pub fn reserve(self: &Arc<Self>, place: &Place, needs: Needs) -> Result<Tokens, Duration> {
        let now = Instant::now();
        self.with(place, now, |b| {
            let wait = b
                .reads
                .wait(needs.reads, now)
                .max(b.writes.wait(needs.writes, now));
            if !wait.is_zero() {
                return Err(wait);
            }
            b.reads.held += needs.reads;
            b.writes.held += needs.writes;
            Ok(())
        })?;
        let token = |kind| Token {
            budgets: self.clone(),
            place: place.clone(),
            kind,
        };
        Ok(Tokens {
            reads: (0..needs.reads).map(|_| token(Kind::Read)).collect(),
            writes: (0..needs.writes).map(|_| token(Kind::Write)).collect(),
            has_written: false,
        })
    }

    fn pushed_back(&self, place: &Place, kind: Kind, fault: &Fault) {
        let now = Instant::now();
        self.with(place, now, |b| {
            b.of(kind)
                .pushed_back(now, fault.retry_after, fault.quota_limit)
        });
    }

    /// What a place lets through in a minute.
    pub fn limits(&self, place: &Place) -> Limits {
        self.with(place, Instant::now(), |b| Limits {
            reads_per_minute: b.reads.per_minute,
            writes_per_minute: b.writes.per_minute,
        })
    }

    /// Of the place that is nearest to its budget.
    pub fn tightest(&self, kind: Kind) -> Tightest {
        let now = Instant::now();
        let mut tightest = Tightest {
            budget: match kind {
                Kind::Read => self.budget.reads_per_minute,
                Kind::Write => self.budget.writes_per_minute,
            },
            ..Tightest::default()
        };
        for buckets in self.lock().values_mut() {
            let bucket = buckets.of(kind);
            bucket.refill(now);
            let used = bucket.usage.per_minute(now) / f64::from(bucket.per_minute);
            tightest.budget = tightest.budget.min(bucket.per_minute);
            let limit = bucket.learnt.map(|(_, limit)| limit);
            tightest.limit = [tightest.limit, limit].into_iter().flatten().min();
            tightest.used = tightest.used.max(used);
        }
        tightest
    }
}

/// The right to one call. One that is not used goes back.
#[derive(Debug)]
pub struct Token {
    budgets: Arc<Budgets>,
    place: Place,
    kind: Kind,
}

impl Token {
    /// It is being used.
    pub(crate) fn spend(&self) {
        let now = Instant::now();
        self.budgets.with(&self.place, now, |b| {
            let bucket = b.of(self.kind);
            bucket.refill(now);
            bucket.tokens -= 1.0;
            bucket.usage.count(now);
        });
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let now = Instant::now();
        self.budgets.with(&self.place, now, |b| {
            let bucket = b.of(self.kind);
            bucket.held = bucket.held.saturating_sub(1);
        });
    }
}

/// Rights to some calls.
#[derive(Debug, Default)]
pub struct Tokens {
    reads: Vec<Token>,
    writes: Vec<Token>,
    /// A right to a write was taken.
    has_written: bool,
}

impl Tokens {
    /// The right to one read, if there is one left.
    pub fn read(&mut self) -> Option<Token> {
        self.reads.pop()
    }

    /// The right to one write, if there is one left.
    pub fn write(&mut self) -> Option<Token> {
        let token = self.writes.pop();
        self.has_written |= token.is_some();
        token
    }

    /// Whether any right to a write was taken.
    pub fn has_written(&self) -> bool {
        self.has_written
    }

    /// How many calls may still be made.
    pub fn left(&self) -> Needs {
        Needs {
            reads: self.reads.len() as u32,
            writes: self.writes.len() as u32,
        }
    }

    /// More of them.
    pub fn add(&mut self, more: Self) {
        self.reads.extend(more.reads);
        self.writes.extend(more.writes);
    }
}

/// A [`CloudRun`] that stays within its budget.
pub struct Limited<C> {
    inner: C,
    budgets: Arc<Budgets>,
    observer: Arc<dyn Observer>,
}

impl<C: CloudRun> Limited<C> {
    pub fn new(inner: C, budget: Budget, observer: Arc<dyn Observer>) -> Self {
        Self {
            inner,
            budgets: Budgets::new(budget),
            observer,
        }
    }

    pub fn budgets(&self) -> &Arc<Budgets> {
        &self.budgets
    }

    async fn call<T>(
        &self,
        token: Token,
        method: Method,
        call: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        token.spend();
        let started = Instant::now();
        let result = call.await;
        let code = match &result {
            Ok(_) => "ok",
            Err(fault) => {
                if fault.class == FaultClass::QuotaExceeded {
                    self.budgets.pushed_back(&token.place, token.kind, fault);
                }
                fault.class.row().label
            }
        };
        self.observer.called(method, code, started.elapsed());
        result
    }

    /// Reads the policy of a service.
    ///
    /// # Errors
    /// Those of [`CloudRun::read_policy`].
    pub async fn read(&self, service: &RunService, token: Token) -> Result<Policy, Fault> {
        self.call(token, Method::GetIamPolicy, self.inner.read_policy(service))
            .await
    }

    /// Writes the policy of a service.
    ///
    /// # Errors
    /// Those of [`CloudRun::write_policy`].
    pub async fn write(
        &self,
        service: &RunService,
        policy: &Policy,
        token: Token,
    ) -> Result<Policy, Fault> {
        self.call(
            token,
            Method::SetIamPolicy,
            self.inner.write_policy(service, policy),
        )
        .await
    }

    /// Lists a page of services.
    ///
    /// # Errors
    /// Those of [`CloudRun::list_page`].
    pub async fn list(
        &self,
        project: &str,
        scope: &Scope,
        page: &str,
        token: Token,
    ) -> Result<(Listing, String), Fault> {
        self.call(
            token,
            Method::ListServices,
            self.inner.list_page(project, scope, page),
        )
        .await
    }

    /// Waits for the right to a call: for whoever has nothing else to do meanwhile.
    pub async fn wait(&self, place: &Place, needs: Needs) -> Tokens {
        loop {
            match self.budgets.reserve(place, needs) {
                Ok(tokens) => return tokens,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    async fn wait_for(&self, place: &Place, kind: Kind) -> Token {
        let needs = match kind {
            Kind::Read => Needs::READ,
            Kind::Write => Needs {
                reads: 0,
                writes: 1,
            },
        };
        loop {
            let mut tokens = self.wait(place, needs).await;
            let token = match kind {
                Kind::Read => tokens.read(),
                Kind::Write => tokens.write(),
            };
            if let Some(token) = token {
                return token;
            }
        }
    }
}

/// For the plugin, which does one thing after the other: each call waits for its turn.
impl<C: CloudRun> CloudRun for Limited<C> {
    async fn read_policy(&self, service: &RunService) -> Result<Policy, Fault> {
        let token = self.wait_for(&Place::of(service), Kind::Read).await;
        self.read(service, token).await
    }

    async fn write_policy(&self, service: &RunService, policy: &Policy) -> Result<Policy, Fault> {
        let token = self.wait_for(&Place::of(service), Kind::Write).await;
        self.write(service, policy, token).await
    }

    async fn list_page(
        &self,
        project: &str,
        scope: &Scope,
        page: &str,
    ) -> Result<(Listing, String), Fault> {
        let token = self
            .wait_for(&Place::of_list(&project.into(), scope), Kind::Read)
            .await;
        self.list(project, scope, page, token).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Quiet;
    impl Observer for Quiet {
        fn called(&self, _: Method, _: &'static str, _: Duration) {}
    }
    /// Answers with what it is told, and notes when it was called.
    #[derive(Default)]
    struct Script {
        calls: Arc<Mutex<Vec<Instant>>>,
        answers: Mutex<Vec<Fault>>,
    }
    impl CloudRun for Script {
        async fn read_policy(&self, _: &RunService) -> Result<Policy, Fault> {
            Ok(Policy::default())
        }
        async fn write_policy(&self, _: &RunService, _: &Policy) -> Result<Policy, Fault> {
            self.calls.lock().unwrap().push(Instant::now());
            self.answers
                .lock()
                .unwrap()
                .pop()
                .map_or(Ok(Policy::default()), Err)
        }
        async fn list_page(&self, _: &str, _: &Scope, _: &str) -> Result<(Listing, String), Fault> {
            Ok(Default::default())
        }
    }
    fn service(project: &str) -> RunService {
        RunService::new(project, "europe-west1", "web")
    }
    fn place(project: &str) -> Place {
        Place::of(&service(project))
    }
    fn budgets(writes_per_minute: u32) -> Arc<Budgets> {
        Budgets::new(Budget {
            writes_per_minute,
            ..Budget::default()
        })
    }
    type Calls = Arc<Mutex<Vec<Instant>>>;
    fn limited(script: Script, writes: u32) -> (Arc<Limited<Script>>, Calls) {
        let calls = script.calls.clone();
        let budget = Budget {
            writes_per_minute: writes,
            ..Budget::default()
        };
        (
            Arc::new(Limited::new(script, budget, Arc::new(Quiet))),
            calls,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_sees_more_writes_than_the_budget() {
        for budget in [1, 4, 15, 30, 60] {
            let (limited, calls) = limited(Script::default(), budget);
            let work = (0..90).map(|_| {
                let limited = limited.clone();
                async move {
                    limited
                        .write_policy(&service("p"), &Policy::default())
                        .await
                }
            });
            futures::future::join_all(work).await;
            let times: Vec<_> = calls.lock().unwrap().clone();
            assert_eq!(times.len(), 90);
            for (i, start) in times.iter().enumerate() {
                let within = times[i..]
                    .iter()
                    .take_while(|t| **t - *start < Duration::from_secs(60))
                    .count();
                assert!(
                    within <= budget as usize,
                    "{within} writes in a minute of {budget}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_held_for_long_does_not_let_more_through() {
        let budgets = budgets(6);
        let mut held = budgets.reserve(&place("p"), Needs::WRITE).unwrap();
        tokio::time::advance(Duration::from_secs(600)).await;
        let mut spent = 0;
        while let Ok(mut tokens) = budgets.reserve(&place("p"), Needs::WRITE) {
            tokens.write().unwrap().spend();
            spent += 1;
        }
        held.write().unwrap().spend();
        assert_eq!(spent + 1, 2, "the burst of a budget of six is two");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_goes_back() {
        let budgets = budgets(3);
        assert!(
            budgets.reserve(&place("p"), Needs::WRITE).is_ok(),
            "and dropped"
        );
        let kept = budgets.reserve(&place("p"), Needs::WRITE).unwrap();
        assert!(budgets.reserve(&place("p"), Needs::WRITE).is_err());
        drop(kept);
        assert!(budgets.reserve(&place("p"), Needs::WRITE).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_stops_one_place_and_not_the_others_and_is_not_believed_for_ever() {
        let fault = |seconds| {
            let mut fault = Fault::new(FaultClass::QuotaExceeded, "slow down");
            fault.retry_after = Some(Duration::from_secs(seconds));
            fault
        };
        let script = Script {
            answers: Mutex::new(vec![fault(1_000_000), fault(30)]),
            ..Script::default()
        };
        let (limited, _) = limited(script, 30);
        assert!(
            limited
                .write_policy(&service("p"), &Policy::default())
                .await
                .is_err()
        );
        let start = Instant::now();
        limited.read_policy(&service("p")).await.unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "reads are not writes"
        );
        assert!(
            limited
                .write_policy(&service("p"), &Policy::default())
                .await
                .is_err()
        );
        assert!((30..40).contains(&start.elapsed().as_secs()));
        let start = Instant::now();
        limited
            .write_policy(&service("p"), &Policy::default())
            .await
            .unwrap();
        assert!(start.elapsed() <= LONGEST_PAUSE + Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_limit_that_google_names_is_used_from_then_on() {
        let budgets = budgets(30);
        let mut fault = Fault::new(FaultClass::QuotaExceeded, "slow down");
        fault.quota_limit = Some(20);
        budgets.pushed_back(&place("p"), Kind::Write, &fault);
        assert_eq!(budgets.limits(&place("p")).writes_per_minute, 10);
        fault.quota_limit = Some(600);
        budgets.pushed_back(&place("p"), Kind::Write, &fault);
        assert_eq!(
            budgets.limits(&place("p")).writes_per_minute,
            10,
            "more than we use is no news"
        );
        assert_eq!(budgets.limits(&place("q")).writes_per_minute, 30);
        tokio::time::advance(BELIEVED + Duration::from_secs(1)).await;
        drop(budgets.reserve(&place("p"), Needs::WRITE));
        assert_eq!(
            budgets.limits(&place("p")).writes_per_minute,
            30,
            "a quota can be raised"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_tightest_place_is_known_by_budget_limit_and_use() {
        let script = Script::default();
        let (limited, _) = limited(script, 30);
        let budgets = limited.budgets().clone();
        let write = async |project: &str| {
            let policy = Policy::default();
            let written = limited.write_policy(&service(project), &policy).await;
            written.is_ok()
        };
        for _ in 0..6 {
            assert!(write("busy").await);
        }
        assert!(write("idle").await);
        let tightest = budgets.tightest(Kind::Write);
        assert_eq!((tightest.budget, tightest.limit), (30, None));
        assert!((tightest.used - 0.2).abs() < 1e-9, "{}", tightest.used);
        assert_eq!(budgets.tightest(Kind::Read).used, 0.0);
        let fault = Fault {
            quota_limit: Some(10),
            ..Fault::new(FaultClass::QuotaExceeded, "quota")
        };
        budgets.pushed_back(&place("idle"), Kind::Write, &fault);
        let tightest = budgets.tightest(Kind::Write);
        assert_eq!((tightest.budget, tightest.limit), (5, Some(10)));
        // Half of the minute before counts in the middle of the next, and none after it.
        tokio::time::advance(Duration::from_secs(90)).await;
        assert!((budgets.tightest(Kind::Write).used - 0.1).abs() < 1e-9);
        tokio::time::advance(BELIEVED).await;
        let tightest = budgets.tightest(Kind::Write);
        assert_eq!(
            (tightest.budget, tightest.limit, tightest.used),
            (30, None, 0.0)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_are_as_new_are_forgotten() {
        let budgets = budgets(30);
        for i in 0..MANY_PLACES + 10 {
            drop(budgets.reserve(&place(&format!("p{i}")), Needs::READ));
        }
        assert!(budgets.lock().len() < 20);
    }
}
