//! HTTP/2 with one client (RFC 9113), until its connection closes or runs out of time.

mod body;
mod frames;
pub mod streams;
mod translate;

use std::{convert::Infallible, future::poll_fn, net::IpAddr, pin::pin, rc::Rc, task::Poll};

use http::{Method, Response, StatusCode};
use hyper::{
    Request,
    body::{Body, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tracing::debug;

use self::{body::LingeringBody, frames::Watched, streams::Streams};
use super::{
    lifetime::{FRESH_GRACE, fresh_grace},
    malformed, upgrade,
};
use crate::{
    message::{Framing, Opening},
    proxy::{
        client::Client,
        client_timeouts::{Alarm, Deadlines},
        forward::{self, Answer, Opened, Turn},
        response_body::ResponseBody,
        upload::RequestBody,
        worker::Worker,
    },
    transport::Transport,
};

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, client: Rc<Client>) {
    let shared = &worker.shared;
    let limits = shared.config.client_timeouts;
    let streams = Streams::new(&worker);

    let handler = service_fn(|mut request: Request<Incoming>| {
        let deadlines = Deadlines::begin(limits, shared.clock);
        if let Some(deadlines) = &deadlines {
            deadlines.head_ended(!request.body().is_end_stream());
        }
        streams.expect(deadlines.clone());
        // The head counts until there is an answer.
        let held = streams.hold(request.headers());
        let from_client = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let (worker, client, streams) = (Rc::clone(&worker), Rc::clone(&client), streams.clone());
        async move {
            let Ok(head) = translate::request_head(&parts) else {
                return Ok(refuse(&worker, client.address));
            };
            let opening = Opening::of(&head);
            let framing = Framing::of_request(&head);
            let turn = Turn { deadlines: deadlines.clone(), is_overfull: held.is_none(), informational: None, framing };
            let body = match opening {
                Some(_) => RequestBody::default(),
                None => RequestBody::new(LingeringBody::new(body, &worker), deadlines.clone()),
            };
            let response = match forward::answer(&worker, &client, turn, &head, opening, body).await {
                Answer::Response(reply) => translate::response(reply, parts.method == Method::HEAD),
                Answer::Opened(opened) => {
                    if let Some(deadlines) = &deadlines {
                        deadlines.became_busy();
                    }
                    let Opened { head, lines, answering, exchange, .. } = *opened;
                    upgrade::open_stream(&worker, client, from_client, answering, exchange, streams.open_tunnel());
                    translate::opened(&head, lines)
                }
            };
            drop(held);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(MOST_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(shared.config.max_header_size).unwrap_or(u32::MAX));
    let watched = {
        let streams = streams.clone();
        Watched::new(transport, move || streams.are_open(), shared.metrics.http2_floods.clone())
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(watched), handler));
    let mut draining = pin!(async {
        worker.drain.begun().await;
        if !streams.have_been() {
            fresh_grace(&worker.drain).await;
        }
    });
    // The goodbye is only complete when the client has answered, and one that is gone does not.
    let mut abandoned = pin!(async {
        fresh_grace(&worker.drain).await;
        while streams.are_open() {
            tokio::time::sleep(FRESH_GRACE).await;
        }
    });
    let mut alarm = streams.deadlines().map(Alarm::new);
    let mut drained = false;
    let ended = poll_fn(|cx| {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            connection.as_mut().graceful_shutdown();
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
        }
        if drained && abandoned.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Ok(())));
        }
        alarm.as_mut().map_or(Poll::Pending, |alarm| alarm.poll(shared.clock, cx)).map(|()| None)
    });
    match ended.await {
        Some(Ok(())) => {}
        Some(Err(error)) => debug!(address = %client.address, %error, "a client connection ended with an error"),
        None => {
            shared.metrics.client_timeouts.inc();
            debug!(address = %client.address, "a client connection was too slow");
        }
    }
}

/// The answer to what cannot be said in HTTP/1.1.
fn refuse(worker: &Worker, client: IpAddr) -> Response<ResponseBody> {
    malformed::record(&worker.shared, client, b"", 400);
    let mut response = Response::new(ResponseBody::none());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// Bytes of bodies that a client may send ahead, on one stream and on all; so that eight uploads which no backend reads leave
/// room for others.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;

/// Requests that a client may have in flight on one connection.
const MOST_STREAMS: u32 = 128;
