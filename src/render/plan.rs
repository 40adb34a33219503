//! A plan over many services, for people and for programs.

use std::{collections::BTreeSet, fmt::Write as _};

use serde::Serialize;

use super::{Format, Style, Tone, count, data, neutral, table::literal};

/// What an apply would do. The stable shape of `plan -o json`: fields are added, never changed or
/// removed, within `version` 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanDocument {
    pub kind: &'static str,
    pub version: u32,
    pub summary: Summary,
    /// In order of project, region and name; services on which nothing is declared and nothing is
    /// left are not there.
    pub services: Vec<ServicePlan>,
    /// Policies that as a whole are not carried out, or name what they may not touch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyNote>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    pub services: usize,
    pub grants: usize,
    pub revokes: usize,
    /// Due, and not done until somebody agrees or something changes.
    pub held: usize,
    /// What audited policies would change if they were enforced.
    pub audited: usize,
    pub exposed: usize,
    pub failed: usize,
    /// Projects whose services could not be listed, so that what selectors mean there is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub unlisted: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePlan {
    pub project: String,
    pub region: String,
    pub service: String,
    /// Namespace and name of the policies that name it.
    pub policies: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Line>,
    /// Hash that lets through what is held for approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approve: Option<String>,
    /// The InvokerLedger that is approved where no policy is left that could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<String>,
    /// The plan of each policy that an InvokerApproval could let through.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<NeededApproval>,
    /// The approvals that let its changes through, each with its reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approved_by: Vec<String>,
    /// Anyone can call it, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed: Option<String>,
    /// It could not be read, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A plan that waits for approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NeededApproval {
    /// Namespace and name of the policy.
    pub policy: String,
    /// Hash for spec.plan of an InvokerApproval in the policy's namespace.
    pub plan: String,
    /// What it does: lines that begin with revoke, grant or reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effect: Vec<String>,
}

impl NeededApproval {
    /// The lines about what is taken away.
    pub fn revoked(&self) -> impl Iterator<Item = &String> {
        self.effect.iter().filter(|l| l.starts_with("revoke "))
    }
}

/// What happens to one grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    Grant,
    Revoke,
    /// Due, and not done.
    Hold,
    /// An audited policy would grant it if it were enforced.
    WouldGrant,
    /// An audited policy would revoke it if it were enforced.
    WouldRevoke,
    /// It is there, nobody lists it, and it stays.
    Leave,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    pub action: Action,
    pub member: String,
    pub role: String,
    /// Title of the condition, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Why.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyNote {
    pub policy: String,
    pub message: String,
}

/// What makes a run fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailOn {
    /// Anything would change, or would if it were enforced.
    Drift,
    Held,
    Exposed,
}

impl ServicePlan {
    /// Nothing to say about it.
    fn is_quiet(&self) -> bool {
        self.changes.is_empty() && self.exposed.is_none() && self.error.is_none()
    }

    fn push_text(&self, text: &mut String, style: &Style) {
        let name = format!("{} ({}, {})", self.service, self.region, self.project);
        let _ = writeln!(text, "{}", style.paint(Tone::Strong, &name));
        if !self.policies.is_empty() {
            let line = style.wrap(2, &format!("by {}", self.policies.join(", ")));
            let _ = writeln!(text, "{}", style.paint(Tone::Dim, &line));
        }
        // The policies are named above the lines.
        let known = format!("declared by {}", self.policies.join(", "));
        for line in &self.changes {
            line.push_text(text, style, line.reason != known);
        }
        for by in &self.approved_by {
            let _ = writeln!(text, "{}", style.wrap(4, &format!("approved by {by}")));
        }
        for command in self.commands() {
            // A command is there to be copied: it does not wrap.
            let _ = writeln!(text, "    to approve: {}", neutral(&command));
        }
        if let Some(why) = &self.exposed {
            let line = style.wrap(2, &format!("EXPOSED: {why}"));
            let _ = writeln!(text, "{}", style.paint(Tone::Bad, &line));
        }
        if let Some(why) = &self.error {
            let line = style.wrap(2, &format!("could not be read: {why}"));
            let _ = writeln!(text, "{}", style.paint(Tone::Bad, &line));
        }
        text.push('\n');
    }
}

