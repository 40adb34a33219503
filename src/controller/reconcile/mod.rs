//! One service, once: gather, read, settle what was open, plan, record, write, read back. What was
//! found and what was really written is reported in any case, also when it ends in a failure.

mod finalizers;
mod ledger;
mod outcome;
mod write;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Controller, change_log::Settlement, gather::Without, queue::Job};
use crate::{
    api::ChangedBy,
    cloudrun::{
        CloudRun,
        limit::{Needs, Place, Tokens},
    },
    fault::{Fault, FaultClass},
    history::whole_microseconds,
    iam::{Grant, Policy, RunService},
    index::PlanInputs,
    ledger::Ledger,
    plan::{self, Plan},
    status::{Applied, FoundDrift},
};

use ledger::take_back;
pub(super) use outcome::backoff;
use outcome::{end, label};

/// Writes to IAM in one reconcile; what is left is for the next.
const MAX_WRITES: u32 = 4;

/// Times that somebody else may be faster before a reconcile has failed.
const MAX_CONFLICTS: u32 = 4;

// A reconcile without a write left waits for quota and is taken up again at once: one that had
// nothing but conflicts has to fail before.
const _: () = assert!(MAX_CONFLICTS <= MAX_WRITES);

/// What was found on a service, and what is left to do there.
pub(super) struct Found {
    pub inputs: PlanInputs,
    pub live: Policy,
    /// What is due and not done, with everything withheld.
    pub rest: Plan,
    /// Something is to be written and waits for the right to.
    pub waits: bool,
    /// Something failed that does not keep the rest from going on.
    pub incomplete: Option<Fault>,
}

/// What happened on the way, whatever the end is.
#[derive(Default)]
pub(super) struct Report {
    /// Writes whose end was seen.
    pub applied: Vec<Applied>,
    /// Differences that somebody else made, before anything was corrected.
    pub drift: FoundDrift,
    /// Who made what differed, or what was corrected lately.
    pub blame: BTreeMap<Grant, Arc<ChangedBy>>,
}

/// A failure, with what was known then.
type Failure = Box<(PlanInputs, Fault)>;

/// How the work on a service ended. `None`: nobody is about it.
type Outcome = Result<Option<Found>, Failure>;

/// How a step ended.
enum Step {
    /// Gather and plan anew, from this reading if there is one.
    Again(Option<Policy>),
    Done(Box<Found>),
    Failed(Failure),
}

impl<C: CloudRun> Controller<C> {
    /// Works on one service and sets when it comes up again.
    pub(super) async fn reconcile(self: Arc<Self>, mut job: Job) {
        let started = Instant::now();
        let service = job.service.clone();
        self.metrics.waited(job.priority.label(), job.waited);
        let mut reconcile = Reconcile::new(&self, &service, std::mem::take(&mut job.tokens));
        let result = reconcile.run().await;
        if let Err(failure) = &result {
            reconcile.forget_what_is_gone(failure.1.class).await;
        }
        let Reconcile { report, tokens, .. } = reconcile;
        job.tokens = tokens;
        self.count(&service, label(&result, &report), started.elapsed());
        self.count_changes(&report.applied);
        // What follows is published before anybody else may take the service up.
        self.publish_outcome(&service, &result, &report);
        let failures = self.queue.done(job, end(&result));
        self.unpark(&service);
        self.requeue(&service, &result, failures);
    }
}

/// One turn of work on one service.
struct Reconcile<'a, C> {
    controller: &'a Controller<C>,
    service: &'a RunService,
    tokens: Tokens,
    report: Report,
    without: Without,
    incomplete: Option<Fault>,
    /// The correction that the circuit breaker let through.
    admitted: Option<Timestamp>,
    /// When the last write was over whose end was seen here.
    written_at: Option<Timestamp>,
    writes: u32,
    conflicts: u32,
}

impl<'a, C: CloudRun> Reconcile<'a, C> {
    fn new(controller: &'a Controller<C>, service: &'a RunService, tokens: Tokens) -> Self {
        Self {
            controller,
            service,
            tokens,
            report: Report::default(),
            without: Without::new(),
            incomplete: None,
            admitted: None,
            written_at: None,
            writes: 0,
            conflicts: 0,
        }
    }

    /// Until the live policy is as desired, or cannot be made so now. `None`: there is no reason to
    /// read it.
    async fn run(&mut self) -> Outcome {
        let mut known: Option<Policy> = None;
        loop {
            let (inputs, readable) = self.controller.gather(self.service, &self.without);
            if !inputs.needs_read(self.controller.now())
                && !self.controller.change_log.has_legacy(self.service)
            {
                return match self.forget_fights(&inputs).await {
                    Ok(()) => Ok(None),
                    Err(fault) => Err(Box::new((inputs, fault))),
                };
            }
            if let Err(fault) = readable {
                return Err(Box::new((inputs, fault)));
            }
            let live = match known.take() {
                Some(live) => live,
                None => match self.read().await {
                    Ok(live) => live,
                    Err(fault) => return Err(Box::new((inputs, fault))),
                },
            };
            match self.step(inputs, live).await {
                Step::Again(next) => known = next,
                Step::Done(found) => return Ok(Some(*found)),
                Step::Failed(failure) => return Err(failure),
            }
        }
    }

    /// Reads what is real. (Cloud Run)
    async fn read(&mut self) -> Result<Policy, Fault> {
        let token = match self.tokens.read() {
            Some(token) => token,
            None => self.token().ok_or_else(|| slow_down("its reads"))?,
        };
        let live = self.controller.cloud.read(self.service, token).await?;
        self.controller.saw(self.service, &live);
        Ok(live)
    }

