//! What is acted on and is probably not what was meant: it is said, and refused to nobody.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::Rejection;
use crate::{api::InvokerPolicySpec, iam::nearest_region};

/// The longest key or value of a label.
///
/// Source: <https://cloud.google.com/run/docs/configuring/services/labels>.
const LONGEST: usize = 63;

/// All of a spec, in the order of its fields.
pub(super) fn of(spec: &InvokerPolicySpec) -> Vec<Rejection> {
    let mut remarks = unknown_regions(spec);
    remarks.extend(impossible_labels(spec));
    remarks
}

/// Regions that are not known here, each with the nearest that is. Google adds regions, so none is
/// refused for it.
fn unknown_regions(spec: &InvokerPolicySpec) -> Vec<Rejection> {
    let mut remarks = Vec::new();
    // Many entries name few regions.
    let mut known: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for (i, entry) in spec.services.iter().enumerate() {
        let named = entry.region.iter().map(|r| ("region", r));
        let looked_in = entry.regions.iter().flatten().map(|r| ("regions", r));
        for (field, region) in named.chain(looked_in) {
            let near = known
                .entry(region)
                .or_insert_with(|| nearest_region(region));
            if let Some(near) = near {
                remarks.push(Rejection {
                    field: format!("spec.services[{i}].{field}"),
                    message: format!(
                        "{region} is not a region that is known here; did you mean {near}?"
                    ),
                });
            }
        }
    }
    remarks
}

/// Keys and values of selectors that no service can have: a requirement over one of them says
/// nothing, or, negated, fits every service.
fn impossible_labels(spec: &InvokerPolicySpec) -> Vec<Rejection> {
    let mut remarks = Vec::new();
    for (i, entry) in spec.services.iter().enumerate() {
        for (what, text) in entry.selector.iter().flat_map(words) {
            if let Some(why) = impossible(what, text) {
                let shown: String = text.chars().take(LONGEST).collect();
                remarks.push(Rejection {
                    field: format!("spec.services[{i}].selector"),
                    message: format!("no service can have the label {what} {shown:?}: {why}"),
                });
            }
        }
    }
    remarks
}

fn words(selector: &LabelSelector) -> Vec<(&'static str, &String)> {
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.flat_map(|(k, v)| [("key", k), ("value", v)]);
    let expressions = selector.match_expressions.iter().flatten();
    let expressions = expressions.flat_map(|e| {
        let values = e.values.iter().flatten().map(|v| ("value", v));
        std::iter::once(("key", &e.key)).chain(values)
    });
    labels.chain(expressions).collect()
}

/// Why a text is no key or no value of a label. Only keys of Google's own labels have a domain in
/// front.
fn impossible(what: &str, text: &str) -> Option<&'static str> {
    if text.chars().count() > LONGEST {
        return Some("it is longer than 63 characters");
    }
    if text.chars().any(char::is_uppercase) {
        return Some("labels of Google Cloud are lower-case");
    }
    let text = match text.split_once('/').filter(|_| what == "key") {
        Some((domain, key)) if is_googles(domain) => key,
        Some(_) => {
            return Some(
                "only Google's own labels have a domain; labels of Cloud Run have no slash",
            );
        }
        None => text,
    };
    let fits = |c: char| c.is_alphanumeric() || "_-".contains(c);
    (!text.chars().all(fits)).then_some("labels hold letters, digits, hyphens and underscores")
}

/// Whether Cloud Run itself sets labels with this domain.
fn is_googles(domain: &str) -> bool {
    ["googleapis.com", "knative.dev"].iter().any(|d| {
        domain
            .strip_suffix(d)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_that_no_service_can_have_are_named() {
        let spec: InvokerPolicySpec = serde_json::from_value(json!({"project": "p", "invokers": [], "services": [
            {"selector": {"matchLabels": {"team": "shop", "cloud.googleapis.com/location": "europe-west1", "größe": "klein", "empty": "", "example.com/team": "shop"}}},
            {"selector": {"matchLabels": {"Team": "shop"}, "matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["prod", "a b", "x".repeat(64)]}]}},
        ]}))
        .unwrap();
        let said: Vec<String> = of(&spec)
            .into_iter()
            .map(|r| format!("{}: {}", r.field, r.message))
            .collect();
        assert_eq!(said.len(), 4, "{said:#?}");
        assert!(said[0].contains("\"example.com/team\": only Google's own"));
        assert!(
            said[1].contains("services[1].selector: no service can have the label key \"Team\""),
            "{said:#?}"
        );
        assert!(said[2].contains("value \"a b\""), "{said:#?}");
        assert!(said[3].contains("longer than 63"), "{said:#?}");
    }
}
