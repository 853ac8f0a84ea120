//! How a client is turned away whose TLS leads nowhere.

use std::io;

use rustls::AlertDescription;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::lifetime::LINGER;

/// Answers what is no TLS: a request in plain HTTP with words, anything else with silence.
pub async fn explain(mut stream: TcpStream, first: u8) {
    if first.is_ascii_uppercase() {
        // Whoever cannot take this in has nothing to lose.
        let _ = stream.write_all(PLAIN_HTTP_ANSWER).await;
    }
    linger(&mut stream).await;
}

/// Ends a connection whose ClientHello cannot be accepted (RFC 8446 section 6.2).
pub async fn refuse(stream: &mut TcpStream, alert: AlertDescription) {
    const ALERT_RECORD: u8 = 21;
    const FATAL: u8 = 2;
    // A client that is gone need not be told.
    let _ = stream.write_all(&[ALERT_RECORD, 3, 3, 0, 2, FATAL, u8::from(alert)]).await;
    linger(stream).await;
}

/// Closes our direction and reads on for a while: closing a socket with unread bytes resets it, and the reset can overtake
/// what was said last.
async fn linger(stream: &mut TcpStream) {
    let reading = async {
        stream.shutdown().await?;
        let mut dropped = [0; 4_096];
        while stream.read(&mut dropped).await? > 0 {}
        io::Result::Ok(())
    };
    // However it ends, the connection is closed.
    let _ = timeout(LINGER, reading).await;
}

const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\n\r\nThis port speaks TLS: use https.\n";
