//! The time as HTTP writes it.

use std::cell::RefCell;

use jiff::Timestamp;

/// Shows the present time as `Date` has it (RFC 9110 section 5.6.7). Each thread formats a second once.
pub fn with_date<T>(show: impl FnOnce(&str) -> T) -> T {
    thread_local! {
        static CACHED: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let now = Timestamp::now();
    CACHED.with_borrow_mut(|(second, text)| {
        if *second != now.as_second() {
            *second = now.as_second();
            *text = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        }
        show(text)
    })
}
