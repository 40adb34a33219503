//! Queries of `searchAllIamPolicies`, as far as they are needed here: `FIELD:VALUE` and
//! `FIELD=VALUE`, each of which must match, of the fields `policy`, `policy.role.permissions`,
//! `roles`, `memberTypes` and `resource`. Anything else is refused rather than misunderstood.
//!
//! Sources: <https://docs.cloud.google.com/asset-inventory/docs/search-query-syntax>,
//! <https://docs.cloud.google.com/asset-inventory/docs/search-allow-policies>.

use serde_json::Value;

use super::roles::Roles;
use crate::run::Problem;

/// The terms of a query.
#[derive(Debug, Default)]
pub struct Query {
    terms: Vec<Term>,
}

#[derive(Debug)]
struct Term {
    field: Field,
    value: Text,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    Policy,
    Permissions,
    Roles,
    MemberTypes,
    Resource,
}

/// How a value is compared.
#[derive(Debug, PartialEq)]
enum Text {
    /// `=`: the whole value, case counts.
    Exact(String),
    /// `:`: these words, one after the other; the last one may be only the beginning of a word.
    Words { words: Vec<String>, is_prefix: bool },
}

impl Query {
    /// # Errors
    /// What is not supported here is said to be so.
    pub fn parse(text: &str, roles: &Roles) -> Result<Self, Problem> {
        let mut terms = Vec::new();
        for part in split(text)? {
            if part == "AND" {
                continue;
            }
            terms.push(term(&part, roles)?);
        }
        Ok(Self { terms })
    }

    /// Whether the answer depends on what roles contain.
    pub fn asks_for_permissions(&self) -> bool {
        self.terms.iter().any(|t| t.field == Field::Permissions)
    }

    /// Whether a binding of a resource matches.
    pub fn matches(&self, resource: &str, binding: &Value, roles: &Roles) -> bool {
        self.terms
            .iter()
            .all(|t| t.matches(resource, binding, roles))
    }
}

impl Term {
    fn matches(&self, resource: &str, binding: &Value, roles: &Roles) -> bool {
        let role = binding["role"].as_str().unwrap_or_default();
        let members = || binding["members"].as_array().into_iter().flatten();
        let mut members = members().filter_map(Value::as_str);
        match self.field {
            Field::Resource => self.value.fits(resource),
            Field::Roles => self.value.fits(role),
            Field::Permissions => roles.permissions(role).iter().any(|p| self.value.fits(p)),
            Field::MemberTypes => members.any(|m| self.value.fits(kind_of(m))),
            Field::Policy => {
                let condition = &binding["condition"];
                let texts = ["title", "description", "expression"];
                let mut said = texts.iter().filter_map(|k| condition[k].as_str());
                self.value.fits(role)
                    || members.any(|m| self.value.fits(m))
                    || said.any(|t| self.value.fits(t))
            }
        }
    }
}

/// `user` of `user:E`; of `allUsers` itself.
fn kind_of(member: &str) -> &str {
    member.split(':').next().unwrap_or(member)
}

impl Text {
    fn fits(&self, value: &str) -> bool {
        let (wanted, is_prefix) = match self {
            Self::Exact(text) => return text == value,
            Self::Words { words, is_prefix } => (words, *is_prefix),
        };
        let Some((last, first)) = wanted.split_last() else {
            return false;
        };
        words(value).windows(wanted.len()).any(|found| {
            let Some((end, begin)) = found.split_last() else {
                return false;
            };
            begin == first && (end == last || is_prefix && end.starts_with(last.as_str()))
        })
    }
}

