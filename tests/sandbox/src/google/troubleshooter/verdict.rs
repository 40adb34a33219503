//! Answers that can be unknown, and conditions.

use std::sync::Arc;

use cel::extractors::This;
use serde_json::{Value, json};

/// What is known of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Yes,
    No,
    /// It depends on a condition that cannot be evaluated with what the request says.
    Conditional,
    /// It depends on what whoever asks may not see.
    Info,
}

impl Verdict {
    pub fn of(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }

    /// All must hold. More context would not settle what may not be seen, so that counts first.
    pub fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::fold(parts, Self::Yes, Self::No)
    }

    /// One must hold.
    pub fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::fold(parts, Self::No, Self::Yes)
    }

    fn fold(parts: impl IntoIterator<Item = Self>, neutral: Self, decisive: Self) -> Self {
        parts
            .into_iter()
            .fold(neutral, |sum, part| match (sum, part) {
                (sum, part) if sum == decisive || part == decisive => decisive,
                (Self::Info, _) | (_, Self::Info) => Self::Info,
                (Self::Conditional, _) | (_, Self::Conditional) => Self::Conditional,
                (sum, _) => sum,
            })
    }

    pub fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            unknown => unknown,
        }
    }

    /// `ALLOW_ACCESS_STATE_…`
    pub fn allow_state(self) -> &'static str {
        match self {
            Self::Yes => "ALLOW_ACCESS_STATE_GRANTED",
            Self::No => "ALLOW_ACCESS_STATE_NOT_GRANTED",
            Self::Conditional => "ALLOW_ACCESS_STATE_UNKNOWN_CONDITIONAL",
            Self::Info => "ALLOW_ACCESS_STATE_UNKNOWN_INFO",
        }
    }

    /// `DENY_ACCESS_STATE_…`
    pub fn deny_state(self) -> &'static str {
        match self {
            Self::Yes => "DENY_ACCESS_STATE_DENIED",
            Self::No => "DENY_ACCESS_STATE_NOT_DENIED",
            Self::Conditional => "DENY_ACCESS_STATE_UNKNOWN_CONDITIONAL",
            Self::Info => "DENY_ACCESS_STATE_UNKNOWN_INFO",
        }
    }

    /// `HeuristicRelevance`: what does not hold changes little.
    pub fn relevance(self) -> &'static str {
        match self {
            Self::No => "HEURISTIC_RELEVANCE_NORMAL",
            _ => "HEURISTIC_RELEVANCE_HIGH",
        }
    }

    /// Allow and deny together.
    pub fn overall(allow: Self, deny: Self) -> &'static str {
        match Self::all([allow, deny.not()]) {
            Self::Yes => "CAN_ACCESS",
            Self::No => "CANNOT_ACCESS",
            Self::Conditional => "UNKNOWN_CONDITIONAL",
            Self::Info => "UNKNOWN_INFO",
        }
    }
}

/// Evaluates a condition with what the request says of itself (`conditionContext`); what it does not
/// say makes the answer unknown. Without a condition the answer is yes.
pub fn condition(condition: &Value, context: &Value) -> Verdict {
    let Some(expression) = condition["expression"].as_str() else {
        return Verdict::Yes;
    };
    match evaluate(expression, context) {
        Some(is) => Verdict::of(is),
        None => Verdict::Conditional,
    }
}

/// `ConditionExplanation`: the value is null if the condition cannot be evaluated.
pub fn explanation(verdict: Verdict) -> Value {
    match verdict {
        Verdict::Yes => json!({"value": true}),
        Verdict::No => json!({"value": false}),
        Verdict::Conditional | Verdict::Info => json!({"value": null}),
    }
}

fn evaluate(expression: &str, context: &Value) -> Option<bool> {
    let program = cel::Program::compile(expression).ok()?;
    let mut variables = cel::Context::default();
    let mut request = cel_map(&Value::Null, &[]);
    if let Some(time) = context["request"]["receiveTime"].as_str() {
        request.push(("time", timestamp(time)?));
    }
    let resource = cel_map(&context["resource"], &["name", "service", "type"]);
    let destination = cel_map(&context["destination"], &["ip", "port"]);
    for (name, fields) in [
        ("request", request),
        ("resource", resource),
        ("destination", destination),
    ] {
        let fields: std::collections::HashMap<String, cel::Value> =
            fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        variables.add_variable_from_value(name, cel::Value::from(fields));
    }
    add_tags(&mut variables, &context["effectiveTags"])?;
    match program.execute(&variables).ok()? {
        cel::Value::Bool(is) => Some(is),
        _ => None,
    }
}

fn cel_map(value: &Value, fields: &[&'static str]) -> Vec<(&'static str, cel::Value)> {
    let known = |field: &&'static str| match &value[*field] {
        Value::String(text) => Some((*field, cel::Value::from(text.clone()))),
        Value::Number(number) => Some((*field, cel::Value::from(number.as_i64()?))),
        _ => None,
    };
    fields.iter().filter_map(known).collect()
}

