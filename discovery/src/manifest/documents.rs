//! A file's documents, each parsed by itself so that a bad one does not sink its neighbours.

use serde::Deserialize;
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter};

/// One document with its place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Document<'a> {
    text: &'a str,
    /// Line of the file at which `text` begins, from 1.
    pub(super) line: u32,
}

/// A line count as it stands in an error.
pub(super) fn line_number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// Splits a stream at its `---` markers (YAML 1.2.2 §9.1.2: at the beginning of a line, followed by white space or its end;
/// no scalar may hold one there). Documents of nothing but comments and directives are left out.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && offset > start {
            found.push(Document {
                text: &text[start..offset],
                line: start_line,
            });
            (start, start_line) = (offset, line_number(at + 1));
        }
        offset += line.len();
    }
    found.push(Document {
        text: &text[start..],
        line: start_line,
    });
    found.retain(Document::says_something);
    found
}

impl Document<'_> {
    fn says_something(&self) -> bool {
        self.text.lines().any(says_something)
    }

    /// The first line of the file that says something in this document.
    pub(super) fn first_line(&self) -> u32 {
        let before = self.text.lines().position(says_something).unwrap_or_default();
        self.line.saturating_add(line_number(before))
    }

    /// Parses the document, leaving out what `T` does not name. The error carries the line in the file.
    pub(super) fn parse<'de, T: Deserialize<'de>>(&'de self) -> Result<T, (u32, String)> {
        serde_saphyr::from_str(self.text).map_err(|error| {
            let line = match error.location().map(|location| location.line()) {
                None | Some(0) => self.first_line(),
                Some(line) => self
                    .line
                    .saturating_add(u32::try_from(line - 1).unwrap_or(u32::MAX)),
            };
            (
                line,
                DefaultMessageFormatter
                    .format_message(error.without_snippet())
                    .into_owned(),
            )
        })
    }
}

fn says_something(line: &str) -> bool {
    let bare = line.strip_prefix("---").unwrap_or(line).trim();
    !bare.is_empty() && !bare.starts_with('#') && !line.starts_with('%') && bare != "..."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_split_at_their_markers() {
        let table: &[(&str, &[(u32, u32)])] = &[
            ("", &[]),
            ("# only a comment\n---\n---\n", &[]),
            ("a: 1\n", &[(1, 1)]),
            ("---\na: 1\n---\nb: 2\n", &[(1, 2), (3, 4)]),
            ("a: 1\n---   \n# words\nb: 2", &[(1, 1), (2, 4)]),
            ("%YAML 1.2\n---\na: 1\n...\n", &[(2, 3)]),
            ("a: |\n  ---\n  ---x\n---x: 1\n", &[(1, 1)]),
            ("\u{feff}a: 1\r\n---\r\nb: 2\r\n", &[(1, 1), (2, 3)]),
            ("--- {a: 1}\n", &[(1, 1)]),
        ];
        for (text, expected) in table {
            let found: Vec<(u32, u32)> = split(text)
                .iter()
                .map(|found| (found.line, found.first_line()))
                .collect();
            assert_eq!(&found, expected, "{text:?}");
        }
    }
}
