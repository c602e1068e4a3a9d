//! Pulls before a registry that goes quiet in the middle of a layer.
//!
//! A pull goes on as long as anybody waits for it, so those who leave are told apart: with nobody left it ends and leaves
//! nothing; with somebody left it goes on, is the same for whoever comes back, and fetches each layer once.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::{TIMEOUTS_EACH, times_out};
use crate::cri::VersionRequest;
use crate::trial::{Random, Stage, own_image, together, until};
use crate::{Cri, PushedImage, RegistryProxy, Result, Trouble};

/// How much of a layer comes before the registry goes quiet.
const BEFORE: u64 = 64 << 10;
/// How large a layer is at least: more than what comes before, also when each pull that is given up was continued.
const LAYER: usize = 512 << 10;
/// After how long a caller leaves.
const PATIENCE: Duration = Duration::from_millis(150);

#[derive(Debug)]
pub(super) struct Pulls {
    proxy: RegistryProxy,
}

/// An image by the name that leads through the proxy.
#[derive(Debug)]
struct Wanted {
    reference: String,
    image: PushedImage,
}

impl Pulls {
    pub(super) async fn prepare(stage: &Stage) -> Result<Self> {
        Ok(Self { proxy: stage.proxy().await? })
    }

    /// Pulls some new images by callers that leave and some that stay. Gives how many have left.
    pub(super) async fn one_batch(
        &mut self,
        stage: &Stage,
        batch: usize,
        images: usize,
        random: &mut Random,
    ) -> Result<usize> {
        let cri = stage.node.cri();
        let mut wanted = Vec::new();
        for n in 0..images {
            let image = own_image(random, "pulled\n", LAYER)?;
            let image = stage.registry.push(image, "impatient", &format!("{batch}-{n}")).await?;
            wanted.push(Wanted { reference: self.proxy.reference_of(&image), image });
        }
        let quiet = self.proxy.put("/blobs/", Trouble::Hold { after: BEFORE });
        let mut left = 0;
        for round in 0..TIMEOUTS_EACH {
            left += leave(&cri, &wanted).await.with_context(|| format!("round {round}, nobody stays"))?;
        }
        self.at_most(&cri, &wanted, 0).await?;
        let listed = cri.all_images().await?;
        ensure!(listed.iter().all(|it| !is_one_of(it, &wanted)), "an image that nobody has got: {listed:?}");
        let staying: Vec<_> = wanted.iter().map(|it| stay(&cri, &it.reference)).collect();
        for round in 0..TIMEOUTS_EACH {
            left += leave(&cri, &wanted).await.with_context(|| format!("round {round}, one stays"))?;
        }
        let returning: Vec<_> = wanted.iter().map(|it| stay(&cri, &it.reference)).collect();
        self.at_most(&cri, &wanted, 1).await?;
        quiet.lift();
        for ((wanted, first), second) in wanted.iter().zip(staying).zip(returning) {
            let (first, second) = (first.await??, second.await??);
            ensure!(
                first == second && first == wanted.image.config_digest,
                "{first} and {second}: {wanted:?}"
            );
            self.check_once(wanted)?;
        }
        for it in &wanted {
            cri.forget_image(&it.reference).await?;
        }
        Ok(left)
    }

    /// Waits until so many pulls ask for each layer: those that nobody waits for are given up.
    async fn at_most(&self, cri: &Cri, wanted: &[Wanted], pulls: usize) -> Result {
        // It comes after all else on the same connection: the daemon has heard of those who have left, too.
        cri.version(VersionRequest::default()).await?;
        until(&format!("{pulls} pulls at most ask for each layer"), 30, || async {
            Ok(wanted.iter().all(|it| self.asked_for(it) <= pulls))
        })
        .await
    }

    /// How many answers with the image's own layer are under way.
    fn asked_for(&self, wanted: &Wanted) -> usize {
        let requests = wanted.image.layer_digests.last().map(|layer| self.proxy.blob_requests(layer));
        requests.unwrap_or_default().iter().filter(|it| !it.over).count()
    }

    /// One answer alone went on when the registry spoke again: that of the pull for which somebody had stayed.
    fn check_once(&self, wanted: &Wanted) -> Result {
        let layer = wanted.image.layer_digests.last().context("a layer")?;
        let mut requests = self.proxy.blob_requests(layer);
        requests.retain(|it| it.sent > BEFORE);
        ensure!(requests.len() == 1, "a layer was fetched {} times: {requests:?}", requests.len());
        Ok(())
    }
}

fn stay(cri: &Cri, reference: &str) -> tokio::task::JoinHandle<std::result::Result<String, tonic::Status>> {
    let (cri, reference) = (cri.clone(), reference.to_owned());
    tokio::spawn(async move { cri.pull(&reference).await })
}

async fn leave(cri: &Cri, wanted: &[Wanted]) -> Result<usize> {
    let calls = wanted.iter().map(|it| {
        let (cri, reference) = (cri.clone(), it.reference.clone());
        async move { times_out(PATIENCE, cri.pull(&reference)).await }
    });
    Ok(together(calls).await?.len())
}

fn is_one_of(image: &crate::cri::Image, wanted: &[Wanted]) -> bool {
    wanted.iter().any(|it| it.image.config_digest == image.id)
}
