//! A fixed part of the simulation: worlds from seeds, the stories that once broke a promise, and
//! wrongs that the judge must see. `make simulate` runs as many worlds as are wanted.
#![allow(clippy::print_stdout, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};

use simulation::{
    corpus, crowd, generate,
    story::{Harm, Side, Storm},
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
                    assert!(
                        broken.is_none(),
                        "seed {seed}: {broken:?}\nmake simulate SEED={seed} shows its story"
                    );
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
        assert!(
            broken.is_none(),
            "{name} ({}): {broken:?}\n{}",
            case.found,
            case.story
        );
    }
}

/// Whatever stands before the API server can say 404, and means nothing by it.
#[test]
fn a_proxys_page_is_no_proof_that_an_object_is_gone() {
    for seed in 1..=24 {
        let mut story = generate::story(seed);
        let page = Harm::Refused {
            status: 404,
            body: "<html>no such host</html>".into(),
            headers: vec![],
        };
        for only in ["/invokerpolicies/", "/invokerledgers/", "/leases/"] {
            let (from_ms, to_ms) = (1_000, 60_000);
            let (side, only) = (Side::Kube, only.to_owned());
            story.weather.push(Storm {
                from_ms,
                to_ms,
                side,
                only,
                replica: None,
                nth: None,
                percent: 40,
                harm: page.clone(),
            });
        }
        let report = play(&story, Run::default());
        let broken = report.violations.first();
        assert!(broken.is_none(), "seed {seed}: {broken:?}");
    }
}

/// Every nuisance there is, two at once, and what would be seen if they were in the way.
#[test]
fn nobody_waits_because_of_what_another_namespace_does() {
    for seed in 8..12 {
        let story = crowd::story(seed);
        let report = play(&story, Run::default());
        let broken = report.violations.first();
        assert!(
            broken.is_none(),
            "seed {seed}: {broken:?}\nsimulate --crowd --seed {seed} shows its story"
        );
        let edits = report.tally.get("edits that had to be in force");
        assert!(
            edits.is_some_and(|n| *n >= 10),
            "seed {seed}: {edits:?} edits"
        );
    }
    let mut story = crowd::story(0);
    story.weather.push(Storm {
        from_ms: 20_000,
        to_ms: 60_000,
        side: Side::Run,
        only: "acme-dev".into(),
        replica: None,
        nth: None,
        percent: 100,
        harm: Harm::Slow(crowd::PROMPT_MS),
    });
    let report = play(&story, Run::default());
    let rules: Vec<_> = report.violations.iter().map(|v| v.rule).collect();
    assert_eq!(
        rules.first(),
        Some(&"L4"),
        "the judge does not see who waits"
    );
}

#[test]
fn two_runs_of_one_seed_are_the_same_world() {
    for seed in [3, 16, 29] {
        let story = generate::story(seed);
        let (one, other) = (play(&story, Run::default()), play(&story, Run::default()));
        assert_eq!(
            (one.hash, one.lasted),
            (other.hash, other.lasted),
            "seed {seed}"
        );
    }
}

#[test]
fn the_judge_sees_every_planted_wrong() {
    let mut unseen = Vec::new();
    for wrong in Wrong::ALL {
        let found = (1..=SEEDS_FOR_A_WRONG).find_map(|seed| {
            let report = play(
                &generate::story(seed),
                Run {
                    wrong: Some(wrong),
                    ..Run::default()
                },
            );
            report.violations.first().map(|v| (seed, v.rule))
        });
        match found {
            Some((seeds, rule)) => println!("{wrong:?}: seen after {seeds} worlds, by {rule}"),
            None => unseen.push(wrong),
        }
    }
    assert!(
        unseen.is_empty(),
        "not seen in {SEEDS_FOR_A_WRONG} worlds: {unseen:?}"
    );
}
