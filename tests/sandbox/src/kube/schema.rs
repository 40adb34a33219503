//! Structural schemas of custom resources: defaulting, pruning, validation and CEL rules.
//!
//! Source:
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/>.
//! Not here: the estimate of a rule's cost; only a real API server refuses a definition for that.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use cel::{Context, Env, Program, extensions};
use serde_json::{Map, Value, json};

use super::status::Cause;

/// How a list or a map is merged by server-side apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map(Vec<String>),
}

/// CEL as the API server has it for rules, as far as it is used: with the library of strings
/// (<https://kubernetes.io/docs/reference/using-api/cel/>).
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // Nothing is declared twice.
    let _ = env.add_extension(extensions::strings);
    Arc::new(env)
});

#[derive(Debug)]
struct Rule {
    source: String,
    message: Option<String>,
    /// Gives the message, where it can be evaluated.
    message_expression: Option<Program>,
    reason: Option<String>,
    field_path: Option<String>,
    program: Program,
    transition: bool,
}

impl Rule {
    /// The message of a rule that failed: what its expression gives, if that is one line of text.
    fn explain(&self, context: &Context<'_, '_>) -> String {
        let given = self.message_expression.as_ref();
        let given = given.and_then(|e| match e.execute(context) {
            Ok(cel::Value::String(text)) if !text.trim().is_empty() && !text.contains('\n') => {
                Some((*text).clone())
            }
            _ => None,
        });
        given
            .or_else(|| self.message.clone())
            .unwrap_or_else(|| format!("failed rule: {}", self.source))
    }
}

/// A compiled schema node.
#[derive(Debug, Default)]
pub struct Schema {
    type_: String,
    pub description: String,
    pub properties: BTreeMap<String, Arc<Schema>>,
    additional: Option<Arc<Schema>>,
    pub items: Option<Arc<Schema>>,
    required: Vec<String>,
    enumeration: Option<Vec<Value>>,
    pattern: Option<(String, regex::Regex)>,
    default: Option<Value>,
    nullable: bool,
    preserve: bool,
    int_or_string: bool,
    pub atomic_map: bool,
    pub list_type: Option<ListType>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    format: String,
    rules: Vec<Rule>,
    any_of: Vec<Vec<String>>,
    /// As it was defined, for OpenAPI.
    pub source: Value,
}

impl Schema {
    /// Compiles a definition.
    ///
    /// # Errors
    /// Every fault with its path below the schema.
    pub fn compile(source: &Value) -> Result<Self, Vec<(String, String)>> {
        let mut errors = Vec::new();
        let schema = Self::node(source, "", &mut errors);
        if errors.is_empty() {
            Ok(schema)
        } else {
            Err(errors)
        }
    }

