//! `drift`: what differs from what is declared, and what was corrected lately.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use kube::{ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{ago, status::resource_names, tabulated};
use crate::{
    api::{
        ChangeReason, ChangedBy, InvokerChange, InvokerPolicy, REASON_LABEL, ServiceState,
        ServiceStatus,
    },
    cli::{
        Exit,
        context::{Context, Kube, print},
        output::ListOutput,
        reach::is_unreachable,
        select::Selection,
        world::list_all,
    },
    plan::CONTESTED,
    render::Tone,
    status::PERHAPS_EXPOSED,
};

#[derive(Clone, Debug, clap::Args)]
pub struct DriftCommand {
    #[command(flatten)]
    pub chosen: Selection,
    /// Show it again whenever it changes, until interrupted; also drift that was corrected between
    /// two reads.
    #[arg(long, short)]
    pub watch: bool,
    /// Form of the answer; TEMPLATE as kubectl takes it, over the document of -o json.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    pub output: ListOutput,
}

/// `drift -o json`, version 1.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DriftDocument {
    pub(super) kind: &'static str,
    pub(super) version: u32,
    pub(super) services: Vec<DriftLine>,
    /// With --watch: corrections since what was shown last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    corrected: Vec<Correction>,
}

/// Drift that was corrected, as its InvokerChange has it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Correction {
    namespace: String,
    change: String,
    region: String,
    service: String,
    at: Timestamp,
    granted: Vec<String>,
    revoked: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drift_by: Option<ChangedBy>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DriftLine {
    pub(super) namespace: String,
    pub(super) policy: String,
    pub(super) region: String,
    pub(super) service: String,
    pub(super) state: ServiceState,
    pub(super) since: Timestamp,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) missing: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unexpected: Vec<String>,
    exposed: bool,
    contested: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drift_by: Option<ChangedBy>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
}

