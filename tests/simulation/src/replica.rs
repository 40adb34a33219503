//! One replica of the operator: the real controller, election, limiter and fence over a cable.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use jiff::SignedDuration;
use kube::Client;
use run_invoker::{
    cloudrun::{
        fence::Fenced,
        google::Google,
        limit::{Budget, Limited},
    },
    cluster::Cluster,
    controller::{Controller, Options, audit_events::EventOptions, inherited::InheritedOptions},
    history::Retention,
    inherited::SearchScope,
    leader::{self, Shards},
    metrics::Metrics,
    plan::{Settings, drift::BreakerLimits},
};
use sandbox::Call;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    cloud,
    net::{Answer, Broken, Cable, Carried, KUBE_TIMEOUT},
    story::{Setup, Side},
    world::ORGANIZATION,
};

/// Namespace of the operator itself.
pub const HOME: &str = "run-invoker";
/// Name of its Lease.
pub const LEASE: &str = "run-invoker";

/// Where audit events can be relied on, periodic looks are so far apart.
pub const EVENT_INTERVAL: Duration = Duration::from_secs(600);
/// How long the operator allows IAM to act on a change everywhere.
pub const PROPAGATION: Duration = Duration::from_secs(60);
/// How often grants above the services are searched for.
const INHERITED_INTERVAL: Duration = Duration::from_secs(300);

/// A running replica.
pub struct Replica {
    pub cable: Arc<Cable>,
    pub controller: Arc<Controller<Fenced<Google>>>,
    pub metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    retire: watch::Sender<bool>,
    work: JoinHandle<()>,
    election: JoinHandle<()>,
}

/// kube's client over a cable.
pub fn client(cable: Arc<Cable>) -> Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let cable = cable.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(|b| b.to_bytes())
                .unwrap_or_default();
            let call = Call::new(parts.method, &parts.uri, parts.headers, body);
            match cable.carry(Side::Kube, call).await? {
                Carried::Whole(answer) => Ok::<_, Broken>(whole(answer)),
                Carried::Watch(frames) => {
                    let frames = frames.map(|f| f.map(http_body::Frame::data));
                    Ok(http::Response::new(BodyExt::boxed_unsync(StreamBody::new(
                        frames,
                    ))))
                }
            }
        }
    });
    Client::new(service, "default")
}

type Body = UnsyncBoxBody<Bytes, Broken>;

fn whole(answer: Answer) -> http::Response<Body> {
    let body = http_body_util::Full::new(answer.body).map_err(|never| match never {});
    let mut response = http::Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = http::StatusCode::from_u16(answer.status).unwrap_or_default();
    *response.headers_mut() = answer.headers;
    response
}

/// How the operator is set up in every world.
pub fn settings(setup: &Setup) -> Settings {
    let mut settings = Settings::default();
    settings.limits.max_removals = setup.max_removals;
    settings
}

impl Replica {
    /// Starts one.
    pub fn start(cable: Arc<Cable>, identity: &str, setup: &Setup) -> Self {
        let metrics = Metrics::new(true).expect("metrics have different names");
        let client = client(cable.clone());
        let clock = cable.net.apis.clock.clone();
        let now = Arc::new(move || clock.now());
        let shards = Shards::new(setup.shards);
        let permit = shards.clone();
        let fenced = Fenced::new(
            cloud::google(cable.clone()),
            Arc::new(move |project: &str| permit.holds(project)),
        );
        let budget = Budget {
            reads_per_minute: setup.reads,
            writes_per_minute: setup.writes,
            concurrency: 64,
        };
        let controller = Controller::new(
            Limited::new(fenced, budget, metrics.clone()),
            Cluster::new(client.clone(), identity, HOME.into(), LEASE, KUBE_TIMEOUT),
            Options {
                settings: settings(setup),
                propagation: PROPAGATION,
                breaker: BreakerLimits {
                    corrections: setup.breaker,
                    ..BreakerLimits::default()
                },
                events: setup.events.then_some(EventOptions {
                    interval: EVENT_INTERVAL,
                    patience: Duration::from_secs(60),
                }),
                inherited: setup.inherited.then(|| InheritedOptions {
                    scopes: vec![
                        SearchScope::parse(ORGANIZATION).expect("it is an organization's name"),
                    ],
                    interval: INHERITED_INTERVAL,
                    search: Arc::new(cloud::google(cable.clone())),
                }),
                retention: Retention {
                    number: 1000,
                    age: SignedDuration::from_hours(90 * 24),
                },
                workers: 64,
                now: now.clone(),
                seed: 7,
                stuck_after: Duration::from_secs(900),
                stamped: false,
                grace: Duration::from_secs(10),
            },
            metrics.clone(),
            shards.clone(),
        );
        let (stop, stopped) = watch::channel(false);
        let (retire, retired) = watch::channel(false);
        let lease = leader::Options {
            namespace: HOME.into(),
            name: LEASE.into(),
            identity: identity.into(),
            duration: Duration::from_millis(setup.lease_ms),
            renew: Duration::from_millis(setup.renew_ms),
            grace: Duration::from_secs(10),
            now: leader::Now(now),
            note: controller.clone().lease_note(),
        };
        let running = controller.clone();
        let election = tokio::spawn(leader::run(client, lease, shards, retired));
        let work = tokio::spawn(async move { running.run(stopped).await });
        Self {
            cable,
            controller,
            metrics,
            stop,
            retire,
            work,
            election,
        }
    }

    /// The end without a word: nothing of it does anything any more.
    pub fn die(self) {
        self.cable.cut();
        self.work.abort();
        self.election.abort();
    }

    /// As SIGTERM does: finish, then give the Lease up.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.work.await;
        self.retire.send_replace(true);
        let _ = self.election.await;
        self.cable.cut();
    }

    /// Whether it still works at all.
    pub fn has_ended(&self) -> bool {
        self.work.is_finished() || self.election.is_finished()
    }
}
