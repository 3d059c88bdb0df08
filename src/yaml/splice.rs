//! One value of a file in the place of another, and not a byte of the rest touched.
//!
//! The parser tells values and no places, so the place is looked for by indentation and brackets. That may find the wrong
//! one in text that is odd enough; so what comes out is parsed again, and is taken only if exactly that one value changed.

use std::ops::Range;

use serde_json::Value;

use super::{YamlError, documents, print, scan::document_mark};

/// A step into a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Into a mapping.
    Name(&'a str),
    /// Into a list.
    Index(usize),
}

/// Replaces a value that is a list or mapping. `document` counts as [`documents`] does.
///
/// # Errors
/// [`YamlError::NoPlace`] where the place is not found; what [`documents`] says of the text.
pub fn replace(text: &str, document: usize, path: &[Step<'_>], value: &Value) -> Result<String, YamlError> {
    let before = documents(text)?;
    let mut wanted = before;
    *wanted
        .get_mut(document)
        .and_then(|node| at(node, path))
        .ok_or(YamlError::NoPlace)? = value.clone();
    let range = part(text, document)?.ok_or(YamlError::NoPlace)?;
    let place = find(text, range, path).ok_or(YamlError::NoPlace)?;
    let new = match place.column {
        None => value.to_string(),
        Some(column) => block(text, &print(value)?, column),
    };
    let mut out = String::with_capacity(text.len() + new.len());
    out.push_str(&text[..place.range.start]);
    out.push_str(&new);
    out.push_str(&text[place.range.end..]);
    match documents(&out) {
        Ok(found) if found == wanted => Ok(out),
        Ok(_) | Err(_) => Err(YamlError::NoPlace),
    }
}

fn at<'v>(mut node: &'v mut Value, path: &[Step<'_>]) -> Option<&'v mut Value> {
    for step in path {
        node = match step {
            Step::Name(name) => node.get_mut(*name)?,
            Step::Index(index) => node.get_mut(*index)?,
        };
    }
    Some(node)
}

/// The lines of a block, indented like those that they replace, and ended as the file's are.
fn block(text: &str, printed: &str, column: usize) -> String {
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let indent = " ".repeat(column);
    let lines = printed.trim_end().lines().enumerate();
    // The first line's indent stays where it is.
    let lines = lines.map(|(number, line)| {
        if number == 0 {
            line.to_owned()
        } else {
            format!("{indent}{line}")
        }
    });
    lines.collect::<Vec<_>>().join(end)
}

/// Where in the text a document stands, without the marks around it.
fn part(text: &str, document: usize) -> Result<Option<Range<usize>>, YamlError> {
    let mut parts = Vec::new();
    let mut start = 0;
    for line in lines(text, 0..text.len()) {
        let chars: Vec<char> = text[line.clone()].chars().take(4).collect();
        if document_mark(&chars) {
            parts.push(start..line.start);
            start = line.start + 3;
        }
    }
    parts.push(start..text.len());
    let mut left = document;
    for part in parts {
        if documents(&text[part.clone()])?.is_empty() {
            continue;
        }
        if left == 0 {
            return Ok(Some(part));
        }
        left -= 1;
    }
    Ok(None)
}

/// The lines of a range, without their ends.
fn lines(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut start = range.start;
    for (offset, _) in text[range.clone()].match_indices('\n') {
        out.push(start..range.start + offset);
        start = range.start + offset + 1;
    }
    out.push(start..range.end);
    for line in &mut out {
        if text[line.clone()].ends_with('\r') {
            line.end -= 1;
        }
    }
    out
}

struct Place {
    range: Range<usize>,
    /// `None` = between brackets.
    column: Option<usize>,
}

fn find(text: &str, range: Range<usize>, path: &[Step<'_>]) -> Option<Place> {
    let lines = lines(text, range);
    let blocks = Blocks { text, lines: &lines };
    let first = blocks.content_from(0)?;
    blocks.find(first, blocks.indent(first), path)
}

/// Text by lines and indentation.
struct Blocks<'t> {
    text: &'t str,
    lines: &'t [Range<usize>],
}

impl Blocks<'_> {
    fn line(&self, number: usize) -> &str {
        &self.text[self.lines[number].clone()]
    }

    fn indent(&self, number: usize) -> usize {
        let line = self.line(number);
        line.len() - line.trim_start_matches(' ').len()
    }

    /// The next line that is neither empty nor a comment.
    fn content_from(&self, number: usize) -> Option<usize> {
        (number..self.lines.len()).find(|number| {
            let line = self.line(*number).trim();
            !line.is_empty() && !line.starts_with('#')
        })
    }

    /// The node that begins on that line at that column.
    fn find(&self, line: usize, column: usize, path: &[Step<'_>]) -> Option<Place> {
        let rest = self.line(line).get(column..)?;
        if rest.starts_with(['{', '[']) {
            let range = brackets(self.text, self.lines[line].start + column, path)?;
            return Some(Place { range, column: None });
        }
        let Some((step, path)) = path.split_first() else {
            return self.whole(line, column);
        };
        let mut number = line;
        let mut left = 0;
        loop {
            let own = if number == line {
                column
            } else {
                self.indent(number)
            };
            if own < column {
                return None;
            }
            let content = self.line(number).get(own..)?;
            if own == column {
                match (step, after_dash(content)) {
                    (Step::Index(index), Some(skip)) if *index == left => {
                        return self.value(number, column + skip, column, path);
                    }
                    (Step::Index(_), Some(_)) => left += 1,
                    (Step::Index(_), None) => return None,
                    // The list of the name above.
                    (Step::Name(_), Some(_)) => {}
                    (Step::Name(name), None) => {
                        if let Some(skip) = after_name(content, name) {
                            return self.value(number, column + skip, column, path);
                        }
                    }
                }
            }
            number = self.content_from(number + 1)?;
        }
    }

    /// What stands behind a dash or a name: on the same line, or from the next one on.
    fn value(&self, line: usize, column: usize, parent: usize, path: &[Step<'_>]) -> Option<Place> {
        let rest = self.line(line).get(column..)?;
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        let content = rest.trim_start_matches(' ');
        if !content.is_empty() && !content.starts_with('#') {
            return self.find(line, column + spaces, path);
        }
        let next = self.content_from(line + 1)?;
        let indent = self.indent(next);
        let is_list = after_dash(self.line(next).get(indent..)?).is_some();
        (indent > parent || (indent == parent && is_list)).then(|| self.find(next, indent, path))?
    }

    /// The whole of a list or mapping that has its lines for itself.
    fn whole(&self, line: usize, column: usize) -> Option<Place> {
        if !self.line(line).get(..column)?.trim().is_empty() {
            return None;
        }
        let is_list = after_dash(self.line(line).get(column..)?).is_some();
        let (mut last, mut number) = (line, line);
        while let Some(next) = self.content_from(number + 1) {
            let indent = self.indent(next);
            let dash = self.line(next).get(indent..).and_then(after_dash).is_some();
            if indent < column || (indent == column && is_list && !dash) {
                break;
            }
            (last, number) = (next, next);
        }
        Some(Place {
            range: self.lines[line].start + column..self.lines[last].end,
            column: Some(column),
        })
    }
}

/// The length of a list's dash.
fn after_dash(content: &str) -> Option<usize> {
    let rest = content.strip_prefix('-')?;
    (rest.is_empty() || rest.starts_with(' ')).then_some(1)
}

/// The length of a name and its colon.
fn after_name(content: &str, name: &str) -> Option<usize> {
    let rest = ["\"", "'", ""].into_iter().find_map(|quote| {
        let rest = content.strip_prefix(quote)?.strip_prefix(name)?;
        rest.strip_prefix(quote)?
            .trim_start_matches(' ')
            .strip_prefix(':')
    })?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| content.len() - rest.len())
}

/// The value at a path into brackets or braces that open here.
fn brackets(text: &str, open: usize, path: &[Step<'_>]) -> Option<Range<usize>> {
    let flow = Flow(text.as_bytes());
    let Some((step, path)) = path.split_first() else {
        return Some(open..flow.end(open)?);
    };
    let mut at = flow.skip(open + 1);
    let mut left = 0;
    loop {
        if matches!(flow.0.get(at)?, b'}' | b']') {
            return None;
        }
        let found = match step {
            Step::Index(index) => {
                let found = left == *index;
                left += 1;
                found
            }
            Step::Name(name) => {
                let end = flow.end(at)?;
                let found = text.get(at..end)?.trim_matches(['"', '\'']) == *name;
                at = flow.skip(end);
                if *flow.0.get(at)? != b':' {
                    return None;
                }
                at = flow.skip(at + 1);
                found
            }
        };
        if found {
            let is_open = matches!(flow.0.get(at)?, b'{' | b'[');
            return is_open.then(|| brackets(text, at, path))?;
        }
        at = flow.skip(flow.end(at)?);
        if *flow.0.get(at)? == b',' {
            at = flow.skip(at + 1);
        }
    }
}

/// Text between brackets. What is looked for is ASCII, which is never part of another character in UTF-8.
struct Flow<'t>(&'t [u8]);

impl Flow<'_> {
    /// Past spaces, line ends and comments.
    fn skip(&self, mut at: usize) -> usize {
        while let Some(byte) = self.0.get(at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => at += 1,
                b'#' if self.is_comment(at) => at = self.end_of_line(at),
                _ => break,
            }
        }
        at
    }

    fn is_comment(&self, at: usize) -> bool {
        at == 0 || self.0[at - 1].is_ascii_whitespace()
    }

    fn end_of_line(&self, at: usize) -> usize {
        let rest = self.0[at..].iter().position(|byte| *byte == b'\n');
        rest.map_or(self.0.len(), |length| at + length)
    }

    /// The end of the value that begins here.
    fn end(&self, start: usize) -> Option<usize> {
        match self.0.get(start)? {
            quote @ (b'"' | b'\'') => self.end_of_quote(start + 1, *quote),
            b'{' | b'[' => {
                let (mut at, mut depth) = (start, 0_usize);
                loop {
                    match self.0.get(at)? {
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => {
                            depth -= 1;
                            if depth == 0 {
                                return Some(at + 1);
                            }
                        }
                        quote @ (b'"' | b'\'') if self.begins(at) => {
                            at = self.end_of_quote(at + 1, *quote)?;
                            continue;
                        }
                        b'#' if self.is_comment(at) => {
                            at = self.end_of_line(at);
                            continue;
                        }
                        _ => {}
                    }
                    at += 1;
                }
            }
            _ => {
                let ends = |at: &usize| match self.0[*at] {
                    b',' | b'}' | b']' | b'\n' => true,
                    b':' => self.0.get(at + 1).is_none_or(u8::is_ascii_whitespace),
                    _ => false,
                };
                let end = (start..self.0.len()).find(ends)?;
                let trimmed = self.0[start..end].trim_ascii_end();
                Some(start + trimmed.len())
            }
        }
    }

    /// Whether a quote opens a scalar here, and is not part of one.
    fn begins(&self, at: usize) -> bool {
        matches!(self.0[at - 1], b'{' | b'[' | b',' | b':') || self.0[at - 1].is_ascii_whitespace()
    }

    fn end_of_quote(&self, mut at: usize, quote: u8) -> Option<usize> {
        loop {
            match *self.0.get(at)? {
                b'\\' if quote == b'"' => at += 2,
                b'\'' if quote == b'\'' && self.0.get(at + 1) == Some(&b'\'') => at += 2,
                byte if byte == quote => return Some(at + 1),
                _ => at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PATH: [Step<'static>; 4] = [
        Step::Name("spec"),
        Step::Name("keys"),
        Step::Index(1),
        Step::Name("wrapped"),
    ];

    fn new() -> Value {
        json!([{"inline": "NEW=", "seal": "aws"}, {"inline": "ZWE=", "seal": "oci"}])
    }

    const FILE: &str = "\
# A head, with spec: in it
apiVersion: v1   # spec: {}
metadata:
  name: a
  annotations:
    note: |
      spec:
        keys:
        - wrapped: []
spec:  # what is wanted

  seals: [{name: aws, note: 'it''s ] {'}]
  keys:
  # the first
  - name: a
    wrapped:
    - {seal: aws, inline: QQ==}
  - wrapped:   # the copies
      # by hand
      - seal: aws
        inline: >-
          QUFB
          QUFB

      - seal: old
        inline: QkI=
    # of the second
    name: b
# the end
";

    #[test]
    fn only_the_list_changes() {
        let out = replace(FILE, 0, &PATH, &new()).unwrap();
        let (head, tail) = (
            FILE.find("      - seal: aws\n").unwrap(),
            FILE.find("\n    # of the second").unwrap(),
        );
        let list = "      - inline: NEW=\n        seal: aws\n      - inline: ZWE=\n        seal: oci";
        assert_eq!(out, format!("{}{list}{}", &FILE[..head], &FILE[tail..]));
    }

    #[test]
    fn a_list_at_the_column_of_its_name_and_windows_line_ends_stay() {
        let text = "spec:\r\n  keys:\r\n  - name: a\r\n  - name: b # x\r\n    wrapped:\r\n    - seal: x\r\n      inline: eA==\r\n    purpose: other\r\n";
        let out = replace(text, 0, &PATH, &new()).unwrap();
        assert_eq!(
            out,
            "spec:\r\n  keys:\r\n  - name: a\r\n  - name: b # x\r\n    wrapped:\r\n    - inline: NEW=\r\n      seal: aws\r\n    - inline: ZWE=\r\n      seal: oci\r\n    purpose: other\r\n"
        );
    }

    #[test]
    fn brackets_and_json_are_replaced_in_place() {
        let list = new().to_string();
        for (before, after) in [
            (
                "spec: {keys: [{name: a}, {'name': \"b ]\", # x ]\n  wrapped: ",
                ", z: 1}]} # end\n",
            ),
            ("spec:\n  keys:\n  - name: a\n  - {name: b, wrapped: ", "}\n"),
            (
                "spec:\n  keys:\n  - name: a\n  - name: b\n    wrapped: ",
                "   # c\n",
            ),
            (
                "{\n  \"spec\": {\"keys\": [\n    {\"name\": \"a\"},\n    {\"wrapped\": ",
                "}\n  ]}\n}\n",
            ),
        ] {
            let old = "[{\"seal\": \"x\", \"inline\": \"eA==\"}]";
            let out = replace(&format!("{before}{old}{after}"), 0, &PATH, &new()).unwrap();
            assert_eq!(out, format!("{before}{list}{after}"));
        }
    }

    #[test]
    fn the_document_is_the_one_that_is_meant() {
        let one = "spec:\n  keys:\n  - name: a\n  - wrapped:\n    - seal: x\n";
        let text = format!("# nothing\n---\na: 1\n---\n{one}---\n{one}");
        let out = replace(&text, 2, &PATH, &new()).unwrap();
        assert!(out.starts_with(&format!("# nothing\n---\na: 1\n---\n{one}---\n")));
        assert!(out.contains("NEW="));
        let list = "kind: List\nitems:\n- spec:\n    keys: [{}, {wrapped: [x]}]\n";
        let path: Vec<_> = [Step::Name("items"), Step::Index(0)]
            .into_iter()
            .chain(PATH)
            .collect();
        assert!(replace(list, 0, &path, &new()).unwrap().contains("NEW="));
    }

    #[test]
    fn what_is_not_found_is_refused() {
        for text in [
            "spec:\n  keys:\n  - name: a\n",
            "spec:\n  keys:\n  - a\n  - wrapped: scalar\n",
            "? spec\n: keys: [{}, {wrapped: [a]}]\n",
        ] {
            assert_eq!(replace(text, 0, &PATH, &new()), Err(YamlError::NoPlace), "{text}");
        }
        assert_eq!(replace("a: 1", 1, &PATH, &new()), Err(YamlError::NoPlace));
    }

    proptest! {
        /// Whatever the text: nothing panics, and what comes out differs in that one value.
        #[test]
        fn odd_text_is_refused_or_right(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "spec:", "spec", "keys:", "wrapped:", "\n", "\n", "\n  ", "\n  - ", "\n    ", "- ", " ", "{", "}", "[", "]",
                    ",", "'", "\"", "#", " # ", "a", "a: b", ": ", "---\n", "|", ">-\n", "ü", "\r\n", "\t", "\\",
                ]),
                1..32,
            ),
        ) {
            let text: String = parts.concat();
            for path in [&PATH[..2], &PATH[..]] {
                if let Ok(out) = replace(&text, 0, path, &new()) {
                    let mut wanted = documents(&text).unwrap();
                    *at(&mut wanted[0], path).unwrap() = new();
                    prop_assert_eq!(documents(&out).unwrap(), wanted);
                }
            }
        }
    }
}
