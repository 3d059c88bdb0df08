//! Templates: text with placeholders, and nothing that could be called a language (security rule S6).
//!
//! `{{ keys["name"].E }}` stands for a key, `{{ keys["name"].previous.E }}` for the version before it, with `E` one of
//! `base64`, `base64url`, `hex`, `utf8`, `id`. Whether a template is accepted is decided by its text alone, before
//! any key is opened; whether it renders depends on key bytes in one way only: `utf8` asks that they are UTF-8.
//! Errors tell a place and one of our own words, so they cannot repeat what a template holds.

use std::{collections::BTreeSet, fmt};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use zeroize::Zeroizing;

/// Bytes that a template may have.
pub const MAX_SOURCE: usize = 64 * 1024;
/// Bytes that a template may render to.
pub const MAX_OUTPUT: usize = 256 * 1024;

/// A template that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Key { reference: Reference, at: Place },
}

/// What one placeholder asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Name of the key.
    pub key: String,
    /// Whether the version before the current one is meant.
    pub previous: bool,
    /// How it is written.
    pub form: Form,
}

/// How a placeholder writes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Standard base64 with padding.
    Base64,
    /// URL-safe base64 without padding.
    Base64Url,
    /// Lower-case hexadecimal.
    Hex,
    /// The bytes, which must be UTF-8.
    Utf8,
    /// The consumer's name for the key, not its bytes.
    Id,
}

impl Form {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "base64" => Form::Base64,
            "base64url" => Form::Base64Url,
            "hex" => Form::Hex,
            "utf8" => Form::Utf8,
            "id" => Form::Id,
            _ => return None,
        })
    }

    fn len(self, key: &KeyView<'_>) -> usize {
        match self {
            Form::Base64 => BASE64.encode_len(key.bytes.len()),
            Form::Base64Url => BASE64URL_NOPAD.encode_len(key.bytes.len()),
            Form::Hex => HEXLOWER.encode_len(key.bytes.len()),
            Form::Utf8 => key.bytes.len(),
            Form::Id => key.id.len(),
        }
    }
}

/// A key as a placeholder sees it.
#[derive(Clone, Copy)]
pub struct KeyView<'k> {
    /// The key's bytes.
    pub bytes: &'k [u8],
    /// The consumer's name for it.
    pub id: &'k str,
}

impl fmt::Debug for KeyView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A place in a template, both counted from 1; the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
}

/// Why a template is refused. Never quotes the template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct TemplateError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1: where the placeholder begins.
    pub column: usize,
    /// What is wrong there.
    pub what: TemplateProblem,
}

/// Everything that can be wrong with a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateProblem {
    /// More than [`MAX_SOURCE`] bytes.
    SourceTooLong,
    /// `{{` without `}}`.
    Unclosed,
    /// Something else than a placeholder between the braces.
    NotAPlaceholder,
    /// The word at the end is none of the forms.
    UnknownForm,
    /// No key of that name.
    UnknownKey,
    /// The key has no version before the current one, and never will.
    NoPreviousVersion,
    /// The rendered text would be longer than [`MAX_OUTPUT`] bytes.
    OutputTooLong,
    /// `utf8` of bytes that are not UTF-8.
    NotUtf8,
}

impl fmt::Display for TemplateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceTooLong => "the template is longer than 64 KiB; shorten it",
            Self::Unclosed => "a placeholder is opened with {{ and not closed; close it with }} on the same line",
            Self::NotAPlaceholder => {
                "between {{ and }} only keys[\"name\"].base64, .base64url, .hex, .utf8 or .id may stand, with \
                 .previous before the last word for the version before"
            }
            Self::UnknownForm => "the last word of a placeholder must be base64, base64url, hex, utf8 or id",
            Self::UnknownKey => "no key of that name; name one of spec.keys",
            Self::NoPreviousVersion => {
                "a brought key has no previous version; name the key itself, or bring the older key under a name of \
                 its own"
            }
            Self::OutputTooLong => "the template renders to more than 256 KiB; shorten it",
            Self::NotUtf8 => "the key is not UTF-8 text; write it as base64, base64url or hex",
        })
    }
}

