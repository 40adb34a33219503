//! `diagnose`: gathers the facts about a refused request, and shows what they come to.

mod cluster;

use std::{collections::BTreeMap, fs, io::Read as _, path::PathBuf};

use anyhow::Context as _;
use futures::future::join_all;

use super::{
    Exit, Output,
    context::{Context, no_credentials, print},
    reach::one_of_many,
    select::google_name,
};
use crate::{
    cloudrun::{
        CloudRun as _, Scope,
        assets::AssetSearch as _,
        google::{Google, Side},
        list_services,
    },
    config::CloudArgs,
    diagnose::{
        Cause, Diagnosis, Facts, Gone, Known, Outcome, Place,
        address::{self, Address, host_and_path},
        diagnose,
        symptom::{Entry, Symptom},
        token::Token,
        troubleshooter::{self, Answer},
    },
    fault::{Fault, FaultClass},
    iam::{Principal, RunService},
    inherited::read_ancestry,
    render::{Format, Style, Tone, data},
};

#[derive(Clone, Debug, clap::Args)]
pub struct DiagnoseCommand {
    /// Project of the service.
    #[arg(long, value_parser = google_name)]
    pub project: Option<String>,
    /// Region of the service.
    #[arg(long, value_parser = google_name)]
    pub region: Option<String>,
    /// Name of the service.
    #[arg(long, value_parser = google_name)]
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
    #[arg(long, value_parser = clap::value_parser!(u16).range(100..600))]
    pub status: Option<u16>,

    /// The answer, as curl -si prints it, or its headers (curl -sI) or its text alone.
    #[arg(long)]
    pub body: Option<String>,

    /// There is no entry of the request in the service's request log.
    #[arg(long, conflicts_with = "log")]
    pub no_log_entry: bool,

    /// Ask Google's Policy Troubleshooter once: grants and deny policies on the project, folders
    /// and organization, by name. It takes rights to see them (roles/iam.securityReviewer).
    #[arg(long)]
    pub troubleshoot: bool,

    /// Look at no cluster: which policy is about the service is not known then.
    #[arg(long)]
    pub offline: bool,

    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,

    #[command(flatten, next_help_heading = crate::cli::help::GOOGLE)]
    pub cloud: CloudArgs,
}

pub async fn run(context: &Context, command: &DiagnoseCommand) -> anyhow::Result<Exit> {
    let (mut symptom, entry) = match &command.log {
        Some(path) => read_entry(path)?,
        None => (Symptom::default(), Entry::default()),
    };
    symptom.status = command.status.or(symptom.status);
    if command.no_log_entry {
        symptom.logged = Some(false);
    }
    if let Some(body) = &command.body {
        symptom.take_in_answer(body);
    }
    let token = read_token(command)?;
    let principal = match &command.principal {
        Some(text) => {
            Some(Principal::parse(text).map_err(|e| anyhow::anyhow!("--as {text:?} {e}"))?)
        }
        None => token.as_ref().and_then(Token::principal),
    };
    // What was called is what the entry says; --url may have helped to find the service.
    let url = entry.url.clone().or(command.url.clone());
    let google = context.google(&command.cloud).await?;
    let service = find_service(command, &entry, url.as_deref(), &google).await?;
    let mut facts = Facts {
        at: entry.at.or(symptom.at).unwrap_or(context.now),
        principal,
        url,
        front: Known::NotAsked,
        gone: None,
        policy: Known::NotAsked,
        above: Vec::new(),
        iap: Vec::new(),
        troubleshooter: Known::NotAsked,
        token,
        symptom,
        declared: Known::NotAsked,
        granted_at: BTreeMap::new(),
        requests: Vec::new(),
        requests_in: None,
        service,
    };
    ask_google(&google, &mut facts).await?;
    if command.troubleshoot {
        facts.troubleshooter = troubleshoot(&google, &facts).await?;
    }
    if !command.offline {
        consult_cluster(context, &mut facts).await;
    }
    let diagnosis = diagnose(&facts);
    let text = match Format::from(command.output) {
        format @ (Format::Json | Format::Yaml) => {
            data(&diagnosis, format).map_err(anyhow::Error::msg)?
        }
        _ => shown(&diagnosis, &context.style()),
    };
    print(&text);
    Ok(match diagnosis.cause {
        Cause::AccessExpected => Exit::Nothing,
        cause if cause.is_open() => Exit::Unknown,
        _ => Exit::Differences,
    })
}

