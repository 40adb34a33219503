#![cfg(feature = "cli")]
//! The pages for users, held to the code: every reason is explained, every link leads somewhere.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

#[path = "docs/measured.rs"]
mod measured;
#[path = "docs/recording.rs"]
mod recording;
#[path = "docs/voice.rs"]
mod voice;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use run_invoker::api::{ConditionType, EventReason, Reason};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_reason_is_explained_with_what_to_do() {
    let text = fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    let rows: Vec<(String, usize)> = text
        .lines()
        .filter_map(|l| {
            let cells: Vec<&str> = l.strip_prefix("| `")?.split('|').map(str::trim).collect();
            Some((
                cells[0].trim_end_matches('`').to_owned(),
                cells.iter().skip(1).filter(|c| c.len() > 5).count(),
            ))
        })
        .collect();
    let names: Vec<&str> = rows.iter().map(|r| r.0.as_str()).collect();
    let wanted: Vec<&str> = Reason::ALL.iter().map(|r| r.as_str()).collect();
    assert_eq!(
        names, wanted,
        "docs/reasons.md and src/core/api/reason.rs differ"
    );
    for (name, cells) in rows {
        assert_eq!(cells, 2, "{name}: what it means, and what to do");
    }
}

#[test]
fn every_reason_condition_and_event_is_shown_by_a_scenario() {
    let scenarios: Vec<String> = fs::read_dir(root().join("tests/scenarios"))
        .unwrap()
        .map(|f| fs::read_to_string(f.unwrap().path().join("scenario.yaml")).unwrap())
        .collect();
    let shown = |pattern: String| {
        let pattern = regex::Regex::new(&pattern).unwrap();
        scenarios.iter().any(|s| pattern.is_match(s))
    };
    // Cannot be a condition's own: the grant is as declared. Its message has the word.
    let reasons = Reason::ALL.iter().map(|r| match r {
        Reason::CannotInvoke => "Ready: CannotInvoke".to_owned(),
        r => format!("(True|False|Unknown) {r}\\b"),
    });
    let conditions = ConditionType::ALL
        .iter()
        .map(|c| format!("\\b{c}: (True|False) "));
    let events = EventReason::ALL
        .iter()
        .map(|e| format!(r"(events: \[[^\]]*\b{e}\b|eventCount: \{{[^}}]*\b{e}: [1-9])"));
    let absent: Vec<String> = reasons
        .chain(conditions)
        .chain(events)
        .filter(|p| !shown(p.clone()))
        .collect();
    assert!(absent.is_empty(), "no scenario has {absent:#?}");
}

/// Every page, the runbooks and the reference included.
fn pages() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The name that mdBook and GitHub give a heading in a link.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    let mut links = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split(')').next().unwrap();
            if link.starts_with("http") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if !heading.is_empty() {
                let there = fs::read_to_string(&target).unwrap();
                let found = there
                    .lines()
                    .any(|l| l.starts_with('#') && anchor(l) == heading);
                assert!(found, "{}: {link}: no such heading", page.display());
            }
            links += 1;
        }
    }
    assert!(links > 60, "only {links} links were found");
}

#[test]
fn the_book_has_every_page_once() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: Vec<&str> = summary
        .match_indices("](")
        .map(|(at, _)| summary[at + 2..].split(')').next().unwrap())
        .collect();
    let once: BTreeSet<String> = listed.iter().map(|l| (*l).to_owned()).collect();
    assert_eq!(once.len(), listed.len(), "a page is listed twice");
    let docs = root().join("docs");
    let there: BTreeSet<String> = pages()
        .iter()
        .filter_map(|p| Some(p.strip_prefix(&docs).ok()?.to_str()?.to_owned()))
        .filter(|p| p != "SUMMARY.md")
        .collect();
    assert_eq!(once, there);
}

