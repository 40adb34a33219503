//! Label and field selectors of list and watch requests.

use serde_json::Value;

use super::{status::Refusal, table::lookup};

/// A parsed `labelSelector` and `fieldSelector`.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// Parses both selectors.
    ///
    /// # Errors
    /// 400 for what is no selector.
    pub fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, Refusal> {
        let mut selector = Self::default();
        for part in split_outside_parentheses(labels.unwrap_or_default()) {
            selector.labels.push(requirement(&part).ok_or_else(|| {
                Refusal::bad_request(format!(
                    "unable to parse requirement: found '{part}' in labelSelector"
                ))
            })?);
        }
        for part in fields
            .unwrap_or_default()
            .split(',')
            .filter(|p| !p.is_empty())
        {
            let (path, equal, value) = if let Some((p, v)) = part.split_once("!=") {
                (p, false, v)
            } else if let Some((p, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (p, true, v)
            } else {
                return Err(Refusal::bad_request(format!(
                    "invalid field selector: {part}"
                )));
            };
            selector
                .fields
                .push((path.to_owned(), equal, value.to_owned()));
        }
        Ok(selector)
    }

    /// The paths of the field selector, so that a server can refuse those it does not index.
    pub fn field_paths(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|f| f.0.as_str())
    }

    pub fn matches(&self, object: &Value) -> bool {
        let label = |k: &str| object["metadata"]["labels"][k].as_str();
        self.labels.iter().all(|r| match r {
            Requirement::In(k, vs) => label(k).is_some_and(|v| vs.iter().any(|x| x == v)),
            Requirement::NotIn(k, vs) => label(k).is_none_or(|v| vs.iter().all(|x| x != v)),
            Requirement::Exists(k) => label(k).is_some(),
            Requirement::Absent(k) => label(k).is_none(),
        }) && self.fields.iter().all(|(path, equal, value)| {
            let found = lookup(object, &format!(".{path}"))
                .first()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .unwrap_or_default();
            (found == *value) == *equal
        })
    }
}

fn split_outside_parentheses(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut current) = (Vec::new(), 0, String::new());
    for c in text.chars() {
        match c {
            ',' if depth == 0 => parts.push(std::mem::take(&mut current)),
            _ => {
                depth += i32::from(c == '(') - i32::from(c == ')');
                current.push(c);
            }
        }
    }
    parts.push(current);
    parts
        .into_iter()
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.is_empty())
        .collect()
}

fn requirement(text: &str) -> Option<Requirement> {
    let list = |s: &str| -> Option<Vec<String>> {
        Some(
            s.trim()
                .strip_prefix('(')?
                .strip_suffix(')')?
                .split(',')
                .map(|v| v.trim().to_owned())
                .collect(),
        )
    };
    if let Some((k, v)) = text.split_once(" notin ") {
        return Some(Requirement::NotIn(k.trim().into(), list(v)?));
    }
    if let Some((k, v)) = text.split_once(" in ") {
        return Some(Requirement::In(k.trim().into(), list(v)?));
    }
    if let Some((k, v)) = text.split_once("!=") {
        return Some(Requirement::NotIn(k.trim().into(), vec![v.trim().into()]));
    }
    if let Some((k, v)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Some(Requirement::In(k.trim().into(), vec![v.trim().into()]));
    }
    if let Some(k) = text.strip_prefix('!') {
        return Some(Requirement::Absent(k.trim().into()));
    }
    (!text.contains(char::is_whitespace)).then(|| Requirement::Exists(text.into()))
}
