//! Operations in flight: what the daemon does at this moment, at which stage each of it is, and who waits for it.
//!
//! ```text
//! Tasks::begin ─▶ Task ──stage("netns")──▶ Stage, dropped when it is over ─▶ … ─▶ the last clone of the task is dropped
//! Tasks::wait  ─▶ Waiting, dropped when the caller has its answer or leaves
//! ```
//!
//! Promises: an entry goes with its guard, however the operation ends, a panic included; entering and leaving is one short lock
//! for each operation, and a stage costs no allocation; who reads holds up nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stages that one operation can be in at the same time; more are not shown.
const AT_ONCE: usize = 4;

/// All operations of the daemon. Clones are one and the same.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    operations: Arc<Book<Slot>>,
    callers: Arc<Book<Caller>>,
}

/// An operation under way. Clones are the same operation, which is over when the last is dropped.
#[derive(Debug, Clone)]
pub struct Task(Arc<Entry<Slot>>);

/// A caller who waits, as long as the value lives.
#[derive(Debug)]
pub struct Waiting {
    _entry: Entry<Caller>,
}

/// A stage of an operation, as long as the value lives.
#[derive(Debug)]
pub struct Stage<'a> {
    slot: &'a Slot,
    place: Option<usize>,
}

/// What an operation is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It shall end, the sooner the better.
    Operation,
    /// It lasts as long as its user likes.
    Session,
}

/// One operation at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// What it is of.
    pub kind: Kind,
    /// What is done.
    pub verb: &'static str,
    /// To what, in words.
    pub object: String,
    /// And by its id; empty where it has none.
    pub id: String,
    /// Id of the pod or container that it belongs to.
    pub owner: String,
    /// How long it has been going on.
    pub age: Duration,
    /// The stages that it is in, the oldest first.
    pub stages: Vec<StageView>,
    /// The stage that ended last, when it is in none; its age counts from that end.
    pub after: Option<StageView>,
}

/// One stage at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageView {
    /// Its name.
    pub name: &'static str,
    /// How long it has lasted.
    pub age: Duration,
    /// Whether it waits for what is allowed to take its time.
    pub waits: bool,
}

/// Who waits, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerView {
    /// What was asked for.
    pub verb: &'static str,
    /// The pod's id.
    pub pod: String,
    /// The container's id, or its name in words while it has none; empty where the pod itself is meant.
    pub container: String,
    /// How long that is ago.
    pub age: Duration,
}

#[derive(Debug)]
struct Slot {
    kind: Kind,
    verb: &'static str,
    object: String,
    id: String,
    /// Where it is another than `id`.
    owner: Option<String>,
    begun: Instant,
    stages: Mutex<Stages>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stages {
    running: [Option<Began>; AT_ONCE],
    ended: Option<Began>,
}

#[derive(Debug, Clone, Copy)]
struct Began {
    name: &'static str,
    at: Instant,
    waits: bool,
}

#[derive(Debug)]
struct Caller {
    verb: &'static str,
    pod: String,
    container: String,
    begun: Instant,
}

impl Tasks {
    /// Enters an operation.
    #[must_use]
    pub fn begin(&self, verb: &'static str, object: String, id: String) -> Task {
        self.enter(Kind::Operation, verb, object, id, None)
    }

    /// Enters a session in the container or pod `owner`.
    #[must_use]
    pub fn session(&self, verb: &'static str, object: String, id: String, owner: String) -> Task {
        self.enter(Kind::Session, verb, object, id, Some(owner))
    }

    fn enter(
        &self,
        kind: Kind,
        verb: &'static str,
        object: String,
        id: String,
        owner: Option<String>,
    ) -> Task {
        let begun = Instant::now();
        let slot = Slot { kind, verb, object, id, owner, begun, stages: Mutex::default() };
        Task(Arc::new(Book::enter(&self.operations, slot)))
    }

