//! How long calls take that look at all pods and containers, or at one.

use std::time::{Duration, Instant};

use e2e::Cri;
use e2e::cri::*;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, skip_field};
use prost::{DecodeError, Message};
use tonic::Status;

use crate::load::Load;

/// Calls before the counted ones.
const WARM_UP: usize = 5;
/// A slow call is not repeated for longer than this, once it was made often enough.
const LONGEST: Duration = Duration::from_secs(20);
const OFTEN_ENOUGH: usize = 20;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    ListPodSandbox,
    ListContainers,
    /// The same without the client's part: until the answer is here, not yet decoded.
    ListContainersEncoded,
    StreamContainers,
    ContainerStats,
    PodSandboxStats,
    ListContainerStats,
    ListPodSandboxStats,
    ListPodSandboxMetrics,
}

impl Call {
    pub(crate) const ALL: [Self; 9] = [
        Self::ListPodSandbox,
        Self::ListContainers,
        Self::ListContainersEncoded,
        Self::StreamContainers,
        Self::ContainerStats,
        Self::PodSandboxStats,
        Self::ListContainerStats,
        Self::ListPodSandboxStats,
        Self::ListPodSandboxMetrics,
    ];

    /// What it may take in milliseconds, at the 99th of a hundred.
    fn bound(self) -> Option<f64> {
        match self {
            Self::ListContainers => Some(2.0),
            Self::ListContainerStats | Self::ListPodSandboxStats => Some(50.0),
            _ => None,
        }
    }

    /// Makes the call; gives how many things it told of.
    pub(crate) async fn ask(self, cri: &Cri, load: &Load) -> Result<usize, Status> {
        let first = |ids: &[String]| ids.first().cloned().unwrap_or_default();
        Ok(match self {
            Self::ListPodSandbox => cri.all_pods().await?.len(),
            Self::ListContainers => cri.all_containers().await?.len(),
            Self::ListContainersEncoded => encoded_containers(cri).await?,
            Self::StreamContainers => streamed_containers(cri).await?,
            Self::ContainerStats => {
                let request = ContainerStatsRequest { container_id: first(&load.containers) };
                cri.container_stats(request).await?.stats.iter().count()
            }
            Self::PodSandboxStats => {
                let request = PodSandboxStatsRequest { pod_sandbox_id: first(&load.pods) };
                cri.pod_sandbox_stats(request).await?.stats.iter().count()
            }
            Self::ListContainerStats => {
                cri.list_container_stats(ListContainerStatsRequest::default()).await?.stats.len()
            }
            Self::ListPodSandboxStats => {
                cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await?.stats.len()
            }
            Self::ListPodSandboxMetrics => metrics(cri).await?.pod_metrics.len(),
        })
    }
}

async fn encoded_containers(cri: &Cri) -> Result<usize, Status> {
    let request = ListContainersRequest::default();
    Ok(cri.call::<_, Entries>("RuntimeService", "ListContainers", request).await?.0)
}

/// How many fields an answer has, of which none is looked into.
#[derive(Debug, Default)]
struct Entries(usize);

impl Message for Entries {
    fn encode_raw(&self, _: &mut impl BufMut) {}

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.0 += 1;
        skip_field(wire_type, tag, buf, context)
    }

    fn encoded_len(&self) -> usize {
        0
    }

    fn clear(&mut self) {
        self.0 = 0;
    }
}

/// The messages have their list where that of ListContainers is.
async fn streamed_containers(cri: &Cri) -> Result<usize, Status> {
    let mut stream =
        cri.stream::<_, ListContainersResponse>("RuntimeService", "StreamContainers", ()).await?;
    let mut count = 0;
    while let Some(message) = stream.message().await? {
        count += message.containers.len();
    }
    Ok(count)
}

pub(crate) async fn metrics(cri: &Cri) -> Result<ListPodSandboxMetricsResponse, Status> {
    cri.call("RuntimeService", "ListPodSandboxMetrics", ListPodSandboxMetricsRequest {}).await
}

/// What was measured of one call.
#[derive(Debug, Default)]
struct Measured {
    told: usize,
    samples: Vec<f64>,
    refused: Option<Status>,
}

/// Makes each call so often, all of them again until so much time is over, and prints what they took.
pub(crate) async fn measure(cri: &Cri, load: &Load, times: usize, least: Duration) {
    let began = Instant::now();
    let mut table: [Measured; Call::ALL.len()] = std::array::from_fn(|_| Measured::default());
    while table[0].samples.is_empty() || began.elapsed() < least {
        for (call, measured) in Call::ALL.into_iter().zip(&mut table) {
            if measured.refused.is_none() {
                measured.refused = repeat(call, cri, load, times, measured).await.err();
            }
        }
    }
    heading();
    for (call, measured) in Call::ALL.into_iter().zip(table) {
        let name = format!("{call:?}");
        match measured.refused {
            None => row(&name, measured.told, measured.samples, call.bound()),
            Some(status) => println!("{name:<24} {:?}: {}", status.code(), status.message()),
        }
    }
}

async fn repeat(
    call: Call,
    cri: &Cri,
    load: &Load,
    times: usize,
    measured: &mut Measured,
) -> Result<(), Status> {
    for _ in 0..WARM_UP {
        measured.told = call.ask(cri, load).await?;
    }
    let began = Instant::now();
    for done in 0..times {
        if done >= OFTEN_ENOUGH && began.elapsed() > LONGEST {
            break;
        }
        let asked = Instant::now();
        call.ask(cri, load).await?;
        measured.samples.push(asked.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(())
}

fn heading() {
    let columns = ["told of", "calls", "median", "p99", "most", "bound"];
    print!("{:<24}", "milliseconds");
    for column in columns {
        print!(" {column:>8}");
    }
    println!();
}

/// One line of the table.
pub(crate) fn row(name: &str, told: usize, mut samples: Vec<f64>, bound: Option<f64>) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (samples.len() as f64 * share).ceil() as usize;
        samples.get(place.saturating_sub(1)).copied().unwrap_or_default()
    };
    let (median, p99, most) = (at(0.5), at(0.99), at(1.0));
    let verdict = bound.map_or_else(String::new, |bound| {
        format!("{bound:>8.0}{}", if p99 <= bound { "" } else { "  MISSED" })
    });
    println!("{name:<24} {told:>8} {:>8} {median:>8.2} {p99:>8.2} {most:>8.2} {verdict}", samples.len());
}
