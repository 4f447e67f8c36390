//! What people read: tables, colours on a terminal only, errors that say what to do.

use std::io::{IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::args::Format;

/// Version of every JSON document printed with `-o json`. Fields may be added within a version; none changes or goes.
pub(crate) const JSON_VERSION: u32 = 1;

/// Whether standard output wants colours: a terminal, and NO_COLOR unset (no-color.org).
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A style by meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warn,
    Bad,
    Dim,
    Bold,
}

/// `text` in `tone`, plain when standard output is no terminal.
pub(crate) fn paint(tone: Tone, text: &str) -> String {
    if !colours() {
        return text.to_owned();
    }
    let style = match tone {
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Warn => AnsiColor::Yellow.on_default(),
        Tone::Bad => AnsiColor::Red.on_default().bold(),
        Tone::Dim => Style::new().dimmed(),
        Tone::Bold => Style::new().bold(),
    };
    format!("{style}{text}{style:#}")
}

/// A table without lines, like kubectl's: columns two spaces apart, as wide as what is seen of their widest cell.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let head = head.map(|title| paint(Tone::Bold, title));
    let rows: Vec<[String; N]> = std::iter::once(head).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(seen(cell));
        }
    }
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - seen(cell))));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// How many characters of `cell` a terminal shows: the escape codes of colours (ECMA-48 SGR) take no room.
fn seen(cell: &str) -> usize {
    let mut count = 0;
    let mut in_code = false;
    for character in cell.chars() {
        match character {
            '\u{1b}' => in_code = true,
            'm' if in_code => in_code = false,
            _ if in_code => {}
            _ => count += 1,
        }
    }
    count
}

/// Prints `value` as JSON or what `table` makes of it.
pub(crate) fn print<T: Serialize>(
    format: Format,
    kind: &'static str,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Json => print_line(&json(kind, value)?),
        Format::Table => print_line(&table(value)),
    }
}

/// One JSON document: `{"version":1,"kind":…,…}` with the fields of `value`, which must be an object or a list (`items`).
pub(crate) fn json<T: Serialize>(kind: &'static str, value: &T) -> anyhow::Result<String> {
    let mut document = serde_json::Map::new();
    document.insert("version".into(), JSON_VERSION.into());
    document.insert("kind".into(), kind.into());
    match serde_json::to_value(value)? {
        serde_json::Value::Object(fields) => document.extend(fields),
        other => {
            document.insert("items".into(), other);
        }
    }
    Ok(serde_json::to_string_pretty(&document)?)
}

/// Prints a line; a reader that closed the pipe (`| head`) is no error.
pub(crate) fn print_line(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints an error with its causes to standard error.
pub(crate) fn complain(error: &anyhow::Error) {
    let painted = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = if painted {
        AnsiColor::Red.on_default().bold()
    } else {
        Style::new()
    };
    eprintln!("{style}error:{style:#} {error}");
    let mut told = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !told.contains(&cause) {
            eprintln!("  because: {cause}");
            told = cause;
        }
    }
}

/// A point in time, relative to now: `in 59m`, `3s ago`.
pub(crate) fn when(unix_ms: u64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    if unix_ms >= now {
        format!("in {}", span(unix_ms - now))
    } else {
        format!("{} ago", span(now - unix_ms))
    }
}

/// A length of time with its largest unit.
pub(crate) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}s", ms / 1_000),
        60_000..3_600_000 => format!("{}m", ms / 60_000),
        3_600_000..172_800_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_take_no_room_in_a_table() {
        let red = |text: &str| format!("\u{1b}[31m{text}\u{1b}[0m");
        let text = table(["A", "B"], [[red("long"), "x".into()], ["s".into(), "y".into()]]);
        let plain: Vec<String> = text
            .replace("\u{1b}[31m", "")
            .replace("\u{1b}[0m", "")
            .lines()
            .map(str::to_owned)
            .collect();
        assert_eq!(plain, ["A     B", "long  x", "s     y"]);
    }
}
