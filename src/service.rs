//! The gRPC edge: the only part that speaks tonic and the wire types.
//!
//! Each RPC is a conversion, one call of the domain and a conversion back; [`status`] turns failures into gRPC codes.

mod chunks;
pub mod convert;
mod cri_metrics;
mod deadline;
mod events;
mod image;
mod runtime;
mod status;
mod streams;
mod trace;

use std::sync::Arc;

use cri_api::v1::image_service_server::ImageServiceServer;
use cri_api::v1::runtime_service_server::RuntimeServiceServer;
use tokio::sync::watch;
use tonic::service::Routes;

use self::deadline::Deadline;
pub use self::image::ImageEdge;
pub use self::runtime::RuntimeEdge;
use self::trace::Traced;

use crate::meter::Meter;
use crate::pod::Pods;
use crate::tracing_export::Sampling;

/// The largest message that is accepted, in bytes; clients of Kubernetes send and accept 16 MiB.
const MESSAGE_BYTES: usize = 16 << 20;

/// How far the start of the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Records are being made true; lists and verbs wait.
    Recovering,
    /// In service.
    Ready,
}

/// What the edges are made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// All pods.
    pub pods: Pods,
    /// What pods and containers use.
    pub meter: Arc<Meter>,
    /// The image store.
    pub images: ::image::Images,
    /// Where sessions are served.
    pub streaming: ::streaming::Server,
    /// How far the start is.
    pub readiness: watch::Receiver<Readiness>,
    /// Which calls are traced; none without.
    pub sampling: Option<Sampling>,
    /// Configuration in force, as JSON for verbose answers; a reload replaces it.
    pub config: watch::Receiver<Arc<serde_json::Value>>,
}

/// Both CRI services.
#[must_use]
pub fn routes(parts: Parts) -> Routes {
    let sampling = parts.sampling;
    let images = ImageServiceServer::new(ImageEdge::new(parts.clone()))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let runtime = RuntimeServiceServer::new(RuntimeEdge::new(parts))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    Routes::new(Traced { service: Deadline(runtime), sampling })
        .add_service(Traced { service: Deadline(images), sampling })
}
