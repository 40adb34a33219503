//! Leader election on one Lease, so that two replicas are safe.
//!
//! Own code for two reasons: kube-leader-election renews without a precondition, and kube-lease-manager writes strategic
//! merge patches, which not every server takes for Leases. Every write here is a replace under the resourceVersion that
//! was read, and time is this process's monotonic clock only: how long the holder has been silent is measured here, never
//! read from another machine's clock.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::Instant};

/// How leadership is kept.
#[derive(Clone, Debug)]
pub struct Options {
    pub namespace: String,
    pub name: String,
    /// Names this replica in the Lease.
    pub identity: String,
    /// After this much silence of the holder another replica takes over.
    pub duration: Duration,
    /// How often the holder renews.
    pub renew: Duration,
}

/// Whether this replica leads, and until when that is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    Follower,
    /// Nobody else can hold the Lease before this instant.
    Leader {
        until: Instant,
    },
}

impl Leadership {
    /// Whether a write may still begin at `now`.
    pub fn holds(self, now: Instant) -> bool {
        matches!(self, Self::Leader { until } if now < until)
    }
}

struct Seen {
    holder: Option<String>,
    renewals: Option<String>,
    /// When this state of the Lease was first seen here.
    since: Instant,
}

/// Takes part in the election until `stop` is true, then gives the Lease up.
pub async fn run(
    client: Client,
    options: Options,
    leadership: watch::Sender<Leadership>,
    mut stop: watch::Receiver<bool>,
) {
    let api: Api<Lease> = Api::namespaced(client, &options.namespace);
    let mut seen: Option<Seen> = None;
    loop {
        let asked = Instant::now();
        // A call that hangs must not outlive the certainty that the last renewal gave.
        let result =
            tokio::time::timeout(options.renew.max(Duration::from_millis(500)), campaign(&api, &options, &mut seen))
                .await;
        match result {
            Ok(Ok(true)) => {
                // Counted from before the request, and shorter than what others wait.
                let until = asked + options.duration.saturating_sub(options.renew);
                leadership.send_if_modified(|l| {
                    let news = !matches!(l, Leadership::Leader { .. });
                    *l = Leadership::Leader { until };
                    news
                });
            }
            Ok(Ok(false)) => {
                leadership.send_if_modified(|l| std::mem::replace(l, Leadership::Follower) != Leadership::Follower);
            }
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "the lease could not be read or renewed");
                expire(&leadership);
            }
            Err(_) => expire(&leadership),
        }
        tokio::select! {
            () = tokio::time::sleep(options.renew) => {}
            _ = stop.wait_for(|s| *s) => break,
        }
    }
    if leadership.borrow().holds(Instant::now()) {
        leadership.send_replace(Leadership::Follower);
        let _ = tokio::time::timeout(options.renew, release(&api, &options)).await;
    }
    leadership.send_replace(Leadership::Follower);
}

/// Steps down once the last renewal is too old to be certain.
fn expire(leadership: &watch::Sender<Leadership>) {
    let now = Instant::now();
    leadership.send_if_modified(|l| {
        let lost = matches!(l, Leadership::Leader { .. }) && !l.holds(now);
        if lost {
            *l = Leadership::Follower;
        }
        lost
    });
}

/// One round: take the Lease, renew it, or see that somebody else has it.
async fn campaign(api: &Api<Lease>, options: &Options, seen: &mut Option<Seen>) -> Result<bool, kube::Error> {
    let Some(mut lease) = api.get_opt(&options.name).await? else {
        let mut lease = Lease::default();
        lease.metadata.name = Some(options.name.clone());
        lease.spec = Some(hold(options, None));
        return won(api.create(&PostParams::default(), &lease).await);
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.clone().filter(|h| !h.is_empty());
    let renewals = spec.renew_time.as_ref().map(|t| t.0.to_string());
    let fresh = seen.as_ref().is_none_or(|s| s.holder != holder || s.renewals != renewals);
    if fresh {
        *seen = Some(Seen { holder: holder.clone(), renewals, since: Instant::now() });
    }
    let silent_for = seen.as_ref().map_or(Duration::ZERO, |s| s.since.elapsed());
    let theirs =
        spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(options.duration, Duration::from_secs);
    let mine = holder.as_deref() == Some(&options.identity);
    if holder.is_some() && !mine && silent_for < theirs {
        return Ok(false);
    }
    lease.spec = Some(hold(options, Some(&spec)));
    won(api.replace(&options.name, &PostParams::default(), &lease).await)
}

/// A lost race is no error: somebody else was first.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}

fn hold(options: &Options, before: Option<&LeaseSpec>) -> LeaseSpec {
    let now = MicroTime(jiff::Timestamp::now());
    let same = before.is_some_and(|b| b.holder_identity.as_deref() == Some(&options.identity));
    let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(options.identity.clone()),
        lease_duration_seconds: i32::try_from(options.duration.as_secs().max(1)).ok(),
        acquire_time: if same { before.and_then(|b| b.acquire_time.clone()) } else { Some(now.clone()) },
        renew_time: Some(now),
        lease_transitions: Some(if before.is_none() || same { transitions } else { transitions + 1 }),
        ..LeaseSpec::default()
    }
}

/// Empties the Lease, so that another replica need not wait for it to run out.
async fn release(api: &Api<Lease>, options: &Options) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(&options.name).await? else { return Ok(()) };
    let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&options.identity)) else {
        return Ok(());
    };
    spec.holder_identity = Some(String::new());
    spec.lease_duration_seconds = Some(1);
    api.replace(&options.name, &PostParams::default(), &lease).await.map(|_| ())
}
