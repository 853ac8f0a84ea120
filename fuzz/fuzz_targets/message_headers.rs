#![no_main]

#[path = "../checks/message_headers.rs"]
mod message_headers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| message_headers::check(bytes));
