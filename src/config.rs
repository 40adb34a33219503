//! Flags and environment, as typed and then as meant.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{
    cloudrun::limit::Budget,
    history::Retention,
    inherited::SearchScope,
    intent::Limits,
    plan::{self, drift::BreakerLimits},
};

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Whether public members may be granted where no guardrail speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Public {
    Deny,
    Allow,
}

/// Who agrees to a held plan where no guardrail speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ApprovedBy {
    Tenant,
    Approver,
}

/// How Cloud Run is reached, and how hard; the operator's and the plugin's.
#[derive(Clone, Debug, clap::Args)]
pub struct CloudArgs {
    /// Endpoint of the Cloud Run Admin API.
    #[arg(long, env = "RUN_INVOKER_CLOUD_RUN_ENDPOINT", default_value = crate::cloudrun::google::DEFAULT_ENDPOINT)]
    pub cloud_run_endpoint: String,

    /// Send no credentials to Google: for the sandbox and other emulators only.
    #[arg(long, env = "RUN_INVOKER_ANONYMOUS")]
    pub anonymous: bool,

    /// Quota project of API calls (needs serviceusage.services.use there); the credential's own if
    /// not given.
    #[arg(long, env = "RUN_INVOKER_QUOTA_PROJECT")]
    pub quota_project: Option<String>,

    /// Timeout of one call to Google.
    #[arg(long, env = "RUN_INVOKER_CLOUD_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub cloud_timeout: Duration,

    /// Reads per minute, project and region; at least 6. Never exceeded in any 60 seconds.
    /// Reported quotas are 600.
    #[arg(long, env = "RUN_INVOKER_READS_PER_MINUTE", default_value_t = 300, value_parser = clap::value_parser!(u32).range(6..))]
    pub reads_per_minute: u32,

    /// Writes per minute, project and region. Reported quotas are 30 and 60. If a 429 names the
    /// limit, half of it is used from then on.
    #[arg(long, env = "RUN_INVOKER_WRITES_PER_MINUTE", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub writes_per_minute: u32,

    /// Services that are reconciled concurrently; those that wait long for a response do not count.
    #[arg(long, env = "RUN_INVOKER_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: u32,
}

impl CloudArgs {
    pub fn budget(&self) -> Budget {
        Budget {
            reads_per_minute: self.reads_per_minute,
            writes_per_minute: self.writes_per_minute,
            concurrency: self.concurrency as usize,
        }
    }
}

/// What a plan depends on besides policies, guardrails and reality; the operator's and the
/// plugin's.
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// Members that are never revoked, not even by the policy that lists them; * matches any text.
    /// Repeat, or separate by commas.
    #[arg(
        long = "protected-member",
        env = "RUN_INVOKER_PROTECTED_MEMBERS",
        value_delimiter = ',',
        default_value = "serviceAccount:service-*@gcp-sa-*.iam.gserviceaccount.com"
    )]
    pub protected_members: Vec<String>,

    /// Whether policies may grant allUsers and allAuthenticatedUsers where no guardrail selects the
    /// namespace.
    #[arg(long, env = "RUN_INVOKER_PUBLIC", value_enum, default_value = "deny")]
    pub public: Public,

    /// The most invokers of one service that one write may revoke without approval, unless a
    /// guardrail sets it.
    #[arg(long, env = "RUN_INVOKER_MAX_REMOVALS", default_value_t = 20)]
    pub max_removals: u32,

    /// The most services that a selector may newly match at once without approval.
    #[arg(long, env = "RUN_INVOKER_MAX_NEW_SERVICES", default_value_t = 50)]
    pub max_new_services: u32,

    /// Who approves held plans unless a guardrail sets it: tenant, whoever may write the policy;
    /// approver, only who may create an InvokerApproval.
    #[arg(
        long,
        env = "RUN_INVOKER_APPROVED_BY",
        value_enum,
        default_value = "tenant"
    )]
    pub approved_by: ApprovedBy,

    /// Refuse everything in namespaces that no InvokerGuardrail selects.
    #[arg(long, env = "RUN_INVOKER_REQUIRE_GUARDRAIL")]
    pub require_guardrail: bool,
}

