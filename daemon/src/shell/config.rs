//! Strict TOML: what is not understood is refused, with the place and the nearest thing that would be.
//!
//! A configuration type derives `Deserialize` with `#[serde(deny_unknown_fields)]` on every struct; that is what makes
//! serde name the unknown key and those it knows.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::de::DeserializeOwned;

/// A configuration is written by a person; one above this size is some other file.
const MAX_BYTES: u64 = 1024 * 1024;

/// Where in which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File name, or what else the text came from.
    pub origin: String,
    /// Counts from 1.
    pub line: usize,
    /// Counts characters, from 1.
    pub column: usize,
}

/// What is wrong with a configuration, by what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Fix the path or the rights.
    #[error("cannot read configuration {}: {source}; check the path and that this user may read it", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a configuration.
    #[error("{} has more than the {MAX_BYTES} bytes of any configuration; is this the right file?", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Rename the key, or remove it.
    #[error("{place}: unknown {what} `{found}`{}", suggestion(.nearest.as_deref(), .known))]
    Unknown {
        /// Where.
        place: Place,
        /// `key`, or `value` where one of a list is expected.
        what: &'static str,
        /// What was written.
        found: String,
        /// What was probably meant.
        nearest: Option<String>,
        /// All that is understood here.
        known: Box<[String]>,
    },
    /// Fix the line.
    #[error("{place}: {message}")]
    Invalid {
        /// Where.
        place: Place,
        /// What is wrong.
        message: String,
    },
}

/// Reads and parses a file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    // One byte more than fits, so that what does not fit is seen.
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    parse(&text, &path.display().to_string())
}

/// Parses `text`; errors call it `origin`.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| explain(text, origin, &error))
}

fn explain(text: &str, origin: &str, error: &toml::de::Error) -> ConfigError {
    let place = Place::at(text, origin, error.span().map_or(0, |span| span.start));
    let message = error.message();
    match Unknown::parse(message) {
        Some(Unknown { what, found, known }) => {
            let nearest = nearest(&found, &known);
            ConfigError::Unknown {
                place,
                what,
                found,
                nearest,
                known,
            }
        }
        None => ConfigError::Invalid {
            place,
            message: message.trim_end().replace('\n', "; "),
        },
    }
}

impl Place {
    fn at(text: &str, origin: &str, offset: usize) -> Place {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        Place {
            origin: origin.to_owned(),
            line,
            column,
        }
    }
}

/// `tombolo.toml:3:1`, as editors and terminals understand it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.origin, self.line, self.column)
    }
}

/// What serde says about something that it does not know, taken apart. Its text is not an API but has been the same for
/// years; should it change, the raw message is shown instead (and a test fails).
struct Unknown {
    what: &'static str,
    found: String,
    known: Box<[String]>,
}

impl Unknown {
    fn parse(message: &str) -> Option<Unknown> {
        let (what, rest) = [("key", "unknown field "), ("value", "unknown variant ")]
            .into_iter()
            .find_map(|(what, prefix)| Some((what, message.strip_prefix(prefix)?)))?;
        let mut quoted = rest.split('`').skip(1).step_by(2).map(str::to_owned);
        let found = quoted.next()?;
        Some(Unknown {
            what,
            found,
            known: quoted.collect(),
        })
    }
}

fn suggestion(nearest: Option<&str>, known: &[String]) -> String {
    match (nearest, known) {
        (Some(nearest), _) => format!("; did you mean `{nearest}`?"),
        (None, []) => "; nothing can be set here, remove it".to_owned(),
        (None, known) => format!("; known here: {}", known.join(", ")),
    }
}

/// The known word with the fewest edits, if they are few for its length: one in three letters.
fn nearest(found: &str, known: &[String]) -> Option<String> {
    let (edits, word) = known
        .iter()
        .map(|word| (edit_distance(found, word), word))
        .min()?;
    let tolerated = found.chars().count().max(word.chars().count()).div_ceil(3);
    (edits <= tolerated).then(|| word.clone())
}

/// Insertions, deletions and replacements that turn `from` into `to` (Levenshtein); `-` and `_` are the same, and so
/// are upper and lower case.
fn edit_distance(from: &str, to: &str) -> usize {
    let fold = |text: &str| -> Vec<char> {
        text.chars()
            .map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() })
            .collect()
    };
    let (from, to) = (fold(from), fold(to));
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests;
