//! Policies, guardrails and approvals from files, checked as the API server checks them: schema, unknown
//! fields, CEL rules.

use std::{
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use anyhow::Context as _;
use jsonschema::error::ValidationErrorKind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::cel::Validator;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{self, InvokerApproval, InvokerGuardrail, InvokerPolicy};

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
            read(&mut loaded, "standard input", &text, namespace);
            continue;
        }
        let (files, others) = files_of(path)?;
        let ignored = others.iter().map(|f| f.display().to_string());
        loaded.ignored.extend(ignored);
        for file in files {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("{} cannot be read", file.display()))?;
            read(&mut loaded, &file.display().to_string(), &text, namespace);
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

fn read(loaded: &mut Loaded, file: &str, text: &str, namespace: &str) {
    for (line, document) in documents(text) {
        let place = if line == 1 {
            file.to_owned()
        } else {
            format!("{file}, from line {line}")
        };
        let value: Value = match serde_saphyr::from_str(&document) {
            Ok(value) => value,
            Err(e) => {
                let message = format!(
                    "invalid YAML: {}",
                    e.to_string()
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .trim_start_matches("error: ")
                );
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
            take(loaded, &place, item, namespace);
        }
    }
}

fn take(loaded: &mut Loaded, place: &str, mut value: Value, namespace: &str) {
    let group = value["apiVersion"].as_str().unwrap_or_default().to_owned();
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    if !group.starts_with("run-invoker.dev/") {
        let problem = (kind.is_empty() || group.is_empty())
            .then_some("not a Kubernetes object: apiVersion or kind is missing");
        match problem {
            Some(message) => loaded.problems.push(Problem {
                place: place.into(),
                object: String::new(),
                message: message.into(),
            }),
            None => loaded.ignored.push(format!("{place}: {kind}")),
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
        value["metadata"]["namespace"] = json!(namespace);
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

/// A kind as the API server checks it, made ready once: compiling a schema takes longer than
/// checking hundreds of objects.
struct Checked {
    kind: String,
    api_version: String,
    schema: Value,
    strict: Result<jsonschema::Validator, String>,
}

static KINDS: LazyLock<Vec<Checked>> = LazyLock::new(|| {
    api::definitions()
        .iter()
        .map(|crd| {
            let version = &crd.spec.versions[0];
            let schema = version
                .schema
                .as_ref()
                .and_then(|s| s.open_api_v3_schema.as_ref());
            let schema = schema
                .and_then(|s| serde_json::to_value(s).ok())
                .unwrap_or_default();
            Checked {
                kind: crd.spec.names.kind.clone(),
                api_version: format!("{}/{}", crd.spec.group, version.name),
                strict: jsonschema::draft202012::new(&strict(&schema, true))
                    .map_err(|e| e.to_string()),
                schema,
            }
        })
        .collect()
});

/// What the API server would refuse about an object, in its words where they are ours.
pub fn check(kind: &str, object: &Value) -> Vec<String> {
    let Some(checked) = KINDS.iter().find(|c| c.kind == kind) else {
        return vec![format!("there is no kind {kind} in run-invoker.dev")];
    };
    if object["apiVersion"] != json!(checked.api_version) {
        return vec![format!("apiVersion must be {}", checked.api_version)];
    }
    // Defaults come before rules, as in the API server.
    let mut full = object.clone();
    default(&checked.schema, &mut full);
    // The server says what is in status.
    if let Some(map) = full.as_object_mut() {
        map.remove("status");
    }
    let mut found = Vec::new();
    match &checked.strict {
        Ok(validator) => found.extend(validator.iter_errors(&full).map(|e| {
            let path = e.instance_path().to_string();
            format!("{}: {}", dotted(&path), words(&e))
        })),
        Err(e) => found.push(format!("the schema cannot be used: {e}")),
    }
    if found.is_empty()
        && let Err(errors) = Validator::new().validate(&checked.schema, &full, None)
    {
        found.extend(errors.iter().map(ToString::to_string));
    }
    found
}

/// What is wrong, in the API server's words where people know them.
fn words(error: &jsonschema::ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().into_iter().flatten();
            let options: Vec<String> = options.map(Value::to_string).collect();
            format!(
                "Unsupported value: {}: supported values: {}",
                error.instance(),
                options.join(", ")
            )
        }
        _ => error.to_string(),
    }
}

/// `/spec/invokers/0/member` as kubectl writes it.
fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').filter(|p| !p.is_empty()) {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            path.push_str(&format!("[{part}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(part);
        }
    }
    if path.is_empty() {
        "the object".into()
    } else {
        path
    }
}

/// A schema in which fields that nobody knows are refused, as kubectl asks the API server to.
fn strict(schema: &Value, root: bool) -> Value {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        map.retain(|k, _| !k.starts_with("x-kubernetes"));
        // OpenAPI's formats and nullable are not those of JSON Schema.
        map.remove("format");
        map.remove("nullable");
        if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
            for (_, property) in properties.iter_mut() {
                *property = strict(property, false);
            }
            if root {
                for known in ["apiVersion", "kind", "metadata"] {
                    properties.entry(known).or_insert(json!({}));
                }
            }
            map.insert("additionalProperties".into(), json!(false));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = map.get(key).filter(|v| v.is_object()).cloned() {
                map.insert(key.into(), strict(&inner, false));
            }
        }
    }
    schema
}

/// Puts defaults in where a field is absent.
fn default(schema: &Value, value: &mut Value) {
    if let (Some(properties), Some(map)) = (schema["properties"].as_object(), value.as_object_mut())
    {
        for (name, property) in properties {
            if !map.contains_key(name) && !property["default"].is_null() {
                map.insert(name.clone(), property["default"].clone());
            }
            if let Some(child) = map.get_mut(name) {
                default(property, child);
            }
        }
    }
    if let Some(list) = value.as_array_mut() {
        list.iter_mut()
            .for_each(|item| default(&schema["items"], item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Loaded {
        let mut loaded = Loaded::default();
        read(&mut loaded, "x.yaml", text, "shop");
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
