//! Randomness from one seed: a stream of its own for each concern, so that a new roll somewhere
//! does not shift all others.

use std::time::Duration;

/// What all dice of a world come from.
#[derive(Clone, Copy, Debug)]
pub struct Dice {
    seed: u64,
}

fn mix(mut x: u64) -> u64 {
    // The finalizer of SplitMix64.
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    fn number(&self, name: &str, n: u64) -> u64 {
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        mix(mix(self.seed ^ name).wrapping_add(mix(n.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// A stream of rolls.
    pub fn stream(&self, name: &str) -> Stream {
        Stream(fastrand::Rng::with_seed(self.number(name, 0)))
    }

    /// The `n`th roll of a concern by itself, in [0, 1).
    pub fn roll(&self, name: &str, n: u64) -> f64 {
        (self.number(name, n) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A stream of rolls.
#[derive(Clone, Debug)]
pub struct Stream(pub fastrand::Rng);

impl Stream {
    pub fn chance(&mut self, p: f64) -> bool {
        self.0.f64() < p
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.0.usize(0..n.max(1))
    }
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        self.0.u64(from..=to.max(from))
    }
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
    /// Mostly small, sometimes large: gaps between what people do.
    pub fn gap(&mut self) -> Duration {
        Duration::from_millis(match self.below(10) {
            0..=3 => self.between(0, 300),
            4..=6 => self.between(300, 5_000),
            7 | 8 => self.between(5_000, 30_000),
            _ => self.between(30_000, 90_000),
        })
    }
}
