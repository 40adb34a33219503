//! The sockets below the APIs: HTTP/1.1 connections that can be cut, each request handed to an
//! [`Exchange`].

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    http::{Request, Response},
};
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::exchange::{Call, Cut, Exchange, Line};

/// One listening API.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    line: Line,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.line.cut();
    }
}

impl Server {
    pub async fn start(address: SocketAddr, exchange: Exchange) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let line = exchange.line.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                if exchange.line.is_down() {
                    drop(stream);
                    continue;
                }
                stream.set_nodelay(true).ok();
                let exchange = exchange.clone();
                let line_cut = exchange.line.next_cut();
                tokio::spawn(async move {
                    // Faults cut their own connection through this.
                    let cut = Arc::new(tokio::sync::Notify::new());
                    let for_service = cut.clone();
                    let service = service_fn(move |request| {
                        serve(request, exchange.clone(), for_service.clone())
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        () = cut.notified() => {}
                        () = line_cut => {}
                    }
                });
            }
        });
        Ok(Self {
            address,
            line,
            task,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(
    request: Request<hyper::body::Incoming>,
    exchange: Exchange,
    cut: Arc<tokio::sync::Notify>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    match exchange
        .call(Call::new(parts.method, &parts.uri, parts.headers, body))
        .await
    {
        Ok(response) => Ok(response),
        Err(Cut) => {
            cut.notify_one();
            std::future::pending().await
        }
    }
}
