//! How soon a container's end is told: from the kill of its process to the event's arrival.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use e2e::cri::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use e2e::{ContainerSpec, PodSpec, Result};
use tonic::Streaming;

use crate::calls;
use crate::subject::Subject;

/// Containers that are killed, one after another.
const KILLS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints a line of the table of calls.
pub(crate) async fn measure(subject: &Subject) {
    match in_a_pod_of_its_own(subject).await {
        Ok(samples) => calls::row("kill to its event", 1, samples, None),
        Err(error) => println!("{:<24} {error:#}", "kill to its event"),
    }
}

async fn in_a_pod_of_its_own(subject: &Subject) -> Result<Vec<f64>> {
    let pod = subject.pod("killed");
    let id = subject.cri.run_pod(&pod).await?;
    let measured = killed_one_by_one(subject, &pod, &id).await;
    subject.cri.stop_pod(&id).await?;
    subject.cri.remove_pod(&id).await?;
    measured
}

async fn killed_one_by_one(subject: &Subject, pod: &PodSpec, pod_id: &str) -> Result<Vec<f64>> {
    let opened = subject.cri.stream("RuntimeService", "GetContainerEvents", GetEventsRequest {});
    let mut events = tokio::time::timeout(PATIENCE, opened).await.context("no stream")??;
    let mut samples = Vec::new();
    for number in 0..KILLS {
        let spec = ContainerSpec::lasting(&format!("killed{number}"), &subject.image);
        let id = subject.cri.run(pod_id, &spec, pod).await?;
        samples.push(kill(subject, &mut events, &id).await?);
        subject.cri.remove(&id).await?;
    }
    Ok(samples)
}

async fn kill(subject: &Subject, events: &mut Streaming<ContainerEventResponse>, id: &str) -> Result<f64> {
    let pid = subject.cri.container_pid(id).await?;
    let line = format!("date +%s%N; kill -9 {pid}");
    let words = ["-c", line.as_str()];
    let killing = subject.machine.output("sh", &words);
    let hearing = tokio::time::timeout(PATIENCE, stopped(events, id));
    let (killed, heard) = tokio::join!(killing, hearing);
    let killed: f64 = killed?.trim().parse().context("the time of the kill")?;
    Ok((heard.context("no event")??.as_secs_f64() * 1e9 - killed) / 1e6)
}

/// When the event came that says this container has ended.
async fn stopped(events: &mut Streaming<ContainerEventResponse>, id: &str) -> Result<Duration> {
    loop {
        let event = events.message().await?.context("the stream has ended")?;
        if event.container_id == id
            && event.container_event_type() == ContainerEventType::ContainerStoppedEvent
        {
            return Ok(SystemTime::now().duration_since(UNIX_EPOCH)?);
        }
    }
}