/// Takes in what policies say. Without a cluster the rest of the answer stands.
async fn consult_cluster(context: &Context, facts: &mut Facts) {
    match context.kube().await {
        Ok(kube) => {
            if let Err(e) = cluster::ask(&kube, facts).await {
                context.complain(&format!(
                    "note: the cluster's policies are left out: {}",
                    context.explain(&e)
                ));
            }
        }
        Err(_) => context.complain(
            "note: no cluster; what policies say is left out (--offline says that this is meant)",
        ),
    }
}

fn read_token(command: &DiagnoseCommand) -> anyhow::Result<Option<Token>> {
    let Some(text) = command.token.as_deref() else {
        return Ok(None);
    };
    Ok(Some(match text.strip_prefix('@') {
        // The error must not quote a token that was mistaken for a file.
        Some(path) => Token::read(&fs::read_to_string(path).context("the token's file")?),
        None => Token::read(text),
    }))
}

/// Reads what stands before the service and who is granted, with as few calls as say it.
async fn ask_google(google: &Google, facts: &mut Facts) -> anyhow::Result<()> {
    let service = &facts.service;
    let (front, policy, above) = tokio::join!(
        google.front(service),
        google.read_policy(service),
        above(google, &service.project)
    );
    if front.as_ref().is_ok_and(|f| f.iap) {
        facts.iap = in_front(google, service).await?;
    }
    facts.gone = front.as_ref().err().and_then(|fault| match fault.class {
        FaultClass::ProjectNotFound => Some(Gone::Project),
        FaultClass::ApiDisabled => Some(Gone::Api),
        _ => None,
    });
    facts.front = known(front)?;
    facts.policy = known(policy)?;
    facts.above = above?;
    Ok(())
}

/// The policies of the project and of what it is in, the nearest first.
async fn above(google: &Google, project: &str) -> anyhow::Result<Vec<Place>> {
    let (policy, ancestry) = tokio::join!(google.project_policy(project), google.ancestry(project));
    let mut places = vec![Place::new("the project", known(policy)?)];
    let ancestry = ancestry.and_then(|answer| read_ancestry(&answer).map_err(unexpected));
    match known(ancestry)? {
        Known::Is(names) => {
            let policies = names.iter().map(|name| google.policy_above(name));
            let policies = join_all(policies).await;
            for (name, policy) in names.iter().zip(policies) {
                places.push(Place::new(name.to_string(), known(policy)?));
            }
        }
        unseen => {
            let why = unseen.why().unwrap_or_default().to_owned();
            places.push(Place::new(
                "its folders and organization",
                Known::Hidden(why),
            ));
        }
    }
    Ok(places)
}

/// The policies of Identity-Aware Proxy's resources for the service, the nearest first.
async fn in_front(google: &Google, service: &RunService) -> anyhow::Result<Vec<Place>> {
    let all = google.iap_policies(service).await;
    let names = ["the service", "its region", "its project's IAP"];
    let places = names.into_iter().zip(all);
    places
        .map(|(name, policy)| Ok(Place::new(name, known(policy)?)))
        .collect()
}

fn unexpected(why: String) -> Fault {
    Fault::new(
        FaultClass::ForeignAnswer,
        format!("the answer is not as documented: {why}"),
    )
}

