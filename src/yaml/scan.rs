//! Finds anchors, aliases, tags and directives in a text before any parser expands them.
//!
//! serde_yaml resolves aliases by itself and tells nobody. This scanner follows just enough of YAML to know where a
//! node may begin: quotes, block scalars, comments and plain scalars hide `&` and `*`, everything else shows them. Where
//! it is in doubt it refuses, so that a doubtful text must be quoted. A test compares it with the parser itself.

use super::YamlError;

/// Levels of `[` and `{` in each other: the parser's time grows with their square.
const MAX_FLOW: usize = 64;
/// Blocks in each other; the parser itself gives up at 128.
const MAX_BLOCKS: usize = 128;

pub(super) fn scan(text: &str) -> Result<(), YamlError> {
    let mut scanner = Scanner::default();
    // What the parser takes for the end of a line ends a line here too.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    for (number, line) in text.split('\n').enumerate() {
        let chars: Vec<char> = line.chars().collect();
        scanner
            .line(&chars)
            .map_err(|(column, what)| YamlError::Refused {
                line: number + 1,
                column: column + 1,
                what,
            })?;
    }
    Ok(())
}

const ANCHOR: &str = "anchors and aliases are not taken; write the value out, or quote it if it is text";
const TAG: &str = "tags are not taken; write the value without it, or quote it if it is text";
const DIRECTIVE: &str = "directives are not taken; remove the line";
const NESTING: &str = "too many levels in each other";
const BREAK: &str = "this character is not taken outside of escapes; write it as an escape in double quotes";

