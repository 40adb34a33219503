//! The controller: watches feed the index, the index feeds the queue, workers reconcile services,
//! and what they find becomes the status of policies.
//!
//! | module | what it owns |
//! |---|---|
//! | [`watches`] | what comes in from the store, and what each change sets in motion |
//! | [`listings`] | when projects are listed |
//! | [`inherited`] | who may invoke by a grant above the services |
//! | [`approvals`] | what approvers agreed to, and what became of it |
//! | [`requests`] | requests for access, and where each stands |
//! | [`rollbacks`] | records that policies want to go back behind |
//! | [`audit_events`] | what the audit log says, and whether it can be relied on |
//! | [`queue`] | which service is worked on next |
//! | [`gather`], [`reconcile`] | one service, once |
//! | [`service_memory`] | what is remembered of a service between reconciles |
//! | [`change_log`] | open writes, records, and how long these are kept |
//! | [`circuit_breaker`] | whether drift is corrected at all |
//! | [`observation`] | what was found, handed to policies and metrics |
//! | [`status_writer`] | statuses, finalizers, events |
//! | [`gauges`] | what the metrics show of all policies |
//! | [`shards`] | what changes when a shard comes here, and when it goes |
//! | [`owned`], [`due`], [`tended`] | locks and their order; keys with a time; objects that are looked at one by one |

mod approvals;
pub mod audit_events;
mod change_log;
mod circuit_breaker;
mod due;
mod gather;
mod gauges;
pub mod inherited;
mod listings;
mod observation;
mod owned;
pub mod queue;
mod reconcile;
mod requests;
mod rollbacks;
mod service_memory;
mod shards;
mod status_writer;
mod tended;
mod watches;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use tracing::Instrument as _;

use crate::{
    cloudrun::{
        CloudRun,
        limit::{Kind, Limited},
    },
    cluster::Cluster,
    history::Retention,
    index::Index,
    intent::{ApprovalKey, PolicyKey},
    leader::Shards,
    metrics::{Metrics, PolicySeries},
    plan::{Settings, drift::BreakerLimits},
};
use owned::{Owned, Rank};
pub use queue::Priority;
use queue::{End, Job, Queue};

/// What does not change while the controller runs.
#[derive(Clone)]
pub struct Options {
    pub settings: Settings,
    pub propagation: Duration,
    /// When corrections of drift are too many.
    pub breaker: BreakerLimits,
    /// Audit events, where there are any.
    pub events: Option<audit_events::EventOptions>,
    /// Where grants above the services are searched for, if anywhere.
    pub inherited: Option<inherited::InheritedOptions>,
    /// How long records of changes are kept.
    pub retention: Retention,
    /// Admission sees to it that approvals say truly who created them.
    pub stamped: bool,
    /// Services that were taken up lately and are not done.
    pub workers: usize,
    /// The wall clock.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Makes jitter differ between installations and equal between runs.
    pub seed: u64,
    /// A single reconcile that takes longer than this means that the queue is stuck.
    pub stuck_after: Duration,
    /// How long work in flight may take to finish when the controller stops.
    pub grace: Duration,
}

/// The controller and all that its tasks share. Each part owns its state; the order of their locks
/// is that of [`owned::Rank`].
pub struct Controller<C> {
    cloud: Limited<C>,
    cluster: Cluster,
    options: Options,
    metrics: Arc<Metrics>,
    shards: Arc<Shards>,
    /// For each shard the term of it that was taken up: what was left from before is known, and
    /// work may begin.
    taken: Owned<Vec<Option<u64>>>,
    index: Owned<Index>,
    queue: Queue,
    memories: service_memory::ServiceMemories,
    change_log: change_log::ChangeLog,
    breaker: circuit_breaker::CircuitBreaker,
    audit_events: audit_events::AuditEvents,
    listings: listings::Listings,
    rollbacks: rollbacks::Rollbacks,
    approvals: tended::Tended<ApprovalKey>,
    requests: tended::Tended<PolicyKey>,
    statuses: status_writer::StatusWriter,
    /// The zero of the slots in which services are read.
    started: Instant,
    policies_synced: AtomicBool,
    ledgers_synced: AtomicBool,
    guardrails_synced: AtomicBool,
    /// Some policy names a ServiceAccount.
    accounts_wanted: Notify,
    /// When a service was last taken up, for the watchdog: time since the start.
    last_turn: Owned<Duration>,
    /// A task that runs for ever has ended.
    broken: AtomicBool,
}

