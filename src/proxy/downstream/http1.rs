//! HTTP/1 with one client, until its connection closes, becomes a tunnel or runs out of time.

use std::{convert::Infallible, future::pending, pin::pin, rc::Rc, sync::Arc};

use http::StatusCode;
use hyper::{
    Request,
    body::{Body, Incoming},
    server::conn::http1::UpgradeableConnection,
    service::service_fn,
};
use hyper_util::rt::TokioIo;

use super::{
    lifetime::{Ending, fresh_grace, see_through},
    malformed,
    supervised::{Downstream, Follows, Verdict},
    upgrade,
};
use crate::{
    proxy::{
        client::Client,
        client_timeouts::Deadlines,
        forward::{self, Answer, Turn},
        headers,
        worker::Worker,
    },
    transport::Transport,
};

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, client: Rc<Client>) {
    let deadlines = Deadlines::begin(worker.shared.config.client_timeouts, worker.shared.clock);
    let verdict = Arc::new(Verdict::default());
    let downstream = Downstream::new(transport, Arc::clone(&verdict), deadlines.clone());

    let handler = service_fn(|request: Request<Incoming>| {
        // At once, before the connection can read on.
        let follows = what_follows(&request);
        verdict.give(follows);
        if let Some(deadlines) = &deadlines {
            deadlines.head_ended(follows != Follows::Length(0));
        }
        let turn = Turn { deadlines: deadlines.clone(), is_overfull: false };
        let answer = forward::answer(Rc::clone(&worker), Rc::clone(&client), turn, request);
        let (worker, client, deadlines) = (Rc::clone(&worker), Rc::clone(&client), deadlines.clone());
        async move {
            let mut response = match answer.await {
                Answer::Response(response) => response,
                Answer::Opened(opened) => {
                    if let Some(deadlines) = &deadlines {
                        deadlines.became_busy();
                    }
                    upgrade::open(&worker, client, *opened, None)
                }
            };
            // The connection itself may hear of it only after this response.
            if worker.drain.has_begun() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                forward::close_after(&mut response);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(worker.http1.serve_connection(TokioIo::new(downstream), handler).with_upgrades());
    let draining = pin!(async {
        worker.drain.begun().await;
        if !verdict.has_read() {
            fresh_grace(&worker.drain).await;
        }
    });
    let ending = Ending { draining, abandoned: pin!(pending()), deadlines: deadlines.clone() };
    let ended =
        see_through(&worker, client.address, connection.as_mut(), UpgradeableConnection::graceful_shutdown, ending)
            .await;
    if let Some(error) = ended.filter(hyper::Error::is_parse) {
        let status = if error.is_parse_too_large() {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        } else {
            StatusCode::BAD_REQUEST
        };
        verdict.with_opening(|opening| malformed::record(&worker.shared, client.address, opening, status));
    }
}

/// What comes after a request's head, as the HTTP library understood it.
fn what_follows(request: &Request<Incoming>) -> Follows {
    if headers::wants_websocket(request) || request.method() == http::Method::CONNECT {
        return Follows::Opaque;
    }
    match request.body().size_hint().exact() {
        Some(length) => Follows::Length(length),
        None => Follows::Chunked,
    }
}
