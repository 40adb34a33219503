//! The queue of services: four priorities that age, one worker per service, requests that fold into
//! one, and nobody taken up before its calls may be made.
//!
//! Waiting work is kept by project and region, which is how Google counts. A service is handed out
//! together with the tokens for its calls, so that what waits for quota occupies nothing: neither a
//! worker nor a place that others need. A service that turned out to need a write waits among the
//! changers of its place, in the order in which that was found out. A project whose services take
//! long to think about steps back while others have work.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    due::{Crowd, Due, Place as Seat},
    owned::{Owned, Rank},
};
use crate::{
    cloudrun::limit::{Budgets, Needs, Place, Tokens},
    iam::RunService,
};

/// Services of one place that were taken up lately and are not done; a declared change may go a
/// little beyond.
const PER_PLACE: usize = 16;
const EXTRA_FOR_DECLARED: usize = 8;
/// Services of one place under way at all, however slow.
const MOST_PER_PLACE: usize = 64;
/// Services under way at all, for each worker. A place where nothing is under way goes beyond.
const MOST_PER_WORKER: usize = 64;
/// Every so many turns the one that waited longest is served, whatever its priority: none can
/// starve.
const AGED_TURN: u64 = 4;

/// A project that kept threads busy for longer than its share steps back while others have work:
/// for so many times as long.
const STEPS_BACK: u32 = 4;
/// What is owed for less than this is forgiven.
const FORGIVEN: Duration = Duration::from_millis(250);
/// Projects beyond which those that owe nothing are forgotten.
const MANY_PROJECTS: usize = 1024;

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

/// A turn in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    priority: Priority,
    ticket: u64,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    since: Instant,
    /// In the crowd of everything, and in that of its place.
    seats: (Seat, Seat),
}

#[derive(Debug, Default)]
struct Item {
    queued: Option<(Turn, Group)>,
    running: Option<Running>,
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
enum Group {
    /// A read.
    Readers,
    /// A read, a write and a read.
    Changers,
}

impl Group {
    fn needs(self) -> Needs {
        match self {
            Self::Readers => Needs::READ,
            Self::Changers => Needs::CHANGE,
        }
    }
}

type Lanes = [BTreeMap<u64, RunService>; 4];

#[derive(Debug, Default)]
struct Waiting {
    readers: Lanes,
    changers: Lanes,
    crowd: Crowd,
    turns: u64,
    /// The budget was asked and has nothing before then.
    dry_until: Option<Instant>,
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

    fn depth(&self, priority: Priority) -> usize {
        self.readers[priority as usize].len() + self.changers[priority as usize].len()
    }
}

#[derive(Debug, Default)]
struct State {
    items: HashMap<RunService, Item>,
    places: BTreeMap<Place, Waiting>,
    timers: Due<RunService>,
    crowd: Crowd,
    ticket: u64,
    turns: u64,
    /// Where the next round over the places begins.
    cursor: Option<Place>,
    accounts: Accounts,
}

/// How long each project kept threads busy, and how many of its services are under way. Policies
/// may be as large as their author likes, and each reconcile of one costs accordingly.
#[derive(Debug, Default)]
struct Accounts {
    /// When what a project used is paid for.
    paid: HashMap<Arc<str>, Instant>,
    running: HashMap<Arc<str>, usize>,
}

impl Accounts {
    fn spent(&mut self, project: &Arc<str>, busy: Duration, now: Instant) {
        if self.paid.len() > MANY_PROJECTS {
            self.paid.retain(|_, paid| *paid > now);
        }
        let paid = self.paid.entry(project.clone()).or_insert(now);
        *paid = (*paid).max(now) + busy * STEPS_BACK;
    }

    /// Until when a project steps back, if it does.
    fn steps_back(&self, project: &str, now: Instant) -> Option<Instant> {
        let until = *self.paid.get(project)? - FORGIVEN;
        (until > now).then_some(until)
    }

