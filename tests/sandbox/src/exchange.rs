//! One request and its answer, whatever carries them: the journal, ordered faults, and a line that
//! can be cut. Knows no socket, so that a test can call an API in its own process, on its own time.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Response, StatusCode, Uri},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};

use crate::{
    clock::Clock,
    faults::{Fault, Faults},
    journal::{Api, Entry, Journal},
};

/// A request, its body read.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: Vec<(String, String)>,
    /// Path and query as they were sent.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    /// Takes a request apart.
    pub fn new(method: Method, uri: &Uri, headers: HeaderMap, body: Bytes) -> Self {
        Self {
            method,
            path: percent_encoding::percent_decode_str(uri.path())
                .decode_utf8_lossy()
                .into_owned(),
            query: query(uri),
            // A proxied request carries an absolute target: gcloud's regional hosts come in that
            // way.
            target: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            headers,
            body,
        }
    }

    /// The first value of a query parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }

    pub fn flag(&self, name: &str) -> bool {
        self.param(name)
            .is_some_and(|v| v == "true" || v == "1" || v.is_empty())
    }
}

/// An API that answers.
pub trait Handler: Send + Sync + 'static {
    fn handle(self: Arc<Self>, call: Call) -> BoxFuture<'static, Response<Body>>;
}

/// A JSON answer.
pub fn json(status: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        "content-type",
        axum::http::HeaderValue::from_static("application/json"),
    );
    response
}

/// What carries the requests to one API. It can be down for a while; what it carried then is cut.
#[derive(Clone, Debug, Default)]
pub struct Line {
    inner: Arc<LineState>,
}

#[derive(Debug, Default)]
struct LineState {
    /// Counts outages: whatever is under way ends when it changes.
    outages: AtomicU64,
    cut: Notify,
    down_until: Mutex<Option<Instant>>,
}

impl Line {
    /// Cuts everything under way and refuses what is new for `down`; returns when it is over.
    pub async fn outage(&self, down: Duration) {
        let until = Instant::now() + down;
        *self
            .inner
            .down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.cut();
        tokio::time::sleep_until(until).await;
    }

    /// Cuts everything under way.
    pub fn cut(&self) {
        self.inner.outages.fetch_add(1, Ordering::AcqRel);
        self.inner.cut.notify_waiters();
    }

    pub fn is_down(&self) -> bool {
        let until = self
            .inner
            .down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until > Instant::now())
    }

    /// Ends when the line is cut the next time.
    pub fn next_cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let inner = self.inner.clone();
        let seen = inner.outages.load(Ordering::Acquire);
        async move {
            loop {
                let notified = inner.cut.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if inner.outages.load(Ordering::Acquire) != seen {
                    return;
                }
                notified.await;
            }
        }
    }
}

/// The line was cut before an answer came; whether the request was carried out, the client cannot
/// tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

/// One API with its journal and its faults.
#[derive(Clone)]
pub struct Exchange {
    pub api: Api,
    pub handler: Arc<dyn Handler>,
    pub journal: Arc<Journal>,
    pub faults: Arc<Faults>,
    pub clock: Clock,
    pub line: Line,
}

impl Exchange {
    /// Carries out one request.
    ///
    /// # Errors
    /// [`Cut`]. A request that hangs never ends: the client has to give up.
    pub async fn call(&self, call: Call) -> Result<Response<Body>, Cut> {
        let number = self.enter(&call);
        let (delay, fault) = self
            .faults
            .judge(self.api, call.method.as_str(), &call.target);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let response = match fault {
            Some(Fault::Error {
                status,
                body,
                headers,
            }) => refused(status, &body, headers),
            Some(Fault::Drop) => return Err(Cut),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LostResponse) => {
                self.handler.clone().handle(call).await;
                return Err(Cut);
            }
            Some(Fault::Latency { .. }) | None => self.handler.clone().handle(call).await,
        };
        self.journal.answered(number, response.status().as_u16());
        Ok(response)
    }

    fn enter(&self, call: &Call) -> u64 {
        if self.api == Api::Control {
            return 0;
        }
        self.journal.enter(Entry {
            number: 0,
            at: self.clock.now().to_string(),
            elapsed_ms: 0,
            api: self.api,
            method: call.method.to_string(),
            target: call.target.clone(),
            rpc: match self.api {
                Api::Run => crate::google::rpc(call.method.as_str(), &call.path),
                Api::Kube | Api::Control => String::new(),
            },
            user_agent: call.header("user-agent").to_owned(),
            accept: call.header("accept").to_owned(),
            status: 0,
            body: if self.journal.keeps_bodies() {
                call.json()
            } else {
                Value::Null
            },
        })
    }
}

/// A body that is text is sent as it is, as a proxy's page.
fn refused(status: u16, body: &Value, headers: Vec<(String, String)>) -> Response<Body> {
    let mut response = json(status, body);
    if body.is_string() || body.is_null() {
        *response.body_mut() = Body::from(body.as_str().unwrap_or_default().to_owned());
        let html = axum::http::HeaderValue::from_static("text/html; charset=UTF-8");
        response.headers_mut().insert("content-type", html);
    }
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<axum::http::HeaderName>(), value.parse()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn query(uri: &Uri) -> Vec<(String, String)> {
    let decode = |s: &str| {
        let spaced = s.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced)
            .decode_utf8_lossy()
            .into_owned()
    };
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| {
            pair.split_once('=').map_or_else(
                || (decode(pair), String::new()),
                |(k, v)| (decode(k), decode(v)),
            )
        })
        .collect()
}
