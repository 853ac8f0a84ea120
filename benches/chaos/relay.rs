//! The network between the proxy and the Redis that it reads from.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Handle,
    sync::watch,
    time,
};

/// A relay of connections to one port, whose condition can be changed at any time.
pub struct Relay {
    /// Where to connect.
    pub address: SocketAddr,
    condition: watch::Sender<Condition>,
}

/// How the network fares.
#[derive(Clone, Copy, Debug, Default)]
struct Condition {
    /// How long each piece is under way.
    latency: Duration,
    /// Nothing gets through to the server, though nothing is closed.
    requests_stall: bool,
    /// Nothing gets through to the client, though nothing is closed.
    replies_stall: bool,
    /// New connections are closed at once.
    refuses: bool,
    /// Connections with lower numbers are reset.
    reset_below: u64,
    /// Connections with lower numbers are open and dead.
    dead_below: u64,
    /// The number of the next connection.
    next: u64,
}

impl Relay {
    /// Starts a relay to this port.
    ///
    /// # Errors
    /// When there is no port for it.
    pub fn start(runtime: &Handle, server: u16) -> anyhow::Result<Self> {
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let (condition, _) = watch::channel(Condition::default());
        runtime.spawn(accept(listener, server, condition.clone()));
        Ok(Self { address, condition })
    }

    /// Makes each piece take this long.
    pub fn delay(&self, latency: Duration) {
        self.condition.send_modify(|condition| condition.latency = latency);
    }

    /// Stops forwarding, both ways or replies only, and closes nothing.
    pub fn stall(&self, both: bool) {
        self.condition.send_modify(|condition| {
            condition.replies_stall = true;
            condition.requests_stall = both;
        });
    }

    /// Resets every connection.
    pub fn reset(&self) {
        self.condition.send_modify(|condition| condition.reset_below = condition.next);
    }

    /// Resets every connection and lets none in.
    pub fn refuse(&self) {
        self.reset();
        self.condition.send_modify(|condition| condition.refuses = true);
    }

    /// Forgets every connection without a word; new ones work.
    pub fn forget(&self) {
        self.condition.send_modify(|condition| condition.dead_below = condition.next);
    }

    /// Makes the network well again. What was forgotten stays so.
    pub fn heal(&self) {
        self.condition.send_modify(|condition| {
            *condition = Condition {
                reset_below: condition.reset_below,
                dead_below: condition.dead_below,
                next: condition.next,
                ..Condition::default()
            };
        });
    }
}

impl Condition {
    fn stalls(&self, number: u64, way: Way) -> bool {
        number < self.dead_below
            || match way {
                Way::Requests => self.requests_stall,
                Way::Replies => self.replies_stall,
            }
    }
}

#[derive(Clone, Copy)]
enum Way {
    Requests,
    Replies,
}

async fn accept(listener: TcpListener, server: u16, condition: watch::Sender<Condition>) {
    while let Ok((client, _)) = listener.accept().await {
        if condition.borrow().refuses {
            continue;
        }
        let mut number = 0;
        condition.send_modify(|condition| {
            number = condition.next;
            condition.next += 1;
        });
        tokio::spawn(connect(client, server, number, condition.subscribe()));
    }
}

async fn connect(
    client: TcpStream,
    server: u16,
    number: u64,
    mut condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    // A SYN does not get through either.
    if condition.wait_for(|now| !now.stalls(number, Way::Requests)).await.is_err() {
        return Ok(());
    }
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_zero_linger()?;
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let mut resets = condition.clone();
    tokio::select! {
        result = pump(from_client, to_server, number, Way::Requests, condition.clone()) => result,
        result = pump(from_server, to_client, number, Way::Replies, condition) => result,
        _ = resets.wait_for(|now| number < now.reset_below) => Ok(()),
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u64,
    way: Way,
    mut condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await?;
        let latency = condition.borrow().latency;
        time::sleep(latency).await;
        // It ends only with the relay.
        if condition.wait_for(|now| !now.stalls(number, way)).await.is_err() || read == 0 {
            return Ok(());
        }
        to.write_all(&piece[..read]).await?;
    }
}

/// Bytes forwarded at once.
const PIECE: usize = 65_536;
