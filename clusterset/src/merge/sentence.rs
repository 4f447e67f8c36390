//! Sentences about disagreements: who wins, who loses, with which values. Bounded whatever the clusters publish.

use super::MESSAGE_MAX;
use crate::name::ClusterId;

/// Losing values and clusters named in one sentence; the rest is counted. An operator fixes the first ones first.
const NAMED_MAX: usize = 4;

/// Bytes of one value (label sets are the user's and may be long).
const VALUE_MAX: usize = 96;

/// What one cluster says about a property.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) cluster: &'a ClusterId,
    value: String,
}

impl<'a> Claim<'a> {
    pub(super) fn new(cluster: &'a ClusterId, value: String) -> Self {
        Self { cluster, value }
    }
}

/// `SUBJECT is V in WINNER (oldest, wins) but W in A, B and X in C`; None when all claims equal the first, which wins.
/// `oldest` is false when the winner is not the oldest export of the service, only the oldest with this claim.
pub(super) fn disagreement(subject: &str, oldest: bool, claims: &[Claim<'_>]) -> Option<String> {
    let (winner, others) = claims.split_first()?;
    let losers: Vec<&Claim<'_>> = others
        .iter()
        .filter(|claim| claim.value != winner.value)
        .collect();
    if losers.is_empty() {
        return None;
    }
    let named: Vec<String> = losers
        .iter()
        .take(NAMED_MAX)
        .map(|claim| format!("{} in {}", bounded(&claim.value, VALUE_MAX), claim.cluster))
        .collect();
    let age = if oldest { "oldest" } else { "older" };
    let more = match losers.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let value = bounded(&winner.value, VALUE_MAX);
    Some(format!(
        "{subject} is {value} in {} ({age}, wins) but {}{more}",
        winner.cluster,
        named.join(", ")
    ))
}

/// Some clusters of `all` by name, the rest by number: `a, b and 3 more`.
pub(super) fn clusters_text(clusters: &[&ClusterId]) -> String {
    let named: Vec<&str> = clusters
        .iter()
        .take(NAMED_MAX)
        .map(|cluster| cluster.as_str())
        .collect();
    match clusters.len().saturating_sub(NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Joins sentences into one message of at most [`MESSAGE_MAX`] bytes, counting what does not fit.
pub(super) fn joined(sentences: &[String]) -> String {
    let mut message = String::new();
    for (at, sentence) in sentences.iter().enumerate() {
        // Room for "; and NNNNN more" behind whatever is written.
        if at > 0 && message.len() + sentence.len() + 24 > MESSAGE_MAX {
            message.push_str(&format!("; and {} more", sentences.len() - at));
            break;
        }
        if at > 0 {
            message.push_str("; ");
        }
        message.push_str(sentence);
    }
    bounded(&message, MESSAGE_MAX)
}

/// `text`, cut to at most `max` bytes at a character's border, with an ellipsis when cut.
fn bounded(text: &str, max: usize) -> String {
    const ELLIPSIS: char = '…';
    if text.len() <= max {
        return text.to_owned();
    }
    let cut = text.floor_char_boundary(max - ELLIPSIS.len_utf8());
    format!("{}{ELLIPSIS}", &text[..cut])
}
