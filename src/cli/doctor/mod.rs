//! `doctor`: what stands between the operator and its work, and what to do about it.

mod cluster;
mod findings;
mod google;

use std::collections::BTreeSet;

use super::{
    Exit, Output,
    context::{Context, print},
};
use crate::{
    config::CloudArgs,
    render::{Format, Tone, data},
};

use cluster::{definitions_are_current, operator_works, policies_stand};
use findings::{Document, Findings, Outcome};
use google::{permissions_are_there, quota_suffices, sink_covers, subscription_is_read};

#[derive(Clone, Debug, clap::Args)]
pub struct DoctorCommand {
    /// Project to check; those of all policies if not given.
    #[arg(long = "project")]
    pub projects: Vec<String>,
    /// Name of the operator's Lease, which is that of its release.
    #[arg(long, default_value = "run-invoker")]
    pub release: String,
    /// Namespace of the operator.
    #[arg(long, default_value = "run-invoker")]
    pub release_namespace: String,
    /// Subscription with audit events: projects/PROJECT/subscriptions/NAME.
    #[arg(
        long = "event-subscription",
        env = "RUN_INVOKER_EVENT_SUBSCRIPTIONS",
        value_delimiter = ','
    )]
    pub event_subscriptions: Vec<String>,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    #[command(flatten)]
    pub cloud: CloudArgs,
}

pub async fn run(context: &Context, command: &DoctorCommand) -> anyhow::Result<Exit> {
    let mut findings = Findings::default();
    let mut policies = Vec::new();
    match context.kube().await {
        Ok(kube) => {
            definitions_are_current(&kube, &mut findings).await;
            operator_works(context, &kube, command, &mut findings).await;
            policies = policies_stand(&kube, &mut findings).await;
        }
        Err(why) => findings.add(
            "cluster",
            "kubeconfig",
            Outcome::Fail,
            why.to_string(),
            "set KUBECONFIG, or --kubeconfig and --context",
        ),
    }
    let google = match context.google(&command.cloud).await {
        Ok(google) => google,
        Err(why) => {
            let why = why.to_string();
            let (what, fix) = why.split_once('\n').unwrap_or((&why, ""));
            findings.add("credentials", "Google", Outcome::Fail, what, fix);
            return report(context, command, findings);
        }
    };
    let mut projects: BTreeSet<String> = command.projects.iter().cloned().collect();
    if projects.is_empty() {
        projects.extend(policies.iter().map(|p| p.spec.project.clone()));
    }
    for project in &projects {
        permissions_are_there(&google, project, &mut findings).await;
    }
    let mut topics = BTreeSet::new();
    for subscription in &command.event_subscriptions {
        topics.extend(subscription_is_read(&google, subscription, &mut findings).await);
    }
    if command.event_subscriptions.is_empty() {
        findings.add(
            "events",
            "-",
            Outcome::Unknown,
            "no --event-subscription was given",
            "name it to have it checked; docs/events.md sets it up",
        );
    } else {
        for project in &projects {
            sink_covers(&google, project, &topics, &mut findings).await;
        }
    }
    quota_suffices(&policies, command, &mut findings);
    report(context, command, findings)
}

fn report(context: &Context, command: &DoctorCommand, findings: Findings) -> anyhow::Result<Exit> {
    let worst = findings
        .0
        .iter()
        .map(|f| f.outcome)
        .max()
        .unwrap_or(Outcome::Pass);
    let format = Format::from(command.output);
    if matches!(format, Format::Json | Format::Yaml) {
        print(
            &data(
                &Document {
                    kind: "Doctor",
                    version: 1,
                    findings: findings.0,
                },
                format,
            )
            .map_err(anyhow::Error::msg)?,
        );
    } else {
        let style = context.style();
        let mut text = String::new();
        for f in &findings.0 {
            let (mark, tone) = match f.outcome {
                Outcome::Pass => ("ok  ", Tone::Good),
                Outcome::Unknown => ("?   ", Tone::Dim),
                Outcome::Warn => ("warn", Tone::Warn),
                Outcome::Fail => ("FAIL", Tone::Bad),
            };
            text.push_str(&format!(
                "{} {}: {}\n",
                style.paint(tone, mark),
                f.check,
                f.subject
            ));
            text.push_str(&format!("{}\n", style.wrap(5, &f.evidence)));
            if !f.fix.is_empty() {
                text.push_str(&format!("{}\n", style.wrap(5, &format!("-> {}", f.fix))));
            }
        }
        text.push_str(&style.wrap(
            0,
            "Permissions are those of the credentials in use here. To check the operator's: gcloud auth application-default login --impersonate-service-account OPERATOR",
        ));
        text.push('\n');
        print(&text);
    }
    Ok(if worst >= Outcome::Warn {
        Exit::Differences
    } else {
        Exit::Nothing
    })
}

#[cfg(test)]
mod tests;
