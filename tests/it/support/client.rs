//! A client that sends exactly the bytes it is given.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use super::PATIENCE;

/// One connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// A response as it arrived.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Response {
    let mut client = Client::connect(address);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    client.response()
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        TcpStream::connect(address).unwrap().into()
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Sends bytes; the other side may have closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// A GET on this connection, which stays open.
    pub fn get(&mut self, host: &str, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        self.response()
    }

    /// Reads a response whole.
    pub fn response(&mut self) -> Response {
        self.try_response().unwrap()
    }

    /// Reads a response whole; an error if the connection ends or breaks before its end.
    pub fn try_response(&mut self) -> io::Result<Response> {
        let mut response = self.head()?;
        self.finish(&mut response)?;
        Ok(response)
    }

    /// Reads a response's head.
    pub fn head(&mut self) -> io::Result<Response> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(Response { status, headers, body: Vec::new() })
    }

    /// Reads the rest of a response.
    pub fn finish(&mut self, response: &mut Response) -> io::Result<()> {
        if response.status == 101 || response.status == 204 || response.status == 304 {
            return Ok(());
        }
        if let Some(length) = response.header("content-length") {
            let length: u64 = length.parse().map_err(io::Error::other)?;
            let read = (&mut self.stream).take(length).read_to_end(&mut response.body)?;
            if read as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        } else if response.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk()? {
                response.body.extend(chunk);
            }
        } else {
            self.stream.read_to_end(&mut response.body)?;
        }
        Ok(())
    }

    /// Reads one chunk; `None` for the last, whose trailers are skipped.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size = u64::from_str_radix(&line, 16).map_err(|_| io::Error::other(format!("not a chunk: {line:?}")))?;
        if size == 0 {
            while !self.line()?.is_empty() {}
            return Ok(None);
        }
        let mut chunk = Vec::new();
        (&mut self.stream).take(size).read_to_end(&mut chunk)?;
        self.line()?;
        Ok(Some(chunk))
    }

    /// Reads exactly this many bytes.
    pub fn read(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads what is left until the other side closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// The same, where the other side may also reset the connection, having closed it before all was read.
    pub fn rest_or_reset(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(rest),
        }
    }

    /// Waits until the other side closes or resets the connection; whether it has sent nothing more before.
    pub fn ends_silently(&mut self) -> bool {
        self.rest_or_reset().is_ok_and(|rest| rest.is_empty())
    }

    /// Sends no more, but still receives.
    pub fn close_write(&mut self) {
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// What arrives, as a stream.
    pub fn stream(&mut self) -> &mut impl Read {
        &mut self.stream
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// The socket itself, for a client library. Nothing may have been read ahead.
    pub fn into_socket(self) -> TcpStream {
        assert!(self.stream.buffer().is_empty());
        self.stream.into_inner()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }
}

impl Response {
    /// A header's first value, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
