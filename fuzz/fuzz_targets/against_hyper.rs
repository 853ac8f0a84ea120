#![no_main]

#[path = "../checks/against_hyper.rs"]
mod against_hyper;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| against_hyper::check(bytes));