    fn node(s: &Value, path: &str, errors: &mut Vec<(String, String)>) -> Self {
        let text = |k: &str| s[k].as_str().unwrap_or_default().to_owned();
        let flag = |k: &str| s[k] == true;
        let mut node = Self {
            type_: text("type"),
            description: text("description"),
            required: s["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect(),
            enumeration: s["enum"].as_array().cloned(),
            default: s.get("default").cloned(),
            nullable: flag("nullable"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            atomic_map: s["x-kubernetes-map-type"] == "atomic",
            min_length: s["minLength"].as_u64(),
            max_length: s["maxLength"].as_u64(),
            min_items: s["minItems"].as_u64(),
            max_items: s["maxItems"].as_u64(),
            minimum: s["minimum"].as_f64(),
            maximum: s["maximum"].as_f64(),
            format: text("format"),
            any_of: s["anyOf"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|a| {
                    a["required"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|v| v.as_str().map(str::to_owned))
                        .collect()
                })
                .filter(|r: &Vec<String>| !r.is_empty())
                .collect(),
            source: s.clone(),
            ..Self::default()
        };
        if node.type_.is_empty() && !node.int_or_string && !node.preserve {
            errors.push((
                format!("{path}.type"),
                "Required value: must not be empty for specified object fields".into(),
            ));
        }
        if let Some(pattern) = s["pattern"].as_str() {
            match regex::Regex::new(pattern) {
                Ok(r) => node.pattern = Some((pattern.to_owned(), r)),
                Err(e) => errors.push((
                    format!("{path}.pattern"),
                    format!("Invalid value: \"{pattern}\": {e}"),
                )),
            }
        }
        for (name, child) in s["properties"].as_object().into_iter().flatten() {
            let at = format!("{path}.properties[{name}]");
            node.properties
                .insert(name.clone(), Arc::new(Self::node(child, &at, errors)));
        }
        match &s["additionalProperties"] {
            Value::Object(_) => {
                let at = format!("{path}.additionalProperties");
                node.additional = Some(Arc::new(Self::node(
                    &s["additionalProperties"],
                    &at,
                    errors,
                )));
            }
            Value::Bool(true) => node.preserve = true,
            _ => {}
        }
        if s["items"].is_object() {
            node.items = Some(Arc::new(Self::node(
                &s["items"],
                &format!("{path}.items"),
                errors,
            )));
        }
        node.list_type =
            (node.type_ == "array").then(|| match s["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map(
                    s["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|v| v.as_str().map(str::to_owned))
                        .collect(),
                ),
                _ => ListType::Atomic,
            });
        if node.list_type == Some(ListType::Set)
            && node
                .items
                .as_ref()
                .is_some_and(|i| i.type_ == "object" && !i.atomic_map)
        {
            errors.push((
                format!("{path}.items"),
                "Forbidden: items of a set must be scalars or atomic".into(),
            ));
        }
        for (i, rule) in s["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let source = rule["rule"].as_str().unwrap_or_default().to_owned();
            let expression = rule["messageExpression"]
                .as_str()
                .map(|e| ENVIRONMENT.compile(e));
            if let Some(Err(e)) = &expression {
                errors.push((
                    format!("{path}.x-kubernetes-validations[{i}].messageExpression"),
                    format!("Invalid value: {rule}: compilation failed: {e}"),
                ));
            }
            match ENVIRONMENT.compile(&source) {
                Ok(program) => {
                    let transition = program.references().has_variable("oldSelf");
                    node.rules.push(Rule {
                        message: rule["message"].as_str().map(str::to_owned),
                        message_expression: expression.and_then(Result::ok),
                        reason: rule["reason"].as_str().map(str::to_owned),
                        field_path: rule["fieldPath"].as_str().map(str::to_owned),
                        source,
                        program,
                        transition,
                    });
                }
                Err(e) => errors.push((
                    format!("{path}.x-kubernetes-validations[{i}].rule"),
                    format!("Invalid value: \"{source}\": compilation failed: {e}"),
                )),
            }
        }
        node
    }

    /// Fills in defaults.
    pub fn default_into(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, child) in &self.properties {
                    if let Some(default) = &child.default {
                        let absent = map.get(name).is_none_or(|v| v.is_null() && !child.nullable);
                        if absent {
                            map.insert(name.clone(), default.clone());
                        }
                    }
                    if let Some(v) = map.get_mut(name) {
                        child.default_into(v);
                    }
                }
                if let Some(additional) = &self.additional {
                    map.values_mut().for_each(|v| additional.default_into(v));
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut().for_each(|v| items.default_into(v));
                }
            }
            _ => {}
        }
    }

    /// Removes what the schema does not know, and nulls where null is not allowed. Returns the
    /// unknown paths.
    pub fn prune(&self, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                let known = |k: &str| {
                    self.properties.contains_key(k) || self.additional.is_some() || self.preserve
                };
                let strange: Vec<String> = map.keys().filter(|k| !known(k)).cloned().collect();
                for key in strange {
                    unknown.push(join(path, &key));
                    map.remove(&key);
                }
                map.retain(|k, v| {
                    !v.is_null() || self.properties.get(k).is_none_or(|c| c.nullable)
                });
                for (key, v) in map.iter_mut() {
                    if let Some(child) = self.properties.get(key).or(self.additional.as_ref()) {
                        child.prune(v, &join(path, key), unknown);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (i, v) in list.iter_mut().enumerate() {
                        items.prune(v, &format!("{path}[{i}]"), unknown);
                    }
                }
            }
            _ => {}
        }
    }

    /// Checks a value by schema; CEL rules only run if that finds nothing.
    pub fn validate(&self, value: &Value, old: Option<&Value>, path: &str) -> Vec<Cause> {
        let mut causes = Vec::new();
        self.check(value, path, &mut causes);
        if causes.is_empty() {
            self.run_rules(value, old, path, &mut causes);
        }
        causes
    }

    fn check(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        let mut wrong = |reason: &'static str, message: String| {
            causes.push(Cause {
                reason,
                field: path.trim_start_matches('.').to_owned(),
                message,
            });
        };
        if value.is_null() {
            if !self.nullable {
                wrong(
                    "FieldValueInvalid",
                    format!(
                        "Invalid value: \"null\": {} in body must be of type {}: \"null\"",
                        path.trim_start_matches('.'),
                        self.type_
                    ),
                );
            }
            return;
        }
        let type_fits = match (self.type_.as_str(), value) {
            ("", _) => true,
            ("object", Value::Object(_))
            | ("array", Value::Array(_))
            | ("string", Value::String(_))
            | ("boolean", Value::Bool(_)) => true,
            ("integer", Value::Number(n)) => n.is_i64() || n.is_u64(),
            ("number", Value::Number(_)) => true,
            _ => false,
        };
        if self.int_or_string && !(value.is_string() || value.is_i64()) || !type_fits {
            let found = match value {
                Value::Object(_) => "object",
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "boolean",
                Value::Number(n) if n.is_f64() => "number",
                _ => "integer",
            };
            wrong(
                "FieldValueTypeInvalid",
                format!(
                    "Invalid value: \"{found}\": {} in body must be of type {}: \"{found}\"",
                    path.trim_start_matches('.'),
                    self.type_
                ),
            );
            return;
        }
        if let Some(allowed) = self.enumeration.as_ref().filter(|e| !e.contains(value)) {
            let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
            wrong(
                "FieldValueNotSupported",
                format!(
                    "Unsupported value: {value}: supported values: {}",
                    list.join(", ")
                ),
            );
        }
        let name = path.trim_start_matches('.').to_owned();
        match value {
            Value::String(s) => {
                let n = s.chars().count() as u64;
                if let Some(min) = self.min_length.filter(|m| n < *m) {
                    wrong(
                        "FieldValueInvalid",
                        format!(
                            "Invalid value: \"{s}\": {name} in body should be at least {min} chars long"
                        ),
                    );
                }
                if let Some(max) = self.max_length.filter(|m| n > *m) {
                    wrong(
                        "FieldValueTooLong",
                        format!("Too long: may not be more than {max} bytes"),
                    );
                }
                if let Some((pattern, _)) = self.pattern.as_ref().filter(|(_, r)| !r.is_match(s)) {
                    wrong(
                        "FieldValueInvalid",
                        format!("Invalid value: \"{s}\": {name} in body should match '{pattern}'"),
                    );
                }
                if self.format == "date-time" && s.parse::<jiff::Timestamp>().is_err() {
                    wrong(
                        "FieldValueInvalid",
                        format!(
                            "Invalid value: \"{s}\": {name} in body must be of type date-time: \"{s}\""
                        ),
                    );
                }
            }
            Value::Number(n) => {
                let n = n.as_f64().unwrap_or_default();
                if let Some(min) = self.minimum.filter(|m| n < *m) {
                    wrong(
                        "FieldValueInvalid",
                        format!(
                            "Invalid value: {n}: {name} in body should be greater than or equal to {min}"
                        ),
                    );
                }
                if let Some(max) = self.maximum.filter(|m| n > *m) {
                    wrong(
                        "FieldValueInvalid",
                        format!(
                            "Invalid value: {n}: {name} in body should be less than or equal to {max}"
                        ),
                    );
                }
            }
            Value::Array(list) => {
                let n = list.len() as u64;
                if let Some(min) = self.min_items.filter(|m| n < *m) {
                    wrong(
                        "FieldValueInvalid",
                        format!(
                            "Invalid value: {n}: {name} in body should have at least {min} items"
                        ),
                    );
                }
                if let Some(max) = self.max_items.filter(|m| n > *m) {
                    wrong(
                        "FieldValueTooMany",
                        format!("Too many: {n}: must have at most {max} items"),
                    );
                }
                let key_of = |v: &Value| match &self.list_type {
                    Some(ListType::Set) => Some(v.clone()),
                    Some(ListType::Map(keys)) => {
                        Some(Value::Array(keys.iter().map(|k| v[k].clone()).collect()))
                    }
                    _ => None,
                };
                let mut seen = Vec::new();
                for (i, v) in list.iter().enumerate() {
                    if let Some(key) = key_of(v) {
                        if seen.contains(&key) {
                            causes.push(Cause {
                                reason: "FieldValueDuplicate",
                                field: format!("{name}[{i}]"),
                                message: format!("Duplicate value: {v}"),
                            });
                        }
                        seen.push(key);
                    }
                    if let Some(items) = &self.items {
                        items.check(v, &format!("{path}[{i}]"), causes);
                    }
                }
            }
            Value::Object(map) => {
                for field in self.required.iter().filter(|f| !map.contains_key(*f)) {
                    causes.push(Cause {
                        reason: "FieldValueRequired",
                        field: join(&name, field),
                        message: "Required value".into(),
                    });
                }
                if !self.any_of.is_empty()
                    && !self
                        .any_of
                        .iter()
                        .any(|r| r.iter().all(|f| map.contains_key(f)))
                {
                    causes.push(Cause {
                        reason: "FieldValueInvalid",
                        field: name.clone(),
                        message: "Invalid value: must validate one or more of anyOf".into(),
                    });
                }
                for (key, v) in map {
                    if let Some(child) = self.properties.get(key).or(self.additional.as_ref()) {
                        child.check(v, &join(path, key), causes);
                    }
                }
            }
            _ => {}
        }
    }

    fn run_rules(&self, value: &Value, old: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
        if value.is_null() {
            return;
        }
        for rule in &self.rules {
            if rule.transition && old.is_none() {
                continue;
            }
            let mut context = Context::with_env(ENVIRONMENT.clone());
            context.add_variable_from_value("self", to_cel(value));
            if let Some(old) = old {
                context.add_variable_from_value("oldSelf", to_cel(old));
            }
            let verdict = rule.program.execute(&context);
            let message = match verdict {
                Ok(cel::Value::Bool(true)) => continue,
                Ok(_) => rule.explain(&context),
                Err(e) => format!("rule evaluation error: {e} ({})", rule.source),
            };
            let shown = match value {
                Value::String(s) => format!("\"{s}\""),
                Value::Object(_) => "\"object\"".into(),
                Value::Array(_) => "\"array\"".into(),
                other => other.to_string(),
            };
            let reason = match rule.reason.as_deref() {
                Some("FieldValueForbidden") => "FieldValueForbidden",
                Some("FieldValueRequired") => "FieldValueRequired",
                Some("FieldValueDuplicate") => "FieldValueDuplicate",
                _ => "FieldValueInvalid",
            };
            let field = format!("{path}{}", rule.field_path.as_deref().unwrap_or_default());
            causes.push(Cause {
                reason,
                field: field.trim_start_matches('.').to_owned(),
                message: format!("Invalid value: {shown}: {message}"),
            });
        }
        match value {
            Value::Object(map) => {
                for (key, v) in map {
                    if let Some(child) = self.properties.get(key).or(self.additional.as_ref()) {
                        child.run_rules(v, old.and_then(|o| o.get(key)), &join(path, key), causes);
                    }
                }
            }
            Value::Array(list) => {
                let Some(items) = &self.items else { return };
                for (i, v) in list.iter().enumerate() {
                    // Only items of a map-list have a counterpart in the old object.
                    let before = match (&self.list_type, old) {
                        (Some(ListType::Map(keys)), Some(Value::Array(olds))) => {
                            olds.iter().find(|o| keys.iter().all(|k| o[k] == v[k]))
                        }
                        _ => None,
                    };
                    items.run_rules(v, before, &format!("{path}[{i}]"), causes);
                }
            }
            _ => {}
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// JSON to CEL. Whole numbers are `int`, as a Kubernetes schema says, not `uint`.
pub fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(*b),
        Value::Number(n) => match n.as_i64() {
            Some(i) => cel::Value::Int(i),
            None => cel::Value::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(s) => cel::Value::String(Arc::new(s.clone())),
        Value::Array(list) => cel::Value::List(Arc::new(list.iter().map(to_cel).collect())),
        Value::Object(map) => {
            let converted: std::collections::HashMap<String, cel::Value> =
                map.iter().map(|(k, v)| (k.clone(), to_cel(v))).collect();
            cel::Value::Map(converted.into())
        }
    }
}

/// The metadata part that CEL rules at the root may see.
pub fn root_for_rules(object: &Value) -> Value {
    let mut view = object.clone();
    if let Some(map) = view.as_object_mut() {
        let meta = map.get("metadata").cloned().unwrap_or_default();
        let mut short = Map::new();
        for key in ["name", "generateName"] {
            if let Some(v) = meta.get(key) {
                short.insert(key.into(), v.clone());
            }
        }
        map.insert("metadata".into(), json!(short));
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(v: Value) -> Schema {
        Schema::compile(&v).unwrap()
    }

    #[test]
    fn defaults_fill_what_is_absent_and_pruning_names_what_is_unknown() {
        let s = schema(
            json!({"type": "object", "properties": {"a": {"type": "string", "default": "x"},
            "n": {"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 3}}}}}),
        );
        let mut v = json!({"zzz": 1, "n": {"q": 1}});
        let mut unknown = vec![];
        s.prune(&mut v, "", &mut unknown);
        s.default_into(&mut v);
        assert_eq!(v, json!({"a": "x", "n": {"b": 3}}));
        assert_eq!(unknown, ["zzz", "n.q"]);
    }

    #[test]
    fn rules_run_with_the_old_value_and_name_the_field() {
        let s = schema(
            json!({"type": "object", "properties": {"p": {"type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "cannot change"}]}}}),
        );
        assert!(s.validate(&json!({"p": "a"}), None, "").is_empty());
        let causes = s.validate(&json!({"p": "b"}), Some(&json!({"p": "a"})), "");
        assert_eq!(
            (causes[0].field.as_str(), causes[0].message.as_str()),
            ("p", "Invalid value: \"b\": cannot change")
        );
    }

    #[test]
    fn sets_refuse_duplicates() {
        let s = schema(
            json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}),
        );
        assert_eq!(
            s.validate(&json!({"l": ["a", "a"]}), None, "")[0].reason,
            "FieldValueDuplicate"
        );
    }

    #[test]
    fn duration_and_regular_expressions_work_in_rules() {
        let s = schema(
            json!({"type": "object", "properties": {"i": {"type": "string", "x-kubernetes-validations": [
            {"rule": "self.matches('^[0-9]+s$')", "message": "m"}, {"rule": "duration(self) >= duration('10s')", "message": "d"}]}}}),
        );
        assert!(s.validate(&json!({"i": "12s"}), None, "").is_empty());
        assert_eq!(s.validate(&json!({"i": "5s"}), None, "").len(), 1);
    }
}
