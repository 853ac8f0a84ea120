//! A client that speaks HTTP/2 over TLS, and decides over each of its streams.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, StatusCode};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    runtime::{Handle, Runtime},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Authority, PATIENCE, Response, wait_until};

/// One connection. It lives on a thread of its own, so that what arrives is taken whatever the test does.
pub struct Http2 {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    connection: Option<JoinHandle<Result<(), h2::Error>>>,
}

/// One request and its response, as they go on. Dropping it resets it, unless both are complete.
pub struct Stream {
    runtime: Handle,
    answer: Option<ResponseFuture>,
    upload: SendStream<Bytes>,
    download: Option<RecvStream>,
    /// Arrived, but not yet read.
    ahead: Bytes,
}

impl Http2 {
    /// A connection to the server of this name.
    pub fn connect(authority: &Authority, address: SocketAddr, name: &str) -> Self {
        Self::with(&Builder::new(), authority, address, name)
    }

    /// The same, with settings of one's own.
    pub fn with(settings: &Builder, authority: &Authority, address: SocketAddr, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let connector = TlsConnector::from(authority.client(&["h2"]));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (requests, connection) = runtime.block_on(async {
            let socket = TcpStream::connect(address).await.unwrap();
            socket.set_nodelay(true).unwrap();
            settings.handshake(connector.connect(name, socket).await.unwrap()).await.unwrap()
        });
        let connection = runtime.spawn(connection);
        Self { runtime, requests, connection: Some(connection) }
    }

    /// Begins a request, which may have a body.
    pub fn open(&mut self, request: Request<()>) -> Stream {
        self.try_begin(request, false).unwrap()
    }

    /// Begins a request that has no body.
    pub fn begin(&mut self, request: Request<()>) -> Stream {
        self.try_begin(request, true).unwrap()
    }

    /// Begins a request if the connection still allows it.
    pub fn try_begin(&mut self, request: Request<()>, is_whole: bool) -> Result<Stream, h2::Error> {
        let mut requests = wait(self.runtime.handle(), self.requests.clone().ready())?;
        let (answer, upload) = requests.send_request(request, is_whole)?;
        let runtime = self.runtime.handle().clone();
        Ok(Stream { runtime, answer: Some(answer), upload, download: None, ahead: Bytes::new() })
    }

    /// A request without a body, and its whole response.
    pub fn ask(&mut self, request: Request<()>) -> Response {
        self.begin(request).response()
    }

    /// A request with this body, and its whole response.
    pub fn exchange(&mut self, request: Request<()>, body: &[u8]) -> Response {
        let mut stream = self.open(request);
        stream.send(body);
        stream.finish();
        stream.response()
    }

    /// Waits until the server has said that WebSockets can be opened.
    pub fn wait_for_connect_protocol(&self) {
        wait_until("extended CONNECT is announced", || self.requests.is_extended_connect_protocol_enabled());
    }

    /// How many streams the server allows at once, as far as it is known yet.
    pub fn most_streams(&self) -> usize {
        self.requests.current_max_send_streams()
    }

    /// Whether the connection stands.
    pub fn is_open(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.is_finished())
    }

    /// Waits for the connection's end, and how it ended.
    pub fn end(&mut self) -> Result<(), h2::Error> {
        let connection = self.connection.take().unwrap();
        wait(self.runtime.handle(), connection).unwrap()
    }
}

impl Stream {
    /// The head of the next informational response; `None` if the final one has come.
    pub fn informational(&mut self) -> Option<Response> {
        let answer = self.answer.as_mut().unwrap();
        let head = wait(&self.runtime, std::future::poll_fn(|cx| answer.poll_informational(cx)))?.unwrap();
        Some(response_of(head.status(), head.headers()))
    }

    /// The response's head.
    pub fn head(&mut self) -> Response {
        self.try_head().unwrap()
    }

    /// The response's head, or why there is none.
    pub fn try_head(&mut self) -> Result<Response, h2::Error> {
        let (head, download) = wait(&self.runtime, self.answer.take().unwrap())?.into_parts();
        self.download = Some(download);
        Ok(response_of(head.status, &head.headers))
    }

