//! Between the messages of the library, which speaks HTTP/2, and ours.

use bytes::Bytes;
use h2::ext::Protocol;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, DATE},
    request::Parts,
};

use crate::{
    message::{
        Framing, ParseError, RequestHead, RequestHeadBuilder, ResponseHead, Version,
        headers::{response_lines, told_length},
    },
    proxy::{
        forward::{Lines, Reply},
        response_body::ResponseBody,
    },
    telemetry::with_date,
};

/// The head of a request as the library has read it.
///
/// # Errors
/// When a part of it cannot stand in a head of HTTP/1.1, which HTTP/2 allows of few.
pub fn request_head(parts: &Parts) -> Result<RequestHead, ParseError> {
    let (version, method, uri) = (Version::Http2, parts.method.as_str().as_bytes(), &parts.uri);
    let path = uri.path_and_query().map_or("", |path| path.as_str()).as_bytes();
    let mut builder = match (uri.scheme_str(), uri.authority()) {
        (Some(scheme), Some(authority)) => {
            RequestHeadBuilder::from_parts(version, method, scheme.as_bytes(), authority.as_str().as_bytes(), path)
        }
        (None, Some(authority)) => RequestHeadBuilder::new(version, method, authority.as_str().as_bytes()),
        _ => RequestHeadBuilder::new(version, method, path),
    };
    if let Some(protocol) = parts.extensions.get::<Protocol>() {
        builder = builder.protocol(protocol.as_str().as_bytes());
    }
    for (name, value) in &parts.headers {
        builder.push_capitalised(name.as_str(), value.as_bytes());
    }
    builder.build()
}

/// A response in the library's form, and what of its body is to be sent. `is_head` says that the request was a HEAD.
pub fn response(reply: Reply, is_head: bool) -> (Response<()>, ResponseBody) {
    let Reply { head, lines, mut body, .. } = reply;
    let length = match (body.own_length(), body.left()) {
        (Some(0), _) | (None, None) => None,
        (Some(length), _) => Some(length as u64),
        (None, Some(0)) => told_length(&head, Framing::None),
        (None, left) => left,
    };
    if is_head {
        body.leave_out();
    }
    let mut response = final_head(&head, &lines);
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    (response, body)
}

/// What tells a client that a WebSocket is open (RFC 8441 section 5).
pub fn opened(head: &ResponseHead, lines: &Lines) -> Response<()> {
    let mut response = final_head(head, lines);
    *response.status_mut() = StatusCode::OK;
    response
}

fn final_head(head: &ResponseHead, lines: &Lines) -> Response<()> {
    let mut response = head_of(head);
    let headers = response.headers_mut();
    for (name, value) in lines {
        add(headers, name.as_bytes(), value.clone());
    }
    if !headers.contains_key(DATE) {
        with_date(|date| add(headers, b"date", Bytes::copy_from_slice(date.as_bytes())));
    }
    response
}

/// A backend's head as it passes; all of it, where it is informational.
pub fn head_of(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.reserve(head.len() + OUR_LINES);
    for line in response_lines(head) {
        add(headers, line.name, head.value_bytes(line.value));
    }
    response
}

/// Adds a line; what the library has no room or no words for is left out.
fn add(headers: &mut HeaderMap, name: &[u8], value: Bytes) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_maybe_shared(value)) {
        // There are fewer lines than the map has room for.
        headers.append(name, value);
    }
}

/// Lines that we add to most responses: the date and the length.
const OUR_LINES: usize = 2;