impl<C: CloudRun> Controller<C> {
    pub fn new(
        cloud: Limited<C>,
        cluster: Cluster,
        options: Options,
        metrics: Arc<Metrics>,
        shards: Arc<Shards>,
    ) -> Arc<Self> {
        metrics.count_messages_by(audit_events::MessageResult::ALL.map(|r| r.label()));
        let mut index = Index::new(options.settings.clone());
        if let Some(inherited) = &options.inherited {
            index.expect_inherited(&inherited.scopes);
        }
        Arc::new(Self {
            cluster,
            metrics,
            taken: Owned::new(Rank::Shards, vec![None; shards.count()]),
            index: Owned::new(Rank::Index, index),
            queue: Queue::new(cloud.budgets().clone(), options.workers),
            memories: service_memory::ServiceMemories::default(),
            change_log: change_log::ChangeLog::default(),
            breaker: circuit_breaker::CircuitBreaker::new(options.breaker),
            audit_events: audit_events::AuditEvents::default(),
            listings: listings::Listings::default(),
            rollbacks: rollbacks::Rollbacks::default(),
            approvals: tended::Tended::new(Rank::Approvals),
            requests: tended::Tended::new(Rank::Requests),
            statuses: status_writer::StatusWriter::default(),
            cloud,
            options,
            shards,
            started: Instant::now(),
            policies_synced: AtomicBool::new(false),
            ledgers_synced: AtomicBool::new(false),
            guardrails_synced: AtomicBool::new(false),
            accounts_wanted: Notify::new(),
            last_turn: Owned::new(Rank::Shards, Duration::ZERO),
            broken: AtomicBool::new(false),
        })
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
        [
            &self.policies_synced,
            &self.ledgers_synced,
            &self.guardrails_synced,
        ]
        .iter()
        .all(|s| s.load(Ordering::Acquire))
    }

    /// Fine, or why the process should be started anew.
    ///
    /// # Errors
    /// What is stuck, in words.
    pub fn health(&self) -> Result<(), String> {
        let longest = self.queue.longest_running();
        if longest > self.options.stuck_after {
            return Err(format!(
                "a service has been worked on for {longest:?}; the queue is stuck"
            ));
        }
        if self.broken.load(Ordering::Acquire) {
            return Err("a task that must not end has ended; see the log".into());
        }
        let waiting: usize = self.queue.depths().iter().sum();
        let idle = self.elapsed().saturating_sub(self.last_turn.with(|t| *t));
        if waiting > 0
            && self.queue.running() == 0
            && self.shards.holds_any()
            && self.is_synced()
            && idle > self.options.stuck_after
        {
            return Err(format!(
                "{waiting} services wait and none was taken up for {idle:?}; the queue is stuck"
            ));
        }
        Ok(())
    }

    /// Brings the gauges that are read from state up to date; returns the series of the policies.
    pub fn refresh_gauges(&self) -> PolicySeries {
        for (priority, depth) in Priority::ALL.iter().zip(self.queue.depths()) {
            self.metrics
                .queue_depth
                .with_label_values(&[priority.label()])
                .set(depth as i64);
        }
        self.shard_gauges();
        for kind in [Kind::Read, Kind::Write] {
            let tightest = self.cloud.budgets().tightest(kind);
            self.metrics.cloud_budget(kind, &tightest);
        }
        self.metrics
            .found
            .circuit_open
            .set(i64::from(self.breaker.is_open()));
        let now = self.now();
        self.index
            .with(|i| gauges::show(i, &self.metrics, now, &|project| self.works_on(project)))
    }

