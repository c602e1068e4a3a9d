//! The same calls while the server has other things to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use e2e::faulty::{Fault, HANDLER, Injected, Moment, Program};
use e2e::{
    ContainerSpec, Cri, ImageBuilder, InForce, Layer, Media, Packing, PodSpec, RegistryProxy, Result, Trouble,
};
use tokio::task::JoinHandle;

use crate::calls;
use crate::load::Load;
use crate::sample::Sample;
use crate::subject::{Kind, Ours, Subject};

/// Pods that come and go side by side.
const COMING_AND_GOING: usize = 2;
/// Pods whose OCI runtime hangs.
const HUNG: usize = 3;
/// Layers of the sample image that is pulled again and again: some 55 MB.
const PULLED: std::ops::Range<usize> = 5..8;

/// What goes on until it is told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    pods: Arc<AtomicUsize>,
    pulls: Arc<AtomicUsize>,
    works: Vec<JoinHandle<Result>>,
}

/// Measures each call so often, and again until `least` is over.
pub(crate) async fn measure(subject: &Subject, load: &Load, times: usize, least: Duration) -> Result {
    let hung = match &subject.kind {
        Kind::Ours(ours) => Some(Hung::begin(subject, ours).await?),
        Kind::Peer(_) => None,
    };
    let began = Instant::now();
    let traffic = Traffic::begin(subject, hung.as_ref())?;
    print!("\nwhile {COMING_AND_GOING} pods come and go");
    match &hung {
        Some(_) => println!(", an image is pulled, another pull is stuck and {HUNG} OCI runtimes hang"),
        None => println!(),
    }
    calls::measure(&subject.cri, load, times, least).await;
    let took = began.elapsed().as_secs_f64();
    let (pods, pulls) = traffic.end().await?;
    println!("meanwhile {:.1} pods and {:.1} pulls per second", pods as f64 / took, pulls as f64 / took);
    match hung {
        Some(hung) => hung.end(&subject.cri).await,
        None => Ok(()),
    }
}

impl Traffic {
    fn begin(subject: &Subject, hung: Option<&Hung>) -> Result<Self> {
        let (stop, pods, pulls) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let mut traffic = Self { stop, pods, pulls, works: Vec::new() };
        for number in 0..COMING_AND_GOING {
            let (cri, image) = (subject.cri.clone(), subject.image.clone());
            let pod = subject.pod(&format!("busy{number}"));
            let (stop, count) = (Arc::clone(&traffic.stop), Arc::clone(&traffic.pods));
            traffic.works.push(tokio::spawn(repeat(stop, count, move || {
                let (cri, image, pod) = (cri.clone(), image.clone(), pod.clone());
                async move { live(&cri, &pod, &image).await }
            })));
        }
        if let Some(hung) = hung {
            let (cri, image) = (subject.cri.clone(), hung.pulled.clone());
            let (stop, count) = (Arc::clone(&traffic.stop), Arc::clone(&traffic.pulls));
            traffic.works.push(tokio::spawn(repeat(stop, count, move || {
                let (cri, image) = (cri.clone(), image.clone());
                async move {
                    cri.pull(&image).await?;
                    Ok(cri.forget_image(&image).await?)
                }
            })));
        }
        Ok(traffic)
    }

    /// How many pods and pulls there were.
    async fn end(self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        for work in self.works {
            work.await??;
        }
        Ok((self.pods.load(Ordering::Relaxed), self.pulls.load(Ordering::Relaxed)))
    }
}

async fn repeat<F: Future<Output = Result>>(
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    work: impl Fn() -> F,
) -> Result {
    while !stop.load(Ordering::Relaxed) {
        work().await?;
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn live(cri: &Cri, pod: &PodSpec, image: &str) -> Result {
    let id = cri.run_pod(pod).await?;
    let container = ContainerSpec::lasting("c", image).labelled_by(pod);
    let lived = async {
        let container = cri.run(&id, &container, pod).await?;
        cri.stop(&container, 5).await
    };
    let lived = lived.await;
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    Ok(lived?)
}

/// What gets no further.
struct Hung {
    runtimes: Injected,
    starts: Vec<JoinHandle<Result>>,
    transfer: InForce,
    pull: JoinHandle<Result>,
    _proxy: RegistryProxy,
    /// An image that can be pulled meanwhile.
    pulled: String,
}

impl Hung {
    async fn begin(subject: &Subject, ours: &Ours) -> Result<Self> {
        let sample = Sample::new();
        let mut image = ImageBuilder::new(Media::Oci).packed(Packing::Gzip);
        for number in PULLED {
            image = image.layer(Layer::of_archive(sample.layer(number)?));
        }
        let pulled = ours.registry.push(image, "bench/busy", "1").await?;
        let stuck = ImageBuilder::new(Media::Oci).layer(Layer::of_archive(sample.layer(4)?));
        let stuck = ours.registry.push(stuck, "bench/stuck", "1").await?;
        let proxy = RegistryProxy::start(&subject.machine, ours.registry.host()).await?;
        proxy.describe_to(&ours.node.registry_config_dir())?;
        let transfer = proxy.put("/blobs/", Trouble::Hold { after: 1 << 20 });
        let pull = tokio::spawn(pull_and_forget(subject.patient.clone(), proxy.reference_of(&stuck)));
        proxy.wait_for("for a blob", |request| request.fetches_blob() && request.sent >= 1 << 20).await?;
        let runtimes = ours.faulty.inject(Program::Runtime, "create", Moment::Before, Fault::Hang)?;
        let starts = (0..HUNG).map(|number| {
            let pod = PodSpec { handler: HANDLER.to_owned(), ..subject.pod(&format!("hung{number}")) };
            tokio::spawn(come_and_go(subject.patient.clone(), pod))
        });
        let starts = starts.collect();
        ours.faulty.wait_for_hung(Program::Runtime, "create", HUNG).await?;
        Ok(Self { runtimes, starts, transfer, pull, _proxy: proxy, pulled: pulled.reference })
    }

    /// Lets go on what hung: nothing of it may have been lost.
    async fn end(self, cri: &Cri) -> Result {
        self.runtimes.lift();
        for start in self.starts {
            start.await?.context("a pod whose runtime had hung")?;
        }
        self.transfer.lift();
        self.pull.await?.context("the pull that was stuck")?;
        Ok(cri.forget_image(&self.pulled).await?)
    }
}

async fn pull_and_forget(cri: Cri, reference: String) -> Result {
    cri.pull(&reference).await?;
    Ok(cri.forget_image(&reference).await?)
}

async fn come_and_go(cri: Cri, pod: PodSpec) -> Result {
    let id = cri.run_pod(&pod).await?;
    cri.stop_pod(&id).await?;
    Ok(cri.remove_pod(&id).await?)
}
