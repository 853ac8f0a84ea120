//! One request on a stream of its own, and its response.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{Request, Response, StatusCode};
use http_body::Body;
use tracing::debug;

use super::{
    body::StreamBody,
    sending::send_body,
    streams::{HeldHead, OpenStream, Streams},
    translate, tunnel,
};
use crate::{
    message::{Framing, Opening, RequestHead},
    proxy::{
        client::Client,
        client_timeouts::{Deadlines, is_late},
        downstream::malformed,
        error::CLIENT_GONE,
        forward::{self, Answer, Reply, Turn},
        upload::RequestBody,
        upstream::Informational,
        worker::Worker,
    },
};

/// Answers a request by a task of its own, within its deadlines. One that is late is reset, and the others go on.
pub fn begin(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    streams: &Streams,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let deadlines = Deadlines::after_head(worker.shared.config.client_timeouts, worker.shared.clock);
    if let Some(deadlines) = &deadlines {
        deadlines.head_ended(!request.body().is_end_stream());
    }
    let stream = Stream {
        worker: Rc::clone(worker),
        client: Rc::clone(client),
        streams: streams.clone(),
        deadlines: deadlines.clone(),
        respond: Rc::new(RefCell::new(respond)),
    };
    let open = streams.open();
    // In a box, because what is spawned is moved a few times, and this is large.
    worker.tasks.spawn_local(Box::pin(async move {
        let shared = &stream.worker.shared;
        if is_late(deadlines, shared.clock, pin!(stream.serve(request, open))).await {
            shared.metrics.clients.timeouts.inc();
        }
    }));
}

/// A request's stream, on which nothing final was said yet.
struct Stream {
    worker: Rc<Worker>,
    client: Rc<Client>,
    streams: Streams,
    deadlines: Option<Rc<Deadlines>>,
    respond: Rc<RefCell<SendResponse<Bytes>>>,
}

/// A request that has been read.
struct Asked {
    head: RequestHead,
    opening: Option<Opening>,
    body: RequestBody,
    /// What will come from a client that wants a tunnel.
    from_client: Option<RecvStream>,
    /// The head counts until there is an answer.
    held: Option<HeldHead>,
}

impl Stream {
    async fn serve(&self, request: Request<RecvStream>, open: OpenStream) {
        let Some(Asked { head, opening, body, from_client, held }) = self.read(request) else { return };
        let answer = {
            let turn = Turn {
                deadlines: self.deadlines.clone(),
                is_overfull: held.is_none(),
                informational: Some(self.pass_on()),
                framing: Framing::of_request(&head),
            };
            let answering = pin!(forward::answer(&self.worker, &self.client, turn, &head, opening, body));
            self.unless_reset(answering).await
        };
        drop(held);
        match (answer, from_client) {
            (None, _) => {}
            (Some(Answer::Response(reply)), _) => self.respond(reply, head.method() == "HEAD").await,
            (Some(Answer::Opened(opened)), Some(from_client)) => {
                if let Some(deadlines) = &self.deadlines {
                    deadlines.became_busy();
                }
                if let Some(to_client) = self.send_head(translate::opened(&opened.head, &opened.lines), false) {
                    tunnel::open(&self.worker, &self.client, from_client, to_client, *opened, open);
                }
            }
            // Nobody can open what was not asked for.
            (Some(Answer::Opened(_)), None) => self.respond.borrow_mut().send_reset(Reason::INTERNAL_ERROR),
        }
    }

    /// Looks into a request; `None` if it cannot be said in HTTP/1.1, for which it has then been refused.
    fn read(&self, request: Request<RecvStream>) -> Option<Asked> {
        let (parts, body) = request.into_parts();
        let held = self.streams.hold(&parts.headers);
        let Ok(head) = translate::request_head(&parts) else {
            let body = StreamBody::new(body, &self.worker);
            self.refuse();
            drop(body);
            return None;
        };
        let opening = Opening::of(&head);
        let (body, from_client) = match (&opening, body.is_end_stream()) {
            (Some(_), _) => (RequestBody::default(), Some(body)),
            (None, true) => (RequestBody::default(), None),
            (None, false) => {
                let body = StreamBody::new(body, &self.worker);
                (RequestBody::new(body, self.deadlines.clone()), None)
            }
        };
        Some(Asked { head, opening, body, from_client, held })
    }

    /// What passes informational responses on to the client.
    fn pass_on(&self) -> Informational {
        let respond = Rc::clone(&self.respond);
        Rc::new(move |head| {
            if let Err(error) = respond.borrow_mut().send_informational(translate::head_of(head)) {
                debug!(%error, "an informational response was not passed on");
            }
        })
    }

    /// Waits for something; `None` if the client resets the stream before, or is gone.
    async fn unless_reset<T>(&self, mut wanted: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        poll_fn(|cx| {
            if let Poll::Ready(found) = wanted.as_mut().poll(cx) {
                return Poll::Ready(Some(found));
            }
            self.respond.borrow_mut().poll_reset(cx).map(|_| None)
        })
        .await
    }

    async fn respond(&self, reply: Reply, is_head: bool) {
        // A backend may say 499 too; its answer has a listener.
        if reply.head.status() == CLIENT_GONE && reply.body.own_length().is_some() {
            return self.respond.borrow_mut().send_reset(Reason::CANCEL);
        }
        let (response, mut body) = translate::response(reply, is_head);
        let is_whole = body.is_end_stream();
        let Some(mut stream) = self.send_head(response, is_whole) else { return };
        if !is_whole && let Err(error) = send_body(&self.streams, &mut stream, &mut body).await {
            debug!(client = %self.client.address, %error, "a response broke off");
        }
    }

    /// The answer to what cannot be said in HTTP/1.1.
    fn refuse(&self) {
        malformed::record(&self.worker.shared, self.client.address, b"", 400);
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        self.send_head(response, true);
    }

    /// Sends a response's head; `None` if that cannot be done.
    fn send_head(&self, response: Response<()>, is_whole: bool) -> Option<SendStream<Bytes>> {
        let mut respond = self.respond.borrow_mut();
        respond
            .send_response(response, is_whole)
            .inspect_err(|error| {
                debug!(client = %self.client.address, %error, "a response was not sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
            })
            .ok()
    }
}
