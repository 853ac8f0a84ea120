//! A blocking connection to a Redis server that sends pipelines and waits out a server that is frozen.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use super::stop::Stop;

/// One command, word by word.
pub type Command = Vec<String>;

/// A command of these words.
pub fn command(words: &[&str]) -> Command {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// What the server answers to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A refusal.
    Error(String),
    /// A number.
    Number(i64),
    /// A status or a string; nil is empty.
    Text(String),
    /// Several answers.
    Array(Vec<Reply>),
}

/// One kept connection.
pub struct Redis {
    stream: TcpStream,
    stop: Arc<Stop>,
    buffer: Vec<u8>,
    position: usize,
}

impl Redis {
    /// Connects to a server on this machine.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(port: u16, stop: &Arc<Stop>) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream, stop: Arc::clone(stop), buffer: Vec::new(), position: 0 })
    }

    /// Sends all commands at once and collects their replies.
    ///
    /// # Errors
    /// When the connection ends, or the server stays silent for longer than any freeze lasts.
    pub fn send(&mut self, commands: &[Command]) -> io::Result<Vec<Reply>> {
        let mut request = Vec::new();
        for words in commands {
            write!(request, "*{}\r\n", words.len())?;
            for word in words {
                write!(request, "${}\r\n{word}\r\n", word.len())?;
            }
        }
        self.stream.write_all(&request)?;
        let deadline = Instant::now() + LIMIT;
        let replies = commands.iter().map(|_| self.reply(deadline)).collect();
        self.buffer.drain(..self.position);
        self.position = 0;
        replies
    }

    /// Sends one command; an error reply is an error.
    ///
    /// # Errors
    /// As [`Redis::send`], and when the server refuses.
    pub fn ask(&mut self, words: &[&str]) -> io::Result<Reply> {
        match self.send(&[command(words)])?.pop() {
            Some(Reply::Error(error)) => Err(io::Error::other(format!("{}: {error}", words[0]))),
            Some(reply) => Ok(reply),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    fn reply(&mut self, deadline: Instant) -> io::Result<Reply> {
        let line = self.line(deadline)?;
        let (kind, rest) = line.split_at_checked(1).ok_or(ErrorKind::InvalidData)?;
        let number = || rest.parse::<i64>().map_err(|_| io::Error::from(ErrorKind::InvalidData));
        Ok(match kind {
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Reply::Text(String::new()),
                Ok(length) => {
                    let from = self.take(length + 2, deadline)?;
                    Reply::Text(String::from_utf8_lossy(&self.buffer[from..from + length]).into_owned())
                }
            },
            "*" => Reply::Array((0..number()?.max(0)).map(|_| self.reply(deadline)).collect::<Result<_, _>>()?),
            _ => Reply::Text(rest.to_owned()),
        })
    }

    fn line(&mut self, deadline: Instant) -> io::Result<String> {
        loop {
            if let Some(length) = self.buffer[self.position..].windows(2).position(|pair| pair == b"\r\n") {
                let from = self.take(length + 2, deadline)?;
                return Ok(String::from_utf8_lossy(&self.buffer[from..from + length]).into_owned());
            }
            self.fill(deadline)?;
        }
    }

    /// Where the next so many bytes begin, once they are there.
    fn take(&mut self, length: usize, deadline: Instant) -> io::Result<usize> {
        while self.buffer.len() < self.position + length {
            self.fill(deadline)?;
        }
        let from = self.position;
        self.position += length;
        Ok(from)
    }

    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let mut chunk = [0; 16_384];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.buffer.extend_from_slice(&chunk[..read]);
                    return Ok(());
                }
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(error);
                }
                Err(error) if self.stop.is_requested() || Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
        }
    }
}

/// Longer than a server is ever frozen. A command that was given up while its server is frozen would be run when that goes
/// on, and undo what was written since.
const LIMIT: Duration = Duration::from_secs(30);
