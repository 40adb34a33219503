//! What `access` found, and how it is shown.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    iam::{Invocation, Principal},
    render::{Style, Tone, count, html, table},
};

/// `access -o json`, version 1.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessDocument {
    pub kind: &'static str,
    pub version: u32,
    pub services: Vec<ServiceAccess>,
    /// What is not in here.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccess {
    pub project: String,
    pub region: String,
    pub service: String,
    /// IAM is not asked: anyone who passes ingress may call.
    pub iam_check_off: bool,
    /// From where somebody without an account can call it once it is public; absent: from nowhere,
    /// because Identity-Aware Proxy asks first, or ingress lets nobody in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_to: Option<&'static str>,
    pub invokers: Vec<Invoker>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invoker {
    pub member: String,
    pub role: String,
    /// Namespace and name of the policies that list it; empty: nobody does.
    pub policies: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Access has ended, although the binding is still there.
    pub ended: bool,
    pub public: bool,
    /// It is granted, and Cloud Run does not let it invoke.
    pub cannot_invoke: bool,
    /// The permissions of its role are not known here, so that it may invoke is not either.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub role_unknown: bool,
    /// Where above the service it is granted; absent: on the service itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inherited_from: Option<InheritedFrom>,
}

/// Where above a service something is granted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InheritedFrom {
    /// project, folder or organization.
    pub level: &'static str,
    /// projects/ID, folders/NUMBER or organizations/NUMBER.
    pub resource: String,
}

impl ServiceAccess {
    /// That anyone can call it, and from where; or why that is not so although its IAM would let
    /// everybody.
    fn open(&self) -> Option<Open> {
        let mut all = self.invokers.iter().filter(|i| i.public && !i.ended);
        // What is sure comes first.
        let public = all.clone().find(|i| !i.role_unknown).or(all.next());
        let by = match public {
            _ if self.iam_check_off => "the IAM check is switched off".to_owned(),
            Some(public) if public.role_unknown => {
                format!("{} has {}", public.member, public.role)
            }
            Some(public) => public.member.clone(),
            None => return None,
        };
        let is_sure = self.iam_check_off || public.is_some_and(|p| !p.role_unknown);
        Some(match self.open_to {
            Some(from) if is_sure => Open::Yes(format!("{from}: {by}")),
            Some(from) => Open::Perhaps(format!(
                "{from}: {by}, whose permissions are not known here"
            )),
            None => Open::No(format!(
                "{by}, and Identity-Aware Proxy or ingress keeps out who has no account"
            )),
        })
    }
}

impl ServiceAccess {
    /// That anyone can call it, or perhaps can, as the page says it.
    fn badge(&self) -> Option<&'static str> {
        match self.open()? {
            Open::Yes(_) if self.iam_check_off => Some("IAM check off"),
            Open::Yes(_) => Some("anyone"),
            Open::Perhaps(_) => Some("perhaps anyone"),
            Open::No(_) => None,
        }
    }
}

enum Open {
    Yes(String),
    /// By a role of which nobody knows whether it lets anybody invoke.
    Perhaps(String),
    No(String),
}

impl Invoker {
    /// By a role that no policy grants.
    pub(super) fn by_role(principal: &Principal, role: &str, role_unknown: bool) -> Self {
        Self {
            member: principal.to_string(),
            role: role.to_owned(),
            policies: Vec::new(),
            condition: None,
            until: None,
            ended: false,
            public: principal.is_public(),
            cannot_invoke: principal.invocation() == Invocation::Unsupported,
            role_unknown,
            inherited_from: None,
        }
    }

    /// In a few words.
    fn how(&self) -> String {
        let mut words = Vec::new();
        if self.public {
            words.push("PUBLIC".to_owned());
        }
        if self.ended {
            words.push("ended".into());
        } else if let Some(until) = self.until {
            words.push(format!("until {until}"));
        }
        if let Some(title) = &self.condition {
            words.push(format!("if {title}"));
        }
        if self.role != "roles/run.invoker" {
            let perhaps = if self.role_unknown { "perhaps, " } else { "" };
            words.push(format!("{perhaps}as {}", self.role));
        }
        if let Some(from) = &self.inherited_from {
            words.push(format!("from {}", from.resource));
        }
        if self.cannot_invoke {
            words.push("cannot invoke: federated identity".into());
        }
        words.push(if self.policies.is_empty() {
            "unlisted".into()
        } else {
            format!("by {}", self.policies.join(", "))
        });
        words.join("; ")
    }

