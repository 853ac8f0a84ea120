//! The header that carries request ids, as the operator has chosen it.

use http::HeaderName;

/// The header that carries request ids.
#[derive(Clone, Debug)]
pub struct RequestIdHeader {
    name: HeaderName,
    canonical: Box<str>,
}

impl From<HeaderName> for RequestIdHeader {
    fn from(name: HeaderName) -> Self {
        let mut begins = true;
        let capitalise = |letter: char| {
            let shown = if begins { letter.to_ascii_uppercase() } else { letter };
            begins = letter == '-';
            shown
        };
        let canonical = name.as_str().chars().map(capitalise).collect();
        Self { name, canonical }
    }
}

impl RequestIdHeader {
    /// Its name.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Its name in the form that logs have it in, whatever the operator wrote: a capital at the beginning and behind each
    /// hyphen.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }
}
