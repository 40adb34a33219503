//! What lies between a replica and the two APIs: time, weather, and the end of the replica.
//! Everything that goes over it is shown to the judge, and to the journal of the world.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Response, StatusCode, Uri},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use judge::{Asked, By, Delivery, Judge, Kind, Real, declared::Service};
use sandbox::{Apis, Call, Handler};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    dice::Dice,
    story::{Crash, Harm, Moment, Side, Storm},
    world::Run,
    wrong::Wrong,
};

/// A client that waits longer than this for Google gave up.
pub const CLOUD_TIMEOUT: Duration = Duration::from_secs(20);
/// A client that waits longer than this for the API server gave up.
pub const KUBE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the whole world shares.
pub struct Shared {
    pub judge: Judge,
    pub writes: Vec<judge::Write>,
    /// What really happened, to be seen that something did.
    pub tally: BTreeMap<&'static str, u64>,
    /// Requests since the last time that somebody asked.
    pub reads: BTreeMap<Service, usize>,
    pub kube_writes: Vec<String>,
    pub iam_writes: usize,
    journal: Vec<String>,
    hash: u64,
    /// Changes of the store up to here are known to the judge.
    version: u64,
    /// Replicas that died, for the driver of the world to clear away.
    pub deaths: Vec<(usize, u64)>,
}

/// A world's both APIs, and what is between them and the replicas.
pub struct Net {
    pub apis: Apis,
    pub started: Instant,
    pub shared: Mutex<Shared>,
    pub died: Notify,
    dice: Dice,
    storms: Vec<Storm>,
    crashes: Vec<Crash>,
    /// People and weather rest.
    pub calm: AtomicBool,
    /// Nothing takes long without a reason.
    pub even: AtomicBool,
    keep_journal: bool,
    wrong: Option<Wrong>,
    /// Requests to the store and policies go into the journal whole: SIMULATE_BODIES=1.
    bodies: bool,
}