    /// Enters a caller who waits for `verb` to be done to the pod, or to a container of it.
    #[must_use]
    pub fn wait(&self, verb: &'static str, pod: String, container: String) -> Waiting {
        let caller = Caller { verb, pod, container, begun: Instant::now() };
        Waiting { _entry: Book::enter(&self.callers, caller) }
    }

    /// The operations, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<TaskView> {
        let now = Instant::now();
        self.operations.all().iter().map(|slot| slot.view(now)).collect()
    }

    /// The callers, the oldest first.
    #[must_use]
    pub fn callers(&self) -> Vec<CallerView> {
        let now = Instant::now();
        let view = |caller: &Arc<Caller>| CallerView {
            verb: caller.verb,
            pod: caller.pod.clone(),
            container: caller.container.clone(),
            age: now.saturating_duration_since(caller.begun),
        };
        self.callers.all().iter().map(view).collect()
    }

    /// How many operations and sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.operations.lock().len()
    }
}

impl Task {
    /// What is done.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        self.0.value.verb
    }

    /// To what, in words.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.0.value.object
    }

    /// And by its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.value.id
    }

    /// A stage begins; it ends when the value is dropped.
    #[must_use]
    pub fn stage(&self, name: &'static str) -> Stage<'_> {
        self.0.value.stage(name, false)
    }

    /// A stage begins that waits for what is allowed to take its time.
    #[must_use]
    pub fn waits(&self, name: &'static str) -> Stage<'_> {
        self.0.value.stage(name, true)
    }
}

impl Slot {
    fn stage(&self, name: &'static str, waits: bool) -> Stage<'_> {
        let mut stages = self.stages();
        let place = stages.running.iter().position(Option::is_none);
        if let Some(free) = place.and_then(|place| stages.running.get_mut(place)) {
            *free = Some(Began { name, at: Instant::now(), waits });
        }
        Stage { slot: self, place }
    }

    fn stages(&self) -> MutexGuard<'_, Stages> {
        // Each change is one assignment, so a panic leaves nothing half changed.
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self, now: Instant) -> TaskView {
        let since = |began: Began| StageView {
            name: began.name,
            age: now.saturating_duration_since(began.at),
            waits: began.waits,
        };
        let stages = *self.stages();
        let mut running: Vec<Began> = stages.running.into_iter().flatten().collect();
        running.sort_by_key(|began| began.at);
        TaskView {
            kind: self.kind,
            verb: self.verb,
            object: self.object.clone(),
            id: self.id.clone(),
            owner: self.owner.as_ref().unwrap_or(&self.id).clone(),
            age: now.saturating_duration_since(self.begun),
            after: stages.ended.filter(|_| running.is_empty()).map(since),
            stages: running.into_iter().map(since).collect(),
        }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let mut stages = self.slot.stages();
        let Some(place) = self.place.and_then(|place| stages.running.get_mut(place)) else { return };
        if let Some(began) = place.take() {
            stages.ended = Some(Began { at: Instant::now(), ..began });
        }
    }
}

/// Entries in the order in which they were made.
#[derive(Debug)]
struct Book<T> {
    next: AtomicU64,
    entries: Mutex<BTreeMap<u64, Arc<T>>>,
}

#[derive(Debug)]
struct Entry<T> {
    book: Arc<Book<T>>,
    number: u64,
    value: Arc<T>,
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), entries: Mutex::default() }
    }
}

impl<T> Book<T> {
    fn enter(book: &Arc<Self>, value: T) -> Entry<T> {
        let (number, value) = (book.next.fetch_add(1, Ordering::Relaxed), Arc::new(value));
        book.lock().insert(number, Arc::clone(&value));
        Entry { book: Arc::clone(book), number, value }
    }

    fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<T>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.book.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(tasks: &Tasks, verb: &'static str) -> Task {
        tasks.begin(verb, "sandbox ns/a".to_owned(), "a1".to_owned())
    }

