//! Key exchange on the curve P-521, which the TLS library leaves out. Before TLS 1.3, a server with a certificate on a curve
//! may only use it with clients that know the curve for key exchange too (RFC 8422 section 5.1).

use aws_lc_rs::{
    agreement::{ECDH_P521, EphemeralPrivateKey, PublicKey, UnparsedPublicKey, agree_ephemeral},
    rand::SystemRandom,
};
use rustls::{
    Error, NamedGroup, PeerMisbehaved,
    crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup},
    ffdhe_groups::FfdheGroup,
};

/// The group; each handshake has keys of its own.
#[derive(Debug)]
pub(super) struct Secp521r1;

struct Exchange {
    private: EphemeralPrivateKey,
    public: PublicKey,
}

impl SupportedKxGroup for Secp521r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let private = EphemeralPrivateKey::generate(&ECDH_P521, &SystemRandom::new())
            .map_err(|_| Error::from(GetRandomFailed))?;
        let public = private.compute_public_key().map_err(|_| Error::from(GetRandomFailed))?;
        Ok(Box::new(Exchange { private, public }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        // The cryptography library would take a compressed point too, which TLS does not (RFC 8446 section 4.2.8.2).
        if peer.first() != Some(&UNCOMPRESSED) {
            return Err(PeerMisbehaved::InvalidKeyShare.into());
        }
        let peer = UnparsedPublicKey::new(&ECDH_P521, peer);
        let invalid = Error::from(PeerMisbehaved::InvalidKeyShare);
        agree_ephemeral(self.private, peer, invalid, |secret| Ok(SharedSecret::from(secret)))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

/// The first byte of a point that has both its coordinates (SEC 1 section 2.3.3).
const UNCOMPRESSED: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_come_to_the_same_secret() {
        let (ours, theirs) = (Secp521r1.start().unwrap(), Secp521r1.start().unwrap());
        let (our_share, their_share) = (ours.pub_key().to_vec(), theirs.pub_key().to_vec());
        let (ours, theirs) = (ours.complete(&their_share).unwrap(), theirs.complete(&our_share).unwrap());
        assert_eq!(ours.secret_bytes(), theirs.secret_bytes());
        assert_eq!(ours.secret_bytes().len(), 66);
    }

    #[test]
    fn a_share_that_is_no_point_is_refused() {
        for share in [&[][..], &[4; 133], &[2; 67]] {
            assert!(Secp521r1.start().unwrap().complete(share).is_err());
        }
    }
}
