//! The program `crimson`: arguments, configuration, log, and then the daemon.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use crimson::cli::{CheckArgs, Cli, Command, ConfigCommand, Page, ReloadArgs, SourceArgs};
use crimson::config::{self, Loaded, Source};
use crimson::logging::Logging;
use crimson::reload::request;
use crimson::{app, check, listener, manual};

/// Exit code of a command line or configuration that cannot be used (EX_USAGE).
const USAGE: u8 = 64;
/// Exit code of everything else that goes wrong.
const FAILURE: u8 = 1;
/// How long a reload may take: each OCI runtime is tried out, and a network may be asked how it is.
const RELOAD_LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match cli.command {
        Command::Serve(args) => serve(args),
        Command::Reload(args) => reload(args),
        Command::Check(args) => check_pods(args),
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
    // Whatever else was left open by who started us is no business of the programs we start.
    sys::process::close_inherited_on_exec()?;
    let logging = Logging::start(loaded.config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("crimson").enable_all().build()?;
    Ok(runtime.block_on(app::run(app::Start { loaded, source, logging, inherited }))?)
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

/// 0 when nothing is left to say, 1 when something is, 2 when it could not be found out.
fn check_pods(args: CheckArgs) -> ExitCode {
    let loaded = match load(args.source, check::FAILURE) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let report = match check::run(&loaded.config, args.repair) {
        Ok(report) => report,
        Err(error) => return complain(&error, check::FAILURE),
    };
    let text = if args.json { report.json() } else { report.text() };
    match print(&text) {
        code if code != ExitCode::SUCCESS => ExitCode::from(check::FAILURE),
        _ if report.is_clean() => ExitCode::SUCCESS,
        _ => ExitCode::from(check::FOUND),
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
