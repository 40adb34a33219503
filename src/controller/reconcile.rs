//! One service, once: gather, read, settle what was open, plan, record, write, read back. What was
//! found and what was really written is reported in any case, also when it ends in a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::Instant;

use super::gather::Without;
use super::{
    Controller, Priority, next_slot,
    queue::{End, Job},
    spread,
};
use crate::{
    api::ChangedBy,
    cloudrun::{
        CloudRun, fence,
        limit::{Needs, Place, Tokens},
    },
    cluster::{FinalizerWrite, LedgerWrite, StoredLedger},
    fault::{Fault, FaultClass, Retry},
    history::{self, Ending, whole_microseconds},
    iam::{Grant, Policy, RunService},
    index::PlanInputs,
    intent::{DEFAULT_INTERVAL, PolicyId},
    ledger::{Ledger, Pending, Version},
    plan::{self, Batch, Clue, OwnerState, Plan, PolicyOnService, WithheldReason, drift::WINDOW},
    status::{Applied, Drift},
};

/// How soon a service is read again while the end of a write is unknown.
const UNANSWERED: Duration = Duration::from_secs(60);
/// Nothing is planned for later than this; what comes later is planned anew.
const FAR: Duration = Duration::from_secs(86_400);
/// Writes to IAM in one reconcile; what is left is for the next.
const MAX_WRITES: u32 = 4;
/// Times that somebody else may be faster before a reconcile has failed.
const MAX_CONFLICTS: u32 = 4;
// A reconcile without a write left waits for quota and is taken up again at once: one that had
// nothing but conflicts has to fail before.
const _: () = assert!(MAX_CONFLICTS <= MAX_WRITES);
/// Writes without an answer that may be open at once.
const MAX_OPEN: usize = 4;
/// Finalizers that are put at once.
const FINALIZERS: usize = 8;

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
    pub drift: Drift,
    /// Who made what differed, or what was corrected lately.
    pub blame: BTreeMap<Grant, Arc<ChangedBy>>,
}

/// A failure, with what was known then.
type Failure = Box<(PlanInputs, Fault)>;

/// How the work on a service ended. `None`: nobody is about it.
type Outcome = Result<Option<Found>, Failure>;

/// Names an outcome in metrics.
fn label(result: &Outcome, report: &Report) -> &'static str {
    match result {
        Ok(None) => "skipped",
        Ok(Some(found)) if found.waits => "waiting",
        Ok(Some(_)) if report.applied.is_empty() => "unchanged",
        Ok(Some(_)) => "changed",
        Err(failure) => failure.1.class.row().label,
    }
}

/// What the queue is to know of an outcome.
fn end(result: &Outcome) -> End {
    match result {
        Ok(None) => End::Over,
        Ok(Some(found)) if found.waits => End::Waits,
        Ok(Some(found)) if found.incomplete.is_none() => End::Over,
        // What a person has to settle is read rarely, and says nothing about what will pass by
        // itself.
        Err(failure) if failure.1.class.row().retry == Retry::Slow => End::Over,
        Ok(Some(_)) | Err(_) => End::Failed,
    }
}

/// How a step ended.
enum Step {
    /// Gather and plan anew, from this reading if there is one.
    Again(Option<Policy>),
    Done(Box<Found>),
    Failed(Failure),
}

