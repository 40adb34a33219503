//! Policies, guardrails and approvals from files, checked as the API server checks them: schema, unknown
//! fields, CEL rules.

mod check;

use std::{
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use check::check;

use crate::api::{InvokerApproval, InvokerGuardrail, InvokerPolicy};

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File, and which document of it.
    pub place: String,
    /// Kind and name, where they can be read.
    pub object: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = if self.object.is_empty() {
            String::new()
        } else {
            format!("{}: ", self.object)
        };
        write!(f, "{}: {object}{}", self.place, self.message)
    }
}

/// What was found in files.
#[derive(Debug, Default)]
pub struct Loaded {
    pub policies: Vec<InvokerPolicy>,
    pub guardrails: Vec<InvokerGuardrail>,
    pub approvals: Vec<InvokerApproval>,
    pub problems: Vec<Problem>,
    /// Namespace of objects that name none.
    pub namespace: String,
    /// What was not taken into account: files that are no YAML or JSON, objects of other kinds.
    pub ignored: Vec<String>,
}

impl Loaded {
    /// Whether there is nothing to plan in it, and nothing wrong.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
            && self.guardrails.is_empty()
            && self.approvals.is_empty()
            && self.problems.is_empty()
    }
}

/// Reads files, folders (every `.yaml`, `.yml` and `.json` in them, in order) and `-` for the
/// standard input.
///
/// # Errors
/// When a path cannot be read. What is wrong inside of a file is a [`Problem`].
pub fn load(paths: &[PathBuf], namespace: &str) -> anyhow::Result<Loaded> {
    let mut loaded = Loaded {
        namespace: namespace.to_owned(),
        ..Loaded::default()
    };
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            read(&mut loaded, "standard input", &text, Given::Itself);
            continue;
        }
        let given = if path.is_dir() {
            Given::InFolder
        } else {
            Given::Itself
        };
        let (files, others) = files_of(path)?;
        let ignored = others.iter().map(|f| f.display().to_string());
        loaded.ignored.extend(ignored);
        for file in files {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("{} cannot be read", file.display()))?;
            read(&mut loaded, &file.display().to_string(), &text, given);
        }
    }
    Ok(loaded)
}

/// The files of a folder that are read, in order, and those that are not.
fn files_of(path: &Path) -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let about = || format!("{} cannot be read", path.display());
    if !fs::metadata(path).with_context(about)?.is_dir() {
        return Ok((vec![path.to_owned()], Vec::new()));
    }
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(path).with_context(about)? {
        let entry = entry.with_context(about)?.path();
        if entry.is_dir() {
            let (inner, ignored) = files_of(&entry)?;
            found.extend(inner);
            others.extend(ignored);
            continue;
        }
        let is_read = entry
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if is_read { &mut found } else { &mut others }.push(entry);
    }
    found.sort();
    others.sort();
    Ok((found, others))
}

/// The documents of a YAML stream. A separator is a line of its own, so one in a text block is
/// none.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut found = vec![(1, String::new())];
    for (n, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            found.push((n + 2, String::new()));
        } else if let Some((_, document)) = found.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let empty = |d: &str| {
        d.lines()
            .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
    };
    found.into_iter().filter(|(_, d)| !empty(d)).collect()
}

/// How a file came to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// It was named: it is meant to hold objects.
    Itself,
    /// It is in a folder, where other programs have files of their own (values.yaml,
    /// kustomization.yaml).
    InFolder,
}

fn read(loaded: &mut Loaded, file: &str, text: &str, given: Given) {
    for (line, document) in documents(text) {
        let place = if line == 1 {
            file.to_owned()
        } else {
            format!("{file}, from line {line}")
        };
        let value: Value = match serde_saphyr::from_str(&document) {
            Ok(value) => value,
            Err(e) => {
                let words = e.render_with_formatter(&serde_saphyr::UserMessageFormatter);
                let first = words.lines().next().unwrap_or_default();
                let message = format!("invalid YAML: {}", first.trim_start_matches("error: "));
                loaded.problems.push(Problem {
                    place,
                    object: String::new(),
                    message,
                });
                continue;
            }
        };
        let items = if value["kind"].as_str().is_some_and(|k| k.ends_with("List"))
            && value["items"].is_array()
        {
            value["items"].as_array().cloned().unwrap_or_default()
        } else {
            vec![value]
        };
        for item in items {
            take(loaded, &place, item, given);
        }
    }
}

