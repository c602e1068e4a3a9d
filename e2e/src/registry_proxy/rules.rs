//! Which requests run into which trouble, and how often.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

/// What happens to an answer. Numbers of bytes count from the beginning of its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The connection ends after so many bytes.
    Cut {
        /// Bytes sent before.
        after: u64,
    },
    /// Nothing comes for a while after so many bytes, then it goes on.
    Stall {
        /// Bytes sent before.
        after: u64,
        /// For how long.
        time: Duration,
    },
    /// Nothing comes after so many bytes until the trouble is lifted, then it goes on.
    Hold {
        /// Bytes sent before.
        after: u64,
    },
    /// The registry is not asked; this status is the answer.
    Status {
        /// Such as 503.
        code: u16,
        /// The header `Retry-After`.
        retry_after: Option<u64>,
    },
    /// The connection ends without an answer.
    Refuse,
    /// The answer is 307 to the same path at another `host:port`.
    Redirect {
        /// Where to.
        to: String,
    },
}

impl Trouble {
    /// After how many bytes it strikes; `None` for what takes the place of the whole answer.
    pub(super) fn after(&self) -> Option<u64> {
        match self {
            Self::Cut { after } | Self::Stall { after, .. } | Self::Hold { after } => Some(*after),
            Self::Status { .. } | Self::Refuse | Self::Redirect { .. } => None,
        }
    }
}

/// One trouble with its condition.
#[derive(Debug)]
pub(super) struct Rule {
    path: String,
    left: AtomicUsize,
    pub(super) trouble: Trouble,
    lifted: watch::Sender<bool>,
}

impl Rule {
    /// Takes one of the times that are left.
    pub(super) fn strikes(&self) -> bool {
        let fewer = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok()
    }

    pub(super) async fn until_lifted(&self) {
        // The sender lives as long as we do, so this waits for nothing but the value.
        drop(self.lifted.subscribe().wait_for(|lifted| *lifted).await);
    }
}

/// A trouble in force. Dropping it lifts the trouble and lets go on what it holds.
#[derive(Debug)]
#[must_use = "a trouble is in force as long as this lives"]
pub struct InForce(Arc<Rule>);

impl InForce {
    /// Lifts the trouble.
    pub fn lift(self) {}
}

impl Drop for InForce {
    fn drop(&mut self) {
        self.0.left.store(0, Ordering::SeqCst);
        self.0.lifted.send_replace(true);
    }
}

#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Vec<Weak<Rule>>>);

impl Rules {
    pub(super) fn put(&self, path: &str, times: usize, trouble: Trouble) -> InForce {
        let (left, lifted) = (AtomicUsize::new(times), watch::Sender::new(false));
        let rule = Arc::new(Rule { path: path.to_owned(), left, trouble, lifted });
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules.retain(|rule| rule.strong_count() > 0);
        rules.push(Arc::downgrade(&rule));
        InForce(rule)
    }

    /// The rules for a path, those of whole answers first and then by the place where they strike.
    pub(super) fn of(&self, path: &str) -> Vec<Arc<Rule>> {
        let rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = rules.iter().filter_map(Weak::upgrade).collect();
        found.retain(|rule| path.contains(&rule.path));
        found.sort_by_key(|rule| rule.trouble.after());
        found
    }
}
