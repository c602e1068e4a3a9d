//! Handlers whose pods differ: in their network, in what their OCI runtime gets to see, in what they may have.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::Context;
use e2e::cri::{LinuxContainerResources, StatusRequest};
use e2e::{ContainerSpec, ImageBuilder, Media, Node, Options, PodSpec, Registry, Result, code_of};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

/// Addresses of pods whose network is configured elsewhere.
const APART: &str = "10.213.7.";
/// What every container has of its own beneath `/dev`.
const OWN: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];

struct Setting {
    node: Node,
    _registry: Registry,
    image: String,
    runtime: String,
    dir: TempDir,
}

impl Setting {
    async fn make() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let name = std::env::var("CRIMSON_E2E_RUNTIME").ok().filter(|name| !name.is_empty());
        let runtime =
            e2e::program(name.as_deref().unwrap_or("runc")).context("an OCI runtime is installed")?;
        let runtime = runtime.display().to_string();
        let options = Options { config: config(&runtime, dir.path()), ..Options::default() };
        let (node, registry) = Node::start_with_registry(options).await?;
        let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
        let image = node.cri().pull(&pushed.reference).await?;
        Ok(Self { node, _registry: registry, image, runtime, dir })
    }

    fn pod(&self, name: &str, handler: &str) -> PodSpec {
        PodSpec { handler: handler.to_owned(), ..self.node.pod(name) }
    }

    /// The OCI spec of a container, as its runtime reads it.
    fn spec(&self, id: &str) -> Result<Value> {
        let path = self.node.state().join("containers").join(id).join("config.json");
        Ok(serde_json::from_slice(&fs::read(self.node.machine().path(&path))?)?)
    }

    /// Describes a network in the directory that one handler has for itself.
    fn describe_network(&self) -> Result {
        let list = json!({ "cniVersion": "1.0.0", "name": "apart", "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": format!("{APART}0/24") }]],
                "dataDir": self.dir.path().join("leases"),
            },
        }] });
        let place = self.dir.path().join("net.d");
        fs::create_dir_all(&place)?;
        Ok(fs::write(place.join("1.conflist"), serde_json::to_vec(&list)?)?)
    }
}

fn config(runtime: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[runtime]\ndefault = 'plain'\n[runtime.handlers.plain]\npath = '{runtime}'\n\
         [runtime.handlers.apart]\npath = '{runtime}'\ncni_conf_dir = '{dir}/net.d'\n\
         pod_annotations = ['e2e.crimson/*']\ncontainer_annotations = ['run.oci.e2e']\n\
         privileged_without_host_devices = true\nmin_memory_bytes = 50331648\n"
    )
}

