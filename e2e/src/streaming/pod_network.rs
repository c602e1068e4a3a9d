//! Listeners inside a pod's network that belong to the test: they can do what no program of an image would.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpListener;

use crate::{Machine, Result};

/// Listens on an address in the network of a process, whose id is the machine's.
pub async fn listen_in_network_of(machine: &Machine, pid: u32, address: &str) -> Result<TcpListener> {
    let path = machine.path(Path::new(&format!("/proc/{pid}/ns/net")));
    let namespace = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let address = address.to_owned();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("in-pod".to_owned()).spawn(move || {
        let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        let listener = entered.map_err(std::io::Error::from).and_then(|()| {
            let listener = std::net::TcpListener::bind(&address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        // Nobody waits any more when the test was cancelled.
        drop(sender.send(listener.with_context(|| format!("listening on {address}"))));
    })?;
    Ok(TcpListener::from_std(receiver.await.context("the thread ended early")??)?)
}
