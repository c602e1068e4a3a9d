//! Who is told how long verbs and their steps have taken.

use std::fmt::Debug;
use std::time::Duration;

/// Hears of steps and verbs as they end, on the task that performs them: it has to be quick. Names come from this program alone.
pub trait Observer: Debug + Send + Sync {
    /// A step has ended.
    fn step(&self, verb: &'static str, step: &'static str, taken: Duration, succeeded: bool);

    /// A verb has ended.
    fn verb(&self, verb: &'static str, taken: Duration, succeeded: bool);
}
