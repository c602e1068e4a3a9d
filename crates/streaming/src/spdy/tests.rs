//! Both kinds of connections, driven by a client of our own. Time is paused: what waits is told by the clock, not by luck.

mod anything;
mod client;
mod command;
mod forward;

use std::time::Duration;

use super::Limits;

const LIMITS: Limits =
    Limits { creation: Duration::from_secs(30), idle: Duration::from_secs(3600), pairs: 4 };
