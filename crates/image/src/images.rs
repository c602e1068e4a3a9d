//! The store as the daemon uses it: asynchronous, cheap to clone, its work independent of who waits for it.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::ImageId;

use crate::counts::Counts;
use crate::error::ImageError;
use crate::parts::Parts;
use crate::pull::{InFlight, LayerLocks, PullRequest};
use crate::record::{ImageRecord, Rootfs};
use crate::reference::Reference;
use crate::registry::Environment;
use crate::source::ImageSource;
use crate::store::{Store, StoreUsage};

const DEFAULT_PARALLEL_DOWNLOADS: usize = 3;
const DEFAULT_PROGRESS: Duration = Duration::from_secs(60);
/// How long what an earlier process left of a pull waits to be taken up.
const LEFTOVERS_KEPT: Duration = Duration::from_secs(3600);

/// Where the store is and how it pulls.
#[derive(Debug, Clone, Default)]
pub struct StoreConfig {
    /// The store's directory; made when it is missing.
    pub root: PathBuf,
    /// The directory with a `<host>/hosts.toml` for each registry that needs one.
    pub registry_config_dir: Option<PathBuf>,
    /// Images that are reported as pinned: references, or patterns with `*`.
    pub pinned: Vec<String>,
    /// Layers being downloaded at a time, over all pulls; 0 means 3.
    pub max_parallel_downloads: usize,
    /// How long nothing may come of a server before a download is cut and goes on; zero means a minute.
    pub progress_timeout: Duration,
    /// Files in the format of Docker's `config.json`, with credentials for pulls that bring none.
    pub auth_files: Vec<PathBuf>,
}

/// The image store.
#[derive(Debug, Clone)]
pub struct Images {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) parts: Parts,
    tuning: RwLock<Arc<Tuning>>,
    pub(crate) environment: Arc<Environment>,
    pub(crate) layer_locks: LayerLocks,
    pub(crate) in_flight: InFlight,
    pub(crate) counts: Arc<Counts>,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

/// What can be changed while pulls run: each pull, and each layer of it, goes by what it found when it began.
#[derive(Debug)]
pub(crate) struct Tuning {
    pub(crate) registry_config_dir: Option<PathBuf>,
    pub(crate) progress_timeout: Duration,
    pub(crate) auth_files: Vec<PathBuf>,
    pub(crate) downloads: Semaphore,
    pub(crate) unpacks: Semaphore,
}

impl Tuning {
    fn new(config: StoreConfig) -> Arc<Self> {
        let StoreConfig { registry_config_dir, auth_files, max_parallel_downloads, progress_timeout, .. } =
            config;
        let parallel =
            if max_parallel_downloads == 0 { DEFAULT_PARALLEL_DOWNLOADS } else { max_parallel_downloads };
        let progress_timeout = if progress_timeout.is_zero() { DEFAULT_PROGRESS } else { progress_timeout };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // A layer that waits for its download takes no processor, so that there are as many at least.
        let unpacks = Semaphore::new(cores.max(parallel));
        let downloads = Semaphore::new(parallel);
        Arc::new(Self { registry_config_dir, progress_timeout, auth_files, downloads, unpacks })
    }
}

