//! The program `crimson`: arguments, configuration, log, and then the daemon.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use crimson::admin::client::Client;
use crimson::admin::status::Status;
use crimson::cli::{
    CheckArgs, Cli, Command, ConfigCommand, DoctorArgs, LogLevelArgs, Page, ReloadArgs, ServerArgs,
    SourceArgs, StatusArgs,
};
use crimson::config::values::AbsolutePath;
use crimson::config::{self, Loaded, Source};
use crimson::logging::Logging;
use crimson::reload::request;
use crimson::{app, check, doctor, listener, manual, tracing_export};

/// Exit code of a command line or configuration that cannot be used (EX_USAGE).
const USAGE: u8 = 64;
/// Exit code of everything else that goes wrong.
const FAILURE: u8 = 1;
/// Exit codes of `status`: something is stuck or not ready, and it cannot be found out.
const UNHEALTHY: u8 = 1;
const UNREACHABLE: u8 = 2;
/// How long a reload may take: each OCI runtime is tried out, and a network may be asked how it is.
const RELOAD_LIMIT: Duration = Duration::from_secs(120);
/// Parts of the heap. Most of the work is the kernel's, so threads seldom wait for one.
const HEAPS: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match cli.command {
        Command::Serve(args) => serve(args),
        Command::Reload(args) => reload(args),
        Command::Status(args) => status(args),
        Command::LogLevel(args) => log_level(args),
        Command::Check(args) => check_pods(args),
        Command::Doctor(args) => examine(args),
        Command::Config(ConfigCommand::Default) => print(&config::docs::sample()),
        Command::Config(ConfigCommand::Check(args)) => check_config(args),
        Command::Config(ConfigCommand::Dump(args)) => dump(args),
        Command::Version => print(concat!("crimson ", env!("CARGO_PKG_VERSION"), " (CRI v1)\n")),
        Command::Completions { shell } => completions(shell),
        Command::Man { page } => man(page),
    }
}

fn serve(args: SourceArgs) -> ExitCode {
    let source = Source::from(args);
    let loaded = match config::load(&source) {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error, USAGE),
    };
    match run(loaded, source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(error.as_ref(), FAILURE),
    }
}

/// The daemon from its first thread to its last. The inherited socket is taken while there is only one.
fn run(loaded: Loaded, source: Source) -> Result<(), Box<dyn Error>> {
    let inherited = listener::inherited()?;
    // Whatever else was left open by who started us is no business of the programs we start, nor is what it did with signals.
    sys::process::close_inherited_on_exec()?;
    sys::signals::reset()?;
    sys::process::limit_heaps(HEAPS);
    let (spans, export) = loaded.config.tracing.as_ref().map(tracing_export::open).transpose()?.unzip();
    let logging = Logging::start(loaded.config.log, spans)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("crimson").enable_all().build()?;
    Ok(runtime.block_on(app::run(app::Start { loaded, source, logging, export, inherited }))?)
}

fn load(args: SourceArgs, code: u8) -> Result<Loaded, ExitCode> {
    config::load(&Source::from(args)).map_err(|error| complain(&error, code))
}

/// Whether its configuration can be used is for the daemon to say; here it is read, if at all, to find the daemon.
fn reload(args: ReloadArgs) -> ExitCode {
    let state = match (args.pid, args.state) {
        (Some(pid), _) => request::state_of(pid),
        (None, Some(state)) => Ok(state.into_path()),
        (None, None) => Ok(config::state_dir(args.config)),
    };
    match state.and_then(|state| request::reload(&state, RELOAD_LIMIT)) {
        Ok(outcome) => print(&outcome.report()),
        Err(error) => complain(&error, FAILURE),
    }
}

fn server(args: ServerArgs) -> Client {
    Client::of(&args.state.map_or_else(|| config::state_dir(args.config), AbsolutePath::into_path))
}

/// 0 when all is well, 1 when something is stuck or not ready, 2 when the server cannot be asked.
fn status(args: StatusArgs) -> ExitCode {
    let client = server(args.server.clone());
    loop {
        let code = match client.status(args.pods) {
            Ok((json, status)) => show_status(&args, json, &status),
            Err(error) => complain(&error, UNREACHABLE),
        };
        let Some(seconds) = args.watch else { return code };
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn show_status(args: &StatusArgs, json: String, status: &Status) -> ExitCode {
    let patience = Duration::from_secs(args.stuck_after);
    let text = if args.json { json } else { status.text(patience) };
    // To the upper left, with what was there before gone.
    let clear = if args.watch.is_some() && !args.json { "\x1b[H\x1b[2J" } else { "" };
    match print(&format!("{clear}{text}")) {
        code if code != ExitCode::SUCCESS => ExitCode::from(UNREACHABLE),
        _ if status.problems(patience).is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::from(UNHEALTHY),
    }
}

fn log_level(args: LogLevelArgs) -> ExitCode {
    let client = server(args.server);
    let level = match args.level {
        Some(level) => client.set_log_level(&level.to_string()),
        None => client.log_level(),
    };
    level.map_or_else(|error| complain(&error, FAILURE), |level| print(&level.report()))
}

/// 0 when nothing is left to say, 1 when something is, 2 when it could not be found out.
fn check_pods(args: CheckArgs) -> ExitCode {
    let loaded = match load(args.source, check::FAILURE) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let report = if args.images {
        check::images::run(&loaded.config, args.repair)
            .map(|report| (report.is_clean(), if args.json { report.json() } else { report.text() }))
    } else {
        check::run(&loaded.config, args.repair)
            .map(|report| (report.is_clean(), if args.json { report.json() } else { report.text() }))
    };
    let (is_clean, text) = match report {
        Ok(report) => report,
        Err(error) => return complain(&error, check::FAILURE),
    };
    match print(&text) {
        code if code != ExitCode::SUCCESS => ExitCode::from(check::FAILURE),
        _ if is_clean => ExitCode::SUCCESS,
        _ => ExitCode::from(check::FOUND),
    }
}

/// 0 when pods can run, 1 when something for it is missing.
fn examine(args: DoctorArgs) -> ExitCode {
    let loaded = match load(args.source, USAGE) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let report = doctor::run(&loaded.config);
    match print(&if args.json { report.json() } else { report.text() }) {
        code if code != ExitCode::SUCCESS || report.is_fit() => code,
        _ => ExitCode::from(doctor::MISSING),
    }
}

fn check_config(args: SourceArgs) -> ExitCode {
    match load(args, FAILURE) {
        Ok(_) => print("ok\n"),
        Err(code) => code,
    }
}

fn dump(args: SourceArgs) -> ExitCode {
    match load(args, USAGE).map(|loaded| toml::to_string(&loaded.written)) {
        Ok(Ok(text)) => print(&text),
        Ok(Err(error)) => complain(&error, FAILURE),
        Err(code) => code,
    }
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "crimson", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn man(page: Page) -> ExitCode {
    match page {
        Page::Crimson => {
            manual::program().map_or_else(|error| complain(&error, FAILURE), |page| print(&page))
        }
        Page::Config => print(&manual::configuration()),
    }
}

/// Help goes to standard output and is no failure; the rest is.
fn explain(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { USAGE } else { 0 };
    error.print().map_or(ExitCode::FAILURE, |()| ExitCode::from(code))
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, FAILURE),
    }
}

/// Failures of the start go to standard error as they are, whatever form the log has.
fn complain(error: &(dyn Error + 'static), code: u8) -> ExitCode {
    // When not even that can be written, the exit code is all there is.
    drop(writeln!(std::io::stderr(), "crimson: {}", types::error::chain(error)));
    ExitCode::from(code)
}
