//! Clients of exec, attach and port-forward: given the URL of a CRI reply they upgrade an HTTP connection and speak the
//! channel protocols over SPDY/3.1 or WebSocket, as kubectl and crictl do.
//!
//! Frames are written and read here by hand, so nothing of the server's codecs is trusted to test itself, and a test can
//! send what no library would. Like the clients of Kubernetes, this one neither grants nor minds SPDY's windows: what it
//! does not read waits in the connection. It reads when it is told to, and so is as slow as a test wants.

mod forward;
mod link;
mod on_stage;
mod pod_network;
mod remote;
mod spdy;
mod upgrade;
mod websocket;

use std::fmt;

pub use forward::{Forwarded, ForwardedInput, Tunnel};
pub use pod_network::listen_in_network_of;
pub use remote::{Input, Outcome, Remote};
pub use upgrade::{Answer, Dialer, Pipe, ask, offer};

/// What a session is carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// SPDY/3.1 with this version of the channel protocol; empty asks for none.
    Spdy(&'static str),
    /// WebSocket with this subprotocol; empty asks for none.
    WebSocket(&'static str),
    /// SPDY/3.1 whose bytes are the messages of a WebSocket, for port-forward.
    Tunnelled,
}

/// What kubectl and crictl ask for.
pub const SPDY: Protocol = Protocol::Spdy("v4.channel.k8s.io");
/// What newer ones ask for.
pub const WEBSOCKET: Protocol = Protocol::WebSocket("v5.channel.k8s.io");
/// What kubectl and crictl ask for when they forward ports.
pub const SPDY_FORWARD: Protocol = Protocol::Spdy("portforward.k8s.io");
/// Two channels for each port.
pub const WEBSOCKET_FORWARD: Protocol = Protocol::WebSocket("v4.channel.k8s.io");

/// Everything that exec and attach can be asked for in.
pub const REMOTE_PROTOCOLS: [Protocol; 10] = [
    SPDY,
    Protocol::Spdy("v3.channel.k8s.io"),
    Protocol::Spdy("v2.channel.k8s.io"),
    Protocol::Spdy("channel.k8s.io"),
    WEBSOCKET,
    Protocol::WebSocket("v4.channel.k8s.io"),
    Protocol::WebSocket("v4.base64.channel.k8s.io"),
    Protocol::WebSocket("channel.k8s.io"),
    Protocol::WebSocket("base64.channel.k8s.io"),
    Protocol::WebSocket(""),
];

/// Everything that port-forward can be asked for in.
pub const FORWARD_PROTOCOLS: [Protocol; 5] = [
    SPDY_FORWARD,
    Protocol::Tunnelled,
    WEBSOCKET_FORWARD,
    Protocol::WebSocket("v4.base64.channel.k8s.io"),
    Protocol::WebSocket(""),
];

impl Protocol {
    /// Its name without the transport.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spdy(name) | Self::WebSocket(name) => name,
            Self::Tunnelled => "SPDY/3.1+portforward.k8s.io",
        }
    }

    /// Whether the end of a session is told as a JSON status.
    #[must_use]
    pub fn tells_status(self) -> bool {
        self.name().starts_with("v4.") || self.name().starts_with("v5.")
    }

    /// Whether sizes of a terminal can be told.
    #[must_use]
    pub fn resizes(self) -> bool {
        !matches!(self, Self::Spdy("" | "channel.k8s.io" | "v2.channel.k8s.io"))
    }

    /// Whether the client can end its input and go on listening.
    #[must_use]
    pub fn half_closes(self) -> bool {
        match self {
            // The first version's server ends the input by itself, in the other direction.
            Self::Spdy(name) => !name.is_empty(),
            Self::WebSocket(name) => name.starts_with("v5."),
            Self::Tunnelled => true,
        }
    }

    fn is_base64(self) -> bool {
        matches!(self, Self::WebSocket(name) if name.contains("base64"))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spdy(name) => write!(f, "SPDY {name:?}"),
            Self::WebSocket(name) => write!(f, "WebSocket {name:?}"),
            Self::Tunnelled => f.write_str("SPDY in WebSocket"),
        }
    }
}

/// Bytes that no two transfers have in common; the same ones for the same seed.
#[must_use]
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    crate::trial::Random::new(seed).bytes(count)
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "CRI asks for them one by one")]
pub struct Streams {
    /// The client sends input.
    pub stdin: bool,
    /// The client reads standard output.
    pub stdout: bool,
    /// The client reads standard error.
    pub stderr: bool,
    /// There is a terminal.
    pub tty: bool,
}

impl Streams {
    /// Both outputs.
    pub const OUTPUT: Self = Self { stdin: false, stdout: true, stderr: true, tty: false };
    /// Input and both outputs.
    pub const ALL: Self = Self { stdin: true, stdout: true, stderr: true, tty: false };
    /// Input and output of a terminal.
    pub const TERMINAL: Self = Self { stdin: true, stdout: true, stderr: false, tty: true };
}

/// The channels of exec and attach, numbered as WebSocket numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// To the process.
    Stdin,
    /// From the process.
    Stdout,
    /// From the process.
    Stderr,
    /// How it ended.
    Error,
    /// Sizes of the terminal.
    Resize,
}

impl Channel {
    const ALL: [Self; 5] = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];

    fn number(self) -> u32 {
        self as u32
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Error => "error",
            Self::Resize => "resize",
        }
    }
}
