//! HTTP/1 with one client, until its connection closes, becomes a tunnel or runs out of time.

use std::{future::pending, io, pin::pin, rc::Rc, sync::Arc};

use http::{Method, StatusCode};
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
    translate, upgrade,
};
use crate::{
    message::Opening,
    proxy::{
        client::Client,
        client_timeouts::Deadlines,
        forward::{self, Answer, Turn},
        upload::RequestBody,
        worker::Worker,
    },
    transport::Transport,
};

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, client: Rc<Client>) {
    let deadlines = Deadlines::begin(worker.shared.config.client_timeouts, worker.shared.clock);
    let verdict = Arc::new(Verdict::default());
    let downstream = Downstream::new(transport, Arc::clone(&verdict), deadlines.clone());

    let handler = service_fn(|mut request: Request<Incoming>| {
        let from_client = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let head = translate::request_head(&parts);
        let opening = head.as_ref().ok().and_then(Opening::of);
        // At once, before the connection can read on.
        let follows = what_follows(&parts.method, opening.as_ref(), &body);
        verdict.give(follows);
        if let Some(deadlines) = &deadlines {
            deadlines.head_ended(follows != Follows::Length(0));
        }
        let turn = Turn { deadlines: deadlines.clone(), is_overfull: false, informational: None };
        let is_head = parts.method == Method::HEAD;
        let (worker, client, deadlines) = (Rc::clone(&worker), Rc::clone(&client), deadlines.clone());
        async move {
            // What the library has read as HTTP/1 can be said in it.
            let head = head.map_err(io::Error::other)?;
            let body = RequestBody::new(body, None);
            let mut response = match forward::answer(&worker, &client, turn, head, opening, body).await {
                Answer::Response(reply) => translate::response(reply, is_head, false),
                Answer::Opened(opened) => {
                    if let Some(deadlines) = &deadlines {
                        deadlines.became_busy();
                    }
                    upgrade::open(&worker, client, from_client, *opened, None)
                }
            };
            // The connection itself may hear of it only after this response.
            if worker.drain.has_begun() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                translate::close_after(&mut response);
            }
            Ok::<_, io::Error>(response)
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
        verdict.with_opening(|opening| {
            let status = match (error.is_parse_too_large(), opening.has_long_target()) {
                (false, _) => 400,
                (true, true) => 414,
                (true, false) => 431,
            };
            malformed::record(&worker.shared, client.address, opening, status);
        });
    }
}

/// What comes after a request's head, as the HTTP library understood it.
fn what_follows(method: &Method, opening: Option<&Opening>, body: &Incoming) -> Follows {
    if opening.is_some() || method == Method::CONNECT {
        return Follows::Opaque;
    }
    match body.size_hint().exact() {
        Some(length) => Follows::Length(length),
        None => Follows::Chunked,
    }
}
