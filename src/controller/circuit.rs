//! The circuit breaker at work: asked before drift is corrected, marked in the store while open, closed when it is calm or
//! by hand.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use super::Controller;
use crate::{
    cloudrun::{CloudRun, Priority},
    cluster::CircuitMark,
    fault::Fault,
    gather::{Declared, Remembered},
    iam::RunService,
    plan::Plan,
};

/// How often a replica looks whether another one opened the breaker, in seconds.
const OTHERS_MARK: u64 = 3;
/// Unrest is told to other replicas at most this often, in seconds.
const TELL_UNREST: i64 = 2;

impl<C: CloudRun> Controller<C> {
    pub(super) fn circuit_is_open(&self) -> bool {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).open_since().is_some()
    }

    /// Asks to correct drift on one service. Where this opens the breaker, the mark is in the store before anything else
    /// happens: a restart must not close it.
    pub(super) async fn admit_correction(&self) -> bool {
        let now = self.now();
        let opened = {
            let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
            let before = breaker.open_since();
            if breaker.admit(now) {
                return true;
            }
            before.is_none()
        };
        if opened {
            tracing::error!(
                "too much drift was corrected in too short a time; the circuit breaker is open and corrections rest"
            );
            while let Err(fault) = self.cluster.mark_circuit(now).await {
                tracing::warn!(%fault, "the circuit breaker could not be marked as open; it is tried again");
                if !self.shards.holds_any() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        false
    }

    /// Takes note of drift that was not there at the last look.
    pub(super) fn watch_drift(&self, declared: &Declared, plan: &Plan, remembered: &Remembered) {
        if plan.drift.is_subset(&remembered.memory.waiting) {
            return;
        }
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).drift_found(self.now());
        tracing::debug!(service = %declared.service, grants = plan.drift.len(), "drift");
    }

    /// Takes down what was corrected.
    pub(super) fn corrected(&self, declared: &Declared, plan: &Plan) {
        let now = self.now();
        let mut kept = self.kept();
        let memory = &mut kept.entry(declared.service.clone()).or_default().memory;
        for grant in plan.corrections() {
            memory.corrected(grant, now);
        }
    }

    /// Whether a service has drift that only the breaker keeps from being corrected.
    pub(super) fn wait_for_circuit(&self, service: &RunService, waits: bool) {
        let mut waiting = self.waiting_for_circuit.lock().unwrap_or_else(PoisonError::into_inner);
        if waits {
            waiting.insert(service.clone());
        } else {
            waiting.remove(service);
        }
    }

    /// Keeps the breaker and its mark together. While it is open: closes it when the window has passed quietly, or when
    /// somebody took the mark away. With several shards: opens it when another replica did, and tells the others of drift
    /// that is found here.
    pub(super) async fn watch_circuit(self: Arc<Self>) {
        let alone = self.shards.count() == 1;
        let mut told = None;
        for second in 0u64.. {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let open = self.circuit_is_open();
            if !self.shards.holds_any() || (!open && (alone || !second.is_multiple_of(OTHERS_MARK))) {
                continue;
            }
            if let Err(fault) = self.follow_circuit(open, alone, &mut told).await {
                tracing::debug!(%fault, "the mark of the circuit breaker could not be read or written; it is tried again");
            }
        }
    }

    async fn follow_circuit(&self, open: bool, alone: bool, told: &mut Option<CircuitMark>) -> Result<(), Fault> {
        let now = self.now();
        let breaker = || self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let calm = open && breaker().is_calm(now);
        if calm && alone {
            self.cluster.unmark_circuit().await?;
            self.close_circuit(true);
            return Ok(());
        }
        let Some(mark) = self.cluster.circuit_mark().await? else {
            *told = None;
            if open {
                self.close_circuit(false);
            }
            return Ok(());
        };
        if !open {
            tracing::error!("another replica opened the circuit breaker; corrections rest");
            breaker().reopen(mark.since, now);
            *told = Some(mark);
            return Ok(());
        }
        if alone {
            return Ok(());
        }
        // Unrest that another replica told of since is unrest, at the time at which it was heard of.
        if told.as_ref().is_some_and(|t| t.unrest != mark.unrest) {
            breaker().drift_found(now);
        }
        // A Lease keeps microseconds.
        let unrest = breaker().unrest().and_then(|u| Timestamp::from_microsecond(u.as_microsecond()).ok());
        if unrest.is_some_and(|u| mark.unrest.is_none_or(|m| u.duration_since(m).as_secs() >= TELL_UNREST)) {
            let mark = CircuitMark { unrest, ..mark };
            self.cluster.tell_unrest(&mark).await?;
            *told = Some(mark);
            return Ok(());
        }
        *told = Some(mark);
        if calm {
            self.cluster.unmark_circuit().await?;
            self.close_circuit(true);
        }
        Ok(())
    }

    fn close_circuit(&self, by_itself: bool) {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).close();
        tracing::warn!(by_itself, "the circuit breaker is closed; drift is corrected again");
        let waiting = std::mem::take(&mut *self.waiting_for_circuit.lock().unwrap_or_else(PoisonError::into_inner));
        self.ask(&waiting, Priority::Drift);
    }
}
