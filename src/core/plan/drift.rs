//! What somebody else keeps changing: which changes undo a stranger's, when that is a fight, and
//! when it is too much.
//!
//! State that time goes over, but no clock: `now` is passed in.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::iam::{Grant, RunService};

/// Corrections of one grant within [`WINDOW`] that make a fight.
const CONTESTED_AT: usize = 3;
/// How far back corrections count.
pub const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// A grant that is corrected again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fight {
    /// Corrections within the last hour.
    pub corrections: usize,
    /// The next correction is made no earlier.
    pub not_before: Timestamp,
}

/// 5, 10, 20 and then 30 minutes: at most three corrections at once and about five more in any
/// hour.
fn delay(corrections: usize) -> SignedDuration {
    let doublings = u32::try_from(corrections.saturating_sub(CONTESTED_AT))
        .unwrap_or(u32::MAX)
        .min(8);
    SignedDuration::from_mins((5 << doublings).min(30))
}

/// What is remembered of a service between reconciles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The declarations under which the service was last found settled, and what was open then for
    /// reasons of our own.
    settled: Option<(u64, BTreeSet<Grant>)>,
    /// The declarations under which the last correction was made, by whichever process: it had
    /// found them settled.
    corrected_under: Option<u64>,
    /// When each grant was corrected, within the last hour.
    corrections: BTreeMap<Grant, Vec<Timestamp>>,
    /// Drift that was known at the last reconcile and not corrected.
    pub waiting: BTreeSet<Grant>,
}

impl Memory {
    /// The service is as declared by `fingerprint`, but for what is `outstanding`.
    pub fn settle(&mut self, fingerprint: u64, outstanding: BTreeSet<Grant>) {
        self.settled = Some((fingerprint, outstanding));
    }

    /// Whether a difference was made by somebody else: it was not there when these same
    /// declarations were settled.
    pub fn is_drift(&self, fingerprint: u64, grant: &Grant) -> bool {
        match &self.settled {
            Some((by, outstanding)) => *by == fingerprint && !outstanding.contains(grant),
            // The first reconcile of a process: what was drift for the one before and comes again
            // is drift again.
            None => self.was_drift(fingerprint, grant),
        }
    }

    /// Whether it was corrected as drift under these declarations, by whichever process.
    pub fn was_drift(&self, fingerprint: u64, grant: &Grant) -> bool {
        self.corrected_under == Some(fingerprint) && self.was_corrected(grant)
    }

    /// Takes down under which declarations the corrections were made.
    pub fn corrected_under(&mut self, fingerprint: Option<u64>) {
        self.corrected_under = fingerprint;
    }

    /// Takes down a correction.
    pub fn corrected(&mut self, grant: &Grant, at: Timestamp) {
        let times = self.corrections.entry(grant.clone()).or_default();
        times.push(at);
        times.sort_unstable();
    }

    /// That correction was not made.
    pub fn not_corrected(&mut self, grant: &Grant, at: Timestamp) {
        if let Some(times) = self.corrections.get_mut(grant) {
            times.retain(|t| *t != at);
        }
    }

    /// Whether a grant was corrected lately.
    pub fn was_corrected(&self, grant: &Grant) -> bool {
        self.corrections
            .get(grant)
            .is_some_and(|times| !times.is_empty())
    }

    /// Forgets what is too old to count.
    pub fn prune(&mut self, now: Timestamp) {
        self.corrections.retain(|_, times| {
            times.retain(|t| now.duration_since(*t) < WINDOW);
            !times.is_empty()
        });
    }

    /// The fight about a grant, if there is one.
    pub fn fight(&self, grant: &Grant, now: Timestamp) -> Option<Fight> {
        let times = self.corrections.get(grant)?;
        let corrections = times
            .iter()
            .filter(|t| now.duration_since(**t) < WINDOW)
            .count();
        // In order, so the last is the latest.
        let last = *times.last()?;
        (corrections >= CONTESTED_AT).then(|| Fight {
            corrections,
            not_before: last + delay(corrections),
        })
    }

    /// Every fight about the service.
    pub fn fights(&self, now: Timestamp) -> BTreeMap<Grant, Fight> {
        self.corrections
            .keys()
            .filter_map(|g| Some((g.clone(), self.fight(g, now)?)))
            .collect()
    }
}

/// When corrections over all services are too many to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerLimits {
    /// The most writes that correct drift within the window.
    pub corrections: usize,
    pub window: SignedDuration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self {
            corrections: 50,
            window: SignedDuration::from_mins(5),
        }
    }
}

/// The circuit breaker: it stops corrections of drift, never detection and never what is declared.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    limits: BreakerLimits,
    /// One entry for each write, whoever made it: reported twice, it counts once.
    corrected: BTreeSet<(Timestamp, RunService)>,
    opened: Option<Timestamp>,
    /// The last time that fresh drift was found.
    unrest: Option<Timestamp>,
}

impl Breaker {
    pub fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Since when it is open, if it is.
    pub fn open_since(&self) -> Option<Timestamp> {
        self.opened
    }

    /// A correction that was made by another replica, or before a restart. One that is reported
    /// twice counts once.
    pub fn remember(&mut self, service: &RunService, at: Timestamp, now: Timestamp) {
        if at <= now && now.duration_since(at) < self.limits.window {
            self.corrected.insert((at, service.clone()));
        }
    }

