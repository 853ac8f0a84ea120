//! What the texts of flags mean. An error goes behind the parser's own words, in one line.

use std::{
    net::{Ipv6Addr, SocketAddr, ToSocketAddrs},
    num::NonZeroUsize,
    time::Duration,
};

use http::HeaderName;
use jiff::SignedDuration;

use crate::{secret::Secret, tls::CertificateSource};

/// An address that may be switched off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listen(pub(super) Option<SocketAddr>);

pub(super) fn optional_address(text: &str) -> Result<Listen, String> {
    if text == "disabled" { Ok(Listen(None)) } else { address(text).map(|address| Listen(Some(address))) }
}

// The form that the command line's parser wants.
#[expect(clippy::unnecessary_wraps, reason = "value parsers return results")]
pub(super) fn certificate_source(text: &str) -> Result<CertificateSource, String> {
    Ok(if text == "redis" { CertificateSource::Redis } else { CertificateSource::Folder(text.into()) })
}

#[expect(clippy::unnecessary_wraps, reason = "value parsers return results")]
pub(super) fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret(text.to_owned()))
}

pub(super) fn holder(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

pub(super) fn ticket_rotation(text: &str) -> Result<Duration, String> {
    let rotation = duration(text)?;
    if !(Duration::from_secs(1)..=Duration::from_hours(48)).contains(&rotation) {
        return Err("it is not from 1s to 48h".to_owned());
    }
    Ok(rotation)
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| "the port is not a number from 0 to 65535".to_owned())?;
        return Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    }
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "the name has no address".to_owned())
}

pub(super) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(address),
        _ => Err("it is not an IP address and a port, such as 127.0.0.1:8600 or [::1]:53".to_owned()),
    }
}

/// A duration as Go writes them; zero if it is negative, since both mean that there is none.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    // The one form without a unit that Go accepts.
    if text.trim_start_matches(['+', '-']) == "0" {
        return Ok(Duration::ZERO);
    }
    let (is_negative, amount) = match text.strip_prefix('-') {
        Some(amount) => (true, amount),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let parsed: SignedDuration =
        with_whole_parts(amount).parse().map_err(|_| "it is not a duration such as 500ms or 1m30s".to_owned())?;
    if is_negative {
        return Ok(Duration::ZERO);
    }
    Ok(Duration::try_from(parsed).unwrap_or(Duration::ZERO))
}

/// Writes `.5s` and `5.s`, which Go accepts, as `0.5s` and `5.0s`.
fn with_whole_parts(text: &str) -> String {
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let (bytes, mut written) = (text.as_bytes(), String::with_capacity(text.len() + 2));
    for (at, character) in text.char_indices() {
        let before = is_digit(at.checked_sub(1).and_then(|before| bytes.get(before)));
        let after = is_digit(bytes.get(at + 1));
        match character {
            '.' if after && !before => written.push_str("0."),
            '.' if before && !after => written.push_str(".0"),
            _ => written.push(character),
        }
    }
    written
}

/// A boolean as Go writes them.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

/// A whole number as Go writes them: decimal, or in the base that its beginning names (0x, 0o, 0b, or 0 for octal), with
/// single underscores between the digits.
fn integer(text: &str) -> Result<i64, String> {
    let (is_negative, number) = match text.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = number.to_ascii_lowercase();
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2), ("0", 8)];
    let prefixed = prefixes.iter().find_map(|&(prefix, base)| Some((lower.strip_prefix(prefix)?, base)));
    let (digits, base) = match prefixed {
        // A zero alone is no prefix.
        Some(("", 8)) if lower == "0" => ("0", 10),
        Some((digits, base)) => (digits.strip_prefix('_').unwrap_or(digits), base),
        None => (lower.as_str(), 10),
    };
    let parse = || {
        let is_number = digits.split('_').all(|part| !part.is_empty() && part.chars().all(|c| c.is_digit(base)));
        let magnitude = is_number.then(|| i128::from_str_radix(&digits.replace('_', ""), base).ok()).flatten()?;
        i64::try_from(if is_negative { -magnitude } else { magnitude }).ok()
    };
    parse().ok_or_else(|| "it is not a whole number".to_owned())
}

/// A whole number within the limits of its type.
pub(super) fn number<N: TryFrom<i64>>(text: &str) -> Result<N, String> {
    integer(text)?.try_into().map_err(|_| "it is out of range".to_owned())
}

/// A whole number that is more than zero.
pub(super) fn positive(text: &str) -> Result<NonZeroUsize, String> {
    number(text).and_then(|number| NonZeroUsize::new(number).ok_or_else(|| "it is zero".to_owned()))
}

/// A number of seconds, of which 0 and less mean that there is none.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    integer(text).map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// For how many seconds a backend is left out. As in the original, 0 means 30, and less than that never; so does a word of
/// our own.
pub(super) fn dead_backend_time(text: &str) -> Result<Duration, String> {
    const DEFAULT: Duration = Duration::from_secs(30);
    match text {
        "none" => Ok(Duration::ZERO),
        _ if integer(text)? == 0 => Ok(DEFAULT),
        _ => seconds(text),
    }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("it is not more than zero".to_owned()) } else { Ok(time) })
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "it is not a header name".to_owned())
}

pub(super) fn at_least_8192(text: &str) -> Result<usize, String> {
    match number(text) {
        Ok(bytes) if bytes >= 8_192 => Ok(bytes),
        _ => Err("it is not a number of bytes of at least 8192".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in
            [("500ms", 500), ("1m30s", 90_000), ("0s", 0), ("0", 0), ("1.5h", 5_400_000), ("1h2m3s", 3_723_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, millis) in [(".5s", 500), ("1.s", 1_000), ("+1m.5s", 60_500), ("-0", 0), ("-5s", 0), ("-.5h", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "1x", "s", ".s", "-", "5-s"] {
            assert!(duration(text).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn whole_numbers_are_gos() {
        for (text, value) in [("0", 0), ("-0", 0), ("+7", 7), ("0x1e", 30), ("0X1E", 30), ("1_0", 10), ("010", 8)] {
            assert_eq!(number::<i64>(text), Ok(value), "{text}");
        }
        for (text, value) in [("0b11", 3), ("0o17", 15), ("0_7", 7), ("0x_ff", 255), ("-0x10", -16)] {
            assert_eq!(number::<i64>(text), Ok(value), "{text}");
        }
        assert_eq!(number::<i64>("-9223372036854775808"), Ok(i64::MIN));
        for text in ["", "-", "x", "1__0", "_1", "1_", "0x", "0b2", "08", "1.5", "30s", "9223372036854775808"] {
            assert!(number::<i64>(text).is_err(), "{text} was accepted");
        }
        assert!(number::<u16>("65536").is_err() && number::<u16>("-1").is_err());
    }
}
