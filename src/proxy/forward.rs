//! One request, top to bottom.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use hyper::body::Incoming;

use super::{
    client::Client,
    client_timeouts::Deadlines,
    error::ProxyError,
    exchange::Exchange,
    headers::{
        self, Forwarding, Replaced, RequestIdHeader, X_DEBUG_BACKEND_ID, X_DEBUG_BACKEND_URL, X_DEBUG_FRONTEND_KEY,
    },
    response_body::{Content, ResponseBody},
    retry::Attempts,
    upload::RequestBody,
    upstream::{self, Failure, Lease},
    websocket::Opening,
    worker::Worker,
};
use crate::{
    routing::{Choice, Frontend, Host},
    telemetry::Subject,
};

/// What a request has to do with the connection that it came on.
pub struct Turn {
    /// The deadlines of the connection; or of the stream, on HTTP/2.
    pub deadlines: Option<Arc<Deadlines>>,
    /// Whether the connection has no room for the request's head, on HTTP/2.
    pub is_overfull: bool,
}

/// What a request is answered with.
pub enum Answer {
    /// A response.
    Response(Response<ResponseBody>),
    /// A backend's agreement to become a WebSocket.
    Opened(Box<Opened>),
}

/// A WebSocket that a backend has agreed to.
pub struct Opened {
    /// What the backend has said, with its side of the WebSocket.
    pub response: Response<Incoming>,
    /// What the client has asked for, with its side.
    pub opening: Opening,
    /// The backend's connection.
    pub lease: Lease,
    /// The record of it.
    pub exchange: Box<Exchange>,
}

impl Answer {
    fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Response(response) => response.headers_mut(),
            Self::Opened(opened) => opened.response.headers_mut(),
        }
    }
}

impl From<Response<ResponseBody>> for Answer {
    fn from(response: Response<ResponseBody>) -> Self {
        Self::Response(response)
    }
}

/// Answers a request; there is always an answer.
pub async fn answer(worker: Rc<Worker>, client: Rc<Client>, turn: Turn, mut request: Request<Incoming>) -> Answer {
    let opening = Opening::of(&mut request);
    let (mut head, body) = request.into_parts();
    let mut exchange = Exchange::begin(&worker, turn.deadlines.clone(), client.address, &head);
    let is_http2 = head.version == Version::HTTP_2;
    if is_http2 {
        headers::as_http1(&mut head.headers);
    }
    // On HTTP/1, bytes may follow a request's head that were not looked over.
    let unread = !is_http2 && opening.is_some();

    // On HTTP/1 the library has looked at this.
    if turn.is_overfull || is_http2 && head.headers.len() > worker.shared.config.max_headers {
        return refuse(&worker, exchange, &ProxyError::TooManyHeaders, false).into();
    }
    let checked = check_coding(&head.headers).and_then(|()| requested_host(&head, opening.is_some()));
    let host = match checked {
        Ok(host) => host,
        Err(reason) => {
            worker.shared.metrics.malformed_requests.inc();
            return refuse(&worker, exchange, &ProxyError::Malformed(reason), !is_http2).into();
        }
    };
    let frontend = {
        // A malformed name was refused above, so that this parses again.
        let Ok(name) = host.to_str().map_err(drop).and_then(|text| Host::parse(text).map_err(drop)) else {
            return refuse(&worker, exchange, &ProxyError::Malformed("the host is malformed"), !is_http2).into();
        };
        if name.full() == PING_HOST && head.uri.path() == "/" {
            exchange.forget();
            return pong(&worker).into();
        }
        worker.shared.routes.load().find(&name).cloned()
    };
    let debug = headers::prepare_request(
        &mut head.headers,
        &Forwarding {
            origin: &client.provenance,
            request_id_header: worker.shared.config.request_id_header.as_ref().map(RequestIdHeader::name),
            upgrade: opening.is_some(),
            certificate: client.certificate.as_ref(),
        },
    );
    exchange.identify(&head.headers);
    let Some(frontend) = frontend else {
        exchange.log_error(Subject::Client, &ProxyError::NoRoute);
        return refuse(&worker, exchange, &ProxyError::NoRoute, unread).into();
    };
    exchange.routed(&frontend);
    let sticky = worker.shared.sticky.as_ref();
    let wanted = sticky.and_then(|sticky| sticky.wanted(&frontend, &head.headers));
    make_origin_form(&mut head);
    if let Some(opening) = &opening {
        opening.ask(&mut head.headers);
        head.method = Method::GET;
    }

    let mut request = Request::from_parts(head, RequestBody::new(body, turn.deadlines.clone().filter(|_| is_http2)));
    headers::declare_body(&mut request);
    let (choice, outcome) =
        attempt(&worker, &frontend, wanted.as_ref(), &host, request, opening.as_ref(), &mut exchange).await;
    let cookie = match (sticky, &choice, &outcome) {
        (Some(sticky), Some(choice), Ok(_)) => {
            sticky.cookie(&frontend, choice, wanted.as_ref(), client.provenance.scheme())
        }
        _ => None,
    };
    let mut answer = match outcome {
        Ok((response, lease)) => respond(response, lease, opening, exchange),
        Err(error) => refuse(&worker, exchange, &error, unread).into(),
    };
    if let Some(cookie) = cookie {
        answer.headers_mut().append(header::SET_COOKIE, cookie);
    }
    if debug {
        add_debug_headers(answer.headers_mut(), &frontend, choice.as_ref());
    }
    answer
}

