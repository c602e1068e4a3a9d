//! Exec, attach and port-forward sessions: a client upgrades an HTTP connection and bytes flow between it and a container.
//!
//! Owned here: the HTTP server and its tokens, both transports (SPDY/3.1 and WebSocket) and what a session is, whichever of them
//! carries it. Not owned here: containers. They are reached through [`Backend`], which the program implements.
//!
//! Promises: a slow or vanished client never blocks a container and never another client; a session ends with everything
//! that it has started; every buffer has a bound.

pub mod backend;
mod channels;
#[cfg(test)]
mod fake;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod server;
mod session;
mod spdy;
mod status;
mod tls;
mod token;
mod websocket;

pub use backend::Backend;
pub use server::{Config, Server, UrlError};
pub use tls::{TlsError, TlsFiles};
