#![no_main]

#[path = "../checks/message_chunked.rs"]
mod message_chunked;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| message_chunked::check(bytes));
