//! `crimson doctor`: what this host offers to a CRI server, what is missing, and how to mend it.
//!
//! Facts are read first ([`host`] from files, [`trial`] by trying things out), then judged by pure functions ([`system`],
//! [`security`], [`programs`]), so that a host which is not at hand can be judged too. Looking is safe beside a server at work:
//! what is tried out is cleared again, and nothing is configured.
//!
//! | state | meaning |
//! |---|---|
//! | ok | it is there |
//! | note | it is not there, and few miss it |
//! | warn | pods that need it fail, or the node fails one day |
//! | MISSING | no pod can run without it; the exit code is 1 |

mod host;
mod programs;
mod security;
mod system;
mod trial;

use serde::Serialize;

use crate::config::Config;

pub use host::Host;
pub use trial::Tried;

/// Exit code when something required is missing.
pub const MISSING: u8 = 1;
/// Columns of a finding's name and state in the text for people.
const COLUMNS: (usize, usize) = (17, 8);

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is as it should be.
    Ok,
    /// It is not there, and few miss it.
    Note,
    /// Something will fail that needs it.
    Warn,
    /// Nothing goes without it.
    Missing,
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// What there is.
    pub text: String,
    /// What to do, as a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(name: &str, state: State, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state, text: text.into(), fix: None }
    }

    fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this program.
    version: &'static str,
    findings: Vec<Finding>,
}

/// Looks at this host as a server of this configuration would find it.
#[must_use]
pub fn run(config: &Config) -> Report {
    Report::of(config, &Host::read(std::path::Path::new("/")), &Tried::on(config))
}

impl Report {
    fn of(config: &Config, host: &Host, tried: &Tried) -> Self {
        let mut findings = system::judge(config, host, tried);
        findings.extend(security::judge(host, tried));
        findings.extend(programs::judge(config, host, tried));
        Self { version: env!("CARGO_PKG_VERSION"), findings }
    }

    /// Whether nothing that is required is missing.
    #[must_use]
    pub fn is_fit(&self) -> bool {
        self.findings.iter().all(|finding| finding.state != State::Missing)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let lines: String = self.findings.iter().map(line).collect();
        format!("{lines}\n{}\n", self.verdict())
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }

    fn verdict(&self) -> String {
        let count = |state| self.findings.iter().filter(|finding| finding.state == state).count();
        let warnings = match count(State::Warn) {
            0 => String::new(),
            1 => "; 1 warning".to_owned(),
            many => format!("; {many} warnings"),
        };
        match count(State::Missing) {
            0 => format!("Pods can run here{warnings}."),
            1 => format!("Pods cannot run here: one thing is missing{warnings}."),
            many => format!("Pods cannot run here: {many} things are missing{warnings}."),
        }
    }
}

fn line(finding: &Finding) -> String {
    let (name, state) = COLUMNS;
    let word = match finding.state {
        State::Ok => "ok",
        State::Note => "note",
        State::Warn => "warn",
        State::Missing => "MISSING",
    };
    let mut line = format!("{:name$}{word:state$}{}\n", finding.name, finding.text);
    if let Some(fix) = &finding.fix {
        line.push_str(&format!("{:1$}→ {fix}\n", "", name + state));
    }
    line
}

#[cfg(test)]
mod tests;