    fn begins(&mut self, project: &Arc<str>) {
        *self.running.entry(project.clone()).or_default() += 1;
    }

    fn ends(&mut self, project: &str) {
        if let Some(running) = self.running.get_mut(project) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(project);
            }
        }
    }

    /// Whether anybody is at work who would have to wait for one that steps back.
    fn others_work(&self, now: Instant) -> bool {
        self.running
            .keys()
            .any(|p| self.steps_back(p, now).is_none())
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

/// One that could be taken up now.
struct Candidate {
    place: Place,
    group: Group,
    turn: Turn,
}

impl State {
    fn ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    fn add(&mut self, service: &RunService, priority: Priority, now: Instant) {
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

    fn set_timer(&mut self, service: &RunService, priority: Priority, at: Instant) {
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
    fn pick(
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

    fn done(
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

    fn forget(&mut self, service: &RunService) {
        let Some(item) = self.items.get_mut(service) else {
            return;
        };
        item.timer = None;
        self.timers.remove(service);
        if item.queued.is_none() && item.running.is_none() {
            self.items.remove(service);
        }
    }

    fn let_go(&mut self, among: &dyn Fn(&RunService) -> bool) {
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

/// The best of those that could be taken up now.
struct Choice {
    /// By age, not by priority.
    aged: bool,
    best: Option<Candidate>,
    /// Of those that step back one is taken up only if nobody else has anything to do.
    last: Option<Candidate>,
    /// When the first of these need not step back any more.
    steps_back: Option<Instant>,
}

impl Choice {
    fn new(aged: bool) -> Self {
        Self {
            aged,
            best: None,
            last: None,
            steps_back: None,
        }
    }

    /// True: there can be no better one.
    fn offer(
        &mut self,
        place: &Place,
        turn: Turn,
        group: Group,
        steps_back: Option<Instant>,
    ) -> bool {
        sooner(&mut self.steps_back, steps_back);
        let chosen = if steps_back.is_some() {
            &mut self.last
        } else {
            &mut self.best
        };
        let better = match chosen {
            None => true,
            Some(b) if self.aged => turn.since < b.turn.since,
            Some(b) => turn.priority < b.turn.priority,
        };
        if better {
            *chosen = Some(Candidate {
                place: place.clone(),
                group,
                turn,
            });
        }
        !self.aged && steps_back.is_none() && turn.priority == Priority::Declared
    }
}

/// The earlier of two times to wake up at.
fn sooner(wake: &mut Option<Instant>, at: Option<Instant>) {
    *wake = wake.iter().copied().chain(at).min();
}

impl Waiting {
    /// Who of this place could be taken up now. If nobody, `wake` says when to ask again.
    fn candidate(
        &mut self,
        place: &Place,
        now: Instant,
        budgets: &Budgets,
        items: &HashMap<RunService, Item>,
        wake: &mut Option<Instant>,
    ) -> Option<(Turn, Group)> {
        if let Some(until) = self.dry_until.filter(|until| *until > now) {
            sooner(wake, Some(until));
            return None;
        }
        let aged = self.turns % AGED_TURN == AGED_TURN - 1;
        let [reader, changer] = self.heads(now, items, aged);
        let first = reader
            .into_iter()
            .chain(changer)
            .min_by_key(|(t, _)| order(t, aged));
        let Some(first) = first else {
            sooner(wake, self.crowd.wake());
            return None;
        };
        let mut dry = budgets.wait(place, first.1.needs());
        if dry.is_zero() {
            return Some(first);
        }
        // Whoever only reads goes ahead of one that waits for the right to write; not of one that
        // waits for the right to read, or it would wait for ever.
        let a_write = Needs {
            reads: 0,
            writes: 1,
        };
        let only_writes = || !budgets.wait(place, a_write).is_zero();
        if let Some(reader) = reader.filter(|_| first.1 == Group::Changers && only_writes()) {
            let wait = budgets.wait(place, Needs::READ);
            if wait.is_zero() {
                return Some(reader);
            }
            dry = dry.min(wait);
        }
        self.dry_until = Some(now + dry);
        sooner(wake, self.dry_until);
        None
    }

    /// The first of the readers and of the changers for whom there is room.
    fn heads(
        &mut self,
        now: Instant,
        items: &HashMap<RunService, Item>,
        aged: bool,
    ) -> [Option<(Turn, Group)>; 2] {
        let room = self.crowd.has_room(now, PER_PLACE, MOST_PER_PLACE);
        let extra = PER_PLACE + EXTRA_FOR_DECLARED;
        let declared = room || self.crowd.has_room(now, extra, MOST_PER_PLACE);
        let head = |lanes: &Lanes, group| -> Option<(Turn, Group)> {
            let heads = lanes.iter().filter_map(|lane| lane.first_key_value());
            let turns = heads
                .filter_map(|(_, service)| items.get(service)?.queued)
                .map(|(turn, _)| turn);
            let fits = turns.filter(|t| room || (declared && t.priority == Priority::Declared));
            fits.min_by_key(|t| order(t, aged)).map(|t| (t, group))
        };
        [
            head(&self.readers, Group::Readers),
            head(&self.changers, Group::Changers),
        ]
    }
}

fn order(turn: &Turn, aged: bool) -> (Option<Priority>, Instant, u64) {
    if aged {
        (None, turn.since, turn.ticket)
    } else {
        (Some(turn.priority), turn.since, turn.ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudrun::limit::Budget;

    fn queue_with(budget: Budget) -> Queue {
        Queue::new(Budgets::new(budget), 64)
    }
    fn queue() -> Queue {
        // Enough for whatever is not about budgets.
        queue_with(Budget {
            reads_per_minute: 1_000_000,
            writes_per_minute: 1_000_000,
            concurrency: 64,
        })
    }
    fn s(name: &str) -> RunService {
        RunService::new("p", "r", name)
    }
    async fn pop(q: &Queue) -> Job {
        tokio::time::timeout(Duration::from_secs(1), q.next())
            .await
            .unwrap()
    }
    async fn nothing(q: &Queue) -> bool {
        tokio::time::timeout(Duration::from_millis(1), q.next())
            .await
            .is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn equal_requests_fold_and_the_urgent_priority_counts() {
        let q = queue();
        q.add(&s("a"), Priority::Periodic);
        q.add(&s("a"), Priority::Declared);
        q.add(&s("a"), Priority::Periodic);
        let job = pop(&q).await;
        assert_eq!(job.priority, Priority::Declared);
        q.done(job, End::Over);
        assert!(nothing(&q).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_is_never_worked_on_twice_at_once() {
        let q = queue();
        q.add(&s("a"), Priority::Drift);
        let job = pop(&q).await;
        q.add(&s("a"), Priority::Drift);
        q.add(&s("a"), Priority::Periodic);
        assert!(nothing(&q).await && q.is_running(&s("a")));
        q.done(job, End::Over);
        let job = pop(&q).await;
        assert_eq!(job.priority, Priority::Drift);
        q.done(job, End::Over);
        assert!(nothing(&q).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_declared_change_does_not_wait_behind_ten_thousand_others() {
        let q = queue();
        for i in 0..10_000 {
            q.add(
                &RunService::new("p", format!("r{}", i % 50), format!("s{i}")),
                Priority::Periodic,
            );
        }
        q.add(&s("edit"), Priority::Declared);
        let mut position = 0;
        while pop(&q).await.service != s("edit") {
            position += 1;
        }
        assert!(position <= 1, "served after {position}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_priority_does_not_starve_a_lower_one() {
        let q = queue();
        q.add(&s("old"), Priority::Periodic);
        tokio::time::advance(Duration::from_secs(1)).await;
        for i in 0..100 {
            q.add(&s(&format!("d{i}")), Priority::Declared);
        }
        for turn in 0..8 {
            let job = pop(&q).await;
            if job.service == s("old") {
                return;
            }
            q.done(job, End::Over);
            assert!(turn < 7, "the periodic resync starved");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_project_that_keeps_threads_busy_steps_back_while_others_work() {
        let q = queue();
        let theirs = |i: usize| RunService::new("large", "r", format!("s{i}"));
        (0..100).for_each(|i| q.add(&theirs(i), Priority::Declared));
        let first = pop(&q).await;
        q.done(first, End::Over);
        q.spent(&"large".into(), Duration::from_secs(1));
        // Nobody else has anything to do: why should it wait?
        let alone = pop(&q).await;
        assert_eq!(&*alone.service.project, "large");
        q.add(&s("ours"), Priority::Periodic);
        let ours = pop(&q).await;
        assert_eq!(ours.service, s("ours"), "whatever its priority");
        assert!(nothing(&q).await, "while ours is under way");
        // It gets its share nevertheless, however long others work.
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(&*pop(&q).await.service.project, "large");
        q.spent(&"large".into(), Duration::from_secs(1));
        assert!(nothing(&q).await);
        q.done(ours, End::Over);
        assert_eq!(&*pop(&q).await.service.project, "large");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_keeps_no_thread_busy() {
        let ((), busy) = timed(tokio::time::sleep(Duration::from_millis(50))).await;
        assert_eq!(busy, Duration::ZERO);
        // The clock goes on while this is polled, as it does while something is computed.
        let ((), busy) = timed(tokio::time::advance(Duration::from_millis(20))).await;
        assert_eq!(busy, Duration::from_millis(20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_full_holds_nobody_else_up() {
        let q = queue();
        for i in 0..100 {
            q.add(&s(&format!("s{i}")), Priority::Drift);
        }
        let mut jobs = Vec::new();
        for _ in 0..PER_PLACE {
            jobs.push(pop(&q).await);
        }
        assert!(nothing(&q).await);
        q.add(&RunService::new("other", "r", "x"), Priority::Periodic);
        assert_eq!(&*pop(&q).await.service.project, "other");
        q.add(&s("edit"), Priority::Declared);
        assert_eq!(pop(&q).await.service, s("edit"));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_hang_hold_nobody_up() {
        let q = queue();
        let mut hung = Vec::new();
        for place in 0..100 {
            for i in 0..MOST_PER_PLACE * 2 {
                q.add(
                    &RunService::new(format!("dead{place}"), "r", format!("s{i}")),
                    Priority::Declared,
                );
            }
        }
        for _ in 0..100 {
            while let Ok(mut job) = tokio::time::timeout(Duration::from_millis(1), q.next()).await {
                job.tokens.read().unwrap().spend();
                hung.push(job);
            }
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        assert_eq!(hung.len(), 64 * MOST_PER_WORKER);
        q.add(&s("edit"), Priority::Declared);
        assert_eq!(pop(&q).await.service, s("edit"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_rings_once_and_an_earlier_request_answers_it() {
        let q = queue();
        q.add_at(
            &s("a"),
            Priority::Periodic,
            Instant::now() + Duration::from_secs(60),
        );
        q.add_at(
            &s("a"),
            Priority::Retry,
            Instant::now() + Duration::from_secs(5),
        );
        let started = Instant::now();
        let job = tokio::time::timeout(Duration::from_secs(100), q.next())
            .await
            .unwrap();
        assert_eq!(
            (job.priority, started.elapsed().as_secs()),
            (Priority::Retry, 5)
        );
        assert_eq!(q.done(job, End::Failed), 1);
        assert!(
            tokio::time::timeout(Duration::from_secs(100), q.next())
                .await
                .is_err()
        );
        q.add_at(
            &s("a"),
            Priority::Periodic,
            Instant::now() + Duration::from_secs(60),
        );
        q.add(&s("a"), Priority::Drift);
        assert_eq!(q.done(pop(&q).await, End::Failed), 2);
        assert!(
            tokio::time::timeout(Duration::from_secs(100), q.next())
                .await
                .is_err()
        );
    }

    /// Takes up everything that can be within a time; what wants to write waits for the right to.
    async fn work(q: &Queue, time: Duration) -> Vec<RunService> {
        let (end, mut written) = (Instant::now() + time, Vec::new());
        while let Ok(mut job) = tokio::time::timeout_at(end, q.next()).await {
            while let Some(token) = job.tokens.read() {
                token.spend();
            }
            match job.tokens.write() {
                Some(token) => {
                    token.spend();
                    written.push(job.service.clone());
                    q.done(job, End::Over);
                }
                None => {
                    q.done(job, End::Waits);
                }
            }
        }
        written
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_quota_occupies_nothing_and_keeps_its_turn() {
        let q = queue_with(Budget {
            reads_per_minute: 6000,
            writes_per_minute: 6,
            concurrency: 64,
        });
        let names: Vec<RunService> = (0..40).map(|i| s(&format!("s{i:02}"))).collect();
        q.add_all(&names, Priority::Declared);
        assert_eq!(
            work(&q, Duration::from_secs(1)).await.len(),
            2,
            "the burst of six"
        );
        assert_eq!(q.running(), 0);
        // A new request is served at once, and costs nobody its turn.
        q.add(&names[20], Priority::Declared);
        let job = pop(&q).await;
        assert_eq!((&job.service, job.tokens.left()), (&names[20], Needs::READ));
        q.done(job, End::Waits);
        let written = work(&q, Duration::from_secs(700)).await;
        assert_eq!(written, names[2..]);
    }

    /// A service whose refused members are searched for wants write after write.
    #[tokio::test(start_paused = true)]
    async fn who_had_its_write_stands_behind_those_that_had_none() {
        let q = queue_with(Budget {
            reads_per_minute: 6000,
            writes_per_minute: 6,
            concurrency: 64,
        });
        let greedy = s("greedy");
        q.add(&greedy, Priority::Declared);
        let mut served = Vec::new();
        let end = Instant::now() + Duration::from_secs(120);
        let mut arrived = false;
        while let Ok(mut job) = tokio::time::timeout_at(end, q.next()).await {
            let has_written = job.tokens.write().inspect(|t| t.spend()).is_some();
            if has_written {
                served.push(job.service.clone());
            }
            if served.len() == 4 && !arrived {
                arrived = true;
                q.add(&s("late"), Priority::Declared);
                q.add(&s("later"), Priority::Declared);
            }
            let wants_more = job.service == greedy || !has_written;
            q.done(job, if wants_more { End::Waits } else { End::Over });
        }
        let at = |name: &str| served.iter().position(|x| *x == s(name)).unwrap();
        assert!(at("late") <= 5 && at("later") <= 7, "{served:?}");
        assert!(q.others_wait_to_write(&s("late")));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_do_not_starve_one_that_writes() {
        let q = queue_with(Budget {
            reads_per_minute: 6,
            writes_per_minute: 60,
            concurrency: 64,
        });
        q.add(&s("edit"), Priority::Declared);
        q.done(pop(&q).await, End::Waits);
        for i in 0..20 {
            q.add(&s(&format!("s{i}")), Priority::Periodic);
        }
        assert_eq!(
            work(&q, Duration::from_secs(60)).await.first(),
            Some(&s("edit"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_let_go_leaves_nothing() {
        let q = queue();
        q.add(&s("a"), Priority::Declared);
        q.add_at(&s("b"), Priority::Declared, Instant::now());
        q.let_go(|_| true);
        assert!(nothing(&q).await);
        q.state
            .with(|s| assert!(s.items.is_empty() && s.places.is_empty()));
    }
}
