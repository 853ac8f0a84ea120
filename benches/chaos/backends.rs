//! Backends that answer their name, and one that refuses.

use std::{collections::HashMap, net::Ipv4Addr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
};

/// What the lists in Redis point to.
pub struct Backends {
    /// URLs of those that answer.
    pub live: Vec<String>,
    /// The URL of one that refuses connections.
    pub refusing: String,
    names: HashMap<String, String>,
    _refusing: TcpSocket,
}

impl Backends {
    /// Starts them.
    ///
    /// # Errors
    /// When there is no port for them.
    pub fn start(runtime: &Handle) -> anyhow::Result<Self> {
        let mut live = Vec::new();
        let mut names = HashMap::new();
        for number in 0..LIVE {
            let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
            let url = format!("http://{}", listener.local_addr()?);
            let name = format!("backend-{number}");
            names.insert(url.clone(), name.clone());
            live.push(url);
            runtime.spawn(serve(listener, name));
        }
        // Bound, so that nobody else gets the port, and never listening.
        let refusing = TcpSocket::new_v4()?;
        refusing.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let url = format!("http://{}", refusing.local_addr()?);
        Ok(Self { live, refusing: url, names, _refusing: refusing })
    }

    /// What the backend of this URL answers; none if it refuses.
    pub fn name(&self, url: &str) -> Option<&str> {
        self.names.get(url).map(String::as_str)
    }
}

async fn serve(listener: TcpListener, name: String) {
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, response.clone()));
    }
}

async fn answer(mut stream: TcpStream, response: String) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    while stream.read_buf(&mut request).await? > 0 {
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            stream.write_all(response.as_bytes()).await?;
        }
    }
    Ok(())
}

const LIVE: usize = 4;
