//! The daemon of crimson: a CRI server for kubelet.

pub mod cli;
pub mod config;
pub mod listener;
pub mod logging;
pub mod notify;
pub mod shutdown;
