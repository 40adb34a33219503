//! What was looked at, and how it is.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    Pass,
    /// Nobody asked for it.
    Skipped,
    /// It could not be seen: `doctor` does not succeed then.
    Unknown,
    Warn,
    Fail,
}

/// One finding of `doctor -o json`, version 1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) subject: String,
    pub(super) outcome: Outcome,
    pub(super) evidence: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) fix: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Document {
    pub(super) kind: &'static str,
    pub(super) version: u32,
    pub(super) findings: Vec<Finding>,
}

#[derive(Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn add(
        &mut self,
        check: &'static str,
        subject: impl Into<String>,
        outcome: Outcome,
        evidence: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.0.push(Finding {
            check,
            subject: subject.into(),
            outcome,
            evidence: evidence.into(),
            fix: fix.into(),
        });
    }
    pub(super) fn pass(
        &mut self,
        check: &'static str,
        subject: impl Into<String>,
        evidence: impl Into<String>,
    ) {
        self.add(check, subject, Outcome::Pass, evidence, "");
    }
}
