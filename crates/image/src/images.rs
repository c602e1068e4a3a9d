//! The store as the daemon uses it: asynchronous, cheap to clone, its work independent of who waits for it.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::ImageId;

use crate::error::ImageError;
use crate::pull::{InFlight, LayerLocks, PullRequest};
use crate::record::{ImageRecord, Rootfs};
use crate::reference::Reference;
use crate::registry::Environment;
use crate::source::ImageSource;
use crate::store::{Store, StoreUsage};

const DEFAULT_PARALLEL_DOWNLOADS: usize = 3;

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
}

/// The image store.
#[derive(Debug, Clone)]
pub struct Images {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    tuning: RwLock<Arc<Tuning>>,
    pub(crate) environment: Environment,
    pub(crate) layer_locks: LayerLocks,
    pub(crate) in_flight: InFlight,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

/// What can be changed while pulls run: each pull, and each layer of it, goes by what it found when it began.
#[derive(Debug)]
pub(crate) struct Tuning {
    pub(crate) registry_config_dir: Option<PathBuf>,
    pub(crate) downloads: Semaphore,
}

impl Tuning {
    fn new(registry_config_dir: Option<PathBuf>, parallel: usize) -> Arc<Self> {
        let parallel = if parallel == 0 { DEFAULT_PARALLEL_DOWNLOADS } else { parallel };
        Arc::new(Self { registry_config_dir, downloads: Semaphore::new(parallel) })
    }
}

impl Shared {
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
        let StoreConfig { root, registry_config_dir, pinned, max_parallel_downloads } = config;
        let store = blocking(&tasks, move || Store::open(&root, pinned)).await?;
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                tuning: RwLock::new(Tuning::new(registry_config_dir, max_parallel_downloads)),
                environment: Environment::of_process(),
                layer_locks: LayerLocks::default(),
                in_flight: InFlight::default(),
                tasks,
                closing: CancellationToken::new(),
            }),
        })
    }

    /// Works by another configuration from now on; its `root` is not looked at. Pulls under way end as they began, so that
    /// for their duration more layers may be fetched at a time than either configuration allows.
    pub fn reconfigure(&self, config: StoreConfig) {
        let StoreConfig { root: _, registry_config_dir, pinned, max_parallel_downloads } = config;
        let tuning = Tuning::new(registry_config_dir, max_parallel_downloads);
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
        self.shared.store.usage()
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
