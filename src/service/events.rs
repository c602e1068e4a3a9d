//! GetContainerEvents: a subscription on the wire.

use std::pin::Pin;
use std::task::{Context, Poll};

use cri_api::v1;
use tokio_stream::Stream;
use tonic::Status;

use super::convert::{container, sandbox};
use super::status::status;
use crate::events::{Change, Event, Subscription};
use crate::pod::Pods;

/// The events of a subscription until it ends, and then the reason.
#[derive(Debug)]
pub(super) struct Events {
    pods: Pods,
    subscription: Option<Subscription>,
}

impl Events {
    /// Everything from now on.
    pub(super) fn subscribe(pods: &Pods) -> Self {
        Self { pods: pods.clone(), subscription: Some(pods.events().subscribe()) }
    }

    fn response(&self, event: &Event) -> v1::ContainerEventResponse {
        let facts = &self.pods.settings().facts;
        v1::ContainerEventResponse {
            container_id: event.object.id().to_owned(),
            container_event_type: kind(event.change).into(),
            created_at: event.created_at.0,
            pod_sandbox_status: event.pod.sandbox.as_deref().map(sandbox::status),
            containers_statuses: container::statuses(&event.pod, facts),
        }
    }
}

impl Stream for Events {
    type Item = Result<v1::ContainerEventResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(subscription) = &mut self.subscription else { return Poll::Ready(None) };
        subscription.poll_next(context).map(|next| match next {
            Ok(event) => Some(Ok(self.response(&event))),
            Err(error) => {
                self.subscription = None;
                Some(Err(status(&error)))
            }
        })
    }
}

fn kind(change: Change) -> v1::ContainerEventType {
    match change {
        Change::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Change::Started => v1::ContainerEventType::ContainerStartedEvent,
        Change::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Change::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    }
}