impl Net {
    pub fn new(
        apis: Apis,
        judge: Judge,
        seed: u64,
        storms: Vec<Storm>,
        crashes: Vec<Crash>,
        run: Run,
    ) -> Arc<Self> {
        let shared = Shared {
            judge,
            writes: Vec::new(),
            tally: BTreeMap::new(),
            reads: BTreeMap::new(),
            kube_writes: Vec::new(),
            iam_writes: 0,
            journal: Vec::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            version: 0,
            deaths: Vec::new(),
        };
        Arc::new(Self {
            apis,
            started: Instant::now(),
            shared: Mutex::new(shared),
            died: Notify::new(),
            dice: Dice::new(seed),
            storms,
            crashes,
            calm: AtomicBool::new(false),
            even: AtomicBool::new(false),
            keep_journal: run.journal,
            wrong: run.wrong,
            bodies: std::env::var_os("SIMULATE_BODIES").is_some(),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now(&self) -> Timestamp {
        self.apis.clock.now()
    }

    /// Enters a line into the journal.
    pub fn note(&self, line: &str) {
        let at = self.started.elapsed().as_millis();
        let mut shared = self.lock();
        let mut text = String::with_capacity(line.len() + 16);
        let _ = write!(text, "{:>10.3}  {line}", at as f64 / 1000.0);
        shared.hash = text.bytes().fold(shared.hash, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        if self.keep_journal {
            shared.journal.push(text);
        }
    }

    /// A body as the journal shows it.
    fn shown(&self, body: &Bytes) -> String {
        if self.bodies {
            format!(" {}", String::from_utf8_lossy(body))
        } else {
            String::new()
        }
    }

    pub fn count(&self, what: &'static str) {
        *self.lock().tally.entry(what).or_default() += 1;
    }

    /// A number that stands for everything that happened, in order.
    pub fn hash(&self) -> u64 {
        self.lock().hash
    }

    pub fn journal(&self) -> Vec<String> {
        self.lock().journal.clone()
    }

    /// Shows the judge what changed in the store.
    pub fn absorb(&self, by: By) {
        let mut shared = self.lock();
        let (version, changes) = self.apis.kube.history_since(shared.version);
        shared.version = version;
        let now = self.now();
        for change in changes {
            let gone = change.kind == sandbox::kube::store::Kind::Deleted;
            if change.table.1 == "invokeraccessrequests" && by != By::Somebody && !gone {
                let tally = match change.object["status"]["phase"].as_str() {
                    Some("Active") => "requests granted, as statuses say",
                    Some("Ended") => "requests ended, as statuses say",
                    _ => "other statuses of requests",
                };
                *shared.tally.entry(tally).or_default() += 1;
            }
            shared
                .judge
                .stored(now, by, &change.table.1, &change.object, gone);
        }
    }

    /// A service as it really is; `None` in a project that is gone, too.
    pub fn real(&self, s: &Service) -> Option<Real> {
        if self.apis.run.world().gone.contains(&s.0) {
            return None;
        }
        let found = self.apis.run.service(&s.0, &s.1, &s.2)?;
        Some(Real {
            policy: found.policy.view(3),
            labels: found.labels,
        })
    }

    /// Somebody outside does something to a service; the judge sees what became of it.
    pub fn outside(&self, service: &Service, act: impl FnOnce()) {
        let before = self.real(service);
        act();
        let after = self.real(service);
        self.lock()
            .judge
            .outside(self.now(), service, before.as_ref(), after.as_ref());
    }

    /// A request of a person to the Kubernetes API: carried out at once.
    pub async fn person(
        &self,
        method: Method,
        target: &str,
        content: &'static str,
        body: &Value,
    ) -> (u16, Value) {
        let uri: Uri = target.parse().expect("a path");
        let mut headers = axum::http::HeaderMap::new();
        headers.insert(
            "content-type",
            axum::http::HeaderValue::from_static(content),
        );
        let bytes = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let call = Call::new(method, &uri, headers, bytes);
        let response = self.apis.kube.clone().handle(call).await;
        self.absorb(By::Somebody);
        let status = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

/// The connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection reset")
    }
}
impl std::error::Error for Broken {}

/// An answer that is not a stream.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: axum::http::HeaderMap,
    pub body: Bytes,
}

/// The cable of one replica, in one of its lives.
pub struct Cable {
    pub net: Arc<Net>,
    pub replica: usize,
    pub life: u64,
    /// Nothing goes through any more, either way.
    cut: AtomicBool,
    paused_until: Mutex<Option<Instant>>,
    /// Requests of this replica so far, over all its lives.
    calls: Arc<AtomicU64>,
}

impl Cable {
    pub fn new(net: Arc<Net>, replica: usize, life: u64, calls: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            net,
            replica,
            life,
            cut: AtomicBool::new(false),
            paused_until: Mutex::new(None),
            calls,
        })
    }

    /// The replica is dead: nothing of it does anything any more.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// The replica is stopped for a while.
    pub fn pause(&self, time: Duration) {
        *self
            .paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    pub fn is_paused(&self) -> bool {
        let until = self.paused_until.lock();
        let until = *until.unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until > Instant::now())
    }

    fn die(&self) {
        if !self.cut.swap(true, Ordering::Relaxed) {
            self.net.lock().deaths.push((self.replica, self.life));
            self.net.died.notify_waiters();
        }
    }

    /// Waits out a pause; never ends for a dead replica.
    async fn awake(&self) {
        loop {
            let until = *self
                .paused_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => break,
            }
        }
        if self.cut.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    async fn crash_at(&self, n: u64, moment: fn(u64) -> Moment) {
        if self.net.calm.load(Ordering::Relaxed) {
            return self.awake().await;
        }
        let crash = self
            .net
            .crashes
            .iter()
            .find(|c| c.replica == self.replica && c.moment == moment(n));
        match crash {
            Some(c) if c.pause => {
                self.net.count("pauses");
                self.pause(Duration::from_millis(c.back_ms));
            }
            Some(_) => self.die(),
            None => {}
        }
        self.awake().await;
    }

    /// The weather that a request meets.
    fn harm(&self, side: Side, n: u64, line: &str) -> Option<Harm> {
        if self.net.calm.load(Ordering::Relaxed) {
            return None;
        }
        let at = self.net.started.elapsed().as_millis() as u64;
        self.net.storms.iter().enumerate().find_map(|(i, s)| {
            let hit = s.side == side
                && (s.from_ms..s.to_ms).contains(&at)
                && s.replica.is_none_or(|r| r == self.replica)
                && s.nth.is_none_or(|nth| nth == n)
                && line.contains(&s.only)
                && self
                    .net
                    .dice
                    .roll(&format!("storm {i} of replica {}", self.replica), n)
                    * 100.0
                    < f64::from(s.percent);
            hit.then(|| s.harm.clone())
        })
    }

    fn latency(&self, side: Side, n: u64, way: &str) -> Duration {
        let name = format!("latency {way} of replica {}", self.replica);
        let (least, most) = match side {
            Side::Kube => (1.0, 12.0),
            Side::Run => (8.0, 60.0),
        };
        let roll = self.net.dice.roll(&name, n);
        // Now and then something takes long for no reason that anybody knows.
        let (calm, even) = (&self.net.calm, &self.net.even);
        let even = calm.load(Ordering::Relaxed) || even.load(Ordering::Relaxed);
        let slow = if roll > 0.985 && !even { 40.0 } else { 1.0 };
        Duration::from_micros(((least + (most - least) * roll) * slow * 1000.0) as u64)
    }

    /// Carries a request there and its answer back.
    pub async fn carry(self: &Arc<Self>, side: Side, mut call: Call) -> Result<Carried, Broken> {
        self.awake().await;
        // When the operator let it out of its hands: a process that is stopped from here on cannot
        // take it back.
        let handed = self.net.now();
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        self.crash_at(n, Moment::Before).await;
        if let Some(wrong) = self.net.wrong {
            let before = match asked(&call.path) {
                Some(Asked::Service(s)) => self.net.real(&s).map(|r| r.policy),
                _ => None,
            };
            if let Some(heard) = wrong.distort(&mut call, n, before.as_ref()) {
                let (headers, body) = (HeaderMap::new(), Bytes::from(heard.to_string()));
                return Ok(Carried::Whole(Answer {
                    status: 200,
                    headers,
                    body,
                }));
            }
        }
        let line = format!("{} {}", call.method, call.target);
        let harm = self.harm(side, n, &line);
        self.net.note(&format!(
            "r{} {n:>5} > {line}{}",
            self.replica,
            self.net.shown(&call.body)
        ));
        let issued = self.issue(side, &call, handed);
        let known = Arc::clone(&issued.known[1]);
        let (mut there, mut back) = (
            self.latency(side, n, "there"),
            self.latency(side, n, "back"),
        );
        let (mut carried_out, mut answered) = (true, true);
        match &harm {
            None | Some(Harm::Stalled(_) | Harm::Ended) => {}
            Some(Harm::Slow(ms)) if n.is_multiple_of(2) => there += Duration::from_millis(*ms),
            Some(Harm::Slow(ms)) => back += Duration::from_millis(*ms),
            Some(Harm::Refused {
                status,
                body,
                headers,
            }) => {
                self.net.count("refused by the weather");
                sleep(there + back).await;
                self.awake().await;
                return Ok(Carried::Whole(made_up(*status, body, headers)));
            }
            Some(Harm::Dropped) => {
                self.net.count("requests dropped");
                (carried_out, answered) = (false, false);
            }
            Some(Harm::Lost) => {
                self.net.count("answers lost");
                answered = false;
            }
            Some(Harm::Late) => {
                self.net.count("answers late");
                back += KUBE_TIMEOUT + Duration::from_secs(3);
            }
            Some(Harm::Hung) => {
                self.net.count("requests hung");
                // What kube's own client waits for an answer, where nobody waits for less.
                sleep(Duration::from_secs(295)).await;
                return Err(Broken);
            }
        }
        if !carried_out {
            sleep(there).await;
            self.awake().await;
            return Err(Broken);
        }
        // A task of its own: a client that gives up does not stop the server.
        let (net, by) = (self.net.clone(), self.replica);
        let far = tokio::spawn(async move {
            sleep(there).await;
            net.far_side(by, side, call, issued).await
        });
        let response = far.await.map_err(|_| Broken)?;
        self.crash_at(n, Moment::After).await;
        sleep(back).await;
        self.awake().await;
        self.net.note(&format!(
            "r{} {n:>5} < {}",
            self.replica,
            response.status().as_u16()
        ));
        if !answered {
            return Err(Broken);
        }
        let (parts, body) = response.into_parts();
        if line.contains("watch=true") && parts.status.is_success() {
            self.net.count("watches");
            let stalls = matches!(harm, Some(Harm::Stalled(_) | Harm::Ended))
                .then_some(harm)
                .flatten();
            return Ok(Carried::Watch(self.clone().watch(
                kind_of(&line),
                n,
                line,
                stalls,
                body,
            )));
        }
        let body = body
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        if line.contains("IamPolicy") && self.net.bodies {
            self.net.note(&format!(
                "r{} {n:>5} <{}",
                self.replica,
                self.net.shown(&body)
            ));
        }
        if side == Side::Kube && parts.status.is_success() {
            self.deliver_list(&line, &body);
        }
        if side == Side::Kube {
            self.deliver_one(&line, parts.status, &body, &known);
        }
        Ok(Carried::Whole(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }))
    }

