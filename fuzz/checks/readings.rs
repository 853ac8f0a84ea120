//! What a client's stream of requests is to us, and what to hyper's server. For the target `against_hyper`.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::BytesMut;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Incoming},
    http::request::Parts,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use planb::message::{
    Chunk, ChunkError, ChunkReader, Framing, FramingError, HeadReader, Limits, Opening, ParseError, RequestHead,
    Target, TargetError, Trailers, headers::keeps_alive,
};

/// A request that we take.
#[derive(Debug)]
pub struct Our {
    pub head: RequestHead,
    pub body: Vec<u8>,
    /// If all of the body is there.
    pub trailers: Option<Trailers>,
}

/// Why we read no further request.
#[derive(Debug)]
pub enum End<'a> {
    /// More must arrive.
    Missing,
    /// The last one closes the connection.
    Close,
    /// The last one opens a WebSocket.
    Opening,
    Refused(Refusal<'a>),
}

/// What is wrong, with the bytes that it is in, or with the head.
#[derive(Debug)]
pub enum Refusal<'a> {
    Head(ParseError, &'a [u8]),
    Framing(FramingError, RequestHead),
    Target(TargetError, RequestHead),
    Body(ChunkError, BytesMut),
}

/// Our requests, up to the last that this connection can carry, and what ends it.
pub fn our_reading(stream: &[u8], limits: Limits) -> (Vec<Our>, End<'_>) {
    let (mut input, mut requests) = (BytesMut::from(stream), Vec::new());
    loop {
        let rest = &stream[stream.len() - input.len()..];
        let head = match HeadReader::default().request(&mut input, limits) {
            Ok(Some(head)) => head,
            Ok(None) => return (requests, End::Missing),
            Err(error) => return (requests, End::Refused(Refusal::Head(error, rest))),
        };
        let opening = Opening::of(&head);
        let framing = match Framing::of_request(&head) {
            Ok(framing) => framing,
            Err(error) => return (requests, End::Refused(Refusal::Framing(error, head))),
        };
        let asked = Target::of(&head, opening.as_ref()).and_then(|target| target.host(&head).map(drop));
        if let Err(error) = asked {
            return (requests, End::Refused(Refusal::Target(error, head)));
        }
        let is_kept = keeps_alive(head.version(), &head);
        let mut our = Our { head, body: Vec::new(), trailers: None };
        let read = our.read_body(framing, &mut input);
        let has_body = our.trailers.is_some();
        requests.push(our);
        match read {
            Err(error) => return (requests, End::Refused(Refusal::Body(error, input))),
            Ok(()) if !has_body => return (requests, End::Missing),
            // Whether HTTP goes on is for the backend to say.
            Ok(()) if opening.is_some() => return (requests, End::Opening),
            Ok(()) if !is_kept => return (requests, End::Close),
            Ok(()) => {}
        }
    }
}

impl Our {
    /// Reads as much of it as there is.
    fn read_body(&mut self, framing: Framing, input: &mut BytesMut) -> Result<(), ChunkError> {
        match framing {
            Framing::None | Framing::UntilClose => self.trailers = Some(Trailers::default()),
            Framing::Length(length) => {
                let there = usize::try_from(length).unwrap_or(usize::MAX).min(input.len());
                self.body.extend(input.split_to(there));
                self.trailers = (there as u64 == length).then(Trailers::default);
            }
            Framing::Chunked => {
                let mut reader = ChunkReader::default();
                while let Some(chunk) = reader.read(input)? {
                    match chunk {
                        Chunk::Data(data) => self.body.extend(data),
                        Chunk::End(trailers) => {
                            self.trailers = Some(trailers);
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// A request that hyper takes.
#[derive(Debug)]
pub struct Their {
    pub parts: Parts,
    pub body: Vec<u8>,
    /// If all of the body is there.
    pub trailers: Option<HeaderMap>,
}

/// Hyper's requests.
pub fn their_reading(stream: &[u8]) -> Vec<Their> {
    let requests = &RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let (parts, mut body) = request.into_parts();
        let index = requests.borrow().len();
        requests.borrow_mut().push(Their { parts, body: Vec::new(), trailers: None });
        async move {
            let mut trailers = HeaderMap::new();
            let is_whole = loop {
                match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                    None => break true,
                    Some(Err(_)) => break false,
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => requests.borrow_mut()[index].body.extend(data),
                        Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
                    },
                }
            };
            requests.borrow_mut()[index].trailers = is_whole.then_some(trailers);
            // After this, whatever was asked for, HTTP goes on.
            let mut answer = Response::new(String::new());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            Ok::<_, Infallible>(answer)
        }
    });
    // Its limits are beyond what there is. What has arrived is read though the client has closed its direction.
    let mut builder = http1::Builder::new();
    builder.half_close(true).auto_date_header(false).max_headers(stream.len()).max_header_size(stream.len() + 1);
    {
        let mut connection = pin!(builder.serve_connection(Stream(stream), service));
        let mut context = Context::from_waker(Waker::noop());
        // It never waits for bytes, but yields now and then. How it ends is told by the requests.
        let is_over = (0..=stream.len()).any(|_| connection.as_mut().poll(&mut context).is_ready());
        assert!(is_over, "hyper waits for something");
    }
    requests.take()
}

/// What a client has sent before it closed its direction. It reads no answers.
struct Stream<'a>(&'a [u8]);

impl Read for Stream<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Stream<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
