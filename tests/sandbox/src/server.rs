//! HTTP below both APIs: journal, faults, and connections that can be cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, Response, StatusCode, Uri},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    faults::{Fault, Faults},
    journal::{Api, Entry, Journal},
};

/// A request, its body read.
#[derive(Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    /// The first value of a query parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// The body as JSON; null where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub fn flag(&self, name: &str) -> bool {
        self.param(name).is_some_and(|v| v == "true" || v == "1" || v.is_empty())
    }
}

/// An API behind a [`Server`].
pub trait Handler: Send + Sync + 'static {
    fn handle(self: Arc<Self>, call: Call) -> BoxFuture<'static, Response<Body>>;
}

/// A JSON answer.
pub fn json(status: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("application/json"));
    response
}

/// Cuts connections.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Counts outages: every connection ends when it changes.
    epoch: watch::Sender<u64>,
    down_until: Arc<Mutex<Option<tokio::time::Instant>>>,
}

impl Handle {
    /// Cuts all connections and refuses new ones for `down`; returns when it is over.
    pub async fn outage(&self, down: Duration) {
        let until = tokio::time::Instant::now() + down;
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.epoch.send_modify(|n| *n += 1);
        tokio::time::sleep_until(until).await;
    }

    fn is_down(&self) -> bool {
        self.down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|until| until > tokio::time::Instant::now())
    }
}

/// One listening API.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.handle.epoch.send_modify(|n| *n += 1);
    }
}

impl Server {
    pub async fn start(
        address: SocketAddr,
        api: Api,
        handler: Arc<dyn Handler>,
        journal: Arc<Journal>,
        faults: Arc<Faults>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let handle = Handle { epoch: watch::Sender::new(0), down_until: Arc::default() };
        let shared = handle.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                if shared.is_down() {
                    drop(stream);
                    continue;
                }
                stream.set_nodelay(true).ok();
                let (handler, journal, faults) = (handler.clone(), journal.clone(), faults.clone());
                let mut epoch = shared.epoch.subscribe();
                tokio::spawn(async move {
                    // Faults cut their own connection through this.
                    let cut = Arc::new(tokio::sync::Notify::new());
                    let for_service = cut.clone();
                    let service = service_fn(move |request| {
                        serve(request, api, handler.clone(), journal.clone(), faults.clone(), for_service.clone())
                    });
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        () = cut.notified() => {}
                        _ = epoch.changed() => {}
                    }
                });
            }
        });
        Ok(Self { address, handle, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

async fn serve(
    request: Request<hyper::body::Incoming>,
    api: Api,
    handler: Arc<dyn Handler>,
    journal: Arc<Journal>,
    faults: Arc<Faults>,
    cut: Arc<tokio::sync::Notify>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    // A proxied request carries an absolute target: gcloud's regional hosts come in that way.
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let call = Call {
        method: parts.method.clone(),
        path: percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned(),
        query: query(&parts.uri),
        headers: parts.headers,
        body,
    };
    let number = if api == Api::Control {
        0
    } else {
        journal.enter(Entry {
            number: 0,
            at: jiff::Timestamp::now().to_string(),
            elapsed_ms: 0,
            api,
            method: call.method.to_string(),
            target: target.clone(),
            user_agent: call.header("user-agent").to_owned(),
            accept: call.header("accept").to_owned(),
            status: 0,
            body: serde_json::from_slice(&call.body).unwrap_or(Value::Null),
        })
    };
    let (delay, fault) = faults.judge(api, call.method.as_str(), &target);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let response = match fault {
        Some(Fault::Error { status, body, headers }) => {
            let mut response = json(status, &body);
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) = (name.parse::<axum::http::HeaderName>(), value.parse()) {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Some(Fault::Drop) => {
            cut.notify_one();
            std::future::pending().await
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::LostResponse) => {
            handler.handle(call).await;
            cut.notify_one();
            std::future::pending().await
        }
        Some(Fault::Latency { .. }) | None => handler.handle(call).await,
    };
    journal.answered(number, response.status().as_u16());
    Ok(response)
}

fn query(uri: &Uri) -> Vec<(String, String)> {
    let decode = |s: &str| {
        let spaced = s.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| pair.split_once('=').map_or_else(|| (decode(pair), String::new()), |(k, v)| (decode(k), decode(v))))
        .collect()
}
