//! The whole store against registries: Debian's `docker-registry`, and a small server that misbehaves on request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod builder;
mod corrupt;
mod failures;
mod fixture;
mod mirrors;
mod proxy;
mod real_registry;
mod registry;
mod server;
mod sharing;
mod tls;
mod tokens;
