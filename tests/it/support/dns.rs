//! A DNS server whose every answer the test decides.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};

/// What a name's questions are answered with. Names that the server was not told of do not exist.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These addresses, with this TTL in seconds. Over UDP an answer of more than 512 bytes is cut off.
    Addresses(Vec<IpAddr>, u32),
    /// The same, but questions for IPv6 are left unanswered.
    Ipv4Only(Vec<IpAddr>, u32),
    /// Another name, and, if `whole`, what that one is answered with.
    Alias { target: &'static str, whole: bool },
    /// An error of the server's.
    Error(ResponseCode),
    /// Bytes that are no message.
    Junk,
    /// Nothing.
    Silence,
}

/// A question that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Without the final dot.
    pub name: String,
    pub kind: RecordType,
    /// Whether it came over TCP.
    pub tcp: bool,
}

/// A listening server, on UDP and TCP.
pub struct DnsServer {
    address: SocketAddr,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    replies: Mutex<HashMap<String, Reply>>,
    questions: Mutex<Vec<Question>>,
    is_over: AtomicBool,
}

impl DnsServer {
    /// A server that knows no name yet.
    pub fn start() -> Self {
        let (udp, tcp) = bind();
        let (address, state) = (udp.local_addr().unwrap(), Arc::<State>::default());
        let (for_udp, for_tcp) = (Arc::clone(&state), Arc::clone(&state));
        let threads =
            vec![thread::spawn(move || for_udp.serve_udp(&udp)), thread::spawn(move || for_tcp.serve_tcp(&tcp))];
        Self { address, state, threads }
    }

    /// The flag that makes a proxy ask it.
    pub fn flag(&self) -> String {
        format!("--dns-server={}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the name is answered with from now on.
    pub fn set(&self, name: &str, reply: Reply) {
        self.state.replies.lock().unwrap().insert(name.to_owned(), reply);
    }

    /// The same for addresses.
    pub fn point(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.set(name, Reply::Addresses(addresses, ttl));
    }

    /// From now on the name does not exist.
    pub fn remove(&self, name: &str) {
        self.state.replies.lock().unwrap().remove(name);
    }

    /// What was asked so far about a name.
    pub fn questions(&self, name: &str) -> Vec<Question> {
        self.state.questions.lock().unwrap().iter().filter(|question| question.name == name).cloned().collect()
    }

    /// Closes its sockets.
    pub fn stop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[], self.address).unwrap();
        drop(TcpStream::connect(self.address));
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl State {
    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            if let Some(answer) = self.answer(&buffer[..length], false) {
                // Whoever has asked may have given up.
                let _ = socket.send_to(&answer, from);
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        for stream in listener.incoming().map_while(Result::ok) {
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            // One at a time is enough, and it may leave at any moment.
            let _ = self.serve_stream(stream);
        }
    }

    fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message)?;
            let Some(answer) = self.answer(&message, true) else { return Ok(()) };
            stream.write_all(&[&u16::try_from(answer.len()).unwrap().to_be_bytes(), &answer[..]].concat())?;
        }
    }

    fn answer(&self, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let asked = Message::from_vec(message).unwrap();
        let question = asked.queries.first().unwrap();
        let (name, kind) = (question.name().to_ascii().trim_end_matches('.').to_owned(), question.query_type());
        self.questions.lock().unwrap().push(Question { name: name.clone(), kind, tcp });
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_query(question.clone());
        match self.reply(&name) {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(Reply::Silence) => return None,
            Some(Reply::Ipv4Only(..)) if kind == RecordType::AAAA => return None,
            Some(Reply::Junk) => return Some(vec![0xff; 40]),
            Some(Reply::Error(code)) => answer.metadata.response_code = code,
            Some(reply) => drop(answer.add_answers(self.records(&name, kind, reply))),
        }
        let bytes = answer.to_vec().unwrap();
        if tcp || bytes.len() <= 512 {
            return Some(bytes);
        }
        answer.answers.clear();
        answer.metadata.truncation = true;
        Some(answer.to_vec().unwrap())
    }

    fn reply(&self, name: &str) -> Option<Reply> {
        self.replies.lock().unwrap().get(name).cloned()
    }

    fn records(&self, name: &str, kind: RecordType, reply: Reply) -> Vec<Record> {
        let owner = || Name::from_ascii(format!("{name}.")).unwrap();
        match reply {
            Reply::Addresses(addresses, ttl) | Reply::Ipv4Only(addresses, ttl) => {
                let addresses = addresses.into_iter().map(|address| match address {
                    IpAddr::V4(address) => RData::A(A(address)),
                    IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                });
                let fitting = addresses.filter(|data| data.record_type() == kind);
                fitting.map(|data| Record::from_rdata(owner(), ttl, data)).collect()
            }
            Reply::Alias { target, whole } => {
                let alias = RData::CNAME(CNAME(Name::from_ascii(format!("{target}.")).unwrap()));
                let rest = self.reply(target).filter(|_| whole).map(|reply| self.records(target, kind, reply));
                [Record::from_rdata(owner(), 60, alias)].into_iter().chain(rest.into_iter().flatten()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Sockets of both kinds on one port.
fn bind() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}
