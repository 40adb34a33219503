//! `diagnose`: gathers the facts about a refused request, and shows what they come to.

use std::{fs, io::Read as _, path::PathBuf};

use jiff::Timestamp;
use kube::{Api, api::ListParams};

use super::{
    Exit, Output,
    context::{Context, Kube, print},
    world::list_all,
};
use crate::{
    api::{InvokerChange, InvokerPolicy, Mode},
    cloudrun::{CloudRun as _, Scope, google::Google, list_services},
    config::CloudArgs,
    diagnose::{
        Declared, Diagnosis, Facts, Known, Outcome, diagnose,
        symptom::{Entry, Symptom, host_and_path},
        token::Token,
    },
    fault::Fault,
    iam::{Principal, RunService},
    intent::Intent,
    render::{Format, Style, Tone, data},
};

#[derive(Clone, Debug, clap::Args)]
pub struct DiagnoseCommand {
    /// Project of the service.
    #[arg(long)]
    pub project: Option<String>,
    /// Region of the service.
    #[arg(long)]
    pub region: Option<String>,
    /// Name of the service.
    #[arg(long)]
    pub service: Option<String>,

    /// Who calls, as IAM writes it: serviceAccount:EMAIL, user:EMAIL, ...
    #[arg(long = "as", value_name = "PRINCIPAL")]
    pub principal: Option<String>,

    /// The URL that was called; with --project it also finds the service.
    #[arg(long)]
    pub url: Option<String>,

    /// A Cloud Logging entry of the refusal, as JSON; - is the standard input.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// The token that was sent, or @FILE; read here, never sent and never shown.
    #[arg(long, env = "KUBECTL_INVOKER_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// Status code of the answer.
    #[arg(long)]
    pub status: Option<u16>,

    /// Text of the answer.
    #[arg(long)]
    pub body: Option<String>,

    /// Look at no cluster: which policy is about the service is not known then.
    #[arg(long)]
    pub offline: bool,

    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,

    #[command(flatten)]
    pub cloud: CloudArgs,
}

pub async fn run(context: &Context, command: &DiagnoseCommand) -> anyhow::Result<Exit> {
    let (mut symptom, entry) = match &command.log {
        Some(path) => read_entry(path)?,
        None => (Symptom::default(), Entry::default()),
    };
    symptom.status = command.status.or(symptom.status);
    if let Some(body) = &command.body {
        symptom.hear(body);
    }
    let token = match command.token.as_deref() {
        None => None,
        Some(text) => Some(match text.strip_prefix('@') {
            // The error must not quote a token that was mistaken for a file.
            Some(path) => Token::read(
                &fs::read_to_string(path).map_err(|e| anyhow::anyhow!("the token's file: {e}"))?,
            ),
            None => Token::read(text),
        }),
    };
    let principal = match &command.principal {
        Some(text) => {
            Some(Principal::parse(text).map_err(|e| anyhow::anyhow!("--as {text:?} {e}"))?)
        }
        None => token.as_ref().and_then(Token::principal),
    };
    let url = command.url.clone().or(entry.url.clone());
    let google = context.google(&command.cloud).await?;
    let service = find_service(command, &entry, url.as_deref(), &google).await?;
    let at = entry.at.unwrap_or(context.now);

    let (front, policy, project) = tokio::join!(
        google.front(&service),
        google.read_policy(&service),
        google.project_policy(&service.project)
    );
    let mut facts = Facts {
        at,
        principal,
        url,
        front: known(front),
        policy: known(policy),
        project: known(project),
        token,
        symptom,
        declared: Vec::new(),
        changed_at: None,
        service,
    };
    if !command.offline {
        match context.kube().await {
            Ok(kube) => {
                let about = ask_cluster(&kube, &mut facts).await;
                if let Err(e) = about {
                    context.complain(&format!("note: the cluster's policies are left out: {e:#}"));
                }
            }
            Err(_) => {
                context.complain("note: no cluster; what policies say is left out (--offline says that this is meant)")
            }
        }
    }
    let diagnosis = diagnose(&facts);
    let text = match Format::from(command.output) {
        format @ (Format::Json | Format::Yaml) => {
            data(&diagnosis, format).map_err(anyhow::Error::msg)?
        }
        _ => shown(&diagnosis, &context.style()),
    };
    print(&text);
    use crate::diagnose::Cause as C;
    Ok(
        if matches!(diagnosis.cause, C::AccessExpected | C::CannotTell) {
            Exit::Nothing
        } else {
            Exit::Differences
        },
    )
}

fn read_entry(path: &PathBuf) -> anyhow::Result<(Symptom, Entry)> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = fs::read_to_string(path)
            .map_err(|e| anyhow::anyhow!("{} cannot be read: {e}", path.display()))?;
    }
    let entry = serde_json::from_str(&text).map_err(|e| {
        anyhow::anyhow!(
            "{} is no log entry in JSON ({e}); gcloud logging read --format json prints them",
            path.display()
        )
    })?;
    Ok(Symptom::of_entry(&entry))
}