/// A backend's answer that is held against it.
struct Kept {
    choice: Choice,
    response: Response<Incoming>,
    lease: Lease,
    took: Duration,
}

/// Tries backends until one answers, or there is none left that may be tried. An answer that is held against its backend is
/// kept for when no other backend has a better one; where one has, it goes, and its connection with it.
async fn attempt(
    worker: &Worker,
    frontend: &Arc<Frontend>,
    wanted: Option<&Choice>,
    host: &HeaderValue,
    mut request: Request<RequestBody>,
    opening: Option<&Opening>,
    exchange: &mut Exchange,
) -> (Option<Choice>, Result<(Response<Incoming>, Lease), ProxyError>) {
    let mut attempts = Attempts::at(worker, frontend).wanting(wanted);
    let mut replaced = Replaced::default();
    let (judges_answers, mut kept) = (worker.shared.config.dead_backend_on_5xx, None);
    while let Some(choice) = attempts.next(exchange) {
        let backend = &choice.backend;
        replaced.put_back(request.headers_mut());
        replaced = headers::address_request(request.headers_mut(), host, backend.origin().host.header());
        let copy = (judges_answers && opening.is_none()).then(|| upstream::copy_safe(&request)).flatten().map(Box::new);
        let began = Instant::now();
        let sending = async {
            if opening.is_some() {
                Box::pin(worker.upstream.send_afresh(backend, request)).await
            } else {
                worker.upstream.send(backend, request).await
            }
        };
        let sent = match worker.shared.config.request_timeout {
            None => sending.await,
            Some(limit) => match tokio::time::timeout(limit, sending).await {
                Ok(sent) => sent,
                Err(_) => Err(Failure { error: ProxyError::RequestTimeout(limit), unsent: None }),
            },
        };
        let took = began.elapsed();
        exchange.attempted(took);
        let Failure { error, unsent } = match sent {
            Ok((response, lease)) => match check_upgrade(&response, opening) {
                Ok(()) => {
                    let problem = ProxyError::from_answer(exchange.method(), &response).filter(|_| judges_answers);
                    let Some(error) = problem else { return (Some(choice), Ok((response, lease))) };
                    kept = Some(Box::new(Kept { choice: choice.clone(), response, lease, took }));
                    Failure { error, unsent: copy.map(|copy| *copy) }
                }
                Err(error) => Failure { error, unsent: None },
            },
            Err(failure) => failure,
        };
        attempts.failed(choice, error, exchange);
        match unsent {
            Some(unsent) => request = unsent,
            None => break,
        }
    }
    if let Some(answer) = kept {
        attempts.turn_to(&answer.choice, exchange);
        exchange.attempted(answer.took);
        return (Some(answer.choice), Ok((answer.response, answer.lease)));
    }
    let (choice, error) = attempts.end(exchange);
    (choice, Err(error))
}

/// Whether a backend switched protocols just as the client asked.
fn check_upgrade(response: &Response<Incoming>, opening: Option<&Opening>) -> Result<(), ProxyError> {
    match opening {
        Some(opening) => opening.check(response),
        None if response.status() == StatusCode::SWITCHING_PROTOCOLS => Err(ProxyError::UnexpectedUpgrade),
        None => Ok(()),
    }
}

