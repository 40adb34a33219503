//! The pages for users, held to the code: every reason is explained, every link leads somewhere.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeSet, fs, path::Path};

use run_invoker::api::Reason;

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
            Some((cells[0].trim_end_matches('`').to_owned(), cells.iter().skip(1).filter(|c| c.len() > 5).count()))
        })
        .collect();
    let names: Vec<&str> = rows.iter().map(|r| r.0.as_str()).collect();
    let wanted: Vec<&str> = Reason::ALL.iter().map(|r| r.as_str()).collect();
    assert_eq!(names, wanted, "docs/reasons.md and src/api/reason.rs differ");
    for (name, cells) in rows {
        assert_eq!(cells, 2, "{name}: what it means, and what to do");
    }
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    let mut pages = vec![root().join("README.md")];
    pages.extend(
        fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "md")),
    );
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split([')', '#']).next().unwrap();
            if link.is_empty() || link.starts_with("http") {
                continue;
            }
            assert!(page.parent().unwrap().join(link).exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn the_threat_model_names_only_tests_that_are_there() {
    let text = fs::read_to_string(root().join("docs/threats.md")).unwrap();
    let scenarios: BTreeSet<String> = fs::read_dir(root().join("tests/scenarios"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let mut named = 0;
    for line in text.lines().filter(|l| l.starts_with("| ") && l.contains("scenario")) {
        let shown = line.split('|').nth(4).unwrap();
        for part in shown.split(';').filter(|p| p.contains("scenario")) {
            let list = part.split("scenario").nth(1).unwrap().trim_start_matches('s');
            for name in list
                .split(',')
                .map(|n| n.split('(').next().unwrap().trim())
                .filter(|n| !n.is_empty() && !n.ends_with(')'))
            {
                assert!(scenarios.contains(name), "threats.md names the scenario {name:?}");
                named += 1;
            }
        }
    }
    assert!(named >= 15, "only {named} scenarios are named");
    for (at, _) in text.match_indices("`src/").chain(text.match_indices("`tests/")) {
        let path = text[at + 1..].split('`').next().unwrap();
        assert!(root().join(path).exists(), "threats.md names {path}");
    }
}
