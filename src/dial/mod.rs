//! Making connections to backends, and sorting what can go wrong with that. It knows nothing of HTTP.

mod distrust;
mod names;
mod order;
mod p521;
mod race;
mod resolver;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use libc::{EACCES, EADDRNOTAVAIL, EMFILE, ENETUNREACH, ENFILE, ENOBUFS, ENOMEM, EPERM};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsStream;

use crate::{
    routing::{Origin, OriginHost},
    transport::Transport,
};

pub use distrust::Distrust;
pub use names::Names;
pub use tls::BackendTls;

use names::Name;
use race::race;

/// Makes connections within the dial timeout. Cloning is cheap.
#[derive(Clone)]
pub struct Dialer {
    timeout: Option<Duration>,
    tls: BackendTls,
    names: Names,
    remembers_names: bool,
}

/// Why there is no connection to a backend. No byte of a request has reached it.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The backend's name has no address.
    #[error("the backend's name does not resolve: {0}")]
    Resolve(#[source] io::Error),
    /// The backend refused the connection or cannot be reached.
    #[error("error in backend dial: {0}")]
    Connect(#[source] io::Error),
    /// No connection within the dial timeout, TLS handshake included.
    #[error("dial timeout after {0:?}")]
    Timeout(Duration),
    /// The backend's TLS handshake failed.
    #[error("error in backend TLS handshake: {0}")]
    Tls(#[source] io::Error),
    /// The backend is there, but its certificate does not convince.
    #[error("the backend's certificate is not trusted: {0}")]
    Certificate(#[source] Distrust),
    /// This machine has run out of descriptors, ports or memory for another connection, or does not allow it.
    #[error("no more connections can be made from here: {0}")]
    Exhausted(#[source] io::Error),
}

impl Dialer {
    /// `timeout` covers the look-up of the name, the connection and the TLS handshake together; `None` means no limit but
    /// the system's.
    pub fn new(timeout: Option<Duration>, tls: BackendTls, names: Names) -> Self {
        Self { timeout, tls, names, remembers_names: true }
    }

    /// The same for names that strangers choose, and that are not worth remembering.
    #[must_use]
    pub fn forgetful(&self) -> Self {
        Self { remembers_names: false, ..self.clone() }
    }

    /// Connects to a backend, with TLS if its URL is `https`.
    pub async fn connect(&self, origin: &Origin) -> Result<Transport, DialError> {
        self.within(async {
            let stream = self.connect_to_origin(origin).await?;
            if !origin.tls {
                return Ok(stream.into());
            }
            let stream = self.tls.secure(origin, stream).await?;
            Ok(TlsStream::from(stream).into())
        })
        .await
    }

    /// Connects to a backend and leaves the bytes to the caller, whatever its URL's scheme.
    pub async fn reach(&self, origin: &Origin) -> Result<TcpStream, DialError> {
        self.within(self.connect_to_origin(origin)).await
    }

    async fn connect_to_origin(&self, origin: &Origin) -> Result<TcpStream, DialError> {
        let stream = match &origin.host {
            OriginHost::Ip(address) => connect_to(SocketAddr::new(*address, origin.port)).await,
            host @ OriginHost::Name(_) => {
                let text = host.name().unwrap_or_default();
                let found =
                    if self.remembers_names { self.names.find(text).await } else { self.names.find_once(text).await };
                let (name, addresses) = found.map_err(DialError::Resolve)?;
                let mut attempt = Attempt { names: &self.names, name: &name, has_succeeded: false };
                let stream = connect_to_any(&name, &addresses, origin.port).await;
                attempt.has_succeeded = stream.is_ok();
                stream
            }
        };
        stream.map_err(DialError::from_connect)
    }

    async fn within<T>(&self, connecting: impl Future<Output = Result<T, DialError>>) -> Result<T, DialError> {
        match self.timeout {
            None => connecting.await,
            Some(timeout) => {
                tokio::time::timeout(timeout, connecting).await.map_err(|_| DialError::Timeout(timeout))?
            }
        }
    }
}

impl DialError {
    /// Sorts a failure to connect: only what speaks of the backend, not of this machine, may be held against it.
    fn from_connect(error: io::Error) -> Self {
        let ours = [EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL, EACCES, EPERM];
        match error.raw_os_error() {
            Some(code) if ours.contains(&code) => Self::Exhausted(error),
            _ => Self::Connect(error),
        }
    }

    /// Whether the backend is to blame, and not this machine.
    pub fn is_the_backends(&self) -> bool {
        !matches!(self, Self::Exhausted(_))
    }

    /// The label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "name",
            Self::Connect(_) => "connect",
            Self::Timeout(_) => "timeout",
            Self::Tls(_) => "tls",
            Self::Certificate(_) => "certificate",
            Self::Exhausted(_) => "exhausted",
        }
    }

    /// Whether a connection to any other backend would fail as well. Ports run out, and addresses of a family are missing, for
    /// one backend and not for the next.
    pub fn is_everywhere(&self) -> bool {
        matches!(self, Self::Exhausted(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM)))
    }
}

/// An attempt to connect to a name. Unless it succeeds in time, the name's addresses are doubted.
struct Attempt<'a> {
    names: &'a Names,
    name: &'a Arc<Name>,
    has_succeeded: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.has_succeeded {
            self.names.doubt(self.name);
        }
    }
}

