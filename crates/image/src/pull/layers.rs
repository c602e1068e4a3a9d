//! The layers of one pull: side by side, each downloaded into its unpacking.
//!
//! Downloads and unpackings are limited each by its own number, over all pulls: a layer that is downloaded makes room for
//! the next download while it waits to be unpacked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::Digest;

use super::spool::{self, Chunks, PartWriter};
use super::{Pull, Stop};
use crate::error::ImageError;
use crate::images::{Shared, blocking};
use crate::layer::{self, Expected};
use crate::manifest::{Descriptor, Manifest};
use crate::parts::Part;
use crate::record::Layer;
use crate::registry::{Session, Sink};
use crate::store::{Ingest, Pin};
use crate::trace;

/// Chunks between the network and the unpacking; a chunk is what one read from the socket brought.
const CHUNKS_IN_FLIGHT: usize = 16;
/// Parts are kept where this much is free for each byte of the image's blobs: the part itself and what comes out of it.
const ROOM: u64 = 4;

/// One lock for each layer being fetched, so that it is fetched once.
#[derive(Debug, Default)]
pub(crate) struct LayerLocks(Mutex<HashMap<Digest, Arc<AsyncMutex<()>>>>);

impl LayerLocks {
    async fn lock(&self, diff_id: &Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(diff_id.clone()).or_default())
        };
        lock.lock_owned().await
    }
}

/// What the tasks of one pull share.
struct Fetch {
    shared: Arc<Shared>,
    pull: Arc<Pull>,
    session: Arc<Session>,
    ingest: Arc<Ingest>,
    /// Another layer failed, or the pull is to stop.
    stop: CancellationToken,
    /// Bytes that must be free for parts to be kept.
    room: u64,
    /// The disk was full.
    is_tight: AtomicBool,
}

/// One layer to fetch.
#[derive(Debug, Clone)]
struct Wanted {
    position: usize,
    layer: Layer,
    blob: Descriptor,
}

/// What may help after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// What an earlier process left may have been at fault.
    Anew,
    /// The part took the space that the layer needs.
    WithoutPart,
}