fn take(loaded: &mut Loaded, place: &str, mut value: Value, given: Given) {
    let group = value["apiVersion"].as_str().unwrap_or_default().to_owned();
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    if !group.starts_with("run-invoker.dev/") {
        let message = "not a Kubernetes object: apiVersion or kind is missing";
        match (kind.is_empty() || group.is_empty(), given) {
            (true, Given::Itself) => loaded.problems.push(Problem {
                place: place.into(),
                object: String::new(),
                message: message.into(),
            }),
            (true, Given::InFolder) => loaded.ignored.push(format!("{place}: {message}")),
            (false, _) => loaded.ignored.push(format!("{place}: {kind}")),
        }
        return;
    }
    let name = value["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let object = format!("{kind} {name}");
    let mut complain = |message: String| {
        loaded.problems.push(Problem {
            place: place.into(),
            object: object.clone(),
            message,
        });
    };
    if name.is_empty() {
        return complain("metadata.name is missing".into());
    }
    let namespaced = ["InvokerPolicy", "InvokerApproval", "InvokerAccessRequest"];
    if namespaced.contains(&kind.as_str()) && value["metadata"]["namespace"].is_null() {
        value["metadata"]["namespace"] = json!(loaded.namespace);
    }
    let found = check(&kind, &value);
    if !found.is_empty() {
        found.into_iter().for_each(complain);
        return;
    }
    match kind.as_str() {
        "InvokerPolicy" => match read_as::<InvokerPolicy>(value) {
            Ok(policy)
                if loaded
                    .policies
                    .iter()
                    .any(|p| is_same(&p.metadata, &policy.metadata)) =>
            {
                loaded.problems.push(twice(place, &object));
            }
            Ok(policy) => loaded.policies.push(policy),
            Err(e) => complain(e),
        },
        "InvokerGuardrail" => match read_as(value) {
            Ok(guardrail) => loaded.guardrails.push(guardrail),
            Err(e) => complain(e),
        },
        "InvokerApproval" => match read_as(value) {
            Ok(approval) => loaded.approvals.push(approval),
            Err(e) => complain(e),
        },
        // A request is for a time, and waits for somebody: no file decides what it comes to.
        "InvokerChange" | "InvokerLedger" | "InvokerAccessRequest" => {
            loaded.ignored.push(format!("{place}: {object}"))
        }
        _ => complain(format!("there is no kind {kind} in run-invoker.dev")),
    }
}

fn is_same(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    one.name == other.name && one.namespace == other.namespace
}

fn twice(place: &str, object: &str) -> Problem {
    Problem {
        place: place.into(),
        object: object.into(),
        message: "is in these files twice; keep one".into(),
    }
}

fn read_as<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Loaded {
        let mut loaded = Loaded {
            namespace: "shop".into(),
            ..Loaded::default()
        };
        read(&mut loaded, "x.yaml", text, Given::Itself);
        loaded
    }

    #[test]
    fn what_the_api_server_refuses_is_refused_here_with_its_place() {
        let head =
            "apiVersion: run-invoker.dev/v1alpha1\nkind: InvokerPolicy\nmetadata: {name: web}\n";
        let good = "spec: {project: acme-prod, services: [{name: web, region: europe-west1}], invokers: [{member: \"user:a@acme.com\"}]}\n";
        let loaded = load_text(&format!("{head}{good}"));
        assert_eq!(loaded.problems, []);
        assert_eq!(
            loaded.policies[0].metadata.namespace.as_deref(),
            Some("shop")
        );
        for (spec, words) in [
            (
                "spec: {project: acme-prod, services: [{name: web, region: r1}], invokers: []}",
                "invokers is empty",
            ),
            (
                "spec: {project: Acme, services: [{name: web, region: r1}], invokers: [{member: allUsers}]}",
                "spec.project",
            ),
            (
                "spec: {project: acme-prod, services: [{name: web}], invokers: [{member: allUsers}]}",
                "needs its region",
            ),
            (
                "spec: {project: acme-prod, services: [{name: web, region: europe-west1}], invokers: [{member: AllUsers}]}",
                "case counts; write allUsers",
            ),
            (
                "spec: {project: acme-prod, services: [], invokers: [{member: allUsers}]}",
                "spec.services",
            ),
            (
                "spec: {project: acme-prod, services: [{name: web, region: europe-west1}], invoker: []}",
                "invoker",
            ),
            (
                "spec: {project: acme-prod, mode: Force, services: [{name: web, region: europe-west1}], invokers: [{member: allUsers}]}",
                "spec.mode",
            ),
        ] {
            let loaded = load_text(&format!("{head}{spec}\n"));
            let text = loaded
                .problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n");
            assert!(
                text.contains(words) && text.starts_with("x.yaml: InvokerPolicy web: "),
                "{spec}: {text}"
            );
            assert!(loaded.policies.is_empty());
        }
    }

    #[test]
    fn every_fault_of_an_object_is_named() {
        let text = "apiVersion: run-invoker.dev/v1alpha1\nkind: InvokerPolicy\nmetadata: {name: web}\nspec: {project: Acme-prod, foo: 1, suspend: soon, services: [{name: web, region: europe-west1, zone: b}]}\n";
        let loaded = load_text(text);
        let found: Vec<&str> = loaded.problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(
            found,
            [
                "unknown field \"spec.foo\"",
                "unknown field \"spec.services[0].zone\"",
                "spec.invokers: Required value",
                "spec.suspend: Invalid value: \"soon\": must be of type boolean",
            ]
        );
        // And the rules behind what is unknown.
        let loaded = load_text(&text.replace("suspend: soon,", "invokers: [],"));
        let found: Vec<&str> = loaded.problems.iter().map(|p| p.message.as_str()).collect();
        assert!(
            found.len() > 3 && found[2..].iter().any(|f| f.contains("invokers is empty")),
            "{found:?}"
        );
        let loaded = load_text(": 1\n");
        let found: Vec<&str> = loaded.problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(found.len(), 1);
        assert!(!found[0].contains("Option<"), "{found:?}");
    }

    #[test]
    fn one_bad_document_does_not_take_the_others_with_it() {
        let loaded = load_text(
            "# a comment\n---\nkind: ConfigMap\napiVersion: v1\n---\n: [\n---\napiVersion: run-invoker.dev/v1alpha1\nkind: InvokerGuardrail\nmetadata: {name: g}\nspec: {projects: [acme-prod]}\n",
        );
        assert_eq!(
            (
                loaded.guardrails.len(),
                loaded.ignored.len(),
                loaded.problems.len()
            ),
            (1, 1, 1)
        );
        assert!(
            loaded.problems[0].place.contains("from line 6"),
            "{}",
            loaded.problems[0]
        );
    }
}
