//! The operator: parse, construct, run.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use run_invoker::{
    cloudrun::{fence::Fenced, google, limit::Limited},
    cluster::Cluster,
    config::Args,
    controller::{Controller, Options, audit_events::EventOptions, inherited::InheritedOptions},
    http::{Endpoints, router},
    leader::{self, Shards},
    metrics::Metrics,
    subscription::Source,
    telemetry,
};
use tokio::sync::watch;
use tower::limit::ConcurrencyLimitLayer;

/// Most of the memory that a cold start takes is free again a minute later. jemalloc gives it back to
/// the system, glibc keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Calls to the API server at once. It speaks HTTP/1.1 to kube, so each of them takes a connection,
/// with the buffers of TLS.
const API_CALLS: usize = 16;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Err(why) = args.check() {
        anyhow::bail!(why);
    }
    // Outside of the runtime: spans are exported from a thread of their own, with a blocking
    // client.
    let _guard = telemetry::init(&args.log, args.log_format, args.otlp_endpoint.as_deref())?;
    // Two threads carry ten thousand services; more would only be memory.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let metrics = Metrics::new(!args.no_policy_metrics)?;
    let config = kube::Config::infer()
        .await
        .context("reaching Kubernetes: no kubeconfig, and not inside a cluster")?;
    // Whoever renews the Lease waits for nobody.
    let elector = kube::Client::try_from(config.clone()).context("reaching Kubernetes")?;
    let client = kube::client::ClientBuilder::try_from(config)
        .context("reaching Kubernetes")?
        .with_layer(&ConcurrencyLimitLayer::new(API_CALLS))
        .build();
    let shards = Shards::new(args.shards as usize);
    let cloud = connect_cloud(&args, &shards, &metrics).await?;
    let cluster = Cluster::new(
        client,
        &args.identity,
        args.lease_namespace.clone(),
        &args.lease_name,
        Duration::from_secs(30),
    );
    let controller = Controller::new(
        cloud,
        cluster,
        options(&args).await?,
        metrics.clone(),
        shards.clone(),
    );
    serve(&args, &controller, metrics).await?;
    read_audit_events(&args, &controller).await?;
    run_elected(&args, elector, shards, &controller).await;
    tracing::info!("run-invoker stopped");
    Ok(())
}

type Cloud = Fenced<google::Google>;

/// Cloud Run, within the budget and only for projects of shards that this replica leads.
async fn connect_cloud(
    args: &Args,
    shards: &Arc<Shards>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Limited<Cloud>> {
    let google = google::Google::connect(google::Options {
        endpoint: args.cloud.cloud_run_endpoint.clone(),
        credentials: google::credentials(args.cloud.anonymous)
            .map_err(|f| anyhow::anyhow!(f.advice()))?,
        timeout: args.cloud.cloud_timeout,
        quota_project: args.cloud.quota_project.clone(),
    })
    .await?;
    let permit = shards.clone();
    let fenced = Fenced::new(google, Arc::new(move |project: &str| permit.holds(project)));
    Ok(Limited::new(fenced, args.cloud.budget(), metrics.clone()))
}

/// Searches for grants above the services, as an identity of its own if that is wanted.
async fn inherited(args: &Args) -> anyhow::Result<Option<InheritedOptions>> {
    if args.inherited_scopes.is_empty() {
        return Ok(None);
    }
    let google = google::Google::connect(google::Options {
        endpoint: args.cloud.cloud_run_endpoint.clone(),
        credentials: google::credentials_as(
            args.cloud.anonymous,
            args.inherited_impersonate.as_deref(),
        )
        .map_err(|f| anyhow::anyhow!(f.advice()))?,
        timeout: args.cloud.cloud_timeout,
        quota_project: args.cloud.quota_project.clone(),
    })
    .await?;
    Ok(Some(InheritedOptions {
        scopes: args.inherited_scopes.clone(),
        interval: args.inherited_interval,
        search: Arc::new(google),
    }))
}

async fn options(args: &Args) -> anyhow::Result<Options> {
    let events = EventOptions {
        interval: args.event_interval,
        patience: args.event_patience,
    };
    Ok(Options {
        settings: args.plan.settings(),
        inherited: inherited(args).await?,
        propagation: args.propagation_window,
        breaker: args.breaker(),
        events: (!args.event_subscriptions.is_empty()).then_some(events),
        retention: args.retention(),
        stamped: args.admission_stamps,
        workers: args.cloud.concurrency as usize,
        now: Arc::new(jiff::Timestamp::now),
        seed: 0,
        stuck_after: Duration::from_secs(900),
        grace: args.grace,
    })
}

/// Health, readiness and metrics.
async fn serve(
    args: &Args,
    controller: &Arc<Controller<Cloud>>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listening on {}", args.listen))?;
    let (health, ready, gauges) = (controller.clone(), controller.clone(), controller.clone());
    let endpoints = Endpoints {
        healthy: Arc::new(move || health.health()),
        ready: Arc::new(move || {
            if ready.is_synced() {
                Ok(())
            } else {
                Err("the caches are not complete yet".into())
            }
        }),
        metrics,
        refresh: Arc::new(move || gauges.refresh_gauges()),
    };
    tokio::spawn(async move { axum::serve(listener, router(endpoints)).await });
    Ok(())
}

async fn read_audit_events(args: &Args, controller: &Arc<Controller<Cloud>>) -> anyhow::Result<()> {
    if args.event_subscriptions.is_empty() {
        return Ok(());
    }
    // An emulator takes plain text and no credentials; whatever has TLS gets those that Cloud Run
    // gets.
    let anonymous = args.cloud.anonymous || args.event_endpoint.starts_with("http://");
    let source = Source::new(&args.event_endpoint, google::credentials(anonymous)?).await?;
    for subscription in args.event_subscriptions.iter().cloned() {
        tokio::spawn(source.clone().read(subscription, controller.clone()));
    }
    Ok(())
}

/// Runs until a signal. The Lease is given up only after the work in flight is over.
async fn run_elected(
    args: &Args,
    client: kube::Client,
    shards: Arc<Shards>,
    controller: &Arc<Controller<Cloud>>,
) {
    let (stop, stopped) = watch::channel(false);
    let (retire, retired) = watch::channel(false);
    let lease = leader::Options {
        namespace: args.lease_namespace.clone(),
        name: args.lease_name.clone(),
        identity: args.identity.clone(),
        duration: args.lease_duration,
        renew: args.lease_renew,
        grace: args.grace,
        now: leader::Now(Arc::new(jiff::Timestamp::now)),
        note: controller.clone().lease_note(),
    };
    let election = tokio::spawn(leader::run(client, lease, shards, retired));
    tokio::spawn(async move {
        interrupted().await;
        stop.send_replace(true);
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity = %args.identity, listen = %args.listen, "run-invoker starts");
    controller.run(stopped).await;
    retire.send_replace(true);
    let _ = election.await;
}

/// SIGTERM or Ctrl-C.
async fn interrupted() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}
