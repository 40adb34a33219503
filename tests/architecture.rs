//! Holds every module to the map in `src/lib.rs`: which of our modules it may use, and what a pure
//! one may not touch.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Module and the modules it may use. An edge that is not here is forbidden. Those of the pure
/// crate, `src/core`, come first.
const MAP: &[(&str, &[&str])] = &[
    ("iam", &[]),
    ("api", &[]),
    ("fault", &["api"]),
    ("intent", &["api", "iam"]),
    ("plan", &["api", "iam", "intent"]),
    ("ledger", &["api", "iam", "intent", "plan"]),
    ("history", &["api", "iam", "intent", "ledger", "plan"]),
    ("inherited", &["fault", "iam"]),
    (
        "status",
        &[
            "api",
            "fault",
            "iam",
            "inherited",
            "intent",
            "ledger",
            "plan",
        ],
    ),
    (
        "index",
        &[
            "api",
            "fault",
            "history",
            "iam",
            "inherited",
            "intent",
            "ledger",
            "plan",
            "status",
        ],
    ),
    ("audit", &["api", "iam"]),
    ("diagnose", &["api", "iam"]),
    ("cloudrun", &["fault", "iam", "index", "inherited"]),
    (
        "cluster",
        &["api", "fault", "iam", "intent", "ledger", "status"],
    ),
    ("subscription", &[]),
    ("leader", &[]),
    ("metrics", &["api", "cloudrun", "inherited"]),
    ("http", &["metrics"]),
    (
        "config",
        &[
            "cloudrun",
            "history",
            "inherited",
            "intent",
            "plan",
            "subscription",
        ],
    ),
    ("telemetry", &["config"]),
    ("render", &[]),
    (
        "controller",
        &[
            "api",
            "audit",
            "cloudrun",
            "cluster",
            "fault",
            "history",
            "iam",
            "index",
            "inherited",
            "intent",
            "leader",
            "ledger",
            "metrics",
            "plan",
            "status",
            "subscription",
        ],
    ),
    (
        "cli",
        &[
            "api",
            "cloudrun",
            "cluster",
            "config",
            "diagnose",
            "fault",
            "history",
            "iam",
            "index",
            "inherited",
            "intent",
            "plan",
            "render",
            "status",
        ],
    ),
];

fn sources(module: &str) -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let core = src.join("core");
    let pure = core.join(format!("{module}.rs")).exists() || core.join(module).is_dir();
    let root = if pure { core } else { src };
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
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    assert!(!files.is_empty(), "{module} has no source");
    files
        .into_iter()
        .filter(|p| p.file_name().unwrap() != "tests.rs")
        .map(|p| {
            let text = fs::read_to_string(&p).unwrap();
            // Tests may do as they like.
            let code = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap()
                .to_owned();
            let code = code
                .lines()
                .filter(|l| !l.trim_start().starts_with("//"))
                .collect::<Vec<_>>()
                .join("\n");
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
            found.insert(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    found
}

#[test]
fn every_module_uses_only_what_the_map_allows() {
    let names: BTreeMap<&str, &[&str]> = MAP.iter().map(|(n, u)| (*n, *u)).collect();
    for (module, allowed) in MAP {
        for (file, code) in sources(module) {
            for name in used(&code)
                .iter()
                .filter(|n| names.contains_key(n.as_str()) && n.as_str() != *module)
            {
                assert!(
                    allowed.contains(&name.as_str()),
                    "{file}: {module} may not use {name}"
                );
            }
        }
    }
}

#[test]
fn the_map_names_every_module() {
    let read = |f: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(f)).unwrap();
    let libs = read("src/lib.rs") + &read("src/core/lib.rs");
    let declared: BTreeSet<&str> = libs
        .lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(declared, MAP.iter().map(|(n, _)| *n).collect());
}

/// What the pure crate may depend on. What is not in its manifest cannot be used: that is its
/// purity.
const PURE: &[&str] = &[
    "base64",
    "jiff",
    "k8s-openapi",
    "kube",
    "lz4_flex",
    "regex",
    "schemars",
    "serde",
    "serde_json",
    "sha2",
    "strsim",
    "thiserror",
    "wildmatch",
];

#[test]
fn the_pure_crate_depends_on_nothing_that_calls_waits_logs_or_counts() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core/Cargo.toml"))
            .unwrap();
    let section = manifest
        .split("\n[dependencies]\n")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let lines = section
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty());
    let names: Vec<&str> = lines
        .map(|l| l.split(['.', ' ', '=']).next().unwrap())
        .collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>(), PURE.iter().collect());
    assert!(
        section.contains(
            "kube = { version = \"5\", default-features = false, features = [\"derive\"] }"
        )
    );
}

#[test]
fn the_sandbox_shares_no_code_with_the_operator() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/Cargo.toml"))
            .unwrap();
    assert!(
        !manifest.contains("run-invoker ="),
        "the sandbox depends on the operator"
    );
    let own = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = own
        .split("[dependencies]")
        .nth(1)
        .unwrap()
        .split("[dev-dependencies]")
        .next()
        .unwrap();
    assert!(
        !dependencies.contains("sandbox"),
        "the operator depends on the sandbox"
    );
}

/// The page and its picture name rooms that there are, and all of the controller's.
#[test]
fn the_page_and_the_picture_name_rooms_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |f: &str| fs::read_to_string(root.join(f)).unwrap();
    let (page, picture) = (read("docs/architecture.md"), read("docs/architecture.dot"));
    for path in page
        .split('`')
        .filter(|p| p.starts_with("src/") || p.starts_with("tests/"))
    {
        assert!(
            root.join(path).exists(),
            "docs/architecture.md names {path}"
        );
    }
    let nodes = picture
        .lines()
        .filter(|l| l.contains("label=\"") && !l.contains("->"));
    let rooms = nodes.filter(|l| !l.contains("class=\"outside\""));
    let mut drawn = BTreeSet::new();
    for room in rooms {
        let label = room.split("label=\"").nth(1).unwrap();
        let name = label.split(['\\', '"']).next().unwrap();
        let is_there = ["src", "src/core"].iter().any(|folder| {
            let room = root.join(folder).join(name);
            room.is_dir() || room.with_extension("rs").exists()
        });
        assert!(is_there, "docs/architecture.dot draws {name}");
        drawn.insert(name.to_owned());
    }
    // Locks and times are tools of all of them, and no rooms.
    let tools = ["mod", "due", "owned", "tended"];
    for entry in fs::read_dir(root.join("src/controller")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_drawn = drawn.contains(&format!("controller/{name}"));
        assert!(
            is_drawn || tools.contains(&name),
            "docs/architecture.dot lacks {name}"
        );
    }
}
