//! One pull, from the reference to the record.
//!
//! A pull is a tracked task; callers wait for its published result. It is the one exception from the rule that a dropped
//! call never cancels work: a pull whose *last* waiter leaves is stopped, because kubelet and crictl mean it when they
//! cancel one, and it can take long and fill the disk. While anyone waits it goes on. A stopped pull publishes neither
//! image nor tag and leaves nothing on the disk, finished layers included, but for those that another pull uses.
//!
//! A pull that the end of the daemon interrupts is another matter: what it unpacked and downloaded stays, and whoever
//! pulls the image again goes on with it (see `parts`). What nobody takes up is removed after an hour, or at a reboot.
//!
//! Layers are fetched side by side, each by one task that downloads and one blocking thread that unpacks; of the same
//! layer wanted by several pulls one fetches it and the others find it. When one layer fails the others are told to
//! stop, and the pull ends only after all of them have.

mod flight;
mod layers;
mod progress;
mod spool;

use std::sync::Arc;

use types::{Digest, ImageId};

use crate::auth::{Auth, AuthFiles, Credentials};
use crate::error::ImageError;
use crate::images::{Shared, blocking};
use crate::manifest::{self, Descriptor, Document, Manifest, ManifestError};
use crate::platform::Platform;
use crate::record::Layer;
use crate::reference::Reference;
use crate::registry::Session;
use crate::store::NewImage;
use crate::trace;
pub(crate) use flight::{InFlight, Stop};
pub(crate) use layers::LayerLocks;
pub(crate) use progress::Progress;
pub use progress::{PullProgress, PullStage};
pub(crate) use spool::{Chunks, PartWriter};

/// An index may hold an index, but nobody nests them deeper.
const MAX_INDEX_DEPTH: usize = 3;

/// What to pull.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PullRequest {
    /// The image, in any spelling that [`Reference::parse`] takes.
    pub reference: String,
    /// Credentials for its registry.
    pub auth: Option<Auth>,
    /// The platform to choose from an index; this machine's when absent.
    pub platform: Option<Platform>,
}

/// A pull whose request made sense.
#[derive(Debug)]
struct Pull {
    reference: Reference,
    credentials: Credentials,
    platform: Platform,
    progress: Arc<Progress>,
}

/// One platform's image, and the documents that led to it.
struct Found {
    /// The digest that the reference resolved to.
    target: Digest,
    digest: Digest,
    manifest: Manifest,
    documents: Vec<(Digest, Vec<u8>)>,
}

impl Pull {
    fn new(request: &PullRequest) -> Result<Self, ImageError> {
        let text = &request.reference;
        let reference =
            Reference::parse(text).map_err(|source| ImageError::Reference { text: text.clone(), source })?;
        let credentials = request
            .auth
            .as_ref()
            .map_or(Ok(Credentials::Anonymous), |auth| auth.for_registry(reference.registry()));
        let credentials = credentials
            .map_err(|source| ImageError::Credentials { reference: reference.to_string(), source })?;
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let progress = Arc::new(Progress::new(reference.to_string()));
        Ok(Self { reference, credentials, platform, progress })
    }

    /// The caller's credentials are for the registry itself, the machine's for whatever server they name.
    fn credentials_for(&self, server: &str, is_registry: bool, files: &AuthFiles) -> Credentials {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        match &self.credentials {
            Credentials::Anonymous if is_registry => files.find(registry, repository),
            credentials if is_registry => credentials.clone(),
            _ => files.find(server, repository),
        }
    }

    fn unsupported(&self, error: &ManifestError) -> ImageError {
        ImageError::Unsupported { reference: self.reference.to_string(), detail: error.to_string() }
    }
}

impl Shared {
    async fn run_pull(self: &Arc<Self>, pull: Pull, stop: &Arc<Stop>) -> Result<ImageId, ImageError> {
        let pull = Arc::new(pull);
        let session = Arc::new(self.session(&pull).await?);
        let resolve = or_stopped(stop, find(&pull, &session));
        let found = trace::within(trace::stage("resolve"), resolve).await?;
        let id = ImageId(found.manifest.config.digest.clone());
        if self.add_name(&pull, &id, &found.target, stop).await? {
            self.counts.layers_shared(found.manifest.layers.len());
            return Ok(id);
        }
        let config = session.small_blob(&found.manifest.config, manifest::MAX_CONFIG);
        let config = trace::within(trace::stage("config"), or_stopped(stop, config)).await?;
        let layers = layers_of(&pull, &found.manifest, &config)?;
        let result = self.fetch_and_commit(&pull, &session, stop, found, config, layers.clone()).await;
        self.tidy(result.is_ok(), layers).await?;
        result
    }

    /// Ends what was kept for the pull to go on, and removes what a failed one left. When the daemon ends, the next one
    /// goes on with both.
    async fn tidy(self: &Arc<Self>, is_whole: bool, layers: Vec<Layer>) -> Result<(), ImageError> {
        if self.closing.is_cancelled() && !is_whole {
            return Ok(());
        }
        let shared = Arc::clone(self);
        blocking(&self.tasks, move || {
            layers.iter().for_each(|layer| shared.parts.unmark(&layer.diff_id));
            shared.store.forget_resumable(layers.iter().map(|layer| &layer.diff_id));
            if !is_whole {
                shared.store.collect_garbage();
            }
            Ok(())
        })
        .await
    }