    /// What the judge is to know of a request when it is sent.
    fn issue(&self, side: Side, call: &Call, handed: Timestamp) -> Issued {
        let now = self.net.now();
        let asked = (side == Side::Run).then(|| asked(&call.path)).flatten();
        let mut shared = self.net.lock();
        if let Some(asked) = &asked {
            shared.judge.asked(self.replica, now, asked);
            if let Asked::Service(s) = asked
                && call.path.ends_with(":getIamPolicy")
            {
                *shared.reads.entry(s.clone()).or_default() += 1;
            }
        }
        let known = shared.judge.known(self.replica, now);
        let identity = shared.judge.identity(self.replica);
        Issued {
            at: handed,
            known,
            identity,
            asked,
        }
    }

    /// Tells the judge what a request for one object delivered: the object, or that it is gone.
    /// `known`: what the replica knew when it asked. What it heard of since is another object.
    fn deliver_one(&self, line: &str, status: StatusCode, body: &Bytes, known: &judge::Known) {
        let Some((kind, namespace, name)) = named_by(line).filter(|_| line.starts_with("GET "))
        else {
            return;
        };
        let (object, gone) = match serde_json::from_slice::<Value>(body) {
            // Metadata alone says nothing of what is declared.
            Ok(object) if status.is_success() && object["kind"] != "PartialObjectMetadata" => {
                (object, false)
            }
            _ if status == StatusCode::NOT_FOUND => (
                json!({"metadata": {"namespace": namespace, "name": name}}),
                true,
            ),
            _ => return,
        };
        let (mut shared, now) = (self.net.lock(), self.net.now());
        if gone && matches!(kind, Kind::Policy | Kind::Request) {
            let among = if kind == Kind::Request {
                "request/"
            } else {
                ""
            };
            let key = (namespace.to_owned(), format!("{among}{name}"));
            let uid = |k: &judge::Known| {
                k.declared
                    .policies
                    .get(&key)?
                    .as_ref()
                    .map(|p| p.uid.clone())
            };
            if uid(known) != uid(&shared.judge.known(self.replica, now)[1]) {
                return;
            }
        }
        shared
            .judge
            .tell(self.replica, now, Delivery::Object { kind, object, gone });
    }

