//! Making connections to backends, and sorting what can go wrong with that. It knows nothing of HTTP.

mod tls;

use std::{io, net::SocketAddr, time::Duration};

use libc::{EACCES, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::{
    routing::{Origin, OriginHost},
    transport::Transport,
};

pub use tls::BackendTls;

/// Makes connections within the dial timeout. Cloning is cheap.
#[derive(Clone)]
pub struct Dialer {
    timeout: Option<Duration>,
    tls: BackendTls,
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
    /// This machine has run out of descriptors, ports or memory for another connection.
    #[error("no more connections can be made from here: {0}")]
    Exhausted(#[source] io::Error),
}

impl Dialer {
    /// `timeout` covers the look-up of the name, the connection and the TLS handshake together; `None` means no limit but
    /// the system's.
    pub fn new(timeout: Option<Duration>, tls: BackendTls) -> Self {
        Self { timeout, tls }
    }

    /// Connects to a backend, with TLS if its URL is `https`.
    pub async fn connect(&self, origin: &Origin) -> Result<Transport, DialError> {
        self.within(async {
            let stream = connect_to_origin(origin).await?;
            if !origin.tls {
                return Ok(stream.into());
            }
            let stream = self.tls.secure(origin, stream).await.map_err(DialError::Tls)?;
            Ok(TlsStream::from(stream).into())
        })
        .await
    }

    /// Connects to a backend and leaves the bytes to the caller, whatever its URL's scheme.
    pub async fn reach(&self, origin: &Origin) -> Result<TcpStream, DialError> {
        self.within(connect_to_origin(origin)).await
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
}

async fn connect_to_origin(origin: &Origin) -> Result<TcpStream, DialError> {
    let stream = match &origin.host {
        OriginHost::Ip(address) => connect_to(SocketAddr::new(*address, origin.port)).await,
        OriginHost::Name(_) => connect_to_any(origin).await?,
    };
    stream.map_err(DialError::from_connect)
}

/// Looks a name up and tries all of its addresses.
async fn connect_to_any(origin: &Origin) -> Result<io::Result<TcpStream>, DialError> {
    let name = origin.host.name().unwrap_or_default();
    let addresses = tokio::net::lookup_host((name, origin.port)).await.map_err(DialError::Resolve)?;
    let mut last = None;
    for address in addresses {
        match connect_to(address).await {
            Ok(stream) => return Ok(Ok(stream)),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Ok(Err(error)),
        None => Err(DialError::Resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_here_is_not_held_against_the_backend() {
        for code in [EMFILE, ENFILE, EADDRNOTAVAIL] {
            assert!(!DialError::from_connect(io::Error::from_raw_os_error(code)).is_the_backends());
        }
        assert!(DialError::from_connect(io::ErrorKind::ConnectionRefused.into()).is_the_backends());
    }
}
