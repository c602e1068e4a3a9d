//! The driver with the real plugins of the distribution, as root: bridge, host-local, portmap, bandwidth. Each test has
//! a bridge, a subnet and lease files of its own and ends by proving that nothing of it is left: links, namespaces,
//! leases, records, firewall chains and rules.

#![expect(clippy::unwrap_used, reason = "a helper that fails here fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cni::{Bandwidth, Cni, CniConfig, CniError, Dns, Network, PodNetwork};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use types::{PortMapping, Protocol, SandboxId};

/// Where Debian keeps the plugins; `/opt/cni/bin` is where everybody else does.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// For what takes a moment.
const LIMIT: Duration = Duration::from_secs(60);

/// One network and what is removed and proven gone at its end.
struct Lab {
    dir: TempDir,
    /// Third byte of the subnet and part of every name, different for every test of every process.
    number: u8,
    namespaces: Vec<PathBuf>,
    sandboxes: Vec<SandboxId>,
    /// Firewall chains that were seen to be this network's own.
    chains: BTreeSet<String>,
}

impl Lab {
    fn new() -> Self {
        Self::with(true)
    }

    /// A lab whose bridge plugin makes no masquerade rules. The plugin (1.1.1) finds the rules to remove by the addresses
    /// of the pod's interface, so when that is gone before DEL it leaves them; what is tested then is everything else.
    fn without_masquerade() -> Self {
        Self::with(false)
    }

