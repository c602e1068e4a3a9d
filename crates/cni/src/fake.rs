//! A network without plugins: hands out addresses, fails or hangs on demand, and records what it was asked.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde_json::json;
use types::SandboxId;

use crate::error::CniError;
use crate::network::{Attachment, Network, NetworkStatus};
use crate::pod::PodNetwork;

/// What a [`FakeNetwork`] was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Network::setup`]
    Setup,
    /// [`Network::teardown`]
    Teardown,
    /// [`Network::check`]
    Check,
    /// [`Network::gc`]
    Gc,
}

/// How the next call of a verb goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails without having done anything, with this CNI error code (11 is "try again later").
    Fail(u32),
    /// Does its work and then fails, as a plugin killed after its last step would.
    FailAfter(u32),
    /// Never returns; nothing is done.
    Hang,
}

/// One call that a [`FakeNetwork`] received.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Which method.
    pub verb: Verb,
    /// For which pod; None for GC.
    pub pod: Option<PodNetwork>,
}

/// A [`Network`] in memory. Addresses are 10.88.0.2 and upwards and are never used twice.
#[derive(Debug)]
pub struct FakeNetwork {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u32,
    attached: BTreeMap<SandboxId, Attachment>,
    faults: HashMap<Verb, VecDeque<Fault>>,
    calls: Vec<Call>,
    status: NetworkStatus,
}

impl Default for FakeNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeNetwork {
    /// A ready network with nothing attached.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            next: u32::from(Ipv4Addr::new(10, 88, 0, 2)),
            attached: BTreeMap::new(),
            faults: HashMap::new(),
            calls: Vec::new(),
            status: NetworkStatus::ready(),
        };
        Self { state: Mutex::new(state) }
    }

    /// Makes the next call of `verb` that has no fault yet go wrong; calls queue.
    pub fn inject(&self, verb: Verb, fault: Fault) {
        self.lock().faults.entry(verb).or_default().push_back(fault);
    }

    /// Makes [`Network::status`] return `status`.
    pub fn set_status(&self, status: NetworkStatus) {
        self.lock().status = status;
    }

    /// Every call so far, oldest first.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Sandboxes that are attached now.
    #[must_use]
    pub fn attached(&self) -> Vec<SandboxId> {
        self.lock().attached.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call, then does `work` as the next fault of the verb allows.
    async fn run<T>(
        &self,
        verb: Verb,
        pod: Option<&PodNetwork>,
        work: impl FnOnce(&mut State) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        match self.note(verb, pod) {
            None => work(&mut self.lock()),
            Some(Fault::Fail(code)) => Err(failure(verb, code)),
            Some(Fault::FailAfter(code)) => {
                work(&mut self.lock())?;
                Err(failure(verb, code))
            }
            Some(Fault::Hang) => pending().await,
        }
    }

    fn note(&self, verb: Verb, pod: Option<&PodNetwork>) -> Option<Fault> {
        let mut state = self.lock();
        state.calls.push(Call { verb, pod: pod.cloned() });
        state.faults.get_mut(&verb).and_then(VecDeque::pop_front)
    }
}

fn failure(verb: Verb, code: u32) -> CniError {
    let command = match verb {
        Verb::Setup => "ADD",
        Verb::Teardown => "DEL",
        Verb::Check => "CHECK",
        Verb::Gc => "GC",
    };
    let message = "a failure that the test asked for".to_owned();
    CniError::Plugin { plugin: "fake".to_owned(), command, code, message, details: String::new() }
}

impl State {
    fn attach(&mut self, pod: &PodNetwork) -> Attachment {
        let ip = IpAddr::V4(Ipv4Addr::from(self.next));
        self.next += 1;
        let attachment = Attachment {
            network: "fake".to_owned(),
            interface: "eth0".to_owned(),
            ips: vec![ip],
            mac: Some("0a:58:0a:58:00:02".to_owned()),
            result: json!({"cniVersion": "1.0.0", "ips": [{"address": format!("{ip}/16")}]}),
        };
        self.attached.insert(pod.sandbox.clone(), attachment.clone());
        attachment
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn setup(&self, pod: &PodNetwork) -> Result<Attachment, CniError> {
        self.run(Verb::Setup, Some(pod), |state| Ok(state.attach(pod))).await
    }

    async fn teardown(&self, pod: &PodNetwork) -> Result<(), CniError> {
        self.run(Verb::Teardown, Some(pod), |state| {
            state.attached.remove(&pod.sandbox);
            Ok(())
        })
        .await
    }

    async fn check(&self, pod: &PodNetwork) -> Result<(), CniError> {
        self.run(Verb::Check, Some(pod), |state| {
            state.attached.get(&pod.sandbox).map(|_| ()).ok_or(CniError::NotAttached)
        })
        .await
    }

    async fn gc(&self, valid: &[SandboxId]) -> Result<(), CniError> {
        self.run(Verb::Gc, None, |state| {
            state.attached.retain(|sandbox, _| valid.contains(sandbox));
            Ok(())
        })
        .await
    }

    fn status(&self) -> NetworkStatus {
        self.lock().status.clone()
    }

    fn describe(&self) -> serde_json::Value {
        json!({"PluginDirs": [], "PluginConfDir": "", "Networks": [{"Config": {"Name": "fake"}, "IFName": "eth0"}]})
    }

    fn cached(&self) -> Vec<SandboxId> {
        self.attached()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Dns;

    fn pod(seed: u8) -> PodNetwork {
        PodNetwork {
            sandbox: SandboxId::from_random([seed; 32]),
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            uid: "u".to_owned(),
            netns: None,
            port_mappings: Vec::new(),
            bandwidth: None,
            dns: Dns::default(),
            cgroup_parent: String::new(),
            annotations: BTreeMap::new(),
            conf_dir: None,
        }
    }

    #[tokio::test]
    async fn addresses_differ_and_calls_are_recorded() {
        let network = FakeNetwork::new();
        let first = network.setup(&pod(1)).await.unwrap();
        let second = network.setup(&pod(2)).await.unwrap();
        assert_ne!(first.ips, second.ips);
        network.teardown(&pod(1)).await.unwrap();
        assert_eq!(network.cached(), [pod(2).sandbox]);
        let verbs: Vec<_> = network.calls().into_iter().map(|call| call.verb).collect();
        assert_eq!(verbs, [Verb::Setup, Verb::Setup, Verb::Teardown]);
    }

    #[tokio::test(start_paused = true)]
    async fn faults_apply_once_each_in_order() {
        let network = FakeNetwork::new();
        network.inject(Verb::Setup, Fault::Fail(11));
        network.inject(Verb::Setup, Fault::FailAfter(100));
        network.inject(Verb::Setup, Fault::Hang);
        assert!(network.setup(&pod(1)).await.is_err() && network.attached().is_empty());
        assert!(network.setup(&pod(1)).await.is_err() && network.attached().len() == 1);
        let patience = std::time::Duration::from_secs(600);
        assert!(tokio::time::timeout(patience, network.setup(&pod(1))).await.is_err());
        assert!(network.setup(&pod(1)).await.is_ok());
    }
}
