//! A bounded run of the fuzz targets on stable Rust: the whole corpus, and mutations of it from a
//! fixed seed, so that a failure comes again. `FUZZ_ROUNDS=1000000 cargo test --release --test
//! fuzz` runs longer. With cargo-fuzz and nightly: `cd fuzz && cargo +nightly fuzz run member`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that fails panics"
)]
#![expect(clippy::print_stdout, reason = "says how much it tried")]

#[path = "../fuzz/harness.rs"]
mod harness;

use std::{fs, path::Path};

/// xorshift64*: enough to pick bytes, and the same everywhere.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides.max(1)
    }
}

/// Pieces that matter to these formats, for the mutations that flipping bits would take ages to
/// find.
const PIECES: &[&str] = &[
    "*",
    "?",
    ":",
    "@",
    "/",
    "\n",
    "\"",
    "{}",
    "[]",
    "null",
    "-1",
    "allUsers",
    "user:",
    "principalSet://",
    "deleted:",
    "?uid=1",
    "/*",
    "roles/run.invoker",
    "\"condition\":{\"title\":\"t\"}",
    "_withcond_",
    "\u{200b}",
    "\u{430}",
    "\"operator\":\"In\"",
    "\"values\":[\"a\"]",
    "cloud.googleapis.com/location",
    "..",
    "%2f",
];

fn mutate(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(data.len() + 1);
        match dice.roll(6) {
            0 if at < data.len() => data[at] ^= 1 << dice.roll(8),
            1 if at < data.len() => {
                data.remove(at);
            }
            2 => data.insert(at, dice.roll(256) as u8),
            3 => {
                let piece = PIECES[dice.roll(PIECES.len())].as_bytes();
                data.splice(at..at, piece.iter().copied());
            }
            4 => {
                let (from, to) = (dice.roll(other.len() + 1), dice.roll(other.len() + 1));
                data.splice(at..at, other[from.min(to)..from.max(to)].iter().copied());
            }
            _ => data.truncate(at),
        }
    }
    data
}

#[test]
fn no_input_breaks_a_parser_or_what_it_promises() {
    let rounds: usize = std::env::var("FUZZ_ROUNDS")
        .ok()
        .map_or(20_000, |n| n.parse().unwrap());
    for (name, target) in harness::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let mut corpus: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        corpus.sort();
        let corpus: Vec<Vec<u8>> = corpus.iter().map(|p| fs::read(p).unwrap()).collect();
        assert!(corpus.len() >= 3, "{name} has hardly a corpus");
        corpus.iter().for_each(|c| target(c));
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        for round in 0..rounds {
            let data = mutate(
                &corpus[dice.roll(corpus.len())],
                &corpus[dice.roll(corpus.len())],
                &mut dice,
            );
            let result = std::panic::catch_unwind(|| target(&data));
            if result.is_err() {
                panic!(
                    "{name}, round {round}: {:?}; keep it as a file in {}",
                    String::from_utf8_lossy(&data),
                    folder.display()
                );
            }
        }
        println!("{name}: {} seeds, {rounds} mutations", corpus.len());
    }
}
