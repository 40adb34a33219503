//! The controller: watches feed the index, the index feeds the queue, workers reconcile services, and what they find
//! becomes the status of policies.

mod circuit;
pub mod events;
mod feed;
pub mod queue;
mod reconcile;
mod records;
mod report;
mod shards;
mod tell;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tracing::Instrument as _;

use crate::{
    cloudrun::{CloudRun, Priority},
    cluster::{Cluster, index::Index},
    history::Retention,
    iam::{Grant, RunService},
    leader::Shards,
    metrics::{Metrics, PolicySeries},
    plan::{
        RejectedMember, Settings,
        drift::{Breaker, BreakerLimits, Memory},
    },
};
use queue::Queue;
use report::Reports;

/// What does not change while the controller runs.
#[derive(Clone)]
pub struct Options {
    pub settings: Settings,
    pub propagation: Duration,
    /// When corrections of drift are too many.
    pub breaker: BreakerLimits,
    /// Audit events, where there are any.
    pub events: Option<events::EventOptions>,
    /// How long records of changes are kept.
    pub retention: Retention,
    /// Services worked on at once.
    pub workers: usize,
    /// The wall clock.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Makes jitter differ between installations and equal between runs.
    pub seed: u64,
    /// A single round that takes longer than this means that the queue is stuck.
    pub stuck_after: Duration,
    /// How long work in flight may take to finish when the controller stops.
    pub grace: Duration,
}

/// A member that IAM refused, and when it is tried again.
#[derive(Clone, Debug)]
struct Refused {
    aside: RejectedMember,
    until: Instant,
    times: u32,
    /// Fingerprint of the declarations that asked; another one is a reason to try at once.
    asked_by: u64,
}

/// What is kept about a service between looks.
#[derive(Debug, Default)]
struct ServiceMemory {
    memory: Memory,
    /// The statuses were asked what they know of the time before.
    asked: bool,
    /// When it was last found as declared.
    in_sync_at: Option<Instant>,
    /// What audit events told; only where there are any.
    witness: Option<Box<events::Witness>>,
}

/// The controller and all that its tasks share.
pub struct Controller<C> {
    cloud: Arc<C>,
    cluster: Cluster,
    options: Options,
    metrics: Arc<Metrics>,
    shards: Arc<Shards>,
    /// For each shard the term of it that was taken up: what was left from before is known, and work may begin.
    taken: Mutex<Vec<Option<u64>>>,
    index: Mutex<Index>,
    queue: Queue,
    events: events::Events,
    reports: Reports,
    refused: Mutex<HashMap<RunService, BTreeMap<Grant, Refused>>>,
    kept: Mutex<HashMap<RunService, ServiceMemory>>,
    open_changes: Mutex<HashMap<RunService, Vec<records::Open>>>,
    breaker: Mutex<Breaker>,
    /// Names of the records of corrections that the breaker counted, by time.
    counted: Mutex<HashMap<String, Timestamp>>,
    /// Services with drift that only the breaker keeps from being corrected.
    waiting_for_circuit: Mutex<BTreeSet<RunService>>,
    /// The zero of the slots in which services are read.
    started: Instant,
    lists: feed::Lists,
    policies_synced: AtomicBool,
    ledgers_synced: AtomicBool,
    guardrails_synced: AtomicBool,
    /// Some policy names a ServiceAccount.
    accounts_wanted: tokio::sync::Notify,
    /// When a service was last taken up, for the watchdog.
    last_turn: Mutex<Instant>,
    /// A task that runs for ever has ended.
    broken: AtomicBool,
}

