//! Session tickets (RFC 8446 section 4.6.1, RFC 5077) whose keys several processes can share.
//!
//! Time is cut into periods, which every process numbers alike: by the second since 1970 in which they begin. A ticket is
//! made with the key of the present period, and accepted for two further ones. Pure but for randomness: the present
//! second is passed in, and where shared keys are kept is not known here.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    error::Unspecified,
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand,
};
use rustls::server::ProducesTickets;

/// The keys that tickets are made with and accepted from.
pub struct KeyRing {
    period: u64,
    keys: ArcSwap<Keys>,
}

struct Keys {
    current: Arc<TicketKey>,
    /// All, the current one included.
    accepted: Vec<Arc<TicketKey>>,
}

/// One period's key.
pub struct TicketKey {
    begins: u64,
    is_shared: bool,
    id: [u8; ID],
    secret: [u8; SECRET],
    key: RandomizedNonceKey,
}

impl TicketKey {
    /// A new key for the period that begins in this second since 1970.
    pub fn generate(begins: u64) -> Self {
        let (mut id, mut secret) = ([0; ID], [0; SECRET]);
        rand::fill(&mut id).and_then(|()| rand::fill(&mut secret)).expect("the system has random numbers");
        Self::new(begins, false, id, secret)
    }

    fn new(begins: u64, is_shared: bool, id: [u8; ID], secret: [u8; SECRET]) -> Self {
        let key = RandomizedNonceKey::new(&AES_256_GCM, &secret).expect("the secret is as long as the cipher wants it");
        Self { begins, is_shared, id, secret, key }
    }
}

impl KeyRing {
    /// A ring with a key of its own making, for periods of at least a second.
    pub fn new(period: Duration, now: u64) -> Self {
        let period = period.as_secs().max(1);
        let own = Arc::new(TicketKey::generate(now / period * period));
        Self { period, keys: ArcSwap::from_pointee(Keys { current: Arc::clone(&own), accepted: vec![own] }) }
    }

    /// The seconds since 1970 in which the present and the next period begin.
    pub fn periods(&self, now: u64) -> [u64; 2] {
        let present = now / self.period * self.period;
        [present, present + self.period]
    }

    /// How long a period is.
    pub fn period(&self) -> Duration {
        Duration::from_secs(self.period)
    }

    /// Whether a key that begins then is of no use any more.
    pub fn is_over(&self, begins: u64, now: u64) -> bool {
        begins.saturating_add(self.period * PERIODS_KEPT) <= now
    }

    /// Takes in the keys that are shared by all at present, drops those that are over, and goes on to the present period's
    /// key: the shared one, or else one of this process's own making.
    pub fn renew(&self, shared: Vec<TicketKey>, now: u64) {
        let held = self.keys.load();
        let [present, _] = self.periods(now);
        let known = |key: &TicketKey| held.accepted.iter().any(|held| held.id == key.id);
        let mut accepted: Vec<Arc<TicketKey>> =
            held.accepted.iter().filter(|key| !self.is_over(key.begins, now)).cloned().collect();
        accepted.extend(shared.into_iter().filter(|key| !known(key) && !self.is_over(key.begins, now)).map(Arc::new));
        let usable = accepted.iter().filter(|key| key.begins <= present);
        let best = usable.max_by_key(|key| (key.begins, key.is_shared)).filter(|key| key.begins == present).cloned();
        let current = best.unwrap_or_else(|| {
            let own = Arc::new(TicketKey::generate(present));
            accepted.push(Arc::clone(&own));
            own
        });
        self.keys.store(Arc::new(Keys { current, accepted }));
    }

    /// Tickets that are worth nothing where the context differs.
    pub fn tickets(self: &Arc<Self>, context: Vec<u8>) -> Arc<dyn ProducesTickets> {
        Arc::new(Tickets { ring: Arc::clone(self), context })
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ticket keys", self.keys.load().accepted.len())
    }
}

/// A ring as the handshake uses it. A ticket is the key's id, a nonce, and the sealed session.
#[derive(Debug)]
struct Tickets {
    ring: Arc<KeyRing>,
    context: Vec<u8>,
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.ring.period * (PERIODS_KEPT - 1)).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.ring.keys.load();
        let key = &keys.current;
        let mut sealed = plain.to_vec();
        let nonce = key.key.seal_in_place_append_tag(Aad::from(&self.context), &mut sealed).ok()?;
        Some([&key.id[..], nonce.as_ref(), &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (id, sealed) = ticket.split_first_chunk::<ID>()?;
        let keys = self.ring.keys.load();
        let key = keys.accepted.iter().find(|key| key.id == *id)?;
        open(&key.key, &self.context, sealed).ok()
    }
}

/// What shared keys are encrypted with where they are kept.
pub struct Seal {
    key: RandomizedNonceKey,
    tag: String,
}

/// A shared key that was not sealed with our secret, or that was tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ticket key was sealed with another secret")]
pub struct SealError;

impl Seal {
    /// Derives the seal from a secret that all processes are given. It should be hard to guess: nothing here slows a
    /// guesser down.
    pub fn new(secret: &str) -> Self {
        let extracted = Salt::new(HKDF_SHA256, b"planb ticket keys").extract(secret.as_bytes());
        let derive = |purpose: &[u8]| {
            let mut key = [0; SECRET];
            extracted
                .expand(&[purpose], SealKey)
                .and_then(|material| material.fill(&mut key))
                .expect("the length is within what HKDF can give");
            key
        };
        let key = RandomizedNonceKey::new(&AES_256_GCM, &derive(b"at rest"));
        let [one, two, three, four, ..] = derive(b"tag");
        let tag = format!("{:08x}", u32::from_be_bytes([one, two, three, four]));
        Self { key: key.expect("the key is as long as the cipher wants it"), tag }
    }

