//! What is logged: a level for everything, and other levels for parts of the program.
//!
//! ```text
//! info                                    the level of all
//! info,crimson::pod=debug,h2=off          other levels by target, which is a module's path, its children included
//! ```
//!
//! Libraries below us say what we say again in their own words, so they are held to warnings until the level of all is trace, or
//! they are named.

use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::config::Level;

/// Libraries whose steps are of no interest while they work.
const LIBRARIES: [&str; 12] = [
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "netlink_proto",
    "reqwest",
    "rustls",
    "tokio_util",
    "tonic",
    "tower",
    "want",
    "zbus",
];
/// Bounds of a filter that comes from outside.
const LENGTH: usize = 1024;
const TARGETS: usize = 32;

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A word that is no level.
    #[error("{0:?} is not a level: error, warn, info, debug or trace")]
    Level(String),
    /// A part that is not a target with a level.
    #[error("{0:?} is not of the form TARGET=LEVEL, such as crimson::pod=debug, with off for nothing")]
    Target(String),
    /// It does not begin with the level of all.
    #[error("a level for everything comes first, such as in info,crimson::pod=debug")]
    NoLevel,
    /// There is too much of it.
    #[error("no more than {TARGETS} targets and {LENGTH} bytes are taken")]
    TooLong,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    level: Level,
    /// None for nothing.
    targets: Vec<(String, Option<Level>)>,
}

impl From<Level> for Filter {
    fn from(level: Level) -> Self {
        Self { level, targets: Vec::new() }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > LENGTH || text.split(',').count() > TARGETS + 1 {
            return Err(FilterError::TooLong);
        }
        let mut parts = text.trim().split(',').map(str::trim);
        let first = parts.next().filter(|first| !first.is_empty()).ok_or(FilterError::NoLevel)?;
        if first.contains('=') {
            return Err(FilterError::NoLevel);
        }
        Ok(Self { level: level(first)?, targets: parts.map(target).collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word(self.level))?;
        for (target, level) in &self.targets {
            write!(f, ",{target}={}", level.map_or("off", word))?;
        }
        Ok(())
    }
}

impl Filter {
    /// As the layers of the log know it. Spans that are meant for traces are never logged.
    pub(super) fn targets(&self) -> Targets {
        let all = level_filter(self.level);
        let mut targets = Targets::new().with_default(all);
        if self.level != Level::Trace {
            targets = targets.with_targets(LIBRARIES.map(|library| (library, all.min(LevelFilter::WARN))));
        }
        let named = self.targets.iter();
        let named =
            named.map(|(target, level)| (target.clone(), level.map_or(LevelFilter::OFF, level_filter)));
        targets.with_targets(named).with_target(types::spans::TARGET, LevelFilter::OFF)
    }
}

fn target(part: &str) -> Result<(String, Option<Level>), FilterError> {
    let wrong = || FilterError::Target(part.to_owned());
    let (target, word) = part.split_once('=').ok_or_else(wrong)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
    if target.is_empty() || !target.bytes().all(fits) {
        return Err(wrong());
    }
    let level = if word == "off" { None } else { Some(level(word)?) };
    Ok((target.to_owned(), level))
}

fn level(word: &str) -> Result<Level, FilterError> {
    <Level as clap::ValueEnum>::from_str(word, true).map_err(|_| FilterError::Level(word.to_owned()))
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn level_filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level as At;

    use super::*;

    fn filter(text: &str) -> Filter {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_read_is_written_back() {
        for text in ["info", "warn,crimson::pod=debug", "trace,h2=off,crimson::step=error"] {
            assert_eq!(filter(text).to_string(), text);
        }
        assert_eq!(filter(" INFO , crimson::pod=Debug\n").to_string(), "info,crimson::pod=debug");
    }

    #[test]
    fn targets_differ_from_the_rest_and_libraries_can_be_named() {
        let targets = filter("info,crimson::pod=debug,h2=debug,crimson::app=off").targets();
        let expected = [
            ("crimson::pod::actor", At::DEBUG, true),
            ("crimson::image", At::DEBUG, false),
            ("crimson::image", At::INFO, true),
            ("crimson::app", At::ERROR, false),
            ("h2::proto", At::DEBUG, true),
            ("hyper::client", At::INFO, false),
        ];
        for (target, level, passes) in expected {
            assert_eq!(targets.would_enable(target, &level), passes, "{target} {level}");
        }
        assert!(filter("trace").targets().would_enable("hyper::client", &At::TRACE));
        assert!(!filter("trace,spans=trace").targets().would_enable(types::spans::TARGET, &At::ERROR));
    }

    #[test]
    fn what_is_no_filter_is_refused_with_the_word() {
        let cases = [
            ("loud", "\"loud\" is not a level"),
            ("", "a level for everything comes first"),
            ("crimson::pod=debug", "a level for everything comes first"),
            ("info,pod", "\"pod\" is not of the form"),
            ("info,=debug", "\"=debug\" is not of the form"),
            ("info,a b=debug", "\"a b=debug\" is not of the form"),
            ("info,crimson=loud", "\"loud\" is not a level"),
            ("info,crimson=debug=", "\"debug=\" is not a level"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let long = format!("info{}", ",a=info".repeat(TARGETS + 1));
        assert_eq!(long.parse::<Filter>(), Err(FilterError::TooLong));
        assert_eq!(format!("info,{}=info", "a".repeat(LENGTH)).parse::<Filter>(), Err(FilterError::TooLong));
    }
}
