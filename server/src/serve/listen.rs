//! Connections: accepted within a bound, each with its own time-outs, and closed without cutting
//! off an answer.

use super::stall::Stalling;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

/// What bounds a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) header_bytes: usize,
    /// For headers, and for a connection that lies idle.
    pub(crate) header_timeout: Duration,
    /// For a client to take some of what is sent to it.
    pub(crate) write_timeout: Duration,
}

/// Lines of headers that one request may have.
const MAX_HEADERS: usize = 128;

/// Accepts connections until `closing` says so; those that are open end behind their answers.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    closing: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections.max(1)));
    let mut over = closing.clone();
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let (stream, slot) = tokio::select! {
            () = told(&mut over) => return,
            accepted = accepted => match accepted {
                Some((Ok((stream, _)), slot)) => (stream, slot),
                Some((Err(error), _)) => {
                    // Too many open files, mostly: others will close.
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                None => return,
            },
        };
        let (router, closing) = (router.clone(), closing.clone());
        tokio::spawn(async move {
            serve(stream, router, limits, closing).await;
            drop(slot);
        });
    }
}

async fn serve(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
) {
    // A token is a small packet that must not wait for the next.
    let _ = stream.set_nodelay(true);
    let service = router.map_request(|request: Request<Incoming>| request.map(Body::new));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_header_size(limits.header_bytes)
        .serve_connection(
            TokioIo::new(Stalling::new(stream, limits.write_timeout)),
            TowerToHyperService::new(service),
        );
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = told(&mut closing) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// Waits until connections are to close.
async fn told(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|closing| *closing).await);
}
