//! Calls of the last minute, as Google's quotas count them.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Minute(VecDeque<Instant>);

impl Minute {
    /// Counts a call. False, and not counted: there were `most` within 60 seconds.
    pub(crate) fn spend(&mut self, most: usize) -> bool {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        while self.0.front().is_some_and(|t| now - *t >= minute) {
            self.0.pop_front();
        }
        let fits = self.0.len() < most;
        if fits {
            self.0.push_back(now);
        }
        fits
    }
}
