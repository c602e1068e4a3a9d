//! A proxy before a registry that cuts, stalls, refuses and redirects as a test says, counts what it sends and remembers
//! what it was asked.
//!
//! It serves one request per connection and adds `Connection: close`, so that an answer is what a connection carries. A
//! [`Trouble`] is in force as long as the [`InForce`] of it lives; several may meet in one answer. It runs on a thread and
//! runtime of its own inside the machine's network, and ends with the value.
//!
//! ```no_run
//! # async fn example(machine: std::sync::Arc<e2e::Machine>, node: &e2e::Node, registry: &e2e::Registry) -> e2e::Result {
//! use e2e::{RegistryProxy, Trouble};
//! let proxy = RegistryProxy::start(&machine, registry.host()).await?;
//! proxy.describe_to(&node.registry_config_dir())?;
//! let cuts = proxy.put("/blobs/", Trouble::Cut { after: 8 << 20 });
//! node.cri().pull(&format!("{}/big:1", proxy.host())).await?;
//! cuts.lift();
//! assert!(proxy.requests().iter().all(|it| it.authorization.is_none()));
//! # Ok(()) }
//! ```

mod exchange;
mod rules;

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::{Machine, PushedImage, Result, patience};
use rules::Rules;
pub use rules::{InForce, Trouble};

/// One request and what became of it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `HEAD` …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The header `Host`.
    pub host: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The header `Range`.
    pub range: Option<String>,
    /// The status that was sent; 0 when none was (yet).
    pub status: u16,
    /// How many bytes of the answer's body have been sent so far.
    pub sent: u64,
    /// Whether no more will be sent, however that came about.
    pub over: bool,
}

impl Request {
    /// Whether it asks for a blob's content.
    #[must_use]
    pub fn fetches_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }
}

/// What the proxy and its users share.
#[derive(Debug, Default)]
struct Shared {
    rules: Rules,
    requests: Mutex<Vec<Request>>,
}

impl Shared {
    fn begin(&self, request: Request) -> usize {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push(request);
        requests.len() - 1
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Request)) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(request) = requests.get_mut(number) {
            change(request);
        }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct RegistryProxy {
    host: String,
    shared: Arc<Shared>,
    /// The thread ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

impl RegistryProxy {
    /// Starts one on a free loopback port of the machine, before a registry that listens there on `upstream` (`host:port`)
    /// without TLS.
    pub async fn start(machine: &Arc<Machine>, upstream: &str) -> Result<Self> {
        if machine.is_private() {
            // What counts as sent has been read, but for this much that lies in the kernel.
            let small = "echo 4096 131072 262144 >/proc/sys/net/ipv4/tcp_rmem";
            machine.output("sh", &["-c", small]).await?;
        }
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = oneshot::channel();
        let (machine, upstream, theirs) = (Arc::clone(machine), upstream.to_owned(), Arc::clone(&shared));
        tokio::spawn(async move {
            let work = move || match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
                Ok(listener) => {
                    // The receiver is gone when the test is.
                    drop(bound.send(listener.local_addr()));
                    run(listener, upstream, theirs, stopped)
                }
                Err(error) => {
                    drop(bound.send(Err(error)));
                    Ok(())
                }
            };
            machine.in_network(work).await
        });
        let address = address.await.context("the proxy's thread")?.context("listening")?;
        Ok(Self { host: address.to_string(), shared, _stop: stop })
    }

    /// `host:port`, to stand in image references.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Tells a daemon that this registry speaks plain HTTP.
    pub fn describe_to(&self, registry_config_dir: &Path) -> Result {
        let dir = registry_config_dir.join(&self.host);
        std::fs::create_dir_all(&dir)?;
        let text = format!(
            "server = \"http://{0}\"\n\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            self.host
        );
        std::fs::write(dir.join("hosts.toml"), text).context("describing the proxy")
    }

    /// The reference of an image that was pushed to the registry, by way of the proxy.
    #[must_use]
    pub fn reference_of(&self, image: &PushedImage) -> String {
        let name = image.reference.split_once('/').map_or(image.reference.as_str(), |(_, name)| name);
        format!("{}/{name}", self.host)
    }

    /// Has requests whose path contains the text run into a trouble, until the value is dropped.
    pub fn put(&self, path: &str, trouble: Trouble) -> InForce {
        self.shared.rules.put(path, usize::MAX, trouble)
    }

    /// The same for the first so many that really run into it.
    pub fn put_times(&self, path: &str, times: usize, trouble: Trouble) -> InForce {
        self.shared.rules.put(path, times, trouble)
    }

    /// All requests so far, in the order of their coming.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many bytes of a blob have been sent, over all answers; of all blobs for an empty digest.
    #[must_use]
    pub fn blob_bytes(&self, digest: &str) -> u64 {
        self.blob_requests(digest).iter().map(|it| it.sent).sum()
    }

    /// The requests for a blob's content; for that of all blobs with an empty digest.
    #[must_use]
    pub fn blob_requests(&self, digest: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|it| it.fetches_blob() && it.path.contains(digest));
        requests
    }

    /// Waits until a request has come that fulfils a condition.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&Request) -> bool) -> Result {
        let deadline = Instant::now() + patience(30);
        while !self.requests().iter().any(&condition) {
            anyhow::ensure!(Instant::now() < deadline, "no request {what}: {:?}", self.requests());
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// The proxy's thread: serves until the value that stands for it is dropped.
fn run(
    listener: TcpListener,
    upstream: String,
    shared: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) -> Result {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::select! {
            ended = exchange::serve(listener, upstream, shared) => ended,
            // Never sent, so this is the drop.
            _ = stopped => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests;
