//! The only place of the program that writes to standard output and standard error, logs aside.
//!
//! Reports go to standard output, everything said about them to standard error, so that a report can be piped. A reader
//! that goes away (`| head`) is no fault. Text from files is shown with its control characters escaped: a file must
//! not be able to drive the terminal that shows its errors.

use std::io::{self, Write};

use data_encoding::BASE64;
use serde_json::Value;
use zeroize::Zeroizing;

/// How a report is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Text to standard output.
pub(super) fn report(text: &str) {
    let _ = writeln!(io::stdout(), "{}", escaped(text.trim_end_matches('\n')));
}

/// JSON to standard output.
pub(super) fn json(value: &Value) {
    let _ = writeln!(io::stdout(), "{value:#}");
}

/// Something worth knowing, to standard error.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "note: {}", escaped(text));
}

/// Why the answer is no, to standard error.
pub(super) fn error(text: &str) {
    let _ = writeln!(io::stderr(), "error: {}", escaped(text));
}

/// Key bytes to standard output, and nothing else. The caller has made sure that it is no terminal.
pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
    // Straight to the descriptor: Rust's own standard output keeps a buffer that nobody wipes.
    let stdout = io::stdout().lock();
    let copy = std::os::fd::AsFd::as_fd(&stdout).try_clone_to_owned()?;
    std::fs::File::from(copy).write_all(bytes)
}

/// Key bytes to standard output as JSON, with the name of the key.
pub(super) fn named_bytes(name: &str, key: &[u8]) -> io::Result<()> {
    let (head, tail) = (
        format!("{{\"key\": {}, \"base64\": \"", Value::from(name)),
        "\"}\n",
    );
    // As large as it gets, so that it never moves and leaves a copy behind.
    let length = head.len() + BASE64.encode_len(key.len()) + tail.len();
    let mut text = Zeroizing::new(String::with_capacity(length));
    text.push_str(&head);
    BASE64.encode_append(key, &mut text);
    text.push_str(tail);
    bytes(text.as_bytes())
}

/// The text with control characters and the marks that reverse its direction as escapes, line ends and tabs aside.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let reverses =
            matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\n' && c != '\t') || reverses {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn a_file_cannot_drive_the_terminal() {
        assert_eq!(
            escaped("a\u{1b}[2Jb\r\u{7}\n\tc\u{202e}ü"),
            "a\\u{1b}[2Jb\\u{d}\\u{7}\n\tc\\u{202e}ü"
        );
    }
}