async fn ip(node: &Node, pod: &str) -> Result<String> {
    Ok(node.cri().pod(pod).await?.network.unwrap_or_default().ip)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_pods_have_its_network_and_its_rules() -> Result {
    let setting = Setting::make().await?;
    let cri = setting.node.cri();
    let mut apart = setting.pod("apart", "apart");
    // Nothing is configured yet, and what was begun is undone.
    assert_eq!(code_of(&cri.run_pod(&apart).await), Code::Unavailable);
    setting.describe_network()?;
    let said = [("e2e.crimson/seen", "yes"), ("run.oci.hooks.stdout", "/f"), ("other", "no")];
    apart.config.annotations.extend(said.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let plain = setting.pod("plain", "");
    let (apart_id, plain_id) = (cri.run_pod(&apart).await?, cri.run_pod(&plain).await?);
    assert!(ip(&setting.node, &apart_id).await?.starts_with(APART));
    assert!(ip(&setting.node, &plain_id).await?.starts_with(&setting.node.network().prefix));

    let mut container = ContainerSpec::lasting("c", &setting.image);
    let said = [("run.oci.e2e", "1"), ("run.oci.handler", "wasm"), ("plain", "yes")];
    container.config.annotations.extend(said.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let seen = setting.spec(&cri.run(&apart_id, &container, &apart).await?)?["annotations"].clone();
    assert_eq!(
        (&seen["e2e.crimson/seen"], &seen["run.oci.e2e"], &seen["plain"]),
        (&json!("yes"), &json!("1"), &json!("yes"))
    );
    for unseen in ["run.oci.hooks.stdout", "run.oci.handler", "other"] {
        assert_eq!(seen.get(unseen), None, "{unseen}");
    }
    let seen = setting.spec(&cri.run(&plain_id, &container, &plain).await?)?["annotations"].clone();
    assert_eq!((seen.get("run.oci.e2e"), seen.get("e2e.crimson/seen")), (None, None));

    let mut small = ContainerSpec::lasting("small", &setting.image);
    let limits = LinuxContainerResources { memory_limit_in_bytes: 40 << 20, ..Default::default() };
    small.config.linux.get_or_insert_default().resources = Some(limits);
    assert_eq!(code_of(&cri.create(&apart_id, &small, &apart).await), Code::InvalidArgument);
    cri.create(&plain_id, &small, &plain).await?;
    let unknown = setting.pod("unknown", "nobody");
    assert_eq!(code_of(&cri.run_pod(&unknown).await), Code::InvalidArgument);
    setting.node.finish().await
}

/// A device of the host that no container has of its own.
fn host_device() -> Result<Option<String>> {
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if (kind.is_char_device() || kind.is_block_device()) && !OWN.contains(&name.as_str()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_containers_of_a_handler_get_no_devices_of_the_host() -> Result {
    let setting = Setting::make().await?;
    setting.describe_network()?;
    let (cri, device) = (setting.node.cri(), host_device()?);
    for (handler, expected) in [("plain", 0), ("apart", 1)] {
        let mut pod = setting.pod(handler, handler);
        let linux = pod.config.linux.as_mut().context("it has a Linux part")?;
        linux.security_context.get_or_insert_default().privileged = true;
        let id = cri.run_pod(&pod).await?;
        // Without any such device to look for, as in a container itself, what the runtime is told has to do.
        let line = device.as_ref().map_or(format!("exit {expected}"), |name| format!("test -e /dev/{name}"));
        let container =
            ContainerSpec::shell("look", &setting.image, &line).secured(|it| it.privileged = true);
        let status = setting.node.run_to_end(&id, &container, &pod).await?;
        assert_eq!(status.exit_code, expected, "{device:?} for {handler}");
        let linux = setting.spec(&status.id)?["linux"].clone();
        let all = handler == "plain";
        assert_eq!(linux["devices"].as_array().is_some_and(|made| !made.is_empty()), all, "{handler}");
        assert_eq!(linux["resources"]["devices"], json!([{ "allow": all, "access": "rwm" }]), "{handler}");
    }
    setting.node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_report_what_their_runtime_says_it_can() -> Result {
    let setting = Setting::make().await?;
    let told = setting.node.machine().output(&setting.runtime, &["features"]).await.unwrap_or_default();
    let told: Value = serde_json::from_str(&told).unwrap_or_default();
    let has_rro = told["mountOptions"].as_array().is_some_and(|options| options.contains(&json!("rro")));
    let namespaces = told["linux"]["namespaces"].as_array();
    let makes_users = namespaces.is_some_and(|namespaces| namespaces.contains(&json!("user")));
    let status = setting.node.cri().status(StatusRequest { verbose: true }).await?;
    let names: Vec<&str> = status.runtime_handlers.iter().map(|it| it.name.as_str()).collect();
    // The default one is there twice, and beside them is the one that the harness may name.
    for name in ["", "apart", "plain"] {
        assert_eq!(names.iter().filter(|it| **it == name).count(), 1, "{names:?}");
    }
    for handler in &status.runtime_handlers {
        let features = handler.features.unwrap_or_default();
        // The kernel of every machine this runs on is newer than 5.12.
        assert_eq!(features.recursive_read_only_mounts, has_rro, "{handler:?}");
        assert!(makes_users || !features.user_namespaces, "{handler:?}");
    }
    let config: Value = serde_json::from_str(&status.info["config"])?;
    let described = &config["containerd"]["runtimes"]["plain"];
    assert_eq!(described["features"]["told"], told.is_object(), "{described}");
    assert!(described["version"].as_str().is_some_and(|line| line.contains("version")), "{described}");
    setting.node.finish().await
}
