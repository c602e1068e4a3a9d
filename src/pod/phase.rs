//! The life of sandboxes and containers as pure tables: which request is begun, joined, deferred, already done or
//! refused in which phase.
//!
//! ```text
//! sandbox:    Creating ──▶ Ready ──▶ Stopping ──▶ NotReady ──▶ Removing ──▶ (gone)
//!                │           └────────(pause dies)────▶│            ▲
//!                └─▶ undone, (gone)                    └────────────┘
//!
//! container:  Creating ──▶ Created ──▶ Starting ──▶ Running ──▶ Exited ──▶ Removing ──▶ (gone)
//!                │            │            └──(start fails)──────▲            ▲
//!                └─▶ (gone)   └──────────────────────────────────────────────┘
//! ```
//!
//! No clock, no IO, no lock: the pod's task asks here and then acts.

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life. Recorded on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SandboxPhase {
    /// Being made; undone if the server dies now.
    Creating,
    /// In service.
    Ready,
    /// Being stopped.
    Stopping,
    /// Stopped, or its pause container died.
    NotReady,
    /// Being removed.
    Removing,
}

/// Where a container is in its life. Recorded on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ContainerPhase {
    /// Being made; undone if the server dies now.
    Creating,
    /// Made.
    Created,
    /// Being started.
    Starting,
    /// Started.
    Running,
    /// Ended, or failed to start.
    Exited,
    /// Being removed.
    Removing,
}

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start the operation.
    Begin,
    /// Wait for the same operation, which is under way.
    Join,
    /// Look again when the operation under way has ended.
    Defer,
    /// Nothing to do: the goal is reached.
    Done,
    /// Not possible in this phase.
    Refuse,
}

/// Requests on a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SandboxVerb {
    /// RunPodSandbox, repeated for the same identity.
    Run,
    /// StopPodSandbox.
    Stop,
    /// RemovePodSandbox.
    Remove,
    /// CreateContainer in it.
    CreateContainer,
    /// StartContainer in it.
    StartContainer,
    /// UpdatePodSandboxResources.
    Update,
}

/// Requests on a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerVerb {
    /// CreateContainer, repeated for the same identity.
    Create,
    /// StartContainer.
    Start,
    /// StopContainer.
    Stop,
    /// RemoveContainer.
    Remove,
    /// ExecSync, ReopenContainerLog and what else needs a running process.
    Use,
    /// UpdateContainerResources.
    Update,
}

impl SandboxPhase {
    /// What to do with `verb` now.
    #[must_use]
    pub(super) fn decide(self, verb: SandboxVerb) -> Decision {
        use Decision as D;
        use SandboxPhase as P;
        match (self, verb) {
            (P::Creating, SandboxVerb::Run) => D::Join,
            (P::Ready, SandboxVerb::Run) => D::Done,
            (P::Creating, _) => D::Defer,
            (P::Ready, SandboxVerb::CreateContainer | SandboxVerb::StartContainer | SandboxVerb::Update) => {
                D::Begin
            }
            (P::Ready | P::NotReady, SandboxVerb::Remove) => D::Begin,
            (P::Ready, SandboxVerb::Stop) => D::Begin,
            (P::Stopping, SandboxVerb::Stop) | (P::Removing, SandboxVerb::Stop | SandboxVerb::Remove) => {
                D::Join
            }
            // A stopped sandbox may have been left so by a dying pause container: stopping frees what is left.
            (P::NotReady, SandboxVerb::Stop) => D::Begin,
            (P::Stopping, SandboxVerb::Remove) => D::Defer,
            (P::Stopping | P::NotReady | P::Removing, _) => D::Refuse,
        }
    }

    /// For people and error texts.
    #[must_use]
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Creating => "being made",
            Self::Ready => "ready",
            Self::Stopping => "being stopped",
            Self::NotReady => "not ready",
            Self::Removing => "being removed",
        }
    }
}

