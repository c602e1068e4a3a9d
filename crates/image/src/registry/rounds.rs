//! Rounds over a registry's servers: when another one is worth it, and after what pause.

use std::time::Duration;

use super::{Failure, Host, Worst};

/// Pause after a round that brought something, and after the first that brought nothing.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(250);
/// The longest that a server's wish to be left alone is heeded; one that wants more time has failed for now.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest that a mirror's wish is heeded when the registry fails as well.
const MIRROR_WAIT: Duration = Duration::from_secs(5);

/// What the rounds so far have shown.
#[derive(Debug)]
pub(super) struct Rounds<'a> {
    pub(super) worst: Worst<'a>,
    /// Rounds in a row that may bring nothing.
    limit: u32,
    idle: u32,
    /// Servers that cannot be reached at all may be back soon: true in the middle of a download.
    hopeful: bool,
    may_recover: bool,
    wait: Duration,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(limit: u32, hopeful: bool) -> Self {
        Self { worst: Worst::default(), limit, idle: 0, hopeful, may_recover: false, wait: Duration::ZERO }
    }

    pub(super) fn note(&mut self, host: &'a Host, failure: Failure) {
        match &failure {
            Failure::Unavailable(_) => self.may_recover = true,
            Failure::Unreachable(_) => self.may_recover |= self.hopeful,
            Failure::Busy { after, .. } => {
                self.may_recover = true;
                let after = after.unwrap_or_default();
                let is_registry = host.endpoint.is_registry;
                self.wait = self.wait.max(if is_registry { after } else { after.min(MIRROR_WAIT) });
            }
            _ => {}
        }
        self.worst.note(host, failure);
    }

    /// Waits for the next round; `false` when there is to be none.
    pub(super) async fn go_on(&mut self, something_came: bool) -> bool {
        self.idle = if something_came { 0 } else { self.idle + 1 };
        if !self.may_recover || self.idle >= self.limit || self.wait > LONGEST_WAIT {
            return false;
        }
        tokio::time::sleep(self.pause().max(self.wait)).await;
        (self.may_recover, self.wait) = (false, Duration::ZERO);
        true
    }

    /// Lets more rounds bring nothing.
    pub(super) fn allow(&mut self, limit: u32) {
        self.limit = self.limit.max(limit);
    }

    /// The registry itself has failed more than once: time for servers that were passed over.
    pub(super) fn is_desperate(&self) -> bool {
        self.idle > 1
    }

    fn pause(&self) -> Duration {
        self.idle.checked_sub(1).map_or(SHORT_PAUSE, |idle| PAUSE * 2_u32.saturating_pow(idle))
    }
}
