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
/// The server's own profile, in force.
const DEFAULT: &str = "crimson-default (enforce)";
/// What only a confined process may not do: set a setting of the kernel to the value it has.
const SET_SETTING: &str =
    "value=$(cat /proc/sys/kernel/panic_on_oops) && echo $value > /proc/sys/kernel/panic_on_oops";

/// What a container may ask for.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Nothing,
    Profile(ProfileType, &'static str),
    /// By the field of older Kubernetes.
    Text(&'static str),
    /// Nothing, as a privileged container.
    Privileged,
    /// Nothing, as one that gets no new privileges.
    NoNewPrivileges,
}

/// No profile, unconfined, the default, one of the administrator's, and one that nobody knows, with both OCI runtimes.
pub(crate) async fn profiles(world: &World) -> Result<Verdict> {
    if is_off() {
        return Ok(Verdict::NotHere("this kernel runs without AppArmor".to_owned()));
    }
    std::fs::write("/tmp/profile", PROFILE_TEXT)?;
    host::run("apparmor_parser", &["--replace", "/tmp/profile"]).await?;
    for handler in ["crun", "runc"] {
        let stage = Stage::set(world, handler, true).await?;
        // What differs with the runtime; an emulated processor takes ten seconds for each container.
        let checked = stage.check(handler == "crun").await;
        stage.clear().await?;
        checked.with_context(|| handler.to_owned())?;
    }
    Ok(Verdict::Passed)
}

/// The pause process is confined, too; a default profile that somebody has unloaded is there again for the next container.
pub(crate) async fn comes_back(world: &World) -> Result<Verdict> {
    if is_off() {
        return Ok(Verdict::NotHere("this kernel runs without AppArmor".to_owned()));
    }
    let stage = Stage::set(world, "crun", false).await?;
    let checked = stage.unload_and_check().await;
    stage.clear().await?;
    checked.map(|()| Verdict::Passed)
}

/// The default profile stacked on the OCI runtime's, which is all that crun can do for what gets no new privileges.
fn is_stacked(label: &str) -> bool {
    label.starts_with("crimson-default//&")
}

fn is_off() -> bool {
    host::read("/sys/module/apparmor/parameters/enabled").unwrap_or_default() != "Y"
}

struct Stage {
    cri: Cri,
    image: String,
    pod: PodSpec,
    pod_id: String,
}

impl Stage {
    async fn set(world: &World, handler: &str, privileged: bool) -> Result<Self> {
        let cri = world.cri().await?;
        let image = world.image(&cri).await?;
        let mut pod = world.pod("confined", handler);
        pod.config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged =
            privileged;
        Ok(Self { pod_id: cri.run_pod(&pod).await?, cri, image, pod })
    }

    async fn clear(&self) -> Result {
        self.cri.stop_pod(&self.pod_id).await?;
        Ok(self.cri.remove_pod(&self.pod_id).await?)
    }

    /// Every way to ask, or the few of which the OCI runtime sees a difference.
    async fn check(&self, every: bool) -> Result {
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        let chosen = |(name, _): &(&str, Ask)| {
            every || matches!(*name, "nothing" | "no-new-privileges" | "unconfined" | "local")
        };
        for (name, ask) in [
            ("nothing", Ask::Nothing),
            ("default", Ask::Profile(RuntimeDefault, "")),
            ("default-text", Ask::Text("runtime/default")),
            ("no-new-privileges", Ask::NoNewPrivileges),
        ]
        .into_iter()
        .filter(chosen)
        {
            let id = self.confined_by(name, ask, DEFAULT).await?;
            self.cannot_change_the_kernel(&id).await.with_context(|| name.to_owned())?;
        }
        for (name, ask) in [
            ("unconfined", Ask::Profile(Unconfined, "")),
            ("unconfined-text", Ask::Text("unconfined")),
            ("privileged", Ask::Privileged),
        ]
        .into_iter()
        .filter(chosen)
        {
            let id = self.confined_by(name, ask, "unconfined").await?;
            self.cri.shell(&id, SET_SETTING).await.with_context(|| name.to_owned())?;
        }
        for (name, ask) in [
            ("local", Ask::Profile(Localhost, PROFILE)),
            ("local-text", Ask::Text("localhost/node-suite-profile")),
        ]
        .into_iter()
        .filter(chosen)
        {
            let id = self.confined_by(name, ask, "node-suite-profile (enforce)").await?;
            self.cri.shell(&id, "echo x > /tmp/allowed").await?;
            self.is_denied(&id, "echo x > /tmp/forbidden").await?;
        }
        self.is_refused("unknown", Ask::Profile(Localhost, "nobody-knows")).await?;
        self.is_refused("unknown-text", Ask::Text("localhost/nobody-knows")).await
    }

    /// Neither the kernel's settings nor the mount table, although it has the capability.
    async fn cannot_change_the_kernel(&self, id: &str) -> Result {
        self.is_denied(id, SET_SETTING).await?;
        self.is_denied(id, "mount -t tmpfs none /tmp").await?;
        self.is_denied(id, "cat /proc/kcore").await?;
        self.cri.shell(id, "sleep 1000 & kill $! && ! wait $!").await.context("signals to its own")?;
        self.cri.shell(id, "echo x > /tmp/file && echo 1000 > /proc/1/oom_score_adj").await.map(drop)
    }

    async fn is_denied(&self, id: &str, line: &str) -> Result {
        let output = self.cri.exec(id, &["sh", "-c", line]).await?;
        let words = String::from_utf8_lossy(&output.stderr).to_lowercase();
        let denied = words.contains("permission denied") || words.contains("not permitted");
        ensure!(output.exit_code != 0 && denied, "`{line}` ended with {}: {words}", output.exit_code);
        Ok(())
    }

    /// A running container, of which first process and exec have this label; Debian gives the runtimes profiles that confine
    /// nothing, and what they start unconfined inherits the name.
    async fn confined_by(&self, name: &str, ask: Ask, wanted: &str) -> Result<String> {
        let id = self.cri.run(&self.pod_id, &self.spec(name, ask), &self.pod).await?;
        for process in ["1", "self"] {
            let label = self.cri.shell(&id, &format!("cat /proc/{process}/attr/current")).await?;
            let free = wanted == "unconfined" && label.ends_with(" (unconfined)");
            println!("    {name}: {process}: {label}");
            let stacked = matches!(ask, Ask::NoNewPrivileges) && is_stacked(&label);
            ensure!(label == wanted || free || stacked, "{name}: process {process} is confined by {label}");
        }
        Ok(id)
    }

    /// Refused when it is made, in words that name what cannot be had.
    async fn is_refused(&self, name: &str, ask: Ask) -> Result {
        let made = self.cri.create(&self.pod_id, &self.spec(name, ask), &self.pod).await;
        let status = made.err().with_context(|| format!("{name} was made"))?;
        println!("    {name}: {:?}: {}", status.code(), status.message());
        let named = status.message().contains("AppArmor") && status.message().contains("nobody-knows");
        ensure!(named, "{status:?}");
        Ok(())
    }

    fn spec(&self, name: &str, ask: Ask) -> ContainerSpec {
        ContainerSpec::lasting(name, &self.image).secured(|context| {
            context.readonly_paths.clear();
            context.masked_paths.clear();
            context.capabilities.get_or_insert_default().add_capabilities.push("SYS_ADMIN".to_owned());
            match ask {
                Ask::Nothing => {}
                Ask::Profile(kind, reference) => {
                    let localhost_ref = reference.to_owned();
                    context.apparmor = Some(SecurityProfile { profile_type: kind.into(), localhost_ref });
                }
                Ask::Text(text) => set_text(context, text),
                Ask::Privileged => context.privileged = true,
                Ask::NoNewPrivileges => context.no_new_privs = true,
            }
        })
    }

    async fn unload_and_check(&self) -> Result {
        let pause = self.cri.pause_pid(&self.pod_id).await?;
        let label = host::read(format!("/proc/{pause}/attr/current"))?;
        // It gets no new privileges.
        ensure!(label == DEFAULT || is_stacked(&label), "the pause process is confined by {label}");
        std::fs::write("/sys/kernel/security/apparmor/.remove", "crimson-default").context("unloading it")?;
        let loaded = host::read("/sys/kernel/security/apparmor/profiles")?;
        ensure!(!loaded.contains("crimson-default"), "it is still there: {loaded}");
        self.confined_by("again", Ask::Profile(ProfileType::RuntimeDefault, ""), DEFAULT).await.map(drop)
    }
}

#[allow(deprecated, reason = "clients of older Kubernetes still send the text form")]
fn set_text(context: &mut e2e::cri::LinuxContainerSecurityContext, text: &str) {
    text.clone_into(&mut context.apparmor_profile);
}
