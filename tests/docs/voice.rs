//! Words that nobody else in the field uses, and that were here once: they do not come back, in
//! pages, in the chart, in definitions, or in what the program says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;

use crate::{recording::shown, root};

/// What was written once, and what is written instead.
const INSTEAD: [(&str, &str); 25] = [
    (r"keeps the real IAM policies so", "reconciles IAM to match"),
    (r"\breality\b", "IAM, the live policy"),
    (r"puts back what", "reverts manual changes"),
    (r"holds nobody up", "never blocks the rest"),
    (r"waits for a person\b", "waits for approval"),
    (r"as the way back|the way back\b", "can be rolled back"),
    (r"tells? of it\b|told of it\b", "the event"),
    (r"needs for nothing", "permissions it never needs"),
    (r"Without more, the operator", "by default, the operator"),
    (r"is slow first", "is the bottleneck"),
    (r"[Gg]o(es|ing)? back behind", "restores the state before"),
    (r"who may be declared", "see its spec.members"),
    (r"fullest of all", "busiest region"),
    (r"the operator lets itself have", "budget"),
    (r"Nobody can be asked here", "stdin is not a terminal"),
    (r"is no (YAML|duration|URL|time\b)", "invalid, is not a"),
    (r"log has not told", "actor unknown"),
    (r"no look was finished", "no reconcile has completed"),
    (r"\b(last|next|first|every|each|one) looks?\b", "reconcile"),
    (r"\b(is|are) told\b", "reports"),
    (r"corrections (of drift )?rest\b", "corrections are paused"),
    (r"\brooms\b", "module"),
    (r"behind the operator's back", "manual changes"),
    (r"\bheals by itself", "recovers automatically"),
    (r"hears? of\b|heard of\b", "detects"),
];

/// Written by programs, or about words themselves.
const NOT_PROSE: [&str; 3] = ["docs/benchmark.md", "docs/benchmark.json", "docs/pictures"];

fn files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        if NOT_PROSE.contains(&shown.as_str()) {
            continue;
        }
        if path.is_dir() {
            files(&path, endings, found);
        } else if endings.iter().any(|e| shown.ends_with(e)) {
            found.push(path);
        }
    }
}

/// What a source file says to people: its string literals, and the comments that become the text
/// of definitions and help.
fn said(source: &str) -> String {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let literal = Regex::new(r#""(?:[^"\\]|\\.)*""#).unwrap();
    let lines = source.lines().filter(|l| !l.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let all: Vec<&str> = literal.find_iter(&code).map(|m| m.as_str()).collect();
    all.join("\n")
}

#[test]
fn nobody_writes_in_words_of_their_own() {
    let root = root();
    let mut texts = vec![];
    for page in ["README.md", "SECURITY.md", "CONTRIBUTING.md"] {
        texts.push(root.join(page));
    }
    files(&root.join("docs"), &[".md", ".dot"], &mut texts);
    files(&root.join("crds"), &[".yaml"], &mut texts);
    let chart = [".yaml", ".json", ".md", ".txt", ".tpl"];
    files(&root.join("charts"), &chart, &mut texts);
    let mut sources = vec![];
    files(&root.join("src"), &[".rs"], &mut sources);
    sources.retain(|p| !p.ends_with("tests.rs"));
    assert!(texts.len() > 80 && sources.len() > 100);
    let words: Vec<(Regex, &str)> = INSTEAD
        .iter()
        .map(|(pattern, instead)| (Regex::new(pattern).unwrap(), *instead))
        .collect();
    let mut problems = Vec::new();
    let recording = root.join("docs/pictures/demo.svg");
    for path in texts.iter().chain(&sources).chain([&recording]) {
        let text = fs::read_to_string(path).unwrap();
        let text = match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => said(&text),
            Some("svg") => shown(&text),
            _ => text,
        };
        // A phrase may go on in the next line.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for (pattern, instead) in &words {
            problems.extend(pattern.find_iter(&text).map(|found| {
                let from = text.floor_char_boundary(found.start().saturating_sub(50));
                let to = text.floor_char_boundary(found.end() + 30);
                let shown = path.strip_prefix(root).unwrap().display();
                format!("{shown}: …{}… ({instead})", &text[from..to])
            }));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
