//! IAM conditions: what a grant additionally asks of a request.

use jiff::Timestamp;

/// Title of the condition that carries `expires`. A binding with this title and the exact
/// expression that [`Condition::expiring`] makes is recognised as this operator's, also without a
/// record of it.
pub const EXPIRY_TITLE: &str = "run-invoker-expires";

/// A condition of a binding. Two conditions are the same only if all three texts are: that is how
/// IAM tells bindings apart, and the expression is not canonicalised by anyone.
///
/// Source: <https://docs.cloud.google.com/iam/docs/conditions-overview>.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Condition {
    /// Required by IAM; part of the identity of the binding.
    pub title: String,
    /// Optional; part of the identity of the binding.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// CEL over `request` and `resource`.
    pub expression: String,
}

impl Condition {
    /// The condition that ends access at `until`, together with `also` if there is one.
    ///
    /// `request.time` works for every service:
    /// <https://docs.cloud.google.com/iam/docs/conditions-attribute-reference>.
    pub fn expiring(until: Timestamp, also: Option<&Self>) -> Self {
        let clock = format!("request.time < timestamp(\"{}\")", rfc3339(until));
        match also {
            None => Self {
                title: EXPIRY_TITLE.into(),
                description: String::new(),
                expression: clock,
            },
            Some(c) => Self {
                title: c.title.clone(),
                description: c.description.clone(),
                expression: format!("({}) && {clock}", c.expression),
            },
        }
    }

    /// The end of access, if this is exactly a condition that [`Condition::expiring`] makes without
    /// another condition.
    pub fn expiry(&self) -> Option<Timestamp> {
        if self.title != EXPIRY_TITLE {
            return None;
        }
        let text = self
            .expression
            .strip_prefix("request.time < timestamp(\"")?
            .strip_suffix("\")")?;
        text.parse().ok()
    }
}

/// Whole seconds in UTC, the form that Google's documents use.
fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_reads_back_as_the_same_instant() {
        let until: Timestamp = "2026-12-24T19:00:00+01:00".parse().unwrap();
        let c = Condition::expiring(until, None);
        assert_eq!(
            c.expression,
            "request.time < timestamp(\"2026-12-24T18:00:00Z\")"
        );
        assert_eq!(c.expiry(), Some(until));
    }

    #[test]
    fn an_expiry_with_a_condition_keeps_its_title_and_joins_the_expressions() {
        let base = Condition {
            title: "office".into(),
            description: "d".into(),
            expression: "a || b".into(),
        };
        let c = Condition::expiring("2026-12-24T18:00:00Z".parse().unwrap(), Some(&base));
        assert_eq!(c.title, "office");
        assert_eq!(
            c.expression,
            "(a || b) && request.time < timestamp(\"2026-12-24T18:00:00Z\")"
        );
        assert_eq!(c.expiry(), None);
    }
}
