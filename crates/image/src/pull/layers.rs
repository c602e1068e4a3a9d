//! The layers of one pull: side by side, each downloaded into its unpacking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::Digest;

use super::{Pull, Stop};
use crate::error::{ImageError, is_full};
use crate::images::{Shared, blocking};
use crate::layer::{self, Expected, LayerError};
use crate::manifest::Descriptor;
use crate::record::Layer;
use crate::registry::{Session, Sink};
use crate::store::{Ingest, Pin};

/// Chunks between the network and the unpacking; a chunk is what one read from the socket brought.
const CHUNKS_IN_FLIGHT: usize = 16;

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
    ) -> Result<Vec<Pin>, ImageError> {
        let fetch = Arc::new(Fetch {
            shared: Arc::clone(self),
            pull: Arc::clone(pull),
            session: Arc::clone(session),
            ingest: Arc::clone(ingest),
            stop: stop.token().child_token(),
        });
        let mut tasks = JoinSet::new();
        for (position, layer) in layers.iter().cloned().enumerate() {
            let fetch = Arc::clone(&fetch);
            tasks.spawn(async move { fetch.layer(position, &layer).await });
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
    async fn layer(&self, position: usize, layer: &Layer) -> Result<Pin, ImageError> {
        let turn = self.shared.layer_locks.lock(&layer.diff_id);
        let _turn = self.stop.run_until_cancelled(turn).await.ok_or(ImageError::Closed)?;
        if let Some(pin) = self.shared.store.pin_layer(&layer.diff_id) {
            return Ok(pin);
        }
        let tuning = self.shared.tuning();
        let permit = self.stop.run_until_cancelled(tuning.downloads.acquire()).await;
        let Some(Ok(_permit)) = permit else { return Err(ImageError::Closed) };
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let (downloaded, unpacked) =
            tokio::join!(self.download(layer, sender), self.unpack(position, layer, receiver));
        // A download that broke off makes the unpacking fail as well; the cause is the one to report.
        downloaded.and(unpacked)
    }

    async fn download(&self, layer: &Layer, sender: mpsc::Sender<bytes::Bytes>) -> Result<(), ImageError> {
        let descriptor = Descriptor::of_layer(layer);
        let download = self.session.blob(&descriptor, Sink::Channel(&sender));
        self.stop.run_until_cancelled(download).await.unwrap_or(Err(ImageError::Closed))
    }

    async fn unpack(
        &self,
        position: usize,
        layer: &Layer,
        blob: mpsc::Receiver<bytes::Bytes>,
    ) -> Result<Pin, ImageError> {
        let store = Arc::clone(&self.shared.store);
        let (ingest, pull, layer) = (Arc::clone(&self.ingest), Arc::clone(&self.pull), layer.clone());
        blocking(&self.shared.tasks, move || {
            let target = ingest.layer(position)?;
            let Layer { digest, size, diff_id, .. } = layer;
            let expected = Expected { digest, size, diff_id };
            let root = target.root()?;
            let unpacked = layer::unpack_blob(blob, &expected, root)
                .map_err(|error| describe(&pull, &expected, error))?;
            store.commit_layer(target, &expected.diff_id, unpacked)
        })
        .await
    }
}

fn describe(pull: &Pull, expected: &Expected, error: LayerError) -> ImageError {
    let reference = pull.reference.to_string();
    let layer = expected.digest.clone();
    match error {
        LayerError::Corrupt(detail) => {
            ImageError::Corrupt { reference, what: format!("layer {layer}"), detail }
        }
        LayerError::Unpack(error) if error.io().is_some_and(is_full) => {
            ImageError::DiskFull { what: format!("layer {layer} of {reference}") }
        }
        LayerError::Unpack(source) => ImageError::Unpack { reference, layer, source },
    }
}
