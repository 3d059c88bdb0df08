//! How a share is written into a request.

use data_encoding::HEXLOWER_PERMISSIVE;
use zeroize::Zeroizing;

use crate::seal::KeyBytes;

/// The most bytes that a share has as they are: the root key's 32 and the share's number. What is longer is its text.
const MOST_RAW: usize = 33;

/// The longest text: two hexadecimal digits for each byte.
const MOST_TEXT: usize = 2 * MOST_RAW;

/// The body of the request that gives a share, in a buffer whose size is known before it is filled. `migrate`: the server
/// is told to go over to its new seal.
///
/// A share is kept as its bytes, or as the text that the server printed: hexadecimal or base64, which the server takes
/// both. `None`: it is neither.
pub fn body(share: &KeyBytes, migrate: bool) -> Option<Zeroizing<Vec<u8>>> {
    let tail: &[u8] = if migrate { b"\",\"migrate\":true}" } else { b"\"}" };
    written(share, tail)
}

/// The same for the attempt of this name, which is a UUID, to replace the shares.
pub fn body_for(share: &KeyBytes, nonce: &str) -> Option<Zeroizing<Vec<u8>>> {
    written(share, format!("\",\"nonce\":\"{nonce}\"}}").as_bytes())
}

fn written(share: &KeyBytes, tail: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    const HEAD: &[u8] = b"{\"key\":\"";
    let bytes = share.expose();
    let text = bytes.trim_ascii();
    let mut body = Zeroizing::new(Vec::with_capacity(HEAD.len() + MOST_TEXT + tail.len()));
    body.extend_from_slice(HEAD);
    if (16..=MOST_RAW).contains(&bytes.len()) {
        let mut hex = Zeroizing::new([0; MOST_TEXT]);
        let hex = &mut hex[..2 * bytes.len()];
        HEXLOWER_PERMISSIVE.encode_mut(bytes, hex);
        body.extend_from_slice(hex);
    } else {
        let printed = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
        if !(MOST_RAW..=MOST_TEXT).contains(&text.len()) || !text.iter().all(printed) {
            return None;
        }
        body.extend_from_slice(text);
    }
    body.extend_from_slice(tail);
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(share: &[u8]) -> Option<String> {
        let body = body(&KeyBytes::new(share.to_vec()), false)?;
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        Some(value["key"].as_str().unwrap().to_owned())
    }

    #[test]
    fn bytes_are_written_as_hex_and_text_as_it_is() {
        assert_eq!(text(&[0xab; 33]), Some("ab".repeat(33)));
        assert_eq!(text(&[b'"'; 32]), Some("22".repeat(32)));
        let hex = "0f".repeat(33);
        assert_eq!(text(hex.as_bytes()), Some(hex.clone()));
        assert_eq!(text(format!("{hex}\n").as_bytes()), Some(hex));
        let base64 = "+/".repeat(22);
        assert_eq!(text(base64.as_bytes()), Some(base64));
    }

    #[test]
    fn a_migration_is_asked_for_beside_the_share() {
        let body = body(&KeyBytes::new(vec![0xab; 33]), true).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"key": "ab".repeat(33), "migrate": true})
        );
    }

    #[test]
    fn a_share_for_a_new_set_names_its_attempt() {
        let body = body_for(&KeyBytes::new(vec![0xab; 33]), "n-1").unwrap();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value, serde_json::json!({"key": "ab".repeat(33), "nonce": "n-1"}));
        assert!(body_for(&KeyBytes::new(vec![1; 15]), "n-1").is_none());
    }

    #[test]
    fn what_is_no_share_is_not_sent() {
        for bytes in [&b""[..], &[1; 15], &[b'a'; 67], &[b'"'; 44], &[0; 40]] {
            assert_eq!(text(bytes), None, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn the_buffer_never_grows() {
        for share in [vec![1; 33], vec![b'a'; 66]] {
            for (migrate, tail) in [(false, 2), (true, 17)] {
                let body = body(&KeyBytes::new(share.clone()), migrate).unwrap();
                assert!(body.len() <= 8 + MOST_TEXT + tail && body.capacity() == 8 + MOST_TEXT + tail);
            }
        }
    }
}
