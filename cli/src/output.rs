//! What people read: tables, colours on a terminal only, errors that say what to do.

use std::io::{IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, Table, TableStyle};
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

/// A table without lines, like kubectl's.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(head.map(|title| Cell::new(paint(Tone::Bold, title))));
    for row in rows {
        table.add_row(row.map(Cell::new));
    }
    let text = table.to_string();
    text.lines()
        .map(|line| line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end()))
        .collect::<Vec<_>>()
        .join("\n")
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
