//! IAM conditions: what a grant additionally asks of a request.

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

/// Title of the condition that carries `expires`. A binding with this title and the exact
/// expression that [`Condition::expiring`] makes is recognised as this operator's, also without a
/// record of it.
pub const EXPIRY_TITLE: &str = "run-invoker-expires";

/// A condition of a binding. Two conditions are the same only if all three texts are: that is how
/// IAM distinguishes bindings, and the expression is not canonicalised by anyone.
///
/// Source: <https://docs.cloud.google.com/iam/docs/conditions-overview>.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(from = "Texts")]
pub struct Condition {
    /// Required by IAM; part of the identity of the binding.
    pub title: String,
    /// Optional; part of the identity of the binding.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// CEL over `request` and `resource`.
    pub expression: String,
    /// Stands for the expression: nobody finds two with the same. A tenant may write thousands of
    /// characters that differ in the last only, and thousands of grants are sorted by them.
    #[serde(skip)]
    digest: [u8; 32],
}

/// A condition as it is written.
#[derive(serde::Deserialize)]
struct Texts {
    title: String,
    #[serde(default)]
    description: String,
    expression: String,
}

impl From<Texts> for Condition {
    fn from(texts: Texts) -> Self {
        Self::new(texts.title, texts.description, texts.expression)
    }
}

impl Ord for Condition {
    /// By title and description, as people would; of those that share both, in an order that is
    /// cheap and the same for ever.
    fn cmp(&self, other: &Self) -> Ordering {
        if std::ptr::eq(self, other) {
            return Ordering::Equal;
        }
        (self.title.cmp(&other.title))
            .then_with(|| self.description.cmp(&other.description))
            .then_with(|| self.digest.cmp(&other.digest))
    }
}

impl PartialOrd for Condition {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Condition {}

impl Hash for Condition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.title, &self.description, &self.expression).hash(state);
    }
}

impl Condition {
    /// A condition of these texts.
    pub fn new(
        title: impl Into<String>,
        description: impl Into<String>,
        expression: impl Into<String>,
    ) -> Self {
        let expression = expression.into();
        Self {
            title: title.into(),
            description: description.into(),
            digest: Sha256::digest(&expression).into(),
            expression,
        }
    }

    /// The condition that ends access at `until`, together with `also` if there is one.
    ///
    /// `request.time` works for every service:
    /// <https://docs.cloud.google.com/iam/docs/conditions-attribute-reference>.
    pub fn expiring(until: Timestamp, also: Option<&Self>) -> Self {
        let clock = format!("request.time < timestamp(\"{}\")", rfc3339(until));
        match also {
            None => Self::new(EXPIRY_TITLE, String::new(), clock),
            Some(c) => {
                let both = format!("({}) && {clock}", c.expression);
                Self::new(c.title.clone(), c.description.clone(), both)
            }
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

/// Whether an expression is whole by itself: every bracket and every string that it opens it closes,
/// and it has no comment, so that nothing written around it becomes a part of it or is lost.
///
/// Not whether it is CEL: IAM says that. Source of the lexical rules:
/// <https://github.com/google/cel-spec/blob/master/doc/langdef.md#syntax>.
///
/// # Errors
/// What is wrong, to be shown to its author.
pub fn is_whole(expression: &str) -> Result<(), &'static str> {
    let text = expression.as_bytes();
    let mut open = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' | b'\'' => {
                at = end_of_string(text, at).ok_or("opens a string that it does not close")?;
                continue;
            }
            b'/' if text.get(at + 1) == Some(&b'/') => {
                return Err("has a comment (//); write it into the description");
            }
            b'(' => open.push(b')'),
            b'[' => open.push(b']'),
            b'{' => open.push(b'}'),
            b')' | b']' | b'}' if open.pop() != Some(*byte) => {
                return Err("closes a bracket that it did not open");
            }
            _ => {}
        }
        at += 1;
    }
    if open.is_empty() {
        Ok(())
    } else {
        Err("opens a bracket that it does not close")
    }
}

/// Behind the end of the string that begins at a quote.
fn end_of_string(text: &[u8], start: usize) -> Option<usize> {
    let quote = text[start];
    let before = |n: usize| start.checked_sub(n).and_then(|i| text.get(i));
    let is = |byte: Option<&u8>, letter: u8| byte.is_some_and(|b| b.eq_ignore_ascii_case(&letter));
    // r"..", br"..", rb".."
    let is_raw = is(before(1), b'r') || (is(before(1), b'b') && is(before(2), b'r'));
    let triple = [quote; 3];
    let is_triple = text[start..].starts_with(&triple);
    let mut at = start + if is_triple { 3 } else { 1 };
    loop {
        match *text.get(at)? {
            b'\\' if !is_raw => at += 2,
            byte if byte == quote && is_triple => {
                if text[at..].starts_with(&triple) {
                    return Some(at + 3);
                }
                at += 1;
            }
            byte if byte == quote => return Some(at + 1),
            b'\n' | b'\r' if !is_triple => return None,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_the_same_if_their_texts_are_and_sorted_by_title_first() {
        let long = |end: &str| format!("{}{end}", "x".repeat(4000));
        let (a, b) = (
            Condition::new("t", "", long("a")),
            Condition::new("t", "", long("b")),
        );
        assert!(a == a.clone() && a != b && a.cmp(&b) == b.cmp(&a).reverse());
        assert_ne!(a, Condition::new("t", "d", long("a")));
        assert!(Condition::new("a", "z", "z") < Condition::new("b", "", ""));
    }

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
        let base = Condition::new("office", "d", "a || b");
        let c = Condition::expiring("2026-12-24T18:00:00Z".parse().unwrap(), Some(&base));
        assert_eq!(c.title, "office");
        assert_eq!(
            c.expression,
            "(a || b) && request.time < timestamp(\"2026-12-24T18:00:00Z\")"
        );
        assert_eq!(c.expiry(), None);
    }

    #[test]
    fn an_expression_that_is_not_whole_is_refused() {
        for whole in [
            "true",
            "request.time.getHours('Europe/Berlin') < 18",
            "(a || b) && c[0] == {'k': [1, 2]}.k",
            r#"request.host == "https://x/(" && a.matches(r'\d+\(')"#,
            r#"'it\'s (' == "x""#,
            "a == \"\"\"two \"lines\"\nand ( one\"\"\" ",
            "a / b",
        ] {
            assert_eq!(is_whole(whole), Ok(()), "{whole}");
        }
        for broken in [
            "true) || (true",
            "true // ",
            "(true",
            "[)",
            "a == 'x",
            "a == \"x\n\"",
            "a == '''x'",
            r"a == 'x\'",
            "true)",
            "{",
        ] {
            assert!(is_whole(broken).is_err(), "{broken}");
        }
    }
}
