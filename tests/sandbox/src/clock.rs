//! The sandbox's clock. It can be set forward, so that expiry can be seen without waiting for it,
//! and it can follow the runtime's time, so that a world runs as fast as it can and the same every
//! time.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Real time plus an offset, a time that stands still, or one that follows the runtime.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
    /// Microseconds since 1970, or zero while time goes on.
    frozen_us: Arc<AtomicI64>,
    /// What time it was at an instant of the runtime.
    follows: Option<(Timestamp, Instant)>,
}

impl Clock {
    /// It is `at` now, and time passes as it does for the runtime: where that is paused, it jumps.
    pub fn following_runtime(at: Timestamp) -> Self {
        Self {
            follows: Some((at, Instant::now())),
            ..Self::default()
        }
    }

    pub fn now(&self) -> Timestamp {
        let start = match (self.frozen_us.load(Ordering::Relaxed), self.follows) {
            (0, None) => Timestamp::now(),
            (0, Some((at, since))) => {
                at + SignedDuration::try_from(since.elapsed()).unwrap_or_default()
            }
            (at, _) => Timestamp::from_microsecond(at).expect("set from a time"),
        };
        start + SignedDuration::from_millis(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Stops the clock at a time, so that a run gives the same etags and times as the one before.
    pub fn freeze(&self, at: Timestamp) {
        self.frozen_us.store(at.as_microsecond(), Ordering::Relaxed);
    }

    /// Moves the clock.
    pub fn advance(&self, by: SignedDuration) {
        self.offset_ms
            .fetch_add(by.as_millis() as i64, Ordering::Relaxed);
    }
}
