//! What lies between two views of a pod, as a list of changes.
//!
//! A view may leave out steps, as when a process has ended before its start was reported: the changes go through all of
//! them, in the order of a life. A step back, which no life has but a server that finds another truth after a restart
//! may show, is told by the change that leads to where the object is now.

use std::sync::Arc;

use types::ContainerId;

use super::{Change, Object};
use crate::pod::view::{ContainerState, ContainerView, PodView, SandboxState, SandboxView};

/// How far an object is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Absent,
    Created,
    Started,
    Stopped,
    Gone,
}

/// Each stage with the change that leads to it.
const STEPS: [(Stage, Change); 4] = [
    (Stage::Created, Change::Created),
    (Stage::Started, Change::Started),
    (Stage::Stopped, Change::Stopped),
    (Stage::Gone, Change::Deleted),
];

/// What has changed in a pod that is still there. A sandbox comes before its containers and ends after them.
pub(super) fn between(before: Option<&PodView>, after: &PodView) -> Vec<(Object, Change)> {
    let mut changes = Vec::new();
    let Some(sandbox) = after.sandbox.as_deref() else { return changes };
    let was = before.and_then(|view| view.sandbox.as_deref()).map_or(Stage::Absent, of_sandbox);
    let object = Object::Sandbox(sandbox.id.clone());
    let (ended, begun): (Vec<_>, Vec<_>) = course(was, of_sandbox(sandbox), true)
        .map(|change| (object.clone(), change))
        .partition(|(_, change)| *change == Change::Stopped);
    changes.extend(begun);
    let earlier = before.map(|view| view.containers.as_slice()).unwrap_or_default();
    let mut remaining = Beside::new(&after.containers);
    for container in earlier {
        if remaining.find(&container.id).is_none() {
            changes.extend(end_of(container));
        }
    }
    let mut earlier = Beside::new(earlier);
    for container in &after.containers {
        let was = earlier.find(&container.id).map_or(Stage::Absent, of_container);
        let has_run = container.started_at.is_set();
        let course = course(was, of_container(container), has_run);
        changes.extend(course.map(|change| (Object::Container(container.id.clone()), change)));
    }
    changes.extend(ended);
    changes
}

/// Containers that are looked up one after the other, in about the order in which they stand: next to the last one mostly.
struct Beside<'a> {
    containers: &'a [Arc<ContainerView>],
    next: usize,
}

impl<'a> Beside<'a> {
    fn new(containers: &'a [Arc<ContainerView>]) -> Self {
        Self { containers, next: 0 }
    }

    fn find(&mut self, id: &ContainerId) -> Option<&'a ContainerView> {
        let is_it = |container: &Arc<ContainerView>| container.id == *id;
        let is_next = self.containers.get(self.next).is_some_and(is_it);
        let place = if is_next { self.next } else { self.containers.iter().position(is_it)? };
        self.next = place + 1;
        self.containers.get(place).map(Arc::as_ref)
    }
}

/// What has changed when all of a pod is gone.
pub(super) fn at_the_end(before: &PodView) -> Vec<(Object, Change)> {
    let mut changes: Vec<_> = before.containers.iter().flat_map(|container| end_of(container)).collect();
    if let Some(sandbox) = &before.sandbox {
        let course = course(of_sandbox(sandbox), Stage::Gone, false);
        changes.extend(course.map(|change| (Object::Sandbox(sandbox.id.clone()), change)));
    }
    changes
}

fn end_of(container: &ContainerView) -> impl Iterator<Item = (Object, Change)> {
    let object = Object::Container(container.id.clone());
    course(of_container(container), Stage::Gone, false).map(move |change| (object.clone(), change))
}

/// The way from one stage to another. Only what has run passes through the stage of running, and only what runs has an end
/// before it goes.
fn course(from: Stage, to: Stage, has_run: bool) -> impl Iterator<Item = Change> {
    STEPS.into_iter().filter_map(move |(stage, change)| {
        let passes = match stage {
            Stage::Started => has_run,
            Stage::Stopped => from == Stage::Started,
            _ => true,
        };
        let is_on_the_way = from < stage && stage < to && passes;
        (is_on_the_way || (stage == to && from != to)).then_some(change)
    })
}

fn of_sandbox(view: &SandboxView) -> Stage {
    match view.state {
        SandboxState::Ready => Stage::Started,
        SandboxState::NotReady => Stage::Stopped,
    }
}

fn of_container(view: &ContainerView) -> Stage {
    match view.state {
        ContainerState::Created => Stage::Created,
        ContainerState::Running => Stage::Started,
        ContainerState::Exited => Stage::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(from: Stage, to: Stage, has_run: bool) -> Vec<Change> {
        course(from, to, has_run).collect()
    }

    #[test]
    fn a_life_is_told_step_by_step_whatever_is_left_out() {
        use Change as C;
        use Stage as S;
        assert_eq!(way(S::Absent, S::Created, false), [C::Created]);
        assert_eq!(way(S::Absent, S::Started, true), [C::Created, C::Started]);
        assert_eq!(way(S::Absent, S::Stopped, true), [C::Created, C::Started, C::Stopped]);
        assert_eq!(way(S::Created, S::Started, true), [C::Started]);
        assert_eq!(way(S::Created, S::Stopped, true), [C::Started, C::Stopped]);
        assert_eq!(way(S::Created, S::Stopped, false), [C::Stopped], "its start has failed");
        assert_eq!(way(S::Started, S::Gone, false), [C::Stopped, C::Deleted]);
        assert_eq!(way(S::Stopped, S::Gone, false), [C::Deleted]);
        assert_eq!(way(S::Created, S::Gone, false), [C::Deleted], "it has never run");
        for stage in [S::Created, S::Started, S::Stopped] {
            assert!(way(stage, stage, true).is_empty());
        }
    }

    #[test]
    fn a_step_back_is_told_by_where_it_leads() {
        assert_eq!(way(Stage::Started, Stage::Created, true), [Change::Created]);
        assert_eq!(way(Stage::Stopped, Stage::Started, true), [Change::Started]);
    }
}
