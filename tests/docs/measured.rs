//! Numbers on pages and in the chart that the benchmark measured: those of its last run.

use std::fs;

use serde_json::Value;

use crate::root;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// What was measured at one size.
struct Measured {
    policies: u64,
    /// MiB.
    memory: f64,
    millicores: f64,
    cold_start: f64,
}

fn measured() -> Vec<Measured> {
    let run: Value = serde_json::from_str(&read("docs/benchmark.json")).unwrap();
    let results = run["results"].as_array().unwrap().iter();
    let number = |v: &Value| v.as_f64().unwrap();
    results
        .map(|r| Measured {
            policies: r["policies"].as_u64().unwrap(),
            memory: number(&r["rssMib"]["steady"]),
            millicores: number(&r["cpuMillicoresSteady"]),
            cold_start: number(&r["coldStartSeconds"]),
        })
        .collect()
}

/// `10,000`.
fn thousands(n: u64) -> String {
    match n {
        0..1000 => n.to_string(),
        n => format!("{},{:03}", n / 1000, n % 1000),
    }
}

/// Exactly below ten, whole above.
fn seconds(n: f64) -> String {
    if n < 10.0 {
        format!("{n:.1} s")
    } else {
        format!("{n:.0} s")
    }
}

#[test]
fn what_pages_and_chart_say_was_measured_is_what_the_benchmark_measured() {
    let all = measured();
    let sizes: Vec<u64> = all.iter().map(|m| m.policies).collect();
    assert_eq!(sizes, [100, 1000, 10_000]);
    let mut wanted = Vec::new();
    let mut row = |title: &str, value: fn(&Measured) -> String| {
        let values: Vec<String> = all.iter().map(value).collect();
        wanted.push((
            "docs/benchmark.md",
            format!("| {title} | {} |", values.join(" | ")),
        ));
    };
    row("cold start to all in steady state", |m| {
        format!("{:.1} s", m.cold_start)
    });
    row("resident memory, steady", |m| {
        format!("{:.1} MiB", m.memory)
    });
    row("CPU, steady", |m| format!("{:.1} m", m.millicores));
    for m in &all {
        let (size, memory, cpu) = (thousands(m.policies), m.memory, m.millicores);
        let start = seconds(m.cold_start);
        let line = format!("| {size} | {memory:.0} MiB | {cpu:.0} millicores | {start} |");
        wanted.push(("docs/sizing.md", line));
    }
    let [small, middle, large] = &all[..] else {
        unreachable!()
    };
    let (memory, cpu) = (middle.memory, middle.millicores);
    let line = format!("A thousand policies cost about {cpu:.0} millicores and {memory:.0} MiB");
    wanted.push(("docs/operations.md", line));
    let (first, more) = (
        format!(
            "{:.0} MiB and {:.0} millicores at 100 policies",
            small.memory, small.millicores
        ),
        [(middle, "1,000"), (large, "10,000")]
            .map(|(m, n)| format!("{:.0} and {:.0} at {n}", m.memory, m.millicores)),
    );
    let line = format!(
        "# Measured (docs/benchmark.md): {first}, {}.",
        more.join(", ")
    );
    wanted.push(("charts/run-invoker/values.yaml", line));
    let [a, b, c] = [small, middle, large].map(|m| format!("{:.0}", m.memory));
    wanted.push((
        "CHANGELOG.md",
        format!("{a}, {b} and {c} MiB at 100, 1,000 and 10,000"),
    ));
    // What a policy costs above the smallest size, to the next whole KiB or the one below.
    let each = (large.memory - small.memory) * 1024.0 / (large.policies - small.policies) as f64;
    let each = [each.floor(), each.ceil()].map(|n| format!("about {n} KiB per policy"));
    let sizing = read("docs/sizing.md");
    let mut problems: Vec<String> = wanted
        .iter()
        .filter(|(path, line)| !read(path).contains(line.as_str()))
        .map(|(path, line)| format!("{path} has no {line:?}"))
        .collect();
    if !each.iter().any(|e| sizing.contains(e)) {
        problems.push(format!("docs/sizing.md has none of {each:?}"));
    }
    assert!(
        problems.is_empty(),
        "docs/benchmark.json was measured anew:\n{}",
        problems.join("\n")
    );
    // The chart's own limit is said to be enough for the largest size.
    let limits = regex::Regex::new(r"limits: \{memory: (\d+)Mi\}").unwrap();
    let values = read("charts/run-invoker/values.yaml");
    let limit: f64 = limits.captures(&values).unwrap()[1].parse().unwrap();
    assert!(
        large.memory * 1.5 < limit,
        "{} MiB of {limit}",
        large.memory
    );
}