    fn token(&mut self) -> Option<crate::cloudrun::limit::Token> {
        self.controller
            .cloud
            .budgets()
            .reserve(&Place::of(self.service), Needs::READ)
            .ok()?
            .read()
    }

    /// From one reading to the next.
    async fn step(&mut self, inputs: PlanInputs, live: Policy) -> Step {
        self.controller
            .close_legacy(self.service, Some(&live))
            .await;
        let settled = match self.settle(&inputs.ledger, Some(&live)).await {
            Ok(settled) => settled,
            Err(fault) => return failed(inputs, fault),
        };
        let Settlement {
            open,
            undone,
            spent,
            ..
        } = settled;
        let mut inputs = inputs;
        take_back(&mut inputs, &undone);
        spent.iter().for_each(|pending| inputs.spend(pending));
        self.controller.recall(&mut inputs, &live);
        let mut plan = self.plan(&mut inputs, &live);
        let memories = &self.controller.memories;
        // What is as declared now and differs later was changed by somebody, also while this one is
        // under way.
        memories.settle(self.service, inputs.fingerprint(), plan.outstanding());
        let batch = memories.search(self.service, |s| s.next(&plan, &inputs.alone));
        match self.put_finalizers(&inputs, &plan).await {
            Ok(true) => {}
            Ok(false) => return Step::Again(Some(live)),
            Err(fault) => return failed(inputs, fault),
        }
        let may_write = !batch.is_empty() && self.may_write();
        if !may_write {
            if let Some(step) = self.keep_ledger(&inputs, &plan, open).await {
                return match step {
                    Ok(()) => self.again(inputs, Some(live)),
                    Err(fault) => failed(inputs, fault),
                };
            }
            memories.search(self.service, |s| s.withhold(&mut plan));
            plan.wait(&inputs.alone);
            let (waits, incomplete) = (!batch.is_empty(), self.incomplete.take());
            return Step::Done(Box::new(Found {
                inputs,
                live,
                rest: plan,
                waits,
                incomplete,
            }));
        }
        self.write(inputs, live, plan, batch, open).await
    }

    /// Settles what was open, and reports what was made. (Kubernetes)
    async fn settle(
        &mut self,
        ledger: &Ledger,
        live: Option<&Policy>,
    ) -> Result<Settlement, Fault> {
        let mut settlement = self.controller.settle(self.service, ledger, live).await?;
        for pending in settlement.undone.iter().filter(|p| !p.drift.is_empty()) {
            self.controller.breaker.withdraw(self.service, pending.at);
        }
        self.report.applied.append(&mut settlement.applied);
        self.written_at = self.written_at.max(settlement.written_at);
        Ok(settlement)
    }

    /// What is to be done. Asks the circuit breaker before drift is corrected. (pure, but for that)
    fn plan(&mut self, inputs: &mut PlanInputs, live: &Policy) -> Plan {
        let controller = self.controller;
        let now = whole_microseconds(controller.now());
        let settings = &controller.options.settings;
        let input = inputs.input(live, settings, now);
        let mut plan = plan::plan(&input);
        if controller.options.events.is_some() {
            let views = plan::views(&input);
            self.report
                .blame
                .extend(controller.attribute(inputs, live, &views));
        }
        self.report.drift.add(&plan, &live.grants());
        if !plan.drift.is_subset(&inputs.drift.waiting) {
            controller.breaker.drift_found(now);
            tracing::debug!(grants = plan.drift.len(), "drift");
        }
        if self.admitted.is_none() && plan.corrects_drift() {
            if controller.breaker.admit(self.service, now) {
                self.admitted = Some(now);
            } else {
                inputs.circuit_open = true;
                plan = plan::plan(&inputs.input(live, settings, now));
            }
        }
        plan
    }

    /// Whether this reconcile has the right to a write and to reading it back.
    fn may_write(&mut self) -> bool {
        if self.writes >= MAX_WRITES {
            return false;
        }
        // One write to each, and more to whoever nobody waits behind.
        let yields = self.writes > 0 && self.conflicts == 0;
        if yields && self.controller.queue.others_wait_to_write(self.service) {
            return false;
        }
        let left = self.tokens.left();
        let missing = Needs {
            reads: Needs::WRITE.reads.saturating_sub(left.reads),
            writes: Needs::WRITE.writes.saturating_sub(left.writes),
        };
        if missing
            == (Needs {
                reads: 0,
                writes: 0,
            })
        {
            return true;
        }
        match self
            .controller
            .cloud
            .budgets()
            .reserve(&Place::of(self.service), missing)
        {
            Ok(tokens) => {
                self.tokens.add(tokens);
                true
            }
            Err(_) => false,
        }
    }

    /// Another step, unless others are faster again and again.
    fn again(&mut self, inputs: PlanInputs, live: Option<Policy>) -> Step {
        self.conflicts += 1;
        if self.conflicts < MAX_CONFLICTS {
            return Step::Again(live);
        }
        let fault = Fault::new(
            FaultClass::Conflict,
            "the IAM policy was changed concurrently several times in a row, or the write was undone immediately",
        );
        failed(inputs, fault)
    }
}

fn failed(inputs: PlanInputs, fault: Fault) -> Step {
    Step::Failed(Box::new((inputs, fault)))
}

fn slow_down(what: &str) -> Fault {
    Fault::new(
        FaultClass::QuotaExceeded,
        format!("the service was changed so often that {what} were used up"),
    )
}

#[cfg(test)]
mod tests;