/// "The tokenization special characters are the characters that are not one of alphanumeric,
/// underscore or ampersand"; case is ignored.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '&'))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Parts between spaces; a quoted phrase is one part.
fn split(text: &str) -> Result<Vec<String>, Problem> {
    let (mut parts, mut part, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            '(' | ')' if !is_quoted => return Err(unsupported("parentheses", text)),
            c if c.is_whitespace() && !is_quoted => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    if is_quoted {
        return Err(Problem::invalid(format!(
            "Invalid query {text}: a quote is not closed."
        )));
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}

fn term(part: &str, roles: &Roles) -> Result<Term, Problem> {
    let Some(at) = part.find([':', '=']) else {
        return Err(unsupported("OR, NOT and words without a field", part));
    };
    let (name, value) = (&part[..at], &part[at + 1..]);
    let is_exact = part[at..].starts_with('=');
    let field = match name {
        "policy" => Field::Policy,
        "policy.role.permissions" => Field::Permissions,
        "roles" => Field::Roles,
        "memberTypes" => Field::MemberTypes,
        "resource" => Field::Resource,
        _ => return Err(unsupported(&format!("the field {name}"), part)),
    };
    if field == Field::Policy && is_exact {
        // "The policy field is a nested object, so can only be used with the : operator."
        return Err(Problem::invalid(format!(
            "Invalid query {part}: the field policy can only be used with the : operator."
        )));
    }
    let value = if is_exact {
        exact(value, part)?
    } else {
        partial(value, part)?
    };
    if field == Field::Permissions {
        check_permission(part, &value, roles)?;
    }
    Ok(Term { field, value })
}

fn exact(value: &str, part: &str) -> Result<Text, Problem> {
    if value.is_empty() || value.contains('*') {
        return Err(Problem::invalid(format!(
            "Invalid query {part}: an exact match needs a value without wildcards."
        )));
    }
    Ok(Text::Exact(value.to_owned()))
}

fn partial(value: &str, part: &str) -> Result<Text, Problem> {
    let (text, is_prefix) = match value.strip_suffix('*') {
        Some(text) => (text, true),
        None => (value, false),
    };
    if text.contains('*') {
        return Err(unsupported("a wildcard that is not at the end", part));
    }
    let words = words(text);
    if words.is_empty() {
        return Err(Problem::invalid(format!(
            "Invalid query {part}: the value has no words."
        )));
    }
    Ok(Text::Words { words, is_prefix })
}

/// A permission whose roles are not known here would match nothing, which would be wrong.
fn check_permission(part: &str, value: &Text, roles: &Roles) -> Result<(), Problem> {
    if roles.known_permissions().iter().any(|p| value.fits(p)) {
        return Ok(());
    }
    Err(unsupported("the roles of this permission", part))
}

fn unsupported(what: &str, query: &str) -> Problem {
    Problem::invalid(format!(
        "Invalid query {query}: the sandbox does not support {what}."
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn queries_find_what_google_finds() {
        let roles = Roles::default();
        let resource = "//run.googleapis.com/projects/shop/locations/r/services/web";
        let invoker = json!({"role": "roles/run.invoker", "members": ["user:Amy.2020@acme.com", "allUsers"],
            "condition": {"title": "until may", "expression": "request.time < timestamp('x')"}});
        let viewer = json!({"role": "roles/run.viewer", "members": ["group:crew@acme.com"]});
        let cases = [
            ("", true, true),
            ("policy.role.permissions:run.routes.invoke", true, false),
            ("policy.role.permissions=run.routes.invoke", true, false),
            ("policy.role.permissions:run.routes.inv*", true, false),
            ("policy.role.permissions:RUN.routes", true, false),
            ("policy:amy.2020@acme.com", true, false),
            ("policy:acme.com", true, true),
            ("policy:2020.amy", false, false),
            ("policy:\"until may\"", true, false),
            ("policy:roles/run.viewer", false, true),
            ("policy:cre*", false, true),
            ("policy:cre", false, false),
            ("roles:roles/run.viewer", false, true),
            ("roles=roles/run.invoker", true, false),
            ("roles=ROLES/run.invoker", false, false),
            ("memberTypes:user", true, false),
            ("memberTypes=allUsers", true, false),
            ("memberTypes:group", false, true),
            ("resource:services/web", true, true),
            ("resource:web2", false, false),
            ("policy:acme.com memberTypes:group", false, true),
            ("policy:acme.com AND memberTypes:user", true, false),
        ];
        for (text, first, second) in cases {
            let query = Query::parse(text, &roles).unwrap();
            let found = [&invoker, &viewer].map(|b| query.matches(resource, b, &roles));
            assert_eq!(found, [first, second], "{text}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_and_named() {
        let cases = [
            ("amy", "words without a field"),
            ("policy:a OR policy:b", "OR, NOT and words"),
            ("resource:(a OR b)", "parentheses"),
            ("folders:123", "the field folders"),
            ("policy=amy@acme.com", "only be used with the : operator"),
            ("policy:a*b", "a wildcard that is not at the end"),
            ("roles=roles/run.*", "without wildcards"),
            ("policy:\"a", "a quote is not closed"),
            ("policy:", "the value has no words"),
            (
                "policy.role.permissions:storage.buckets.get",
                "the roles of this permission",
            ),
        ];
        for (text, why) in cases {
            let problem = Query::parse(text, &Roles::default()).unwrap_err();
            assert_eq!(
                (problem.code, problem.status),
                (400, "INVALID_ARGUMENT"),
                "{text}"
            );
            assert!(problem.message.contains(why), "{text}: {}", problem.message);
        }
    }
}
