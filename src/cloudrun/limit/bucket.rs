//! The budget of one kind of call at one place: what Google pushed back, what it said its limit is, and how the share recovers.

use std::time::Duration;

use tokio::time::Instant;

use super::Kind;

/// Without a hint from Google, how long a bucket stands still after a 429.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause that is believed.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How long a limit that Google named is believed; then it is found out anew, by a 429 at worst.
pub(super) const BELIEVED: Duration = Duration::from_secs(3600);

const RECOVERY: Duration = Duration::from_secs(120);

const MINUTE: Duration = Duration::from_secs(60);

const LEAST_SHARE: f64 = 0.125;

/// How many calls there were within a minute, from the counts of this one and the one before.
#[derive(Debug)]
pub(super) struct Usage {
    began: Instant,
    calls: u32,
    before: u32,
}

impl Usage {
    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_secs() / 60;
        if passed > 0 {
            self.before = if passed == 1 { self.calls } else { 0 };
            self.calls = 0;
            self.began += MINUTE * u32::try_from(passed).unwrap_or(u32::MAX);
        }
    }

    pub(super) fn count(&mut self, now: Instant) {
        self.turn(now);
        self.calls += 1;
    }

    pub(super) fn per_minute(&mut self, now: Instant) -> f64 {
        self.turn(now);
        let share = now.saturating_duration_since(self.began).as_secs_f64() / MINUTE.as_secs_f64();
        f64::from(self.before) * (1.0 - share).max(0.0) + f64::from(self.calls)
    }
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) kind: Kind,
    /// The real limit that a 429 named, and when; nothing stays true for ever.
    pub(super) learnt: Option<(Instant, u32)>,
    pub(super) budget: u32,
    pub(super) per_minute: u32,
    /// Tokens per second when healthy.
    rate: f64,
    burst: f64,
    pub(super) tokens: f64,
    /// Tokens that somebody holds and has not spent.
    pub(super) held: u32,
    /// What a 429 left of the rate, from [`LEAST_SHARE`] to 1.
    share: f64,
    at: Instant,
    paused_until: Option<Instant>,
    pub(super) usage: Usage,
}

impl Bucket {
    pub(super) fn new(per_minute: u32, kind: Kind, now: Instant) -> Self {
        let mut bucket = Self {
            kind,
            learnt: None,
            budget: per_minute,
            per_minute,
            rate: 0.0,
            burst: 0.0,
            tokens: 0.0,
            held: 0,
            share: 1.0,
            at: now,
            paused_until: None,
            usage: Usage {
                began: now,
                calls: 0,
                before: 0,
            },
        };
        bucket.resize(per_minute);
        bucket.tokens = bucket.burst;
        bucket
    }

    fn resize(&mut self, per_minute: u32) {
        let budget = f64::from(per_minute.max(1));
        self.per_minute = per_minute.max(1);
        // A change needs two reads at once.
        let least = if self.kind == Kind::Read { 2.0 } else { 1.0 };
        self.burst = (budget / 3.0).clamp(least, 20.0);
        self.rate = ((budget - self.burst) / 60.0).max(1.0 / 60.0);
        self.tokens = self.tokens.min(self.burst);
    }

    pub(super) fn refill(&mut self, now: Instant) {
        if self
            .learnt
            .is_some_and(|(at, _)| now.saturating_duration_since(at) > BELIEVED)
        {
            self.learnt = None;
            self.resize(self.budget);
        }
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * self.rate * self.share).min(self.burst);
        self.share = (self.share + passed / RECOVERY.as_secs_f64()).min(1.0);
    }

    /// How long until `n` more tokens can be held; zero: now.
    pub(super) fn wait(&mut self, n: u32, now: Instant) -> Duration {
        self.refill(now);
        if n == 0 {
            return Duration::ZERO;
        }
        let paused = self
            .paused_until
            .map_or(Duration::ZERO, |u| u.saturating_duration_since(now));
        let missing = f64::from(self.held + n) - self.tokens;
        // More than fit are never there at once.
        let fits = f64::from(self.held + n) <= self.burst.max(1.0);
        let refill = match missing > 0.0 {
            true if fits => Duration::from_secs_f64(missing / (self.rate * self.share))
                .max(Duration::from_millis(1)),
            true => Duration::from_millis(500),
            false => Duration::ZERO,
        };
        paused.max(refill)
    }

    pub(super) fn pushed_back(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        limit: Option<u32>,
    ) {
        self.refill(now);
        // A larger one than was named before may be another's: that one is believed for its time.
        let known = self.learnt.map_or(u32::MAX, |(_, limit)| limit);
        if let Some(limit) = limit.filter(|l| (1..=known).contains(l)) {
            self.learnt = Some((now, limit));
            self.resize((limit / 2).clamp(1, self.budget.max(1)));
        }
        self.share = (self.share / 2.0).max(LEAST_SHARE);
        // What is held stays covered.
        self.tokens = self.tokens.min(f64::from(self.held));
        let until = now + retry_after.unwrap_or(DEFAULT_PAUSE).min(LONGEST_PAUSE);
        self.paused_until = Some(self.paused_until.map_or(until, |p| p.max(until)));
    }

    pub(super) fn is_as_new(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.learnt.is_none()
            && self.held == 0
            && self.share >= 1.0
            && self.tokens >= self.burst
            && self.usage.per_minute(now) < 1.0
            && self.paused_until.is_none_or(|u| u <= now)
    }
}
