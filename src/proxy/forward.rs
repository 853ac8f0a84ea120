//! One request, top to bottom, whatever version of HTTP it came in.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{
    client::Client,
    client_timeouts::Deadlines,
    error::{Malformed, ProxyError},
    exchange::Exchange,
    response_body::{Content, ResponseBody},
    retry::{Attempts, Next, Repeatability},
    upload::RequestBody,
    upstream::{Answering, Failure, Informational, Outgoing, Progress},
    worker::Worker,
};
use crate::{
    message::{
        Addressee, Framing, FramingError, Known, Opening, RequestHead, RequestRules, ResponseHead, ResponseHeadBuilder,
        Target, Version,
        headers::{request_id, write_request},
    },
    routing::{Choice, Frontend, Host},
    telemetry::Subject,
};

/// What a request has to do with the connection that it came on.
pub struct Turn {
    /// The deadlines of the connection; or of the stream, on HTTP/2.
    pub deadlines: Option<Rc<Deadlines>>,
    /// Whether the connection has no room for the request's head, on HTTP/2.
    pub is_overfull: bool,
    /// What passes informational responses on, where the client's connection can say them.
    pub informational: Option<Informational>,
    /// Where the request's body ends, as its head tells.
    pub framing: Result<Framing, FramingError>,
}

/// What a request is answered with.
#[expect(clippy::large_enum_variant, reason = "nearly all are responses")]
pub enum Answer {
    /// A response.
    Response(Reply),
    /// A backend's agreement to become a WebSocket.
    Opened(Box<Opened>),
}

/// A response for a client.
pub struct Reply {
    /// The head, as the backend sent it, or of our own.
    pub head: ResponseHead,
    /// Further lines of ours.
    pub lines: Lines,
    /// The body.
    pub body: ResponseBody,
    /// Whether the connection must end with it, on HTTP/1: bytes may follow the request that were not looked over.
    pub closes: bool,
}

/// A WebSocket that a backend has agreed to.
pub struct Opened {
    /// What the backend has said.
    pub head: ResponseHead,
    /// Further lines of ours.
    pub lines: Lines,
    /// The backend's connection.
    pub answering: Answering,
    /// The record of it.
    pub exchange: Box<Exchange>,
}

/// Header lines that we add to a response.
pub type Lines = Vec<(&'static str, Bytes)>;

/// A request that has been looked into.
struct Request<'a> {
    head: &'a RequestHead,
    body: RequestBody,
    framing: Framing,
    opening: Option<Opening>,
    /// The header that carries request ids, and this one's.
    id: Option<(Box<str>, Bytes)>,
    informational: Option<Informational>,
    /// What `Via` names us.
    via: Option<&'a [u8]>,
}

/// Answers a request; there is always an answer.
pub async fn answer(
    worker: &Worker,
    client: &Client,
    turn: Turn,
    head: &RequestHead,
    opening: Option<Opening>,
    body: RequestBody,
) -> Answer {
    let shared = &worker.shared;
    let mut exchange = Exchange::begin(worker, turn.deadlines, client.address, head);
    let is_http2 = head.version() == Version::Http2;
    // On HTTP/1, bytes may follow a request's head that were not looked over.
    let unread = !is_http2 && opening.is_some();
    // On HTTP/1 this has been looked at.
    if turn.is_overfull || is_http2 && head.len() > shared.config.max_headers {
        return refuse(worker, exchange, &ProxyError::TooManyHeaders, false);
    }
    let understood = understand(head, turn.framing, opening.as_ref(), &body);
    let (target, host, framing) = match understood {
        Ok(understood) => understood,
        Err(malformed) => {
            shared.metrics.malformed_requests.inc();
            return refuse(worker, exchange, &ProxyError::Malformed(malformed), !is_http2);
        }
    };
    let host_name = str::from_utf8(host).ok().and_then(|text| Host::parse(text).ok());
    let Some(name) = host_name else {
        shared.metrics.malformed_requests.inc();
        return refuse(worker, exchange, &ProxyError::Malformed(Malformed::Host), !is_http2);
    };
    if name.full() == PING_HOST && target.path() == b"/" {
        exchange.forget();
        return pong(worker);
    }
    let frontend = shared.routes.load().find(&name);
    let id = shared.config.request_id_header.as_ref().map(|header| {
        let id = request_id(head, header.name().as_str().as_bytes());
        let id = id.map_or_else(|| Bytes::from(uuid::Uuid::new_v4().to_string()), |id| head.value_bytes(id));
        (Box::from(header.canonical()), id)
    });
    exchange.identify(id.as_ref().map(|(_, id)| id.clone()).unwrap_or_default());
    let Some(frontend) = frontend else {
        exchange.log_error(Subject::Client, &ProxyError::NoRoute);
        return refuse(worker, exchange, &ProxyError::NoRoute, unread);
    };
    exchange.routed(&frontend);
    if shared.config.via.is_in(head) {
        exchange.log_error(Subject::Frontend, &ProxyError::Loop);
        return refuse(worker, exchange, &ProxyError::Loop, unread);
    }
    let wanted = shared.sticky.as_ref().and_then(|sticky| sticky.wanted(&frontend, head.all(Known::Cookie)));
    let via = shared.config.via.pseudonym();
    let request = Request { head, body, framing, opening, id, informational: turn.informational, via };
    let (choice, outcome) =
        attempt(worker, client, &frontend, wanted.as_ref(), &request, &target, host, &mut exchange).await;
    let mut lines = Lines::new();
    if let (Some(sticky), Some(choice), Ok(_)) = (&shared.sticky, &choice, &outcome)
        && let Some(cookie) = sticky.cookie(&frontend, choice, wanted.as_ref(), client.provenance.scheme())
    {
        lines.push(("Set-Cookie", Bytes::copy_from_slice(cookie.as_bytes())));
    }
    if request.head.has(Known::XDebugRouter) {
        add_debug_lines(&mut lines, &frontend, choice.as_ref());
    }
    match outcome {
        Ok((head, answering)) => respond(head, lines, answering, request.opening, exchange),
        Err(error) => {
            let mut answer = refuse(worker, exchange, &error, unread);
            if let Answer::Response(reply) = &mut answer {
                reply.lines.append(&mut lines);
            }
            answer
        }
    }
}

