//! A backend whose every byte the test decides.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// A listening backend; one thread a connection. Its threads end with the test's process.
pub struct Backend {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// One request that a backend has received the head of, and the connection to answer it on.
pub struct Exchange<'a> {
    /// The request line and the headers, as received, without the final empty line.
    pub head: String,
    pub stream: &'a mut BufReader<TcpStream>,
}

impl Backend {
    /// A backend that handles each request with `handler`; the connection is closed when that returns `false`.
    pub fn start(handler: impl Fn(&mut Exchange<'_>) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let handler = Arc::new(handler);
        let (heads, count) = (Arc::clone(&requests), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let (heads, handler) = (Arc::clone(&heads), Arc::clone(&handler));
                thread::spawn(move || serve(stream, &heads, &*handler));
            }
        });
        Self { address, requests, connections }
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

    /// A backend that answers every request with the request's head, followed by its body.
    pub fn echo() -> Self {
        Self::start(|exchange| {
            let body = exchange.read_body();
            let text = [exchange.head.as_bytes(), b"\r\n\r\n", &body].concat();
            exchange.answer("200 OK", "", &text);
            true
        })
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for a frontend's list.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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
        self.send(body);
    }

    /// Sends bytes; returns whether they could be.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.get_mut().write_all(bytes.as_ref()).is_ok()
    }
}

fn serve(stream: TcpStream, heads: &Mutex<Vec<String>>, handler: &dyn Fn(&mut Exchange<'_>) -> bool) {
    stream.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream) {
        heads.lock().unwrap().push(head.clone());
        if !handler(&mut Exchange { head, stream: &mut stream }) {
            return;
        }
    }
}

fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head).ok()? == 0 {
            return None;
        }
    }
    head.truncate(head.len() - 4);
    Some(String::from_utf8_lossy(&head).into_owned())
}
