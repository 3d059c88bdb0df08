//! Texts that are kept by the thousand and seldom read: packed against what such texts have in common.

/// What specs and statuses have in common. One that is out of date costs memory, and nothing else.
const COMMON: &[u8] = include_bytes!("packed.common");

/// A text, packed.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

impl Packed {
    /// Packs a text.
    pub fn new(text: &str) -> Self {
        Self(lz4_flex::block::compress_prepend_size_with_dict(text.as_bytes(), COMMON).into())
    }

    /// The text.
    pub fn text(&self) -> String {
        let text = lz4_flex::block::decompress_size_prepended_with_dict(&self.0, COMMON);
        // What was packed from a text is one again; were it not, the object would be one that cannot be read.
        text.ok()
            .and_then(|text| String::from_utf8(text).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_usual_status_takes_a_third() {
        let status = serde_json::json!({
            "conditions": [
                {"lastTransitionTime": "2031-05-06T07:08:09Z", "message": "every seal works", "observedGeneration": 7,
                    "reason": "Ready", "status": "True", "type": "SealsHealthy"},
                {"lastTransitionTime": "2031-05-06T07:08:10Z", "message": "every Secret holds what it should",
                    "observedGeneration": 7, "reason": "Ready", "status": "True", "type": "SecretsDelivered"},
            ],
            "seals": [{"credentialSource": "operator", "keyID": "arn:aws:kms:us-east-1:123456789012:key/other",
                "lastProbeTime": "2031-05-06T07:08:09Z", "name": "aws", "provider": "awskms", "state": "Healthy"}],
        });
        let text = status.to_string();
        assert!(Packed::new(&text).0.len() * 3 < text.len());
    }

    proptest! {
        #[test]
        fn every_text_comes_back_as_it_was(text in ".*", again in 0_usize..50) {
            let text = text.repeat(again);
            prop_assert_eq!(Packed::new(&text).text(), text);
        }

        #[test]
        fn so_does_one_that_resembles_what_is_common(from in 0..COMMON.len(), length in 0_usize..3000, insert in "[a-z]{0,9}") {
            let common = std::str::from_utf8(COMMON).unwrap();
            let text = format!("{insert}{}{insert}", common.chars().skip(from).take(length).collect::<String>());
            prop_assert_eq!(Packed::new(&text).text(), text);
        }
    }
}
