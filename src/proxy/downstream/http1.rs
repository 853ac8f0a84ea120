//! HTTP/1.1 with one client, by hand: read a head, forward, answer, again.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use http_body::Body;
use smallvec::SmallVec;
use tracing::debug;

use super::{
    lifetime::{LINGER, Patience},
    malformed, upgrade,
    wire::{ClientBody, Wire},
};
use crate::{
    message::{
        Framing, HeadReader, Known, Limits, Opening, ParseError, Persistence, RequestHead, ResponseRules, Version,
        chunk_header,
        chunked::{DATA_END, END},
        framing::has_no_body,
        headers::{keeps_alive, write_response, write_response_trailers},
    },
    proxy::{
        client::Client,
        client_timeouts::{Alarm, Deadlines},
        error::CLIENT_GONE,
        forward::{self, Answer, Opened, Reply, Turn},
        response_body::ResponseBody,
        trailers::last_chunk,
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
    let wire = Rc::new(RefCell::new(Wire::new(transport, deadlines.clone())));
    let pass_on = pass_on(&wire);
    let mut connection = Connection { worker: &worker, client: &client, wire, deadlines: deadlines.clone(), pass_on };
    let mut alarm = deadlines.map(Alarm::new);
    let mut serving = pin!(connection.run());
    let is_late = poll_fn(|cx| {
        if serving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        alarm.as_mut().map_or(Poll::Pending, |alarm| alarm.poll(worker.shared.clock, cx)).map(|()| true)
    });
    if is_late.await {
        worker.shared.metrics.client_timeouts.inc();
        debug!(address = %client.address, "a client connection was too slow");
    }
}

struct Connection<'a> {
    worker: &'a Rc<Worker>,
    client: &'a Rc<Client>,
    wire: Rc<RefCell<Wire>>,
    deadlines: Option<Rc<Deadlines>>,
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
    async fn run(&mut self) {
        let drain = &self.worker.drain;
        let begun = pin!(drain.begun());
        let mut patience = Patience::new(drain, begun);
        let mut is_first = true;
        loop {
            let after = match self.next_head(is_first, &mut patience).await {
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
    async fn next_head(&self, is_first: bool, patience: &mut Patience<'_, '_>) -> Next {
        let config = &self.worker.shared.config;
        let limits = Limits { bytes: config.max_header_size, lines: config.max_headers };
        let (mut reader, mut has_begun) = (HeadReader::default(), false);
        poll_fn(|cx| {
            let mut wire = self.wire.borrow_mut();
            loop {
                if !has_begun && reader.has_begun(&wire.input) {
                    has_begun = true;
                    if let Some(deadlines) = &self.deadlines {
                        deadlines.head_began();
                    }
                }
                match reader.request(&mut wire.input, limits) {
                    Ok(Some(head)) => return Poll::Ready(Next::Request(head)),
                    Err(error) => return Poll::Ready(Next::Malformed(error)),
                    Ok(None) => {}
                }
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::End),
                    Poll::Pending if has_begun => return Poll::Pending,
                    Poll::Pending => {
                        wire.rest();
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
        // Where it cannot be told where the body ends, the request is refused, and the connection with it.
        let framing = Framing::of_request(&head).unwrap_or(Framing::None);
        self.wire.borrow_mut().expect_body(framing);
        if let Some(deadlines) = &self.deadlines {
            deadlines.head_ended(!framing.is_empty());
        }
        let body = RequestBody::new(ClientBody::of(&self.wire), None);
        let turn = Turn {
            deadlines: self.deadlines.clone(),
            is_overfull: false,
            informational: (head.version() == Version::Http11).then(|| Rc::clone(&self.pass_on)),
        };
        let answer = pin!(forward::answer(self.worker, self.client, turn, &head, opening, body));
        let Some(answer) = self.unless_gone(answer).await else { return After::Gone };
        match answer {
            Answer::Response(reply) => self.respond(&head, reply).await,
            Answer::Opened(opened) => {
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

    /// Writes a response.
    async fn respond(&self, request: &RequestHead, reply: Reply) -> After {
        let Reply { head, lines, mut body, closes } = reply;
        // A backend may say 499 too; its answer has a listener.
        if head.status() == CLIENT_GONE && body.own_length().is_some() {
            return After::Gone;
        }
        let is_head = request.method() == "HEAD";
        let length = if head.status() == 304 || is_head { None } else { body.left() };
        let framing = match length {
            _ if is_head || has_no_body(head.status()) => match body.own_length() {
                Some(length) if is_head && length > 0 => Framing::Length(length as u64),
                _ => Framing::None,
            },
            Some(length) => Framing::Length(length),
            None if request.version() == Version::Http11 => Framing::Chunked,
            None => Framing::UntilClose,
        };
        if is_head {
            body.leave_out();
        }
        let is_body_in_hand = poll_fn(|cx| Poll::Ready(self.wire.borrow_mut().is_body_in_hand(cx))).await;
        let is_kept = keeps_alive(request.version(), request)
            && is_body_in_hand
            && !closes
            && !self.worker.drain.has_begun()
            && framing != Framing::UntilClose;
        let persistence = match (is_kept, request.version()) {
            (false, _) => Persistence::Close,
            (true, Version::Http10) => Persistence::KeepAlive,
            (true, _) => Persistence::Unsaid,
        };
        let write = |date: Option<&str>| {
            let ours = lines.iter().map(|(name, value)| (name.as_bytes(), &value[..]));
            let date = date.map(|date| (&b"Date"[..], date.as_bytes()));
            let ours: SmallVec<[(&[u8], &[u8]); 4]> = ours.chain(date).collect();
            let rules = ResponseRules { version: request.version(), framing, persistence, lines: &ours };
            write_response(self.wire.borrow_mut().output.text(), &head, &rules);
        };
        if head.has(Known::Date) {
            write(None);
        } else {
            with_date(|date| write(Some(date)));
        }
        drop((head, lines));
        if self.write_body(body, framing == Framing::Chunked).await.is_err() {
            if framing == Framing::UntilClose {
                // An ordinary end would make a whole response of it.
                self.wire.borrow().reset_at_close();
            }
            return After::Gone;
        }
        if framing != Framing::UntilClose {
            // A backend that has answered early may still read.
            poll_fn(|cx| self.wire.borrow_mut().poll_settled(cx)).await;
        }
        let wire = self.wire.borrow();
        match wire.has_read_body() {
            true if is_kept => After::Kept,
            true if wire.input.is_empty() && !keeps_alive(request.version(), request) => After::Finished,
            _ => After::Closed,
        }
    }

    /// Writes a body behind what waits already.
    async fn write_body(&self, mut body: ResponseBody, is_chunked: bool) -> io::Result<()> {
        let mut has_ended = body.is_end_stream() && !is_chunked;
        let written = poll_fn(|cx| {
            loop {
                let waiting = self.wire.borrow().output.len();
                let is_waiting_for_backend = !has_ended
                    && waiting < MOST_WAITING
                    && !self.take_piece(&mut body, is_chunked, &mut has_ended, cx)?;
                if !has_ended && !is_waiting_for_backend && waiting < MOST_WAITING {
                    continue;
                }
                let mut wire = self.wire.borrow_mut();
                return match wire.poll_flush(cx) {
                    Poll::Ready(Ok(())) if has_ended => Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) if !is_waiting_for_backend => continue,
                    Poll::Ready(Ok(())) => match wire.poll_gone(cx) {
                        Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                        Poll::Pending => Poll::Pending,
                    },
                    other => other,
                };
            }
        });
        written.await
    }

    /// Takes the next piece of a body, if it is there; returns whether it was.
    fn take_piece(
        &self,
        body: &mut ResponseBody,
        is_chunked: bool,
        has_ended: &mut bool,
        cx: &mut Context<'_>,
    ) -> io::Result<bool> {
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { return Ok(false) };
        let output = &mut self.wire.borrow_mut().output;
        match frame.transpose().map_err(io::Error::other)? {
            None => {
                *has_ended = true;
                if is_chunked {
                    output.text().extend_from_slice(END);
                }
            }
            Some(frame) => match frame.into_data() {
                Ok(data) if is_chunked => {
                    output.text().extend_from_slice(chunk_header(data.len()).as_ref());
                    output.push(data);
                    output.text().extend_from_slice(DATA_END);
                }
                Ok(data) => {
                    output.push(data);
                    *has_ended = body.is_end_stream();
                }
                Err(frame) => {
                    *has_ended = true;
                    if let Ok(trailers) = frame.into_trailers()
                        && is_chunked
                    {
                        output.push(last_chunk(&trailers, write_response_trailers));
                    }
                }
            },
        }
        Ok(true)
    }

    /// Tells the client that a WebSocket is open, and lets the connection become one.
    async fn open(&self, opened: Opened) {
        if let Some(deadlines) = &self.deadlines {
            deadlines.became_busy();
        }
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

/// Bytes of a response that may wait to be written.
const MOST_WAITING: usize = 64 * 1024;