impl PlanArgs {
    pub fn settings(&self) -> plan::Settings {
        plan::Settings {
            protected: self
                .protected_members
                .iter()
                .filter(|m| !m.is_empty())
                .cloned()
                .collect(),
            limits: Limits {
                public: self.public == Public::Allow,
                max_removals: self.max_removals as usize,
                max_new_services: self.max_new_services as usize,
                approver: self.approved_by == ApprovedBy::Approver,
                require_guardrail: self.require_guardrail,
            },
        }
    }
}

/// Reconciles the IAM invokers of Cloud Run services to match InvokerPolicy objects.
///
/// Kubernetes is reached by KUBECONFIG or from inside a cluster; Google Cloud with Application
/// Default Credentials.
#[derive(Clone, Debug, Parser)]
#[command(version, name = "run-invoker")]
pub struct Args {
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "RUN_INVOKER_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    #[command(flatten)]
    pub cloud: CloudArgs,

    /// How long IAM may take to propagate a change; the condition Propagated is False for that time.
    #[arg(long, env = "RUN_INVOKER_PROPAGATION_WINDOW", default_value = "7m", value_parser = duration)]
    pub propagation_window: Duration,

    #[command(flatten)]
    pub plan: PlanArgs,

    /// The most writes that correct drift, across all services, within the window; beyond that
    /// corrections are paused.
    #[arg(long, env = "RUN_INVOKER_BREAKER_CORRECTIONS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub breaker_corrections: u32,

    /// Window of the circuit breaker; after that time without new drift it closes automatically.
    #[arg(long, env = "RUN_INVOKER_BREAKER_WINDOW", default_value = "5m", value_parser = duration)]
    pub breaker_window: Duration,

    /// Pub/Sub subscription with Cloud Audit Logs of Cloud Run, as
    /// projects/PROJECT/subscriptions/NAME. Repeat, or separate by commas. Without one, drift is
    /// detected by polling only.
    #[arg(long = "event-subscription", env = "RUN_INVOKER_EVENT_SUBSCRIPTIONS", value_delimiter = ',', value_parser = subscription)]
    pub event_subscriptions: Vec<String>,

    /// Endpoint of Pub/Sub. Over http:// no credentials are sent: for emulators only.
    #[arg(long, env = "RUN_INVOKER_EVENT_ENDPOINT", default_value = crate::subscription::DEFAULT_ENDPOINT)]
    pub event_endpoint: String,

    /// Polling interval with audit events; while events are missing, services are polled at the
    /// intervals of their policies.
    #[arg(long, env = "RUN_INVOKER_EVENT_INTERVAL", default_value = "1h", value_parser = duration)]
    pub event_interval: Duration,

    /// How long after a change its audit event may arrive; after that, events count as missing.
    #[arg(long, env = "RUN_INVOKER_EVENT_PATIENCE", default_value = "5m", value_parser = duration)]
    pub event_patience: Duration,

    /// Where to search for inherited grants, everything below included: organizations/NUMBER,
    /// folders/NUMBER or projects/ID. Repeat, or separate by commas. Without one, they are not
    /// searched. They are never changed.
    #[arg(long = "inherited-scope", env = "RUN_INVOKER_INHERITED_SCOPES", value_delimiter = ',', value_parser = SearchScope::parse)]
    pub inherited_scopes: Vec<SearchScope>,

    /// Record the annotation run-invoker.dev/created-by as the approver in change records. Only where
    /// admission policies verify it, as those of the chart do: otherwise anybody may write any name.
    #[arg(long, env = "RUN_INVOKER_ADMISSION_STAMPS")]
    pub admission_stamps: bool,

    /// How often each scope is searched: one paged query each time, whatever the number of services.
    #[arg(long, env = "RUN_INVOKER_INHERITED_INTERVAL", default_value = "15m", value_parser = duration)]
    pub inherited_interval: Duration,

    /// Service account to impersonate for the search (roles/iam.serviceAccountTokenCreator on it), so
    /// that the operator itself needs no permission above its services.
    #[arg(long, env = "RUN_INVOKER_INHERITED_IMPERSONATE")]
    pub inherited_impersonate: Option<String>,

    /// Records of changes (InvokerChange) that are kept of each policy.
    #[arg(long, env = "RUN_INVOKER_KEEP_CHANGES", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_changes: u32,