type Refusal = (usize, &'static str);

#[derive(Default)]
struct Scanner {
    flow: usize,
    inside: Inside,
    /// Columns of the blocks that are open, innermost last.
    blocks: Vec<isize>,
    /// A plain scalar went on to the end of the line before; its block stands at this column.
    plain_above: Option<isize>,
}

#[derive(Default)]
enum Inside {
    #[default]
    Nothing,
    Single,
    Double,
    /// Lines of a block scalar, which are indented by more than `parent`, all as much as the first of them.
    Block {
        parent: isize,
        content: Option<isize>,
    },
}

impl Scanner {
    fn line(&mut self, line: &[char]) -> Result<(), Refusal> {
        if let Some(at) = line
            .iter()
            .position(|c| matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}'))
        {
            return Err((at, BREAK));
        }
        let mut at = 0;
        if let Inside::Single | Inside::Double = self.inside {
            match self.quoted(line, 0) {
                Some(end) => at = end,
                None => return Ok(()),
            }
            return self.nodes(line, at, None);
        }
        if document_mark(line) {
            *self = Self::default();
            at = 3;
            return self.nodes(line, at, Some(-1));
        }
        let spaces = line.iter().take_while(|c| **c == ' ').count();
        let indent = signed(spaces);
        let blank = line.iter().all(|c| *c == ' ' || *c == '\t');
        if let Inside::Block { parent, content } = &mut self.inside {
            if line.len() == spaces {
                return Ok(());
            }
            let least = *content.get_or_insert(indent);
            if least > *parent && indent >= least {
                return Ok(());
            }
            self.inside = Inside::Nothing;
        }
        if blank {
            return Ok(());
        }
        if line.first() == Some(&'%') {
            return Err((0, DIRECTIVE));
        }
        if let Some(block) = self.plain_above.take()
            && (self.flow > 0 || indent > block)
            && line[spaces] != '#'
        {
            return self.plain(line, spaces, block);
        }
        self.nodes(line, at, None)
    }

    /// A block begins, or goes on, at this column: deeper ones have ended. Brackets know no columns.
    fn open(&mut self, at: usize) -> Result<Option<isize>, Refusal> {
        let column = signed(at);
        if self.flow == 0 {
            while self.blocks.last().is_some_and(|block| *block >= column) {
                self.blocks.pop();
            }
            self.blocks.push(column);
        }
        if self.blocks.len() > MAX_BLOCKS {
            return Err((at, NESTING));
        }
        Ok(Some(column))
    }

    /// The block around a node that stands alone on its line. The parser lets it stand at the block's own column.
    fn around(&self, column: isize) -> isize {
        let inner = self.blocks.iter().rev().find(|block| **block <= column);
        inner.copied().unwrap_or(-1)
    }

    /// Goes through a line from a place where a node may begin. `block` is the column of the innermost block that this
    /// line opened so far, if it opened one.
    fn nodes(&mut self, line: &[char], mut at: usize, mut block: Option<isize>) -> Result<(), Refusal> {
        self.plain_above = None;
        let mut node = at;
        while at < line.len() {
            let space_after = line.get(at + 1).is_none_or(|c| *c == ' ' || *c == '\t');
            match line[at] {
                ' ' | '\t' => at += 1,
                '#' if at == 0 || matches!(line[at - 1], ' ' | '\t') => return Ok(()),
                '&' | '*' => return Err((at, ANCHOR)),
                '!' => return Err((at, TAG)),
                '[' | '{' => {
                    self.flow += 1;
                    if self.flow > MAX_FLOW {
                        return Err((at, NESTING));
                    }
                    at += 1;
                }
                ']' | '}' => {
                    self.flow = self.flow.saturating_sub(1);
                    at += 1;
                }
                ',' if self.flow > 0 => at += 1,
                ':' if self.flow > 0 || space_after => {
                    block = self.open(node)?;
                    at += 1;
                }
                '-' | '?' if space_after => {
                    block = self.open(at)?;
                    at += 1;
                }
                quote @ ('"' | '\'') => {
                    node = at;
                    self.inside = if quote == '"' {
                        Inside::Double
                    } else {
                        Inside::Single
                    };
                    match self.quoted(line, at + 1) {
                        Some(end) => at = end,
                        None => return Ok(()),
                    }
                }
                '|' | '>' if self.flow == 0 => {
                    return self.block_header(line, at, block);
                }
                _ => {
                    let parent = block.unwrap_or_else(|| self.around(signed(at)));
                    node = at;
                    return self.plain_from(line, at, node, parent);
                }
            }
        }
        Ok(())
    }

    fn plain_from(&mut self, line: &[char], start: usize, node: usize, parent: isize) -> Result<(), Refusal> {
        match self.end_of_plain(line, start)? {
            End::Line => {
                self.plain_above = Some(parent);
                Ok(())
            }
            End::Comment => Ok(()),
            End::Value(at) => {
                // The plain scalar was a name: its column is that of a block mapping.
                self.open(node)?;
                self.after_value(line, at, signed(node))
            }
            End::Flow(at) => self.nodes(line, at, Some(parent)),
        }
    }

    /// Goes on with a plain scalar that began on a line above.
    fn plain(&mut self, line: &[char], at: usize, parent: isize) -> Result<(), Refusal> {
        match self.end_of_plain(line, at)? {
            End::Line => {
                self.plain_above = Some(parent);
                Ok(())
            }
            End::Comment => Ok(()),
            End::Value(at) | End::Flow(at) => self.nodes(line, at, Some(parent)),
        }
    }

    fn after_value(&mut self, line: &[char], at: usize, block: isize) -> Result<(), Refusal> {
        let mut next = at;
        while line.get(next).is_some_and(|c| *c == ' ' || *c == '\t') {
            next += 1;
        }
        match line.get(next) {
            Some('|' | '>') if self.flow == 0 => self.block_header(line, next, Some(block)),
            Some('"' | '\'' | '[' | '{' | '&' | '*' | '!' | '#') | None => {
                self.nodes(line, next, Some(block))
            }
            Some(_) if self.flow > 0 => self.nodes(line, next, Some(block)),
            Some('-' | '?' | ':') if line.get(next + 1).is_none_or(|c| *c == ' ' || *c == '\t') => {
                self.nodes(line, next, Some(block))
            }
            Some(_) => self.plain_from(line, next, next, block),
        }
    }

    fn end_of_plain(&self, line: &[char], start: usize) -> Result<End, Refusal> {
        let mut at = start;
        while at < line.len() {
            let next = line.get(at + 1);
            match line[at] {
                '#' if at > 0 && matches!(line[at - 1], ' ' | '\t') => return Ok(End::Comment),
                ':' if next.is_none_or(|c| *c == ' ' || *c == '\t') => {
                    return Ok(End::Value(at + 1));
                }
                ':' if self.flow > 0 && next.is_some_and(|c| ",?[]{}".contains(*c)) => {
                    return Ok(End::Flow(at + 1));
                }
                ':' if self.flow > 0 && next.is_some_and(|c| "&*!".contains(*c)) => {
                    return Err((at + 1, ANCHOR));
                }
                ',' | '[' | ']' | '{' | '}' if self.flow > 0 => return Ok(End::Flow(at)),
                _ => at += 1,
            }
        }
        Ok(End::Line)
    }

    /// The place after the closing quote, if it is on this line.
    fn quoted(&mut self, line: &[char], mut at: usize) -> Option<usize> {
        let double = matches!(self.inside, Inside::Double);
        while at < line.len() {
            match (line[at], double) {
                ('\\', true) => at += 2,
                ('\'', false) if line.get(at + 1) == Some(&'\'') => at += 2,
                ('"', true) | ('\'', false) => {
                    self.inside = Inside::Nothing;
                    return Some(at + 1);
                }
                _ => at += 1,
            }
        }
        None
    }

    fn block_header(&mut self, line: &[char], at: usize, block: Option<isize>) -> Result<(), Refusal> {
        let parent = block.unwrap_or_else(|| self.around(signed(at)));
        let mut rest = &line[at + 1..];
        let mut content = None;
        while let Some((c, more)) = rest.split_first() {
            match c {
                '+' | '-' => {}
                '1'..='9' => {
                    let digit = c.to_digit(10).and_then(|d| isize::try_from(d).ok());
                    content = digit.map(|d| parent.max(0) + d);
                }
                _ => break,
            }
            rest = more;
        }
        let comment = rest.iter().position(|c| *c == '#').unwrap_or(rest.len());
        if let Some(odd) = rest[..comment].iter().position(|c| *c != ' ' && *c != '\t') {
            // No header: the parser will say so. Until then nothing is hidden.
            return self.nodes(line, line.len() - rest.len() + odd, Some(parent));
        }
        self.inside = Inside::Block { parent, content };
        Ok(())
    }
}

enum End {
    Line,
    Comment,
    /// `: `, after which a value begins.
    Value(usize),
    /// A bracket, brace or comma.
    Flow(usize),
}

/// `---` or `...` at the beginning of a line.
pub(super) fn document_mark(line: &[char]) -> bool {
    (line.starts_with(&['-', '-', '-']) || line.starts_with(&['.', '.', '.']))
        && line.get(3).is_none_or(|c| *c == ' ' || *c == '\t')
}

fn signed(column: usize) -> isize {
    isize::try_from(column).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_may_hold_ampersands_and_stars() {
        for text in [
            "a: b & c * d",
            "a: b&c *d",
            "# &a *b !c\na: 1 # &a",
            "a: '&a *b !t ''&c'' '\nb: \"&a \\\" *b\"",
            "a: |\n  &a\n  *b\n\n  !t\nb: >-\n    &x\n    y\nc: 1",
            "- a: |\n    &x\n  b: 1",
            "- |\n &x\n- >+2\n   *y\n",
            "a: b\n  &c *d\nc: d",
            "a:\n  - 'x\n    &y'\n  - z",
            "{a: 'b, &c', \"d\":\"*e\"}",
            "--- |\n&x\n---\na: 1",
            "a: https://x/y?z=*&w=1",
            "a: http://x:80/*",
        ] {
            assert_eq!(scan(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn anchors_aliases_tags_and_directives_are_refused() {
        for text in [
            "&a b",
            "a: &a b",
            "a: *a",
            "- *a",
            "-\t*a",
            "- - &a x",
            "[*a]",
            "[x,*a]",
            "{a: *a}",
            "{\"a\":*a}",
            "{a:*a}",
            "? *a\n: b",
            "*a : b",
            "a:\n  &x b: c",
            "- a: |\n    t\n  b: &x 1",
            "a: |\n  t\nb: *x",
            "a: |\nb: *x",
            "a: >2\n    t\n *x",
            "a: b # '\nc: *x # '",
            "a: it's\nc: *x\nd: it's",
            "a: b\n\n&x c: d",
            "a: b\n  'c\nd: *x\ne: 'f'",
            "a: 'b'\nc: *x",
            "--- &a\nb: 1",
            "--- *a",
            "a: !t b",
            "a: !!binary b",
            "%YAML 1.2\n---\na: 1",
            "a: b\rc: *x",
            "# \u{85}a: *x",
            "\u{feff}a: *x",
            "a: x # y\n  &b z: 1",
            "k: \n|\n\\: &a x",
        ] {
            assert!(scan(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_place_is_told() {
        assert_eq!(
            scan("a: 1\nb:  *x"),
            Err(YamlError::Refused {
                line: 2,
                column: 5,
                what: ANCHOR
            })
        );
    }

    fn parse(text: &str) -> Option<Vec<serde_yaml::Value>> {
        serde_yaml::Deserializer::from_str(text)
            .map(|d| <serde_yaml::Value as serde::Deserialize>::deserialize(d).ok())
            .collect()
    }

    fn plain(text: &str) -> String {
        text.replace(['&', '*'], "Q")
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        /// The parser is the judge: where `&` and `*` are nothing but text, writing another letter for them changes that
        /// text and nothing else.
        #[test]
        fn what_passes_holds_no_anchor_and_no_alias(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "&", "*", "&a ", "*a", "a", "b", ": ", ":", "- ", "-", "? ", "\n", "\n", "\n  ", "\n ", "\n    ", " ",
                    "'", "\"", "|", ">", "|\n", ">-\n", "|2\n", "#", " #", "[", "]", "{", "}", ",", "\\", "\t", "---\n", "...\n", "%",
                    "a: &a b\n", "c: *a\n", "k: ", "\r", "k: |\n  ",
                ]),
                1..24,
            ),
        ) {
            let text: String = parts.concat();
            if scan(&text).is_ok() && let Some(parsed) = parse(&text) {
                let other = parse(&plain(&text)).map(|v| format!("{v:?}"));
                prop_assert_eq!(Some(plain(&format!("{parsed:?}"))), other, "{:?}", text);
            }
        }
    }
}
