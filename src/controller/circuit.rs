//! The circuit breaker at work: asked before drift is corrected, marked in the store while open, closed when it is calm or
//! by hand.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::Controller;
use crate::{
    cloudrun::{CloudRun, Lane},
    gather::{Declared, Remembered},
    iam::RunService,
    plan::Plan,
};

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
                if !self.leads() {
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

    /// While the breaker is open: closes it when the window has passed quietly, or when somebody took the mark away.
    pub(super) async fn watch_circuit(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if !self.circuit_is_open() || !self.leads() {
                continue;
            }
            let calm = self.breaker.lock().unwrap_or_else(PoisonError::into_inner).is_calm(self.now());
            if calm {
                if let Err(fault) = self.cluster.unmark_circuit().await {
                    tracing::debug!(%fault, "the mark of the circuit breaker could not be taken away yet");
                    continue;
                }
            } else {
                match self.cluster.circuit_mark().await {
                    Ok(None) => {}
                    Ok(Some(_)) => continue,
                    Err(fault) => {
                        tracing::debug!(%fault, "the mark of the circuit breaker could not be read");
                        continue;
                    }
                }
            }
            self.breaker.lock().unwrap_or_else(PoisonError::into_inner).close();
            tracing::warn!(by_itself = calm, "the circuit breaker is closed; drift is corrected again");
            let waiting = std::mem::take(&mut *self.waiting_for_circuit.lock().unwrap_or_else(PoisonError::into_inner));
            self.queue.add_all(&waiting, Lane::Drift);
        }
    }
}