    /// Tells the judge what a list delivered.
    fn deliver_list(&self, line: &str, body: &Bytes) {
        let Some(kind) = kind_of(line).filter(|_| line.starts_with("GET ")) else {
            return;
        };
        let Ok(page) = serde_json::from_slice::<Value>(body) else {
            return;
        };
        let Some(items) = page["items"].as_array() else {
            return;
        };
        let first = !line.contains("continue=");
        let last = page["metadata"]["continue"]
            .as_str()
            .is_none_or(str::is_empty);
        let delivery = Delivery::List {
            kind,
            items: items.clone(),
            first,
            last,
        };
        self.net
            .lock()
            .judge
            .tell(self.replica, self.net.now(), delivery);
    }

    /// Events of a watch, each with its own time on the way.
    fn watch(
        self: Arc<Self>,
        kind: Option<Kind>,
        n: u64,
        line: String,
        harm: Option<Harm>,
        body: Body,
    ) -> BoxStream<'static, Result<Bytes, Broken>> {
        let state = (self, body.into_data_stream(), 0u64, harm, line);
        futures::stream::unfold(state, move |(cable, mut frames, i, harm, line)| async move {
            let frame = frames.next().await?;
            cable.awake().await;
            // Each event meets the weather, too.
            let harm = harm.or_else(|| cable.harm(Side::Kube, n * 1000 + i, &line));
            match &harm {
                Some(Harm::Stalled(ms)) if i > 0 => {
                    cable.net.count("watches stalled until the next list");
                    sleep(Duration::from_millis(*ms)).await;
                    cable.awake().await;
                    let gone = Bytes::from_static(b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"too old resource version\",\"reason\":\"Expired\",\"code\":410}}\n");
                    return Some((Ok(gone), (cable, Body::empty().into_data_stream(), i + 1, None, line)));
                }
                Some(Harm::Ended) if i > 0 => {
                    cable.net.count("watches cut");
                    return Some((Err(Broken), (cable, Body::empty().into_data_stream(), i + 1, None, line)));
                }
                _ => {}
            }
            sleep(cable.latency(Side::Kube, n * 1000 + i, "event")).await;
            cable.awake().await;
            let Ok(bytes) = frame else { return Some((Err(Broken), (cable, frames, i + 1, None, line))) };
            if let Some(kind) = kind {
                cable.deliver_event(kind, &bytes);
            }
            Some((Ok(bytes), (cable, frames, i + 1, None, line)))
        })
        .boxed()
    }

    fn deliver_event(&self, kind: Kind, bytes: &Bytes) {
        for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Ok(event) = serde_json::from_slice::<Value>(line) else {
                continue;
            };
            let gone = match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => false,
                Some("DELETED") => true,
                _ => continue,
            };
            let delivery = Delivery::Object {
                kind,
                object: event["object"].clone(),
                gone,
            };
            self.net
                .lock()
                .judge
                .tell(self.replica, self.net.now(), delivery);
        }
    }
}

