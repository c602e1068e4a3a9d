//! The host's security modules as the pod verbs need them, and a fake of them.
//!
//! AppArmor confines by a profile that has been loaded beforehand: the default one is this server's own, loaded at the start
//! and again whenever it is found missing; others are the administrator's, and are looked up before a container is made.
//! SELinux confines by labels: each pod has a pair of categories that no other living pod has, and files that a pod is to
//! use are labelled for it.

mod apparmor;
mod profile;
mod relabel;
mod selinux;

use std::path::{Path, PathBuf};

use spec::selinux::Contexts;
use types::{ErrorKind, Kind};

use apparmor::AppArmor;

pub use profile::NAME as DEFAULT_PROFILE;

/// Why something cannot be confined as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// A profile that is demanded by name.
    #[error("AppArmor profile {0:?} is not loaded on this node")]
    NotLoaded(String),
    /// The default profile.
    #[error("the default AppArmor profile is not available on this node: {0}")]
    NoDefault(String),
    /// Which profiles there are.
    #[error("reading which AppArmor profiles are loaded")]
    Profiles(#[source] std::io::Error),
    /// A label that the policy does not know.
    #[error("SELinux label {0:?} is not valid by this node's policy")]
    Label(String),
    /// The kernel does not say whether a label is valid.
    #[error("checking SELinux label {0:?}")]
    Check(String, #[source] std::io::Error),
    /// A directory that the node itself needs.
    #[error("relabeling {} is not allowed: the node itself uses it", .0.display())]
    Protected(PathBuf),
    /// Files that a mount shows.
    #[error("relabeling {}", .0.display())]
    Relabel(PathBuf, #[source] std::io::Error),
    /// There are more pods than pairs.
    #[error("every pair of SELinux categories belongs to a pod already")]
    NoLevel,
}

impl Kind for ConfinementError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotLoaded(_) | Self::NoDefault(_) => ErrorKind::FailedPrecondition,
            Self::Label(_) | Self::Protected(_) => ErrorKind::InvalidArgument,
            Self::NoLevel => ErrorKind::ResourceExhausted,
            Self::Profiles(_) | Self::Check(..) | Self::Relabel(..) => ErrorKind::Internal,
        }
    }
}

/// The security modules. All calls may block.
pub trait Confinement: Send + Sync + std::fmt::Debug {
    /// Whether AppArmor is on.
    fn has_apparmor(&self) -> bool;

    /// The default AppArmor profile, loaded.
    ///
    /// # Errors
    /// [`ConfinementError::NoDefault`].
    fn default_profile(&self) -> Result<String, ConfinementError>;

    /// Makes sure that a profile is loaded.
    ///
    /// # Errors
    /// [`ConfinementError::NotLoaded`] if it is not.
    fn require_profile(&self, name: &str) -> Result<(), ConfinementError>;

    /// What the policy says of containers' labels, where SELinux is on.
    fn selinux(&self) -> Option<&Contexts>;

    /// Makes sure that the policy knows a label.
    ///
    /// # Errors
    /// [`ConfinementError::Label`] if it does not.
    fn check_label(&self, label: &str) -> Result<(), ConfinementError>;

    /// Gives everything at `path` and beneath this label.
    ///
    /// # Errors
    /// [`ConfinementError::Protected`] for directories of the node, else the kernel's refusal.
    fn relabel(&self, path: &Path, label: &str) -> Result<(), ConfinementError>;
}

/// The kernel's own modules.
#[derive(Debug)]
pub struct SecurityModules {
    apparmor: Option<AppArmor>,
    selinux: Option<Contexts>,
}

impl SecurityModules {
    /// Finds out what this kernel has.
    #[must_use]
    pub fn find() -> Self {
        Self { apparmor: AppArmor::find(), selinux: selinux::find() }
    }

    /// Loads the default profile in its present form, whether there is one of an earlier server or not.
    pub fn prepare(&self) {
        match self.apparmor.as_ref().map(AppArmor::load_anew) {
            Some(Ok(name)) => tracing::info!(profile = name, "AppArmor's default profile is loaded"),
            Some(Err(error)) => {
                let error = types::error::chain(&error);
                tracing::warn!(error, "containers that ask for no AppArmor profile run without one");
            }
            None => {}
        }
    }
}

impl Confinement for SecurityModules {
    fn has_apparmor(&self) -> bool {
        self.apparmor.is_some()
    }

    fn default_profile(&self) -> Result<String, ConfinementError> {
        match &self.apparmor {
            Some(apparmor) => apparmor.default_profile(),
            None => Err(ConfinementError::NoDefault("AppArmor is off".to_owned())),
        }
    }

    fn require_profile(&self, name: &str) -> Result<(), ConfinementError> {
        match &self.apparmor {
            Some(apparmor) if apparmor.has_profile(name)? => Ok(()),
            _ => Err(ConfinementError::NotLoaded(name.to_owned())),
        }
    }

    fn selinux(&self) -> Option<&Contexts> {
        self.selinux.as_ref()
    }

    fn check_label(&self, label: &str) -> Result<(), ConfinementError> {
        selinux::check(label)
    }

    fn relabel(&self, path: &Path, label: &str) -> Result<(), ConfinementError> {
        relabel::relabel(path, label)
    }
}

/// Security modules in memory, for tests of lifecycles.
#[cfg(test)]
pub(super) mod fake {
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use super::{Confinement, ConfinementError};
    use spec::selinux::Contexts;

    /// What the host is to have, and what has been done to it.
    #[derive(Debug, Default)]
    pub(in super::super) struct FakeConfinement {
        /// Loaded profiles; `None` is a host without AppArmor.
        pub(in super::super) profiles: Mutex<Option<Vec<String>>>,
        /// What the policy says; `None` is a host without SELinux.
        pub(in super::super) contexts: Option<Contexts>,
        /// Paths with their labels.
        pub(in super::super) labelled: Mutex<Vec<(PathBuf, String)>>,
    }

    impl Confinement for FakeConfinement {
        fn has_apparmor(&self) -> bool {
            self.profiles.lock().unwrap().is_some()
        }

        fn default_profile(&self) -> Result<String, ConfinementError> {
            let name = "crimson-default".to_owned();
            match &*self.profiles.lock().unwrap() {
                Some(profiles) if profiles.contains(&name) => Ok(name),
                _ => Err(ConfinementError::NoDefault("there is no parser".to_owned())),
            }
        }

        fn require_profile(&self, name: &str) -> Result<(), ConfinementError> {
            match &*self.profiles.lock().unwrap() {
                Some(profiles) if profiles.iter().any(|known| known == name) => Ok(()),
                _ => Err(ConfinementError::NotLoaded(name.to_owned())),
            }
        }

        fn selinux(&self) -> Option<&Contexts> {
            self.contexts.as_ref()
        }

        fn check_label(&self, label: &str) -> Result<(), ConfinementError> {
            if label.contains("unknown_t") { Err(ConfinementError::Label(label.to_owned())) } else { Ok(()) }
        }

        fn relabel(&self, path: &Path, label: &str) -> Result<(), ConfinementError> {
            self.labelled.lock().unwrap().push((path.to_owned(), label.to_owned()));
            Ok(())
        }
    }
}
