//! The circuit breaker at work: asked before drift is corrected, marked in the store while open,
//! closed when it is calm or by hand.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::{
    Controller, Priority,
    owned::{Owned, Rank},
};
use crate::{
    cloudrun::CloudRun,
    cluster::CircuitMark,
    fault::Fault,
    iam::RunService,
    plan::drift::{Breaker, BreakerLimits},
};

/// How often a replica checks whether another one opened the breaker, in seconds.
const OTHERS_MARK: u64 = 3;
/// Unrest is reported to other replicas at most this often, in seconds.
const REPORT_UNREST: i64 = 2;

#[derive(Debug)]
struct State {
    breaker: Breaker,
    /// Services with drift that only the breaker keeps from being corrected.
    waiting: BTreeSet<RunService>,
    /// It was opened here, and the store does not say so yet.
    unmarked: Option<Timestamp>,
}

/// The breaker, and who waits for it.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    state: Owned<State>,
    opened: Notify,
}

impl CircuitBreaker {
    pub fn new(limits: BreakerLimits) -> Self {
        let state = State {
            breaker: Breaker::new(limits),
            waiting: BTreeSet::new(),
            unmarked: None,
        };
        Self {
            state: Owned::new(Rank::Breaker, state),
            opened: Notify::new(),
        }
    }

    pub fn is_open(&self) -> bool {
        self.state.with(|s| s.breaker.open_since().is_some())
    }

    /// Asks to correct drift on one service. It never waits: the mark follows, and until it is
    /// there no correction is made either.
    pub fn admit(&self, service: &RunService, now: Timestamp) -> bool {
        let (admitted, opened) = self.state.with(|s| {
            let before = s.breaker.open_since();
            let admitted = s.breaker.admit(service, now);
            let opened = !admitted && before.is_none();
            if opened {
                s.unmarked = Some(now);
            }
            (admitted, opened)
        });
        if opened {
            tracing::error!(
                "too many drift corrections in a short time; the circuit breaker is open and corrections are paused"
            );
            self.opened.notify_one();
        }
        admitted
    }

    /// What was admitted was not made.
    pub fn withdraw(&self, service: &RunService, at: Timestamp) {
        self.state.with(|s| s.breaker.withdraw(service, at));
    }

    /// Counts a correction that this process did not make.
    pub fn remember(
        &self,
        service: &RunService,
        times: impl IntoIterator<Item = Timestamp>,
        now: Timestamp,
    ) {
        self.state.with(|s| {
            times
                .into_iter()
                .for_each(|at| s.breaker.remember(service, at, now))
        });
    }

    /// Drift was found that was not there at the last reconcile.
    pub fn drift_found(&self, now: Timestamp) {
        self.state.with(|s| s.breaker.drift_found(now));
    }

    /// Whether a service has drift that only the breaker keeps from being corrected.
    pub fn wait(&self, service: &RunService, waits: bool) {
        self.state.with(|s| {
            if waits {
                s.waiting.insert(service.clone())
            } else {
                s.waiting.remove(service)
            }
        });
    }

    /// It was open before this process was there.
    pub fn reopen(&self, since: Timestamp, now: Timestamp) {
        self.state.with(|s| s.breaker.reopen(since, now));
    }

    pub fn let_go(&self, among: impl Fn(&RunService) -> bool) {
        self.state.with(|s| s.waiting.retain(|w| !among(w)));
    }
}

impl<C: CloudRun> Controller<C> {
    /// Keeps the breaker and its mark together. While it is open: closes it when the window has
    /// passed quietly, or when somebody took the mark away. With several shards: opens it when
    /// another replica did, and reports drift that is found here to the others.
    pub(super) async fn watch_circuit(self: Arc<Self>) {
        let alone = self.shards.count() == 1;
        let mut last = None;
        for second in 0u64.. {
            tokio::select! {
                biased;
                () = self.breaker.opened.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            let open = self.breaker.is_open();
            if !self.shards.holds_any() || (!open && (alone || !second.is_multiple_of(OTHERS_MARK)))
            {
                continue;
            }
            if let Err(fault) = self.follow_circuit(open, alone, &mut last).await {
                tracing::debug!(%fault, "the mark of the circuit breaker could not be read or written; it is tried again");
            }
        }
    }

    async fn follow_circuit(
        &self,
        open: bool,
        alone: bool,
        last: &mut Option<CircuitMark>,
    ) -> Result<(), Fault> {
        let now = self.now();
        let state = &self.breaker.state;
        // A restart must not close it, so the mark comes first.
        if let Some(since) = state.with(|s| s.unmarked) {
            self.cluster.mark_circuit(since).await?;
            state.with(|s| s.unmarked = None);
        }
        let calm = open && state.with(|s| s.breaker.is_calm(now));
        if calm && alone {
            self.cluster.unmark_circuit().await?;
            self.close_circuit(true);
            return Ok(());
        }
        let Some(mark) = self.cluster.circuit_mark().await? else {
            *last = None;
            if open {
                self.close_circuit(false);
            }
            return Ok(());
        };
        if !open {
            tracing::error!("another replica opened the circuit breaker; corrections are paused");
            self.breaker.reopen(mark.since, now);
            *last = Some(mark);
            return Ok(());
        }
        if alone {
            return Ok(());
        }
        // Unrest that another replica reported since is unrest, at the time at which it was read.
        if last.as_ref().is_some_and(|t| t.unrest != mark.unrest) {
            self.breaker.drift_found(now);
        }
        // A Lease keeps microseconds.
        let unrest = state
            .with(|s| s.breaker.unrest())
            .and_then(|u| Timestamp::from_microsecond(u.as_microsecond()).ok());
        if unrest.is_some_and(|u| {
            mark.unrest
                .is_none_or(|m| u.duration_since(m).as_secs() >= REPORT_UNREST)
        }) {
            let mark = CircuitMark { unrest, ..mark };
            self.cluster.report_unrest(&mark).await?;
            *last = Some(mark);
            return Ok(());
        }
        *last = Some(mark);
        if calm {
            self.cluster.unmark_circuit().await?;
            self.close_circuit(true);
        }
        Ok(())
    }

    fn close_circuit(&self, by_itself: bool) {
        let waiting = self.breaker.state.with(|s| {
            s.breaker.close();
            std::mem::take(&mut s.waiting)
        });
        tracing::warn!(
            by_itself,
            "the circuit breaker is closed; drift is corrected again"
        );
        self.ask(&waiting, Priority::Drift);
    }
}