/// What came back.
pub enum Carried {
    Whole(Answer),
    Watch(BoxStream<'static, Result<Bytes, Broken>>),
}

/// What was known when a request was sent.
struct Issued {
    at: Timestamp,
    known: [Arc<judge::Known>; 2],
    identity: String,
    asked: Option<Asked>,
}

impl Net {
    /// Carries a request out.
    async fn far_side(&self, by: usize, side: Side, call: Call, issued: Issued) -> Response<Body> {
        let line = format!("{} {}", call.method, call.target);
        let writes = call.method != Method::GET;
        match side {
            Side::Kube => {
                if writes && !line.contains("/leases") {
                    self.lock().kube_writes.push(line.clone());
                }
                let response = self.apis.kube.clone().handle(call).await;
                self.absorb(By::Replica(by));
                if response.status() == 409 {
                    self.count("conflicts in the cluster");
                }
                response
            }
            Side::Run => {
                let sets = call.path.ends_with(":setIamPolicy");
                let service = match &issued.asked {
                    Some(Asked::Service(s)) => Some(s.clone()),
                    _ => None,
                };
                let before = service.as_ref().and_then(|s| self.real(s));
                let response = self.apis.run.clone().handle(call).await;
                self.tally_answer(sets, response.status().as_u16());
                if let (true, Some(service), Some(before)) =
                    (sets && response.status().is_success(), service, before)
                {
                    self.accepted(by, service, before, issued);
                }
                response
            }
        }
    }

