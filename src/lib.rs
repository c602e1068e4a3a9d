//! The daemon of crimson: a CRI server for kubelet.

pub mod app;
pub mod check;
pub mod cli;
pub mod config;
pub mod drivers;
pub mod facts;
pub mod handlers;
pub mod health;
pub mod listener;
pub mod logging;
pub mod manual;
pub mod notify;
pub mod pod;
pub mod reload;
pub mod service;
pub mod shutdown;
