//! Connecting to a Redis server.

use std::{io, time::Duration};

use fred::error::{Error, ErrorKind};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{Server, StoreError, client::Address};

/// A connection, whatever it goes over.
pub(super) type BoxedStream = Box<dyn Stream>;

/// What can be read from and written to.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// Connects within a limit, and shakes hands where the server speaks TLS.
pub(super) async fn connect(server: &Server, limit: Duration) -> Result<BoxedStream, StoreError> {
    let connected = match timeout(limit, reach(server)).await {
        Ok(connected) => connected.map_err(Error::from),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the connection was not made in time")),
    };
    connected.map_err(|error| StoreError::from_fred(server, error))
}

async fn reach(server: &Server) -> io::Result<BoxedStream> {
    Ok(match (&server.address, &server.tls) {
        (Address::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
        (Address::Tcp(host, port), tls) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            match tls {
                None => Box::new(stream),
                Some(tls) => {
                    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                    Box::new(tls.connector().connect(name, stream).await?)
                }
            }
        }
    })
}