impl Shared {
    /// What a process that ended left of its pulls does not wait for ever.
    fn expire_leftovers(self: &Arc<Self>) {
        let leftover = self.store.resumable();
        if leftover.is_empty() && self.parts.is_empty() {
            return;
        }
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let waited = shared.closing.run_until_cancelled(tokio::time::sleep(LEFTOVERS_KEPT)).await;
            if waited.is_none() {
                return;
            }
            let (tasks, shared) = (shared.tasks.clone(), Arc::clone(&shared));
            let swept = blocking(&tasks, move || {
                leftover.iter().for_each(|diff_id| shared.parts.unmark(diff_id));
                shared.store.forget_resumable(&leftover);
                shared.parts.sweep();
                shared.store.collect_garbage();
                Ok(())
            });
            drop(swept.await);
        });
    }

    pub(crate) fn tuning(&self) -> Arc<Tuning> {
        Arc::clone(&self.tuning.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Images {
    /// Opens the store, and removes what interrupted pulls left.
    ///
    /// # Errors
    /// [`ImageError::Store`] or [`ImageError::DiskFull`] when the directories cannot be made or read.
    pub async fn open(config: StoreConfig) -> Result<Self, ImageError> {
        let tasks = TaskTracker::new();
        let (root, pinned) = (config.root.clone(), config.pinned.clone());
        let opened = blocking(&tasks, move || Ok((Store::open(&root, pinned)?, Parts::open(&root))));
        let (store, parts) = opened.await?;
        let images = Self {
            shared: Arc::new(Shared {
                store,
                parts,
                tuning: RwLock::new(Tuning::new(config)),
                environment: Arc::new(Environment::of_process()),
                layer_locks: LayerLocks::default(),
                in_flight: InFlight::default(),
                counts: Arc::default(),
                tasks,
                closing: CancellationToken::new(),
            }),
        };
        images.shared.expire_leftovers();
        Ok(images)
    }

    /// Works by another configuration from now on; its `root` is not looked at. Pulls under way end as they began, so that
    /// for their duration more layers may be fetched at a time than either configuration allows.
    pub fn reconfigure(&self, config: StoreConfig) {
        let pinned = config.pinned.clone();
        let tuning = Tuning::new(config);
        *self.shared.tuning.write().unwrap_or_else(PoisonError::into_inner) = tuning;
        self.shared.store.pin_by(pinned);
    }

    /// Makes the image present and gives its id. The same request in flight is joined. Dropping this future gives the
    /// pull up: it goes on for others who wait for it, and is stopped without a trace when there are none.
    ///
    /// # Errors
    /// Every [`ImageError`] but [`ImageError::Unknown`] and [`ImageError::Owner`], most of them inside
    /// [`ImageError::Shared`].
    pub async fn pull(&self, request: PullRequest) -> Result<ImageId, ImageError> {
        self.shared.pull(request).await
    }

    /// All stored images, ordered by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.shared.store.index().images().to_vec()
    }

    /// The image that `text` means: an id (with or without `sha256:`), a tag, a digest reference, a name without tag
    /// (`latest`), or the prefix of exactly one id.
    #[must_use]
    pub fn resolve(&self, text: &str) -> Option<Arc<ImageRecord>> {
        self.shared.store.index().resolve(text)
    }

    /// Removes the image that `text` means with all its tags; it leaves the list at once. What containers lease stays
    /// on disk until they release it. An image that is not stored is no error.
    ///
    /// Pulls of that very reference are stopped, so that the name does not come back by itself: their callers get
    /// [`ImageError::Removed`], and whoever pulls after this wants the image again. Pulls of the image under other
    /// names go on, and so do all pulls when `text` is an id.
    ///
    /// # Errors
    /// [`ImageError::Store`] when the image's record cannot be removed; the image then stays.
    pub async fn remove(&self, text: &str) -> Result<(), ImageError> {
        let (shared, text) = (Arc::clone(&self.shared), text.to_owned());
        blocking(&self.shared.tasks, move || {
            if let Ok(reference) = Reference::parse(&text) {
                shared.in_flight.stop_pulls_of(&reference);
            }
            shared.store.remove(&text)
        })
        .await
    }

    /// What images take on disk, as accounted.
    #[must_use]
    pub fn usage(&self) -> StoreUsage {
        let usage = self.shared.store.usage();
        StoreUsage { used_bytes: usage.used_bytes + self.shared.parts.bytes(), ..usage }
    }

    /// Keeps the image's layers for `owner` (a plain name) until it releases them, across restarts of the daemon and
    /// removal of the image. Asking again gives the same answer.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] when the image is not stored, [`ImageError::Owner`] for a name that is no file name,
    /// [`ImageError::DiskFull`] or [`ImageError::Store`] when the lease cannot be written.
    pub async fn lease(&self, owner: &str, image: &ImageId) -> Result<Rootfs, ImageError> {
        let (store, owner, image) = (Arc::clone(&self.shared.store), owner.to_owned(), image.clone());
        blocking(&self.shared.tasks, move || store.lease(&owner, &image)).await
    }

    /// Ends the lease of `owner` and removes what nothing needs any more. One that does not exist is no error.
    ///
    /// # Errors
    /// [`ImageError::Owner`] for a name that is no file name, [`ImageError::Store`] when the lease cannot be removed.
    pub async fn release(&self, owner: &str) -> Result<(), ImageError> {
        let (store, owner) = (Arc::clone(&self.shared.store), owner.to_owned());
        blocking(&self.shared.tasks, move || store.release(&owner)).await
    }

    /// Everyone who holds a lease, for the sweep at start-up.
    #[must_use]
    pub fn leases(&self) -> Vec<String> {
        self.shared.store.leases()
    }

    /// Ends running pulls and waits until nothing of this store runs any more. Later pulls fail.
    pub async fn shutdown(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

#[async_trait]
impl ImageSource for Images {
    fn resolve(&self, text: &str) -> Option<Arc<ImageRecord>> {
        Self::resolve(self, text)
    }

    async fn ensure(&self, reference: &str) -> Result<ImageId, ImageError> {
        match Self::resolve(self, reference) {
            Some(image) => Ok(image.id.clone()),
            None => {
                Self::pull(self, PullRequest { reference: reference.to_owned(), ..PullRequest::default() })
                    .await
            }
        }
    }

    async fn lease(&self, owner: &str, image: &ImageId) -> Result<Rootfs, ImageError> {
        Self::lease(self, owner, image).await
    }

    async fn release(&self, owner: &str) -> Result<(), ImageError> {
        Self::release(self, owner).await
    }

    fn leases(&self) -> Vec<String> {
        Self::leases(self)
    }
}

/// Runs `work` on a blocking thread, to its end whether or not the caller stays.
pub(crate) async fn blocking<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tasks.spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(ImageError::store("running in the background", std::io::Error::other(error)))
    })
}
