//! HTTP/1.1 by hand, on a connection that is kept.

use std::io::{self, ErrorKind};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
    head: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, wanted: &str) -> Option<&str> {
        header(&self.head, wanted)
    }

    /// Whether it is the connection's last.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Asks for a path.
pub async fn get(stream: &mut TcpStream, host: &str, path: &str) -> io::Result<Answer> {
    ask(stream, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await
}

/// Sends a whole request. All responses that are expected have a Content-Length or no body.
pub async fn ask(stream: &mut TcpStream, request: &[u8]) -> io::Result<Answer> {
    stream.write_all(request).await?;
    let mut response = Vec::new();
    loop {
        if stream.read_buf(&mut response).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&response);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = header(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        if body.len() < length {
            continue;
        }
        let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        return Ok(Answer { status, body: body.to_owned(), head: head.to_owned() });
    }
}

fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
}
