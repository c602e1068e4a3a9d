//! A runtime's log, reduced to what went wrong.
//!
//! runc and crun write JSON lines with `level` and `msg`; what they print before their logger is set up, and what other
//! runtimes print, is plain text or `key=value` pairs. The text that comes out has no time stamp, since it reaches
//! Kubernetes events, which are told apart by their text.

use serde::Deserialize;

/// The most characters of an error text.
const LIMIT: usize = 4096;

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    level: String,
    msg: String,
}

/// The error in a runtime's log, or in what it printed; `None` when nothing is there. The last error counts, since runtimes
/// wrap earlier ones in it, else the last line of any kind.
#[must_use]
pub fn error_text(log: &[u8]) -> Option<String> {
    let log = String::from_utf8_lossy(log);
    let entries: Vec<Entry> = log.lines().filter(|line| !line.trim().is_empty()).map(entry).collect();
    let chosen = entries.iter().rfind(|entry| is_error(&entry.level)).or(entries.last())?;
    let text = chosen.msg.split_whitespace().collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then(|| text.chars().take(LIMIT).collect())
}

fn is_error(level: &str) -> bool {
    matches!(level, "error" | "fatal" | "panic")
}

fn entry(line: &str) -> Entry {
    serde_json::from_str(line).or_else(|_| key_value(line).ok_or(())).unwrap_or_else(|()| plain(line))
}

/// A line of unknown form; both runtimes begin those they print for people with the program's name or nothing.
fn plain(line: &str) -> Entry {
    Entry { level: String::new(), msg: line.to_owned() }
}

/// `time="…" level=error msg="…"`, as runc writes it without a log format.
fn key_value(line: &str) -> Option<Entry> {
    let (_, rest) = line.split_once("level=")?;
    let (level, rest) = rest.split_once(' ')?;
    let quoted = rest.strip_prefix("msg=")?;
    let msg = match serde_json::Deserializer::from_str(quoted).into_iter::<String>().next() {
        Some(Ok(text)) => text,
        _ => quoted.trim_matches('"').to_owned(),
    };
    Some(Entry { level: level.to_owned(), msg })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(log: &str, expected: Option<&str>) {
        assert_eq!(error_text(log.as_bytes()).as_deref(), expected, "{log:?}");
    }

    #[test]
    fn the_last_error_of_a_json_log_is_taken() {
        check(
            concat!(
                r#"{"level":"warning","msg":"cgroup: hm","time":"2026-01-01T00:00:00Z"}"#,
                "\n",
                r#"{"level":"error","msg":"runc create failed: exec: \"nope\": not found","time":"2026-01-01T00:00:00Z"}"#,
                "\n",
                r#"{"level":"info","msg":"bye","time":"2026-01-01T00:00:00Z"}"#,
                "\n"
            ),
            Some("runc create failed: exec: \"nope\": not found"),
        );
        check(
            r#"{"msg":"container `x` does not exist","level":"error","time":"t"}"#,
            Some("container `x` does not exist"),
        );
    }

    #[test]
    fn other_forms_are_read_without_their_time() {
        check("", None);
        check("\n \n", None);
        check("plain words\n", Some("plain words"));
        check(r#"time="2026-01-01T00:00:00Z" level=error msg="bad \"thing\"""#, Some("bad \"thing\""));
        check(r#"time="2026-01-01T00:00:00Z" level=error msg=short"#, Some("short"));
        check(r#"{"msg":"two\nlines","level":"error"}"#, Some("two lines"));
    }

    #[test]
    fn the_text_is_bounded() {
        assert_eq!(error_text("é".repeat(10_000).as_bytes()).unwrap().chars().count(), LIMIT);
    }
}