/// What a request asks for, of which host, and where its body ends.
fn understand<'a>(
    head: &'a RequestHead,
    framing: Result<Framing, FramingError>,
    opening: Option<&Opening>,
    body: &RequestBody,
) -> Result<(Target<'a>, &'a [u8], Framing), Malformed> {
    let framing = framing?;
    let target = Target::of(head, opening)?;
    let host = target.host(head)?;
    // HTTP/2 tells of a body without telling its length.
    let framing = if framing == Framing::None && !body.is_empty() { Framing::Chunked } else { framing };
    Ok((target, host, framing))
}

/// A backend's answer that is held against it.
struct Kept {
    choice: Choice,
    head: ResponseHead,
    answering: Answering,
    took: Duration,
}

/// Tries backends until one answers, or there is none left that may be tried. An answer that is held against its backend is
/// kept for when no other backend has a better one; where one has, it goes, and its connection with it.
#[expect(clippy::too_many_arguments, reason = "a request, and what was made out of it")]
async fn attempt(
    worker: &Worker,
    client: &Client,
    frontend: &Arc<Frontend>,
    wanted: Option<&Choice>,
    request: &Request<'_>,
    target: &Target<'_>,
    host: &[u8],
    exchange: &mut Exchange,
) -> (Option<Choice>, Result<(ResponseHead, Answering), ProxyError>) {
    let mut attempts = Attempts::at(worker, frontend).wanting(wanted);
    let (judges_answers, mut kept) = (worker.shared.config.dead_backend_on_5xx, None);
    let repeatability = Repeatability::of(request.head.method(), request.body.is_empty() && request.opening.is_none());
    let is_head = request.head.method() == "HEAD";
    let mut has_repeated = false;
    while let Some(choice) = attempts.next(exchange) {
        let began = exchange.latest();
        let sent = {
            let backend = &choice.backend;
            let name = backend.origin().host.name();
            let write_head = |text: &mut BytesMut| write_head(text, client, request, target, host, name);
            let outgoing = Outgoing {
                write_head: &write_head,
                body: request.body.share(),
                framing: request.framing,
                is_head,
                informational: request.informational.clone(),
            };
            let afresh = request.opening.is_some() || has_repeated;
            let sending = pin!(async {
                if afresh {
                    Box::pin(worker.upstream.send_afresh(backend, &outgoing)).await
                } else {
                    worker.upstream.send(backend, &outgoing).await
                }
            });
            within(worker, began, &request.body, sending).await
        };
        let took = exchange.attempted(began);
        let (error, next) = match sent {
            Ok((head, answering)) => match check_upgrade(&head, request.opening.as_ref()) {
                Ok(()) => {
                    let problem = ProxyError::from_answer(request.head.method(), &head).filter(|_| judges_answers);
                    let Some(error) = problem else { return (Some(choice), Ok((head, answering))) };
                    kept = Some(Box::new(Kept { choice: choice.clone(), head, answering, took }));
                    (error, if repeatability.is_safe() { Next::Another } else { Next::Stop })
                }
                Err(error) => (error, Next::Stop),
            },
            Err((error, progress)) => {
                let next = repeatability.next(progress, has_repeated);
                has_repeated |= next != Next::Stop && progress != Progress::NothingSent;
                (error, next)
            }
        };
        attempts.failed(choice, error, next, exchange);
        if next == Next::Stop {
            break;
        }
    }
    if let Some(answer) = kept {
        attempts.turn_to(&answer.choice, exchange);
        exchange.took_back(answer.took);
        return (Some(answer.choice), Ok((answer.head, answer.answering)));
    }
    let (choice, error) = attempts.end(exchange);
    (choice, Err(error))
}

