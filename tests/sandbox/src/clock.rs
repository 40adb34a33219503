//! The sandbox's clock. It can be set forward, so that expiry can be seen without waiting for it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};

/// Real time plus an offset, or a time that stands still.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
    /// Microseconds since 1970, or zero while time goes on.
    frozen_us: Arc<AtomicI64>,
}

impl Clock {
    pub fn now(&self) -> Timestamp {
        let start = match self.frozen_us.load(Ordering::Relaxed) {
            0 => Timestamp::now(),
            at => Timestamp::from_microsecond(at).expect("set from a time"),
        };
        start + SignedDuration::from_millis(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Stops the clock at a time, so that a run gives the same etags and times as the one before.
    pub fn freeze(&self, at: Timestamp) {
        self.frozen_us.store(at.as_microsecond(), Ordering::Relaxed);
    }

    /// Moves the clock.
    pub fn advance(&self, by: SignedDuration) {
        self.offset_ms.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
    }
}
