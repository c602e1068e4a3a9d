//! A thread that lives in other cgroups than its process, and in which programs are started that shall be born there. Only v1
//! has that; a program that moves by itself makes the kernel wait for all processors, which takes 5 to 10 ms.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// The thread. It ends with this, or when told to.
#[derive(Debug)]
pub(super) struct Birthplace {
    inner: Mutex<Option<(Sender<Work>, JoinHandle<()>)>>,
}

impl Birthplace {
    /// Begins a thread in these groups.
    pub(super) fn enter(groups: Vec<PathBuf>) -> io::Result<Self> {
        let (work, orders) = channel::<Work>();
        let (outcome, entered) = channel();
        let thread = Builder::new().name("birthplace".to_owned()).spawn(move || {
            let result = groups.iter().try_for_each(|group| enter(group));
            let is_there = result.is_ok();
            if outcome.send(result).is_ok() && is_there {
                orders.into_iter().for_each(|work| work());
            }
        })?;
        entered.recv().map_err(io::Error::other)??;
        Ok(Self { inner: Mutex::new(Some((work, thread))) })
    }

    /// Has the thread do it; `None` when it has ended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // Nobody may be listening any more: what was started then is found as what nobody has heard of.
        let work: Work = Box::new(move || drop(answer.send(work())));
        self.order(work)?;
        answered.await.ok()
    }

    fn order(&self, work: Work) -> Option<()> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.as_ref()?.0.send(work).ok()
    }

    /// Ends the thread and waits for that, so that its groups can be removed.
    pub(super) fn leave(&self) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((work, thread)) = inner {
            drop(work);
            // A panic in there has been told by its own message.
            thread.join().ok();
        }
    }
}

impl Drop for Birthplace {
    fn drop(&mut self) {
        self.leave();
    }
}

fn enter(group: &Path) -> io::Result<()> {
    let file = group.join("tasks");
    // 0 is the thread that writes it.
    fs::write(&file, "0")
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_in_the_thread_until_it_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let place = Birthplace::enter(vec![dir.path().to_owned()]).unwrap();
        assert_eq!(fs::read(dir.path().join("tasks")).unwrap(), b"0");
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(place.run(name).await, Some(Some("birthplace".to_owned())));
        place.leave();
        assert_eq!(place.run(name).await, None);
    }

    #[test]
    fn a_group_that_cannot_be_entered_is_named() {
        let error = Birthplace::enter(vec!["/no/such/group".into()]).unwrap_err();
        assert!(error.to_string().contains("/no/such/group/tasks"), "{error}");
    }
}
