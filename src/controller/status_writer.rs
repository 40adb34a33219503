//! What goes out: statuses, finalizers that come off, events and gauges. Status is written only
//! when it says something new; what the API server does not take waits for itself alone, longer
//! each time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    Controller, Priority,
    due::Due,
    owned::{Owned, Rank},
    reconcile::backoff,
};
use crate::{
    api::InvokerPolicyStatus,
    cloudrun::CloudRun,
    cluster::{FinalizerWrite, StatusWrite},
    fault::Fault,
    index::{
        Index,
        policies::{Gauges, SerializedStatus},
    },
    intent::{Intent, PolicyId, PolicyKey},
    status::{self, events::Note},
};

/// Writes of each kind under way at once.
const WRITERS: usize = 16;
/// Events that wait; more than this are dropped, oldest first: an event is a courtesy, the status
/// is the truth.
const MAX_NOTES: usize = 5000;
/// Events of one namespace that wait: nobody's events crowd out those of others.
const MAX_NOTES_OF_NAMESPACE: usize = 500;
/// Nothing is waited for longer than this in one piece.
const FAR: Duration = Duration::from_secs(86_400);
/// Statuses that are due within this time go out before the end.
const LAST_CALL: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct State {
    due: Due<PolicyKey>,
    busy: BTreeSet<PolicyKey>,
    failures: HashMap<PolicyKey, u32>,
    /// By namespace, served in turn.
    notes: BTreeMap<Arc<str>, VecDeque<(PolicyId, Note)>>,
    waiting_notes: usize,
    cursor: Option<Arc<str>>,
    publishing: usize,
    /// Only what is left goes out.
    closing: bool,
}

/// Statuses to write, and events to publish.
#[derive(Debug)]
pub(super) struct StatusWriter {
    state: Owned<State>,
    changed: Notify,
}

impl Default for StatusWriter {
    fn default() -> Self {
        Self {
            state: Owned::new(Rank::StatusWriter, State::default()),
            changed: Notify::new(),
        }
    }
}

enum Work {
    Status(PolicyKey),
    Note(Box<(PolicyId, Note)>),
}

impl StatusWriter {
    /// Brings a policy's status up to date after `delay`, or earlier if that was asked for already.
    pub fn add(&self, key: &PolicyKey, delay: Duration) {
        let at = Instant::now() + delay;
        self.state.with(|s| {
            // One that the API server did not take is not tried sooner because something changed.
            if s.failures.contains_key(key) && s.due.at(key).is_some() {
                return;
            }
            s.due.no_later(key, at);
        });
        self.changed.notify_one();
    }

    /// Brings a status that changes by itself up to date then, unless this process ends before.
    fn come_back(&self, key: &PolicyKey, delay: Duration) {
        if !self.state.with(|s| s.closing) {
            self.add(key, delay);
        }
    }

    /// Publishes an event.
    pub fn note(&self, id: PolicyId, note: Note) {
        self.state.with(|s| s.note(id, note));
        self.changed.notify_one();
    }

    fn next(&self, closing: bool) -> Result<Work, Option<Instant>> {
        let ahead = if closing { LAST_CALL } else { Duration::ZERO };
        let now = Instant::now();
        self.state.with(|s| {
            s.closing = closing;
            if s.publishing < WRITERS
                && let Some(note) = s.take_note()
            {
                s.publishing += 1;
                return Ok(Work::Note(Box::new(note)));
            }
            if s.busy.len() >= WRITERS {
                return Err(None);
            }
            let busy = &s.busy;
            match s.due.take(now + ahead, |k| !busy.contains(k)) {
                Some(key) => {
                    s.busy.insert(key.clone());
                    Ok(Work::Status(key))
                }
                None => Err(s.due.wake(|k| !busy.contains(k))),
            }
        })
    }

    fn written(&self, key: &PolicyKey, failed: bool, seed: u64) {
        let now = Instant::now();
        self.state.with(|s| {
            s.busy.remove(key);
            if !failed {
                s.failures.remove(key);
                return;
            }
            let failures = s.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            let wait = backoff(*failures - 1, seed, key);
            s.due.exactly(key, now + wait);
        });
    }

    fn published(&self) {
        self.state
            .with(|s| s.publishing = s.publishing.saturating_sub(1));
    }

    /// A policy is gone.
    pub fn forget(&self, key: &PolicyKey) {
        self.state.with(|s| {
            s.failures.remove(key);
            s.due.remove(key);
        });
    }
}

impl State {
    fn note(&mut self, id: PolicyId, note: Note) {
        let queue = self.notes.entry(id.namespace.clone()).or_default();
        queue.push_back((id, note));
        self.waiting_notes += 1;
        if queue.len() > MAX_NOTES_OF_NAMESPACE {
            queue.pop_front();
            self.waiting_notes -= 1;
        }
        if self.waiting_notes > MAX_NOTES {
            // Whoever has most waits for least.
            if let Some(longest) = self.notes.values_mut().max_by_key(|q| q.len())
                && longest.pop_front().is_some()
            {
                self.waiting_notes -= 1;
            }
        }
    }

