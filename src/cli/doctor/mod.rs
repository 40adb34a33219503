//! `doctor`: what stands between the operator and its work, and what to do about it.

mod checks;
mod cluster;
mod findings;
mod google;
mod quota;

use std::collections::BTreeSet;

use super::{
    Exit, Output,
    context::{Context, Kube, print},
    reach::is_unreachable,
    select::{google_name, namespace},
};
use crate::{
    config::CloudArgs,
    render::{Format, Style, Tone, data, neutral},
    status::on_one_line,
};

use checks::Checks;
use cluster::{definitions_are_current, operator_works, policies_stand};
use findings::{Document, Finding, Findings, Outcome};
use google::{permissions_are_there, sink_covers, subscription_is_read};
use quota::quota_suffices;

#[derive(Clone, Debug, clap::Args)]
pub struct DoctorCommand {
    /// Project to check; those of all policies if not given.
    #[arg(long = "project", value_parser = google_name)]
    pub projects: Vec<String>,
    /// Name of the operator's Lease, which is that of its release.
    #[arg(long, default_value = "run-invoker", value_parser = namespace)]
    pub release: String,
    /// Namespace of the operator.
    #[arg(long, default_value = "run-invoker", value_parser = namespace)]
    pub release_namespace: String,
    /// Subscription with audit events: projects/PROJECT/subscriptions/NAME.
    #[arg(
        long = "event-subscription",
        env = "RUN_INVOKER_EVENT_SUBSCRIPTIONS",
        value_delimiter = ',',
        value_parser = subscription
    )]
    pub event_subscriptions: Vec<String>,
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    #[command(flatten, next_help_heading = crate::cli::help::GOOGLE)]
    pub cloud: CloudArgs,
}

/// The cluster, once it has answered: what stands in the way is said once, and not by each check.
async fn reach(context: &Context) -> anyhow::Result<Kube> {
    let kube = context.kube().await?;
    match kube.client.apiserver_version().await {
        Err(e) if is_unreachable(&e) => Err(e.into()),
        _ => Ok(kube),
    }
}

/// The full name of a subscription, as an argument.
fn subscription(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.~+:".contains(c);
    let valid = match text.split('/').collect::<Vec<_>>().as_slice() {
        ["projects", project, "subscriptions", name] => {
            google_name(project).is_ok() && !name.is_empty() && name.chars().all(known)
        }
        _ => false,
    };
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} is not projects/PROJECT/subscriptions/NAME"))
}

pub async fn run(context: &Context, command: &DoctorCommand) -> anyhow::Result<Exit> {
    let mut findings = Findings::default();
    let mut policies = Vec::new();
    let mut budgets = quota::Reports::default();
    match reach(context).await {
        Ok(kube) => {
            definitions_are_current(context, &kube, &mut findings).await;
            budgets = operator_works(context, &kube, command, &mut findings).await;
            policies = policies_stand(context, &kube, &mut findings).await;
        }
        Err(why) => findings.add(
            "cluster",
            "API server",
            Outcome::Fail,
            context.explain(&why),
            // The evidence says what to do.
            "",
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
    let mut checks = Checks::new(&google, context.servers(), &mut findings);
    for project in &projects {
        permissions_are_there(&mut checks, project).await;
    }
    let mut topics = BTreeSet::new();
    for subscription in &command.event_subscriptions {
        topics.extend(subscription_is_read(&mut checks, subscription).await);
    }
    if command.event_subscriptions.is_empty() {
        findings.add(
            "events",
            "-",
            Outcome::Skipped,
            "no --event-subscription was given",
            "name it to have it checked; docs/events.md sets it up",
        );
    } else {
        for project in &projects {
            sink_covers(&mut checks, project, &topics).await;
        }
    }
    quota_suffices(&policies, &budgets, command, &mut findings);
    report(context, command, findings)
}

fn shown(f: &Finding, with_fix: bool, style: &Style) -> String {
    let (mark, tone) = match f.outcome {
        Outcome::Pass => ("ok  ", Tone::Good),
        Outcome::Skipped => ("-   ", Tone::Dim),
        Outcome::Unknown => ("?   ", Tone::Warn),
        Outcome::Warn => ("warn", Tone::Warn),
        Outcome::Fail => ("FAIL", Tone::Bad),
    };
    let head = format!("{}: {}", f.check, f.subject);
    let mut text = format!(
        "{} {}\n",
        style.paint(tone, mark),
        neutral(&on_one_line(&head))
    );
    text.push_str(&format!("{}\n", style.wrap(5, &f.evidence)));
    if with_fix && !f.fix.is_empty() {
        text.push_str(&format!("{}\n", style.wrap(5, &format!("-> {}", f.fix))));
    }
    text
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
        for (n, f) in findings.0.iter().enumerate() {
            // What to do about several findings in a row is said below the last of them.
            let next = findings.0.get(n + 1);
            let with_fix = next.is_none_or(|next| next.fix != f.fix);
            text.push_str(&shown(f, with_fix, &style));
        }
        if worst == Outcome::Unknown {
            let asked = context.servers().kubernetes_asked();
            let line = format!("Not everything could be seen. {asked}");
            text.push_str(&format!("{}\n", style.wrap(0, line.trim_end())));
        }
        text.push_str(&style.wrap(
            0,
            "Permissions are those of the credentials in use here. To check the operator's: gcloud auth application-default login --impersonate-service-account OPERATOR",
        ));
        text.push('\n');
        print(&text);
    }
    Ok(match worst {
        Outcome::Warn | Outcome::Fail => Exit::Differences,
        // Nothing is known to be wrong, and not everything could be seen.
        Outcome::Unknown => Exit::Unknown,
        Outcome::Skipped | Outcome::Pass => Exit::Nothing,
    })
}

#[cfg(test)]
mod tests;
