//! HCL as text: blocks of attributes, written so that version 1 of the language (the reader of Vault, OpenBao and
//! Boundary) and version 2 read the same values.
//!
//! Written here and not by a crate, for two reasons. The crates write `${` as `$${`, which version 1 reads as those three
//! characters. And they build their text in buffers that nobody wipes, where key material must not go.

use std::fmt::Write as _;

use data_encoding::BASE64;
use icu_normalizer::ComposingNormalizerBorrowed;
use zeroize::Zeroizing;

use crate::seal::Fault;

/// A document under construction. Secrets are borrowed, and written only once the size of the whole is known, so that
/// no buffer grows and leaves a copy behind.
#[derive(Default)]
pub struct Document<'s>(Vec<Piece<'s>>);

enum Piece<'s> {
    /// No secret.
    Text(String),
    /// Written as base64.
    Base64(&'s [u8]),
    /// Of characters that need no escape.
    Plain(&'s str),
}

/// The value of an attribute.
pub enum Value<'s> {
    /// Text without secrets.
    Text(&'s str),
    /// The URL of a file.
    File(&'s str),
    /// A number.
    Number(usize),
    /// Key bytes, written as base64, which needs no escape.
    Key(&'s [u8]),
    /// A secret of characters that need no escape; another one is refused.
    Secret(&'s str),
}

impl<'s> Document<'s> {
    /// Adds a block `kind "label" { … }` with its attributes, in order.
    pub fn block(
        &mut self,
        kind: &str,
        label: &str,
        attributes: &[(&'static str, Value<'s>)],
    ) -> Result<(), Fault> {
        let blank = if self.0.is_empty() { "" } else { "\n" };
        self.text(format!("{blank}{kind} {} {{\n", quoted(label)?));
        let width = attributes
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or_default();
        for (name, value) in attributes {
            self.text(format!("  {name:width$} = "));
            match value {
                Value::Text(text) => self.text(quoted(text)?),
                Value::File(path) => self.text(quoted(&format!("file://{path}"))?),
                Value::Number(number) => self.text(number.to_string()),
                Value::Key(bytes) => self.secret(Piece::Base64(bytes)),
                Value::Secret(text) if is_plain(text) => self.secret(Piece::Plain(text)),
                Value::Secret(_) => {
                    return Err(Fault::invalid_spec(format!(
                        "{name} holds a character that no such credential has; correct its Secret"
                    )));
                }
            }
            self.text("\n".to_owned());
        }
        self.text("}\n".to_owned());
        Ok(())
    }

    fn text(&mut self, text: String) {
        self.0.push(Piece::Text(text));
    }

    fn secret(&mut self, piece: Piece<'s>) {
        self.text("\"".to_owned());
        self.0.push(piece);
        self.text("\"".to_owned());
    }

    /// The whole text.
    pub fn write(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(vec![0; self.0.iter().map(Piece::len).sum()]);
        let mut rest = out.as_mut_slice();
        for piece in &self.0 {
            let (place, after) = rest.split_at_mut(piece.len());
            match piece {
                Piece::Text(text) => place.copy_from_slice(text.as_bytes()),
                Piece::Base64(bytes) => BASE64.encode_mut(bytes, place),
                Piece::Plain(text) => place.copy_from_slice(text.as_bytes()),
            }
            rest = after;
        }
        out
    }
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Piece::Text(text) => text.len(),
            Piece::Base64(bytes) => BASE64.encode_len(bytes.len()),
            Piece::Plain(text) => text.len(),
        }
    }
}

/// Whether a text stands for itself between quotes.
fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"+/=._-".contains(&b))
}

/// A quoted string that both versions read as `text`.
///
/// Version 2 normalises what it reads (NFC), so text of another form is refused rather than changed.
fn quoted(text: &str) -> Result<String, Fault> {
    if !ComposingNormalizerBorrowed::new_nfc().is_normalized(text) {
        return Err(Fault::invalid_spec(
            "a value holds decomposed Unicode text, which not every reader of HCL leaves as it is; write it composed (NFC)",
        ));
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // What begins a template in either version.
            '$' | '%' if characters.peek() == Some(&'{') => escape(&mut out, character),
            ' '..='~' => out.push(character),
            _ => escape(&mut out, character),
        }
    }
    out.push('"');
    Ok(out)
}

fn escape(out: &mut String, character: char) {
    let number = u32::from(character);
    // Writing to a String cannot fail.
    let _ = if number > 0xffff {
        write!(out, "\\U{number:08x}")
    } else {
        write!(out, "\\u{number:04x}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    fn written(value: Value<'_>) -> Result<String, Fault> {
        let mut document = Document::default();
        document.block("seal", "x", &[("value", value)])?;
        Ok(String::from_utf8(document.write().to_vec()).unwrap())
    }

    #[test]
    fn whatever_begins_a_template_or_ends_a_string_is_escaped() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("${a} %{b} $$ %% $", r#""\u0024{a} \u0025{b} $$ %% $""#),
            ("$${a}", r#""$\u0024{a}""#),
            ("\r\n\t\0", r#""\r\n\t\u0000""#),
            ("é 😀 \u{e123}", r#""\u00e9 \U0001f600 \ue123""#),
        ] {
            let expected = format!("seal \"x\" {{\n  value = {expected}\n}}\n");
            assert_eq!(written(Value::Text(text)).unwrap(), expected);
        }
    }

    #[test]
    fn text_that_a_reader_would_change_is_refused() {
        let fault = written(Value::Text("e\u{301}")).unwrap_err();
        assert_eq!(fault.reason, Reason::InvalidSpec);
    }

    #[test]
    fn a_secret_that_would_need_an_escape_is_refused_and_not_told() {
        for secret in ["a\"b", "${x}", "a b", "é"] {
            let fault = written(Value::Secret(secret)).unwrap_err();
            assert!(!fault.message.contains(secret), "{}", fault.message);
        }
        assert!(
            written(Value::Secret("aA0+/=._-"))
                .unwrap()
                .contains("\"aA0+/=._-\"")
        );
    }

    #[test]
    fn blocks_stand_apart_and_their_attributes_are_aligned() {
        let mut document = Document::default();
        for label in ["one", "two"] {
            document
                .block(
                    "kms",
                    label,
                    &[("a", Value::Number(1)), ("long", Value::Key(b"key"))],
                )
                .unwrap();
        }
        let block = |label: &str| format!("kms \"{label}\" {{\n  a    = 1\n  long = \"a2V5\"\n}}\n");
        assert_eq!(
            *document.write(),
            [block("one"), block("two")].join("\n").into_bytes()
        );
    }
}