impl ServicePlan {
    /// The commands that let through what is held: one hash, or an approval for each policy.
    fn commands(&self) -> Vec<String> {
        let command = |policy: &str, how: &str| {
            let (namespace, name) = policy.split_once('/').unwrap_or(("default", policy));
            format!("kubectl invoker approve {name} -n {namespace} --hash {how}")
        };
        match (&self.approve, self.policies.first()) {
            (Some(hash), Some(policy)) => vec![command(policy, hash)],
            (Some(hash), None) => {
                let ledger = self.ledger.iter();
                let of = |l| format!("kubectl invoker approve --ledger {l} --hash {hash}");
                ledger.map(of).collect()
            }
            // Only somebody who may create InvokerApprovals, and says why.
            (None, _) => {
                let approvals = self.approvals.iter();
                let needed =
                    approvals.map(|a| command(&a.policy, &format!("{} --reason WHY", a.plan)));
                needed.collect()
            }
        }
    }
}

impl PlanDocument {
    pub fn new(mut services: Vec<ServicePlan>, policies: Vec<PolicyNote>) -> Self {
        services.sort_by(|a, b| {
            (&a.project, &a.region, &a.service).cmp(&(&b.project, &b.region, &b.service))
        });
        let lines = |wanted: &[Action]| {
            services
                .iter()
                .flat_map(|s| &s.changes)
                .filter(|l| wanted.contains(&l.action))
                .count()
        };
        let summary = Summary {
            services: services.len(),
            grants: lines(&[Action::Grant]),
            revokes: lines(&[Action::Revoke]),
            held: lines(&[Action::Hold]),
            audited: lines(&[Action::WouldGrant, Action::WouldRevoke]),
            exposed: services.iter().filter(|s| s.exposed.is_some()).count(),
            failed: services.iter().filter(|s| s.error.is_some()).count(),
            unlisted: 0,
        };
        Self {
            kind: "Plan",
            version: 1,
            summary,
            services,
            policies,
        }
    }

    /// Whether there is something of this kind.
    pub fn has(&self, what: FailOn) -> bool {
        let s = &self.summary;
        match what {
            FailOn::Drift => s.grants + s.revokes + s.audited > 0,
            FailOn::Held => s.held > 0,
            FailOn::Exposed => s.exposed > 0,
        }
    }

    /// The document in a form.
    ///
    /// # Errors
    /// For a form that plans do not have.
    pub fn render(&self, format: Format, style: &Style) -> Result<String, String> {
        match format {
            Format::Text => Ok(self.text(style)),
            Format::Markdown => Ok(self.markdown()),
            Format::Html => Err("plans have no HTML form; use text, json, yaml or markdown".into()),
            Format::Json | Format::Yaml => data(self, format),
        }
    }

    fn text(&self, style: &Style) -> String {
        let mut text = String::new();
        for service in self.services.iter().filter(|s| !s.is_quiet()) {
            service.push_text(&mut text, style);
        }
        for note in &self.policies {
            let line = format!("{}: {}", note.policy, note.message);
            let _ = writeln!(text, "{}", style.wrap(0, &line));
        }
        if !self.policies.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{}", style.wrap(0, &self.sentence()));
        text
    }

    /// The sum of it in a sentence.
    pub fn sentence(&self) -> String {
        let s = &self.summary;
        let mut parts = vec![
            count(s.services, "service"),
            format!("{} to grant", s.grants),
            format!("{} to revoke", s.revokes),
        ];
        for (n, what) in [
            (s.held, "held"),
            (s.audited, "in audit"),
            (s.exposed, "exposed"),
            (s.failed, "not readable"),
        ] {
            if n > 0 {
                parts.push(format!("{n} {what}"));
            }
        }
        if s.unlisted > 0 {
            parts.push(format!("{} not listable", count(s.unlisted, "project")));
        }
        if s.grants + s.revokes + s.held + s.audited + s.exposed + s.failed + s.unlisted == 0 {
            return format!(
                "{}: as declared, nothing to do.",
                count(s.services, "service")
            );
        }
        format!("Plan: {}.", parts.join(", "))
    }