pub async fn drift(context: &Context, command: &DriftCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    // What is on record before the first look is no news.
    let mut records = Records::default();
    if command.watch {
        records.news(context, &kube, command, &[]).await?;
    }
    let mut last = None;
    let mut absent = false;
    loop {
        let chosen = command.chosen.policies(&kube).await?;
        // Once, and not every two seconds.
        if last.is_none() {
            absent = chosen.complain(context);
        }
        let found = chosen.found;
        let mut document = drift_document(&found);
        if command.watch && last.is_some() {
            document.corrected = records.news(context, &kube, command, &found).await?;
        }
        if last.as_ref() != Some(&document.services) || !document.corrected.is_empty() {
            show(context, command, &document, &found, &kube.namespace)?;
        }
        if !command.watch {
            return Ok(if absent {
                Exit::Error
            } else if document.services.is_empty() {
                Exit::Nothing
            } else {
                Exit::Differences
            });
        }
        last = Some(document.services);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Corrections of drift that are on record and were seen.
#[derive(Default)]
struct Records {
    seen: BTreeSet<String>,
    hidden: bool,
}

impl Records {
    /// Those of these policies that were not there the last time.
    async fn news(
        &mut self,
        context: &Context,
        kube: &Kube,
        command: &DriftCommand,
        policies: &[InvokerPolicy],
    ) -> anyhow::Result<Vec<Correction>> {
        if self.hidden {
            return Ok(Vec::new());
        }
        let several = command.chosen.names.iter().any(|n| n.namespace.is_some());
        let api = kube.api::<InvokerChange>(command.chosen.all_namespaces || several);
        let labels = format!("{REASON_LABEL}={}", ChangeReason::Drift.as_str());
        let listed = list_all(&api, ListParams::default().labels(&labels)).await;
        let changes = match listed {
            Ok(changes) => changes,
            // The command ends with it, and says it then.
            Err(why) if why.downcast_ref().is_some_and(is_unreachable) => return Err(why),
            Err(why) => {
                self.hidden = true;
                let why = context.explain(&why);
                context.complain(&format!("note: corrections are not shown: {why}"));
                return Ok(Vec::new());
            }
        };
        let chosen: BTreeSet<(String, String)> = policies
            .iter()
            .map(|p| (p.namespace().unwrap_or_default(), p.name_any()))
            .collect();
        let mut news: Vec<Correction> = Vec::new();
        for change in changes {
            let mut behind = change.spec.policies.iter();
            let is_chosen = behind.any(|p| chosen.contains(&(p.namespace.clone(), p.name.clone())));
            // One write may have a record in several namespaces.
            if self.seen.insert(change.name_any()) && is_chosen {
                news.push(correction(&change));
            }
        }
        news.sort_by_key(|c| c.at);
        Ok(news)
    }
}

fn correction(change: &InvokerChange) -> Correction {
    let spec = &change.spec;
    Correction {
        namespace: change.namespace().unwrap_or_default(),
        change: change.name_any(),
        region: spec.region.clone(),
        service: spec.service.clone(),
        at: spec.at.0,
        granted: spec.added.iter().map(|g| g.member.clone()).collect(),
        revoked: spec.removed.iter().map(|g| g.member.clone()).collect(),
        drift_by: spec.drift_by.clone(),
    }
}

/// Prints a document in the form that was asked for.
fn show(
    context: &Context,
    command: &DriftCommand,
    document: &DriftDocument,
    found: &[InvokerPolicy],
    namespace: &str,
) -> anyhow::Result<()> {
    let off = |p: &&InvokerPolicy| {
        let mut lines = document.services.iter();
        lines.any(|l| Some(&l.namespace) == p.namespace().as_ref() && l.policy == p.name_any())
    };
    let off: Vec<InvokerPolicy> = found.iter().filter(off).cloned().collect();
    if let Some(text) = command
        .output
        .for_programs(document, resource_names(&off))?
    {
        print(&text);
        return Ok(());
    }
    if found.is_empty() {
        command.chosen.say_nothing(context, "policies", namespace);
        return Ok(());
    }
    print(&drift_text(context, command, document));
    Ok(())
}

/// Whether somebody who asks what is off should see a service.
fn is_worth_a_line(service: &ServiceStatus) -> bool {
    service.state != ServiceState::InSync
        || service.exposed
        || service.contested
        || service.message.contains(PERHAPS_EXPOSED)
}

fn drift_document(found: &[InvokerPolicy]) -> DriftDocument {
    let mut services: Vec<DriftLine> = found
        .iter()
        .flat_map(|p| {
            p.status
                .iter()
                .flat_map(|s| &s.services)
                .map(move |s| (p, s))
        })
        .filter(|(_, s)| is_worth_a_line(s))
        .map(|(p, s)| DriftLine {
            namespace: p.namespace().unwrap_or_default(),
            policy: p.name_any(),
            region: s.region.clone(),
            service: s.name.clone(),
            state: s.state,
            since: s.since.0,
            missing: s.missing.clone(),
            unexpected: s.unexpected.clone(),
            exposed: s.exposed,
            contested: s.contested,
            drift_by: s.drift_by.clone(),
            message: s.message.clone(),
        })
        .collect();
    services.sort_by_key(|l| {
        (
            l.since,
            l.namespace.clone(),
            l.policy.clone(),
            l.region.clone(),
            l.service.clone(),
        )
    });
    DriftDocument {
        kind: "Drift",
        version: 1,
        services,
        corrected: Vec::new(),
    }
}

fn drift_text(context: &Context, command: &DriftCommand, document: &DriftDocument) -> String {
    if document.services.is_empty() && document.corrected.is_empty() {
        return "no drift\n".into();
    }
    if command.output == ListOutput::Text {
        return drift_lines(context, document);
    }
    let head = ["policy", "service", "state", "since", "what"];
    let rows: Vec<Vec<String>> = document.services.iter().map(drift_row).collect();
    tabulated(context, &command.output, &head, &rows)
}

/// What differs on a service, each in a few words.
fn differences(line: &DriftLine) -> Vec<String> {
    let mut all: Vec<String> = line.missing.iter().map(|m| format!("+ {m}")).collect();
    all.extend(line.unexpected.iter().map(|m| format!("- {m}")));
    if line.exposed {
        all.push("EXPOSED: anyone can call it".to_owned());
    }
    if line.contested && !line.message.contains(CONTESTED) {
        all.push(format!("CONTESTED: {CONTESTED}"));
    }
    all.extend(line.drift_by.as_ref().map(|by| format!("by {by}")));
    all.extend((!line.message.is_empty()).then(|| line.message.clone()));
    all
}

fn drift_row(line: &DriftLine) -> Vec<String> {
    vec![
        format!("{}/{}", line.namespace, line.policy),
        format!("{} ({})", line.service, line.region),
        format!("{:?}", line.state),
        line.since.to_string(),
        differences(line).join("; "),
    ]
}

fn drift_lines(context: &Context, document: &DriftDocument) -> String {
    let style = context.style();
    let mut text = String::new();
    for l in &document.services {
        let head = format!("{} ({})", l.service, l.region);
        // What is said of a service in sync is below, and is not as old as that state.
        let state = match l.state {
            ServiceState::InSync => String::new(),
            state => format!("{state:?} since {}, ", ago(context.present(), l.since)),
        };
        text.push_str(&style.paint(Tone::Strong, &head));
        text.push_str(&format!("  {state}policy {}/{}\n", l.namespace, l.policy));
        for line in differences(l) {
            let tone = if line.starts_with('+') {
                Tone::Good
            } else {
                Tone::Bad
            };
            text.push_str(&style.paint(tone, &style.wrap(2, &line)));
            text.push('\n');
        }
        text.push('\n');
    }
    for c in &document.corrected {
        text.push_str(&corrected_lines(context, c));
    }
    let differ = |l: &DriftLine| !l.missing.is_empty() || !l.unexpected.is_empty();
    if document.services.iter().any(differ) {
        let mut legend = "+ declared and not granted, - granted and not declared.".to_owned();
        if document.services.iter().all(|l| l.drift_by.is_none()) {
            legend.push_str(" By whom: needs audit events (docs/events.md).");
        }
        text.push_str(&style.paint(Tone::Dim, &style.wrap(0, &legend)));
        text.push('\n');
    }
    text
}

/// Drift that was corrected: what it was, and what was done about it.
fn corrected_lines(context: &Context, c: &Correction) -> String {
    let style = context.style();
    let head = format!("{} ({})", c.service, c.region);
    let mut text = style.paint(Tone::Strong, &head);
    let ago = ago(context.present(), c.at);
    let place = format!(
        "  drift corrected {ago} ago, change {}/{}\n",
        c.namespace, c.change
    );
    text.push_str(&place);
    let granted = c
        .granted
        .iter()
        .map(|m| (Tone::Good, format!("+ {m} (granted again)")));
    let revoked = c
        .revoked
        .iter()
        .map(|m| (Tone::Bad, format!("- {m} (revoked)")));
    let by = c.drift_by.iter().map(|by| (Tone::Dim, format!("by {by}")));
    for (tone, line) in granted.chain(revoked).chain(by) {
        text.push_str(&format!("{}\n", style.paint(tone, &style.wrap(2, &line))));
    }
    text.push('\n');
    text
}
