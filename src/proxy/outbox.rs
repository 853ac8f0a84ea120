//! What waits to be written to a connection.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::transport::Transport;

/// Bytes that wait to be written. Small pieces are copied into one text: to join a head and a small body costs less than a
/// system call that takes two pieces. Large ones are written from where they are.
#[derive(Default)]
pub struct Outbox {
    pieces: VecDeque<Bytes>,
    in_pieces: usize,
    /// What comes behind the pieces.
    text: BytesMut,
}

impl Outbox {
    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.in_pieces + self.text.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where to write what comes next.
    pub fn text(&mut self) -> &mut BytesMut {
        &mut self.text
    }

    /// Adds bytes behind the others.
    pub fn push(&mut self, data: Bytes) {
        if data.len() <= MOST_COPIED {
            self.text.extend_from_slice(&data);
            return;
        }
        if !self.text.is_empty() {
            self.in_pieces += self.text.len();
            self.pieces.push_back(self.text.split().freeze());
        }
        self.in_pieces += data.len();
        self.pieces.push_back(data);
    }

    /// Writes what the connection takes at once; returns how many bytes that is, which is none only if none waits.
    pub fn poll_write(&mut self, transport: &mut Transport, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let transport = Pin::new(transport);
        let written = if self.pieces.is_empty() {
            ready!(transport.poll_write(cx, &self.text))?
        } else {
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let waiting = self.pieces.iter().map(|piece| &piece[..]).chain([&self.text[..]]);
            let count = slices.iter_mut().zip(waiting).map(|(slice, bytes)| *slice = IoSlice::new(bytes)).count();
            ready!(transport.poll_write_vectored(cx, &slices[..count]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.remove(written);
        Poll::Ready(Ok(written))
    }

    /// Gives the memory back; what waits is dropped.
    pub fn rest(&mut self) {
        *self = Self::default();
    }

    fn remove(&mut self, mut count: usize) {
        while let Some(first) = self.pieces.front_mut() {
            let taken = first.len().min(count);
            first.advance(taken);
            self.in_pieces -= taken;
            count -= taken;
            if !first.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        if count == self.text.len() {
            self.text.clear();
        } else {
            self.text.advance(count);
        }
    }
}

/// Bytes up to which a piece is copied.
const MOST_COPIED: usize = 4 * 1024;

/// Pieces that are written at once.
const MOST_SLICES: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        runtime,
    };

    use super::*;

    /// What arrives of pieces of these lengths, each of other bytes.
    async fn arrived(lengths: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut near, mut far) = (Transport::from(near.unwrap()), far.unwrap().0);
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            read
        });
        let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
        for (number, &length) in lengths.iter().enumerate() {
            let piece = vec![u8::try_from(number).unwrap(); length];
            expected.extend_from_slice(&piece);
            outbox.push(piece.into());
            assert_eq!(outbox.len(), lengths[..=number].iter().sum::<usize>());
        }
        let mut written = 0;
        while !outbox.is_empty() {
            written += std::future::poll_fn(|cx| outbox.poll_write(&mut near, cx)).await.unwrap();
            assert_eq!(written + outbox.len(), expected.len());
        }
        drop(near);
        (reading.await.unwrap(), expected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn everything_is_written_in_its_order(lengths in prop::collection::vec(prop_oneof![0..10usize, 4_090..4_100usize, 0..400_000usize], 0..40)) {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (arrived, expected) = runtime.block_on(arrived(&lengths));
            prop_assert!(arrived == expected);
        }
    }
}