impl ContainerPhase {
    /// What to do with `verb` now.
    #[must_use]
    pub(super) fn decide(self, verb: ContainerVerb) -> Decision {
        use ContainerPhase as P;
        use ContainerVerb as V;
        use Decision as D;
        match (self, verb) {
            (P::Creating, V::Create) | (P::Starting, V::Start) | (P::Removing, V::Remove) => D::Join,
            (P::Creating, _) => D::Defer,
            (P::Created, V::Create) => D::Done,
            (P::Created, V::Start) => D::Begin,
            (P::Created | P::Exited | P::Removing, V::Stop) => D::Done,
            (P::Running, V::Stop | V::Use) | (P::Created | P::Running, V::Update) => D::Begin,
            (P::Starting, V::Stop | V::Remove | V::Use | V::Update) => D::Defer,
            (P::Created | P::Running | P::Exited, V::Remove) => D::Begin,
            (P::Starting | P::Running | P::Exited | P::Removing, V::Create)
            | (P::Running | P::Exited | P::Removing, V::Start)
            | (P::Created | P::Exited | P::Removing, V::Use)
            | (P::Exited | P::Removing, V::Update) => D::Refuse,
        }
    }

    /// For people and error texts.
    #[must_use]
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Creating => "being made",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Removing => "being removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SANDBOX_PHASES: [SandboxPhase; 5] = [
        SandboxPhase::Creating,
        SandboxPhase::Ready,
        SandboxPhase::Stopping,
        SandboxPhase::NotReady,
        SandboxPhase::Removing,
    ];
    const CONTAINER_PHASES: [ContainerPhase; 6] = [
        ContainerPhase::Creating,
        ContainerPhase::Created,
        ContainerPhase::Starting,
        ContainerPhase::Running,
        ContainerPhase::Exited,
        ContainerPhase::Removing,
    ];

    #[test]
    fn stop_and_remove_are_never_refused() {
        for phase in SANDBOX_PHASES {
            assert_ne!(phase.decide(SandboxVerb::Stop), Decision::Refuse, "{phase:?}");
            assert_ne!(phase.decide(SandboxVerb::Remove), Decision::Refuse, "{phase:?}");
        }
        for phase in CONTAINER_PHASES {
            assert_ne!(phase.decide(ContainerVerb::Stop), Decision::Refuse, "{phase:?}");
            assert_ne!(phase.decide(ContainerVerb::Remove), Decision::Refuse, "{phase:?}");
        }
    }

    /// A change of what is on its way somewhere waits for its arrival; what has ended has no limits to change.
    #[test]
    fn limits_of_what_is_there_can_be_changed() {
        for phase in CONTAINER_PHASES {
            let expected = match phase {
                ContainerPhase::Created | ContainerPhase::Running => Decision::Begin,
                ContainerPhase::Creating | ContainerPhase::Starting => Decision::Defer,
                ContainerPhase::Exited | ContainerPhase::Removing => Decision::Refuse,
            };
            assert_eq!(phase.decide(ContainerVerb::Update), expected, "{phase:?}");
        }
    }

    #[test]
    fn nothing_is_created_or_started_in_a_sandbox_that_is_not_ready() {
        for phase in SANDBOX_PHASES {
            for verb in [SandboxVerb::CreateContainer, SandboxVerb::StartContainer, SandboxVerb::Update] {
                let begun = phase.decide(verb) == Decision::Begin;
                assert_eq!(begun, phase == SandboxPhase::Ready, "{phase:?} {verb:?}");
            }
        }
    }

    /// Drives a container through random verbs, ending each begun operation at once, with a reference model beside it.
    fn step(phase: ContainerPhase, verb: ContainerVerb) -> Option<ContainerPhase> {
        match (phase.decide(verb), verb) {
            (Decision::Begin, ContainerVerb::Start) => Some(ContainerPhase::Running),
            (Decision::Begin, ContainerVerb::Stop) => Some(ContainerPhase::Exited),
            (Decision::Begin, ContainerVerb::Remove) => None,
            _ => Some(phase),
        }
    }

    proptest! {
        #[test]
        fn a_container_runs_at_most_once(verbs in proptest::collection::vec(0_u8..6, 0..40)) {
            let mut phase = ContainerPhase::Created;
            let mut starts = 0;
            for verb in verbs {
                let verb = match verb {
                    0 => ContainerVerb::Create,
                    1 => ContainerVerb::Start,
                    2 => ContainerVerb::Stop,
                    3 => ContainerVerb::Remove,
                    4 => ContainerVerb::Update,
                    _ => ContainerVerb::Use,
                };
                let Some(next) = step(phase, verb) else { return Ok(()) };
                starts += usize::from(phase != ContainerPhase::Running && next == ContainerPhase::Running);
                prop_assert!(!(phase == ContainerPhase::Exited && next != ContainerPhase::Exited));
                phase = next;
            }
            prop_assert!(starts <= 1);
        }
    }
}
