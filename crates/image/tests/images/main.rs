//! The whole store against registries: Debian's `docker-registry`, and a small server that misbehaves on request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod builder;
mod corrupt;
mod failures;
mod fixture;
mod machine;
mod media;
mod mirrors;
mod progress;
mod proxy;
mod push;
mod real_registry;
mod registry;
mod resume;
mod secrets;
mod server;
mod sharing;
mod stalls;
mod tls;
mod tokens;
