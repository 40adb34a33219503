//! What waits, what is under way, and what rings when.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use tokio::time::Instant;

use super::{
    End, Job, Priority,
    accounts::Accounts,
    choice::{AGED_TURN, Candidate, Choice, sooner},
};
use crate::{
    cloudrun::limit::{Budgets, Needs, Place, Tokens},
    controller::due::{Crowd, Due, Place as Seat},
    iam::RunService,
};

/// Services under way at all, for each worker. A place where nothing is under way goes beyond.
pub(super) const MOST_PER_WORKER: usize = 64;

/// A turn in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) priority: Priority,
    pub(super) ticket: u64,
    pub(super) since: Instant,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) since: Instant,
    /// In the crowd of everything, and in that of its place.
    seats: (Seat, Seat),
}

#[derive(Debug, Default)]
pub(super) struct Item {
    pub(super) queued: Option<(Turn, Group)>,
    pub(super) running: Option<Running>,
    /// Came in while it was worked on: once more after that.
    again: Option<Priority>,
    timer: Option<Priority>,
    /// Its turn among the changers, until it had its write: a new wish does not cost it
    /// its place.
    changer: Option<Turn>,
    failures: u32,
}

/// What a service waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// A read.
    Readers,
    /// A read, a write and a read.
    Changers,
}

impl Group {
    pub(super) fn needs(self) -> Needs {
        match self {
            Self::Readers => Needs::READ,
            Self::Changers => Needs::CHANGE,
        }
    }
}

pub(super) type Lanes = [BTreeMap<u64, RunService>; 4];

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) readers: Lanes,
    pub(super) changers: Lanes,
    pub(super) crowd: Crowd,
    pub(super) turns: u64,
    /// The budget was asked and has nothing before then.
    pub(super) dry_until: Option<Instant>,
}

impl Waiting {
    fn lanes(&mut self, group: Group) -> &mut Lanes {
        match group {
            Group::Readers => &mut self.readers,
            Group::Changers => &mut self.changers,
        }
    }

    fn is_idle(&self) -> bool {
        self.crowd.is_empty()
            && self
                .readers
                .iter()
                .chain(&self.changers)
                .all(BTreeMap::is_empty)
    }

    pub(super) fn depth(&self, priority: Priority) -> usize {
        self.readers[priority as usize].len() + self.changers[priority as usize].len()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) items: HashMap<RunService, Box<Item>>,
    pub(super) places: BTreeMap<Place, Waiting>,
    timers: Due<RunService>,
    pub(super) crowd: Crowd,
    pub(super) ticket: u64,
    pub(super) turns: u64,
    /// Where the next round over the places begins.
    cursor: Option<Place>,
    pub(super) accounts: Accounts,
}

impl State {
    pub(super) fn ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    pub(super) fn add(&mut self, service: &RunService, priority: Priority, now: Instant) {
        let ticket = self.ticket();
        let item = self.items.entry(service.clone()).or_default();
        if item.running.is_some() {
            item.again = Some(item.again.map_or(priority, |p| p.min(priority)));
            return;
        }
        if item.timer.take().is_some() {
            // Whatever was set for later is answered by this.
            self.timers.remove(service);
        }
        let before = item.queued;
        if before.is_some_and(|(turn, group)| group == Group::Readers && turn.priority <= priority)
        {
            return;
        }
        let priority = before.map_or(priority, |(turn, _)| turn.priority.min(priority));
        let since = before.map_or(now, |(turn, _)| turn.since);
        self.unqueue(service);
        self.enqueue(
            service,
            Turn {
                priority,
                ticket,
                since,
            },
            Group::Readers,
        );
    }

    fn enqueue(&mut self, service: &RunService, turn: Turn, group: Group) {
        let waiting = self.places.entry(Place::of(service)).or_default();
        waiting.lanes(group)[turn.priority as usize].insert(turn.ticket, service.clone());
        waiting.dry_until = None;
        self.items.entry(service.clone()).or_default().queued = Some((turn, group));
    }

    fn unqueue(&mut self, service: &RunService) {
        let queued = self.items.get_mut(service).and_then(|i| i.queued.take());
        let Some((turn, group)) = queued else { return };
        let place = Place::of(service);
        if let Some(waiting) = self.places.get_mut(&place) {
            waiting.lanes(group)[turn.priority as usize].remove(&turn.ticket);
        }
        self.tidy(&place);
    }

    fn tidy(&mut self, place: &Place) {
        if self.places.get(place).is_some_and(Waiting::is_idle) {
            self.places.remove(place);
        }
    }

    pub(super) fn set_timer(&mut self, service: &RunService, priority: Priority, at: Instant) {
        let item = self.items.entry(service.clone()).or_default();
        if item.queued.is_some() || item.again.is_some() {
            return;
        }
        if self.timers.at(service).is_none_or(|before| at < before) {
            item.timer = Some(priority);
            self.timers.exactly(service, at);
        }
    }

    /// Moves what is due into its lane.
    fn ring(&mut self, now: Instant) {
        while let Some(service) = self.timers.take(now, |_| true) {
            let timer = self.items.get_mut(&service).and_then(|i| i.timer.take());
            if let Some(priority) = timer {
                self.add(&service, priority, now);
            }
        }
    }

