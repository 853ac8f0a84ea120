//! What a list element says of a backend: the same for all frontends that name it.

use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::{HashTable, hash_table::Entry};
use triomphe::ThinArc;

use super::{BackendError, Origin, origin::Parts};

/// A backend's URL, and where that is: one piece of memory, which clones share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(ThinArc<Origin, u8>);

impl Endpoint {
    /// Reads a list element such as `http://10.0.0.1:8080`, `https://name` or `10.0.0.1:8080`.
    ///
    /// # Errors
    /// When it is no backend's.
    pub fn parse(element: &str) -> Result<Self, BackendError> {
        Ok(Self(ThinArc::from_header_and_slice(Origin::parse(element)?, element.trim_ascii().as_bytes())))
    }

    /// The list element without the white space around it.
    pub fn url(&self) -> &str {
        // It was made of a text.
        str::from_utf8(self.url_bytes()).unwrap_or_default()
    }

    /// The same, for comparisons.
    pub fn url_bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// Host and port as the list element has them.
    pub fn address(&self) -> &str {
        Parts::of(self.url()).address()
    }

    /// The list element's path; may be empty. Requests ignore it.
    pub fn path(&self) -> &str {
        Parts::of(self.url()).path()
    }

    /// Where to connect.
    pub fn origin(&self) -> &Origin {
        &self.0.header.header
    }
}

/// Each endpoint once, however many frontends share it.
#[derive(Default)]
pub struct Endpoints {
    known: HashTable<Endpoint>,
    hasher: RandomState,
}

impl Endpoints {
    /// The endpoint of a list element.
    ///
    /// # Errors
    /// When it is no backend's.
    pub fn get(&mut self, element: &str) -> Result<Endpoint, BackendError> {
        let Self { known, hasher } = self;
        let url = element.trim_ascii().as_bytes();
        let hash = |endpoint: &Endpoint| hasher.hash_one(endpoint.url_bytes());
        match known.entry(hasher.hash_one(url), |endpoint| endpoint.url_bytes() == url, hash) {
            Entry::Occupied(entry) => Ok(entry.get().clone()),
            Entry::Vacant(entry) => {
                let endpoint = Endpoint::parse(element)?;
                entry.insert(endpoint.clone());
                Ok(endpoint)
            }
        }
    }

    /// Makes room for all of them in one go, where those that are known are of the first `read` of `of` frontends: to move
    /// a million again and again would be a tenth of a load.
    pub fn expect(&mut self, read: usize, of: usize) {
        let Self { known, hasher } = self;
        let count = known.len();
        if known.capacity() - count < MARGIN {
            let all = (count as u128 * of as u128).checked_div(read as u128).unwrap_or_default();
            let all = usize::try_from(all).unwrap_or(usize::MAX).min(count * MOST_GROWTH);
            known.reserve(all.saturating_sub(count), |endpoint| hasher.hash_one(endpoint.url_bytes()));
        }
    }

    /// Lets go of those that nobody else holds, and of the room that they took.
    pub fn forget_unused(&mut self) {
        let Self { known, hasher } = self;
        let before = known.len();
        known.retain(|endpoint| ThinArc::strong_count(&endpoint.0) > 1);
        if known.len() < before / 2 {
            known.shrink_to_fit(|endpoint| hasher.hash_one(endpoint.url_bytes()));
        }
    }

    /// How many are known.
    pub fn count(&self) -> usize {
        self.known.len()
    }
}

/// Room for about as many as come at once is looked after in time.
const MARGIN: usize = 4_096;

/// How far an early estimate is trusted.
const MOST_GROWTH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_held_once_and_as_long_as_it_is_used() {
        let mut endpoints = Endpoints::default();
        let one = endpoints.get("http://a:80/\n").unwrap();
        assert!(std::ptr::eq(one.origin(), endpoints.get(" http://a:80/").unwrap().origin()));
        assert!(one != endpoints.get("http://a:80").unwrap(), "it is spelled otherwise");
        assert_eq!(endpoints.get("junk url"), Err(BackendError::Host));
        endpoints.forget_unused();
        assert_eq!(endpoints.count(), 1);
        drop(one);
        endpoints.forget_unused();
        assert_eq!(endpoints.count(), 0);
    }

    #[test]
    fn room_is_made_as_far_as_an_estimate_can_be_trusted() {
        let mut endpoints = Endpoints::default();
        endpoints.expect(0, 0);
        let held: Vec<_> = (0..11_000).map(|number| endpoints.get(&format!("http://a{number}")).unwrap()).collect();
        endpoints.expect(1, 10);
        assert!(endpoints.known.capacity() >= 110_000);
        let room = endpoints.known.capacity();
        endpoints.expect(1, usize::MAX);
        assert_eq!(endpoints.known.capacity(), room, "there is enough for now");
        drop(held);
    }
}
