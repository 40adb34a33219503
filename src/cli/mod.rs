//! The kubectl plugin: arguments to calls, exit codes. It shares gather, plan and render with the
//! operator, so what it shows is what the operator would do.
//!
//! Exit codes: 0 nothing to do, 1 error, 2 there are differences, 3 it could not be told.

mod access;
mod act;
mod approve;
mod completion;
mod context;
mod diagnose;
mod doctor;
mod effective;
mod export;
pub mod files;
pub mod help;
mod output;
mod plan;
mod reach;
mod request;
mod review;
mod rollback;
mod select;
mod show;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    config::{CloudArgs, PlanArgs},
    render::Format,
};
use context::Context;

const EXAMPLES: &str = "Exit codes: 0 nothing to do, 1 error, 2 there are differences, 3 not everything could be seen
(diagnose, doctor).

Kubernetes is reached by your kubeconfig, as kubectl does; Google with Application Default Credentials
(gcloud auth application-default login).";

/// Who may invoke which Cloud Run services: plan, explain, adopt, undo.
#[derive(Clone, Debug, Parser)]
#[command(name = "kubectl-invoker", bin_name = "kubectl invoker", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    /// Path of the kubeconfig.
    #[arg(long, global = true, value_name = "FILE", help_heading = help::GLOBAL)]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME", help_heading = help::GLOBAL)]
    pub context: Option<String>,

    /// Namespace; the context's if not given.
    #[arg(long, short, global = true, value_parser = select::namespace, help_heading = help::GLOBAL)]
    pub namespace: Option<String>,

    /// Colours: on a terminal only, always, or never. NO_COLOR switches them off.
    #[arg(long, global = true, value_enum, default_value = "auto", help_heading = help::GLOBAL)]
    pub color: Colour,

    /// The time that counts as now (RFC 3339); for tests and for looking ahead.
    #[arg(long, global = true, hide = true, env = "KUBECTL_INVOKER_NOW")]
    pub now: Option<jiff::Timestamp>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    Auto,
    Always,
    Never,
}

/// The form of an answer, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
    Yaml,
    Markdown,
}

impl From<Output> for Format {
    fn from(output: Output) -> Self {
        match output {
            Output::Text => Self::Text,
            Output::Json => Self::Json,
            Output::Yaml => Self::Yaml,
            Output::Markdown => Self::Markdown,
        }
    }
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// What applying these files would do to IAM, without doing it.
    #[command(after_help = "Examples:
  kubectl invoker plan -f policies/                     # what these files change, beside what is in the cluster
  kubectl invoker plan -f policies/ --all               # the whole state, with these files applied
  kubectl invoker plan -f policies/ --offline           # no cluster needed: files and Google only
  kubectl invoker plan                                  # what the operator would do now
  kubectl invoker plan -n shop                          # the same for the policies of a namespace
  kubectl invoker plan -f policies/ -o markdown --fail-on held,exposed      # for a pull request
  kubectl invoker plan -f policies/ --approvals policies/approvals.yaml      # what the merge needs")]
    Plan(plan::PlanCommand),

    /// How policies stand.
    #[command(after_help = "Examples:
  kubectl invoker status -A
  kubectl invoker status checkout -n shop
  kubectl invoker status -A -l team=shop -o wide
  kubectl invoker status -A -o jsonpath='{range .policies[*]}{.namespace}/{.name} {.reason}{\"\\n\"}{end}'")]
    Status(show::StatusCommand),

    /// What is off, since when, and what the operator says about it.
    #[command(after_help = "Examples:
  kubectl invoker drift -A
  kubectl invoker drift -A --watch")]
    Drift(show::DriftCommand),

    /// Why a principal gets 401, 403 or 404 from a service, and the narrowest way to mend it.
    #[command(after_help = "Examples:
  kubectl invoker diagnose --project acme-prod --region europe-west1 --service checkout \\
    --as serviceAccount:frontend@acme-prod.iam.gserviceaccount.com
  kubectl invoker diagnose --url https://checkout-abcdefghij-ew.a.run.app --project acme-prod --token \"$TOKEN\"
  kubectl invoker diagnose --log entry.json             # a Cloud Logging entry of the refusal")]
    Diagnose(Box<diagnose::DiagnoseCommand>),

    /// Policies from what IAM holds today, in Audit mode: adoption without an outage.
    #[command(after_help = "Examples:
  kubectl invoker export --project acme-prod > policies.yaml
  kubectl invoker export --project acme-prod --region europe-west1 --selector team=shop --group -n shop
  kubectl invoker export --from config-connector/ --from terraform.json     # terraform show -json")]
    Export(export::ExportCommand),

    /// Approve the plan that a policy holds, or a request for access, after showing it. Where a
    /// guardrail wants an approver, or with --reason, by an InvokerApproval.
    #[command(after_help = "Examples:
  kubectl invoker approve checkout -n shop
  kubectl invoker approve shop/checkout --hash 3f9c0a71e2b4 --yes
  kubectl invoker approve checkout -n shop --reason 'CHG-42: batch moves to its own account'
  kubectl invoker approve inc-1 --request -n shop --reason 'INC-1: agreed with the owner'
  kubectl invoker approve --ledger acme-prod.europe-west1.archive")]
    Approve(approve::ApproveCommand),