    fn names(view: &TaskView) -> Vec<&'static str> {
        view.stages.iter().map(|stage| stage.name).collect()
    }

    #[test]
    fn an_operation_is_listed_until_its_last_clone_is_dropped() {
        let tasks = Tasks::default();
        let first = begin(&tasks, "run sandbox");
        let second = begin(&tasks, "stop sandbox");
        let verbs = || tasks.list().iter().map(|task| task.verb).collect::<Vec<_>>();
        assert_eq!(verbs(), ["run sandbox", "stop sandbox"]);
        let clone = first.clone();
        drop(first);
        assert_eq!(tasks.count(), 2);
        drop(clone);
        assert_eq!(verbs(), ["stop sandbox"]);
        drop(second);
        assert_eq!(tasks.count(), 0);
    }

    #[test]
    fn stages_run_side_by_side_and_the_last_to_end_is_remembered() {
        let tasks = Tasks::default();
        let task = begin(&tasks, "run sandbox");
        assert_eq!((tasks.list()[0].stages.len(), tasks.list()[0].after), (0, None));
        let network = task.stage("network");
        let pause = task.stage("pause");
        let view = &tasks.list()[0];
        assert_eq!((names(view), view.after), (vec!["network", "pause"], None));
        assert!(view.stages[0].age >= view.stages[1].age && view.age >= view.stages[0].age);
        drop(network);
        let next = task.stage("publish");
        assert_eq!(names(&tasks.list()[0]), ["pause", "publish"], "by age, wherever there was room");
        drop((pause, next));
        let view = &tasks.list()[0];
        assert!(view.stages.is_empty());
        assert_eq!(view.after.map(|stage| stage.name), Some("publish"));
    }

    #[test]
    fn more_stages_than_there_is_room_for_do_no_harm() {
        let tasks = Tasks::default();
        let task = begin(&tasks, "run sandbox");
        let many: Vec<_> = (0..AT_ONCE + 2).map(|_| task.stage("one")).collect();
        assert_eq!(tasks.list()[0].stages.len(), AT_ONCE);
        drop(many);
        assert_eq!(tasks.list()[0].stages.len(), 0);
        let _stage = task.waits("grace");
        assert!(tasks.list()[0].stages[0].waits);
    }

    #[test]
    fn a_panic_empties_its_entry() {
        let tasks = Tasks::default();
        let task = begin(&tasks, "run sandbox");
        let thrown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let task = task;
            let _stage = task.stage("netns");
            panic!("expected");
        }));
        assert!(thrown.is_err());
        assert_eq!(tasks.count(), 0);
    }

    #[tokio::test]
    async fn an_operation_that_is_cut_off_leaves_nothing() {
        let tasks = Tasks::default();
        let task = begin(&tasks, "run sandbox");
        let (begun, running) = tokio::sync::oneshot::channel();
        let work = tokio::spawn(async move {
            let _stage = task.stage("network");
            begun.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        running.await.unwrap();
        assert_eq!(names(&tasks.list()[0]), ["network"]);
        work.abort();
        assert!(work.await.unwrap_err().is_cancelled());
        assert_eq!(tasks.count(), 0);
    }

    #[test]
    fn callers_come_and_go() {
        let tasks = Tasks::default();
        let first = tasks.wait("run sandbox", "a1".to_owned(), String::new());
        let second = tasks.wait("create container", "a1".to_owned(), "container \"app\"".to_owned());
        let found = tasks.callers();
        assert_eq!((found[0].verb, found[1].container.as_str()), ("run sandbox", "container \"app\""));
        drop(first);
        assert_eq!(tasks.callers().len(), 1);
        drop(second);
        assert!(tasks.callers().is_empty());
    }

    #[test]
    fn a_session_belongs_to_its_container() {
        let tasks = Tasks::default();
        let session =
            tasks.session("exec in", "container \"app\"".to_owned(), "e1".to_owned(), "c1".to_owned());
        let found = &tasks.list()[0];
        assert_eq!((found.kind, found.id.as_str(), found.owner.as_str()), (Kind::Session, "e1", "c1"));
        drop(session);
        let task = begin(&tasks, "run sandbox");
        assert_eq!(tasks.list()[0].owner, task.id());
    }
}
