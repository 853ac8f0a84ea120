//! A response on its way to a client on HTTP/1.1.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use http_body::Body;
use smallvec::SmallVec;

use super::{After, Connection};
use crate::{
    message::{
        Framing, Known, Persistence, RequestHead, ResponseRules, Version, chunk_header,
        chunked::{DATA_END, END},
        framing::has_no_body,
        headers::{keeps_alive, write_response, write_response_trailers},
    },
    proxy::{error::CLIENT_GONE, forward::Reply, response_body::ResponseBody, trailers::last_chunk},
    telemetry::with_date,
};

impl Connection<'_> {
    /// Writes a response.
    pub(super) async fn respond(&self, request: &RequestHead, reply: Reply) -> After {
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
        let is_wanted = keeps_alive(request.version(), request);
        let is_kept =
            is_wanted && is_body_in_hand && !closes && !self.worker.drain.has_begun() && framing != Framing::UntilClose;
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
            true if wire.input.is_empty() && !is_wanted => After::Finished,
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
}

/// Bytes of a response that may wait to be written.
const MOST_WAITING: usize = 64 * 1024;
