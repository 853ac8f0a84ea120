//! HTTP/1.1 with one client, by hand: read a head, forward, answer, again.

mod responding;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use tracing::debug;

use super::{
    lifetime::{LINGER, Patience},
    malformed, upgrade,
    wire::{ClientBody, Wire},
};
use crate::{
    message::{
        Framing, HeadReader, Limits, Opening, ParseError, Persistence, RequestHead, ResponseRules, Version,
        headers::write_response,
    },
    proxy::{
        client::Client,
        client_timeouts::{Deadlines, is_late},
        crowd::Member,
        forward::{self, Answer, Opened, Turn},
        upload::RequestBody,
        upstream::Informational,
        worker::Worker,
    },
    telemetry::{Counted, with_date},
    transport::Transport,
};

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, client: Rc<Client>) {
    let deadlines = Deadlines::begin(worker.shared.config.client_timeouts, worker.shared.clock);
    let member = worker.crowd.join();
    let wire = Rc::new(RefCell::new(Wire::new(transport, Rc::clone(&deadlines), member.pace())));
    let pass_on = pass_on(&wire);
    let mut connection =
        Connection { worker: &worker, client: &client, wire, deadlines: Rc::clone(&deadlines), pass_on };
    let running = pin!(connection.run(&member));
    let unless_shed = pin!(member.is_shed(running));
    if is_late(Some(deadlines), worker.shared.clock, unless_shed).await {
        worker.shared.metrics.clients.timeouts.inc();
        debug!(address = %client.address, "a client connection was too slow");
    }
}

struct Connection<'a> {
    worker: &'a Rc<Worker>,
    client: &'a Rc<Client>,
    wire: Rc<RefCell<Wire>>,
    deadlines: Rc<Deadlines>,
    /// What writes informational responses to the client.
    pass_on: Informational,
}

/// What a connection has to say next.
enum Next {
    Request(RequestHead),
    Malformed(ParseError),
    /// Nothing, because either side has had enough.
    End,
}

/// What becomes of a connection after a response.
#[derive(PartialEq, Eq)]
enum After {
    /// Another request may come.
    Kept,
    /// It is closed, and what the client still sends is read for a moment.
    Closed,
    /// It is closed as its client wished, who has nothing more to say.
    Finished,
    /// It is not ours any more, or broken.
    Gone,
}

