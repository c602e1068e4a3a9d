//! A disk without a free byte: what frees space works, and what needs it fails and says so.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use e2e::cri::{ImageFsInfoRequest, StatusRequest};
use e2e::{ContainerSpec, ImageBuilder, Layer, Media, Node, Options, Result, code_of, patience};
use tonic::Code;

/// Takes every byte that is left.
fn fill(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("filler");
    let mut file = File::create(&path)?;
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    Ok(path)
}

fn free(directory: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

async fn used(node: &Node) -> Result<u64> {
    let info = node.cri().image_fs_info(ImageFsInfoRequest {}).await?;
    Ok(info.image_filesystems[0].used_bytes.map_or(0, |it| it.value))
}

#[tokio::test(flavor = "multi_thread")]
async fn at_no_free_byte_everything_that_frees_works() -> Result {
    let (node, registry) =
        Node::start_with_registry(Options { root_mib: Some(24), ..Options::default() }).await?;
    let cri = node.cri();
    let root = node.machine().path(&node.root());
    let noise: Vec<u8> = (0_u32..1 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let image = registry.push(ImageBuilder::busybox(Media::Oci)?, "used", "1").await?;
    let large = Layer::new().file("large", 0o644, &noise);
    let large = registry.push(ImageBuilder::busybox(Media::Oci)?.layer(large), "unused", "1").await?;
    let late = Layer::new().file("late", 0o644, &noise[..400_000]);
    let late = registry.push(ImageBuilder::busybox(Media::Oci)?.layer(late), "late", "1").await?;
    let id = cri.pull(&image.reference).await?;
    cri.pull(&large.reference).await?;
    let pod = node.pod("full");
    let pod_id = cri.run_pod(&pod).await?;
    let running = cri.run(&pod_id, &ContainerSpec::lasting("runs", &id), &pod).await?;
    let exited = cri.run(&pod_id, &ContainerSpec::new("ended", &id, &["true"]), &pod).await?;
    node.exited(&exited).await?;

    let filler = fill(&root)?;
    assert_eq!(free(&root)?, 0);
    let refused = cri.pull(&late.reference).await;
    assert_eq!(code_of(&refused), Code::ResourceExhausted, "{refused:?}");
    let message = refused.unwrap_err().message().to_owned();
    assert!(message.contains(&late.reference), "{message}");
    assert_eq!(cri.image(&late.reference).await?, None);

    // Reading.
    assert_eq!(cri.all_images().await?.len(), 2);
    assert_eq!((cri.all_containers().await?.len(), cri.all_pods().await?.len()), (2, 1));
    let status = cri.status(StatusRequest { verbose: true }).await?;
    assert!(status.status.is_some());
    cri.container(&running).await?;
    // An image that nobody uses.
    let before = used(&node).await?;
    cri.forget_image(&large.reference).await?;
    let removed = Instant::now();
    assert!(free(&root)? > 3 << 20, "{} bytes are free", free(&root)?);
    while before - used(&node).await? < 4 << 20 {
        assert!(removed.elapsed() < patience(30), "the account lags behind");
    }
    // Pods, on a disk that is full again.
    let more = root.join("more");
    std::fs::rename(&filler, &more)?;
    let again = fill(&root)?;
    assert_eq!(free(&root)?, 0);
    cri.stop(&running, 0).await?;
    cri.remove(&exited).await?;
    fill(&root)?;
    cri.remove(&running).await?;
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    cri.forget_image(&id).await?;
    assert_eq!((cri.all_images().await?, cri.all_containers().await?), (vec![], vec![]));
    assert!(free(&root)? > 500_000);
    // And all is as before once there is room.
    std::fs::remove_file(&again)?;
    std::fs::remove_file(&more)?;
    cri.pull(&late.reference).await?;
    node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_on_a_full_disk_and_frees_it() -> Result {
    let (mut node, registry) =
        Node::start_with_registry(Options { root_mib: Some(16), ..Options::default() }).await?;
    let root = node.machine().path(&node.root());
    let image = registry.push(ImageBuilder::busybox(Media::Oci)?, "used", "1").await?;
    let id = node.cri().pull(&image.reference).await?;
    let pod = node.pod("full");
    let pod_id = node.cri().run_pod(&pod).await?;
    node.cri().run(&pod_id, &ContainerSpec::lasting("runs", &id), &pod).await?;
    let filler = fill(&root)?;
    node.kill9().await?;
    assert_eq!(free(&root)?, 0);
    node.restart().await?;
    let cri = node.cri();
    assert_eq!(cri.all_images().await?.len(), 1);
    cri.stop_pod(&pod_id).await?;
    cri.remove_pod(&pod_id).await?;
    cri.forget_image(&id).await?;
    assert!(free(&root)? > 500_000);
    std::fs::remove_file(&filler)?;
    node.finish().await
}
