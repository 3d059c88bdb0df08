//! Secret bytes in every form in which they could slip out.

use data_encoding::{BASE32, BASE64, BASE64URL, HEXLOWER, HEXUPPER};

/// A secret and how to speak of it.
#[derive(Clone, Debug)]
pub struct Needle {
    /// What it is; never the bytes.
    pub what: String,
    forms: Vec<(String, Vec<u8>)>,
}

impl Needle {
    /// Every form of these bytes; at least 12 of them, or chance would find them everywhere.
    pub fn new(what: &str, bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 12, "{what} is too short to search for");
        let mut forms = vec![("raw".to_owned(), bytes.to_vec())];
        let mut text = |how: &str, form: String| forms.push((how.to_owned(), form.into_bytes()));
        text("hex", HEXLOWER.encode(bytes));
        text("HEX", HEXUPPER.encode(bytes));
        text("base32", BASE32.encode(bytes).trim_end_matches('=').to_owned());
        for shift in 0..3 {
            let standard = aligned(bytes, shift, &BASE64);
            text(&format!("base64+{shift}"), standard.clone());
            text(
                &format!("base64+{shift}, percent"),
                percent(standard.as_bytes(), false),
            );
            text(&format!("base64url+{shift}"), aligned(bytes, shift, &BASE64URL));
        }
        text("percent", percent(bytes, false));
        text("percent, all", percent(bytes, true));
        text("percent, small", percent(bytes, true).to_lowercase());
        // How Rust's Debug and serde print byte vectors.
        let numbers: Vec<_> = bytes.iter().map(ToString::to_string).collect();
        text("numbers", numbers.join(", "));
        text("numbers, tight", numbers.join(","));
        text("lossy", String::from_utf8_lossy(bytes).into_owned());
        text("escaped", bytes.escape_ascii().to_string());
        // A form of replacement characters only would match any binary output.
        forms.retain(|(_, form)| !form.is_empty() && form.iter().any(u8::is_ascii_alphanumeric));
        Self {
            what: what.to_owned(),
            forms,
        }
    }

    /// Its forms, where many secrets are searched for at once.
    pub fn forms(&self) -> impl Iterator<Item = &[u8]> {
        self.forms.iter().map(|(_, form)| form.as_slice())
    }

    /// In which form the text holds it.
    pub fn found_in(&self, haystack: &[u8]) -> Option<&str> {
        self.forms
            .iter()
            .find(|(_, form)| contains(haystack, form))
            .map(|(how, _)| how.as_str())
    }
}

/// The characters of base64 that depend on these bytes only, whatever stands before and after them.
fn aligned(bytes: &[u8], shift: usize, encoding: &data_encoding::Encoding) -> String {
    let mut padded = vec![0; shift];
    padded.extend_from_slice(bytes);
    let whole = encoding.encode(&padded);
    let first = (shift * 8).div_ceil(6);
    let last = padded.len() * 8 / 6;
    whole[first..last].to_owned()
}

fn percent(bytes: &[u8], all: bool) -> String {
    bytes
        .iter()
        .map(|&byte| {
            if !all && (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // The first byte is looked for fast; megabytes of trace output are searched for dozens of needles.
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        let start = from + at;
        if haystack[start..].starts_with(needle) {
            return true;
        }
        from = start + 1;
    }
    false
}
