//! A fixed part of the simulation: worlds from seeds, the stories that once broke a promise, and wrongs that the judge must
//! see. `make simulate` runs as many worlds as are wanted.
#![allow(clippy::print_stdout, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};

use simulation::{
    corpus, generate,
    world::{Run, play},
    wrong::Wrong,
};

/// Seeds in which a planted wrong has to be found.
const SEEDS_FOR_A_WRONG: u64 = 400;

#[test]
fn the_first_worlds_keep_every_promise() {
    let next = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > 40 {
                        return;
                    }
                    let report = play(&generate::story(seed), Run::default());
                    let broken = report.violations.first();
                    assert!(broken.is_none(), "seed {seed}: {broken:?}\nmake simulate SEED={seed} shows its story");
                }
            });
        }
    });
}

#[test]
fn stories_that_broke_a_promise_break_none_any_more() {
    let all = corpus::all();
    assert!(!all.is_empty(), "the corpus is empty");
    for (name, case) in all {
        assert!(case.found.len() > 40, "{name} does not say what was wrong");
        let report = play(&case.story, Run::default());
        let broken = report.violations.first();
        assert!(broken.is_none(), "{name} ({}): {broken:?}\n{}", case.found, case.story);
    }
}

#[test]
fn two_runs_of_one_seed_are_the_same_world() {
    for seed in [3, 16, 29] {
        let story = generate::story(seed);
        let (one, other) = (play(&story, Run::default()), play(&story, Run::default()));
        assert_eq!((one.hash, one.lasted), (other.hash, other.lasted), "seed {seed}");
    }
}

#[test]
fn the_judge_sees_every_planted_wrong() {
    let mut unseen = Vec::new();
    for wrong in Wrong::ALL {
        let found = (1..=SEEDS_FOR_A_WRONG).find_map(|seed| {
            let report = play(&generate::story(seed), Run { wrong: Some(wrong), ..Run::default() });
            report.violations.first().map(|v| (seed, v.rule))
        });
        match found {
            Some((seeds, rule)) => println!("{wrong:?}: seen after {seeds} worlds, by {rule}"),
            None => unseen.push(wrong),
        }
    }
    assert!(unseen.is_empty(), "not seen in {SEEDS_FOR_A_WRONG} worlds: {unseen:?}");
}
