//! A backend, as a process of its own that can be killed.
//!
//! It says on standard output what it receives, the moment that it does: one line, written at once, of the request's id and
//! whether it is its connection's first. What is in the pipe outlives the process.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener as StdListener},
    process,
    rc::Rc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    task::LocalSet,
    time,
};
use tokio_util::task::TaskTracker;

use super::dice::Dice;

/// What all of its connections share.
struct Backend {
    name: String,
    dice: RefCell<Dice>,
    is_ending: Cell<bool>,
    connections: TaskTracker,
}

/// Serves on this loopback port until TERM comes, or whoever started it is gone.
///
/// # Errors
/// When the port is taken.
pub fn serve(name: String, port: u16) -> anyhow::Result<()> {
    thread::spawn(end_with_parent);
    let dice = RefCell::new(Dice::new(u64::from(port), u64::from(process::id())));
    let backend = Rc::new(Backend { name, dice, is_ending: Cell::new(false), connections: TaskTracker::new() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, backend.run(port))
}

/// What a body's receiver has made of it: its length and a hash.
pub fn digest(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("{} {:016x}", body.len(), hasher.finish())
}

impl Backend {
    async fn run(self: Rc<Self>, port: u16) -> anyhow::Result<()> {
        let mut terminated = signal(SignalKind::terminate())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        say(READY)?;
        loop {
            tokio::select! {
                accepted = listener.accept() => self.open(accepted?.0),
                _ = terminated.recv() => break,
            }
        }
        self.is_ending.set(true);
        self.close(listener.into_std()?)?;
        self.connections.close();
        // Those that are idle end by themselves: by then, nobody reuses a connection any more.
        let _ = time::timeout(LINGER, self.connections.wait()).await;
        Ok(())
    }

    /// Stops listening. A connection that was made but not accepted would be reset.
    fn close(self: &Rc<Self>, listener: StdListener) -> io::Result<()> {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            self.open(TcpStream::from_std(stream)?);
        }
        drop(listener);
        Ok(())
    }

    fn open(self: &Rc<Self>, stream: TcpStream) {
        let backend = Rc::clone(self);
        self.connections.spawn_local(async move {
            // It sends small pieces; without this they would wait for each other.
            let _ = stream.set_nodelay(true);
            let is_fresh = Cell::new(true);
            let handler = service_fn(|request| backend.answer(request, is_fresh.replace(false)));
            // An error is the client's doing, and it will know.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), handler).await;
        });
    }

    async fn answer(&self, request: Request<Incoming>, is_fresh: bool) -> Result<Response<Full<Bytes>>, Infallible> {
        let id = request.headers().get(ID_HEADER).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        // Whoever would read it may be gone, and then this process will be too.
        let _ = say(&format!("{id} {}", if is_fresh { FRESH } else { KEPT }));
        let mut response = Response::new(Full::default());
        match request.into_body().collect().await {
            Ok(body) => {
                let service_time = self.dice.borrow_mut().millis(0, SLOWEST);
                time::sleep(service_time).await;
                *response.body_mut() = format!("{} {id} {}", self.name, digest(&body.to_bytes())).into();
            }
            Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
        }
        if self.is_ending.get() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Writes a line in one piece.
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

/// Standard input is a pipe to which nobody writes, and which the system closes when its other end is gone.
fn end_with_parent() {
    let _ = io::stdin().read(&mut [0]);
    process::exit(1);
}

/// The header that carries a request's id.
pub const ID_HEADER: &str = "X-Request-Id";

/// The first line.
pub const READY: &str = "ready";

/// Follows the id of a request that was its connection's first.
pub const FRESH: &str = "fresh";
const KEPT: &str = "kept";

/// The longest that an answer takes, in milliseconds.
const SLOWEST: u64 = 20;

/// How long idle connections are kept open at the end: longer than the proxy keeps any.
const LINGER: Duration = Duration::from_secs(5);
