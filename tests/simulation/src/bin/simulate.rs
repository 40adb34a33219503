//! `make simulate`: worlds from seeds, judged.
#![allow(clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use simulation::{
    corpus::{self, Case},
    crowd, generate, shrink,
    story::Story,
    sweep::{self, Sweep},
    world::{Report, Run, play},
};

/// Simulates the whole operator in worlds made from seeds, and judges it by what users were
/// promised.
#[derive(Parser)]
struct Args {
    /// How many worlds.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// One seed: its story and its journal.
    #[arg(long)]
    seed: Option<u64>,
    /// One story from a file of the corpus.
    #[arg(long)]
    story: Option<PathBuf>,
    /// The three sweeps over every scenario, at every so many requests.
    #[arg(long)]
    sweeps: Option<usize>,
    /// Large worlds, in which one namespace is in everybody's way.
    #[arg(long)]
    crowd: bool,
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Goes on after a failure, to see how many there are.
    #[arg(long)]
    keep_going: bool,
    /// Leaves failing stories as long as they are.
    #[arg(long)]
    whole: bool,
    /// Keeps the shortest failing story in the corpus under this name (one seed only).
    #[arg(long, requires = "found")]
    keep: Option<String>,
    /// What happens in it and why that is wrong, for the corpus.
    #[arg(long)]
    found: Option<String>,
    /// Prints the operator's own log (one seed only).
    #[arg(long)]
    log: Option<String>,
    /// Worlds at once.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
}

impl Args {
    fn story_of(&self, seed: u64) -> Story {
        if self.crowd {
            crowd::story(seed)
        } else {
            generate::story(seed)
        }
    }
}

struct Sum {
    worlds: u64,
    lasted: Duration,
    tally: BTreeMap<&'static str, u64>,
    worlds_with: BTreeMap<&'static str, u64>,
    failed: Vec<(u64, Report)>,
}

fn main() {
    let args = Args::parse();
    simulation::world::watch_for_panics();
    if let Some(filter) = &args.log {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_writer(std::io::stderr)
            .init();
    }
    let one = match (&args.story, args.seed) {
        (Some(path), _) => Some(corpus::load(path).story),
        (None, Some(seed)) => Some(args.story_of(seed)),
        (None, None) => None,
    };
    if let Some(story) = one {
        std::process::exit(show(&story, &args));
    }
    if let Some(step) = args.sweeps {
        std::process::exit(sweeps(step.max(1), &args));
    }
    std::process::exit(many(&args));
}

fn sweeps(step: usize, args: &Args) -> i32 {
    let mut failed = 0;
    for (name, story) in sweep::scenarios()
        .into_iter()
        .filter(|(n, _)| n.contains(&args.only))
    {
        let base = play(
            &story,
            Run {
                journal: true,
                ..Run::default()
            },
        );
        if let Some(v) = base.violations.first() {
            println!("{name}: as it is: {v}");
            failed += 1;
            continue;
        }
        let requests = base
            .journal
            .iter()
            .filter(|l| l.contains("  r0 ") && l.contains(" > "))
            .count() as u64;
        let all = Sweep::all(&story, requests.min(400), step);
        let (next, broken) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..args.threads {
                scope.spawn(|| {
                    while let Some(sweep) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let report = play(&sweep.over(&story), Run::default());
                        if let Some(v) = report.violations.first() {
                            let case = Case {
                                seed: None,
                                rule: v.rule.to_owned(),
                                found: format!("{sweep:?} over {name}: {v}"),
                                story: sweep.over(&story),
                            };
                            corpus::write(
                                &PathBuf::from(format!("target/{name}-{sweep:?}.json")),
                                &case,
                            );
                            broken
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(format!("{sweep:?}: {v}"));
                        }
                    }
                });
            }
        });
        let broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!(
            "{name}: {} worlds over {requests} requests, {} failed",
            all.len(),
            broken.len()
        );
        broken.iter().take(3).for_each(|b| println!("  {b}"));
        failed += broken.len();
    }
    i32::from(failed > 0)
}

fn show(story: &Story, args: &Args) -> i32 {
    let first = play(story, Run::default());
    let broken = first.violations.first().filter(|_| !args.whole);
    let story = broken.map_or_else(|| story.clone(), |v| shrink::shrink(story, v.rule, 400));
    let report = play(
        &story,
        Run {
            journal: true,
            ..Run::default()
        },
    );
    for line in &report.journal {
        println!("{line}");
    }
    println!("\n{story}");
    println!(
        "journal {:016x}, lasted {:?}, settled after {:?}",
        report.hash, report.lasted, report.settled_after
    );
    for v in &report.violations {
        println!("BROKEN {v} (at {})", v.at);
    }
    if let (Some(name), Some(found), Some(v)) = (&args.keep, &args.found, report.violations.first())
    {
        let case = Case {
            seed: args.seed,
            rule: v.rule.to_owned(),
            found: found.clone(),
            story,
        };
        corpus::save(name, &case);
    }
    i32::from(!report.violations.is_empty())
}

fn many(args: &Args) -> i32 {
    let started = Instant::now();
    let next = AtomicU64::new(args.from);
    let end = args.from + args.seeds;
    let sum = Mutex::new(Sum {
        worlds: 0,
        lasted: Duration::ZERO,
        tally: BTreeMap::new(),
        worlds_with: BTreeMap::new(),
        failed: vec![],
    });
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = play(&args.story_of(seed), Run::default());
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.worlds += 1;
                    sum.lasted += report.lasted;
                    for (what, n) in &report.tally {
                        *sum.tally.entry(what).or_default() += n;
                        *sum.worlds_with.entry(what).or_default() += 1;
                    }
                    if let Some(v) = report.violations.first() {
                        println!("seed {seed}: {v}");
                        sum.failed.push((seed, report));
                        if !args.keep_going {
                            next.store(end, Ordering::Relaxed);
                        }
                    }
                    if sum.worlds.is_multiple_of(100) {
                        progress(&sum, started);
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    progress(&sum, started);
    println!("\nwhat really happened                      in all    in worlds");
    for (what, n) in &sum.tally {
        println!("  {what:<38} {n:>8}   {:>8}", sum.worlds_with[what]);
    }
    let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, report) in &sum.failed {
        if let Some(v) = report.violations.first() {
            *rules.entry(v.rule).or_default() += 1;
        }
    }
    let failed = !sum.failed.is_empty();
    if failed {
        println!("\n{} worlds failed: {rules:?}", sum.failed.len());
    }
    if !args.keep_going
        && let Some((seed, report)) = sum.failed.iter().min_by_key(|(s, _)| *s)
        && let Some(first) = report.violations.first()
    {
        let story = args.story_of(*seed);
        let story = if args.whole {
            story
        } else {
            shrink::shrink(&story, first.rule, 400)
        };
        println!("\nseed {seed} breaks {first}\n\nthe shortest story that still does:\n{story}");
    }
    i32::from(failed)
}

fn progress(sum: &Sum, started: Instant) {
    let took = started.elapsed().as_secs_f64();
    println!(
        "{:>6} worlds, {:>6.1} a second, {:>7.1} virtual hours, {:.2} a second, {} failed",
        sum.worlds,
        sum.worlds as f64 / took,
        sum.lasted.as_secs_f64() / 3600.0,
        sum.lasted.as_secs_f64() / 3600.0 / took,
        sum.failed.len()
    );
}
