//! Listening sockets, and the loop that takes connections from one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use super::connection::{self, Protocol};
use crate::{proxy::worker::Worker, telemetry::Subject};

/// One worker's listening socket.
pub struct Door {
    socket: StdListener,
    port: u16,
    protocol: Protocol,
}

/// One address, bound by as many sockets as there are workers. The kernel spreads connections over them.
///
/// Bound, but not yet listening: clients are refused until [`Listeners::listen`]. Of several processes of ours that share a
/// port up to there, the first that listens has it.
pub struct Listeners {
    sockets: Vec<Socket>,
    address: SocketAddr,
    protocol: Protocol,
}

impl Listeners {
    /// Binds `count` sockets to `address`. Port 0 means any free port. An unspecified IPv6 address serves IPv4 as well, and
    /// falls back to it where there is no IPv6.
    ///
    /// # Errors
    /// When the address is in use, or is not this machine's.
    pub fn bind(address: SocketAddr, protocol: Protocol, count: usize) -> io::Result<Self> {
        let first = match bind(address) {
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))?
            }
            bound => bound?,
        };
        let address = first.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(bind(address)?);
        }
        Ok(Self { sockets, address, protocol })
    }

    /// The address, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets clients connect.
    ///
    /// # Errors
    /// When another process began to listen on the address meanwhile.
    pub fn listen(self) -> io::Result<Vec<Door>> {
        self.sockets
            .into_iter()
            .enumerate()
            .map(|(number, socket)| {
                // The first must listen alone, so that another process of ours on this port is an error and not a partner.
                socket.set_reuse_port(number > 0)?;
                socket.listen(BACKLOG)?;
                socket.set_reuse_port(true)?;
                socket.set_nonblocking(true)?;
                Ok(Door { socket: socket.into(), port: self.address.port(), protocol: self.protocol.clone() })
            })
            .collect()
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A socket whose options its accepted connections inherit.
fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(socket2::Protocol::TCP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    Ok(socket)
}

/// Takes connections until the drain begins, then those that the kernel has already accepted, and returns.
///
/// # Errors
/// When the socket cannot be used.
pub async fn accept(worker: Rc<Worker>, door: Door) -> io::Result<()> {
    let Door { socket, port, protocol } = door;
    let listener = TcpListener::from_std(socket)?;
    let mut pause = SHORTEST_PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            () = worker.drain.begun() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = SHORTEST_PAUSE;
                admit(&worker, &protocol, stream, (peer.ip().to_canonical(), port)).await;
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                worker.shared.metrics.clients.accept_errors.inc();
                if worker.shared.errors.spend(Subject::Accepting) {
                    warn!(%error, ?pause, "no connection can be accepted");
                }
                worker.pool.clear();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    while let Ok(Ok((stream, peer))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        admit(&worker, &protocol, stream, (peer.ip().to_canonical(), port)).await;
    }
    Ok(())
}

/// Waits for a permit, which holds up this worker's accepting: whoever comes later waits in the kernel's queue. Where there is none,
/// a connection goes that waits for a request.
async fn admit(worker: &Rc<Worker>, protocol: &Protocol, stream: TcpStream, ends: (IpAddr, u16)) {
    let permits = &worker.shared.connections;
    let permit = if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        worker.shared.room.suffices();
        permit
    } else {
        if worker.shared.errors.spend(Subject::Connections) {
            warn!(limit = worker.shared.config.max_connections, "the connection limit is reached");
        }
        worker.crowd.press();
        let acquired = tokio::select! {
            acquired = Arc::clone(permits).acquire_owned() => acquired,
            () = worker.drain.expired() => return,
        };
        acquired.expect("the semaphore is never closed")
    };
    let serving = connection::serve(Rc::clone(worker), protocol.clone(), stream, ends, permit);
    worker.tasks.spawn_local(serving);
}

/// The client gave up before it was accepted; that is no trouble of ours.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// Connections that may wait to be accepted; the kernel cuts this to net.core.somaxconn.
const BACKLOG: i32 = 4_096;

/// After how long without traffic a client is asked whether it is still there, and how often again.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Pauses after a failure to accept, which is nearly always a lack of descriptors.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
