//! Spans of what is done for pods: one for each step, beneath the call that asked for it; [`types::spans`] says what may stand in
//! them.
//!
//! A call's span is the current one of its task. It goes with the message to the pod's task ([`super::actor::Message`]) and from
//! there to the operation's, so that steps find it as if there were one task only. Where it is none, because nothing is
//! exported, the call is not traced or nobody asked, there are no spans of steps either.

use tracing::Span;
use tracing::field::Empty;
use types::{ContainerId, SandboxId, spans};

use super::error::StepError;
use super::shared::Shared;

/// Whom a step is about.
#[derive(Debug, Default)]
struct Subject {
    sandbox: Option<SandboxId>,
    container: Option<ContainerId>,
    key: Option<spec::PodKey>,
}

impl Subject {
    /// By the id that a step has: a sandbox's, a container's, or another of which nothing is known here.
    fn find(shared: &Shared, id: &str) -> Self {
        let directory = shared.directory();
        let container = directory.containers.get_key_value(id);
        let known = directory.sandboxes.get_key_value(id).map(|(id, _)| id);
        let Some(sandbox) = container.map(|(_, sandbox)| sandbox).or(known) else { return Self::default() };
        // Only traced steps come here, and a node has a few hundred pods.
        let key = directory.keys.iter().find(|(_, owner)| *owner == sandbox).map(|(key, _)| key.clone());
        Self { sandbox: Some(sandbox.clone()), container: container.map(|(id, _)| id.clone()), key }
    }
}

/// The span of one step.
pub(super) fn step(shared: &Shared, verb: &'static str, step: &'static str, id: &str) -> Span {
    if Span::current().is_disabled() {
        return Span::none();
    }
    let Subject { sandbox, container, key } = Subject::find(shared, id);
    let key = key.as_ref();
    tracing::info_span!(
        target: spans::TARGET, "step", otel.name = format!("{verb}: {step}"), op = verb, step,
        pod.id = sandbox.as_ref().map(SandboxId::as_str),
        container.id = container.as_ref().map(ContainerId::as_str),
        k8s.namespace.name = key.map(|key| key.namespace.as_str()),
        k8s.pod.name = key.map(|key| key.name.as_str()),
        k8s.pod.uid = key.map(|key| key.uid.as_str()),
        otel.status_description = Empty,
    )
}

/// Has the span tell that its step failed, and of what kind the failure is. The text stays in the log: OCI runtimes quote the
/// commands that they could not start.
pub(super) fn failed(span: &Span, error: &StepError) {
    if !span.is_disabled() {
        span.record(spans::FAILURE, tracing::field::debug(error.kind()));
    }
}
