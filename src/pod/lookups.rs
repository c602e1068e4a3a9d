//! Looking at paths of the host that may never answer: a network file system whose server is gone holds whoever touches it, for hours
//! and beyond the reach of signals.
//!
//! Such a look is done by a thread of its own, and waited for no longer than a limit. The thread stays in the kernel; the path it is
//! at is on a list, and nobody else touches what is on the list: whoever needs it waits for the first to return, within his own limit. So
//! a dead server costs one thread for each path, however often kubelet tries again, and never a thread of the runtime's pool.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::error::StepError;

/// Which paths are being looked at.
#[derive(Debug, Clone)]
pub(super) struct Lookups {
    busy: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Changes whenever a path leaves the list.
    freed: watch::Sender<()>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { busy: Arc::default(), freed: watch::Sender::new(()) }
    }
}

impl Lookups {
    /// Has `look` find out something about each path, in order, until one fails.
    pub(super) async fn each<T: Send + 'static>(
        &self,
        paths: Vec<PathBuf>,
        limit: Duration,
        look: impl Fn(&Path) -> Result<T, StepError> + Send + 'static,
    ) -> Result<Vec<T>, StepError> {
        let deadline = Instant::now() + limit;
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        for path in &paths {
            let free = self.free(path);
            if tokio::time::timeout_at(deadline, free).await.is_err() {
                return Err(silent(path, limit));
            }
        }
        let (answer, answered) = oneshot::channel();
        let progress = watch::Sender::new(PathBuf::new());
        let at = progress.subscribe();
        let lookups = self.clone();
        let work = move || {
            let found = paths.iter().map(|path| lookups.at(path, &progress, &look));
            // Nobody listens any more when the time was up.
            drop(answer.send(found.collect()));
        };
        std::thread::Builder::new()
            .name("lookup".to_owned())
            .spawn(work)
            .map_err(StepError::io("starting a thread to look at mount sources"))?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(StepError::Timeout("the look at mount sources was cut off".to_owned())),
            Err(_) => Err(silent(&at.borrow(), limit)),
        }
    }

    fn at<T>(
        &self,
        path: &Path,
        progress: &watch::Sender<PathBuf>,
        look: impl Fn(&Path) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        progress.send_replace(path.to_owned());
        let first = self.busy().insert(path.to_owned());
        let found = look(path);
        if first {
            self.busy().remove(path);
            self.freed.send_replace(());
        }
        found
    }

    /// Returns when nobody is looking at the path.
    async fn free(&self, path: &Path) {
        let mut freed = self.freed.subscribe();
        while self.busy().contains(path) {
            if freed.changed().await.is_err() {
                return;
            }
        }
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        // A panic while the lock is held cannot leave the set half changed.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silent(path: &Path, limit: Duration) -> StepError {
    let seconds = limit.as_secs();
    StepError::Timeout(format!("mount source {} has not answered for {seconds} s", path.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    #[tokio::test]
    async fn each_path_is_looked_at_in_order_until_one_fails() {
        let lookups = Lookups::default();
        let long = Duration::from_secs(60);
        let name = |path: &Path| Ok(path.display().to_string());
        assert_eq!(lookups.each(paths(&["/a", "/b", "/a"]), long, name).await.unwrap(), ["/a", "/b", "/a"]);
        assert_eq!(lookups.each(Vec::new(), long, name).await.unwrap(), [""; 0]);
        let failing = |path: &Path| match path.to_str() {
            Some("/bad") => Err(StepError::Invalid("bad".to_owned())),
            Some("/never") => panic!("it comes after the one that fails"),
            _ => Ok(()),
        };
        let error = lookups.each(paths(&["/a", "/bad", "/never"]), long, failing).await.unwrap_err();
        assert_eq!(error.to_string(), "bad");
        assert!(lookups.busy().is_empty());
    }

    #[tokio::test]
    async fn a_path_that_hangs_costs_one_thread_however_often_it_is_asked_for() {
        let lookups = Lookups::default();
        let (answer, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let looks = Arc::new(AtomicUsize::new(0));
        let look = {
            let (hang, looks) = (Arc::clone(&hang), Arc::clone(&looks));
            move |path: &Path| {
                if path == Path::new("/hung") {
                    looks.fetch_add(1, Ordering::SeqCst);
                    hang.lock().unwrap().recv().ok();
                }
                Ok(())
            }
        };
        let (long, soon) = (Duration::from_secs(60), Duration::from_millis(30));
        let both = || paths(&["/fine", "/hung"]);
        // The time of the first is over when its thread is at the path that hangs.
        let (first, ()) = tokio::join!(lookups.each(both(), long, look.clone()), async {
            while looks.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            tokio::time::pause();
            tokio::time::advance(long).await;
            tokio::time::resume();
        });
        let mut ended = vec![first];
        for _ in 0..4 {
            ended.push(lookups.each(both(), soon, look.clone()).await);
        }
        for outcome in ended {
            let error = outcome.unwrap_err();
            assert!(error.to_string().contains("/hung"), "{error}");
            assert_eq!(error.kind(), types::ErrorKind::DeadlineExceeded);
        }
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        lookups.each(paths(&["/fine"]), long, look.clone()).await.unwrap();

        // It answers in the end, and whoever waits goes on.
        let waiting = lookups.each(paths(&["/hung"]), long, look);
        drop(answer);
        waiting.await.unwrap();
        assert_eq!(looks.load(Ordering::SeqCst), 2);
        assert!(lookups.busy().is_empty());
    }
}
