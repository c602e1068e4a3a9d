//! The CRI v1 wire types, server traits and client stubs, generated from `proto/runtime/v1/api.proto`.
//!
//! Only `src/service`, `crates/spec` and the test harness may import this crate: the domain speaks its own words.

#![allow(missing_docs, clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]

mod listed;

/// Package `runtime.v1`.
pub mod v1 {
    pub use crate::listed::ListContainersResponse;

    tonic::include_proto!("runtime.v1");
}
