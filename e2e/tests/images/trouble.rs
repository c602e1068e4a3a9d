//! Pulls through a registry that cuts and stalls.

use std::time::Duration;

use anyhow::Context;
use e2e::{ImageBuilder, Layer, Media, Node, PushedImage, Registry, RegistryProxy, Result, Trouble};

const LAYERS: u32 = 3;
const LAYER_BYTES: u32 = 6 << 20;
/// What a connection carries before it is cut.
const CUT: u64 = 1 << 20;
/// Where a download is held, before it is cut.
const HELD: u64 = CUT - 1000;
/// Downloads at the same time, as the configuration has it by default.
const PARALLEL: u64 = 3;
/// Of a hundred bytes this many may come twice.
const TWICE: u64 = 5;

/// Content that does not compress.
fn noise(seed: u32, bytes: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..bytes / 4).flat_map(|_| next()).collect()
}

async fn push_large(registry: &Registry, name: &str) -> Result<PushedImage> {
    let layers =
        (0..LAYERS).map(|n| Layer::new().file(&format!("noise-{n}"), 0o644, &noise(n + 7, LAYER_BYTES)));
    let image = layers.fold(ImageBuilder::busybox(Media::Oci)?, ImageBuilder::layer);
    registry.push(image, name, "1").await
}

/// Bytes of the image's layers that the proxy has sent, and that there are.
#[allow(clippy::print_stdout, reason = "shown for a test that fails")]
fn sent(proxy: &RegistryProxy, image: &PushedImage, size: u64) -> (u64, u64) {
    let sent = image.layer_digests.iter().map(|digest| proxy.blob_bytes(digest)).sum();
    for it in proxy.blob_requests("") {
        println!("{} {:?}: {}, {} bytes", it.path, it.range, it.status, it.sent);
    }
    println!("sent {sent} of {size}");
    (sent, size)
}

/// All layers but the first, which is small and may be unpacked at any time.
fn large(image: &PushedImage) -> &[String] {
    &image.layer_digests[1..]
}

/// For each layer the bytes that were sent and are not in its part: under way, lost with a daemon, or unpacked.
fn not_kept(node: &Node, proxy: &RegistryProxy, layers: &[String]) -> Vec<u64> {
    let parts = node.machine().path(&node.root().join("images/parts"));
    let kept = |digest: &String| -> u64 {
        let name = digest.trim_start_matches("sha256:");
        let boots = std::fs::read_dir(&parts).into_iter().flatten().flatten();
        boots.filter_map(|boot| boot.path().join(name).metadata().ok()).map(|metadata| metadata.len()).sum()
    };
    layers.iter().map(|digest| proxy.blob_bytes(digest).saturating_sub(kept(digest))).collect()
}

/// Waits until so many bytes of the layers have been sent, and the daemon has all of them but those that were `lost` before:
/// what is under way on the wire nobody can keep.
async fn all_arrived(
    node: &Node,
    proxy: &RegistryProxy,
    image: &PushedImage,
    lost: &[u64],
    enough: u64,
) -> Result {
    let wait = async {
        loop {
            let sent: u64 = image.layer_digests.iter().map(|digest| proxy.blob_bytes(digest)).sum();
            let missing = not_kept(node, proxy, large(image));
            if sent >= enough && missing.iter().zip(lost).all(|(missing, lost)| missing <= lost) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(e2e::patience(30), wait).await.context("what was sent does not arrive")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cuts_and_stalls_costs_next_to_no_bytes() -> Result {
    let (node, registry) = Node::boot_with_registry().await?;
    let proxy = RegistryProxy::start(node.machine(), registry.host()).await?;
    proxy.describe_to(&node.registry_config_dir())?;
    let image = push_large(&registry, "cut").await?;
    let cut = proxy.put("/blobs/", Trouble::Cut { after: CUT });
    let stalls: Vec<_> = [3000, 200_000, 700_000, 900_001]
        .map(|after| {
            proxy.put_times("/blobs/", 2, Trouble::Stall { after, time: Duration::from_millis(after / 2000) })
        })
        .into();
    let id = node.cri().pull(&proxy.reference_of(&image)).await?;
    drop((cut, stalls));
    let size = node.cri().image(&id).await?.expect("pulled").size;
    let (sent, size) = sent(&proxy, &image, size);
    assert!(sent * 100 <= size * (100 + TWICE), "{sent} bytes were sent of an image of {size}");
    assert!(proxy.blob_requests("").len() > usize::try_from(size / CUT)?, "there were cuts");
    let mut check = node.daemon_command("check --images")?;
    check.arg("--root").arg(node.root()).arg("--state").arg(node.state());
    let check = check.output().await?;
    assert_eq!(String::from_utf8_lossy(&check.stdout), "clean\n");
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_a_killed_daemon_was() -> Result {
    let (mut node, registry) = Node::boot_with_registry().await?;
    let proxy = RegistryProxy::start(node.machine(), registry.host()).await?;
    proxy.describe_to(&node.registry_config_dir())?;
    let image = push_large(&registry, "killed").await?;
    let reference = proxy.reference_of(&image);
    let cut = proxy.put("/blobs/", Trouble::Cut { after: CUT });
    for round in 1..=2_u64 {
        // What came while the daemon ended.
        let lost = not_kept(&node, &proxy, large(&image));
        let held = proxy.put("/blobs/", Trouble::Hold { after: HELD });
        let (cri, name) = (node.cri(), reference.clone());
        let pull = tokio::spawn(async move { cri.pull(&name).await });
        // As many downloads as there may be are held then, so that next to nothing comes before the daemon ends.
        all_arrived(&node, &proxy, &image, &lost, round * PARALLEL * HELD).await?;
        node.kill9().await?;
        drop(held);
        assert!(pull.await?.is_err());
        node.restart().await?;
        assert_eq!(node.cri().all_images().await?, []);
    }
    let id = node.cri().pull(&reference).await?;
    drop(cut);
    let size = node.cri().image(&id).await?.expect("pulled").size;
    let (sent, size) = sent(&proxy, &image, size);
    assert!(sent * 100 <= size * (100 + TWICE), "{sent} bytes were sent of an image of {size}");
    node.finish().await
}