#[test]
fn the_page_about_alerts_has_each_with_its_severity() {
    let rules: serde_json::Value = serde_saphyr::from_str(
        &fs::read_to_string(root().join("charts/run-invoker/files/alerts.yaml")).unwrap(),
    )
    .unwrap();
    let rules = rules["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["rules"].as_array().unwrap());
    let wanted: BTreeSet<String> = rules
        .map(|r| {
            let (name, severity) = (
                r["alert"].as_str().unwrap(),
                r["labels"]["severity"].as_str().unwrap(),
            );
            format!("| [{name}](runbooks/{name}.md) | {severity} |")
        })
        .collect();
    let page = fs::read_to_string(root().join("docs/alerts.md")).unwrap();
    let have: BTreeSet<String> = page
        .lines()
        .filter(|l| l.starts_with("| [RunInvoker"))
        .map(|l| l.split('|').take(3).collect::<Vec<_>>().join("|") + "|")
        .collect();
    assert_eq!(have, wanted);
}

#[test]
fn what_the_pages_say_of_flags_and_values_is_there() {
    use clap::CommandFactory as _;
    let plugin = run_invoker::cli::Args::command();
    let commands = [run_invoker::config::Args::command(), plugin.clone()];
    let flags: BTreeSet<String> = commands
        .iter()
        .chain(plugin.get_subcommands())
        .flat_map(|c| c.get_arguments())
        .filter_map(|a| a.get_long().map(str::to_owned))
        .collect();
    let schema: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(root().join("charts/run-invoker/values.schema.json")).unwrap(),
    )
    .unwrap();
    let flag = regex::Regex::new("`--([a-z][a-z-]+)[ =`]").unwrap();
    let value = regex::Regex::new(
        r"`((?:settings|metrics|serviceAccount|defaultGuardrail|image|crds|rbac|admission)\.[a-zA-Z.]+)[=`]",
    )
    .unwrap();
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        if page.ends_with("image.md")
            || page.ends_with("troubleshooting-403.md")
            || page.ends_with("decisions.md")
        {
            continue;
        }
        for found in flag.captures_iter(&text) {
            // gcloud's and helm's own.
            if [
                "set",
                "organization",
                "allow-unauthenticated",
                "reuse-values",
                "reset-then-reuse-values",
                "take-ownership",
                "force-conflicts",
            ]
            .contains(&&found[1])
            {
                continue;
            }
            assert!(
                flags.contains(&found[1]),
                "{}: no flag --{}",
                page.display(),
                &found[1]
            );
            seen += 1;
        }
        for found in value.captures_iter(&text) {
            let mut at = &schema;
            for key in found[1].split('.') {
                let open = at["additionalProperties"].is_object() || at["properties"].is_null();
                at = if open { at } else { &at["properties"][key] };
                assert!(!at.is_null(), "{}: no value {}", page.display(), &found[1]);
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} were found");
}

#[test]
fn the_threat_model_names_only_tests_that_are_there() {
    let text = fs::read_to_string(root().join("docs/threats.md")).unwrap();
    let scenarios: BTreeSet<String> = fs::read_dir(root().join("tests/scenarios"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let mut named = 0;
    for line in text
        .lines()
        .filter(|l| l.starts_with("| ") && l.contains("scenario"))
    {
        let shown = line.split('|').nth(4).unwrap();
        for part in shown.split(';').filter(|p| p.contains("scenario")) {
            let list = part
                .split("scenario")
                .nth(1)
                .unwrap()
                .trim_start_matches('s');
            for name in list
                .split(',')
                .map(|n| n.split('(').next().unwrap().trim())
                .filter(|n| !n.is_empty() && !n.ends_with(')'))
            {
                assert!(
                    scenarios.contains(name),
                    "threats.md names the scenario {name:?}"
                );
                named += 1;
            }
        }
    }
    assert!(named >= 15, "only {named} scenarios are named");
    for (at, _) in text
        .match_indices("`src/")
        .chain(text.match_indices("`tests/"))
    {
        let path = text[at + 1..].split('`').next().unwrap();
        assert!(root().join(path).exists(), "threats.md names {path}");
    }
}
