//! The check value of a brought key: pins its bytes in Git without telling them.

use data_encoding::HEXLOWER;

use crate::seal::{KeyBytes, consumer_id::GUESSABLE_BELOW};

const DOMAIN: &[u8] = b"autounseal.dev/check-value/v1";

/// The place that a key belongs to. The same bytes elsewhere have another check value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// Kind of the object, `SealConfig`.
    pub kind: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Name of the key in it.
    pub key: &'a str,
}

/// HMAC-SHA256 of the key over its place, 64 hexadecimal digits.
///
/// `None` for keys under 16 bytes: a check value lets everyone who reads it test guesses, which is harmless only where
/// guessing is hopeless.
pub fn check_value(bytes: &KeyBytes, binding: &Binding<'_>) -> Option<String> {
    if bytes.expose().len() < GUESSABLE_BELOW {
        return None;
    }
    let parts = [binding.kind, binding.namespace, binding.name, binding.key];
    let mut message = DOMAIN.to_vec();
    for part in parts {
        // Lengths first, so that no two places make one message. A name in Kubernetes is far under 4 GiB.
        message.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        message.extend_from_slice(part.as_bytes());
    }
    Some(HEXLOWER.encode(&bytes.mac(&message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Binding<'static> = Binding {
        kind: "SealConfig",
        namespace: "billing",
        name: "billing",
        key: "master",
    };

    #[test]
    fn the_value_is_bound_to_its_place() {
        let key = KeyBytes::new((0..32).collect());
        let value = check_value(&key, &PLACE).unwrap();
        assert_eq!(value.len(), 64);
        for elsewhere in [
            Binding {
                kind: "ManagedKey",
                ..PLACE
            },
            Binding {
                namespace: "apps",
                ..PLACE
            },
            Binding {
                name: "other",
                ..PLACE
            },
            Binding {
                key: "root",
                ..PLACE
            },
            Binding {
                namespace: "billin",
                name: "gbilling",
                ..PLACE
            },
        ] {
            assert_ne!(check_value(&key, &elsewhere).unwrap(), value);
        }
        assert_ne!(
            check_value(&KeyBytes::new(vec![0; 32]), &PLACE).unwrap(),
            value
        );
    }

    #[test]
    fn the_value_never_changes_between_releases() {
        let key = KeyBytes::new((0..32).collect());
        assert_eq!(
            check_value(&key, &PLACE).unwrap(),
            "7becb43dd6bdec43a353aa0d8072de73c19ce1bda22707f7d2ede14b14ed663d"
        );
    }

    #[test]
    fn guessable_keys_have_none() {
        assert_eq!(check_value(&KeyBytes::new(vec![7; 15]), &PLACE), None);
        assert!(check_value(&KeyBytes::new(vec![7; 16]), &PLACE).is_some());
    }
}