    fn accepted(&self, by: usize, service: Service, before: Real, issued: Issued) {
        let Some(after) = self.real(&service) else {
            return;
        };
        let write = judge::Write {
            replica: by,
            identity: issued.identity,
            service,
            known: issued.known,
            issued: issued.at,
            arrived: self.now(),
            before: before.policy,
            after: after.policy,
        };
        let mut shared = self.lock();
        shared.iam_writes += 1;
        shared.judge.written(&write);
        shared.writes.push(write);
    }

    fn tally_answer(&self, sets: bool, status: u16) {
        self.count(match (sets, status) {
            (true, 200..=299) => "IAM writes",
            (true, 409) => "conflicts in IAM",
            (true, 400) => "members refused by IAM",
            (false, 200..=299) => "IAM reads and lists",
            (_, 429) => "quota refusals",
            _ => "other refusals of Google's",
        });
    }
}

fn made_up(status: u16, body: &str, headers: &[(String, String)]) -> Answer {
    let mut map = axum::http::HeaderMap::new();
    let html = body.starts_with('<');
    let kind = if html {
        "text/html"
    } else {
        "application/json"
    };
    map.insert("content-type", axum::http::HeaderValue::from_static(kind));
    for (k, v) in headers {
        if let (Ok(k), Ok(v)) = (k.parse::<axum::http::HeaderName>(), v.parse()) {
            map.insert(k, v);
        }
    }
    Answer {
        status,
        headers: map,
        body: Bytes::from(body.to_owned()),
    }
}

/// The one object of the judge's kinds that a path names.
fn named_by(line: &str) -> Option<(Kind, &str, &str)> {
    let path = line.split(' ').nth(1)?.split('?').next()?;
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        [
            "apis",
            "run-invoker.dev",
            _,
            "namespaces",
            namespace,
            "invokerpolicies",
            name,
        ] => Some((Kind::Policy, namespace, name)),
        [
            "apis",
            "run-invoker.dev",
            _,
            "namespaces",
            namespace,
            "invokeraccessrequests",
            name,
        ] => Some((Kind::Request, namespace, name)),
        [
            "api",
            "v1",
            "namespaces",
            namespace,
            "serviceaccounts",
            name,
        ] => Some((Kind::Account, namespace, name)),
        _ => None,
    }
}

/// Which of the judge's kinds a list is of.
fn kind_of(line: &str) -> Option<Kind> {
    let path = line.split(' ').nth(1)?.split('?').next()?;
    match path {
        "/apis/run-invoker.dev/v1alpha1/invokerpolicies" => Some(Kind::Policy),
        "/apis/run-invoker.dev/v1alpha1/invokeraccessrequests" => Some(Kind::Request),
        "/apis/run-invoker.dev/v1alpha1/invokerguardrails" => Some(Kind::Guardrail),
        "/api/v1/serviceaccounts" => Some(Kind::Account),
        _ => None,
    }
}

/// What a request to Google is about.
fn asked(path: &str) -> Option<Asked> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        [_, "projects", p, "locations", r, "services"] => Some(Asked::List(
            (*p).to_owned(),
            (*r != "-").then(|| (*r).to_owned()),
        )),
        [_, "projects", p, "locations", r, "services", s] => {
            let name = s.split(':').next().unwrap_or_default();
            Some(Asked::Service((
                (*p).to_owned(),
                (*r).to_owned(),
                name.to_owned(),
            )))
        }
        _ => None,
    }
}
