//! Which protocol is spoken inside SPDY: the client offers names in `X-Stream-Protocol-Version`, the server takes the first
//! that it knows.

use crate::channels::StatusForm;

/// What the streams of a connection are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Exec and attach.
    Command,
    /// Port-forward.
    Forward,
}

impl Kind {
    /// Every protocol that is spoken, the newest first. When none fits, the answer is 403 with one
    /// `X-Accepted-Stream-Protocol-Versions` header for each.
    pub(crate) fn accepted(self) -> &'static [Version] {
        match self {
            Self::Command => &[Version::V4, Version::V3, Version::V2, Version::V1],
            Self::Forward => &[Version::Forward],
        }
    }
}

/// A protocol inside SPDY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// The first one of remote commands, which had no number yet.
    V1,
    /// As `V1`; clients close their streams properly.
    V2,
    /// With sizes of terminals.
    V3,
    /// With exit codes.
    V4,
    /// The only one of port-forward.
    Forward,
}

impl Version {
    /// Its name in the header.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V1 => "channel.k8s.io",
            Self::V2 => "v2.channel.k8s.io",
            Self::V3 => "v3.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::Forward => "portforward.k8s.io",
        }
    }

    /// Whether a client with a terminal opens a stream for its sizes.
    pub(super) fn resizes(self) -> bool {
        matches!(self, Self::V3 | Self::V4)
    }

    /// How the end of a command is told.
    pub(super) fn status_form(self) -> StatusForm {
        if self == Self::V4 { StatusForm::Json } else { StatusForm::Text }
    }
}

/// Why no protocol was found. The text is for the client.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NegotiationError {
    /// No header, or nothing in it: 400.
    #[error("unable to upgrade: header X-Stream-Protocol-Version names no protocol")]
    Missing,
    /// Nothing that is spoken here: 403 with the accepted ones in headers.
    #[error("unable to upgrade: the client speaks {offered}, the server {accepted}")]
    Unknown {
        /// What the client offered.
        offered: String,
        /// What would have been accepted.
        accepted: String,
    },
}

/// Takes the first protocol of the client's that is spoken here. `offered` are the values of all
/// `X-Stream-Protocol-Version` headers, each of which may hold several names with commas between them.
///
/// # Errors
/// When nothing is offered, or nothing that is spoken here.
pub(crate) fn negotiate(offered: &[&str], kind: Kind) -> Result<Version, NegotiationError> {
    let names: Vec<&str> = offered
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if names.is_empty() {
        return Err(NegotiationError::Missing);
    }
    let accepted = kind.accepted();
    let known = |name: &&str| accepted.iter().copied().find(|version| version.name() == *name);
    names.iter().find_map(known).ok_or_else(|| NegotiationError::Unknown {
        offered: names.join(", "),
        accepted: accepted.iter().map(|version| version.name()).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_order_decides() {
        let offered = ["v2.channel.k8s.io", "v4.channel.k8s.io"];
        assert_eq!(negotiate(&offered, Kind::Command), Ok(Version::V2));
        assert_eq!(negotiate(&["v5.channel.k8s.io, v4.channel.k8s.io"], Kind::Command), Ok(Version::V4));
        assert_eq!(negotiate(&["channel.k8s.io"], Kind::Command), Ok(Version::V1));
        assert_eq!(negotiate(&[" portforward.k8s.io"], Kind::Forward), Ok(Version::Forward));
    }

    #[test]
    fn nothing_and_nothing_known_are_different_errors() {
        assert_eq!(negotiate(&[], Kind::Command), Err(NegotiationError::Missing));
        assert_eq!(negotiate(&["", " ,"], Kind::Forward), Err(NegotiationError::Missing));
        let error = negotiate(&["v4.channel.k8s.io"], Kind::Forward).unwrap_err();
        assert!(matches!(&error, NegotiationError::Unknown { .. }));
        let text = error.to_string();
        assert!(text.contains("v4.channel.k8s.io") && text.contains("portforward.k8s.io"), "{text}");
    }

    #[test]
    fn only_the_newest_tells_exit_codes() {
        for version in Kind::Command.accepted() {
            assert_eq!(version.status_form() == StatusForm::Json, *version == Version::V4);
            assert_eq!(version.resizes(), matches!(version, Version::V3 | Version::V4));
        }
    }
}