    fn markdown(&self) -> String {
        let mut text = format!("### run-invoker: {}\n\n", self.sentence());
        let code = |t: &str| format!("`{}`", t.replace('`', "'"));
        let mut rows = Vec::new();
        for s in &self.services {
            let place = literal(&format!("{} ({}, {})", s.service, s.region, s.project));
            for line in s.changes.iter().filter(|l| l.action != Action::Leave) {
                rows.push(vec![
                    place.clone(),
                    line.word().to_owned(),
                    code(&line.grant()),
                    literal(&line.reason),
                ]);
            }
            rows.extend(s.exposed.iter().map(|w| {
                vec![
                    place.clone(),
                    "**exposed**".into(),
                    String::new(),
                    literal(w),
                ]
            }));
            rows.extend(s.error.iter().map(|w| {
                vec![
                    place.clone(),
                    "not readable".into(),
                    String::new(),
                    literal(w),
                ]
            }));
        }
        if !rows.is_empty() {
            text.push_str(&super::table::markdown(
                &["service", "what", "member", "why"],
                &rows,
            ));
        }
        self.push_approvals(&mut text);
        for note in &self.policies {
            let _ = write!(
                text,
                "\n- {}: {}",
                code(&note.policy),
                literal(&note.message)
            );
        }
        if !self.policies.is_empty() {
            text.push('\n');
        }
        text
    }
}

impl PlanDocument {
    /// What is approved, and what an approver is still to agree to.
    fn push_approvals(&self, text: &mut String) {
        let code = |t: &str| format!("`{}`", t.replace('`', "'"));
        let approved: BTreeSet<&String> =
            self.services.iter().flat_map(|s| &s.approved_by).collect();
        if !approved.is_empty() {
            text.push_str("\n**Approved with this change, once:**\n\n");
        }
        for by in approved {
            let _ = writeln!(text, "- {}", code(by));
        }
        let needed: BTreeSet<&NeededApproval> =
            self.services.iter().flat_map(|s| &s.approvals).collect();
        if !needed.is_empty() {
            text.push_str("\n**Waits for approval:**\n\n");
        }
        for need in needed {
            let effect = need.effect.iter().filter(|l| !l.starts_with("grant "));
            let effect: Vec<String> = effect.map(|l| code(l)).collect();
            let shown = effect.len().min(10);
            let more = match effect.len() - shown {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            let _ = writeln!(
                text,
                "- {}, plan {}: {}{more}",
                code(&need.policy),
                code(&need.plan),
                effect[..shown].join(", ")
            );
        }
    }
}

impl Line {
    /// The change, with its reason below it.
    pub fn push_text(&self, text: &mut String, style: &Style, with_reason: bool) {
        let (sign, tone) = self.sign();
        let change = style.paint(tone, &format!("{sign} {}", self.grant()));
        let _ = writeln!(text, "  {change}");
        if with_reason && !self.reason.is_empty() {
            let reason = style.wrap(6, &self.reason);
            let _ = writeln!(text, "{}", style.paint(Tone::Dim, &reason));
        }
    }

    fn sign(&self) -> (char, Tone) {
        match self.action {
            Action::Grant => ('+', Tone::Good),
            Action::Revoke => ('-', Tone::Bad),
            Action::Hold => ('!', Tone::Warn),
            Action::WouldGrant | Action::WouldRevoke => ('?', Tone::Warn),
            Action::Leave => ('=', Tone::Dim),
        }
    }

    fn word(&self) -> &'static str {
        match self.action {
            Action::Grant => "grant",
            Action::Revoke => "revoke",
            Action::Hold => "held",
            Action::WouldGrant => "would grant",
            Action::WouldRevoke => "would revoke",
            Action::Leave => "left",
        }
    }

    fn grant(&self) -> String {
        let role = if self.role == "roles/run.invoker" {
            String::new()
        } else {
            format!(" as {}", self.role)
        };
        let condition = self
            .condition
            .as_ref()
            .map(|c| format!(" if {c}"))
            .unwrap_or_default();
        format!("{}{role}{condition}", self.member)
    }
}
