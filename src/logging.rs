//! Logging to standard error, as text for people or as JSON for programs.
//!
//! Promises: what the level lets through is written in one line with the names of `types::fields`; colour only on a
//! terminal; the level can be changed while the daemon runs. Libraries below us say what we say again in their own
//! words, so they are held to warnings until the level is trace.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Format, Level, Log};

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

/// Why logging could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// Something else in this process already receives the log.
    #[error("starting the log")]
    Start(#[source] tracing_subscriber::util::TryInitError),
    /// The log has ended.
    #[error("changing the log level")]
    Reload(#[source] reload::Error),
}

/// The log of this process.
#[derive(Debug, Clone)]
pub struct Logging {
    filter: reload::Handle<Targets, Registry>,
}

impl Logging {
    /// Sends the log of the whole process to standard error from now on.
    ///
    /// # Errors
    /// When the process has a log already.
    pub fn start(log: Log) -> Result<Self, LoggingError> {
        let (filter, handle) = reload::Layer::new(targets(log.level));
        let ansi = std::io::stderr().is_terminal();
        let lines = lines(log.format, ansi, std::io::stderr).with_filter(filter);
        tracing_subscriber::registry().with(lines).try_init().map_err(LoggingError::Start)?;
        Ok(Self { filter: handle })
    }

    /// Lets through more or less from now on.
    ///
    /// # Errors
    /// When the log has ended.
    pub fn set_level(&self, level: Level) -> Result<(), LoggingError> {
        self.filter.reload(targets(level)).map_err(LoggingError::Reload)
    }
}

fn lines<W>(format: Format, ansi: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_target(true);
    match format {
        Format::Text => lines.with_ansi(ansi).boxed(),
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(true).boxed()
        }
    }
}

fn targets(level: Level) -> Targets {
    let all = level_filter(level);
    let targets = Targets::new().with_default(all);
    if level == Level::Trace {
        return targets;
    }
    targets.with_targets(LIBRARIES.map(|library| (library, all.min(LevelFilter::WARN))))
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
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: Log, act: impl FnOnce(&reload::Handle<Targets, Registry>)) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let (filter, handle) = reload::Layer::new(targets(log.level));
        let lines = lines(log.format, false, move || writer.clone()).with_filter(filter);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || act(&handle));
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_carry_the_fields_of_the_event_and_its_spans() {
        let text = logged(Log { level: Level::Info, format: Format::Json }, |_| {
            let span = tracing::info_span!("rpc", rpc = "StopContainer", container.id = "ab");
            span.in_scope(|| tracing::info!(elapsed_ms = 7, "container stopped"));
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "container stopped");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["elapsed_ms"], 7);
        assert_eq!(line["spans"][0]["container.id"], "ab");
        for name in ["elapsed_ms", "rpc", "container.id"] {
            assert!(types::fields::ALL.contains(&name));
        }
    }

    #[test]
    fn text_lines_have_no_colour_off_a_terminal() {
        let text = logged(Log { level: Level::Info, format: Format::Text }, |_| {
            tracing::warn!(pod.id = "cd", "network not given back");
        });
        assert!(
            text.contains("WARN") && text.contains("pod.id=\"cd\"") && !text.contains('\u{1b}'),
            "{text:?}"
        );
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn the_level_holds_and_can_be_changed() {
        let text = logged(Log { level: Level::Warn, format: Format::Text }, |handle| {
            tracing::info!("one");
            handle.reload(targets(Level::Debug)).unwrap();
            tracing::debug!("two");
        });
        assert!(!text.contains("one") && text.contains("two"), "{text}");
    }

    #[test]
    fn libraries_are_held_to_warnings_until_trace() {
        let emit = |_: &reload::Handle<Targets, Registry>| {
            tracing::info!(target: "hyper::client", "pooling");
            tracing::warn!(target: "h2::proto", "broken");
        };
        let text = logged(Log { level: Level::Debug, format: Format::Text }, emit);
        assert!(!text.contains("pooling") && text.contains("broken"), "{text}");
        let text = logged(Log { level: Level::Trace, format: Format::Text }, emit);
        assert!(text.contains("pooling"), "{text}");
        let text = logged(Log { level: Level::Error, format: Format::Text }, emit);
        assert!(!text.contains("broken"), "{text}");
    }
}