impl Template {
    /// Reads a template.
    ///
    /// Outside of `{{ … }}` everything is text, single braces and a lone `}}` too. Inside, spaces and tabs may stand
    /// between the parts.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let mut place = Place { line: 1, column: 1 };
        if source.len() > MAX_SOURCE {
            return Err(place.error(TemplateProblem::SourceTooLong));
        }
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(open) = rest.find("{{") {
            let (text, from_braces) = rest.split_at(open);
            place.advance(text);
            let Some(close) = from_braces.find("}}") else {
                return Err(place.error(TemplateProblem::Unclosed));
            };
            let inner = &from_braces[2..close];
            if inner.contains('\n') {
                return Err(place.error(TemplateProblem::Unclosed));
            }
            let reference = placeholder(inner).map_err(|what| place.error(what))?;
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            parts.push(Part::Key {
                reference,
                at: place,
            });
            let (whole, after) = from_braces.split_at(close + 2);
            place.advance(whole);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self {
            source: source.to_owned(),
            parts,
        })
    }

    /// The text as it was written, for the digest of the inputs.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the placeholders ask for, in their order.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.parts.iter().filter_map(|part| match part {
            Part::Key { reference, .. } => Some(reference),
            Part::Text(_) => None,
        })
    }

    /// Holds that every placeholder names a key that there is: one of `names`, and one of `with_previous` where the
    /// version before is meant. A brought key never has one.
    pub fn check(
        &self,
        names: &BTreeSet<&str>,
        with_previous: &BTreeSet<&str>,
    ) -> Result<(), TemplateError> {
        for part in &self.parts {
            let Part::Key { reference, at } = part else {
                continue;
            };
            let key = reference.key.as_str();
            if !names.contains(key) {
                return Err(at.error(TemplateProblem::UnknownKey));
            }
            if reference.previous && !with_previous.contains(key) {
                return Err(at.error(TemplateProblem::NoPreviousVersion));
            }
        }
        Ok(())
    }

    /// Writes the text with the keys in it.
    ///
    /// `lookup` is asked with a key's name and whether the previous version is meant.
    pub fn render<'k>(
        &self,
        lookup: impl Fn(&str, bool) -> Option<KeyView<'k>>,
    ) -> Result<Zeroizing<Vec<u8>>, TemplateError> {
        // The size first: a buffer that grows leaves copies of what it held behind.
        let mut size = 0_usize;
        for part in &self.parts {
            let (more, at) = match part {
                Part::Text(text) => (text.len(), None),
                Part::Key { reference, at } => {
                    let key = reference.resolve(*at, &lookup)?;
                    if reference.form == Form::Utf8 && std::str::from_utf8(key.bytes).is_err() {
                        return Err(at.error(TemplateProblem::NotUtf8));
                    }
                    (reference.form.len(&key), Some(*at))
                }
            };
            size = size.saturating_add(more);
            if size > MAX_OUTPUT {
                let at = at.unwrap_or(Place { line: 1, column: 1 });
                return Err(at.error(TemplateProblem::OutputTooLong));
            }
        }
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Key { reference, at } => {
                    let key = reference.resolve(*at, &lookup)?;
                    let start = out.len();
                    out.resize(start + reference.form.len(&key), 0);
                    let room = &mut out[start..];
                    match reference.form {
                        Form::Base64 => BASE64.encode_mut(key.bytes, room),
                        Form::Base64Url => BASE64URL_NOPAD.encode_mut(key.bytes, room),
                        Form::Hex => HEXLOWER.encode_mut(key.bytes, room),
                        Form::Utf8 => room.copy_from_slice(key.bytes),
                        Form::Id => room.copy_from_slice(key.id.as_bytes()),
                    }
                }
            }
        }
        Ok(out)
    }
}

impl Reference {
    fn resolve<'k>(
        &self,
        at: Place,
        lookup: &impl Fn(&str, bool) -> Option<KeyView<'k>>,
    ) -> Result<KeyView<'k>, TemplateError> {
        lookup(&self.key, self.previous).ok_or_else(|| {
            at.error(if self.previous {
                TemplateProblem::NoPreviousVersion
            } else {
                TemplateProblem::UnknownKey
            })
        })
    }
}

impl Place {
    fn error(self, what: TemplateProblem) -> TemplateError {
        TemplateError {
            line: self.line,
            column: self.column,
            what,
        }
    }

    fn advance(&mut self, text: &str) {
        match text.rfind('\n') {
            Some(last) => {
                self.line += text.bytes().filter(|b| *b == b'\n').count();
                self.column = 1 + text[last + 1..].chars().count();
            }
            None => self.column += text.chars().count(),
        }
    }
}

/// Reads what stands between the braces.
fn placeholder(inner: &str) -> Result<Reference, TemplateProblem> {
    let mut tokens = Tokens(inner);
    let head = (|| {
        tokens.literal("keys")?;
        tokens.literal("[")?;
        let key = tokens.quoted_name()?;
        tokens.literal("]")?;
        tokens.literal(".")?;
        Some(key)
    })();
    let key = head.ok_or(TemplateProblem::NotAPlaceholder)?.to_owned();
    let mut word = tokens.word().ok_or(TemplateProblem::UnknownForm)?;
    let previous = word == "previous";
    if previous {
        tokens.literal(".").ok_or(TemplateProblem::UnknownForm)?;
        word = tokens.word().ok_or(TemplateProblem::UnknownForm)?;
    }
    let form = Form::parse(word).ok_or(TemplateProblem::UnknownForm)?;
    if !tokens.at_end() {
        return Err(TemplateProblem::NotAPlaceholder);
    }
    Ok(Reference {
        key,
        previous,
        form,
    })
}

