//! A backend that says its name.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    thread,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Serves on a free loopback port, from a thread of its own that lasts as long as the process.
pub fn serve(name: &'static str) -> io::Result<SocketAddr> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(accept(listener, name)))?;
    Ok(address)
}

async fn accept(listener: TcpListener, name: &'static str) {
    let handler = move |request: Request<Incoming>| async move {
        let text = format!("I am the {name} backend; you asked for {}\n", request.uri());
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    };
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(handler)));
    }
}