fn known<T>(result: Result<T, Fault>) -> Known<T> {
    match result {
        Ok(value) => Known::Is(value),
        Err(fault) if fault.class.row().gone => Known::Absent(fault.message.clone()),
        Err(fault) => Known::Hidden(fault.advice()),
    }
}

async fn find_service(
    command: &DiagnoseCommand,
    entry: &Entry,
    url: Option<&str>,
    google: &Google,
) -> anyhow::Result<RunService> {
    if let (Some(p), Some(r), Some(s)) = (&command.project, &command.region, &command.service) {
        return Ok(RunService::new(p.as_str(), r.as_str(), s.as_str()));
    }
    if let Some(service) = &entry.service {
        return Ok(service.clone());
    }
    let (Some(project), Some(url)) = (&command.project, url) else {
        anyhow::bail!(
            "which service? Give --project, --region and --service, or --project and --url, or --log"
        );
    };
    let (host, _) = host_and_path(url);
    // NAME-HASH-REGION.a.run.app and NAME-NUMBER.REGION.run.app both begin with the name.
    let listing = list_services(google, project, &Scope::AllRegions)
        .await
        .map_err(|f| anyhow::anyhow!("listing the services of {project}: {}", f.advice()))?;
    for info in listing
        .services
        .iter()
        .filter(|i| host.starts_with(&format!("{}-", i.service.name)))
    {
        if let Ok(front) = google.front(&info.service).await
            && front.urls.iter().any(|u| host_and_path(u).0 == host)
        {
            return Ok(info.service.clone());
        }
    }
    anyhow::bail!("no service of {project} has the address {host}; give --region and --service")
}

/// What policies say about the service, and when the operator last changed it.
async fn ask_cluster(kube: &Kube, facts: &mut Facts) -> anyhow::Result<()> {
    let policies =
        list_all::<InvokerPolicy>(&Api::all(kube.client.clone()), ListParams::default()).await?;
    for policy in &policies {
        let intent = Intent::from_policy(policy);
        let status = policy.status.clone().unwrap_or_default();
        let s = &facts.service;
        let named = intent
            .targets
            .iter()
            .any(|t| matches!(t, crate::intent::Target::Named(n) if n == s));
        let selected = intent.project == s.project
            && status
                .services
                .iter()
                .any(|x| *x.name == *s.name && *x.region == *s.region);
        if !named && !selected {
            continue;
        }
        let lists = |p: &Principal| intent.declared.iter().any(|d| d.grant.principal == *p);
        let lists = facts.principal.as_ref().is_some_and(lists);
        let ready = status
            .conditions
            .iter()
            .find(|c| c.type_ == "Ready" && c.status != "True");
        facts.declared.push(Declared {
            policy: intent.id.to_string(),
            lists,
            enforced: intent.mode == Mode::Enforce && !intent.suspended,
            reason: ready.map(|c| format!("{}: {}", c.reason, c.message)),
        });
    }
    // Those that list the principal first.
    facts.declared.sort_by_key(|d| (!d.lists, d.policy.clone()));
    let changes =
        list_all::<InvokerChange>(&Api::all(kube.client.clone()), ListParams::default()).await?;
    let of_service = changes
        .iter()
        .filter(|c| crate::history::service(&c.spec) == facts.service);
    let times: Vec<Timestamp> = of_service
        .map(|c| c.spec.at.0)
        .filter(|at| *at <= facts.at)
        .collect();
    facts.changed_at = times.into_iter().max();
    Ok(())
}

fn shown(diagnosis: &Diagnosis, style: &Style) -> String {
    let mut text = format!("{}\n", style.paint(Tone::Strong, &diagnosis.service));
    if let Some(principal) = &diagnosis.principal {
        text.push_str(&format!("  as {principal}\n"));
    }
    text.push('\n');
    for step in &diagnosis.steps {
        let (sign, tone) = match step.outcome {
            Outcome::Pass => ("ok", Tone::Good),
            Outcome::Fail => ("NO", Tone::Bad),
            Outcome::Maybe => ("? ", Tone::Warn),
            Outcome::Unknown => ("- ", Tone::Dim),
        };
        let lines = style.wrap(5, &format!("{}: {}", step.check, step.evidence));
        text.push_str(&format!(
            "  {} {}\n",
            style.paint(tone, sign),
            lines.trim_start()
        ));
    }
    text.push_str(&format!(
        "\n{}\n",
        style.paint(
            Tone::Strong,
            &style.wrap(0, &format!("{:?}: {}", diagnosis.cause, diagnosis.verdict))
        )
    ));
    let fix = &diagnosis.fix;
    text.push_str(&format!("{}\n", style.wrap(0, &fix.words)));
    for part in [&fix.policy, &fix.gcloud] {
        if !part.is_empty() {
            text.push('\n');
            part.lines()
                .for_each(|l| text.push_str(&format!("  {l}\n")));
        }
    }
    text
}
