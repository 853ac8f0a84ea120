#![no_main]

#[path = "../checks/backend_url.rs"]
mod backend_url;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| backend_url::check(bytes));
