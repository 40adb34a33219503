//! Tables, as `kubectl get` asks for them, and the JSON paths of printer columns.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::registry::Resource;

/// Evaluates a JSON path of the kind that printer columns and field selectors use: `.a.b`, `['a']`,
/// `['a','b']` (both, as far as they are there), `[0]`, `[*]` and `[?(@.type=="Ready")]`.
///
/// Source: <https://kubernetes.io/docs/reference/kubectl/jsonpath/>.
pub fn lookup<'a>(root: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![root];
    let mut rest = path
        .trim()
        .trim_start_matches('{')
        .trim_end_matches('}')
        .trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some(end) = closing(inner) else {
                return vec![];
            };
            let (index, tail) = (&inner[..end], &inner[end + 1..]);
            rest = tail;
            found = found.into_iter().flat_map(|v| bracket(v, index)).collect();
        } else {
            let inner = rest.strip_prefix('.').unwrap_or(rest);
            // A dot in a key is written as `\.`.
            let mut key = String::new();
            let mut chars = inner.char_indices();
            let mut end = inner.len();
            while let Some((i, c)) = chars.next() {
                match c {
                    '\\' => key.extend(chars.next().map(|(_, c)| c)),
                    '.' | '[' => {
                        end = i;
                        break;
                    }
                    c => key.push(c),
                }
            }
            rest = &inner[end..];
            found = found.into_iter().filter_map(|v| v.get(&key)).collect();
        }
    }
    found.retain(|v| !v.is_null());
    found
}

fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn bracket<'a>(value: &'a Value, index: &str) -> Vec<&'a Value> {
    if index == "*" {
        return value
            .as_array()
            .map(|l| l.iter().collect())
            .unwrap_or_default();
    }
    if let Some(filter) = index.strip_prefix("?(@").and_then(|f| f.strip_suffix(')')) {
        let Some((path, wanted)) = filter.split_once("==") else {
            return vec![];
        };
        let wanted = wanted.trim().trim_matches(|c| c == '"' || c == '\'');
        let hit =
            |v: &&Value| lookup(v, path.trim()).first().and_then(|v| v.as_str()) == Some(wanted);
        return value
            .as_array()
            .map(|l| l.iter().filter(hit).collect())
            .unwrap_or_default();
    }
    if let Ok(i) = index.parse::<usize>() {
        return value.get(i).into_iter().collect();
    }
    let keys = index.split(',').map(str::trim);
    keys.filter_map(|key| value.get(key.trim_matches(|c| c == '"' || c == '\'')))
        .collect()
}

/// How long ago, as kubectl writes it.
pub fn age(at: &str, now: Timestamp) -> String {
    let Ok(at) = at.parse::<Timestamp>() else {
        return "<unknown>".into();
    };
    let s = (now - at).get_seconds().max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    match s {
        0..=119 => format!("{s}s"),
        120..=599 if s % 60 != 0 => format!("{m}m{}s", s % 60),
        120..=10_799 => format!("{m}m"),
        10_800..=28_799 if m % 60 != 0 => format!("{h}h{}m", m % 60),
        10_800..=172_799 => format!("{h}h"),
        172_800..=691_199 if h % 24 != 0 => format!("{d}d{}h", h % 24),
        _ => format!("{d}d"),
    }
}

/// Turns objects into a `meta.k8s.io/v1` Table.
pub fn table(
    resource: &Resource,
    items: &[&Value],
    list_meta: Value,
    include: &str,
    now: Timestamp,
) -> Value {
    let mut columns = vec![
        json!({"name": "Name", "type": "string", "format": "name", "description": "Name must be unique within a namespace.", "priority": 0}),
    ];
    for c in &resource.columns {
        columns.push(json!({"name": c.name, "type": c.type_, "format": "", "description": c.description, "priority": c.priority}));
    }
    let rows: Vec<Value> = items
        .iter()
        .map(|object| {
            let mut cells = vec![object["metadata"]["name"].clone()];
            for c in &resource.columns {
                let values = lookup(object, &c.path);
                cells.push(match (values.first(), c.type_.as_str()) {
                    (None, _) => Value::Null,
                    (Some(v), "date") => json!(age(v.as_str().unwrap_or_default(), now)),
                    (Some(v), "integer" | "number" | "boolean") => (*v).clone(),
                    (Some(Value::String(s)), _) => json!(s),
                    (Some(v), _) => json!(v.to_string()),
                });
            }
            let meta = match include {
                "None" => Value::Null,
                "Object" => (*object).clone(),
                _ => json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]}),
            };
            if meta.is_null() { json!({"cells": cells}) } else { json!({"cells": cells, "object": meta}) }
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": columns, "rows": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_printer_columns_are_understood() {
        let v = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "x", "status": "y"}]}, "a.b": 1});
        assert_eq!(
            lookup(&v, ".status.conditions[?(@.type==\"Ready\")].status"),
            [&json!("True")]
        );
        assert_eq!(lookup(&v, ".status.conditions[1].type"), [&json!("x")]);
        assert_eq!(lookup(&v, ".status.conditions[*].type").len(), 2);
        assert_eq!(lookup(&v, ".a\\.b"), [&json!(1)]);
        assert_eq!(lookup(&v, ".status['nothing','conditions']").len(), 1);
        assert!(lookup(&v, ".status.nothing.here").is_empty());
    }

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        for (at, text) in [
            ("2026-01-09T23:59:59Z", "1s"),
            ("2026-01-09T23:57:30Z", "2m30s"),
            ("2026-01-09T22:00:00Z", "120m"),
            ("2026-01-08T23:00:00Z", "25h"),
            ("2026-01-01T00:00:00Z", "9d"),
        ] {
            assert_eq!(age(at, now), text);
        }
    }
}
