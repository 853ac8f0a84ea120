#![no_main]

#[path = "../checks/message_request.rs"]
mod message_request;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| message_request::check(bytes));
