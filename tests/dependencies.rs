//! Licences and duplicates of what is built into the operator: the part of deny.toml that must hold
//! on every machine.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Packages that the operator is built from on Linux: no tests, no build scripts' own tools.
fn normal_dependencies() -> BTreeSet<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "-p",
            "run-invoker",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|l| {
            let mut words = l.split_whitespace();
            Some((
                words.next()?.to_owned(),
                words.next()?.trim_start_matches('v').to_owned(),
            ))
        })
        .collect()
}

#[test]
fn every_licence_is_one_that_deny_toml_allows() {
    let deny = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    let list = deny.lines().find(|l| l.starts_with("allow = ")).unwrap();
    let allowed: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(allowed.len() > 3);
    let wanted = normal_dependencies();
    assert!(
        wanted.len() > 100,
        "only {} packages were found",
        wanted.len()
    );
    for package in metadata()["packages"].as_array().unwrap() {
        let (name, version) = (
            package["name"].as_str().unwrap(),
            package["version"].as_str().unwrap(),
        );
        if !wanted.contains(&(name.to_owned(), version.to_owned())) {
            continue;
        }
        let licence = package["license"]
            .as_str()
            .unwrap_or_else(|| panic!("{name} {version} names no licence"));
        // "A OR B" needs one, "A AND B" all; `/` is an old way to write OR.
        let fine = licence.replace('/', " OR ").split(" OR ").any(|choice| {
            choice
                .trim_matches(['(', ')', ' '])
                .split(" AND ")
                .all(|l| allowed.contains(l.trim_matches(['(', ')', ' '])))
        });
        assert!(fine, "{name} {version}: {licence} is not allowed");
    }
}

#[test]
fn there_is_one_tls_provider_and_no_new_duplicate() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, version) in normal_dependencies() {
        versions.entry(name).or_default().insert(version);
    }
    for banned in ["ring", "openssl", "native-tls"] {
        assert!(
            !versions.contains_key(banned),
            "{banned} came into the tree"
        );
    }
    // Each of these is two versions apart inside kube's or Google's own trees; a new one wants a
    // reason here.
    let known = [
        "base64",
        // The regular expressions of jsonschema and the parser behind CEL; in the plugin only.
        "bit-set",
        "bit-vec",
        "getrandom",
        "hashbrown",
        "linux-raw-sys",
        "rand",
        "rand_core",
        "rustix",
        "syn",
        "thiserror",
        "thiserror-impl",
        "tower-http",
    ];
    let new: Vec<_> = versions
        .iter()
        .filter(|(n, v)| v.len() > 1 && !known.contains(&n.as_str()))
        .collect();
    assert!(new.is_empty(), "packages in two versions: {new:?}");
}