fn timestamp(text: &str) -> Option<cel::Value> {
    let time: jiff::Timestamp = text.parse().ok()?;
    let program = cel::Program::compile(&format!("timestamp('{time}')")).ok()?;
    program.execute(&cel::Context::default()).ok()
}

/// `resource.matchTag` and `resource.matchTagId`, the functions of conditions on tags
/// (<https://docs.cloud.google.com/iam/docs/conditions-attribute-reference#resource-tags>). They
/// are known only if the request names the tags.
fn add_tags(variables: &mut cel::Context<'_, '_>, tags: &Value) -> Option<()> {
    let Some(tags) = tags.as_array() else {
        return Some(());
    };
    let pairs = |key: &str, value: &str| -> Vec<(String, String)> {
        let text = |tag: &Value, field: &str| tag[field].as_str().unwrap_or_default().to_owned();
        tags.iter()
            .map(|tag| (text(tag, key), text(tag, value)))
            .collect()
    };
    let named = pairs("namespacedTagKey", "namespacedTagValue");
    let numbered = pairs("tagKey", "tagValue");
    let match_tag = move |_: This<cel::Value>, key: Arc<String>, value: Arc<String>| {
        let wanted = format!("{key}/{value}");
        named.iter().any(|(k, v)| *k == *key && *v == wanted)
    };
    let match_tag_id = move |_: This<cel::Value>, key: Arc<String>, value: Arc<String>| {
        numbered.iter().any(|(k, v)| *k == *key && *v == *value)
    };
    variables.add_function("matchTag", match_tag).ok()?;
    variables.add_function("matchTagId", match_tag_id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_stays_unknown_unless_something_else_decides() {
        use Verdict::{Conditional, Info, No, Yes};
        let cases = [
            (vec![], Yes, No),
            (vec![Yes, No], No, Yes),
            (vec![Yes, Info], Info, Yes),
            (vec![No, Info], No, Info),
            (vec![Conditional, Info], Info, Info),
            (vec![Conditional, No], No, Conditional),
            (vec![Yes, Conditional], Conditional, Yes),
        ];
        for (parts, all, any) in cases {
            assert_eq!(Verdict::all(parts.clone()), all, "{parts:?}");
            assert_eq!(Verdict::any(parts.clone()), any, "{parts:?}");
        }
        let overall = [
            (Yes, No, "CAN_ACCESS"),
            (Yes, Yes, "CANNOT_ACCESS"),
            (No, Info, "CANNOT_ACCESS"),
            (Info, Yes, "CANNOT_ACCESS"),
            (Yes, Info, "UNKNOWN_INFO"),
            (Info, No, "UNKNOWN_INFO"),
            (Conditional, No, "UNKNOWN_CONDITIONAL"),
            (Yes, Conditional, "UNKNOWN_CONDITIONAL"),
        ];
        for (allow, deny, state) in overall {
            assert_eq!(Verdict::overall(allow, deny), state, "{allow:?} {deny:?}");
        }
    }

    #[test]
    fn conditions_are_evaluated_with_what_the_request_says() {
        let expiry = "request.time < timestamp('2030-01-01T00:00:00Z')";
        let early = json!({"request": {"receiveTime": "2026-01-01T00:00:00Z"}});
        let late = json!({"request": {"receiveTime": "2031-01-01T00:00:00Z"}});
        let resource = json!({"resource": {"type": "run.googleapis.com/Service"}});
        let tagged = json!({"effectiveTags": [{"namespacedTagKey": "1/env", "namespacedTagValue": "1/env/prod"}]});
        let tag = "resource.matchTag('1/env', 'prod')";
        let cases = [
            (expiry, &early, Verdict::Yes),
            (expiry, &late, Verdict::No),
            (expiry, &Value::Null, Verdict::Conditional),
            ("request.path == '/'", &early, Verdict::Conditional),
            (
                "resource.type == 'run.googleapis.com/Service'",
                &resource,
                Verdict::Yes,
            ),
            (
                "destination.port == 443",
                &json!({"destination": {"port": 443}}),
                Verdict::Yes,
            ),
            (tag, &tagged, Verdict::Yes),
            ("resource.matchTag('1/env', 'test')", &tagged, Verdict::No),
            (tag, &Value::Null, Verdict::Conditional),
            ("request.time <", &early, Verdict::Conditional),
            ("1 + 1", &early, Verdict::Conditional),
        ];
        for (expression, context, verdict) in cases {
            let found = condition(&json!({"expression": expression}), context);
            assert_eq!(found, verdict, "{expression} {context}");
        }
        assert_eq!(condition(&Value::Null, &Value::Null), Verdict::Yes);
    }
}