    /// Eight hexadecimal digits by which keys that were sealed with different secrets are told apart.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// A key as it may be kept where others can read it.
    pub fn close(&self, key: &TicketKey) -> Vec<u8> {
        let mut sealed = [&key.id[..], &key.secret].concat();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(key.begins.to_be_bytes()), &mut sealed);
        [&nonce.expect("so short a text can be sealed").as_ref()[..], &sealed].concat()
    }

    /// The key of the period that begins then.
    ///
    /// # Errors
    /// When it was sealed with another secret, for another period, or is junk.
    pub fn open(&self, begins: u64, sealed: &[u8]) -> Result<TicketKey, SealError> {
        let plain = open(&self.key, &begins.to_be_bytes(), sealed).map_err(|_| SealError)?;
        let (id, secret) = plain.split_first_chunk::<ID>().ok_or(SealError)?;
        Ok(TicketKey::new(begins, true, *id, secret.try_into().map_err(|_| SealError)?))
    }
}

fn open(key: &RandomizedNonceKey, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unspecified)?;
    let mut text = sealed.to_vec();
    let length = key.open_in_place(Nonce::from(nonce), Aad::from(context), &mut text)?.len();
    text.truncate(length);
    Ok(text)
}

struct SealKey;

impl KeyType for SealKey {
    fn len(&self) -> usize {
        SECRET
    }
}

/// Bytes of a key's id, by which a ticket names it, and of its secret.
const ID: usize = 16;
const SECRET: usize = 32;

/// Periods for which a key is kept: the one in which it makes tickets, and the lifetime of the last of those.
const PERIODS_KEPT: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(100);

    fn tickets(ring: &Arc<KeyRing>) -> Arc<dyn ProducesTickets> {
        ring.tickets(b"context".to_vec())
    }

    fn sealed(ring: &Arc<KeyRing>) -> Vec<u8> {
        tickets(ring).encrypt(b"session").unwrap()
    }

    fn opens(ring: &Arc<KeyRing>, ticket: &[u8]) -> bool {
        tickets(ring).decrypt(ticket).is_some_and(|plain| plain == b"session")
    }

    fn ring(now: u64) -> Arc<KeyRing> {
        Arc::new(KeyRing::new(PERIOD, now))
    }

    #[test]
    fn a_ticket_is_accepted_for_its_lifetime_and_no_longer() {
        let ring = ring(1_050);
        let ticket = sealed(&ring);
        for now in [1_099, 1_100, 1_299] {
            ring.renew(Vec::new(), now);
            assert!(opens(&ring, &ticket), "at {now}");
        }
        ring.renew(Vec::new(), 1_300);
        assert!(!opens(&ring, &ticket));
        assert_eq!(tickets(&ring).lifetime(), 200);
    }

    #[test]
    fn each_period_has_its_own_key() {
        let ring = ring(1_000);
        let first = sealed(&ring);
        ring.renew(Vec::new(), 1_099);
        assert_eq!(sealed(&ring)[..ID], first[..ID]);
        ring.renew(Vec::new(), 1_100);
        assert_ne!(sealed(&ring)[..ID], first[..ID]);
    }

    #[test]
    fn shared_keys_open_what_another_process_sealed() {
        let (one, other) = (ring(1_000), ring(1_000));
        let early = sealed(&one);
        let seal = Seal::new("correct horse battery staple");
        let kept = [1_000, 1_100].map(|begins| (begins, seal.close(&TicketKey::generate(begins))));
        let open = || kept.iter().map(|(begins, sealed)| seal.open(*begins, sealed).unwrap()).collect();
        one.renew(open(), 1_001);
        other.renew(open(), 1_002);
        assert!(opens(&other, &sealed(&one)) && opens(&one, &sealed(&other)));
        assert!(opens(&one, &early) && !opens(&other, &early), "a key of one's own is kept, and kept to oneself");
        // A process whose clock is ahead uses the next key, which the others already know.
        one.renew(Vec::new(), 1_100);
        assert!(opens(&other, &sealed(&one)));
        one.renew(open(), 1_101);
        assert_eq!(one.keys.load().accepted.len(), 3);
    }

    #[test]
    fn a_key_is_sealed_for_its_secret_and_period() {
        let seal = Seal::new("one");
        let closed = seal.close(&TicketKey::generate(100));
        assert!(seal.open(100, &closed).is_ok());
        assert!(seal.open(200, &closed).is_err());
        assert!(Seal::new("other").open(100, &closed).is_err());
        assert!(seal.tag() == Seal::new("one").tag() && seal.tag() != Seal::new("other").tag());
        for junk in [&[][..], &[0; 11], &[0; 12], &[0; 300], &closed[1..]] {
            assert!(seal.open(100, junk).is_err());
        }
    }

    #[test]
    fn a_ticket_is_bound_to_its_context() {
        let ring = ring(1_000);
        let ticket = sealed(&ring);
        assert!(ring.tickets(b"another".to_vec()).decrypt(&ticket).is_none());
        for cut in 0..ticket.len() {
            assert!(!opens(&ring, &ticket[..cut]));
        }
    }
}