    /// Asks to correct drift on one service. The correction counts from here on, as made at `now`.
    /// False: the breaker is open, perhaps because of this very question.
    pub fn admit(&mut self, service: &RunService, now: Timestamp) -> bool {
        if self.opened.is_some() {
            return false;
        }
        self.corrected
            .retain(|(t, _)| now.duration_since(*t) < self.limits.window);
        if self.corrected.len() >= self.limits.corrections {
            self.opened = Some(now);
            self.unrest = Some(now);
            return false;
        }
        self.corrected.insert((now, service.clone()));
        true
    }

    /// What was admitted then was not made.
    pub fn withdraw(&mut self, service: &RunService, at: Timestamp) {
        self.corrected.remove(&(at, service.clone()));
    }

    /// Opens it as it was before a restart.
    pub fn reopen(&mut self, since: Timestamp, now: Timestamp) {
        self.opened = Some(since);
        self.unrest = Some(now);
    }

    /// Drift was found that was not there at the last reconcile.
    pub fn drift_found(&mut self, now: Timestamp) {
        self.unrest = Some(now);
    }

    /// When fresh drift was last found.
    pub fn unrest(&self) -> Option<Timestamp> {
        self.unrest
    }

    /// Whether the window passed without fresh drift.
    pub fn is_calm(&self, now: Timestamp) -> bool {
        self.opened.is_some()
            && self
                .unrest
                .is_none_or(|t| now.duration_since(t) >= self.limits.window)
    }

    /// Closes it, by hand or because it is calm.
    pub fn close(&mut self) {
        self.opened = None;
        self.corrected.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iam::{Principal, Role};

    fn grant() -> Grant {
        Grant::new(Principal::from_live("user:a@acme.com"), Role::Invoker)
    }
    fn service(name: &str) -> RunService {
        RunService::new("p", "r", name)
    }
    fn at(minutes: i64) -> Timestamp {
        "2026-11-23T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minutes)
    }

    #[test]
    fn a_rival_gets_a_bounded_number_of_writes_out_of_us_in_any_hour() {
        let mut memory = Memory::default();
        let mut writes = Vec::new();
        // The rival changes the grant back every single minute for a day.
        for minute in 0..1440 {
            memory.prune(at(minute));
            if memory
                .fight(&grant(), at(minute))
                .is_none_or(|f| f.not_before <= at(minute))
            {
                memory.corrected(&grant(), at(minute));
                writes.push(minute);
            }
        }
        assert_eq!(writes[..4], [0, 1, 2, 7]);
        let most = writes
            .iter()
            .map(|w| writes.iter().filter(|x| (*w..w + 60).contains(*x)).count())
            .max();
        assert!(most <= Some(8), "{writes:?}");
        assert!(writes.len() > 24, "it is still corrected");
    }

    #[test]
    fn a_fight_is_over_after_a_quiet_hour() {
        let mut memory = Memory::default();
        (0..3).for_each(|m| memory.corrected(&grant(), at(m)));
        assert!(memory.fight(&grant(), at(3)).is_some());
        assert!(memory.fight(&grant(), at(61)).is_none());
    }

    #[test]
    fn a_difference_is_drift_only_under_the_declarations_that_were_settled() {
        let mut memory = Memory::default();
        assert!(!memory.is_drift(1, &grant()));
        memory.settle(1, BTreeSet::new());
        assert!(memory.is_drift(1, &grant()) && !memory.is_drift(2, &grant()));
        memory.settle(1, [grant()].into());
        assert!(!memory.is_drift(1, &grant()));
    }

    #[test]
    fn the_breaker_opens_at_its_limit_and_closes_after_a_quiet_window_or_by_hand() {
        let mut breaker = Breaker::new(BreakerLimits {
            corrections: 2,
            window: SignedDuration::from_mins(5),
        });
        assert!(breaker.admit(&service("a"), at(0)) && breaker.admit(&service("b"), at(0)));
        assert!(!breaker.admit(&service("c"), at(1)));
        assert!(!breaker.admit(&service("c"), at(7)) && !breaker.is_calm(at(5)));
        breaker.drift_found(at(4));
        assert!(!breaker.is_calm(at(8)) && breaker.is_calm(at(9)));
        breaker.close();
        assert!(breaker.admit(&service("c"), at(9)));
    }

    #[test]
    fn a_correction_counts_once_and_not_if_it_was_not_made_or_is_yet_to_come() {
        let limits = BreakerLimits {
            corrections: 2,
            window: SignedDuration::from_mins(5),
        };
        let mut breaker = Breaker::new(limits);
        for _ in 0..5 {
            breaker.remember(&service("a"), at(0), at(1));
            breaker.remember(&service("a"), at(60), at(1));
            breaker.remember(&service("a"), at(-60), at(1));
        }
        assert!(breaker.admit(&service("b"), at(1)));
        breaker.withdraw(&service("b"), at(1));
        assert!(breaker.admit(&service("c"), at(1)));
        assert!(!breaker.admit(&service("d"), at(1)));
    }

    #[test]
    fn corrections_that_are_spread_out_never_open_the_breaker() {
        let mut breaker = Breaker::new(BreakerLimits {
            corrections: 2,
            window: SignedDuration::from_mins(5),
        });
        assert!((0..100).all(|n| breaker.admit(&service("a"), at(n * 3))));
    }
}
