//! The text around the bytes: blocks, the headers of RFC 1421, base64.

use data_encoding::BASE64;
use zeroize::Zeroizing;

/// `-----BEGIN label-----`, a body, `-----END label-----`.
pub(super) struct Block<'a> {
    pub(super) label: &'a [u8],
    /// `None` = the line at the end is missing, or has another label.
    pub(super) body: Option<&'a [u8]>,
}

/// The blocks of a text, each wherever it starts: YAML indents, and some people have everything on one line.
pub(super) fn blocks(text: &[u8]) -> impl Iterator<Item = Block<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = split(rest, b"-----BEGIN ")?;
        let (label, after) = split(after, b"-----")?;
        // The next dashes are the end of this block or the start of another: every byte is looked at a bounded
        // number of times, whatever the text is.
        let body = split(after, b"-----").and_then(|(body, end)| {
            let closed = end.strip_prefix(b"END ")?.strip_prefix(label)?;
            closed.starts_with(b"-----").then_some((body, closed))
        });
        rest = body.map_or(after, |(_, closed)| closed);
        Some(Block {
            label,
            body: body.map(|(body, _)| body),
        })
    })
}

/// What stands before and after the first occurrence of a mark.
fn split<'a>(text: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text.windows(mark.len()).position(|window| window == mark)?;
    let (before, rest) = text.split_at(at);
    Some((before, rest.split_at(mark.len()).1))
}

/// The headers that OpenSSL's old encryption writes before the base64.
#[derive(Default)]
pub(super) struct Headers<'a> {
    /// `Proc-Type: 4,ENCRYPTED`
    pub(super) encrypted: bool,
    /// `DEK-Info: AES-128-CBC,` and an initialization vector in hex; empty when there is none.
    pub(super) dek_info: &'a [u8],
}

/// Splits the headers from the base64, which has no colon.
pub(super) fn headers(body: &[u8]) -> (Headers<'_>, &[u8]) {
    let mut found = Headers::default();
    let mut rest = body.trim_ascii_start();
    loop {
        let end = rest
            .iter()
            .position(|byte| b"\r\n".contains(byte))
            .unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        let Some((name, value)) = split(line, b":") else {
            return (found, rest);
        };
        if name.trim_ascii().eq_ignore_ascii_case(b"Proc-Type") {
            found.encrypted = split(value, b"ENCRYPTED").is_some();
        } else if name.trim_ascii().eq_ignore_ascii_case(b"DEK-Info") {
            found.dek_info = value.trim_ascii();
        }
        rest = after.trim_ascii_start();
    }
}

/// Decodes base64 whose lines have any width. `None` = it is none, or it is empty.
pub(super) fn base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut digits = Zeroizing::new(Vec::with_capacity(text.len()));
    digits.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; BASE64.decode_len(digits.len()).ok()?]);
    let length = BASE64.decode_mut(&digits, &mut bytes).ok()?;
    bytes.truncate(length);
    (!bytes.is_empty()).then_some(bytes)
}
