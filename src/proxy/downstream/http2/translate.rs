//! Between the messages of the library, which speaks HTTP/2, and ours.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_LENGTH, request::Parts};
use hyper::ext::Protocol;

use crate::{
    message::{
        Framing, ParseError, RequestHead, RequestHeadBuilder, ResponseHead, Version,
        headers::{response_lines, told_length},
    },
    proxy::{
        forward::{Lines, Reply},
        response_body::ResponseBody,
    },
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

/// A response in the library's form. `is_head` says that the request was a HEAD.
pub fn response(reply: Reply, is_head: bool) -> Response<ResponseBody> {
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
    let mut response = head_of(&head, lines, body);
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// What tells a client that a WebSocket is open (RFC 8441 section 5).
pub fn opened(head: &ResponseHead, lines: Lines) -> Response<ResponseBody> {
    let mut response = head_of(head, lines, ResponseBody::none());
    *response.status_mut() = StatusCode::OK;
    response
}

fn head_of(head: &ResponseHead, lines: Lines, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(head.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    for line in response_lines(head) {
        add(headers, line.name, head.value_bytes(line.value));
    }
    for (name, value) in lines {
        add(headers, name.as_bytes(), value);
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