/// Asks Policy Troubleshooter.
async fn troubleshoot(google: &Google, facts: &Facts) -> anyhow::Result<Known<Answer>> {
    let asked = facts
        .principal
        .as_ref()
        .and_then(|p| troubleshooter::question(&facts.service, p));
    let Some(question) = asked else {
        anyhow::bail!(
            "--troubleshoot asks about one user or service account; give --as user:EMAIL or --as serviceAccount:EMAIL"
        );
    };
    let path = "v3/iam:troubleshoot";
    let answer = google.ask(Side::PolicyTroubleshooter, path, Some(&question));
    let answer = answer.await;
    known(answer.and_then(|answer| troubleshooter::read(&answer).map_err(unexpected)))
}

fn read_entry(path: &PathBuf) -> anyhow::Result<(Symptom, Entry)> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
    }
    let entry = serde_json::from_str(&text).map_err(|e| {
        anyhow::anyhow!(
            "{} is no log entry in JSON ({e}); gcloud logging read --format json prints them",
            path.display()
        )
    })?;
    Ok(Symptom::of_entry(&entry))
}

/// What a call came to. Credentials that do not work are no finding about the service.
fn known<T>(result: Result<T, Fault>) -> anyhow::Result<Known<T>> {
    match result {
        Ok(value) => Ok(Known::Is(value)),
        Err(fault) if fault.class == FaultClass::Credentials => Err(no_credentials(&fault)),
        Err(fault) if fault.class.row().gone => Ok(Known::Absent(fault.message.clone())),
        Err(fault) if fault.class == FaultClass::PermissionDenied => Ok(Known::Hidden(format!(
            "you may not see it: {}",
            fault.message
        ))),
        Err(fault) => Ok(Known::Hidden(one_of_many(&fault))),
    }
}

async fn find_service(
    command: &DiagnoseCommand,
    entry: &Entry,
    url: Option<&str>,
    google: &Google,
) -> anyhow::Result<RunService> {
    if let (Some(p), Some(r), Some(s)) = (&command.project, &command.region, &command.service) {
        let service = RunService::new(p.as_str(), r.as_str(), s.as_str());
        if let Some(logged) = entry.service.as_ref().filter(|logged| **logged != service) {
            anyhow::bail!("the entry is of {logged}, and not of {service}; give one of the two");
        }
        return Ok(service);
    }
    if let Some(service) = &entry.service {
        return Ok(service.clone());
    }
    let (Some(project), Some(url)) = (&command.project, url) else {
        anyhow::ensure!(
            command.log.is_none(),
            "which service? The entry names none, as those of perimeters may not; give --project, --region and --service beside it"
        );
        anyhow::bail!(
            "which service? Give --project, --region and --service, or --project and --url, or --log"
        );
    };
    let (host, _) = host_and_path(url);
    let listing = list_services(google, project, &Scope::AllRegions)
        .await
        .map_err(|f| match f.class {
            FaultClass::Credentials => no_credentials(&f),
            _ => anyhow::anyhow!("listing the services of {project}: {}", one_of_many(&f)),
        })?;
    let mut all = listing.services.iter();
    if let Some(info) = all.find(|i| address::may_be_function(url, &i.service)) {
        return Ok(info.service.clone());
    }
    for info in listing
        .services
        .iter()
        .filter(|i| address::may_be_of(&host, &i.service.name))
    {
        if let Ok(front) = google.front(&info.service).await
            && matches!(
                address::of(url, &info.service, &front),
                Address::Own | Address::Tag(_) | Address::UnknownTag(_)
            )
        {
            return Ok(info.service.clone());
        }
    }
    anyhow::bail!("no service of {project} has the address {host}; give --region and --service")
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
            Outcome::Unknown => ("??", Tone::Warn),
            Outcome::Skipped => ("- ", Tone::Dim),
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
    let lines = fix.patch.as_ref().map_or("", |p| p.lines.as_str());
    for part in [lines, &fix.policy, &fix.gcloud] {
        if !part.is_empty() {
            text.push('\n');
            part.lines()
                .for_each(|l| text.push_str(&format!("  {l}\n")));
        }
    }
    text
}
