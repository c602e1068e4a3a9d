//! Logging: as text for people or as JSON for programs to standard error, or to the journal where that is the same thing.
//!
//! Promises: what the level lets through is written in one line with the names of `types::fields`; colour only on a
//! terminal; level and form can be changed while the daemon runs, by a reload for good, by [`Logging::set`] until the next
//! reload or restart.
//!
//! When standard error leads to the journal, text goes there as fields ([`journal`]) and JSON as lines that begin with
//! their priority. The journal knows the time itself.

mod filter;
mod journal;
mod prefix;

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{Filtered, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

pub use self::filter::{Filter, FilterError};
use self::journal::Journal;
use self::prefix::Prefixed;
use crate::config::{Format, Log};
use crate::tracing_export::Spans;

/// Why logging could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// Something else in this process already receives the log.
    #[error("starting the log")]
    Start(#[source] tracing_subscriber::util::TryInitError),
    /// The log has ended.
    #[error("changing what is logged")]
    Reload(#[source] reload::Error),
}

type Lines<S> = Box<dyn Layer<S> + Send + Sync>;
type Text = Filtered<Lines<Registry>, reload::Layer<Targets, Registry>, Registry>;
type WithText = Layered<Text, Registry>;

/// The log of this process. Both forms are always there, and one of them lets nothing through: a form that came later would
/// not know the spans that are open.
#[derive(Clone)]
pub struct Logging {
    text: reload::Handle<Targets, Registry>,
    json: reload::Handle<Targets, WithText>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    configured: Log,
    /// In force instead of the configured level.
    set: Option<Filter>,
}

/// How much is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// What is in force, such as `info` or `info,crimson::pod=debug`.
    pub level: String,
    /// What the configuration says, which is in force again after a reload or restart.
    pub configured: String,
}

impl std::fmt::Debug for Logging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logging").finish_non_exhaustive()
    }
}

impl Logging {
    /// Sends the log of the whole process to standard error, or to the journal behind it, from now on. Spans that are meant for
    /// traces go to `spans` only.
    ///
    /// # Errors
    /// When the process has a log already.
    pub fn start(log: Log, spans: Option<Spans>) -> Result<Self, LoggingError> {
        let (text, json) = match Journal::behind_stderr() {
            Some(journal) => (journal.boxed(), lines(Format::Json, false, Prefixed::new(std::io::stderr))),
            None => {
                let ansi = std::io::stderr().is_terminal();
                (lines(Format::Text, ansi, std::io::stderr), lines(Format::Json, false, std::io::stderr))
            }
        };
        let (layers, logging) = Self::over(text, json, log);
        let started = match spans {
            Some(spans) => layers.with(spans.layer()).try_init(),
            None => layers.try_init(),
        };
        started.map_err(LoggingError::Start)?;
        Ok(logging)
    }

    /// One whose lines nobody reads, beside that of the process.
    #[cfg(test)]
    pub(crate) fn silent(log: Log) -> Self {
        let text = lines(Format::Text, false, std::io::sink);
        let (layers, logging) = Self::over(text, lines(Format::Json, false, std::io::sink), log);
        // The log ends with its layers.
        Box::leak(Box::new(layers));
        logging
    }

    fn over(
        text: Lines<Registry>,
        json: Lines<WithText>,
        log: Log,
    ) -> (impl tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync, Self) {
        let (text_filter, text_handle) =
            reload::Layer::new(targets(&Filter::from(log.level), log.format, Format::Text));
        let (json_filter, json_handle) =
            reload::Layer::new(targets(&Filter::from(log.level), log.format, Format::Json));
        let layers = tracing_subscriber::registry()
            .with(text.with_filter(text_filter))
            .with(json.with_filter(json_filter));
        let state = Arc::new(Mutex::new(State { configured: log, set: None }));
        (layers, Self { text: text_handle, json: json_handle, state })
    }

    /// Logs in this way from now on, whatever has been set.
    ///
    /// # Errors
    /// When the log has ended.
    pub fn change(&self, log: Log) -> Result<(), LoggingError> {
        self.apply(State { configured: log, set: None })
    }

    /// Logs this much until the next change.
    ///
    /// # Errors
    /// When the log has ended.
    pub fn set(&self, filter: Filter) -> Result<(), LoggingError> {
        let configured = self.state().configured;
        self.apply(State { configured, set: Some(filter) })
    }

