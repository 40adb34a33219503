//! The queue of services: four priorities that age, one worker per service, requests that fold into
//! one, and nobody taken up before its calls may be made.
//!
//! Waiting work is kept by project and region, which is how Google counts. A service is handed out
//! together with the tokens for its calls, so that what waits for quota occupies nothing: neither a
//! worker nor a place that others need. A service that turned out to need a write waits among the
//! changers of its place, in the order in which that was found out. A project whose services take
//! long to think about steps back while others have work.

mod accounts;
mod choice;
mod state;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};

use super::owned::{Owned, Rank};
use crate::{
    cloudrun::limit::{Budgets, Place, Tokens},
    iam::RunService,
};

use state::State;

/// Why a service is reconciled, in the order in which it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A person declared something and waits.
    Declared,
    /// Something says that the live policy changed.
    Drift,
    /// Work that failed is taken up again.
    Retry,
    /// The periodic resync.
    Periodic,
}

impl Priority {
    pub const ALL: [Self; 4] = [Self::Declared, Self::Drift, Self::Retry, Self::Periodic];

    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Drift => "drift",
            Self::Retry => "retry",
            Self::Periodic => "periodic",
        }
    }
}

/// Does work, and says how long it kept a thread busy.
pub(super) async fn timed<F: Future>(work: F) -> (F::Output, Duration) {
    let (mut work, mut busy) = (pin!(work), Duration::ZERO);
    let result = std::future::poll_fn(|context| {
        let began = Instant::now();
        let polled = work.as_mut().poll(context);
        busy += began.elapsed();
        polled
    })
    .await;
    (result, busy)
}

/// A queue of services.
#[derive(Debug)]
pub struct Queue {
    state: Owned<State>,
    changed: Notify,
    budgets: Arc<Budgets>,
    workers: usize,
}

/// A service to work on, with the right to its calls.
#[derive(Debug)]
pub struct Job {
    pub service: RunService,
    pub priority: Priority,
    /// Since when it waited.
    pub since: Instant,
    pub waited: Duration,
    pub tokens: Tokens,
}

/// How work on a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Over,
    /// Counts towards back-off.
    Failed,
    /// There is something to write, and it has to wait for the right to.
    Waits,
}

impl Queue {
    /// `workers`: services that were taken up lately and are not done, over everything.
    pub fn new(budgets: Arc<Budgets>, workers: usize) -> Self {
        let state = Owned::new(Rank::Queue, State::default());
        Self {
            state,
            changed: Notify::new(),
            budgets,
            workers: workers.max(1),
        }
    }

    /// Asks for a service to be worked on. Equal requests fold; the more urgent priority counts.
    pub fn add(&self, service: &RunService, priority: Priority) {
        self.add_all([service], priority);
    }

    /// Asks for many at once.
    pub fn add_all<'a>(
        &self,
        services: impl IntoIterator<Item = &'a RunService>,
        priority: Priority,
    ) {
        let now = Instant::now();
        self.state.with(|s| {
            services
                .into_iter()
                .for_each(|service| s.add(service, priority, now))
        });
        self.changed.notify_waiters();
    }

    /// Asks for a service at a later time, unless an earlier one is set already.
    pub fn add_at(&self, service: &RunService, priority: Priority, at: Instant) {
        self.state.with(|s| s.set_timer(service, priority, at));
        self.changed.notify_waiters();
    }

    /// The next job. Waits until there is one whose calls may be made.
    pub async fn next(&self) -> Job {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Instant::now();
            let wake = match self
                .state
                .with(|s| s.pick(now, &self.budgets, self.workers))
            {
                Ok(job) => return job,
                Err(wake) => wake,
            };
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

    /// A job is over. The number of failures in a row comes back.
    pub fn done(&self, job: Job, end: End) -> u32 {
        let Job {
            service,
            priority,
            since,
            tokens,
            ..
        } = job;
        let has_written = tokens.has_written();
        // What was not used goes back before anybody is notified.
        drop(tokens);
        let now = Instant::now();
        let failures = self
            .state
            .with(|s| s.done(&service, priority, since, (end, has_written), now));
        self.changed.notify_waiters();
        failures
    }

    /// Work of a project kept a thread busy for so long.
    pub fn spent(&self, project: &Arc<str>, busy: Duration) {
        let now = Instant::now();
        self.state.with(|s| s.accounts.spent(project, busy, now));
    }

    /// Forgets timers of a service that nobody is about any more.
    pub fn forget(&self, service: &RunService) {
        self.state.with(|s| s.forget(service));
    }

    /// Forgets all that waits of these services.
    pub fn let_go(&self, among: impl Fn(&RunService) -> bool) {
        self.state.with(|s| s.let_go(&among));
    }

    /// Whether somebody else waits for a write in the place of a service.
    pub fn others_wait_to_write(&self, service: &RunService) -> bool {
        let place = Place::of(service);
        self.state.with(|s| {
            let waiting = s.places.get(&place);
            waiting.is_some_and(|w| w.changers.iter().any(|lane| !lane.is_empty()))
        })
    }

    /// How many wait in each priority.
    pub fn depths(&self) -> [usize; 4] {
        self.state
            .with(|s| Priority::ALL.map(|p| s.places.values().map(|w| w.depth(p)).sum()))
    }

    /// How many are being worked on.
    pub fn running(&self) -> usize {
        self.state.with(|s| s.crowd.len())
    }

    /// Whether a service is being worked on.
    pub fn is_running(&self, service: &RunService) -> bool {
        self.state
            .with(|s| s.items.get(service).is_some_and(|i| i.running.is_some()))
    }

    /// How long the longest job has been running.
    pub fn longest_running(&self) -> Duration {
        let now = Instant::now();
        let since = self.state.with(|s| {
            s.items
                .values()
                .filter_map(|i| i.running)
                .map(|r| r.since)
                .min()
        });
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests;