impl<C: CloudRun> Controller<C> {
    pub fn new(cloud: C, cluster: Cluster, options: Options, metrics: Arc<Metrics>, shards: Arc<Shards>) -> Arc<Self> {
        Arc::new(Self {
            cloud: Arc::new(cloud),
            cluster,
            index: Mutex::new(Index::new(options.settings.limits)),
            breaker: Mutex::new(Breaker::new(options.breaker)),
            options,
            metrics,
            taken: Mutex::new(vec![None; shards.count()]),
            shards,
            counted: Mutex::default(),
            queue: Queue::default(),
            events: events::Events::default(),
            reports: Reports::default(),
            refused: Mutex::default(),
            kept: Mutex::default(),
            open_changes: Mutex::default(),
            waiting_for_circuit: Mutex::default(),
            started: Instant::now(),
            lists: feed::Lists::default(),
            policies_synced: AtomicBool::new(false),
            ledgers_synced: AtomicBool::new(false),
            guardrails_synced: AtomicBool::new(false),
            accounts_wanted: tokio::sync::Notify::new(),
            last_turn: Mutex::new(Instant::now()),
            broken: AtomicBool::new(false),
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<RunService, ServiceMemory>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time on the monotonic clock since the controller was made.
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn now(&self) -> Timestamp {
        (self.options.now)()
    }

    /// Whether the caches are complete.
    pub fn is_synced(&self) -> bool {
        [&self.policies_synced, &self.ledgers_synced, &self.guardrails_synced].iter().all(|s| s.load(Ordering::Acquire))
    }

    /// Fine, or why the process should be started anew.
    ///
    /// # Errors
    /// What is stuck, in words.
    pub fn health(&self) -> Result<(), String> {
        let longest = self.queue.longest_running();
        if longest > self.options.stuck_after {
            return Err(format!("a service has been worked on for {longest:?}; the queue is stuck"));
        }
        if self.broken.load(Ordering::Acquire) {
            return Err("a task that must not end has ended; see the log".into());
        }
        let waiting: usize = self.queue.depths().iter().sum();
        let idle = self.last_turn.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if waiting > 0
            && self.queue.running() == 0
            && self.shards.holds_any()
            && self.is_synced()
            && idle > self.options.stuck_after
        {
            return Err(format!("{waiting} services wait and none was taken up for {idle:?}; the queue is stuck"));
        }
        Ok(())
    }

    /// Brings the gauges that are read from state up to date; returns the series of the policies.
    pub fn refresh_gauges(&self) -> PolicySeries {
        for (lane, depth) in Priority::ALL.iter().zip(self.queue.depths()) {
            self.metrics.queue_depth.with_label_values(&[lane.label()]).set(depth as i64);
        }
        self.shard_gauges();
        self.metrics.circuit_open.set(i64::from(self.circuit_is_open()));
        report::gauges(&self.index(), &self.metrics, self.now(), &|project| self.works_on(project))
    }

    /// Runs until `stop` is true; then finishes what is in flight and starts nothing new.
    pub async fn run(self: &Arc<Self>, stop: watch::Receiver<bool>) {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(feed::policies(self.clone()));
        tasks.spawn(feed::ledgers(self.clone()));
        tasks.spawn(feed::guardrails(self.clone()));
        tasks.spawn(feed::accounts(self.clone()));
        tasks.spawn(self.clone().follow_shards());
        tasks.spawn(self.clone().watch_circuit());
        tasks.spawn(self.clone().watch_events());
        tasks.spawn(feed::corrections(self.clone()));
        tasks.spawn(self.clone().thin_out());
        tasks.spawn(feed::lists(self.clone(), stop.clone()));
        // Reports end after the work does: what it finds last still gets out.
        let (drained, after_work) = watch::channel(false);
        let mut reports = tokio::task::JoinSet::new();
        reports.spawn(report::run(self.clone(), after_work));
        let watchdog = async {
            // Each of them runs until it is aborted.
            if let Some(ended) = tasks.join_next().await {
                tracing::error!(?ended, "a task that must not end has ended");
                self.broken.store(true, Ordering::Release);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = self.work(stop) => {}
            () = watchdog => {}
        }
        tasks.abort_all();
        drained.send_replace(true);
        let _ = tokio::time::timeout(self.options.grace, reports.join_next()).await;
    }

    /// Hands services to workers, if their shard is worked on here.
    async fn work(self: &Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            let turn = async {
                while running.len() >= self.options.workers {
                    running.join_next().await;
                }
                self.queue.next().await
            };
            let job = tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => break,
                job = turn => job,
            };
            let Some(turn) = self.enter(&job.service.project) else {
                // The shard went away; whoever takes it up knows what there is to do.
                self.queue.done(&job.service, false);
                self.queue.forget(&job.service);
                continue;
            };
            *self.last_turn.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let this = self.clone();
            let span = tracing::info_span!("service", service = %job.service, lane = job.lane.label());
            let round = async move {
                this.round(job).await;
                drop(turn);
            };
            running.spawn(round.instrument(span));
        }
        tracing::info!(in_flight = running.len(), "stopping: finishing what is in flight");
        let drained =
            tokio::time::timeout(self.options.grace, async { while running.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("the grace period ended before the work in flight did; what is left is safe by its etags");
        }
    }
}

/// A number in [0, 1) that only depends on its arguments.
pub(crate) fn spread(seed: u64, what: impl std::hash::Hash) -> f64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    what.hash(&mut hasher);
    (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
}

/// The next of the moments `phase + n * interval` that is at least half an interval away: each service has its own fixed
/// phase, so reads are spread evenly and stay so, whatever happened in between.
pub(crate) fn next_slot(elapsed: Duration, interval: Duration, phase: f64) -> Duration {
    let (e, i) = (elapsed.as_secs_f64(), interval.as_secs_f64());
    let earliest = e + i / 2.0;
    let n = ((earliest - phase * i) / i).ceil();
    Duration::from_secs_f64((phase * i + n * i - e).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_one_interval_apart_and_an_early_look_does_not_add_one() {
        let interval = Duration::from_secs(60);
        let first = next_slot(Duration::from_secs(0), interval, 0.75);
        assert_eq!(first.as_secs(), 45);
        let second = next_slot(Duration::from_secs(45), interval, 0.75);
        assert_eq!(second.as_secs(), 60);
        // An edit at 100 s; the slot at 105 s is too near, so the next is at 165 s.
        assert_eq!(next_slot(Duration::from_secs(100), interval, 0.75).as_secs(), 65);
    }

    #[test]
    fn phases_are_spread_evenly() {
        let mut buckets = [0; 10];
        for i in 0..10_000 {
            buckets[(spread(1, i) * 10.0) as usize] += 1;
        }
        assert!(buckets.iter().all(|b| (900..1100).contains(b)), "{buckets:?}");
    }
}
