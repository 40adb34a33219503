//! Who is taken up next: by priority, by age every so often, and only where there is room and a token.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{
    Priority,
    state::{Group, Item, Lanes, Turn, Waiting},
};
use crate::{
    cloudrun::limit::{Budgets, Needs, Place},
    iam::RunService,
};

/// Services of one place that were taken up lately and are not done; a declared change may go a
/// little beyond.
pub(super) const PER_PLACE: usize = 16;

const EXTRA_FOR_DECLARED: usize = 8;

/// Services of one place under way at all, however slow.
pub(super) const MOST_PER_PLACE: usize = 64;

/// Every so many turns the one that waited longest is served, whatever its priority: none can
/// starve.
pub(super) const AGED_TURN: u64 = 4;

/// One that could be taken up now.
pub(super) struct Candidate {
    pub(super) place: Place,
    pub(super) group: Group,
    pub(super) turn: Turn,
}

/// The best of those that could be taken up now.
pub(super) struct Choice {
    /// By age, not by priority.
    aged: bool,
    pub(super) best: Option<Candidate>,
    /// Of those that step back one is taken up only if nobody else has anything to do.
    pub(super) last: Option<Candidate>,
    /// When the first of these need not step back any more.
    pub(super) steps_back: Option<Instant>,
}

impl Choice {
    pub(super) fn new(aged: bool) -> Self {
        Self {
            aged,
            best: None,
            last: None,
            steps_back: None,
        }
    }

    /// True: there can be no better one.
    pub(super) fn offer(
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
pub(super) fn sooner(wake: &mut Option<Instant>, at: Option<Instant>) {
    *wake = wake.iter().copied().chain(at).min();
}

impl Waiting {
    /// Who of this place could be taken up now. If nobody, `wake` says when to ask again.
    pub(super) fn candidate(
        &mut self,
        place: &Place,
        now: Instant,
        budgets: &Budgets,
        items: &HashMap<RunService, Box<Item>>,
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
        items: &HashMap<RunService, Box<Item>>,
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

pub(super) fn order(turn: &Turn, aged: bool) -> (Option<Priority>, Instant, u64) {
    if aged {
        (None, turn.since, turn.ticket)
    } else {
        (Some(turn.priority), turn.since, turn.ticket)
    }
}
