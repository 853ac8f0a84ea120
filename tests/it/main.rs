//! The program as its users meet it: the real executable, real Redis servers, real sockets, real clients.
//!
//! One topic a file. Everything waits for conditions, never for time; the only test servers are in `support`.

mod support;

mod table;