    /// Runs until `stop` is true; then finishes what is in flight and starts nothing new. When this
    /// is dropped, nothing of it goes on.
    pub async fn run(self: &Arc<Self>, stop: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        let (unreadable, to_mark) = Self::unreadable();
        tasks.spawn(self.clone().watch_policies(unreadable));
        tasks.spawn(self.clone().mark_unreadable(to_mark));
        tasks.spawn(self.clone().watch_ledgers());
        tasks.spawn(self.clone().watch_guardrails());
        tasks.spawn(self.clone().watch_accounts());
        let (unkept, to_tell) = tended::Unkept::channel();
        tasks.spawn(self.clone().watch_approvals(unkept));
        tasks.spawn(self.clone().tend_approvals(to_tell));
        let (unkept, to_tell) = tended::Unkept::channel();
        tasks.spawn(self.clone().watch_requests(unkept));
        tasks.spawn(self.clone().tend_requests(to_tell));
        tasks.spawn(self.clone().follow_shards());
        tasks.spawn(self.clone().watch_circuit());
        tasks.spawn(self.clone().watch_events());
        tasks.spawn(self.clone().tend_change_log());
        tasks.spawn(self.clone().thin_out_hourly());
        tasks.spawn(self.clone().list_projects());
        tasks.spawn(self.clone().search_inherited());
        tasks.spawn(self.clone().load_rollbacks());
        // Statuses end after the work does: what it finds last still gets out.
        let (drained, after_work) = watch::channel(false);
        let mut statuses = JoinSet::new();
        statuses.spawn(self.clone().write_statuses(after_work));
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
        let _ = tokio::time::timeout(self.options.grace, statuses.join_next()).await;
    }

    /// Hands services to workers, if their shard is worked on here.
    async fn work(self: &Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            let job = tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => break,
                job = self.queue.next() => job,
            };
            self.begin(job, &mut running);
        }
        tracing::info!(
            in_flight = running.len(),
            "stopping: finishing what is in flight"
        );
        let drained = tokio::time::timeout(self.options.grace, async {
            while running.join_next().await.is_some() {}
        })
        .await;
        if drained.is_err() {
            tracing::warn!(
                "the grace period ended before the work in flight did; what is left is safe by its etags"
            );
        }
    }

    fn begin(self: &Arc<Self>, job: Job, running: &mut JoinSet<()>) {
        let service = job.service.clone();
        let Some(guard) = self.enter(&service.project) else {
            // The shard went away; whoever takes it up knows what there is to do.
            self.queue.done(job, End::Over);
            self.queue.forget(&service);
            return;
        };
        let since_start = self.elapsed();
        self.last_turn.with(|t| *t = since_start);
        let this = self.clone();
        let span = tracing::info_span!("service", %service, priority = job.priority.label());
        let reconcile = async move {
            let ((), busy) = queue::timed(this.clone().reconcile(job)).await;
            this.queue.spent(&service.project, busy);
            drop(guard);
        };
        running.spawn(reconcile.instrument(span));
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

/// The next of the moments `phase + n * interval` that is at least half an interval away: each
/// service has its own fixed phase, so reads are spread evenly and stay so, whatever happened in
/// between.
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
    fn slots_are_one_interval_apart_and_an_early_reconcile_does_not_add_one() {
        let interval = Duration::from_secs(60);
        let first = next_slot(Duration::from_secs(0), interval, 0.75);
        assert_eq!(first.as_secs(), 45);
        let second = next_slot(Duration::from_secs(45), interval, 0.75);
        assert_eq!(second.as_secs(), 60);
        // An edit at 100 s; the slot at 105 s is too near, so the next is at 165 s.
        assert_eq!(
            next_slot(Duration::from_secs(100), interval, 0.75).as_secs(),
            65
        );
    }

    #[test]
    fn phases_are_spread_evenly() {
        let mut buckets = [0; 10];
        for i in 0..10_000 {
            buckets[(spread(1, i) * 10.0) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|b| (900..1100).contains(b)),
            "{buckets:?}"
        );
    }
}
