//! A request line, a status line, and the beginning of either.

use memchr::memchr;

use super::{
    ParseError,
    characters::{DELETE, count, is_never_in_request_line, is_text, is_token_byte},
};
use crate::message::head::{Span, Version};

/// A request line (RFC 9112 section 3).
pub(super) struct RequestLine {
    pub(super) method: Span,
    pub(super) target: Span,
    pub(super) version: Version,
    /// With its line end.
    pub(super) length: usize,
}

impl RequestLine {
    /// Parses the first line of a buffer, which is complete.
    pub(super) fn parse(buffer: &[u8]) -> Result<Self, ParseError> {
        let line =
            memchr(b'\n', buffer).and_then(|feed| buffer[..feed].strip_suffix(b"\r")).ok_or(ParseError::LineEnd)?;
        let method = memchr(b' ', line).ok_or(ParseError::Method)?;
        if method == 0 || !line[..method].iter().all(|&byte| is_token_byte(byte)) {
            return Err(ParseError::Method);
        }
        let start = method + 1;
        let end = start + memchr(b' ', &line[start..]).ok_or(ParseError::Version)?;
        check_target(&line[start..end])?;
        let version = version(&line[end + 1..])?;
        Ok(Self { method: Span::new(0, method), target: Span::new(start, end), version, length: line.len() + 2 })
    }
}

/// A status line (RFC 9112 section 4).
pub(super) struct StatusLine {
    pub(super) version: Version,
    pub(super) status: u16,
    pub(super) reason: Span,
    /// With its line end.
    pub(super) length: usize,
}

impl StatusLine {
    /// Parses the first line of a buffer, which is complete.
    pub(super) fn parse(buffer: &[u8]) -> Result<Self, ParseError> {
        let feed = memchr(b'\n', buffer).ok_or(ParseError::LineEnd)?;
        let line = buffer[..feed].strip_suffix(b"\r").unwrap_or(&buffer[..feed]);
        let (name, rest) = line.split_at_checked(VERSION).ok_or(ParseError::Version)?;
        let version = version(name)?;
        let &[b' ', hundreds @ b'1'..=b'9', tens @ b'0'..=b'9', ones @ b'0'..=b'9', ref rest @ ..] = rest else {
            return Err(ParseError::Status);
        };
        let digit = |byte: u8| u16::from(byte - b'0');
        let status = digit(hundreds) * 100 + digit(tens) * 10 + digit(ones);
        // The blank before an empty reason is often left out.
        let reason = match rest {
            [] => rest,
            [b' ', reason @ ..] => reason,
            _ => return Err(ParseError::Status),
        };
        if !is_text(reason) {
            return Err(ParseError::Reason);
        }
        Ok(Self { version, status, reason: Span::new(line.len() - reason.len(), line.len()), length: feed + 1 })
    }
}

/// What of the first line has been looked at, while the head is not complete.
#[derive(Debug, Default)]
pub(super) enum FirstLine {
    /// The first so many bytes, which are a method's beginning.
    #[default]
    Unseen,
    Method(usize),
    /// The method ends there, and so many bytes have been looked at.
    Target {
        method: usize,
        seen: usize,
    },
    /// All of it.
    Sound,
}

impl FirstLine {
    /// Refuses what surely becomes no request, each byte looked at once. The line may be complete while the head is not.
    pub(super) fn check_request_line(&mut self, buffer: &[u8], is_complete: bool) -> Result<(), ParseError> {
        if is_complete {
            if !matches!(self, Self::Sound) {
                RequestLine::parse(buffer)?;
                *self = Self::Sound;
            }
            return Ok(());
        }
        if let Self::Unseen = *self {
            *self = Self::Method(0);
        }
        if let Self::Method(seen) = *self {
            let end = memchr(b' ', &buffer[seen..]).map(|offset| seen + offset);
            let method = &buffer[..end.unwrap_or(buffer.len())];
            // An empty line may be about to follow.
            if !method[seen..].iter().all(|&byte| is_token_byte(byte)) && method != b"\r" || end == Some(0) {
                return Err(ParseError::Method);
            }
            *self = match end {
                None => Self::Method(if method == b"\r" { 0 } else { method.len() }),
                Some(end) => Self::Target { method: end, seen: end + 1 },
            };
        }
        if let Self::Target { method, seen } = *self {
            let fresh = &buffer[seen..];
            // A CR at the very end may be the line's.
            let (last, before) = fresh.split_last().map_or((b' ', fresh), |(&last, before)| (last, before));
            if before.iter().any(|&byte| is_never_in_request_line(byte))
                || last != b'\r' && is_never_in_request_line(last)
            {
                return Err(ParseError::Target);
            }
            if buffer.len() - method > LONGEST_TARGET + VERSION + 4 {
                return Err(ParseError::TargetTooLong);
            }
            *self = Self::Target { method, seen: buffer.len() - usize::from(last == b'\r') };
        }
        Ok(())
    }

    /// Refuses what surely becomes no response.
    pub(super) fn check_status_line(&mut self, buffer: &[u8], is_complete: bool) -> Result<(), ParseError> {
        if !is_complete {
            let beginning = &buffer[..buffer.len().min(VERSION_PREFIX.len())];
            let may_be_empty_line = beginning == b"\r";
            if !VERSION_PREFIX.starts_with(beginning) && !may_be_empty_line {
                return Err(ParseError::Version);
            }
        } else if !matches!(self, Self::Sound) {
            StatusLine::parse(buffer)?;
            *self = Self::Sound;
        }
        Ok(())
    }
}

pub fn check_target(target: &[u8]) -> Result<(), ParseError> {
    if target.len() > LONGEST_TARGET {
        return Err(ParseError::TargetTooLong);
    }
    if target.is_empty() || count(target, |byte| byte <= b' ' || byte == DELETE || byte == b'#') > 0 {
        return Err(ParseError::Target);
    }
    Ok(())
}

fn version(name: &[u8]) -> Result<Version, ParseError> {
    match name {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(ParseError::Version),
    }
}

/// The length of a version's name, and how it begins.
const VERSION: usize = 8;
const VERSION_PREFIX: &[u8] = b"HTTP/1.";

/// The longest target that is read. Longer ones make no sense to any server.
const LONGEST_TARGET: usize = 65_534;
