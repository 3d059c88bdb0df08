//! How material is wrapped for the way to AWS (`protocols.md` 2.4): `RSAES_OAEP_SHA_256` for 32 bytes of AES,
//! `RSA_AES_KEY_WRAP_SHA_256` for private keys, which are longer than RSA takes.

use aws_lc_rs::{
    key_wrap::{AES_256, AesKek, KeyWrapPadded},
    rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey},
};
use aws_sdk_kms::types::{AlgorithmSpec, WrappingKeySpec};
use zeroize::Zeroizing;

use crate::{
    api::Reason,
    seal::{Fault, KeyBytes},
};

/// Bits of the RSA key that is asked for.
pub(super) const WRAPPING_KEY_BITS: usize = 4096;

/// How material is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// By RSA alone.
    Oaep,
    /// By AES with padding (RFC 5649) under a key that RSA wraps.
    OaepAes,
}

impl Wrapping {
    pub(super) fn algorithm(self) -> AlgorithmSpec {
        match self {
            Wrapping::Oaep => AlgorithmSpec::RsaesOaepSha256,
            Wrapping::OaepAes => AlgorithmSpec::RsaAesKeyWrapSha256,
        }
    }

    #[expect(
        clippy::unused_self,
        reason = "one size for both, told where the algorithm is"
    )]
    pub(super) fn key_spec(self) -> WrappingKeySpec {
        WrappingKeySpec::Rsa4096
    }
}

/// A public key that AWS gave to wrap material, checked to be RSA of the size that was asked for.
pub struct PublicKey(OaepPublicEncryptingKey);

impl PublicKey {
    /// `None`: it is none.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let key = PublicEncryptingKey::from_der(der).ok()?;
        if key.key_size_bits() != WRAPPING_KEY_BITS {
            return None;
        }
        OaepPublicEncryptingKey::new(key).ok().map(Self)
    }

    /// Wraps material.
    ///
    /// # Errors
    /// None that is expected: the sizes fit.
    pub fn wrap(&self, wrapping: Wrapping, material: &KeyBytes) -> Result<Vec<u8>, Fault> {
        match wrapping {
            Wrapping::Oaep => self.oaep(material.expose()),
            Wrapping::OaepAes => {
                let mut key = Zeroizing::new([0; 32]);
                aws_lc_rs::rand::fill(&mut *key).map_err(|_| failed())?;
                let kek = AesKek::new(&AES_256, &*key).map_err(|_| failed())?;
                let mut wrapped = vec![0; material.expose().len() + 15];
                let length = kek
                    .wrap_with_padding(material.expose(), &mut wrapped)
                    .map_err(|_| failed())?
                    .len();
                wrapped.truncate(length);
                let mut out = self.oaep(&*key)?;
                out.append(&mut wrapped);
                Ok(out)
            }
        }
    }

    fn oaep(&self, plain: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut out = vec![0; self.0.ciphertext_size()];
        let length = self
            .0
            .encrypt(&OAEP_SHA256_MGF1SHA256, plain, &mut out, None)
            .map_err(|_| failed())?
            .len();
        out.truncate(length);
        Ok(out)
    }
}

fn failed() -> Fault {
    Fault::transient(
        Reason::Pending,
        "the material could not be wrapped for its way to AWS; it is tried again",
    )
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer,
        rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey},
    };

    use super::*;

    fn pair(size: KeySize) -> (PrivateDecryptingKey, Vec<u8>) {
        let private = PrivateDecryptingKey::generate(size).unwrap();
        let public = private.public_key().as_der().unwrap().as_ref().to_vec();
        (private, public)
    }

    fn open(private: PrivateDecryptingKey, wrapped: &[u8]) -> Vec<u8> {
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        let mut out = vec![0; private.min_output_size()];
        private
            .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut out, None)
            .unwrap()
            .to_vec()
    }

    #[test]
    fn only_rsa_of_the_size_that_was_asked_for_wraps() {
        assert!(PublicKey::read(&pair(KeySize::Rsa2048).1).is_none());
        assert!(PublicKey::read(b"no key").is_none());
    }

    #[test]
    fn what_is_wrapped_opens_by_the_documented_way() {
        let material = KeyBytes::new((0..32).collect());
        let (private, public) = pair(KeySize::Rsa4096);
        let wrapped = PublicKey::read(&public)
            .unwrap()
            .wrap(Wrapping::Oaep, &material)
            .unwrap();
        assert_eq!(wrapped.len(), 512);
        assert_eq!(open(private, &wrapped), material.expose());

        // A length that needs padding.
        let material = KeyBytes::new((0..121).collect());
        let (private, public) = pair(KeySize::Rsa4096);
        let wrapped = PublicKey::read(&public)
            .unwrap()
            .wrap(Wrapping::OaepAes, &material)
            .unwrap();
        let key = open(private, &wrapped[..512]);
        let kek = AesKek::new(&AES_256, &key).unwrap();
        let mut out = vec![0; 256];
        assert_eq!(
            kek.unwrap_with_padding(&wrapped[512..], &mut out).unwrap(),
            material.expose()
        );
    }
}
