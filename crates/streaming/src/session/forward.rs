//! Port-forward: connections into a pod, each on its own.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use types::SandboxId;

use super::activity::Activity;
use super::copy::{Flow, Stop};
use super::{Bounds, Farewell};
use crate::backend::{Backend, Reader, Writer};
use crate::channels::{Forwarded, Forwards};

/// Forwards connections until the client leaves. What goes wrong with one of them stays its own.
pub(crate) async fn forward(
    backend: &Arc<dyn Backend>,
    sandbox: SandboxId,
    mut forwards: Forwards,
    bounds: &Bounds,
) -> Farewell {
    let activity = Activity::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = bounds.stop.cancelled() => return Farewell::Told,
            () = activity.silence(bounds.idle) => return Farewell::Told,
            Some(_) = connections.join_next() => {}
            next = forwards.recv() => match next {
                Some(forwarded) => {
                    connections.spawn(one(Arc::clone(backend), sandbox.clone(), forwarded, activity.clone()));
                }
                None => return Farewell::Left,
            },
        }
    }
}

async fn one(backend: Arc<dyn Backend>, sandbox: SandboxId, forwarded: Forwarded, activity: Activity) {
    activity.touch();
    let reset = forwarded.reset.clone();
    let work = async {
        let port = forwarded.port;
        match backend.connect(sandbox.clone(), port).await {
            Ok(connection) => relay(connection, forwarded, &activity).await,
            Err(error) => {
                let why = format!("error forwarding port {port} to pod {sandbox}: {error}");
                tracing::debug!(op = "port-forward", sandbox = %sandbox, port, error = %error, "no connection");
                complain(forwarded, &why).await;
            }
        }
    };
    tokio::select! {
        biased;
        () = reset.cancelled() => {}
        () = work => {}
    }
}

/// Both directions, each for as long as it has something to say; when one has ended the other has not for ever.
async fn relay(connection: TcpStream, mut forwarded: Forwarded, activity: &Activity) {
    drop(connection.set_nodelay(true));
    let (inward, outward) = (Flow::new(activity), Flow::new(activity));
    let (read, write) = connection.into_split();
    let (mut from_pod, mut to_pod): (Reader, Writer) = (Box::new(read), Box::new(write));
    let to = async {
        let stop = inward.copy(&mut forwarded.input, &mut to_pod).await;
        drop(to_pod.shutdown().await);
        outward.ending.cancel();
        stop
    };
    let from = async {
        let stop = outward.copy(&mut from_pod, &mut forwarded.output).await;
        drop(forwarded.output.shutdown().await);
        inward.ending.cancel();
        stop
    };
    let (_, stop) = tokio::join!(to, from);
    match stop {
        Stop::End => drop(forwarded.error.shutdown().await),
        Stop::Reading(error) if error.kind() != io::ErrorKind::ConnectionReset => {
            let why = format!("error forwarding port {}: {error}", forwarded.port);
            complain(forwarded, &why).await;
        }
        Stop::Reading(_) | Stop::Writing => forwarded.reset.cancel(),
    }
}

/// Says what is wrong, and that nothing else comes.
async fn complain(mut forwarded: Forwarded, why: &str) {
    if forwarded.error.write_all(why.as_bytes()).await.is_ok() {
        drop(forwarded.error.shutdown().await);
        drop(forwarded.output.shutdown().await);
    }
}