    fn with(masquerade: bool) -> Self {
        let number = free_number();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        let lab =
            Self { dir, number, namespaces: Vec::new(), sandboxes: Vec::new(), chains: BTreeSet::new() };
        let list = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": lab.network(),
            "plugins": [
                {"type": "bridge", "bridge": lab.bridge(), "isGateway": true, "ipMasq": masquerade, "hairpinMode": true,
                 "ipam": {"type": "host-local", "dataDir": lab.path("leases"),
                          "ranges": [[{"subnet": lab.subnet()}], [{"subnet": format!("fd77:{number:x}::/64")}]],
                          "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            ],
        });
        fs::write(lab.path("conf/10-lab.conflist"), list.to_string()).unwrap();
        lab
    }

    fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    fn network(&self) -> String {
        format!("crimson-test-{}", self.number)
    }

    fn bridge(&self) -> String {
        format!("crimcni{}", self.number)
    }

    fn subnet(&self) -> String {
        format!("10.213.{}.0/24", self.number)
    }

    async fn open(&self) -> Cni {
        open_in(self.dir.path()).await
    }

    /// A pod with a namespace of its own, told apart by `seed`.
    fn pod(&mut self, seed: u8) -> PodNetwork {
        let netns = PathBuf::from(format!("/run/netns/cni-crimson-test-{}-{seed}", self.number));
        sys::netns::create(&netns).unwrap();
        self.namespaces.push(netns.clone());
        let mut id = [self.number; 32];
        id[0] = seed;
        let sandbox = SandboxId::from_random(id);
        self.sandboxes.push(sandbox.clone());
        PodNetwork {
            sandbox,
            name: format!("pod-{seed}"),
            namespace: "test".to_owned(),
            uid: "u".to_owned(),
            netns: Some(netns),
            port_mappings: Vec::new(),
            bandwidth: None,
            dns: Dns::default(),
            cgroup_parent: String::new(),
            annotations: BTreeMap::new(),
            conf_dir: None,
        }
    }

    /// Addresses that are leased now.
    fn leases(&self) -> Vec<String> {
        let dir = self.path("leases").join(self.network());
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock" && !name.starts_with("last_reserved")).collect()
    }

    /// Interfaces of the host that hang on the bridge.
    fn ports(&self) -> Vec<String> {
        let dir = format!("/sys/class/net/{}/brif", self.bridge());
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Firewall rules that speak of this network or of one of its pods.
    fn rules(&self) -> Vec<String> {
        let lines = nat_rules().into_iter();
        let marks: Vec<String> =
            self.sandboxes.iter().map(ToString::to_string).chain([self.network()]).collect();
        lines.filter(|line| marks.iter().any(|mark| line.contains(mark))).collect()
    }

    /// Remembers the chains that the present rules lead to; how many there are.
    fn note_chains(&mut self) -> usize {
        for rule in self.rules() {
            let target = rule.split(" -j ").nth(1).filter(|target| target.starts_with("CNI-"));
            self.chains.extend(target.map(str::to_owned));
        }
        self.chains.len()
    }

    /// Removes what the plugins leave by design (the bridge) and the namespaces, then proves that nothing is left.
    fn end(mut self) {
        assert_eq!(self.leases(), Vec::<String>::new(), "leases are left");
        assert_eq!(self.rules(), Vec::<String>::new(), "firewall rules are left");
        let rules = nat_rules();
        let left = self.chains.iter().find(|chain| rules.iter().any(|rule| rule.contains(chain.as_str())));
        assert_eq!(left, None, "a firewall chain is left");
        // The kernel takes the interfaces of a namespace that is gone away some time later.
        let begun = Instant::now();
        while !self.ports().is_empty() {
            assert!(begun.elapsed() < LIMIT, "interfaces are left: {:?}", self.ports());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(fs::read_dir(self.path("cache")).unwrap().count(), 0, "records are left");
        self.remove();
        assert!(!Path::new("/sys/class/net").join(self.bridge()).try_exists().unwrap(), "the bridge is left");
        for netns in &self.namespaces {
            assert!(!netns.try_exists().unwrap(), "{} is left", netns.display());
        }
        let nft = output(Command::new("nft").args(["list", "ruleset"]));
        for sandbox in &self.sandboxes {
            assert!(!nft.contains(sandbox.as_str()), "rules in nftables are left");
        }
    }

    fn remove(&mut self) {
        for netns in &self.namespaces {
            sys::netns::remove(netns).unwrap();
        }
        drop(Command::new("ip").args(["link", "delete", &self.bridge()]).output());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.remove();
    }
}

async fn open_in(dir: &Path) -> Cni {
    let config = CniConfig {
        conf_dir: dir.join("conf"),
        bin_dirs: PLUGINS.iter().map(PathBuf::from).collect(),
        cache_dir: dir.join("cache"),
        ..CniConfig::default()
    };
    Cni::open(config, CancellationToken::new()).await.unwrap()
}

/// A number that no bridge of this host has. Making the bridge first would be surer, but the plugin is to make it; so
/// each test process starts elsewhere, and each test in it takes the next.
fn free_number() -> u8 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let taken = |number: u8| Path::new(&format!("/sys/class/net/crimcni{number}")).try_exists().unwrap();
    let candidates = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let numbers = candidates.map(|next| u8::try_from((std::process::id() * 16 + next) % 250).unwrap());
    numbers.take(250).find(|number| !taken(*number)).expect("a free number")
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// All address translation rules of the host.
fn nat_rules() -> Vec<String> {
    let list = |program| output(Command::new(program).args(["-w", "-t", "nat", "-S"]));
    ["iptables", "ip6tables"].map(list).iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}

/// Names of the interfaces inside a namespace.
fn links(netns: &Path) -> Vec<String> {
    let read = || output(Command::new("ip").args(["-br", "link"]));
    let text = sys::netns::run_in(netns, read).unwrap();
    text.lines().filter_map(|line| line.split(['@', ' ']).next()).map(str::to_owned).collect()
}

/// Answers one connection in the pod's namespace with `text`; the address is bound when this returns.
fn serve(netns: &Path, port: u16, text: &'static str) -> std::thread::JoinHandle<()> {
    let listener = sys::netns::run_in(netns, || TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(text.as_bytes()).unwrap();
    })
}

fn fetch(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn limited() -> Bandwidth {
    Bandwidth { ingress_rate: 10_000_000, ingress_burst: 10_000_000, ..Bandwidth::default() }
}

/// A port of the host that nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_pod_is_reachable_by_address_and_host_port_until_it_is_detached() {
    let mut lab = Lab::new();
    let cni = lab.open().await;
    let mut pod = lab.pod(1);
    let host_port = free_port();
    let mapping = |host_port| PortMapping {
        protocol: Protocol::Tcp,
        container_port: 8080,
        host_port,
        host_ip: String::new(),
    };
    pod.port_mappings = vec![mapping(host_port), mapping(0)];
    pod.bandwidth = Some(limited());
    let netns = pod.netns.clone().unwrap();

    let attachment = cni.setup(&pod).await.unwrap();
    let [ip @ IpAddr::V4(_), IpAddr::V6(_)] = attachment.ips[..] else { panic!("{:?}", attachment.ips) };
    assert!(attachment.mac.is_some());
    assert_eq!(links(&netns), ["lo", "eth0"]);
    assert_eq!(lab.leases().len(), 2);
    let mapped = format!("--dports {host_port} ");
    let rules = lab.rules();
    assert!(rules.iter().any(|rule| rule.contains(&mapped)), "{rules:?}");
    assert_eq!(lab.note_chains(), 2, "one for masquerading, one for the host port: {rules:?}");
    let qdisc = output(Command::new("tc").args(["qdisc", "show"]));
    assert!(lab.ports().iter().any(|port| qdisc.contains(&format!("tbf 1: dev {port} "))), "{qdisc}");
    let server = serve(&netns, 8080, "by address");
    assert_eq!(fetch(SocketAddr::new(ip, 8080)), "by address");
    server.join().unwrap();
    let server = serve(&netns, 8080, "by host port");
    assert_eq!(fetch(SocketAddr::new("127.0.0.1".parse().unwrap(), host_port)), "by host port");
    server.join().unwrap();

    cni.teardown(&pod).await.unwrap();
    cni.teardown(&pod).await.unwrap();
    assert_eq!(links(&netns), ["lo"]);
    lab.end();
}

#[tokio::test]
async fn check_notices_an_interface_that_was_taken_away() {
    let mut lab = Lab::without_masquerade();
    let cni = lab.open().await;
    let mut pod = lab.pod(1);
    // Without a limit the bandwidth plugin (1.1.1) dies of CHECK.
    pod.bandwidth = Some(limited());
    cni.setup(&pod).await.unwrap();
    cni.check(&pod).await.unwrap();
    let delete = || output(Command::new("ip").args(["link", "delete", "eth0"]));
    sys::netns::run_in(pod.netns.as_deref().unwrap(), delete).unwrap();
    let error = cni.check(&pod).await.unwrap_err();
    assert!(
        matches!(&error, CniError::Plugin { plugin, command: "CHECK", .. } if plugin == "bridge"),
        "{error}"
    );
    cni.teardown(&pod).await.unwrap();
    lab.end();
}

#[tokio::test]
async fn many_pods_at_once_get_different_addresses() {
    let mut lab = Lab::new();
    let cni = lab.open().await;
    let pods: Vec<PodNetwork> = (1..=6).map(|seed| lab.pod(seed)).collect();
    let cni = Arc::new(cni);
    let mut tasks = JoinSet::new();
    for pod in pods.clone() {
        let cni = Arc::clone(&cni);
        tasks.spawn(async move { cni.setup(&pod).await.unwrap().ips });
    }
    let mut ips: Vec<IpAddr> = tasks.join_all().await.concat();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 12);
    let mut tasks = JoinSet::new();
    for pod in pods {
        let cni = Arc::clone(&cni);
        tasks.spawn(async move { cni.teardown(&pod).await.unwrap() });
    }
    tasks.join_all().await;
    lab.end();
}

#[tokio::test]
async fn leases_and_rules_are_released_after_the_namespace_and_the_process_are_gone() {
    let mut lab = Lab::without_masquerade();
    let mut pod = lab.pod(1);
    pod.port_mappings = vec![PortMapping {
        protocol: Protocol::Udp,
        container_port: 53,
        host_port: free_port(),
        host_ip: String::new(),
    }];
    lab.open().await.setup(&pod).await.unwrap();
    assert!(!lab.leases().is_empty());
    assert_eq!(lab.note_chains(), 1);
    sys::netns::remove(pod.netns.as_deref().unwrap()).unwrap();
    fs::remove_dir_all(lab.path("conf")).unwrap();

    let cni = lab.open().await;
    assert_eq!(cni.cached(), [pod.sandbox.clone()]);
    cni.gc(&[]).await.unwrap();
    lab.end();
}

/// Names the directory of the lab to [`attach_in_a_process_that_is_killed`]; in an ordinary run of the tests it is unset
/// and that test has nothing to do.
const LAB_VARIABLE: &str = "CRIMSON_CNI_TEST_LAB";

/// Not a test by itself: what the next test starts as a process of its own, and kills.
#[tokio::test]
async fn attach_in_a_process_that_is_killed() {
    let Some(dir) = std::env::var_os(LAB_VARIABLE).map(PathBuf::from) else { return };
    let cni = open_in(&dir).await;
    let pod: PodNetwork = serde_json::from_slice(&fs::read(dir.join("pod.json")).unwrap()).unwrap();
    fs::write(dir.join("begun"), "").unwrap();
    cni.setup(&pod).await.unwrap();
}

#[tokio::test]
async fn an_add_whose_process_is_killed_anywhere_can_be_undone() {
    let mut lab = Lab::new();
    for (round, millis) in [0, 10, 20, 40, 70, 110, 160, 250].into_iter().enumerate() {
        let mut pod = lab.pod(u8::try_from(round).unwrap());
        pod.bandwidth = Some(limited());
        fs::write(lab.path("pod.json"), serde_json::to_vec(&pod).unwrap()).unwrap();
        let begun = lab.path("begun");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attach_in_a_process_that_is_killed"])
            .env(LAB_VARIABLE, lab.dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while fs::remove_file(&begun).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the process ended before it began");
            tokio::task::yield_now().await;
        }
        // The moment is the point of this test: wherever it lands, before, in or after some plugin.
        tokio::time::sleep(Duration::from_millis(millis)).await;
        child.kill().unwrap();
        child.wait().unwrap();

        let cni = lab.open().await;
        cni.teardown(&pod).await.unwrap();
        assert_eq!((lab.leases(), lab.rules()), (vec![], vec![]), "after {millis} ms");
        assert_eq!(links(pod.netns.as_deref().unwrap()), ["lo"], "after {millis} ms");
    }
    lab.end();
}
