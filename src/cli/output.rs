//! The forms of a list, as kubectl has them.

use std::{ffi::OsStr, marker::PhantomData};

use clap::builder::{PossibleValue, TypedValueParser};
use jsonpath_rust::JsonPath as _;
use serde::Serialize;
use serde_json::Value;

use crate::render::{Format, data};

/// `-o` where there is a list.
#[derive(Clone, Debug, PartialEq)]
pub enum ListOutput {
    Text,
    /// With more columns.
    Wide,
    /// Resource and name, line by line.
    Name,
    Json,
    Yaml,
    Markdown,
    JsonPath(Template),
}

/// The forms, for messages and help.
const FORMS: &str = "text, wide, name, json, yaml, markdown or jsonpath=TEMPLATE";

impl clap::builder::ValueParserFactory for ListOutput {
    type Parser = ListOutputParser;

    fn value_parser() -> Self::Parser {
        ListOutputParser
    }
}

/// Takes a template besides the forms that completion and help name.
#[derive(Clone, Debug)]
pub struct ListOutputParser;

impl TypedValueParser for ListOutputParser {
    type Value = ListOutput;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<ListOutput, clap::Error> {
        let parse: fn(&str) -> Result<ListOutput, String> = ListOutput::parse;
        parse.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let forms = [
            "text",
            "wide",
            "name",
            "json",
            "yaml",
            "markdown",
            "jsonpath=TEMPLATE",
        ];
        Some(Box::new(forms.into_iter().map(PossibleValue::new)))
    }
}

impl ListOutput {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(template) = text.strip_prefix("jsonpath=") {
            return Template::parse(template).map(Self::JsonPath);
        }
        Ok(match text {
            "text" => Self::Text,
            "wide" => Self::Wide,
            "name" => Self::Name,
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "markdown" => Self::Markdown,
            _ => return Err(format!("give one of {FORMS}")),
        })
    }

    /// The document in a form for programs; none: it is for people. `names` are resource and name
    /// of each object in the list.
    ///
    /// # Errors
    /// What is wrong with a template.
    pub fn for_programs<T: Serialize>(
        &self,
        document: &T,
        names: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<Option<String>> {
        Ok(Some(match self {
            Self::Json => data(document, Format::Json).map_err(anyhow::Error::msg)?,
            Self::Yaml => data(document, Format::Yaml).map_err(anyhow::Error::msg)?,
            Self::JsonPath(template) => template.over(document)?,
            Self::Name => names.into_iter().map(|n| n + "\n").collect(),
            Self::Text | Self::Wide | Self::Markdown => return Ok(None),
        }))
    }

    /// The form of tables.
    pub fn table_format(&self) -> Format {
        match self {
            Self::Markdown => Format::Markdown,
            _ => Format::Text,
        }
    }
}

/// A form of one answer, or a template over its JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Form<T> {
    Of(T),
    JsonPath(Template),
}

impl<T: clap::ValueEnum + Send + Sync + 'static> clap::builder::ValueParserFactory for Form<T> {
    type Parser = FormParser<T>;

    fn value_parser() -> FormParser<T> {
        FormParser(PhantomData)
    }
}

/// Takes a template besides the forms of `T`.
#[derive(Clone, Debug)]
pub struct FormParser<T>(PhantomData<T>);

impl<T: clap::ValueEnum + Send + Sync + 'static> TypedValueParser for FormParser<T> {
    type Value = Form<T>;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Form<T>, clap::Error> {
        let parse: fn(&str) -> Result<Form<T>, String> = |text| {
            if let Some(template) = text.strip_prefix("jsonpath=") {
                return Template::parse(template).map(Form::JsonPath);
            }
            let forms = T::value_variants().iter();
            let forms = forms.filter_map(T::to_possible_value);
            let forms: Vec<String> = forms.map(|f| f.get_name().to_owned()).collect();
            let unknown = |_| format!("give one of {} or jsonpath=TEMPLATE", forms.join(", "));
            T::from_str(text, false).map(Form::Of).map_err(unknown)
        };
        parse.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let forms = T::value_variants().iter();
        let forms = forms.filter_map(T::to_possible_value);
        let template = PossibleValue::new("jsonpath=TEMPLATE");
        Some(Box::new(forms.chain([template])))
    }
}

