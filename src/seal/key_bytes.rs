//! Key bytes: zeroized on drop, silent in `Debug`, neither `Clone` nor `Serialize`.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use zeroize::Zeroizing;

/// The bytes of a root key or data key. Exists only inside effects.
pub struct KeyBytes(Zeroizing<Vec<u8>>);

impl KeyBytes {
    /// Takes ownership; the vector's buffer is wiped when this value is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the one who delivers or uses them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// HMAC-SHA256 with the key's bytes as the key: one-way, for ids and check values.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), message);
        let mut out = [0; 32];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Equality in constant time.
    pub fn same_as(&self, other: &KeyBytes) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_tells_nothing() {
        assert_eq!(format!("{:?}", KeyBytes::new(b"hunter2".to_vec())), "[redacted]");
    }

    #[test]
    fn equality_compares_all_bytes() {
        assert!(KeyBytes::new(vec![1, 2]).same_as(&KeyBytes::new(vec![1, 2])));
        assert!(!KeyBytes::new(vec![1, 2]).same_as(&KeyBytes::new(vec![1, 3])));
        assert!(!KeyBytes::new(vec![1, 2]).same_as(&KeyBytes::new(vec![1])));
    }
}
