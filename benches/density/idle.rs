//! What a server costs while nothing happens to its pods: left alone, and asked as the kubelet asks.

use std::time::{Duration, Instant};

use e2e::cri::{ImageFsInfoRequest, ListContainerStatsRequest, ListPodSandboxStatsRequest, StatusRequest};
use e2e::{Cri, Result};

use crate::processes::Family;
use crate::subject::Subject;

/// What an idle server may take of one processor, in percent.
const BOUND: f64 = 1.0;

pub(crate) async fn measure(subject: &Subject, family: &Family, time: Duration) -> Result {
    if time.is_zero() {
        return Ok(());
    }
    let seconds = time.as_secs();
    println!("\n{:<44} {:>9} {:>9}", "percent of one processor", "server", "helpers");
    row(family, &format!("left alone for {seconds} s"), tokio::time::sleep(time), BOUND).await?;
    for (metrics, what) in [(false, "lists 1 s, figures 10 s"), (true, "and metrics 10 s")] {
        let asking = as_the_kubelet_does(&subject.cri, time, metrics);
        row(family, &format!("asked for {seconds} s: {what}"), asking, f64::INFINITY).await?;
    }
    Ok(())
}

async fn row<T>(family: &Family, name: &str, meanwhile: impl Future<Output = T>, bound: f64) -> Result {
    let (began, before) = (Instant::now(), family.spent()?);
    meanwhile.await;
    let (took, after) = (began.elapsed().as_secs_f64(), family.spent()?);
    let percent = |before: f64, after: f64| 100.0 * (after - before) / took;
    let server = percent(before.server, after.server);
    let verdict = if server < bound { "" } else { "  MISSED" };
    println!("{name:<44} {server:>9.2} {:>9.2}{verdict}", percent(before.helpers, after.helpers));
    Ok(())
}

/// Lists each second, the state every five, figures every ten, with them what a scrape asks for. What a server does not know is not counted against it.
async fn as_the_kubelet_does(cri: &Cri, time: Duration, metrics: bool) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    for second in 0..time.as_secs() {
        seconds.tick().await;
        drop(cri.all_pods().await);
        drop(cri.all_containers().await);
        if second.is_multiple_of(5) {
            drop(cri.status(StatusRequest::default()).await);
        }
        if second.is_multiple_of(10) {
            drop(cri.list_container_stats(ListContainerStatsRequest::default()).await);
            drop(cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await);
            if metrics {
                drop(crate::calls::metrics(cri).await);
            }
            drop(cri.image_fs_info(ImageFsInfoRequest {}).await);
        }
    }
    seconds.tick().await;
}