    fn take_note(&mut self) -> Option<(PolicyId, Note)> {
        let after = |c: &Arc<str>| {
            let range = (
                std::ops::Bound::Excluded(c.clone()),
                std::ops::Bound::Unbounded,
            );
            self.notes
                .range::<Arc<str>, _>(range)
                .next()
                .map(|(n, _)| n.clone())
        };
        let next = self.cursor.as_ref().and_then(after);
        let namespace = next.or_else(|| self.notes.keys().next().cloned())?;
        let queue = self.notes.get_mut(&namespace)?;
        let note = queue.pop_front();
        if queue.is_empty() {
            self.notes.remove(&namespace);
        }
        self.cursor = Some(namespace);
        self.waiting_notes -= usize::from(note.is_some());
        note
    }
}

/// What one policy needs to have written.
struct Outgoing {
    intent: Arc<Intent>,
    old: SerializedStatus,
    next: InvokerPolicyStatus,
    release: bool,
    bind: bool,
    /// When the status changes by itself.
    settles: Option<Timestamp>,
    /// What it may not touch at all, or reaches too far for, is part of it.
    wide: bool,
}

impl<C: CloudRun> Controller<C> {
    /// Writes statuses and events until `stop`, and then those that are left.
    pub(super) async fn write_statuses(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            let changed = self.statuses.changed.notified();
            let stopping = *stop.borrow();
            let wake = match self.statuses.next(stopping) {
                Ok(work) => {
                    running.spawn(self.clone().carry_out(work));
                    continue;
                }
                Err(wake) => wake,
            };
            if stopping && running.is_empty() {
                return;
            }
            let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                Some(_) = running.join_next() => {}
                () = changed => {}
                () = tokio::time::sleep_until(wake), if !stopping => {}
                _ = stop.changed(), if !stopping => {}
            }
        }
    }

    async fn carry_out(self: Arc<Self>, work: Work) {
        match work {
            Work::Status(key) => {
                let result = self.write_status(&key).await;
                if let Err(fault) = &result {
                    tracing::debug!(%fault, namespace = &*key.namespace, policy = &*key.name, "a status could not be written; it is tried again");
                }
                self.statuses
                    .written(&key, result.is_err(), self.options.seed);
            }
            Work::Note(note) => {
                let (id, note) = *note;
                if let Err(fault) = self.cluster.publish(&id, &note, self.now()).await {
                    tracing::debug!(%fault, "an event could not be published");
                }
                self.statuses.published();
            }
        }
    }

    /// Brings one policy's status, finalizer and series up to date.
    async fn write_status(&self, key: &PolicyKey) -> Result<(), Fault> {
        let Some(due) = self.index.with(|i| self.status_due(i, key)) else {
            self.statuses.forget(key);
            return Ok(());
        };
        let Outgoing {
            intent,
            old,
            next,
            release,
            bind,
            settles,
            wide,
        } = due;
        self.index
            .with(|i| i.set_gauges(&intent.id, Gauges::of(&next)));
        let serialized = SerializedStatus::of(&next);
        // What is said of a request is in its own status.
        let is_request = key.request().is_some();
        if serialized != old && !is_request {
            for note in status::events::announcements(&old.get(), &next, wide) {
                self.statuses.note(intent.id.clone(), note);
            }
        }
        self.come_back(key, &next, settles);
        if bind && self.cluster.put_finalizer(&intent.id).await? == FinalizerWrite::Done {
            self.index.with(|i| i.set_finalizer(&intent.id, true));
        }
        if release
            && self
                .cluster
                .take_finalizer(&intent.id, intent.generation)
                .await?
                != FinalizerWrite::Changed
        {
            self.index.with(|i| i.set_finalizer(&intent.id, false));
            if intent.deleting && is_request {
                let effect = self.index.with(|i| i.release_request(&intent.id));
                self.statuses.forget(key);
                self.set_in_motion(&effect, Priority::Declared, Duration::ZERO);
            }
            if intent.deleting {
                return Ok(());
            }
        }
        if is_request {
            self.index.with(|i| i.set_status(&intent.id, serialized));
            self.requests.add(key, Duration::ZERO);
            return Ok(());
        }
        if serialized == old {
            return Ok(());
        }
        self.store_status(&intent, next).await
    }

    fn status_due(&self, index: &Index, key: &PolicyKey) -> Option<Outgoing> {
        let now = self.now();
        // What another replica works on is for it to tell.
        let record = index
            .policies()
            .get(key)
            .filter(|r| self.works_on(&r.intent.project))?;
        let next = index.status_of(key, self.options.propagation, now)?;
        let changed = index.changed_at(record);
        Some(Outgoing {
            intent: record.intent.clone(),
            old: record.status().clone(),
            next,
            release: record.has_finalizer() && index.may_release(record),
            bind: !record.has_finalizer() && index.needs_finalizer(record),
            settles: status::propagated_at(changed, self.options.propagation)
                .into_iter()
                .chain(record.intent.next_expiry(now))
                .filter(|at| *at > now)
                .min(),
            wide: record.denied() > 0 || !index.reached(key).is_empty(),
        })
    }

    /// The propagation window, and access that expires, end without anything happening elsewhere.
    fn come_back(&self, key: &PolicyKey, next: &InvokerPolicyStatus, settles: Option<Timestamp>) {
        let unsettled = next
            .conditions
            .iter()
            .any(|c| c.type_ == "Propagated" && c.status == "False");
        match settles {
            Some(at) => {
                let wait = Duration::try_from(at.duration_since(self.now())).unwrap_or_default();
                self.statuses
                    .come_back(key, wait.min(FAR) + Duration::from_secs(1));
            }
            None if unsettled => self.statuses.come_back(key, Duration::from_secs(15)),
            None => {}
        }
    }

    /// Writes a status; one that is too large is written again with less.
    async fn store_status(&self, intent: &Intent, next: InvokerPolicyStatus) -> Result<(), Fault> {
        let mut written = self.cluster.write_status(&intent.id, &next).await;
        let mut status = next;
        if matches!(written, Ok(StatusWrite::TooLarge)) {
            status = status::shortened(status);
            written = self.cluster.write_status(&intent.id, &status).await;
        }
        let label = match &written {
            Ok(StatusWrite::Written) => "ok",
            Ok(StatusWrite::TooLarge) => "too_large",
            Ok(StatusWrite::Gone) => "gone",
            Err(fault) => fault.class.row().label,
        };
        self.metrics
            .status_writes_total
            .with_label_values(&[label])
            .inc();
        match written? {
            StatusWrite::Written => self
                .index
                .with(|i| i.set_status(&intent.id, SerializedStatus::of(&status))),
            // The watch says so later; nothing is asked on its behalf from now on.
            StatusWrite::Gone => self.policy_deleted(&intent.id),
            StatusWrite::TooLarge => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EventReason;

    fn id(namespace: &str) -> PolicyId {
        PolicyId {
            namespace: namespace.into(),
            name: "p".into(),
            uid: "u".into(),
        }
    }
    fn note(text: &str) -> Note {
        Note {
            reason: EventReason::Granted,
            warning: false,
            text: text.into(),
        }
    }

    #[test]
    fn nobodys_events_crowd_out_those_of_others() {
        let mut state = State::default();
        state.note(id("quiet"), note("one"));
        for i in 0..MAX_NOTES * 2 {
            state.note(id("loud"), note(&i.to_string()));
        }
        assert_eq!(state.waiting_notes, MAX_NOTES_OF_NAMESPACE + 1);
        let served: Vec<_> = (0..3)
            .filter_map(|_| state.take_note())
            .map(|(id, _)| id.namespace.to_string())
            .collect();
        assert!(served.contains(&"quiet".to_owned()), "{served:?}");
        while state.take_note().is_some() {}
        assert_eq!((state.waiting_notes, state.notes.len()), (0, 0));
    }

    /// Or a window that ends within a second of the stop keeps it from stopping until then.
    #[tokio::test(start_paused = true)]
    async fn what_is_left_goes_out_once_when_it_closes() {
        let (writer, key) = (StatusWriter::default(), PolicyKey::new("ns", "p"));
        let second = Duration::from_secs(1);
        writer.add(&key, second);
        assert!(writer.next(false).is_err(), "not due yet");
        assert!(matches!(writer.next(true), Ok(Work::Status(k)) if k == key));
        writer.come_back(&key, second);
        writer.written(&key, false, 0);
        assert!(writer.next(true).is_err());
    }

    #[test]
    fn events_that_wait_are_bounded_over_all_namespaces() {
        let mut state = State::default();
        for i in 0..MAX_NOTES * 2 {
            state.note(id(&format!("n{}", i % 100)), note("x"));
        }
        assert_eq!(state.waiting_notes, MAX_NOTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_is_refused_is_tried_ever_more_rarely_whatever_changes() {
        let writer = StatusWriter::default();
        let key = PolicyKey::new("ns", "p");
        let (start, mut tries) = (Instant::now(), 0);
        writer.add(&key, Duration::ZERO);
        while start.elapsed() < Duration::from_secs(3600) {
            if let Ok(Work::Status(k)) = writer.next(false) {
                tries += 1;
                writer.written(&k, true, 1);
            }
            writer.add(&key, Duration::ZERO);
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        assert!((10..40).contains(&tries), "{tries}");
    }
}