impl Connection<'_> {
    async fn run(&mut self, member: &Member) {
        let drain = &self.worker.drain;
        let begun = pin!(drain.begun());
        let mut patience = Patience::new(drain, begun);
        let mut is_first = true;
        loop {
            let after = match self.next_head(is_first, &mut patience, member).await {
                Next::End => return,
                Next::Malformed(error) => {
                    self.refuse(error).await;
                    After::Closed
                }
                // In a box, because it is large, and an idle connection would otherwise be as large.
                Next::Request(head) => Box::pin(self.exchange(head)).await,
            };
            is_first = false;
            match after {
                After::Kept => {}
                After::Closed => return self.linger().await,
                // However it ends, the connection is closed.
                After::Finished => return drop(poll_fn(|cx| self.wire.borrow_mut().poll_goodbye(cx)).await),
                After::Gone => return,
            }
        }
    }

    /// Waits for the head of the next request.
    async fn next_head(&self, is_first: bool, patience: &mut Patience<'_, '_>, member: &Member) -> Next {
        let config = &self.worker.shared.config;
        let limits = Limits { bytes: config.max_header_size, lines: config.max_headers };
        let (mut reader, mut has_begun) = (HeadReader::default(), false);
        poll_fn(|cx| {
            let mut wire = self.wire.borrow_mut();
            loop {
                if !has_begun && reader.has_begun(&wire.input) {
                    has_begun = true;
                    member.is_served();
                    self.deadlines.head_began();
                }
                match reader.request(&mut wire.input, limits) {
                    Ok(Some(head)) => {
                        wire.has_whole_head();
                        return Poll::Ready(Next::Request(head));
                    }
                    Err(error) => return Poll::Ready(Next::Malformed(error)),
                    Ok(None) => {}
                }
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::End),
                    Poll::Pending if has_begun => {
                        wire.awaits_head();
                        return Poll::Pending;
                    }
                    Poll::Pending => {
                        wire.rest();
                        if member.poll_waiting(cx).is_ready() {
                            return Poll::Ready(Next::End);
                        }
                        return patience.poll(is_first, cx).map(|()| Next::End);
                    }
                }
            }
        })
        .await
    }

    /// Answers a request.
    async fn exchange(&self, head: RequestHead) -> After {
        let opening = Opening::of(&head);
        let framing = Framing::of_request(&head);
        // Where it cannot be told where the body ends, the request is refused, and the connection with it.
        let expected = framing.unwrap_or(Framing::None);
        self.wire.borrow_mut().expect_body(expected);
        self.deadlines.head_ended(!expected.is_empty());
        let body = RequestBody::new(ClientBody::of(&self.wire), None);
        let turn = Turn {
            deadlines: Some(Rc::clone(&self.deadlines)),
            is_overfull: false,
            informational: (head.version() == Version::Http11).then(|| Rc::clone(&self.pass_on)),
            framing,
        };
        // It ends here, so that what follows takes its memory.
        let answer = {
            let answering = pin!(forward::answer(self.worker, self.client, turn, &head, opening, body));
            self.unless_gone(answering).await
        };
        match answer {
            None => After::Gone,
            Some(Answer::Response(reply)) => self.respond(&head, reply).await,
            Some(Answer::Opened(opened)) => {
                self.open(*opened).await;
                After::Gone
            }
        }
    }

    /// Waits for something, writing what comes up meanwhile; `None` if the client leaves before.
    async fn unless_gone<T>(&self, mut wanted: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        poll_fn(|cx| {
            if let Poll::Ready(found) = wanted.as_mut().poll(cx) {
                return Poll::Ready(Some(found));
            }
            let mut wire = self.wire.borrow_mut();
            if let Poll::Ready(Err(_)) = wire.poll_flush(cx) {
                return Poll::Ready(None);
            }
            wire.poll_gone(cx).map(|()| None)
        })
        .await
    }

    /// Tells the client that a WebSocket is open, and lets the connection become one.
    async fn open(&self, opened: Opened) {
        self.deadlines.became_busy();
        // Before anybody can know of it.
        let open = Counted::one(&self.worker.shared.metrics.tunnels_open);
        let ours: Vec<(&[u8], &[u8])> =
            opened.lines.iter().map(|(name, value)| (name.as_bytes(), &value[..])).collect();
        let rules = ResponseRules {
            version: Version::Http11,
            framing: Framing::None,
            persistence: Persistence::Unsaid,
            lines: &ours,
        };
        write_response(self.wire.borrow_mut().output.text(), &opened.head, &rules);
        if poll_fn(|cx| self.wire.borrow_mut().poll_flush(cx)).await.is_err() {
            return;
        }
        let socket = self.wire.borrow_mut().take();
        if let Some((transport, arrived)) = socket {
            upgrade::open(self.worker, Rc::clone(self.client), transport, arrived, opened, open);
        }
    }

    /// Answers what is no request.
    async fn refuse(&self, error: ParseError) {
        let status = error.status();
        malformed::record(&self.worker.shared, self.client.address, &self.wire.borrow().input, status);
        let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let text = with_date(|date| {
            format!(
                "HTTP/1.1 {status} {}\r\nConnection: close\r\nContent-Length: 0\r\nDate: {date}\r\n\r\n",
                reason.unwrap_or_default(),
            )
        });
        self.wire.borrow_mut().output.push(text.into());
        // A client that is gone need not be told.
        let _ = poll_fn(|cx| self.wire.borrow_mut().poll_flush(cx)).await;
    }

    /// Closes our direction. What the client still sends is read and dropped for a while: closing a socket with unread bytes
    /// resets it, and the reset can overtake the answer that explains it (RFC 9112 section 9.6).
    async fn linger(&self) {
        self.wire.borrow_mut().abandon_body();
        let reading = poll_fn(|cx| {
            let mut wire = self.wire.borrow_mut();
            loop {
                wire.input.clear();
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let closing = async {
            // However it ends, the connection is closed.
            let _ = poll_fn(|cx| self.wire.borrow_mut().poll_shutdown(cx)).await;
            reading.await;
        };
        let _ = tokio::time::timeout(LINGER, closing).await;
    }
}

/// What writes informational responses to a client.
fn pass_on(wire: &Rc<RefCell<Wire>>) -> Informational {
    let wire = Rc::clone(wire);
    Rc::new(move |head| {
        let rules = ResponseRules {
            version: Version::Http11,
            framing: Framing::None,
            persistence: Persistence::Unsaid,
            lines: &[],
        };
        write_response(wire.borrow_mut().output.text(), head, &rules);
    })
}
