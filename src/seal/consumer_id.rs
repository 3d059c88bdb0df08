//! How a consumer names a key: `consumerKeyID`, or a name derived from the key.

use data_encoding::HEXLOWER;

use crate::{api::Purpose, seal::KeyBytes};

/// Keys shorter than this can be guessed, so nothing computed from them is ever shown.
pub const GUESSABLE_BELOW: usize = 16;

const MESSAGE: &[u8] = b"autounseal.dev/key-id/v1";

/// What a consumer's name for a key is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerName<'a> {
    /// Name of the key.
    pub key: &'a str,
    /// What it is for.
    pub purpose: Purpose,
    /// The user's own name for it.
    pub consumer_key_id: Option<&'a str>,
    /// Whether the user brought it; a key that the operator made is never guessable.
    pub brought: bool,
    /// Version, from 1.
    pub version: u32,
}

impl ConsumerName<'_> {
    /// The consumer's name for these bytes.
    ///
    /// The user's own name stands as it is for version 1; all others end in eight digits derived from the key, so that
    /// two versions never share a name. Brought keys that somebody could guess (short ones, and those of no stated
    /// purpose, which may be passwords) are numbered instead: the digits would let a guess be tested (security rule S6).
    pub fn id(&self, bytes: &KeyBytes) -> String {
        let base = self.consumer_key_id.unwrap_or(self.key);
        if self.version == 1 && self.consumer_key_id.is_some() {
            return base.to_owned();
        }
        let guessable =
            self.brought && (bytes.expose().len() < GUESSABLE_BELOW || self.purpose == Purpose::Other);
        if guessable {
            return format!("{base}-v{}", self.version);
        }
        format!("{base}-{}", HEXLOWER.encode(&bytes.mac(MESSAGE)[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: ConsumerName<'static> = ConsumerName {
        key: "root",
        purpose: Purpose::Root,
        consumer_key_id: None,
        brought: true,
        version: 1,
    };

    fn long() -> KeyBytes {
        KeyBytes::new(vec![0x0b; 20])
    }

    #[test]
    fn the_users_own_name_stands_for_version_one() {
        let named = ConsumerName {
            consumer_key_id: Some("global_root"),
            ..NAME
        };
        assert_eq!(named.id(&long()), "global_root");
        let second = ConsumerName { version: 2, ..named };
        // Reference value: Python's hmac module.
        assert_eq!(second.id(&long()), "global_root-8ed70ae7");
    }

    #[test]
    fn a_default_name_is_derived_from_the_key() {
        assert_eq!(NAME.id(&long()), "root-8ed70ae7");
        assert_ne!(NAME.id(&long()), NAME.id(&KeyBytes::new(vec![1; 20])));
    }

    #[test]
    fn guessable_brought_keys_are_numbered() {
        assert_eq!(NAME.id(&KeyBytes::new(vec![1; 15])), "root-v1");
        assert_ne!(NAME.id(&KeyBytes::new(vec![1; 16])), "root-v1");
        let other = ConsumerName {
            purpose: Purpose::Other,
            ..NAME
        };
        assert_eq!(other.id(&long()), "root-v1");
        let made = ConsumerName {
            brought: false,
            ..other
        };
        assert_eq!(made.id(&long()), "root-8ed70ae7");
    }
}