    /// For a push, which goes by the same configuration and credentials.
    pub(crate) async fn session_for(
        self: &Arc<Self>,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<Session, ImageError> {
        let request = PullRequest { reference: reference.to_string(), auth, platform: None };
        self.session(&Arc::new(Pull::new(&request)?)).await
    }

    /// Reads the registry's configuration and the certificates it names.
    async fn session(self: &Arc<Self>, pull: &Arc<Pull>) -> Result<Session, ImageError> {
        let (shared, pull) = (Arc::clone(self), Arc::clone(pull));
        blocking(&self.tasks, move || {
            let tuning = shared.tuning();
            let directory = tuning.registry_config_dir.as_deref();
            let endpoints = crate::hosts::endpoints(pull.reference.registry(), directory)?;
            let files = AuthFiles::read(&tuning.auth_files);
            let credentials =
                |server: &str, is_registry: bool| pull.credentials_for(server, is_registry, &files);
            let (environment, progress) = (&shared.environment, tuning.progress_timeout);
            Session::new(&pull.reference, endpoints, credentials, environment, progress)
        })
        .await
    }

    async fn add_name(
        &self,
        pull: &Arc<Pull>,
        id: &ImageId,
        target: &Digest,
        stop: &Arc<Stop>,
    ) -> Result<bool, ImageError> {
        let (store, pull, stop) = (Arc::clone(&self.store), Arc::clone(pull), Arc::clone(stop));
        let (id, target) = (id.clone(), target.clone());
        blocking(&self.tasks, move || store.add_name(&id, &pull.reference, &target, &|| stop.check())).await
    }

    async fn fetch_and_commit(
        self: &Arc<Self>,
        pull: &Arc<Pull>,
        session: &Arc<Session>,
        stop: &Arc<Stop>,
        found: Found,
        config: Vec<u8>,
        layers: Vec<Layer>,
    ) -> Result<ImageId, ImageError> {
        let store = Arc::clone(&self.store);
        let ingest = Arc::new(blocking(&self.tasks, move || store.ingest()).await?);
        pull.progress.begin_layers(&found.manifest);
        let pins = self.fetch_layers(pull, session, stop, &ingest, &layers, &found.manifest).await;
        pull.progress.end_layers();
        let image = new_image(pull, found, config, layers);
        let (store, stop) = (Arc::clone(&self.store), Arc::clone(stop));
        // The pins are dropped and the unfinished work is deleted on the blocking thread, failed or not.
        let commit = blocking(&self.tasks, move || {
            let _pins = pins?;
            store.commit_image(image, &ingest, &|| stop.check())
        });
        trace::within(trace::stage("commit"), commit).await
    }
}

/// What the work gives, unless the pull is to stop before.
async fn or_stopped<T>(
    stop: &Stop,
    work: impl Future<Output = Result<T, ImageError>>,
) -> Result<T, ImageError> {
    stop.token().run_until_cancelled(work).await.unwrap_or(Err(ImageError::Closed))
}

fn new_image(pull: &Pull, found: Found, config: Vec<u8>, layers: Vec<Layer>) -> NewImage {
    let mut blobs = found.documents;
    blobs.push((found.manifest.config.digest.clone(), config));
    NewImage {
        reference: pull.reference.clone(),
        target: found.target,
        blobs,
        manifest: found.digest,
        size: found.manifest.size(),
        config: found.manifest.config.digest,
        layers,
    }
}

/// Follows indexes to this platform's manifest.
async fn find(pull: &Pull, session: &Session) -> Result<Found, ImageError> {
    let (target, bytes) = session.resolve().await?;
    let mut documents = vec![(target.clone(), bytes)];
    for _ in 0..=MAX_INDEX_DEPTH {
        let Some((digest, bytes)) = documents.last() else { break };
        match Document::parse(bytes).map_err(|error| pull.unsupported(&error))? {
            Document::Image(manifest) => {
                return Ok(Found { target, digest: digest.clone(), manifest, documents });
            }
            Document::Index(entries) => {
                let chosen = choose(pull, &entries)?;
                let bytes = session.manifest(&chosen.digest).await?;
                documents.push((chosen.digest.clone(), bytes));
            }
        }
    }
    Err(pull.unsupported(&ManifestError::Malformed("indexes are nested too deeply".to_owned())))
}

fn choose<'a>(pull: &Pull, entries: &'a [Descriptor]) -> Result<&'a Descriptor, ImageError> {
    manifest::choose(entries, &pull.platform).ok_or_else(|| ImageError::NoPlatform {
        reference: pull.reference.to_string(),
        platform: pull.platform.to_string(),
    })
}

/// Pairs the manifest's blobs with the config's diff ids.
fn layers_of(pull: &Pull, manifest: &Manifest, config: &[u8]) -> Result<Vec<Layer>, ImageError> {
    let malformed = |detail: String| pull.unsupported(&ManifestError::Malformed(detail));
    let config = crate::store::parse_config(config)
        .map_err(|error| malformed(format!("its config cannot be read: {error}")))?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers.len() {
        let (layers, ids) = (manifest.layers.len(), diff_ids.len());
        return Err(malformed(format!("it has {layers} layers and {ids} diff ids")));
    }
    let pair = |(blob, diff_id): (&Descriptor, &String)| {
        let diff_id = diff_id.parse().map_err(|error: types::DigestError| malformed(error.to_string()))?;
        let Descriptor { media_type, digest, size, .. } = blob.clone();
        Ok(Layer { diff_id, digest, size, media_type })
    };
    manifest.layers.iter().zip(diff_ids).map(pair).collect()
}