/// Passes a backend's answer on.
fn respond(
    mut response: Response<Incoming>,
    lease: Lease,
    opening: Option<Opening>,
    mut exchange: Box<Exchange>,
) -> Answer {
    exchange.answered(response.status());
    *response.version_mut() = Version::HTTP_11;
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    headers::prepare_response(response.headers_mut(), switched);
    match opening {
        Some(opening) if switched => {
            exchange.became_tunnel();
            Answer::Opened(Box::new(Opened { response, opening, lease, exchange }))
        }
        refused => {
            if refused.is_some_and(|opening| !opening.is_connect()) {
                close_after(&mut response);
            }
            response.map(|incoming| ResponseBody::from_backend(incoming, lease, exchange)).into()
        }
    }
}

/// Answers in place of a backend. `unread` says that bytes may follow this request's head which were not looked over.
fn refuse(worker: &Worker, mut exchange: Box<Exchange>, error: &ProxyError, unread: bool) -> Response<ResponseBody> {
    let verdict = error.verdict();
    exchange.answered(verdict.status);
    let page = worker.shared.error_pages.as_ref().and_then(|pages| pages.page(verdict.status));
    let mut response = match page {
        Some(page) => ResponseBody::own(verdict.status, Content::Html(page), Some(exchange)),
        None => ResponseBody::own(verdict.status, Content::from(verdict.body), Some(exchange)),
    };
    if unread {
        close_after(&mut response);
    }
    response
}

/// Makes a response the connection's last.
pub fn close_after<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// The answer to `Host: __ping__`: whether the table can be trusted to be current.
fn pong(worker: &Worker) -> Response<ResponseBody> {
    match worker.shared.health.problem() {
        None => ResponseBody::own(StatusCode::OK, Content::from("OK"), None),
        Some(problem) => {
            ResponseBody::own(StatusCode::INTERNAL_SERVER_ERROR, Content::Text(problem.to_string().into()), None)
        }
    }
}

/// Refuses a body that is encoded in any way but chunked: the encoding's name ends here, while the body goes on in it.
fn check_coding(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err("the body's transfer coding is not just chunked"),
    }
}

/// The host that a request is for, as sent (RFC 9112 sections 3.2 and 3.2.2). A request that two readers could understand
/// differently is refused.
fn requested_host(head: &Parts, is_opening: bool) -> Result<HeaderValue, &'static str> {
    if head.method == Method::CONNECT && !is_opening {
        return Err("CONNECT is not supported");
    }
    let mut lines = head.headers.get_all(header::HOST).iter();
    let host = lines.next();
    if lines.next().is_some() {
        return Err("there is more than one Host header");
    }
    let host = match (host, head.uri.authority()) {
        (Some(host), _) => host.clone(),
        (None, _) if head.version == Version::HTTP_11 => return Err("there is no Host header"),
        (None, Some(authority)) => {
            HeaderValue::from_str(authority.as_str()).map_err(|_| "the target's host is malformed")?
        }
        (None, None) => HeaderValue::from_static(""),
    };
    let parsed =
        Host::parse(host.to_str().map_err(|_| "the host is malformed")?).map_err(|_| "the host is malformed")?;
    if let Some(authority) = head.uri.authority() {
        let target = Host::parse(authority.as_str()).map_err(|_| "the target's host is malformed")?;
        let default = match head.uri.scheme_str() {
            Some("http") => ":80",
            Some("https") => ":443",
            _ => return Err("the target's scheme is not http"),
        };
        let bare = |host: &Host<'_>| host.full().strip_suffix(default).unwrap_or(host.full()).to_owned();
        if bare(&target) != bare(&parsed) {
            return Err("the target's host is not the Host header's");
        }
    }
    Ok(host)
}

/// Reduces an absolute-form target to its path and query, which is what backends expect.
fn make_origin_form(head: &mut Parts) {
    head.version = Version::HTTP_11;
    head.extensions.clear();
    if head.uri.authority().is_some() {
        let path = head.uri.path_and_query().cloned();
        head.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
}

fn add_debug_headers(headers: &mut HeaderMap, frontend: &Frontend, choice: Option<&Choice>) {
    let mut add = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    add(X_DEBUG_FRONTEND_KEY, frontend.key());
    if let Some(choice) = choice {
        add(X_DEBUG_BACKEND_URL, choice.backend.url());
        add(X_DEBUG_BACKEND_ID, &choice.index.to_string());
    }
}

/// The host by which load balancers ask whether we are well.
const PING_HOST: &str = "__ping__";
