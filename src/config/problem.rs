//! What can be wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file, on this line, counted from 1.
    File(PathBuf, usize),
    /// By a flag.
    Flag(&'static str),
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Flag(flag) => f.write_str(flag),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A file or directory that cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is not TOML.
    #[error("{place}: not valid TOML: {message}")]
    Syntax {
        /// Where the text stops making sense.
        place: Place,
        /// What was expected.
        message: String,
    },
    /// A key that does not exist, or whose value cannot be used.
    #[error("{place}: {key}: {message}")]
    Value {
        /// Where it was given.
        place: Place,
        /// Full name of the key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Problem {
    /// A file or directory that cannot be read.
    pub(super) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Debug)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            write!(f, "{separator}{}", types::error::chain(problem))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