struct Tokens<'a>(&'a str);

impl<'a> Tokens<'a> {
    fn skip_space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    fn literal(&mut self, text: &str) -> Option<()> {
        self.skip_space();
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    fn word(&mut self) -> Option<&'a str> {
        self.skip_space();
        let end = self
            .0
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    /// A key's name between double quotes, of the characters that `spec.keys[].name` takes.
    fn quoted_name(&mut self) -> Option<&'a str> {
        self.literal("\"")?;
        let (name, rest) = self.0.split_once('"')?;
        self.0 = rest;
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let fits = name.len() <= 63
            && edge(name.chars().next())
            && edge(name.chars().next_back())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        fits.then_some(name)
    }

    fn at_end(&mut self) -> bool {
        self.skip_space();
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &[u8] = b"\x00\xfftext?>";

    fn render(source: &str) -> Result<String, TemplateError> {
        let template = Template::parse(source)?;
        let out = template.render(|name, previous| match (name, previous) {
            ("root", false) => Some(KeyView {
                bytes: KEY,
                id: "root-v1",
            }),
            ("text", false) => Some(KeyView {
                bytes: b"pa{{ss",
                id: "global_text",
            }),
            ("root", true) => Some(KeyView {
                bytes: b"old",
                id: "root-v0",
            }),
            _ => None,
        })?;
        Ok(String::from_utf8(out.to_vec()).unwrap())
    }

    fn problem(source: &str) -> TemplateProblem {
        Template::parse(source).unwrap_err().what
    }

    #[test]
    fn every_form_renders() {
        assert_eq!(
            render(
                r#"a {{ keys["root"].base64 }} {{ keys["root"].base64url }} {{keys["root"].hex}} {{	keys [ "text" ] . utf8	}} {{ keys["text"].id }}."#
            )
            .unwrap(),
            "a AP90ZXh0Pz4= AP90ZXh0Pz4 00ff746578743f3e pa{{ss global_text."
        );
        assert_eq!(
            render(r#"{{ keys["root"].previous.hex }}{{ keys["root"].previous.id }}"#).unwrap(),
            "6f6c64root-v0"
        );
    }

    #[test]
    fn everything_outside_double_braces_is_text() {
        for text in [
            "",
            "plain",
            "{ a } }} {",
            "}}{",
            "{% if %}",
            "${x} #{y}",
            "ünï\n\r\n\t",
        ] {
            assert_eq!(render(text).unwrap(), text);
        }
        assert_eq!(
            render(r#"{"a":{"b":"{{keys["root"].hex}}"}}"#).unwrap(),
            r#"{"a":{"b":"00ff746578743f3e"}}"#
        );
    }

    #[test]
    fn nothing_else_between_braces_is_accepted() {
        use TemplateProblem::{NotAPlaceholder, Unclosed, UnknownForm};
        for (source, want) in [
            ("{{}}", NotAPlaceholder),
            ("{{ }}", NotAPlaceholder),
            ("{{ if keys }}", NotAPlaceholder),
            (r#"{{ keys["a"].hex | upper }}"#, NotAPlaceholder),
            (r#"{{ keys["a"].hex[0] }}"#, NotAPlaceholder),
            (r#"{{- keys["a"].hex -}}"#, NotAPlaceholder),
            (r#"{{{ keys["a"].hex }}}"#, NotAPlaceholder),
            ("{{ keys['a'].hex }}", NotAPlaceholder),
            ("{{ keys.a.hex }}", NotAPlaceholder),
            (r#"{{ keys["A"].hex }}"#, NotAPlaceholder),
            (r#"{{ keys["-a"].hex }}"#, NotAPlaceholder),
            (r#"{{ keys[""].hex }}"#, NotAPlaceholder),
            (r#"{{ keys["a b"].hex }}"#, NotAPlaceholder),
            (r#"{{ keys["a"].hex }"#, Unclosed),
            ("{{", Unclosed),
            ("{{ keys[\"a\"].\nhex }}", Unclosed),
            (r#"{{ keys["a"].previous }}"#, UnknownForm),
            (r#"{{ keys["a"].previous.previous.hex }}"#, UnknownForm),
            (r#"{{ keys["a"].HEX }}"#, UnknownForm),
            (r#"{{ keys["a"].raw }}"#, UnknownForm),
            (r#"{{ keys["a"]. }}"#, UnknownForm),
        ] {
            assert_eq!(problem(source), want, "{source}");
        }
        assert_eq!(
            problem(&format!(r#"{{{{ keys["{}"].hex }}}}"#, "a".repeat(64))),
            NotAPlaceholder
        );
    }

    #[test]
    fn an_error_tells_the_place_and_not_the_source() {
        let error = Template::parse("first\nsecönd {{ hunter2 }}").unwrap_err();
        assert_eq!((error.line, error.column), (2, 8));
        assert!(!error.to_string().contains("hunter2"));
        assert!(error.to_string().starts_with("line 2, column 8: "));
    }

    #[test]
    fn names_and_previous_versions_are_checked_before_any_key_is_opened() {
        let (names, none) = (BTreeSet::from(["root"]), BTreeSet::new());
        let check = |source: &str| {
            let template = Template::parse(source).unwrap();
            template.check(&names, &none).map_err(|error| error.what)
        };
        assert_eq!(check(r#"{{ keys["root"].hex }}"#), Ok(()));
        assert_eq!(
            check(r#"{{ keys["rot"].hex }}"#),
            Err(TemplateProblem::UnknownKey)
        );
        assert_eq!(
            check(r#"{{ keys["root"].previous.hex }}"#),
            Err(TemplateProblem::NoPreviousVersion)
        );
        let template = Template::parse(r#"{{ keys["root"].previous.hex }}"#).unwrap();
        assert_eq!(template.check(&names, &names), Ok(()));
    }

    #[test]
    fn references_tell_what_is_asked_for() {
        let template =
            Template::parse(r#"{{ keys["a"].hex }}{{ keys["b"].previous.id }}"#).unwrap();
        let seen: Vec<_> = template.references().cloned().collect();
        assert_eq!(
            seen,
            [
                Reference {
                    key: "a".into(),
                    previous: false,
                    form: Form::Hex
                },
                Reference {
                    key: "b".into(),
                    previous: true,
                    form: Form::Id
                },
            ]
        );
    }

    #[test]
    fn only_utf8_depends_on_the_bytes() {
        let error = render(r#"x{{ keys["root"].utf8 }}"#).unwrap_err();
        assert_eq!(error.what, TemplateProblem::NotUtf8);
        assert_eq!((error.line, error.column), (1, 2));
        assert_eq!(
            render(r#"{{ keys["none"].hex }}"#).unwrap_err().what,
            TemplateProblem::UnknownKey
        );
        assert_eq!(
            render(r#"{{ keys["text"].previous.hex }}"#)
                .unwrap_err()
                .what,
            TemplateProblem::NoPreviousVersion
        );
    }

    #[test]
    fn source_and_output_are_bounded() {
        assert!(Template::parse(&"a".repeat(MAX_SOURCE)).is_ok());
        assert_eq!(
            problem(&"a".repeat(MAX_SOURCE + 1)),
            TemplateProblem::SourceTooLong
        );
        let bomb = r#"{{keys["a"].hex}}"#.repeat(MAX_SOURCE / 17);
        let big = vec![7; 64 * 1024];
        let error = Template::parse(&bomb)
            .unwrap()
            .render(|_, _| {
                Some(KeyView {
                    bytes: &big,
                    id: "a",
                })
            })
            .unwrap_err();
        assert_eq!(error.what, TemplateProblem::OutputTooLong);
        assert_eq!((error.line, error.column), (1, 2 * 17 + 1));
    }

    #[test]
    fn the_output_buffer_never_grows() {
        let out = Template::parse(r#"key = "{{ keys["a"].base64 }}" # {{ keys["a"].id }}"#)
            .unwrap()
            .render(|_, _| {
                Some(KeyView {
                    bytes: KEY,
                    id: "a-v1",
                })
            })
            .unwrap();
        assert_eq!(out.capacity(), out.len());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_text_survives(source in "[ -~\\n{}\\[\\]\"]{0,200}") {
            if let Ok(template) = Template::parse(&source)
                && template.references().next().is_none()
            {
                let out = template.render(|_, _| None).unwrap();
                prop_assert_eq!(out.as_slice(), source.as_bytes());
            }
        }

        #[test]
        fn a_place_lies_within_the_source(source in "[a-z{} \\n]{0,100}") {
            if let Err(error) = Template::parse(&source) {
                let line = source.split('\n').nth(error.line - 1).unwrap();
                prop_assert!(line.chars().skip(error.column - 1).collect::<String>().starts_with("{{"));
            }
        }
    }
}
