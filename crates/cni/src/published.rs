//! What everybody may read without waiting: the loaded network, what was wrong with other files, and how the plugins
//! say they are.

use std::path::Path;
use std::sync::Arc;

use crate::discover::{Found, Source};
use crate::network::NetworkStatus;

/// Begins the way node tooling knows it from other runtimes.
const PREFIX: &str = "Network plugin returns error: ";

/// How the plugins of the loaded network say they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// They were not asked yet.
    Unknown,
    Good,
    /// One of them says it cannot attach pods, or does not answer.
    Bad(String),
}

/// The state of the network on this node.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) network: Option<Arc<Source>>,
    problems: Vec<String>,
    missing: bool,
    pub(crate) health: Health,
}

impl Published {
    pub(crate) fn new(found: Found) -> Self {
        let mut this = Self { network: None, problems: Vec::new(), missing: false, health: Health::Unknown };
        this.take(found);
        this
    }

    /// Takes over what a look into the directory found; whether that is news.
    ///
    /// When one network follows another, the health of the old one stands until the new one was asked, so that an edit
    /// of a configuration does not make the node unready for a moment.
    pub(crate) fn take(&mut self, found: Found) -> bool {
        let same = self.network.as_deref() == found.network.as_ref();
        if same && self.problems == found.problems && self.missing == found.missing {
            return false;
        }
        if !same {
            self.health = self.health_after(found.network.as_ref());
            self.network = found.network.map(Arc::new);
        }
        self.problems = found.problems;
        self.missing = found.missing;
        true
    }

    fn health_after(&self, next: Option<&Source>) -> Health {
        match (&self.network, next) {
            (_, Some(next)) if !next.list.version.has_gc_and_status() => Health::Good,
            (Some(_), Some(_)) => self.health.clone(),
            _ => Health::Unknown,
        }
    }

    pub(crate) fn status(&self, conf_dir: &Path) -> NetworkStatus {
        let Some(network) = &self.network else {
            let text = format!("{PREFIX}cni plugin not initialized: {}", self.why_none(conf_dir));
            return NetworkStatus::not_ready(text);
        };
        let name = &network.list.name;
        match &self.health {
            Health::Good => NetworkStatus::ready(),
            Health::Unknown => {
                NetworkStatus::not_ready(format!("{PREFIX}network {name:?} was not asked for its status yet"))
            }
            Health::Bad(error) => {
                NetworkStatus::not_ready(format!("{PREFIX}network {name:?} is not ready: {error}"))
            }
        }
    }

    /// Why there is no network.
    pub(crate) fn why_none(&self, conf_dir: &Path) -> String {
        why_none(self.missing, &self.problems, conf_dir)
    }

    /// One line about files that were passed over; None when all is well.
    pub(crate) fn problems(&self) -> Option<String> {
        (!self.problems.is_empty()).then(|| self.problems.join("; "))
    }
}

/// Why there is no network in `conf_dir`, which is missing or holds nothing but `problems`.
pub(crate) fn why_none(missing: bool, problems: &[String], conf_dir: &Path) -> String {
    let dir = conf_dir.display();
    if missing {
        return format!("directory {dir} does not exist");
    }
    let none = format!("no valid network config found in {dir}");
    if problems.is_empty() { none } else { format!("{none}: {}", problems.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::NetworkList;

    fn found(version: &str, name: &str) -> Found {
        let text = format!(r#"{{"cniVersion":"{version}","name":"{name}","plugins":[{{"type":"p"}}]}}"#);
        let list = NetworkList::parse(text.as_bytes()).unwrap();
        Found { network: Some(Source { list, path: "/c/1.conflist".into(), text }), ..Found::default() }
    }

    fn message(state: &Published) -> String {
        let status = state.status(Path::new("/etc/cni/net.d"));
        assert_eq!(status.reason, if status.ready { "" } else { "NetworkPluginNotReady" });
        status.message
    }

    #[test]
    fn without_a_network_the_message_says_what_is_in_the_directory() {
        let mut state = Published::new(Found { missing: true, ..Found::default() });
        let start = "Network plugin returns error: cni plugin not initialized: ";
        assert_eq!(message(&state), format!("{start}directory /etc/cni/net.d does not exist"));
        assert!(state.take(Found::default()));
        assert_eq!(message(&state), format!("{start}no valid network config found in /etc/cni/net.d"));
        assert!(state.take(Found { problems: vec!["a: bad".into(), "b: worse".into()], ..Found::default() }));
        assert!(message(&state).ends_with("in /etc/cni/net.d: a: bad; b: worse"));
    }

    #[test]
    fn lists_without_the_status_verb_are_ready_at_once() {
        let state = Published::new(found("1.0.0", "n"));
        assert_eq!((message(&state).as_str(), &state.health), ("", &Health::Good));
    }

    #[test]
    fn the_old_health_stands_until_the_new_list_was_asked() {
        let mut state = Published::new(found("1.1.0", "n"));
        assert!(message(&state).ends_with(r#"network "n" was not asked for its status yet"#));
        state.health = Health::Bad("no address left".into());
        assert!(message(&state).ends_with(r#"network "n" is not ready: no address left"#));
        assert!(!state.take(found("1.1.0", "n")), "the same again is no news");
        state.health = Health::Good;
        assert!(state.take(found("1.1.0", "m")));
        assert_eq!(message(&state), "");
        assert!(state.take(Found::default()) && state.take(found("1.1.0", "m")));
        assert_eq!(state.health, Health::Unknown);
    }
}
