//! AppArmor, where the kernel has it: what a container asks for is what confines it, or it is refused.

use anyhow::{Context, ensure};
use e2e::cri::SecurityProfile;
use e2e::cri::security_profile::ProfileType;
use e2e::{ContainerSpec, Cri, PodSpec, Result};

use crate::host;
use crate::runner::Verdict;
use crate::world::World;

/// A profile of the administrator.
const PROFILE: &str = "node-suite-profile";
const PROFILE_TEXT: &str = "profile node-suite-profile flags=(attach_disconnected,mediate_deleted) {\n\
                            file,\n network,\n capability,\n signal,\n ptrace,\n unix,\n mount,\n umount,\n pivot_root,\n\
                            deny /tmp/forbidden w,\n}\n";

/// No profile, unconfined, the default, one of the administrator's, and one that nobody knows.
pub(crate) async fn profiles(world: &World) -> Result<Verdict> {
    if host::read("/sys/module/apparmor/parameters/enabled").unwrap_or_default() != "Y" {
        return Ok(Verdict::NotHere("this kernel runs without AppArmor".to_owned()));
    }
    std::fs::write("/tmp/profile", PROFILE_TEXT)?;
    host::run("apparmor_parser", &["--replace", "/tmp/profile"]).await?;
    let cri = world.cri().await?;
    let image = world.image(&cri).await?;
    let pod = world.pod("confined", "crun");
    let stage = Stage { pod_id: cri.run_pod(&pod).await?, cri, image, pod };
    let checked = stage.check().await;
    stage.cri.stop_pod(&stage.pod_id).await?;
    stage.cri.remove_pod(&stage.pod_id).await?;
    checked?;
    Ok(Verdict::Passed)
}

struct Stage {
    cri: Cri,
    image: String,
    pod: PodSpec,
    pod_id: String,
}

impl Stage {
    async fn check(&self) -> Result {
        let unset = self.confinement("unset", None).await?.context("a container that asks for nothing")?;
        println!("    asked for nothing: {unset}");
        let unconfined = self.confinement("unconfined", Some((ProfileType::Unconfined, ""))).await?;
        // Debian gives the runtime a profile that confines nothing, and what it starts inherits the name.
        let free = |label: &str| label == "unconfined" || label.ends_with(" (unconfined)");
        ensure!(unconfined.as_deref().is_some_and(free), "unconfined: {unconfined:?}");
        if let Some(default) = self.confinement("default", Some((ProfileType::RuntimeDefault, ""))).await? {
            ensure!(default.ends_with("(enforce)"), "the default profile: {default}");
        }
        if let Some(local) = self.confinement("local", Some((ProfileType::Localhost, PROFILE))).await? {
            ensure!(local == format!("{PROFILE} (enforce)"), "the administrator's profile: {local}");
        }
        let unknown = self.confinement("unknown", Some((ProfileType::Localhost, "nobody-knows"))).await?;
        ensure!(unknown.is_none(), "a profile that nobody knows: {unknown:?}");
        Ok(())
    }

    /// What confines a container with this profile; none if it is refused, which must name what cannot be had.
    async fn confinement(&self, name: &str, profile: Option<(ProfileType, &str)>) -> Result<Option<String>> {
        let spec = ContainerSpec::lasting(name, &self.image).secured(|context| {
            context.apparmor = profile.map(|(kind, reference)| SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: reference.to_owned(),
            });
        });
        match self.cri.run(&self.pod_id, &spec, &self.pod).await {
            Ok(id) => Ok(Some(self.cri.shell(&id, "cat /proc/1/attr/current").await?)),
            Err(status) => {
                println!("    {name}: {:?}: {}", status.code(), status.message());
                let named = profile.map_or("", |(_, reference)| reference);
                ensure!(
                    status.message().contains("AppArmor") && status.message().contains(named),
                    "{status:?}"
                );
                Ok(None)
            }
        }
    }
}
