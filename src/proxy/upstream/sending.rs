//! A request on its way over a connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;

use super::connection::Connection;
use crate::{
    message::{
        Framing, chunk_header,
        chunked::{DATA_END, END},
        headers::write_request_trailers,
    },
    proxy::{
        outbox::Outbox,
        trailers::last_chunk,
        upload::{RequestBody, UploadError},
    },
};

/// What is still to be sent of a request. The body is asked for no more than the socket can be expected to take soon.
pub struct Sending {
    /// `None` once all of it waits to be written.
    body: Option<RequestBody>,
    framing: Framing,
    /// What is to come of a body of known length.
    left: u64,
}

/// Why a request cannot be sent on.
#[derive(Debug)]
pub enum SendError {
    /// The client's body broke off.
    Client(UploadError),
    /// The backend takes no more.
    Socket(io::Error),
}

impl Sending {
    /// A request whose head waits to be written.
    pub fn new(body: RequestBody, framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(length) => length,
            Framing::None | Framing::Chunked | Framing::UntilClose => 0,
        };
        let has_body = !framing.is_empty();
        Self { body: has_body.then_some(body), framing, left }
    }

    /// Sends what can be sent; ready when that is all.
    pub fn poll(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        loop {
            let is_waiting_for_client = self.fill(connection.output(), cx)?;
            if connection.output().is_empty() {
                ready!(connection.poll_flush(cx)).map_err(SendError::Socket)?;
                return if is_waiting_for_client { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            ready!(connection.poll_write(cx)).map_err(SendError::Socket)?;
        }
    }

    /// Takes of the body what there is, up to a limit; returns whether more is to come and not there yet.
    fn fill(&mut self, output: &mut Outbox, cx: &mut Context<'_>) -> Result<bool, SendError> {
        while output.len() < MOST_WAITING {
            let Some(body) = &mut self.body else { return Ok(false) };
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.put_data(data, output)?,
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.put_end(&trailers, output)?;
                        }
                    }
                },
                Poll::Ready(Some(Err(error))) => return Err(SendError::Client(error)),
                Poll::Ready(None) => self.put_end(&HeaderMap::new(), output)?,
            }
        }
        Ok(false)
    }

    fn put_data(&mut self, data: Bytes, output: &mut Outbox) -> Result<(), SendError> {
        if data.is_empty() {
            return Ok(());
        }
        if let Framing::Chunked = self.framing {
            output.text().extend_from_slice(chunk_header(data.len()).as_ref());
            output.push(data);
            output.text().extend_from_slice(DATA_END);
            return Ok(());
        }
        self.left = self.left.checked_sub(data.len() as u64).ok_or(SendError::Client(UploadError::Gone))?;
        output.push(data);
        Ok(())
    }

    fn put_end(&mut self, trailers: &HeaderMap, output: &mut Outbox) -> Result<(), SendError> {
        self.body = None;
        if let Framing::Chunked = self.framing {
            if trailers.is_empty() {
                output.text().extend_from_slice(END);
            } else {
                output.push(last_chunk(trailers, write_request_trailers));
            }
        }
        // A body that is shorter than was said must not look like a whole one.
        if self.left == 0 { Ok(()) } else { Err(SendError::Client(UploadError::Gone)) }
    }
}

/// Bytes that may wait to be written. So much of a body is remembered, too, to be sent once more.
const MOST_WAITING: usize = 64 * 1024;