    /// Say no to a request for access, or to the plan that a policy holds, by an InvokerApproval.
    #[command(after_help = "Examples:
  kubectl invoker deny inc-1 --request -n shop --reason 'use the read-only service'
  kubectl invoker deny checkout -n shop --reason 'batch still needs it'")]
    Deny(approve::DenyCommand),

    /// Ask for access to services for a time.
    #[command(after_help = "Examples:
  kubectl invoker request --service checkout --region europe-west1 --for 1h --reason INC-1 -n shop
  kubectl invoker request --service checkout --region europe-west1 --project acme-prod --for 30m \\
    --reason 'CHG-7: look at the queue' --member user:ada@acme.com --wait")]
    Request(Box<request::RequestCommand>),

    /// Who asked for access, and where that stands.
    #[command(after_help = "Examples:
  kubectl invoker requests -A --pending
  kubectl invoker requests -n shop -o wide", mut_arg("names", |a| a.help("Names of requests, each NAME or NAMESPACE/NAME; all of the namespace if none is given")), mut_arg("selector", |a| a.help("Only requests with these labels, as in team=shop,tier in (web,api)")))]
    Requests(request::RequestsCommand),

    /// Asks the operator to reconcile now, and waits for it.
    #[command(after_help = "Examples:
  kubectl invoker reconcile checkout -n shop
  kubectl invoker reconcile -A")]
    Reconcile(act::NameCommand),

    /// Stops everything that a policy does, until it is resumed.
    Suspend(act::NameCommand),

    /// Ends a suspension.
    Resume(act::NameCommand),

    /// What was changed in IAM, when, why and for whom.
    #[command(after_help = "Examples:
  kubectl invoker history -n shop
  kubectl invoker history checkout -n shop
  kubectl invoker history -A --service checkout", mut_arg("names", |a| a.help("Names of policies and requests, gone ones too, each NAME or NAMESPACE/NAME; all of the namespace if none is given")), mut_arg("selector", |a| a.help("Only changes of policies with these labels, as in team=shop,tier in (web,api)")))]
    History(show::HistoryCommand),

    /// Restores the state before a change until you end the rollback, after showing the difference.
    #[command(after_help = "Examples:
  kubectl invoker rollback checkout-20261123-120000123-1f3a9c -n shop
  kubectl invoker rollback --end --policy checkout -n shop      # back to the spec")]
    Rollback(Box<rollback::RollbackCommand>),

    /// Who can invoke what, and how: a matrix.
    #[command(after_help = "Examples:
  kubectl invoker access --project acme-prod
  kubectl invoker access -n shop                        # the services that policies of a namespace declare
  kubectl invoker access --project acme-prod --project acme-shop -o html > access.html")]
    Access(access::AccessCommand),

    /// What stands between the operator and its work: definitions, leadership, permissions, events,
    /// quota.
    #[command(after_help = "Examples:
  kubectl invoker doctor
  kubectl invoker doctor --project acme-prod --event-subscription projects/acme-ops/subscriptions/run-invoker-events")]
    Doctor(Box<doctor::DoctorCommand>),

    /// Completion for kubectl, or for a shell without kubectl.
    #[command(after_help = completion::HOW)]
    Completion(completion::CompletionCommand),

    /// What kubectl asks for while somebody types.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete(completion::CompleteCommand),
}

/// How Google is reached.
#[derive(Clone, Debug, clap::Args)]
pub struct GoogleArgs {
    #[command(flatten)]
    pub cloud: CloudArgs,
}

/// Runs a command.
pub async fn run(args: Args) -> ExitCode {
    let context = Context::new(&args);
    let command = args.command.clone();
    let result = match command {
        Command::Plan(c) => plan::run(&context, &c).await,
        Command::Status(c) => show::status(&context, &c).await,
        Command::Drift(c) => show::drift(&context, &c).await,
        Command::History(c) => show::history(&context, &c).await,
        Command::Diagnose(c) => diagnose::run(&context, &c).await,
        Command::Export(c) => export::run(&context, &c).await,
        Command::Approve(c) => approve::approve(&context, &c).await,
        Command::Deny(c) => approve::deny(&context, &c).await,
        Command::Request(c) => request::request(&context, &c).await,
        Command::Requests(c) => request::requests(&context, &c).await,
        Command::Reconcile(c) => act::reconcile(&context, &c).await,
        Command::Suspend(c) => act::suspend(&context, &c, true).await,
        Command::Resume(c) => act::suspend(&context, &c, false).await,
        Command::Rollback(c) => rollback::rollback(&context, &c).await,
        Command::Access(c) => access::run(&context, &c).await,
        Command::Doctor(c) => doctor::run(&context, &c).await,
        Command::Completion(c) => completion::run(&c),
        Command::Complete(c) => completion::complete(&context, &c).await,
    };
    match result {
        Ok(code) => code.into(),
        Err(error) => {
            context.complain(&format!("error: {}", context.explain(&error)));
            Exit::Error.into()
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Nothing,
    Error,
    Differences,
    /// What was to be told could not be: something was not given, or not seen.
    Unknown,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Nothing => 0,
            Exit::Error => 1,
            Exit::Differences => 2,
            Exit::Unknown => 3,
        })
    }
}

/// Both what plans depend on and how Google is reached.
#[derive(Clone, Debug, clap::Args)]
pub struct WorldArgs {
    #[command(flatten, next_help_heading = help::GOOGLE)]
    pub cloud: CloudArgs,
    #[command(flatten, next_help_heading = help::LIMITS)]
    pub plan: PlanArgs,
}
