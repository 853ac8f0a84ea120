#![no_main]

#[path = "../checks/message_response.rs"]
mod message_response;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| message_response::check(bytes));