    /// How long records of changes are kept.
    #[arg(long, env = "RUN_INVOKER_KEEP_CHANGES_FOR", default_value = "2160h", value_parser = duration)]
    pub keep_changes_for: Duration,

    /// Number of shards that projects are distributed over; replicas share them. All replicas must
    /// have the same number.
    #[arg(long, env = "RUN_INVOKER_SHARDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub shards: u32,

    /// Namespace of the Leases for leader election.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,

    /// Name of the Lease; with several shards, the prefix of the names of their Leases.
    #[arg(long, env = "RUN_INVOKER_LEASE_NAME", default_value = "run-invoker")]
    pub lease_name: String,

    /// Name of this replica in the Leases and in events.
    #[arg(long, env = "POD_NAME", default_value_t = identity())]
    pub identity: String,

    /// Time without renewal after which another replica takes over.
    #[arg(long, env = "RUN_INVOKER_LEASE_DURATION", default_value = "7s", value_parser = duration)]
    pub lease_duration: Duration,

    /// How often a Lease is renewed; at most a third of the lease duration.
    #[arg(long, env = "RUN_INVOKER_LEASE_RENEW", default_value = "1500ms", value_parser = duration)]
    pub lease_renew: Duration,

    /// Omit the metric series per policy.
    #[arg(long, env = "RUN_INVOKER_NO_POLICY_METRICS")]
    pub no_policy_metrics: bool,

    /// Log filter, for example info or run_invoker=debug.
    #[arg(long = "log", env = "RUN_INVOKER_LOG", default_value = "info")]
    pub log: String,

    /// Log format.
    #[arg(
        long,
        env = "RUN_INVOKER_LOG_FORMAT",
        value_enum,
        default_value = "json"
    )]
    pub log_format: LogFormat,

    /// Send spans to this OpenTelemetry collector (OTLP over HTTP), for example
    /// http://collector:4318.
    #[arg(long, env = "RUN_INVOKER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,

    /// How long running calls may take to finish after SIGTERM.
    #[arg(long, env = "RUN_INVOKER_GRACE", default_value = "25s", value_parser = duration)]
    pub grace: Duration,
}

impl Args {
    /// What cannot be meant together.
    ///
    /// # Errors
    /// In words that name the flag.
    pub fn check(&self) -> Result<(), String> {
        if self.lease_renew * 3 > self.lease_duration {
            return Err(format!(
                "--lease-renew {:?} must be at most a third of --lease-duration {:?}",
                self.lease_renew, self.lease_duration
            ));
        }
        if self.inherited_interval < Duration::from_secs(60) && !self.cloud.anonymous {
            return Err(
                "--inherited-interval must be at least 1m; what a search shows is minutes old at best"
                    .into(),
            );
        }
        if self.lease_duration < Duration::from_secs(1) {
            return Err("--lease-duration must be at least 1s".into());
        }
        Ok(())
    }

    pub fn breaker(&self) -> BreakerLimits {
        BreakerLimits {
            corrections: self.breaker_corrections as usize,
            window: signed(self.breaker_window),
        }
    }

    pub fn retention(&self) -> Retention {
        Retention {
            number: self.keep_changes as usize,
            age: signed(self.keep_changes_for),
        }
    }
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    duration.try_into().unwrap_or(jiff::SignedDuration::MAX)
}

fn identity() -> String {
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host = host.trim();
    format!(
        "{}-{}",
        if host.is_empty() { "run-invoker" } else { host },
        std::process::id()
    )
}

/// `projects/PROJECT/subscriptions/NAME`.
fn subscription(text: &str) -> Result<String, String> {
    match text.split('/').collect::<Vec<_>>().as_slice() {
        ["projects", project, "subscriptions", name] if !project.is_empty() && !name.is_empty() => {
            Ok(text.to_owned())
        }
        _ => Err(format!(
            "{text:?} is not projects/PROJECT/subscriptions/NAME"
        )),
    }
}

/// `250ms`, `10s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..split]
        .parse()
        .map_err(|_| format!("{text:?} is not a duration such as 10s or 5m"))?;
    match &text[split..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err(format!("{text:?} is not a duration such as 10s or 5m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_lease_that_cannot_be_kept_is_refused() {
        let args = Args::parse_from(["run-invoker", "--lease-duration", "4s"]);
        assert!(args.check().unwrap_err().contains("--lease-renew"));
    }
}
