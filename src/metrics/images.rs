//! What the image store tells: what it holds, and what pulls have come to and are at.

use std::fmt::Error;

use image::{ImageFigures, Images, PullFigures};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::figures::{About, Figures};

/// Reads the store's own figures.
#[derive(Debug)]
pub(super) struct OfImages(pub(super) Images);

impl Collector for OfImages {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        write(&mut Figures(encoder), &self.0.figures())
    }
}

pub(super) fn write(to: &mut Figures<'_>, store: &ImageFigures) -> Result<(), Error> {
    to.gauge(About::new("images", "Images in the store"), store.images)?;
    let about = About::bytes("image_store", "What images take on disk, as accounted");
    to.gauge(about, store.usage.used_bytes)?;
    to.gauge(About::new("image_store_inodes", "Inodes that images take"), store.usage.inodes_used)?;
    totals(to, &store.pulls)?;
    under_way(to, &store.pulls)
}

fn totals(to: &mut Figures<'_>, pulls: &PullFigures) -> Result<(), Error> {
    to.counter(About::new("image_pulls_started", "Pulls that have begun"), pulls.started)?;
    let help = "Requests that joined a pull under way instead of beginning another";
    to.counter(About::new("image_pulls_joined", help), pulls.joined)?;
    let help = "Pulls that have ended with the image in the store";
    to.counter(About::new("image_pulls_succeeded", help), pulls.succeeded)?;
    let failed = pulls.failed.iter().map(|(why, count)| ([("reason", why.word())], *count));
    to.counters(
        About::new("image_pull_failures", "Pulls that have ended without the image, by reason"),
        failed,
    )?;
    let about = About::bytes("image_pull_received", "Bytes of blobs that came over the network");
    to.counter(about, pulls.received_bytes)?;
    let about = About::bytes("image_pull_unpacked", "Bytes that unpacked layers took on disk");
    to.counter(about, pulls.unpacked_bytes)?;
    let layers =
        [([("origin", "fetched")], pulls.layers_fetched), ([("origin", "shared")], pulls.layers_shared)];
    to.counters(About::new("image_layers", "Layers that pulls have fetched, or found in the store"), layers)?;
    let about = About::seconds("image_pull_duration", "How long pulls took that succeeded");
    to.duration(about, &pulls.durations)?;
    let help = "How fast layers came in bytes per second, each by itself";
    to.rates(About::new("image_pull_throughput_bytes_per_second", help), &pulls.download_rates)
}

fn under_way(to: &mut Figures<'_>, pulls: &PullFigures) -> Result<(), Error> {
    let now = &pulls.in_progress;
    to.gauge(About::new("image_pulls_in_progress", "Pulls that have not ended"), now.len())?;
    let oldest = now.iter().map(|pull| pull.age.as_secs_f64()).fold(0.0, f64::max);
    let about = About::seconds("image_pull_oldest", "Age of the oldest pull that has not ended, or 0");
    to.gauge(about, oldest)?;
    let missing: u64 = now.iter().map(|pull| pull.bytes_expected.saturating_sub(pull.bytes_done)).sum();
    to.gauge(About::bytes("image_pull_missing", "Bytes that pulls under way still have to get"), missing)
}