    /// How much is logged.
    #[must_use]
    pub fn level(&self) -> LogLevel {
        let state = self.state();
        let configured = Filter::from(state.configured.level);
        let level = state.set.as_ref().unwrap_or(&configured).to_string();
        LogLevel { level, configured: configured.to_string() }
    }

    fn apply(&self, next: State) -> Result<(), LoggingError> {
        let mut state = self.state();
        let (format, configured) = (next.configured.format, Filter::from(next.configured.level));
        let in_force = next.set.as_ref().unwrap_or(&configured);
        self.text.reload(targets(in_force, format, Format::Text)).map_err(LoggingError::Reload)?;
        self.json.reload(targets(in_force, format, Format::Json)).map_err(LoggingError::Reload)?;
        *state = next;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Replaced as a whole, so a panic leaves nothing half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lines<S, W>(format: Format, ansi: bool, writer: W) -> Lines<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a> + Send + Sync,
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

/// What goes through in the one form, `form`, when another or the same one is in force.
fn targets(filter: &Filter, in_force: Format, form: Format) -> Targets {
    if in_force == form { filter.targets() } else { Targets::new() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::config::Level;

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

    fn logged(log: Log, act: impl FnOnce(&Logging)) -> String {
        let buffer = Buffer::default();
        let (text, json) = (buffer.clone(), buffer.clone());
        let text = lines(Format::Text, false, move || text.clone());
        let json = lines(Format::Json, false, move || json.clone());
        let (layers, logging) = Logging::over(text, json, log);
        tracing::subscriber::with_default(layers, || act(&logging));
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
        let text = logged(Log { level: Level::Warn, format: Format::Text }, |logging| {
            tracing::info!("one");
            logging.change(Log { level: Level::Debug, format: Format::Text }).unwrap();
            tracing::debug!("two");
        });
        assert!(!text.contains("one") && text.contains("two"), "{text}");
    }

    #[test]
    fn a_level_that_is_set_lasts_until_a_reload() {
        let info = Log { level: Level::Info, format: Format::Text };
        let pod = || tracing::debug!(target: "crimson::pod::actor", "seen");
        let text = logged(info, |logging| {
            assert_eq!((logging.level().level, logging.level().configured), ("info".into(), "info".into()));
            logging.set("info,crimson::pod=debug".parse().unwrap()).unwrap();
            assert_eq!(logging.level().level, "info,crimson::pod=debug");
            assert_eq!(logging.level().configured, "info");
            pod();
            tracing::debug!(target: "crimson::app", "elsewhere");
            logging.change(info).unwrap();
            assert_eq!(logging.level().level, "info");
            pod();
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("crimson::pod::actor: seen"), "{text}");
    }

    #[test]
    fn a_level_is_set_for_the_form_in_force() {
        let text = logged(Log { level: Level::Warn, format: Format::Json }, |logging| {
            logging.set(Filter::from(Level::Info)).unwrap();
            tracing::info!("once");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with('{'), "{text}");
    }

    /// With spans open, which the form that begins has not seen.
    #[test]
    fn the_form_can_be_changed_to_and_fro() {
        let (text, json) = (Format::Text, Format::Json);
        let written = logged(Log { level: Level::Info, format: text }, |logging| {
            tracing::info_span!("rpc", rpc = "StopContainer").in_scope(|| {
                tracing::info!("first");
                logging.change(Log { level: Level::Info, format: json }).unwrap();
                tracing::info!("second");
                tracing::info_span!("step", step = "kill").in_scope(|| tracing::info!("third"));
                logging.change(Log { level: Level::Info, format: text }).unwrap();
                tracing::info!("fourth");
            });
        });
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(lines.len(), 4, "{written}");
        let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        assert!(lines[0].contains("StopContainer") && lines[0].ends_with("first"), "{written}");
        assert_eq!(read(lines[1])["message"], "second");
        assert_eq!(read(lines[2])["spans"][0]["step"], "kill");
        assert!(lines[3].contains("StopContainer") && lines[3].ends_with("fourth"), "{written}");
    }

    #[test]
    fn libraries_are_held_to_warnings_until_trace() {
        let emit = |_: &Logging| {
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