    /// `is_open`: somebody without an account may reach the service.
    fn kind(&self, is_open: bool) -> html::CellKind {
        match self {
            i if (i.public && !is_open) || i.ended || i.cannot_invoke => html::CellKind::Dead,
            i if i.role_unknown => html::CellKind::Perhaps,
            i if i.public => html::CellKind::Public,
            i if i.until.is_some() || i.condition.is_some() => html::CellKind::Conditional,
            i if i.policies.is_empty() => html::CellKind::Unlisted,
            _ => html::CellKind::Listed,
        }
    }
}

pub(super) fn text(document: &AccessDocument, style: &Style) -> String {
    let mut text = String::new();
    for s in &document.services {
        text.push_str(&style.paint(
            Tone::Strong,
            &format!("{} ({}, {})", s.service, s.region, s.project),
        ));
        text.push('\n');
        let line = match s.open() {
            Some(Open::Yes(words)) => Some((Tone::Bad, format!("ANYONE, {words}"))),
            Some(Open::Perhaps(words)) => Some((Tone::Bad, format!("PERHAPS ANYONE, {words}"))),
            Some(Open::No(words)) => Some((Tone::Warn, words)),
            None => None,
        };
        if let Some((tone, words)) = line {
            text.push_str(&style.paint(tone, &style.wrap(2, &words)));
            text.push('\n');
        }
        for i in &s.invokers {
            let tone = if i.public {
                Tone::Bad
            } else if i.policies.is_empty() {
                Tone::Warn
            } else {
                Tone::Good
            };
            text.push_str(&format!("  {}\n", style.paint(tone, &i.member)));
            text.push_str(&style.paint(Tone::Dim, &style.wrap(6, &i.how())));
            text.push('\n');
        }
        if s.invokers.is_empty() && !s.iam_check_off {
            text.push_str("  nobody\n");
        }
        text.push('\n');
    }
    let principals: std::collections::BTreeSet<&str> = document
        .services
        .iter()
        .flat_map(|s| s.invokers.iter().map(|i| i.member.as_str()))
        .collect();
    text.push_str(&format!(
        "{}, {}\n",
        count(document.services.len(), "service"),
        count(principals.len(), "principal")
    ));
    for note in &document.notes {
        text.push_str(&style.paint(Tone::Dim, &style.wrap(0, note)));
        text.push('\n');
    }
    text
}

pub(super) fn markdown(document: &AccessDocument) -> String {
    let mut rows = Vec::new();
    for s in &document.services {
        let place = format!("{} ({}, {})", s.service, s.region, s.project);
        let (who, words) = match s.open() {
            Some(Open::Yes(words) | Open::No(words)) => ("anyone", words),
            Some(Open::Perhaps(words)) => ("perhaps anyone", words),
            None => ("", String::new()),
        };
        if !who.is_empty() {
            rows.push(vec![
                table::literal(&place),
                who.into(),
                format!("**{}**", table::literal(&words)),
            ]);
        }
        rows.extend(s.invokers.iter().map(|i| {
            let member = format!("`{}`", i.member.replace('`', "'"));
            vec![table::literal(&place), member, table::literal(&i.how())]
        }));
    }
    let notes: String = document
        .notes
        .iter()
        .map(|n| format!("\n{}\n", table::literal(n)))
        .collect();
    format!(
        "{}{notes}",
        table::markdown(&["service", "member", "how"], &rows)
    )
}

pub(super) fn page(document: &AccessDocument, now: Timestamp) -> String {
    let columns: Vec<html::Column> = document
        .services
        .iter()
        .map(|s| html::Column {
            name: s.service.clone(),
            place: format!("{}, {}", s.region, s.project),
            open: s.badge(),
        })
        .collect();
    let mut rows: BTreeMap<String, Vec<html::Cell>> = BTreeMap::new();
    for (n, s) in document.services.iter().enumerate() {
        for i in &s.invokers {
            let cell = html::Cell {
                column: n,
                kind: i.kind(s.open_to.is_some()),
                words: i.how(),
            };
            rows.entry(i.member.clone()).or_default().push(cell);
        }
    }
    html::matrix(
        &columns,
        &rows,
        &document.notes,
        &now.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}
