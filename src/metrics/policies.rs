//! The series of single policies, which are made when they are asked for.

pub(super) const READY: &str = "1 if the policy's Ready condition is True, else 0.";

pub(super) const DRIFT_GRANTS: &str = "Grants that differ from the policy.";

/// What the series of one policy show.
#[derive(Clone, Copy, Debug)]
pub struct PolicyGauges<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub ready: bool,
    /// Grants that are declared and not there.
    pub missing: i64,
    /// Grants that are there and not declared.
    pub unexpected: i64,
}

/// The series of all policies, written at the scrape: kept in a registry, three of them would cost
/// more memory than all else that is known of a policy.
#[derive(Clone, Debug, Default)]
pub struct PolicySeries(pub(super) String);

impl PolicySeries {
    /// Names are DNS labels, so nothing in them needs escaping.
    pub fn of<'a>(policies: impl Iterator<Item = PolicyGauges<'a>> + Clone) -> Self {
        use std::fmt::Write as _;
        let mut text = format!(
            "# HELP run_invoker_policy_ready {READY}\n# TYPE run_invoker_policy_ready gauge\n"
        );
        for p in policies.clone() {
            let (namespace, name, ready) = (p.namespace, p.name, i32::from(p.ready));
            let _ = writeln!(
                text,
                "run_invoker_policy_ready{{namespace=\"{namespace}\",policy=\"{name}\"}} {ready}"
            );
        }
        let _ = writeln!(
            text,
            "# HELP run_invoker_policy_drift_grants {DRIFT_GRANTS}\n# TYPE run_invoker_policy_drift_grants gauge"
        );
        for p in policies {
            let (namespace, name) = (p.namespace, p.name);
            for (kind, n) in [("missing", p.missing), ("unexpected", p.unexpected)] {
                let _ = writeln!(
                    text,
                    "run_invoker_policy_drift_grants{{kind=\"{kind}\",namespace=\"{namespace}\",policy=\"{name}\"}} {n}"
                );
            }
        }
        Self(text)
    }
}