/// Exponential with full jitter, from 1 s to 5 min.
pub(super) fn backoff(failures: u32, seed: u64, what: impl std::hash::Hash) -> Duration {
    let ceiling = Duration::from_secs(300)
        .min(Duration::from_secs(1) * 2u32.saturating_pow(failures.min(16)));
    ceiling.mul_f64(0.5 + spread(seed, (what, failures)) / 2.0)
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

    fn count(&self, service: &RunService, label: &str, took: Duration) {
        let metrics = &self.metrics;
        let reconciles = &metrics.reconciles;
        reconciles.reconcile_total.with_label_values(&[label]).inc();
        reconciles
            .reconcile_duration_seconds
            .observe(took.as_secs_f64());
        metrics.audited(self.shards.of(&service.project), self.now());
        tracing::debug!(result = label, ?took, "reconciled");
    }

    /// Hands on what was found.
    fn publish_outcome(&self, service: &RunService, result: &Outcome, report: &Report) {
        match result {
            Ok(None) => self.forget(service),
            Ok(Some(found)) => {
                self.remember(found);
                self.observed(found, report);
            }
            Err(failure) => self.not_observed(&failure.0, &failure.1, report),
        }
    }

    /// Sets when the service comes up again.
    fn requeue(&self, service: &RunService, result: &Outcome, failures: u32) {
        match result {
            Ok(None) => {
                self.queue.forget(service);
                self.come_back_to_what_ends(service);
            }
            Ok(Some(found)) if found.waits => {}
            Ok(Some(found)) => {
                self.schedule(&found.inputs, &found.rest);
                if found.incomplete.is_some() {
                    self.retry(service, failures, None);
                }
            }
            Err(failure) => {
                let (inputs, fault) = &**failure;
                let rarely = fault.class.row().retry == Retry::Slow;
                if rarely || fault.retry_after.is_none() {
                    self.schedule(inputs, &Plan::nothing(service));
                }
                if !rarely {
                    self.retry(service, failures, fault.retry_after);
                }
            }
        }
    }

    fn retry(&self, service: &RunService, failures: u32, after: Option<Duration>) {
        let wait = after.unwrap_or_else(|| backoff(failures, self.options.seed, service));
        self.queue
            .add_at(service, Priority::Retry, Instant::now() + wait);
    }

    /// Forgets a service that nobody is about any more.
    fn forget(&self, service: &RunService) {
        self.memories.forget(service);
        self.breaker.wait(service, false);
        self.audit_events.forget(service);
        self.change_log.stored(service, &[]);
    }

    /// Takes down what the next reconcile has to know.
    fn remember(&self, found: &Found) {
        let service = &found.inputs.service;
        let waiting: Vec<_> = found
            .rest
            .withheld
            .iter()
            .filter(|w| w.is_others_doing())
            .collect();
        let mut known: BTreeSet<Grant> = waiting.iter().map(|w| w.grant.clone()).collect();
        known.extend(found.rest.drift.iter().cloned());
        self.memories.waits(service, known);
        if found
            .rest
            .withheld
            .iter()
            .any(|w| w.why == WithheldReason::UnansweredSelectors)
            && !self.index.with(|i| i.wait_for_listing(service))
        {
            // It was answered in the meantime.
            self.ask([service], Priority::Drift);
        }
        self.breaker.wait(
            service,
            waiting.iter().any(|w| w.why == WithheldReason::CircuitOpen),
        );
    }

    /// Nobody asks for a reconcile now. Where what is nobody's ends by itself, somebody has to take
    /// it away then.
    fn come_back_to_what_ends(&self, service: &RunService) {
        let Some(from) = self.index.with(|i| i.left_behind_from(service)) else {
            return;
        };
        let wait = Duration::try_from(from.duration_since(self.now())).unwrap_or_default();
        self.queue.add_at(
            service,
            Priority::Declared,
            Instant::now() + wait.min(FAR) + Duration::from_millis(100),
        );
    }

    /// Sets when a service is reconciled next: its slot, the end of a grant, another try of a
    /// refused member, or the next turn in a fight.
    fn schedule(&self, inputs: &PlanInputs, rest: &Plan) {
        let service = &inputs.service;
        let (now, instant) = (self.now(), Instant::now());
        let asks = |c: &&PolicyOnService| !c.intent.suspended || c.intent.deleting;
        let asking = inputs.claims.iter().filter(asks).map(|c| c.intent.interval);
        let interval = asking
            .min()
            .or(inputs.is_left_behind(now).then_some(DEFAULT_INTERVAL));
        // A write without an answer is settled soon, also where nobody asks for anything any more.
        let is_pending = self.index.with(|i| i.ledgers().is_pending(service));
        let interval = if is_pending {
            interval.map(|i| i.min(UNANSWERED))
        } else {
            interval
        };
        if let Some(interval) = interval {
            let interval = self.interval(&service.project, interval);
            let wait = next_slot(self.elapsed(), interval, spread(self.options.seed, service));
            self.queue
                .add_at(service, Priority::Periodic, instant + wait);
        } else {
            self.come_back_to_what_ends(service);
        }
        let declared = inputs
            .claims
            .iter()
            .filter_map(|c| c.intent.next_expiry(now));
        // What is held back ends by itself, too, and then there is less to hold.
        let held = rest.withheld.iter();
        let held = held
            .filter_map(|w| w.grant.condition.as_ref()?.expiry())
            .filter(|e| *e > now);
        let expiry = declared.chain(held).min();
        let fight = rest.withheld.iter().filter_map(|w| match &w.why {
            WithheldReason::Contested(fight) => Some(fight.not_before),
            _ => None,
        });
        let times = expiry.map(|at| (at, Priority::Declared)).into_iter();
        for (at, priority) in times.chain(fight.map(|at| (at, Priority::Drift))) {
            // Far ends come up again with a later reconcile anyway.
            if let Ok(wait) = Duration::try_from(at.duration_since(now))
                && wait < FAR
            {
                self.queue.add_at(
                    service,
                    priority,
                    instant + wait + Duration::from_millis(100),
                );
            }
        }
        if let Some(at) = self.memories.next_try(service) {
            self.queue.add_at(service, Priority::Retry, at);
        }
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
        let (open, undone) = match self.settle(&inputs.ledger, Some(&live)).await {
            Ok(open) => open,
            Err(fault) => return failed(inputs, fault),
        };
        let mut inputs = inputs;
        take_back(&mut inputs, &undone);
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

    /// Settles what was open; what may still arrive comes back, and what was not made. (Kubernetes)
    async fn settle(
        &mut self,
        ledger: &Ledger,
        live: Option<&Policy>,
    ) -> Result<(Vec<Pending>, Vec<Pending>), Fault> {
        let settlement = self.controller.settle(self.service, ledger, live).await?;
        for pending in settlement.undone.iter().filter(|p| !p.drift.is_empty()) {
            self.controller.breaker.withdraw(self.service, pending.at);
        }
        self.report.applied.extend(settlement.applied);
        Ok((settlement.open, settlement.undone))
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
        self.report.drift.extend(Drift::of(&plan, &live.grants()));
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

    /// Puts the finalizer on every policy that something is about to belong to, so that none of it
    /// outlives its policy unseen. False: some policy is gone, or cannot be protected so, and
    /// nothing is done for it in this reconcile. (Kubernetes)
    ///
    /// # Errors
    /// [`FaultClass::Conflict`]: a policy was made anew, and the watch has not shown what it lists.
    /// Until then nobody can say who is to go.
    async fn put_finalizers(&mut self, inputs: &PlanInputs, plan: &Plan) -> Result<bool, Fault> {
        let owning: BTreeSet<&PolicyId> = plan.lines.values().flatten().collect();
        let (controller, index) = (self.controller, &self.controller.index);
        // One that went since it was gathered has none either, and owns nothing from now on.
        let without = |id: &PolicyId| {
            !index.with(|i| {
                let record = i.policies().get(&id.key());
                record.is_some_and(|r| r.intent.id == *id && r.has_finalizer())
            })
        };
        let intents = inputs
            .claims
            .iter()
            .filter(|c| c.enforces() && !c.left)
            .map(|c| &c.intent);
        let staying = intents.filter(|i| !i.deleting && owning.contains(&i.id));
        let missing: Vec<PolicyId> = staying
            .filter(|i| without(&i.id))
            .map(|i| i.id.clone())
            .collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let put = |id: PolicyId| async move { (controller.cluster.put_finalizer(&id).await, id) };
        let results: Vec<_> = stream::iter(missing)
            .map(put)
            .buffered(FINALIZERS)
            .collect()
            .await;
        let mut all = true;
        for (result, id) in results {
            match result {
                Ok(FinalizerWrite::Done) => index.with(|i| i.set_finalizer(&id, true)),
                Ok(FinalizerWrite::Replaced) => {
                    let why = format!("InvokerPolicy {}/{} was made anew", id.namespace, id.name);
                    return Err(Fault::new(FaultClass::Conflict, why));
                }
                Ok(write) => {
                    all = false;
                    if write == FinalizerWrite::Gone {
                        // The watch says so later; nothing is asked on its behalf from now on.
                        controller.policy_deleted(&id);
                    }
                    self.without.insert(id, None);
                }
                Err(fault) => {
                    all = false;
                    let why = format!("its finalizer could not be set: {}", fault.message);
                    self.without.insert(id, Some(why.into()));
                    self.incomplete = Some(fault);
                }
            }
        }
        Ok(all)
    }

    /// Where nothing is written to IAM now: brings the ledger up to date. `None`: it is; else
    /// whether it was written. (Kubernetes)
    async fn keep_ledger(
        &mut self,
        inputs: &PlanInputs,
        plan: &Plan,
        open: Vec<Pending>,
    ) -> Option<Result<(), Fault>> {
        let mut next = inputs.ledger.clone();
        next.lines = plan.lines.clone();
        // What is still to be granted is entered when it is.
        next.lines
            .retain(|g, _| !plan.grants.contains_key(g) || inputs.ledger.lines.contains_key(g));
        next.pending = open;
        next.held = plan.held_alone();
        // Corrections that grow old are no reason to write.
        let known = &inputs.ledger;
        if (&next.lines, &next.pending, &next.held) == (&known.lines, &known.pending, &known.held) {
            return None;
        }
        match self.store(inputs, &next).await {
            Ok(true) => None,
            Ok(false) => Some(Ok(())),
            Err(fault) => Some(Err(fault)),
        }
    }

    /// Where no policy is left there is nobody to fight: what only remembers corrections goes.
    /// (Kubernetes)
    async fn forget_fights(&mut self, inputs: &PlanInputs) -> Result<(), Fault> {
        let ledger = &inputs.ledger;
        let is_bare =
            ledger.lines.is_empty() && ledger.pending.is_empty() && inputs.version.is_some();
        if is_bare && inputs.claims.is_empty() {
            // Somebody changed it meanwhile, and nobody else comes back to it.
            if !self.store(inputs, &Ledger::default()).await? {
                return Err(Fault::new(
                    FaultClass::Conflict,
                    "the ledger was changed at the same time",
                ));
            }
        }
        Ok(())
    }

    /// Writes the ledger. False: it was another than the one that this was planned from, and is
    /// known now. (Kubernetes)
    async fn store(&mut self, inputs: &PlanInputs, next: &Ledger) -> Result<bool, Fault> {
        let controller = self.controller;
        let known = inputs.version.as_ref();
        // Whoever holds the project now writes its ledgers; what comes late from another is refused
        // by its version.
        if !controller.shards.holds(&self.service.project) {
            return Err(fence::refused());
        }
        let write = controller.cluster.write_ledger(self.service, next, known);
        match write.await? {
            LedgerWrite::Written(version) => {
                controller
                    .index
                    .with(|i| i.set_ledger(self.service, next, version));
            }
            LedgerWrite::Deleted => self.erase_ledger(known),
            LedgerWrite::Conflict => {
                self.reload_ledger(known).await?;
                return Ok(false);
            }
        }
        controller.change_log.stored(self.service, &next.pending);
        // Whom nothing belongs to any more here says so in its status, or is let go, wherever it
        // means to be now.
        let owners = |ledger: &Ledger| -> BTreeSet<PolicyId> {
            ledger.lines.values().flatten().cloned().collect()
        };
        for left in owners(&inputs.ledger).difference(&owners(next)) {
            controller
                .statuses
                .add(&left.key(), Duration::from_millis(100));
        }
        Ok(true)
    }

    fn erase_ledger(&self, known: Option<&Version>) {
        if let Some(known) = known {
            self.controller
                .index
                .with(|i| i.erase_ledger(self.service, known.clone()));
        }
    }

    /// Takes in the ledger as it is in the store. (Kubernetes)
    async fn reload_ledger(&self, known: Option<&Version>) -> Result<(), Fault> {
        let controller = self.controller;
        match controller.cluster.read_ledger(self.service).await? {
            StoredLedger::Present(object) => {
                controller.index.with(|i| i.apply_ledger(&object));
            }
            StoredLedger::Unreadable { why, version } => controller
                .index
                .with(|i| i.spoil_ledger(self.service, &why, Some(version))),
            StoredLedger::Absent => self.erase_ledger(known),
        }
        Ok(())
    }

    /// Writes one batch of a plan: into the ledger, then, if it is still wanted, to IAM.
    /// (Kubernetes, Cloud Run)
    async fn write(
        &mut self,
        inputs: PlanInputs,
        live: Policy,
        plan: Plan,
        batch: Batch,
        open: Vec<Pending>,
    ) -> Step {
        let part = plan.part(&batch);
        let pending = self.pending(&inputs, &part, &live);
        let again = open
            .iter()
            .find(|p| is_same(p, &pending))
            .map(|p| p.name.clone());
        if again.is_none() && open.len() >= MAX_OPEN {
            return failed(
                inputs,
                Fault::new(
                    FaultClass::Timeout,
                    "several writes had no answer; waiting for them",
                ),
            );
        }
        let is_again = again.is_some();
        let name = again.unwrap_or_else(|| pending.name.clone());
        let next = self.ledger_before(&inputs, &plan, open, (!is_again).then_some(pending));
        if next != inputs.ledger {
            match self.store(&inputs, &next).await {
                Ok(true) => {}
                Ok(false) => return self.again(inputs, Some(live)),
                Err(fault) => {
                    // It may be in the ledger nevertheless, or come there later; it was never sent.
                    if !is_again {
                        self.ended(&name, Ending::Refused);
                    }
                    return failed(inputs, fault);
                }
            }
        }
        let (inputs, wanted) = self.is_still_wanted(&live, &batch, &name);
        if !wanted {
            self.ended(&name, Ending::Refused);
            return self.again(inputs, Some(live));
        }
        self.send(inputs, live, &part, &batch, &name).await
    }

    /// The ledger as it has to be before a write is sent. `pending`: the write, unless it is in the
    /// ledger already.
    fn ledger_before(
        &self,
        inputs: &PlanInputs,
        plan: &Plan,
        open: Vec<Pending>,
        pending: Option<Pending>,
    ) -> Ledger {
        let mut next = inputs.ledger.clone();
        next.lines = plan.lines.clone();
        next.pending = open;
        next.held = None;
        if let Some(pending) = pending {
            if !pending.drift.is_empty() {
                next.corrected_under = Some(inputs.fingerprint());
            }
            for grant in &pending.drift {
                let corrected = next.corrections.entry(grant.clone()).or_default();
                corrected.at.push(pending.at);
                let by = self.report.blame.get(grant).cloned();
                corrected.by = by.or(corrected.by.take());
            }
            next.pending.push(pending);
        }
        next.prune(self.controller.now(), WINDOW);
        next
    }

    fn pending(&mut self, inputs: &PlanInputs, part: &Plan, live: &Policy) -> Pending {
        let blame = &self.report.blame;
        let by = part
            .drift
            .iter()
            .filter_map(|g| blame.get(g))
            .max_by_key(|by| by.at.0)
            .map(|by| &**by);
        // The first correction of a reconcile is the one that the circuit breaker counted.
        let now = whole_microseconds(self.controller.now());
        let at = self
            .admitted
            .filter(|_| self.writes == 0 && part.corrects_drift())
            .unwrap_or(now);
        history::pending(part, &inputs.claims, live, by, at)
    }

    /// Whether what is declared, allowed and approved at this moment asks for all of a batch.
    fn is_still_wanted(&self, live: &Policy, batch: &Batch, name: &str) -> (PlanInputs, bool) {
        let controller = self.controller;
        let (mut inputs, readable) = controller.gather(self.service, &self.without);
        // This very write is no correction yet.
        for pending in inputs.ledger.pending.iter().filter(|p| p.name == name) {
            pending
                .drift
                .iter()
                .for_each(|g| inputs.drift.not_corrected(g, pending.at));
        }
        // The breaker was asked for this very correction.
        inputs.circuit_open &= self.admitted.is_none();
        let plan = plan::plan(&inputs.input(live, &controller.options.settings, controller.now()));
        let wanted = readable.is_ok() && plan.wants(batch);
        (inputs, wanted)
    }

    /// Sends a write, and sees what became of it. (Cloud Run)
    async fn send(
        &mut self,
        inputs: PlanInputs,
        live: Policy,
        part: &Plan,
        batch: &Batch,
        name: &str,
    ) -> Step {
        let controller = self.controller;
        if !controller.shards.holds(&self.service.project) {
            self.ended(name, Ending::Refused);
            return failed(inputs, fence::refused());
        }
        let Some(token) = self.tokens.write() else {
            return failed(inputs, slow_down("its writes"));
        };
        self.writes += 1;
        let fault = match controller
            .cloud
            .write(self.service, &part.applied_to(&live), token)
            .await
        {
            Ok(written) => {
                self.ended(name, Ending::Accepted);
                return self.written(written, batch).await;
            }
            Err(fault) => fault,
        };
        if !fault.class.did_nothing() {
            // The answer is lost, the write perhaps not: the live policy decides, and nothing is
            // written twice blindly.
            return match self.read().await {
                Ok(after) if after.etag != live.etag => self.again(inputs, Some(after)),
                _ => failed(inputs, fault),
            };
        }
        self.ended(name, Ending::Refused);
        match fault.class {
            FaultClass::Conflict => {
                tracing::debug!("somebody else changed the policy in between; reading again");
                self.again(inputs, None)
            }
            FaultClass::LeaseLost => failed(inputs, fault),
            FaultClass::InvalidMember | FaultClass::OrganizationPolicy => {
                match self.rejected(&inputs, part, batch, &fault) {
                    Ok(()) => Step::Again(Some(live)),
                    Err(fault) => self.failed_cleanly(inputs, &live, fault).await,
                }
            }
            _ => self.failed_cleanly(inputs, &live, fault).await,
        }
    }

    /// IAM took it. In sync is what the next read shows, not that a call returned.
    async fn written(&mut self, written: Policy, batch: &Batch) -> Step {
        let controller = self.controller;
        controller.expect_event(&self.service.project);
        controller
            .memories
            .search(self.service, |s| s.accepted(batch));
        controller.memories.accept(self.service, &batch.grants);
        match self.read().await {
            Ok(live) if is_shown(batch, &live) => Step::Again(Some(live)),
            // Undone already, or taken and not done: not for ever, and not without a pause.
            Ok(live) => {
                let (inputs, _) = controller.gather(self.service, &self.without);
                self.again(inputs, Some(live))
            }
            Err(fault) => {
                // What IAM answered stands for what could not be read back.
                let (inputs, _) = controller.gather(self.service, &self.without);
                self.failed_cleanly(inputs, &written, fault).await
            }
        }
    }

    /// IAM refuses members. They are named, or searched for.
    ///
    /// # Errors
    /// None of those that were to be granted is the reason.
    fn rejected(
        &self,
        inputs: &PlanInputs,
        part: &Plan,
        batch: &Batch,
        fault: &Fault,
    ) -> Result<(), Fault> {
        let memories = &self.controller.memories;
        let reject =
            |grant: &Grant| memories.reject(self.service, grant, fault, inputs.fingerprint());
        if let Some(named) = &fault.member {
            let culprits: Vec<&Grant> = part.grants.keys().filter(|g| is_named(g, named)).collect();
            culprits.iter().for_each(|g| reject(g));
            // Somebody who is in the policy already, and not by this plan: nothing here can be set
            // aside.
            return if culprits.is_empty() {
                Err(fault.clone())
            } else {
                Ok(())
            };
        }
        match memories.search(self.service, |s| s.refused(batch)) {
            Clue::Narrowed => Ok(()),
            Clue::Found(grant) => {
                reject(&grant);
                Ok(())
            }
            Clue::Unrelated => Err(Fault::new(
                fault.class,
                format!(
                    "IAM refuses every change of this policy, also the smallest; a member that is in it already may be the reason: {}",
                    fault.message
                ),
            )),
        }
    }

    fn ended(&self, name: &str, ending: Ending) {
        self.controller.change_log.ended(self.service, name, ending);
    }

    /// Another step, unless others are faster again and again.
    fn again(&mut self, inputs: PlanInputs, live: Option<Policy>) -> Step {
        self.conflicts += 1;
        if self.conflicts < MAX_CONFLICTS {
            return Step::Again(live);
        }
        let fault = Fault::new(
            FaultClass::Conflict,
            "somebody else was faster several times in a row, or undid at once what was written",
        );
        failed(inputs, fault)
    }

    /// The end of a reconcile that failed, with what happened before settled and the ledger in
    /// order.
    async fn failed_cleanly(&mut self, inputs: PlanInputs, live: &Policy, fault: Fault) -> Step {
        match self.settle(&inputs.ledger, Some(live)).await {
            Ok((open, undone)) => {
                let mut next = inputs.ledger.clone();
                next.pending = open;
                forget_corrections(&mut next, &undone);
                if let Err(fault) = self.store(&inputs, &next).await {
                    tracing::debug!(%fault, "the ledger could not be brought up to date; the next reconcile does it");
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, "a change could not be put on record; the next reconcile does it")
            }
        }
        failed(inputs, fault)
    }

    /// A service that is gone took its policy with it. Where only the way to it is gone, what
    /// belonged to policies that leave is nobody's from now on: it is revoked when the way is there
    /// again. (Kubernetes)
    async fn forget_what_is_gone(&mut self, class: FaultClass) {
        if !class.row().gone {
            return;
        }
        for _ in 0..MAX_CONFLICTS {
            let (inputs, readable) = self.controller.gather(self.service, &self.without);
            if readable.is_err() {
                return;
            }
            match self.forget_ledger(&inputs, class).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(fault) => {
                    tracing::warn!(%fault, "what is gone could not be forgotten; the next reconcile does it");
                    return;
                }
            }
        }
    }

    async fn forget_ledger(
        &mut self,
        inputs: &PlanInputs,
        class: FaultClass,
    ) -> Result<bool, Fault> {
        let mut next = inputs.ledger.clone();
        if matches!(
            class,
            FaultClass::ServiceNotFound | FaultClass::ProjectNotFound
        ) {
            self.controller.close_legacy(self.service, None).await;
            self.settle(&inputs.ledger, None).await?;
            next = Ledger::default();
        } else {
            for (grant, owners) in &mut next.lines {
                let states = inputs.owners.get(grant);
                let is_leaving = |id: &PolicyId| {
                    matches!(states.and_then(|o| o.get(id)), Some(OwnerState::Leaving(_)))
                };
                owners.retain(|id| !is_leaving(id));
            }
        }
        if next == inputs.ledger && !(next.is_empty() && inputs.version.is_some()) {
            return Ok(true);
        }
        self.store(inputs, &next).await
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

/// The same changes from the same version: sent twice, one of them is taken at most.
fn is_same(a: &Pending, b: &Pending) -> bool {
    a.etag_before == b.etag_before && a.added == b.added && a.removed == b.removed
}

/// Corrections that were not made do not count.
fn forget_corrections(ledger: &mut Ledger, undone: &[Pending]) {
    for pending in undone {
        for grant in &pending.drift {
            if let Some(corrected) = ledger.corrections.get_mut(grant) {
                corrected.at.retain(|at| *at != pending.at);
            }
        }
    }
    ledger.corrections.retain(|_, c| !c.at.is_empty());
}

fn take_back(inputs: &mut PlanInputs, undone: &[Pending]) {
    forget_corrections(&mut inputs.ledger, undone);
    for pending in undone {
        pending
            .drift
            .iter()
            .for_each(|grant| inputs.drift.not_corrected(grant, pending.at));
    }
}

/// `serviceAccount:x@y` is named as `x@y`; all members of a workload identity pool are named by the
/// pool.
fn is_named(grant: &Grant, named: &str) -> bool {
    let Some((_, name)) = grant.principal.as_str().split_once(':') else {
        return false;
    };
    let pool = name
        .split_once('[')
        .map(|(pool, _)| pool)
        .filter(|pool| pool.ends_with(".svc.id.goog"));
    name.eq_ignore_ascii_case(named) || pool.is_some_and(|p| p.eq_ignore_ascii_case(named))
}

/// Whether a policy shows what was written.
fn is_shown(batch: &Batch, live: &Policy) -> bool {
    let live = live.grants();
    batch.grants.iter().all(|g| live.contains(g)) && batch.revokes.iter().all(|g| !live.contains(g))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iam::{Principal, Role};

    #[test]
    fn a_refusal_names_a_member_or_the_pool_of_members() {
        let grant = |member: &str| Grant::new(Principal::from_live(member), Role::Invoker);
        assert!(is_named(
            &grant("serviceAccount:A@x.iam.gserviceaccount.com"),
            "a@x.iam.gserviceaccount.com"
        ));
        assert!(is_named(
            &grant("serviceAccount:nope.svc.id.goog[ns/sa]"),
            "nope.svc.id.goog"
        ));
        assert!(!is_named(
            &grant("serviceAccount:other.svc.id.goog[ns/sa]"),
            "nope.svc.id.goog"
        ));
        assert!(!is_named(&grant("user:a@x.co"), "x.co"));
    }
}
