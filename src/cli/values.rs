//! What the texts of flags mean. An error goes behind the parser's own words, in one line.

use std::{
    net::{Ipv6Addr, SocketAddr, ToSocketAddrs},
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

/// A duration as Go writes them.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    // The one form without a unit that Go accepts.
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed: SignedDuration = text.parse().map_err(|_| "it is not a duration such as 500ms or 1m30s".to_owned())?;
    Duration::try_from(parsed).map_err(|_| "it is negative".to_owned())
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("it is zero".to_owned()) } else { Ok(time) })
}

pub(super) fn header_name(text: &str) -> Result<(HeaderName, String), String> {
    let name = text.parse().map_err(|_| "it is not a header name".to_owned())?;
    Ok((name, text.to_owned()))
}

pub(super) fn at_least_8192(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes >= 8_192 => Ok(bytes),
        _ => Err("it is not a number of bytes of at least 8192".to_owned()),
    }
}
