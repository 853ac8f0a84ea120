//! What a backend that is frozen has waiting in its sockets, by the system's word.

use std::{fs, io, ops::AddAssign};

/// Connections over which something has come that was not read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Those that were not accepted, so that they have never carried a request before.
    pub fresh: usize,
    /// The others.
    pub accepted: usize,
}

impl AddAssign for Waiting {
    fn add_assign(&mut self, other: Self) {
        self.fresh += other.fresh;
        self.accepted += other.accepted;
    }
}

/// The connections to a port of this machine over which something waits to be read.
///
/// # Errors
/// When the system does not tell.
pub fn waiting_at(port: u16) -> io::Result<Waiting> {
    let mut waiting = Waiting::default();
    let local = format!(":{port:04X}");
    for line in fs::read_to_string("/proc/net/tcp")?.lines() {
        // Number, local and remote address, state, queues, timer, retransmissions, user, timeout, inode.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, address, _, state, queues, _, _, _, _, inode, ..] = *fields else { continue };
        let has_data = queues.split_once(':').is_some_and(|(_, unread)| unread.bytes().any(|digit| digit != b'0'));
        if address.ends_with(&local) && (has_data && state != LISTENING || state == UNFINISHED) {
            match inode {
                "0" => waiting.fresh += 1,
                _ => waiting.accepted += 1,
            }
        }
    }
    Ok(waiting)
}

/// The state of a socket whose queue counts connections, not bytes.
const LISTENING: &str = "0A";

/// The state of a connection for which the listening socket has no room. The other end believes that it is made, and sends.
const UNFINISHED: &str = "03";