    /// The whole response.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        response.body = self.rest().unwrap();
        response
    }

    /// What is left of the response's body.
    pub fn rest(&mut self) -> Result<Vec<u8>, h2::Error> {
        let mut rest = std::mem::take(&mut self.ahead).to_vec();
        while let Some(part) = self.part()? {
            rest.extend(part);
        }
        Ok(rest)
    }

    /// The next part of the response's body; `None` at its end.
    pub fn part(&mut self) -> Result<Option<Bytes>, h2::Error> {
        let download = self.download.as_mut().expect("the head was read");
        let part = wait(&self.runtime, download.data()).transpose()?;
        if let Some(part) = &part {
            download.flow_control().release_capacity(part.len())?;
        }
        Ok(part)
    }

    /// The response's trailers, once its body has been read.
    pub fn trailers(&mut self) -> HeaderMap {
        wait(&self.runtime, self.download.as_mut().unwrap().trailers()).unwrap().unwrap_or_default()
    }

    /// Sends a part of the request's body, as the server has room for it.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes.as_ref()).unwrap();
    }

    /// The same; the server may have reset the stream.
    pub fn try_send(&mut self, bytes: &[u8]) -> Result<(), h2::Error> {
        let mut left = bytes;
        while !left.is_empty() {
            let (now, later) = left.split_at(left.len().min(PIECE));
            left = later;
            self.upload.reserve_capacity(now.len());
            let upload = &mut self.upload;
            wait(&self.runtime, async {
                while upload.capacity() < now.len() {
                    match std::future::poll_fn(|cx| upload.poll_capacity(cx)).await {
                        Some(granted) => drop(granted?),
                        None => return Err(Reason::STREAM_CLOSED.into()),
                    }
                }
                upload.send_data(Bytes::copy_from_slice(now), false)
            })?;
        }
        Ok(())
    }

    /// Sends a part of the request's body, and waits for room only this long. Returns whether there was any.
    pub fn send_within(&mut self, limit: Duration, bytes: &[u8]) -> bool {
        let upload = &mut self.upload;
        upload.reserve_capacity(bytes.len());
        self.runtime.block_on(async {
            while upload.capacity() < bytes.len() {
                if timeout(limit, std::future::poll_fn(|cx| upload.poll_capacity(cx))).await.is_err() {
                    upload.reserve_capacity(0);
                    return false;
                }
            }
            upload.send_data(Bytes::copy_from_slice(bytes), false).is_ok()
        })
    }

    /// Ends the request's body.
    pub fn finish(&mut self) {
        self.try_finish().unwrap();
    }

    /// The same; the server may have reset the stream.
    pub fn try_finish(&mut self) -> Result<(), h2::Error> {
        self.upload.send_data(Bytes::new(), true)
    }

    /// Ends the request's body with trailers.
    pub fn finish_with(&mut self, trailers: HeaderMap) {
        self.upload.send_trailers(trailers).unwrap();
    }

    /// Gives the stream up.
    pub fn reset(&mut self, reason: Reason) {
        self.upload.send_reset(reason);
    }

    /// Waits until the server resets the stream, and why it did.
    pub fn reset_by_server(&mut self) -> Reason {
        let upload = &mut self.upload;
        wait(&self.runtime, std::future::poll_fn(|cx| upload.poll_reset(cx))).unwrap()
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.ahead.is_empty() {
            match self.part().map_err(io::Error::other)? {
                Some(part) => self.ahead = part,
                None => return Ok(0),
            }
        }
        let count = bytes.len().min(self.ahead.len());
        bytes[..count].copy_from_slice(&self.ahead.split_to(count));
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_send(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn response_of(status: StatusCode, headers: &HeaderMap) -> Response {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    Response { status: status.as_u16(), headers, body: Vec::new() }
}

/// Waits for what must happen.
fn wait<F: Future>(runtime: &Handle, future: F) -> F::Output {
    runtime.block_on(async { timeout(PATIENCE, future).await.expect("waited in vain for HTTP/2") })
}

/// What is sent at once: less than the smallest initial window.
const PIECE: usize = 16_384;
