//! Devices: those that vendors describe and containers ask for by name, and to whom a device belongs.

use std::path::{Path, PathBuf};

use e2e::cri::{CdiDevice, Device, Int64Value};
use e2e::{ContainerSpec, ImageBuilder, Media, Node, Options, PodSpec, Registry, Result};
use tonic::Code;

/// A node that reads descriptions from a directory of its own, with a running pod.
struct Stage {
    node: Node,
    _registry: Registry,
    image: String,
    pod: PodSpec,
    pod_id: String,
    descriptions: tempfile::TempDir,
}

impl Stage {
    async fn set() -> Result<Self> {
        let descriptions = tempfile::tempdir()?;
        let config = format!(
            "[security]\ncdi_spec_dirs = [{:?}]\ndevice_ownership_from_security_context = true\n",
            descriptions.path().display().to_string()
        );
        let (node, registry) = Node::start_with_registry(Options { config, ..Options::default() }).await?;
        let pushed = registry.push(ImageBuilder::busybox(Media::Oci)?, "busybox", "1").await?;
        let image = node.cri().pull(&pushed.reference).await?;
        let pod = node.pod("devices");
        let pod_id = node.cri().run_pod(&pod).await?;
        Ok(Self { node, _registry: registry, image, pod, pod_id, descriptions })
    }

    fn lasting(&self, name: &str) -> ContainerSpec {
        ContainerSpec::lasting(name, &self.image)
    }

    async fn run(&self, spec: &ContainerSpec) -> Result<String> {
        Ok(self.node.cri().run(&self.pod_id, spec, &self.pod).await?)
    }

    /// Whether a container may open a file so (`<` or `>`); what forbids it must be the device's cgroup.
    async fn opens(&self, id: &str, how: &str, path: &str) -> Result<bool> {
        let output = self.node.cri().exec(id, &["sh", "-c", &format!("exec 3{how}{path}")]).await?;
        let words = String::from_utf8_lossy(&output.stderr);
        // A device that may be opened and of which the kernel has no driver is as good here.
        let allowed = output.exit_code == 0 || words.contains("No such device");
        anyhow::ensure!(allowed || words.contains("Operation not permitted"), "{how}{path}: {words}");
        Ok(allowed)
    }
}

/// Edits of every kind that this test can see from inside; the hook is run outside.
fn description(seen: &Path, shown: &Path) -> String {
    format!(
        r#"
cdiVersion: "0.7.0"
kind: vendor.com/thing
containerEdits:
  env: [THINGS=all]
devices:
- name: first
  containerEdits:
    env: [FIRST=1]
    additionalGids: [4242]
    deviceNodes:
    - {{path: /dev/thing0, type: c, major: 10, minor: 229, fileMode: 0640, permissions: r, gid: 77}}
- name: second
  containerEdits:
    mounts:
    - {{hostPath: {shown:?}, containerPath: /opt/thing, options: [ro, bind]}}
    hooks:
    - {{hookName: createRuntime, path: /bin/sh, args: [sh, -c, "cat > {}"]}}
"#,
        seen.display()
    )
}

fn ask(spec: &mut ContainerSpec, field: &str, annotation: &str) {
    spec.config.cdi_devices = vec![CdiDevice { name: field.to_owned() }];
    spec.config.annotations.insert("cdi.k8s.io/test".to_owned(), annotation.to_owned());
}

#[tokio::test(flavor = "multi_thread")]
async fn described_devices_are_in_the_container_or_it_is_not_made() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut spec = stage.lasting("cdi");
    ask(&mut spec, "vendor.com/thing=first", "vendor.com/thing=second");
    let refused = cri.create(&stage.pod_id, &spec, &stage.pod).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let both = ["vendor.com/thing=first", "vendor.com/thing=second"];
    assert!(both.iter().all(|name| refused.message().contains(name)), "{}", refused.message());
    assert_eq!(cri.all_containers().await?, []);

    let (seen, shown): (PathBuf, PathBuf) =
        (stage.descriptions.path().join("seen"), stage.descriptions.path().join("shown"));
    std::fs::create_dir(&shown)?;
    std::fs::write(shown.join("library"), "")?;
    std::fs::write(stage.descriptions.path().join("vendor.yaml"), description(&seen, &shown))?;
    let id = stage.run(&spec).await?;
    assert_eq!(cri.shell(&id, "echo $THINGS $FIRST; ls /opt/thing").await?, "all 1\nlibrary");
    assert!(cri.shell(&id, "id -G").await?.split(' ').any(|group| group == "4242"));
    assert_eq!(
        cri.shell(&id, "stat -c '%F %t:%T %a %g' /dev/thing0").await?,
        "character special file a:e5 640 77"
    );
    assert!(stage.opens(&id, "<", "/dev/thing0").await?);
    assert!(!stage.opens(&id, ">", "/dev/thing0").await?, "it may be read only");
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&seen)?)?;
    assert_eq!(state["id"], id.as_str(), "the hook is told whose it is");

    let plain = stage.run(&stage.lasting("plain")).await?;
    cri.shell(&plain, "mknod /tmp/thing0 c 10 229").await?;
    assert!(!stage.opens(&plain, "<", "/tmp/thing0").await?, "nobody else may open it");
    stage.node.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_belong_to_who_runs_where_the_configuration_says_so() -> Result {
    let stage = Stage::set().await?;
    let cri = stage.node.cri();
    let mut spec = stage.lasting("owner").secured(|context| {
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.run_as_group = Some(Int64Value { value: 2000 });
    });
    spec.config.devices = vec![Device {
        host_path: "/dev/zero".to_owned(),
        container_path: "/dev/mine".to_owned(),
        permissions: "rwm".to_owned(),
    }];
    let id = stage.run(&spec).await?;
    assert_eq!(cri.shell(&id, "stat -c '%t:%T %u:%g' /dev/mine").await?, "1:5 1000:2000");
    stage.node.finish().await
}
