//! A Pub/Sub subscription behind a sink of Cloud Audit Logs, read with Google's own client.
//!
//! Messages are acknowledged as soon as they were taken in: what they stand for is in the live
//! policies, and a process that starts anew reads all of those anyway.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use google_cloud_auth::credentials::Credentials;
use google_cloud_pubsub::{
    client::Subscriber,
    subscriber::{MessageStream, handler::Handler as Receipt},
};
use tokio::time::{Instant, MissedTickBehavior};

/// Endpoint of Pub/Sub.
pub const DEFAULT_ENDPOINT: &str = "https://pubsub.googleapis.com";
/// How often the endpoint is tried, and whether this replica works at all is asked.
const PROBE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(200);
/// Messages and bytes that wait in memory.
const MAX_MESSAGES: i64 = 1000;
const MAX_BYTES: i64 = 16 << 20;
/// A message for another replica is given back after so long: it must not go round and round.
const GIVE_BACK: Duration = Duration::from_millis(250);

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Taken,
    /// For another replica that reads the same subscription.
    NotOurs,
}

/// Who listens.
pub trait MessageHandler: Send + Sync + 'static {
    /// Whether messages are wanted now. A replica that works on nothing leaves them to the others.
    fn listens(&self) -> bool;
    /// Takes in the data of one message.
    fn handle(&self, data: &[u8]) -> Answer;
    /// Takes in the state of the subscription.
    fn on_state(&self, subscription: &str, state: Result<(), String>);
}

/// A client for Pub/Sub.
#[derive(Clone)]
pub struct Source {
    subscriber: Subscriber,
    /// Host and port.
    address: String,
}

impl Source {
    /// Prepares a client; nothing is connected yet.
    ///
    /// # Errors
    /// When the endpoint is no URL, or the client cannot be made.
    pub async fn new(endpoint: &str, credentials: Credentials) -> anyhow::Result<Self> {
        let uri: http::Uri = endpoint
            .parse()
            .with_context(|| format!("--event-endpoint {endpoint:?} is not a URL"))?;
        let host = uri
            .host()
            .with_context(|| format!("--event-endpoint {endpoint:?} has no host"))?;
        let port = uri
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("http") {
                80
            } else {
                443
            });
        let builder = Subscriber::builder()
            .with_endpoint(endpoint)
            .with_grpc_subchannel_count(1);
        let builder = builder.with_credentials(credentials);
        let subscriber = builder
            .build()
            .await
            .context("preparing the client for Pub/Sub")?;
        Ok(Self {
            subscriber,
            address: format!("{host}:{port}"),
        })
    }

    /// Reads a subscription, `projects/P/subscriptions/S`, for ever.
    pub async fn read(self, subscription: String, handler: Arc<dyn MessageHandler>) {
        let mut failures = 0u32;
        loop {
            while !handler.listens() {
                tokio::time::sleep(TICK).await;
            }
            match self.session(&subscription, &*handler).await {
                Ok(()) => {
                    // Nobody listens any more, and what is not listened to is not missing.
                    failures = 0;
                    handler.on_state(&subscription, Ok(()));
                }
                Err(why) => {
                    // Its first failure is news, the others are not.
                    if failures == 0 {
                        tracing::warn!(%subscription, %why, "audit events cannot be read; it is tried again");
                    }
                    handler.on_state(&subscription, Err(why));
                    failures = failures.saturating_add(1);
                    tokio::time::sleep(Duration::from_secs(u64::from(failures.min(30)))).await;
                }
            }
        }
    }

    /// Reads until nobody listens any more, or something is wrong.
    async fn session(
        &self,
        subscription: &str,
        handler: &dyn MessageHandler,
    ) -> Result<(), String> {
        self.probe().await?;
        let stream = self
            .subscriber
            .subscribe(subscription)
            .set_max_outstanding_messages(MAX_MESSAGES)
            .set_max_outstanding_bytes(MAX_BYTES)
            .set_max_lease_extension(Duration::from_secs(10))
            .build();
        // Waiting for a message must not be given up half-way, or a stream that takes long to open
        // never does.
        let receive = |mut stream: MessageStream| async move {
            let next = stream.next().await;
            (stream, next)
        };
        let mut receiving = Box::pin(receive(stream));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut probed, opened) = (Instant::now(), Instant::now());
        let mut is_open = false;
        loop {
            tokio::select! {
                biased;
                // First, so that a flood of messages cannot keep it from being asked.
                _ = tick.tick() => {
                    if !handler.listens() {
                        return Ok(());
                    }
                    // The client tries to reconnect in silence, with pauses of up to a minute: a
                    // probe of our own says earlier that it is cut off, and a stream that is opened
                    // anew says earlier that it is not.
                    if probed.elapsed() >= PROBE {
                        self.probe().await?;
                        probed = Instant::now();
                    }
                    if !is_open && opened.elapsed() >= PROBE {
                        // Nobody refused it.
                        handler.on_state(subscription, Ok(()));
                        is_open = true;
                    }
                }
                (stream, next) = &mut receiving => {
                    let next = next.ok_or("the stream ended")?;
                    let (message, receipt) = next.map_err(|fault| fault.to_string())?;
                    handler.on_state(subscription, Ok(()));
                    acknowledge(handler.handle(&message.data), receipt);
                    receiving.set(receive(stream));
                }
            }
        }
    }

    async fn probe(&self) -> Result<(), String> {
        let connect = tokio::net::TcpStream::connect(&self.address);
        match tokio::time::timeout(PROBE, connect).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(why)) => Err(format!("{}: {why}", self.address)),
            Err(_) => Err(format!("{}: no answer within {PROBE:?}", self.address)),
        }
    }
}

fn acknowledge(answer: Answer, receipt: Receipt) {
    match answer {
        Answer::Taken => receipt.ack(),
        Answer::NotOurs => {
            tokio::spawn(async move {
                tokio::time::sleep(GIVE_BACK).await;
                receipt.nack();
            });
        }
    }
}
