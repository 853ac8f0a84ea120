//! The header names that any rule speaks of.

/// A header's name, if a rule speaks of it. Found once for each line, so that rules compare numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the name that it is spelled as")]
pub enum Known {
    Accept,
    Age,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Expect,
    Host,
    KeepAlive,
    Location,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Referer,
    SecWebSocketAccept,
    SecWebSocketKey,
    SecWebSocketVersion,
    Server,
    SetCookie,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Via,
    XDebugBackendId,
    XDebugBackendUrl,
    XDebugFrontendKey,
    XDebugRouter,
    XForwardedClientCert,
    XForwardedFor,
    XForwardedHost,
    XForwardedPort,
    XForwardedProto,
    XForwardedProtocol,
    XHost,
    XRealIp,
    /// A name that only its underscores keep from being one that we set or guard. Servers that hand headers on as variables
    /// take the one for the other.
    Disguised,
    /// Any other name.
    Other,
}

impl Known {
    /// Which of them a name is, in whatever case.
    pub fn of(name: &[u8]) -> Self {
        for &(candidate, known) in candidates(name.len()) {
            if let Some(has_underscore) = matches(name, candidate) {
                return match (has_underscore, known.is_guarded()) {
                    (false, _) => known,
                    (true, true) => Self::Disguised,
                    (true, false) => Self::Other,
                };
            }
        }
        Self::Other
    }

    /// Whether it is for nobody but us to say this to a backend, or to hide it from one.
    pub(super) fn is_guarded(self) -> bool {
        matches!(
            self,
            Self::ContentLength
                | Self::KeepAlive
                | Self::ProxyAuthenticate
                | Self::ProxyAuthorization
                | Self::ProxyConnection
                | Self::TransferEncoding
                | Self::XDebugRouter
                | Self::XForwardedClientCert
                | Self::XForwardedFor
                | Self::XForwardedHost
                | Self::XForwardedPort
                | Self::XForwardedProto
                | Self::XForwardedProtocol
                | Self::XHost
                | Self::XRealIp
        )
    }

    /// Its bit in a set of names.
    pub(super) fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// Whether a name is the candidate, which is as long and in lower case; and then, whether underscores stand for hyphens.
fn matches(name: &[u8], candidate: &[u8]) -> Option<bool> {
    let mut has_underscore = false;
    for (&byte, &wanted) in name.iter().zip(candidate) {
        if byte.to_ascii_lowercase() != wanted {
            if byte != b'_' || wanted != b'-' {
                return None;
            }
            has_underscore = true;
        }
    }
    Some(has_underscore)
}

/// The names of a length.
#[rustfmt::skip]
fn candidates(length: usize) -> &'static [(&'static [u8], Known)] {
    match length {
        2 => &[(b"te", Known::Te)],
        3 => &[(b"age", Known::Age), (b"via", Known::Via)],
        4 => &[(b"host", Known::Host), (b"date", Known::Date)],
        6 => &[(b"accept", Known::Accept), (b"cookie", Known::Cookie), (b"server", Known::Server), (b"expect", Known::Expect), (b"x-host", Known::XHost)],
        7 => &[(b"referer", Known::Referer), (b"upgrade", Known::Upgrade), (b"trailer", Known::Trailer)],
        8 => &[(b"location", Known::Location)],
        9 => &[(b"x-real-ip", Known::XRealIp)],
        10 => &[(b"user-agent", Known::UserAgent), (b"connection", Known::Connection), (b"set-cookie", Known::SetCookie), (b"keep-alive", Known::KeepAlive)],
        12 => &[(b"content-type", Known::ContentType)],
        14 => &[(b"content-length", Known::ContentLength), (b"x-debug-router", Known::XDebugRouter)],
        15 => &[(b"x-forwarded-for", Known::XForwardedFor)],
        16 => &[(b"x-forwarded-host", Known::XForwardedHost), (b"x-forwarded-port", Known::XForwardedPort), (b"proxy-connection", Known::ProxyConnection)],
        17 => &[(b"transfer-encoding", Known::TransferEncoding), (b"x-forwarded-proto", Known::XForwardedProto), (b"sec-websocket-key", Known::SecWebSocketKey)],
        18 => &[(b"proxy-authenticate", Known::ProxyAuthenticate), (b"x-debug-backend-id", Known::XDebugBackendId)],
        19 => &[(b"proxy-authorization", Known::ProxyAuthorization), (b"x-debug-backend-url", Known::XDebugBackendUrl)],
        20 => &[(b"x-forwarded-protocol", Known::XForwardedProtocol), (b"sec-websocket-accept", Known::SecWebSocketAccept), (b"x-debug-frontend-key", Known::XDebugFrontendKey)],
        21 => &[(b"sec-websocket-version", Known::SecWebSocketVersion)],
        23 => &[(b"x-forwarded-client-cert", Known::XForwardedClientCert)],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_with_those_of_its_length() {
        for length in 0..100 {
            for (name, known) in candidates(length) {
                assert_eq!((name.len(), Known::of(name)), (length, *known), "{known:?}");
                assert_eq!(Known::of(&name.to_ascii_uppercase()), *known);
            }
        }
    }

    #[test]
    fn an_underscore_is_a_disguise_where_there_is_something_to_guard() {
        for name in ["X_Forwarded_For", "x_forwarded-client_cert", "CONTENT_LENGTH", "x_host", "Transfer_Encoding"] {
            assert_eq!(Known::of(name.as_bytes()), Known::Disguised, "{name}");
        }
        for name in ["User_Agent", "X_Other", "", "_", "x-forwarded_for_"] {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
    }
}
