//! The daemon of crimson: a CRI server for kubelet.

pub mod admin;
pub mod app;
pub mod check;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod drivers;
pub mod events;
pub mod facts;
pub mod handlers;
pub mod health;
pub mod listener;
pub mod logging;
pub mod manual;
pub mod meter;
pub mod metrics;
pub mod notify;
pub mod pod;
pub mod reload;
pub mod service;
pub mod shutdown;
pub mod streaming;
pub mod tasks;
pub mod tracing_export;
mod ulimits;
