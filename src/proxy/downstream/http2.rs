//! HTTP/2 with one client (RFC 9113), until its connection closes or runs out of time.

mod body;
mod frames;
mod sending;
mod stream;
mod streams;
mod translate;
mod tunnel;

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Poll, ready},
};

use h2::{Reason, server::Builder};
use tracing::debug;

use self::{frames::Watched, streams::Streams};
use super::lifetime::{FRESH_GRACE, Patience, fresh_grace};
use crate::{
    proxy::{
        client::Client,
        client_timeouts::{ClientTimeouts, Deadlines, is_late},
        config::Config,
        crowd::Member,
        worker::Worker,
    },
    transport::Transport,
};

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, client: Rc<Client>) {
    let member = worker.crowd.join();
    let (streams, clock) = (Streams::new(&worker, member.pace()), worker.shared.clock);
    let ClientTimeouts { read_header, .. } = worker.shared.config.client_timeouts;
    let heads = Deadlines::begin(ClientTimeouts { read_header, ..ClientTimeouts::default() }, clock);
    // As long as it has asked for nothing, the deadlines of its streams count.
    heads.became_idle();
    let serving = pin!(async {
        if let Err(error) = run(&worker, transport, &client, &streams, &member, Rc::clone(&heads)).await {
            debug!(address = %client.address, %error, "a client connection ended with an error");
        }
    });
    let has_late_head = Cell::new(false);
    let unless_shed = pin!(member.is_shed(serving));
    let with_heads = pin!(async { has_late_head.set(is_late(Some(heads.clone()), clock, unless_shed).await) });
    if is_late(streams.deadlines(), clock, with_heads).await || has_late_head.get() {
        worker.shared.metrics.clients.timeouts.inc();
        debug!(address = %client.address, "a client connection was too slow");
    }
}

/// Takes requests until the client has no more, or is not to send any.
async fn run(
    worker: &Rc<Worker>,
    transport: Transport,
    client: &Rc<Client>,
    streams: &Streams,
    member: &Member,
    heads: Rc<Deadlines>,
) -> Result<(), h2::Error> {
    let watched = {
        let streams = streams.clone();
        Watched::new(transport, move || streams.are_open(), worker.shared.metrics.clients.http2_floods.clone(), heads)
    };
    let mut connection = tokio::select! {
        connection = settings(&worker.shared.config).handshake(watched) => connection?,
        () = fresh_grace(&worker.drain) => return Ok(()),
    };
    let begun = pin!(worker.drain.begun());
    let mut patience = Patience::new(&worker.drain, begun);
    // The goodbye is only complete when the client has answered, and one that is gone does not.
    let mut abandoned = pin!(async {
        fresh_grace(&worker.drain).await;
        while streams.are_open() {
            tokio::time::sleep(FRESH_GRACE).await;
        }
    });
    let (mut drained, mut is_dismissed) = (false, false);
    poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(accepted)) => {
                    let (request, respond) = accepted?;
                    member.is_served();
                    stream::begin(worker, client, streams, request, respond);
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                // Whatever can be told of it at once has been.
                Poll::Pending if is_dismissed => return Poll::Ready(Ok(())),
                Poll::Pending if !streams.are_open() && member.poll_waiting(cx).is_ready() => {
                    is_dismissed = true;
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                }
                Poll::Pending if drained => return abandoned.as_mut().poll(cx).map(Ok),
                Poll::Pending => {
                    ready!(patience.poll(!streams.have_been(), cx));
                    drained = true;
                    connection.graceful_shutdown();
                }
            }
        }
    })
    .await
}

/// What we tell clients of ourselves (RFC 9113 section 6.5.2), and what we keep for each.
fn settings(config: &Config) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(MOST_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(config.max_header_size).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// Bytes of bodies that a client may send ahead, on one stream and on all; so that eight uploads which no backend reads leave
/// room for others.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;

/// Requests that a client may have in flight on one connection.
const MOST_STREAMS: u32 = 128;

/// With so many bytes of a response that wait for the client, on one stream, no more are taken.
const SEND_BUFFER: usize = 16 * 1024;
