//! Holds every module to the map in `src/lib.rs`: which of our modules it may use, and what a pure one may not touch.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Module, the modules it may use, and whether it is pure. An edge that is not here is forbidden.
const MAP: &[(&str, &[&str], bool)] = &[
    ("iam", &[], true),
    ("api", &[], true),
    ("fault", &["api"], true),
    ("intent", &["api", "iam"], true),
    ("plan", &["api", "iam", "intent"], true),
    ("history", &["api", "iam", "intent", "plan"], true),
    ("status", &["api", "fault", "iam", "intent", "plan"], true),
    ("audit", &["api", "iam"], true),
    ("cloudrun", &["fault", "iam"], false),
    ("cluster", &["api", "cloudrun", "fault", "history", "iam", "intent", "plan", "status"], false),
    ("subscription", &[], false),
    ("leader", &[], false),
    ("metrics", &["api", "cloudrun"], false),
    ("http", &["metrics"], false),
    ("config", &["cloudrun", "history", "intent", "plan", "subscription"], false),
    ("telemetry", &["config"], false),
    ("diagnose", &["iam"], true),
    ("render", &[], true),
    ("gather", &["cloudrun", "cluster", "fault", "history", "iam", "intent", "plan"], false),
    ("apply", &["api", "cloudrun", "cluster", "fault", "history", "iam", "intent", "plan"], false),
    (
        "controller",
        &[
            "api",
            "apply",
            "audit",
            "cloudrun",
            "cluster",
            "fault",
            "gather",
            "history",
            "iam",
            "intent",
            "leader",
            "metrics",
            "plan",
            "status",
            "subscription",
        ],
        false,
    ),
    (
        "cli",
        &[
            "api", "cloudrun", "cluster", "config", "diagnose", "fault", "gather", "history", "iam", "intent", "plan",
            "render", "status",
        ],
        false,
    ),
];

/// What decides may not call, wait, log or count, nor read a clock or a die.
const IMPURE: &[&str] = &[
    "tokio",
    "tracing",
    "prometheus",
    "kube::Client",
    "kube::Api",
    "google_cloud",
    "reqwest",
    "axum",
    "Timestamp::now",
    "Instant::now",
    "SystemTime",
    "rand::",
];

fn sources(module: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = Vec::new();
    let single = root.join(format!("{module}.rs"));
    if single.exists() {
        files.push(single);
    }
    if root.join(module).is_dir() {
        folders.push(root.join(module));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    assert!(!files.is_empty(), "{module} has no source");
    files
        .into_iter()
        .filter(|p| p.file_name().unwrap() != "tests.rs")
        .map(|p| {
            let text = fs::read_to_string(&p).unwrap();
            // Tests may do as they like.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            let code = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            (p.display().to_string(), code)
        })
        .collect()
}

/// The names after `crate::`, groups like `crate::{a::B, c}` included.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut word, mut fresh) = (0, String::new(), true);
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => fresh = true,
                    c if depth == 0 && fresh && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ => {
                        if !word.is_empty() {
                            found.insert(std::mem::take(&mut word));
                            fresh = false;
                        }
                    }
                }
                if depth == 0 && c == ',' && !word.is_empty() {
                    found.insert(std::mem::take(&mut word));
                }
            }
            if !word.is_empty() {
                found.insert(word);
            }
        } else {
            found.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn every_module_uses_only_what_the_map_allows() {
    let names: BTreeMap<&str, &[&str]> = MAP.iter().map(|(n, u, _)| (*n, *u)).collect();
    for (module, allowed, _) in MAP {
        for (file, code) in sources(module) {
            for name in used(&code).iter().filter(|n| names.contains_key(n.as_str()) && n.as_str() != *module) {
                assert!(allowed.contains(&name.as_str()), "{file}: {module} may not use {name}");
            }
        }
    }
}

#[test]
fn the_map_names_every_module() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: BTreeSet<&str> = lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared, MAP.iter().map(|(n, _, _)| *n).collect());
}

#[test]
fn pure_modules_are_pure() {
    for (module, _, pure) in MAP.iter().filter(|(_, _, pure)| *pure) {
        assert!(pure);
        for (file, code) in sources(module) {
            for word in IMPURE {
                assert!(!code.contains(word), "{file}: a pure module mentions {word}");
            }
        }
    }
}

#[test]
fn the_sandbox_shares_no_code_with_the_operator() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/Cargo.toml")).unwrap();
    assert!(!manifest.contains("run-invoker ="), "the sandbox depends on the operator");
    let own = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = own.split("[dependencies]").nth(1).unwrap().split("[dev-dependencies]").next().unwrap();
    assert!(!dependencies.contains("sandbox"), "the operator depends on the sandbox");
}
