//! An object of a file, checked as the API server checks it: unknown fields, schema, CEL rules.

use std::sync::LazyLock;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use kube::core::cel::Validator;
use serde_json::{Value, json};

use crate::api;

/// A kind as the API server checks it, made ready once: compiling a schema takes longer than
/// checking hundreds of objects.
struct Checked {
    kind: String,
    api_version: String,
    schema: Value,
    validator: Result<jsonschema::Validator, String>,
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
                validator: jsonschema::draft202012::new(&plain(&schema)).map_err(|e| e.to_string()),
                schema,
            }
        })
        .collect()
});

/// What the API server would refuse about an object, in its words where they are ours. Every fault
/// is named: what is unknown hides nothing else.
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
    prune(&checked.schema, &mut full, "", &mut found);
    let mut faults = Vec::new();
    match &checked.validator {
        Ok(validator) => faults.extend(validator.iter_errors(&full).map(|e| {
            let path = dotted(&e.instance_path().to_string());
            words(&path, &e)
        })),
        Err(e) => faults.push(format!("the schema cannot be used: {e}")),
    }
    if faults.is_empty()
        && let Err(errors) = Validator::new().validate(&checked.schema, &full, None)
    {
        faults.extend(errors.iter().map(ToString::to_string));
    }
    found.extend(faults);
    found
}

/// Takes out what the schema does not know, and says so as the API server does.
fn prune(schema: &Value, value: &mut Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let Some(properties) = schema["properties"].as_object() else {
                return;
            };
            let is_root = path.is_empty();
            let is_known = |name: &String| {
                let of_every_object = ["apiVersion", "kind", "metadata"];
                properties.contains_key(name)
                    || (is_root && of_every_object.contains(&name.as_str()))
            };
            let at = |name: &String| {
                if is_root {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                }
            };
            let unknown: Vec<String> = map.keys().filter(|n| !is_known(n)).cloned().collect();
            for name in unknown {
                found.push(format!("unknown field \"{}\"", at(&name)));
                map.remove(&name);
            }
            for (name, child) in map.iter_mut() {
                if let Some(schema) = properties.get(name) {
                    prune(schema, child, &at(name), found);
                }
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter_mut().enumerate() {
                prune(&schema["items"], item, &format!("{path}[{n}]"), found);
            }
        }
        _ => {}
    }
}

/// What is wrong, in the API server's words where people know them.
fn words(path: &str, error: &jsonschema::ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().into_iter().flatten();
            let options: Vec<String> = options.map(Value::to_string).collect();
            format!(
                "{path}: Unsupported value: {}: supported values: {}",
                error.instance(),
                options.join(", ")
            )
        }
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let place = match path {
                ROOT => name.to_owned(),
                path => format!("{path}.{name}"),
            };
            format!("{place}: Required value")
        }
        ValidationErrorKind::Type {
            kind: TypeKind::Single(wanted),
        } => format!(
            "{path}: Invalid value: {}: must be of type {wanted}",
            error.instance()
        ),
        _ => format!("{path}: {error}"),
    }
}

/// What the place of the object itself is called.
const ROOT: &str = "the object";

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
    if path.is_empty() { ROOT.into() } else { path }
}

/// The schema as JSON Schema has it.
fn plain(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        map.retain(|k, _| !k.starts_with("x-kubernetes"));
        // OpenAPI's formats and nullable are not those of JSON Schema.
        map.remove("format");
        map.remove("nullable");
        if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
            for (_, property) in properties.iter_mut() {
                *property = plain(property);
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = map.get(key).filter(|v| v.is_object()).cloned() {
                map.insert(key.into(), plain(&inner));
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