/// Connects to whichever of a name's addresses is the first to accept.
async fn connect_to_any(name: &Name, addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let order = name.order.next(addresses, port, Instant::now());
    if let [only] = order[..] {
        return connect_to(only).await;
    }
    let attempts: Vec<_> = order.iter().map(|&address| connect_to(address)).collect();
    let finish = race(attempts, HEAD_START).await;
    let now = Instant::now();
    for lost in finish.lost() {
        name.order.hold_against(order[lost], now);
    }
    let errors = finish.failed.into_iter().map(|(_, error)| error);
    match finish.won {
        Some((winner, stream)) => {
            name.order.forgive(order[winner]);
            Ok(stream)
        }
        None => Err(errors.max_by_key(weight).unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())),
    }
}

/// How much an address's error tells of the backend, where there are several. A shortage of this machine's outweighs
/// everything, since it may have caused the others' errors; that one family has no route says the least.
fn weight(error: &io::Error) -> u8 {
    match error.raw_os_error() {
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM) => 3,
        Some(EADDRNOTAVAIL | EACCES | EPERM) => 1,
        Some(ENETUNREACH) => 0,
        _ => 2,
    }
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // Finds out about a backend that vanished while a request, or a tunnel, waits for it.
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    Ok(stream)
}

/// After how long without traffic a backend is asked whether it is still there, and how often again.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long an address has to accept before the next is tried as well (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use libc::ECONNREFUSED;

    use super::*;

    #[test]
    fn a_shortage_here_is_not_held_against_the_backend() {
        for (code, is_everywhere) in [(EMFILE, true), (ENFILE, true), (EADDRNOTAVAIL, false), (EPERM, false)] {
            let error = DialError::from_connect(io::Error::from_raw_os_error(code));
            assert_eq!((error.is_the_backends(), error.is_everywhere()), (false, is_everywhere), "{error}");
        }
        let refused = DialError::from_connect(io::Error::from_raw_os_error(ECONNREFUSED));
        assert_eq!((refused.is_the_backends(), refused.is_everywhere()), (true, false));
    }

    #[test]
    fn the_most_telling_error_is_the_one_that_is_told() {
        let most =
            |codes: &[i32]| codes.iter().copied().max_by_key(|&code| weight(&io::Error::from_raw_os_error(code)));
        assert_eq!(most(&[ECONNREFUSED, ENETUNREACH, EADDRNOTAVAIL]), Some(ECONNREFUSED));
        assert_eq!(most(&[EADDRNOTAVAIL, ENETUNREACH]), Some(EADDRNOTAVAIL));
        assert_eq!(most(&[EMFILE, ECONNREFUSED]), Some(EMFILE));
    }
}
