//! Makes material: 32 random bytes, or a private key as PKCS#8 DER.

use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
        EcdsaKeyPair, EcdsaSigningAlgorithm,
    },
};

use crate::{
    api::{MaterialType, Reason},
    controller::keep::random,
    provider::aws::Wrapping,
    seal::{Fault, KeyBytes},
};

/// Makes material of a type. RSA takes seconds, on a thread of its own.
///
/// # Errors
/// `Pending`: the system gives no random bytes.
pub async fn make(type_: MaterialType) -> Result<KeyBytes, Fault> {
    match type_ {
        MaterialType::Aes256 => random(32),
        MaterialType::Rsa2048 => rsa(KeySize::Rsa2048).await,
        MaterialType::Rsa3072 => rsa(KeySize::Rsa3072).await,
        MaterialType::Rsa4096 => rsa(KeySize::Rsa4096).await,
        MaterialType::EcdsaP256 => ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
        MaterialType::EcdsaP384 => ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
        MaterialType::EcdsaP521 => ecdsa(&ECDSA_P521_SHA512_ASN1_SIGNING),
    }
}

/// Holds that bytes which a user brings are material of a type.
///
/// # Errors
/// `InvalidSpec`.
pub fn check(type_: MaterialType, bytes: &KeyBytes) -> Result<(), Fault> {
    let rsa =
        |length| KeyPair::from_pkcs8(bytes.expose()).is_ok_and(|pair| pair.public_modulus_len() == length);
    let ecdsa =
        |curve: &'static EcdsaSigningAlgorithm| EcdsaKeyPair::from_pkcs8(curve, bytes.expose()).is_ok();
    let fits = match type_ {
        MaterialType::Aes256 => bytes.expose().len() == 32,
        MaterialType::Rsa2048 => rsa(256),
        MaterialType::Rsa3072 => rsa(384),
        MaterialType::Rsa4096 => rsa(512),
        MaterialType::EcdsaP256 => ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
        MaterialType::EcdsaP384 => ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
        MaterialType::EcdsaP521 => ecdsa(&ECDSA_P521_SHA512_ASN1_SIGNING),
    };
    if fits {
        return Ok(());
    }
    Err(Fault::invalid_spec(format!(
        "what material.wrapped holds is no material of type {}: AES takes exactly 32 bytes, the others a private key as PKCS#8 \
             DER; wrap the right bytes",
        type_.as_str()
    )))
}

/// How material of a type is wrapped for its way to AWS.
pub const fn wrapping(type_: MaterialType) -> Wrapping {
    match type_ {
        MaterialType::Aes256 => Wrapping::Oaep,
        MaterialType::Rsa2048
        | MaterialType::Rsa3072
        | MaterialType::Rsa4096
        | MaterialType::EcdsaP256
        | MaterialType::EcdsaP384
        | MaterialType::EcdsaP521 => Wrapping::OaepAes,
    }
}

async fn rsa(size: KeySize) -> Result<KeyBytes, Fault> {
    let made = tokio::task::spawn_blocking(move || {
        let pair = KeyPair::generate(size).map_err(|_| failed())?;
        let der = pair.as_der().map_err(|_| failed())?;
        Ok(KeyBytes::new(der.as_ref().to_vec()))
    });
    made.await.map_err(|_| failed())?
}

/// Documents that aws-lc makes are wiped with their owner.
fn ecdsa(curve: &'static EcdsaSigningAlgorithm) -> Result<KeyBytes, Fault> {
    let document = EcdsaKeyPair::generate_pkcs8(curve, &SystemRandom::new()).map_err(|_| failed())?;
    Ok(KeyBytes::new(document.as_ref().to_vec()))
}

fn failed() -> Fault {
    Fault::transient(Reason::Pending, "the key could not be made; it is tried again")
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::KeyPair as _;

    use super::*;

    #[tokio::test]
    async fn each_type_is_made_as_what_it_says() {
        assert_eq!(make(MaterialType::Aes256).await.unwrap().expose().len(), 32);
        let rsa = make(MaterialType::Rsa2048).await.unwrap();
        assert_eq!(
            KeyPair::from_pkcs8(rsa.expose()).unwrap().public_modulus_len(),
            256
        );
        let curves: [(_, &'static EcdsaSigningAlgorithm, usize); 3] = [
            (MaterialType::EcdsaP256, &ECDSA_P256_SHA256_ASN1_SIGNING, 65),
            (MaterialType::EcdsaP384, &ECDSA_P384_SHA384_ASN1_SIGNING, 97),
            (MaterialType::EcdsaP521, &ECDSA_P521_SHA512_ASN1_SIGNING, 133),
        ];
        for (type_, curve, length) in curves {
            let key = make(type_).await.unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(curve, key.expose()).unwrap();
            assert_eq!(pair.public_key().as_ref().len(), length);
            assert!(check(type_, &key).is_ok());
            assert!(check(MaterialType::Rsa2048, &key).is_err());
        }
        assert!(check(MaterialType::Rsa2048, &rsa).is_ok());
        assert!(check(MaterialType::Rsa3072, &rsa).is_err());
        assert!(check(MaterialType::Aes256, &KeyBytes::new(vec![1; 31])).is_err());
    }
}