/// The request's head for a backend, which may be known by a name.
fn write_head(
    text: &mut BytesMut,
    client: &Client,
    request: &Request<'_>,
    target: &Target<'_>,
    host: &[u8],
    name: Option<&str>,
) {
    let rules = RequestRules {
        provenance: &client.provenance,
        request_id: request.id.as_ref().map(|(name, id)| (name.as_bytes(), &id[..])),
        opening: request.opening.as_ref(),
        via: request.via,
        certificate: client.certificate.as_ref().map(http::HeaderValue::as_bytes),
        addressee: match name {
            None => Addressee::Client(host),
            Some(name) => Addressee::Backend { name: name.as_bytes(), original: host },
        },
    };
    write_request(text, request.head, target, &rules, request.framing);
}

/// Waits for the head of a response within a limit, which does not run while the request's body makes progress.
async fn within<T>(
    worker: &Worker,
    began: Instant,
    body: &RequestBody,
    mut sending: Pin<&mut impl Future<Output = Result<T, Failure>>>,
) -> Result<T, (ProxyError, Progress)> {
    let failed = |Failure { error, progress }| (error.into(), progress);
    let Some(limit) = worker.shared.config.request_timeout else { return sending.await.map_err(failed) };
    let (mut deadline, mut timer) = (began + limit, worker.timers.lend());
    poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(sent.map_err(failed));
        }
        loop {
            ready!(timer.poll(deadline.into(), cx));
            match body.moved_at().map(|moved| moved + limit) {
                Some(later) if later > deadline => deadline = later,
                _ => return Poll::Ready(Err((ProxyError::RequestTimeout(limit), Progress::Begun))),
            }
        }
    })
    .await
}

/// Whether a backend switched protocols just as the client asked.
fn check_upgrade(head: &ResponseHead, opening: Option<&Opening>) -> Result<(), ProxyError> {
    match opening {
        Some(opening) => Ok(opening.check(head.status(), head)?),
        None if head.switches_protocols() => Err(ProxyError::UnexpectedUpgrade),
        None => Ok(()),
    }
}

/// Passes a backend's answer on.
fn respond(
    head: ResponseHead,
    lines: Lines,
    answering: Answering,
    opening: Option<Opening>,
    mut exchange: Box<Exchange>,
) -> Answer {
    exchange.answered(head.status());
    match opening {
        Some(_) if head.switches_protocols() => {
            exchange.became_tunnel();
            Answer::Opened(Box::new(Opened { head, lines, answering, exchange }))
        }
        refused => {
            let closes = refused.is_some_and(|opening| !opening.is_connect());
            Answer::Response(Reply { head, lines, body: ResponseBody::from_backend(answering, exchange), closes })
        }
    }
}

/// Answers in place of a backend. `closes` is as in [`Reply`].
fn refuse(worker: &Worker, mut exchange: Box<Exchange>, error: &ProxyError, closes: bool) -> Answer {
    let verdict = error.verdict();
    exchange.answered(verdict.status);
    let page = worker.shared.error_pages.as_ref().and_then(|pages| pages.page(verdict.status));
    let content = page.map_or_else(|| Content::from(verdict.body), Content::Html);
    own(verdict.status, content, Some(exchange), closes)
}

/// A whole response of our own.
fn own(status: u16, content: Content, exchange: Option<Box<Exchange>>, closes: bool) -> Answer {
    let head = ResponseHeadBuilder::new(Version::Http11, status);
    let (media_type, text) = match content {
        Content::Text(text) => ("text/plain; charset=utf-8", text),
        Content::Html(page) => ("text/html; charset=utf-8", page),
    };
    let mut lines = Lines::new();
    if !text.is_empty() {
        lines.push(("Content-Type", Bytes::from_static(media_type.as_bytes())));
    }
    let head = head.build().expect("a status and its reason make a head");
    Answer::Response(Reply { head, lines, body: ResponseBody::own(text, exchange), closes })
}

/// The answer to `Host: __ping__`: whether the table can be trusted to be current.
fn pong(worker: &Worker) -> Answer {
    match worker.shared.health.problem() {
        None => own(200, Content::from("OK"), None, false),
        Some(problem) => own(500, Content::Text(problem.to_string().into()), None, false),
    }
}

fn add_debug_lines(lines: &mut Lines, frontend: &Frontend, choice: Option<&Choice>) {
    // What no header can carry is left out.
    let mut add = |name, value: &str| {
        if http::HeaderValue::from_str(value).is_ok() {
            lines.push((name, Bytes::copy_from_slice(value.as_bytes())));
        }
    };
    add("X-Debug-Frontend-Key", frontend.key());
    if let Some(choice) = choice {
        add("X-Debug-Backend-Url", choice.backend.url());
        add("X-Debug-Backend-Id", &choice.index.to_string());
    }
}

/// The host by which load balancers ask whether we are well.
const PING_HOST: &str = "__ping__";