impl Shared {
    /// Makes all layers present. On failure every task has ended when this returns.
    pub(super) async fn fetch_layers(
        self: &Arc<Self>,
        pull: &Arc<Pull>,
        session: &Arc<Session>,
        stop: &Stop,
        ingest: &Arc<Ingest>,
        layers: &[Layer],
        manifest: &Manifest,
    ) -> Result<Vec<Pin>, ImageError> {
        let fetch = Arc::new(Fetch {
            shared: Arc::clone(self),
            pull: Arc::clone(pull),
            session: Arc::clone(session),
            ingest: Arc::clone(ingest),
            stop: stop.token().child_token(),
            room: manifest.size().saturating_mul(ROOM),
            is_tight: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        for (position, (layer, blob)) in layers.iter().zip(&manifest.layers).enumerate() {
            let wanted = Wanted { position, layer: layer.clone(), blob: blob.clone() };
            let fetch = Arc::clone(&fetch);
            let span = trace::layer("layer", &wanted.blob);
            tasks.spawn(async move { trace::within(span, fetch.layer(&wanted)).await });
        }
        collect(tasks, &fetch.stop).await
    }
}

/// The first failure stops the others and is the one reported.
async fn collect(
    mut tasks: JoinSet<Result<Pin, ImageError>>,
    stop: &CancellationToken,
) -> Result<Vec<Pin>, ImageError> {
    let mut pins = Vec::new();
    let mut first_failure = None;
    while let Some(joined) = tasks.join_next().await {
        let failure = match joined {
            Ok(Ok(pin)) => {
                pins.push(pin);
                continue;
            }
            Ok(Err(failure)) => failure,
            Err(panic) => ImageError::store("fetching a layer", std::io::Error::other(panic)),
        };
        stop.cancel();
        first_failure.get_or_insert(failure);
    }
    first_failure.map_or(Ok(pins), Err)
}

impl Fetch {
    async fn layer(self: &Arc<Self>, wanted: &Wanted) -> Result<Pin, ImageError> {
        let turn = self.shared.layer_locks.lock(&wanted.layer.diff_id);
        let _turn = self.or_stopped(turn).await?;
        if let Some(pin) = self.shared.store.pin_layer(&wanted.layer.diff_id) {
            self.shared.counts.layers_shared(1);
            self.pull.progress.layer_stored(wanted.position);
            return Ok(pin);
        }
        let part = self.part(wanted).await?;
        match self.attempt(wanted, part.as_ref()).await {
            Err(error) => match remedy(&error, part.as_deref()) {
                None => Err(error),
                Some(remedy) => self.again(wanted, remedy, &error).await,
            },
            result => result,
        }
    }

    /// Once more, since the failure may have come of the part.
    async fn again(
        self: &Arc<Self>,
        wanted: &Wanted,
        remedy: Remedy,
        error: &ImageError,
    ) -> Result<Pin, ImageError> {
        let error = types::error::chain(error);
        tracing::debug!(op = "pull", layer = wanted.blob.digest.as_str(), ?remedy, error, "fetching again");
        if remedy == Remedy::WithoutPart {
            self.is_tight.store(true, Ordering::Relaxed);
        }
        let part = self.part(wanted).await?;
        self.attempt(wanted, part.as_ref()).await
    }

    /// What came of the layer so far, with room for more; `None` when it goes without.
    async fn part(&self, wanted: &Wanted) -> Result<Option<Arc<Part>>, ImageError> {
        if self.is_tight.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let (shared, room) = (Arc::clone(&self.shared), self.room);
        let Descriptor { digest, size, .. } = wanted.blob.clone();
        blocking(&self.shared.tasks, move || Ok(shared.parts.take(&digest, size, room).map(Arc::new))).await
    }

    /// Downloads and unpacks. The part is gone after it, unless the daemon is ending: the next one goes on with it.
    async fn attempt(self: &Arc<Self>, wanted: &Wanted, part: Option<&Arc<Part>>) -> Result<Pin, ImageError> {
        let result = match part {
            Some(part) => {
                let (writer, reader) = spool::through(part);
                self.both(&wanted.blob, self.download_to_part(wanted, writer), self.unpack(wanted, reader))
                    .await
            }
            None => {
                let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
                self.both(&wanted.blob, self.download(wanted, sender), self.unpack(wanted, receiver)).await
            }
        };
        if let Some(part) = part.filter(|_| result.is_ok() || !self.shared.closing.is_cancelled()) {
            let part = Arc::clone(part);
            blocking(&self.shared.tasks, move || {
                part.remove();
                Ok(())
            })
            .await?;
        }
        result
    }

    /// A download that broke off makes the unpacking fail as well; the cause is the one to report.
    async fn both(
        &self,
        blob: &Descriptor,
        download: impl Future<Output = Result<(), ImageError>>,
        unpack: impl Future<Output = Result<Pin, ImageError>>,
    ) -> Result<Pin, ImageError> {
        let fetch = trace::within(trace::layer("fetch", blob), download);
        let unpack = trace::within(trace::layer("unpack", blob), unpack);
        let (downloaded, unpacked) = tokio::join!(fetch, unpack);
        downloaded.and(unpacked)
    }

    async fn download(&self, wanted: &Wanted, sender: mpsc::Sender<Bytes>) -> Result<(), ImageError> {
        let tuning = self.shared.tuning();
        let _permit = self.permit(&tuning.downloads).await?;
        let (done, begun) = (self.pull.progress.done(wanted.position), Instant::now());
        self.or_stopped(self.session.blob(&wanted.blob, Sink::Channel(&sender), done)).await??;
        self.shared.counts.downloaded(wanted.blob.size, begun);
        Ok(())
    }

    /// Runs on a thread that may block: writing to the page cache does when too much of it is dirty.
    async fn download_to_part(
        self: &Arc<Self>,
        wanted: &Wanted,
        writer: PartWriter,
    ) -> Result<(), ImageError> {
        if let Some(done) = self.pull.progress.done(wanted.position) {
            done.store(writer.len(), Ordering::Relaxed);
        }
        if writer.len() >= wanted.blob.size {
            return Ok(());
        }
        let tuning = self.shared.tuning();
        let _permit = self.permit(&tuning.downloads).await?;
        let (fetch, blob, runtime) = (Arc::clone(self), wanted.blob.clone(), Handle::current());
        let (position, missing) = (wanted.position, wanted.blob.size - writer.len());
        blocking(&self.shared.tasks, move || {
            let (done, begun) = (fetch.pull.progress.done(position), Instant::now());
            let download = fetch.session.blob(&blob, Sink::Part(&writer), done);
            runtime.block_on(fetch.or_stopped(download))??;
            fetch.shared.counts.downloaded(missing, begun);
            Ok(())
        })
        .await
    }

    async fn unpack(&self, wanted: &Wanted, blob: impl Chunks + 'static) -> Result<Pin, ImageError> {
        let tuning = self.shared.tuning();
        let _permit = self.permit(&tuning.unpacks).await?;
        let (shared, ingest, pull) =
            (Arc::clone(&self.shared), Arc::clone(&self.ingest), Arc::clone(&self.pull));
        let Wanted { position, layer, .. } = wanted.clone();
        blocking(&self.shared.tasks, move || {
            let target = ingest.layer(position)?;
            let Layer { digest, size, diff_id, .. } = layer;
            let expected = Expected { digest, size, diff_id };
            let unpacked = layer::unpack_blob(blob, &expected, target.target()?)
                .map_err(|error| error.of(&expected.digest, &pull.reference))?;
            let bytes = unpacked.bytes;
            let pin = shared.store.commit_layer(target, &expected.diff_id, unpacked)?;
            shared.counts.layer_unpacked(bytes);
            pull.progress.layer_stored(position);
            shared.store.keep_resumable(&expected.diff_id);
            shared.parts.mark(&expected.diff_id);
            Ok(pin)
        })
        .await
    }

    async fn permit<'a>(&self, of: &'a Semaphore) -> Result<SemaphorePermit<'a>, ImageError> {
        self.or_stopped(of.acquire()).await?.map_err(|_| ImageError::Closed)
    }

    async fn or_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, ImageError> {
        self.stop.run_until_cancelled(work).await.ok_or(ImageError::Closed)
    }
}

/// A part that was not used at all is no reason to try again.
fn remedy(error: &ImageError, part: Option<&Part>) -> Option<Remedy> {
    let part = part?;
    match error {
        ImageError::Corrupt { .. } | ImageError::Unpack { .. } if part.found() > 0 => Some(Remedy::Anew),
        ImageError::DiskFull { .. } => Some(Remedy::WithoutPart),
        _ => None,
    }
}