/// A template as `kubectl get -o jsonpath` takes it: text, `{.path}`, `{"text"}`, and
/// `{range .path}...{end}`. Paths are JSONPath (RFC 9535) behind an implied `$`.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Path(String),
    Range(String, Vec<Part>),
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        // Parts that are open: the template itself, and each range in it.
        let mut open: Vec<(String, Vec<Part>)> = vec![(String::new(), Vec::new())];
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = rest.split_once('{').unwrap_or((rest, ""));
            let last = open.last_mut().ok_or("{end} without {range}")?;
            if !literal.is_empty() {
                last.1.push(Part::Text(literal.to_owned()));
            }
            if literal.len() == rest.len() {
                break;
            }
            let end = end_of_braces(after).ok_or("a brace is not closed")?;
            let inner = after[..end].trim();
            rest = &after[end + 1..];
            if let Some(path) = inner.strip_prefix("range ") {
                open.push((query(path)?, Vec::new()));
            } else if inner == "end" {
                let (path, parts) = open.pop().ok_or("{end} without {range}")?;
                let outer = open.last_mut().ok_or("{end} without {range}")?;
                outer.1.push(Part::Range(path, parts));
            } else if inner.starts_with('"') {
                let text = serde_json::from_str(inner).map_err(|e| format!("{inner}: {e}"))?;
                last.1.push(Part::Text(text));
            } else {
                last.1.push(Part::Path(query(inner)?));
            }
        }
        match (open.pop(), open.is_empty()) {
            (Some((_, parts)), true) => Ok(Self(parts)),
            _ => Err("{range} without {end}".into()),
        }
    }

    /// The template over a document.
    ///
    /// # Errors
    /// When a path cannot be asked of it.
    pub fn over<T: Serialize>(&self, document: &T) -> anyhow::Result<String> {
        self.fill(&serde_json::to_value(document)?)
    }

    fn fill(&self, document: &Value) -> anyhow::Result<String> {
        filled(&self.0, document)
    }
}

/// Where a brace closes: not within a quoted text.
fn end_of_braces(text: &str) -> Option<usize> {
    let mut quoted = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quoted, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(quote), c) if c == quote => quoted = None,
            (None, '"' | '\'') => quoted = Some(c),
            (None, '}') => return Some(at),
            _ => {}
        }
    }
    None
}

/// A path as a query from the root.
fn query(path: &str) -> Result<String, String> {
    let path = path.trim();
    let query = match path.chars().next() {
        Some('$') => path.to_owned(),
        Some('@') => format!("${}", &path[1..]),
        Some('.' | '[') => format!("${path}"),
        _ => return Err(format!("{path:?} is no path; write {{.{path}}}")),
    };
    let valid = jsonpath_rust::parser::parse_json_path(&query);
    valid.map(|_| query).map_err(|e| format!("{path}: {e}"))
}

fn filled(parts: &[Part], value: &Value) -> anyhow::Result<String> {
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Text(literal) => text.push_str(literal),
            Part::Path(path) => {
                let found = value.query(path)?;
                let words: Vec<String> = found.into_iter().map(plain).collect();
                text.push_str(&words.join(" "));
            }
            Part::Range(path, inner) => {
                for item in value.query(path)? {
                    text.push_str(&filled(inner, item)?);
                }
            }
        }
    }
    Ok(text)
}

/// Text without quotes, everything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_are_filled_as_kubectl_fills_them() {
        let document = json!({"policies": [
            {"name": "web", "ready": "True", "services": 2},
            {"name": "api", "ready": "False", "services": 1}]});
        for (template, text) in [
            ("{.policies[*].name}", "web api"),
            (
                "{.policies[0].services} of {.policies[1]['services']}",
                "2 of 1",
            ),
            (
                r#"{range .policies[*]}{.name}{"\t"}{@.ready}{"\n"}{end}"#,
                "web\tTrue\napi\tFalse\n",
            ),
            (r#"{.policies[?(@.ready=="False")].name}"#, "api"),
            ("{.nothing}", ""),
            (r#"{"}"}"#, "}"),
        ] {
            let parsed = Template::parse(template).unwrap();
            assert_eq!(parsed.fill(&document).unwrap(), text, "{template}");
        }
        for bad in ["{.a", "{a}", "{range .a[*]}x", "x{end}", "{.a[}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
