//! A backend whose every byte the test decides.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Deref,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::aws_lc_rs, pki_types::PrivatePkcs8KeyDer};
use socket2::{Domain, Socket, Type};
use tokio_tungstenite::tungstenite::{WebSocket, handshake::derive_accept_key, protocol::Role};

/// A listening backend; one thread a connection. Its threads end with the test's process.
pub struct Backend {
    scheme: &'static str,
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// One request that a backend has received the head of, and the connection to answer it on.
pub struct Exchange<'a> {
    /// The request line and the headers, as received, without the final empty line.
    pub head: String,
    pub stream: &'a mut BufReader<Wire>,
}

/// A connection's bytes, plain or TLS. What is not about bytes is the socket's.
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Backend {
    /// A backend that handles each request with `handler`; the connection is closed when that returns `false`.
    pub fn start(handler: impl Fn(&mut Exchange<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self::listen("http", local(), Wire::Plain, handler)
    }

    /// The same, listening already.
    pub fn start_on(
        listener: TcpListener,
        handler: impl Fn(&mut Exchange<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::listen("http", listener, Wire::Plain, handler)
    }

    /// A backend at an address of the test's choice, or nothing if that is taken. It answers every request with its name,
    /// and each connection is for one request.
    pub fn named_at(name: &str, address: SocketAddr) -> Option<Self> {
        let name = name.to_owned();
        let listener = TcpListener::bind(address).ok()?;
        Some(Self::listen("http", listener, Wire::Plain, move |exchange| {
            exchange.read_body();
            exchange.answer("200 OK", "Connection: close\r\n", name.as_bytes());
            false
        }))
    }

    /// The same over TLS, with a certificate of its own making for `localhost` and `127.0.0.1`.
    pub fn start_tls(handler: impl Fn(&mut Exchange<'_>) -> bool + Send + Sync + 'static) -> Self {
        let config = self_signed();
        let wrap = move |stream| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            Wire::Tls(Box::new(StreamOwned::new(connection, stream)))
        };
        Self::listen("https", local(), wrap, handler)
    }

    fn listen(
        scheme: &'static str,
        listener: TcpListener,
        wrap: impl Fn(TcpStream) -> Wire + Send + 'static,
        handler: impl Fn(&mut Exchange<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::accept(scheme, listener, usize::MAX, wrap, handler)
    }

    fn accept(
        scheme: &'static str,
        listener: TcpListener,
        most: usize,
        wrap: impl Fn(TcpStream) -> Wire + Send + 'static,
        handler: impl Fn(&mut Exchange<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let handler = Arc::new(handler);
        let (heads, count) = (Arc::clone(&requests), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok).take(most) {
                count.fetch_add(1, Ordering::SeqCst);
                let (heads, handler) = (Arc::clone(&heads), Arc::clone(&handler));
                stream.set_nodelay(true).unwrap();
                let stream = wrap(stream);
                thread::spawn(move || serve(stream, &heads, &*handler));
            }
        });
        Self { scheme, address, requests, connections }
    }

    /// A backend that answers every request with its name.
    pub fn named(name: &str) -> Self {
        let name = name.to_owned();
        Self::start(move |exchange| {
            exchange.read_body();
            exchange.answer("200 OK", "", name.as_bytes());
            true
        })
    }

    /// A backend that answers one request with its name. Then its port is closed, and for as long as the guard lives it is
    /// nobody else's.
    pub fn dying(name: &str) -> (Socket, Self) {
        let bound = |address: SocketAddr| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket
        };
        let guard = bound(([127, 0, 0, 1], 0).into());
        let socket = bound(guard.local_addr().unwrap().as_socket().unwrap());
        socket.listen(1).unwrap();
        let name = name.to_owned();
        let backend = Self::accept("http", socket.into(), 1, Wire::Plain, move |exchange| {
            exchange.answer("200 OK", "Connection: close\r\n", name.as_bytes());
            false
        });
        (guard, backend)
    }

    /// A backend that answers every request with the request's head, followed by its body.
    pub fn echo() -> Self {
        Self::start(|exchange| {
            let body = exchange.read_body();
            let text = [exchange.head.as_bytes(), b"\r\n\r\n", &body].concat();
            exchange.answer("200 OK", "", &text);
            true
        })
    }

    /// A backend that becomes a WebSocket and sends back every message.
    pub fn websocket_echo() -> Self {
        Self::start(Self::echo_messages)
    }

    /// Becomes a WebSocket and sends back every message until the other side closes. Other requests are answered 400.
    pub fn echo_messages(exchange: &mut Exchange<'_>) -> bool {
        if exchange.header("upgrade").is_none() {
            exchange.answer("400 Bad Request", "", b"");
            return true;
        }
        exchange.switch();
        let mut socket = WebSocket::from_raw_socket(exchange, Role::Server, None);
        // The library itself answers pings and the closing handshake.
        while let Ok(message) = socket.read() {
            if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
                break;
            }
        }
        false
    }

    /// A backend that answers requests for `/held` once the gate is open, and all others at once.
    pub fn holding() -> (Self, Gate) {
        Self::holding_after("")
    }

    /// The same, but it is the body that waits; the head is sent at once.
    pub fn holding_bodies() -> (Self, Gate) {
        Self::holding_after("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    }

    fn holding_after(early: &'static str) -> (Self, Gate) {
        let gate = Gate::default();
        let held = gate.clone();
        let backend = Self::start(move |exchange| {
            let whole = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
            if exchange.head.starts_with("GET /held ") {
                exchange.send(early);
                held.wait();
                exchange.send(&whole[early.len()..])
            } else {
                exchange.send(whole)
            }
        });
        (backend, gate)
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for a frontend's list.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The heads of all requests received so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// What holds a backend's answers back until the test says otherwise. Cloning shares it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets everything through, from now on.
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub fn wait(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

impl Exchange<'_> {
    /// A header's first value, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Reads the request's body to its end.
    pub fn read_body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        if let Some(length) = self.header("content-length").and_then(|length| length.parse::<u64>().ok()) {
            self.stream.take(length).read_to_end(&mut body).unwrap();
        } else if self.header("transfer-encoding").is_some() {
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line).unwrap();
                let size = u64::from_str_radix(line.trim_end(), 16).unwrap_or(0);
                let mut chunk = Vec::new();
                self.stream.take(size).read_to_end(&mut chunk).unwrap();
                body.extend(chunk);
                line.clear();
                while size == 0 && self.stream.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                if size == 0 {
                    return body;
                }
                self.stream.read_line(&mut line).unwrap();
            }
        }
        body
    }

    /// Sends a whole response; `headers` are complete lines. The proxy may have gone.
    pub fn answer(&mut self, status: &str, headers: &str, body: &[u8]) {
        self.send(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len()));
        if !self.head.starts_with("HEAD ") {
            self.send(body);
        }
    }

    /// Accepts the request to become a WebSocket.
    pub fn switch(&mut self) {
        let accept = derive_accept_key(self.header("sec-websocket-key").unwrap_or_default().as_bytes());
        self.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        ));
    }

    /// Sends bytes; returns whether they could be.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.get_mut().write_all(bytes.as_ref()).is_ok()
    }
}

impl Read for Exchange<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes)
    }
}

impl Write for Exchange<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().flush()
    }
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes),
            Self::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl Deref for Wire {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref(),
        }
    }
}

fn local() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn self_signed() -> Arc<ServerConfig> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let pair = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.into()], key.into())
        .unwrap();
    Arc::new(config)
}

fn serve(stream: Wire, heads: &Mutex<Vec<String>>, handler: &dyn Fn(&mut Exchange<'_>) -> bool) {
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream) {
        heads.lock().unwrap().push(head.clone());
        if !handler(&mut Exchange { head, stream: &mut stream }) {
            return;
        }
    }
}

fn read_head(stream: &mut BufReader<Wire>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head).ok()? == 0 {
            return None;
        }
    }
    head.truncate(head.len() - 4);
    Some(String::from_utf8_lossy(&head).into_owned())
}