    /// The next job, or when to ask again.
    pub(super) fn pick(
        &mut self,
        now: Instant,
        budgets: &Arc<Budgets>,
        workers: usize,
    ) -> Result<Job, Option<Instant>> {
        self.ring(now);
        loop {
            let mut wake = self.timers.wake(|_| true);
            let Some(chosen) = self.choose(now, budgets, workers, &mut wake) else {
                return Err(wake);
            };
            match budgets.reserve(&chosen.place, chosen.group.needs()) {
                Ok(tokens) => {
                    if let Some(job) = self.take(chosen, tokens, now) {
                        return Ok(job);
                    }
                }
                // Somebody else was faster.
                Err(wait) => {
                    if let Some(waiting) = self.places.get_mut(&chosen.place) {
                        waiting.dry_until = Some(now + wait);
                    }
                }
            }
        }
    }

    fn choose(
        &mut self,
        now: Instant,
        budgets: &Budgets,
        workers: usize,
        wake: &mut Option<Instant>,
    ) -> Option<Candidate> {
        self.turns += 1;
        let room = self.crowd.has_room(now, workers, workers * MOST_PER_WORKER);
        if !room {
            sooner(wake, self.crowd.wake());
        }
        let (items, places, cursor) = (&self.items, &mut self.places, self.cursor.as_ref());
        let accounts = &self.accounts;
        let mut choice = Choice::new(self.turns.is_multiple_of(AGED_TURN));
        // True: there can be no better one.
        let mut visit = |place: &Place, waiting: &mut Waiting| {
            if !room && !waiting.crowd.is_empty() {
                return false;
            }
            match waiting.candidate(place, now, budgets, items, wake) {
                Some((turn, group)) => {
                    let until = accounts.steps_back(&place.project, now);
                    choice.offer(place, turn, group, until)
                }
                None => false,
            }
        };
        let after = (
            cursor.map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded,
        );
        let found = places
            .range_mut::<Place, _>(after)
            .any(|(p, w)| visit(p, w));
        if let Some(cursor) = cursor.filter(|_| !found) {
            places
                .range_mut::<Place, _>(..=cursor)
                .any(|(p, w)| visit(p, w));
        }
        if choice.best.is_none() && accounts.others_work(now) {
            sooner(wake, choice.steps_back);
            return None;
        }
        choice.best.or(choice.last)
    }

    fn take(&mut self, chosen: Candidate, tokens: Tokens, now: Instant) -> Option<Job> {
        let Candidate { place, group, turn } = chosen;
        let waiting = self.places.get_mut(&place)?;
        let service = waiting.lanes(group)[turn.priority as usize].remove(&turn.ticket)?;
        waiting.turns += 1;
        let seats = (self.crowd.enter(now), waiting.crowd.enter(now));
        self.accounts.begins(&service.project);
        self.cursor = Some(place);
        let item = self.items.entry(service.clone()).or_default();
        item.queued = None;
        item.running = Some(Running { since: now, seats });
        let waited = now.saturating_duration_since(turn.since);
        Some(Job {
            service,
            priority: turn.priority,
            since: turn.since,
            waited,
            tokens,
        })
    }

    pub(super) fn done(
        &mut self,
        service: &RunService,
        priority: Priority,
        since: Instant,
        (end, has_written): (End, bool),
        now: Instant,
    ) -> u32 {
        let ticket = self.ticket();
        let place = Place::of(service);
        let Some(item) = self.items.get_mut(service) else {
            return 0;
        };
        if let Some(Running { seats, .. }) = item.running.take() {
            self.crowd.leave(seats.0);
            self.accounts.ends(&service.project);
            if let Some(waiting) = self.places.get_mut(&place) {
                waiting.crowd.leave(seats.1);
                waiting.dry_until = None;
            }
        }
        item.failures = if end == End::Failed {
            item.failures.saturating_add(1)
        } else {
            0
        };
        let (failures, again) = (item.failures, item.again.take());
        if end == End::Waits {
            let fresh = |since| Turn {
                priority,
                ticket,
                since,
            };
            // Who had its write and wants another one stands behind those that had none, or one
            // service with many members that IAM refuses would take every write of its place.
            if has_written {
                item.changer = Some(fresh(now));
            }
            let turn = *item.changer.get_or_insert(fresh(since));
            let turn = Turn {
                priority: turn.priority.min(priority),
                ..turn
            };
            item.changer = Some(turn);
            self.enqueue(service, turn, Group::Changers);
        } else {
            item.changer = None;
        }
        if let Some(priority) = again {
            self.add(service, priority, now);
        }
        self.tidy(&place);
        failures
    }

    pub(super) fn forget(&mut self, service: &RunService) {
        let Some(item) = self.items.get_mut(service) else {
            return;
        };
        item.timer = None;
        self.timers.remove(service);
        if item.queued.is_none() && item.running.is_none() {
            self.items.remove(service);
        }
    }

    pub(super) fn let_go(&mut self, among: &dyn Fn(&RunService) -> bool) {
        let services: Vec<RunService> = self.items.keys().filter(|s| among(s)).cloned().collect();
        for service in services {
            self.unqueue(&service);
            if let Some(item) = self.items.get_mut(&service) {
                item.again = None;
                item.changer = None;
            }
            self.forget(&service);
        }
    }
}

impl Waiting {}
