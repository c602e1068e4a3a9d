//! What runs in a container: command, environment, directory, user. Also the process of an exec.

use std::path::PathBuf;

use oci_spec::image::Config;
use oci_spec::runtime::{Process, Spec, User};

use crate::error::SpecError;
use crate::facts::NodeFacts;
use crate::identity::Identity;
use crate::place::ContainerPlace;
use crate::request::{ContainerRequest, SandboxRequest, clean_absolute};
use crate::{cri_defaults, rlimit, wishes};

/// A process with nothing set but what OCI runtimes need.
pub(crate) fn bare(args: Vec<String>, user: User) -> Process {
    let mut process = Process::default();
    process
        .set_terminal(None)
        .set_console_size(None)
        .set_user(user)
        .set_args(Some(args))
        .set_env(Some(vec![cri_defaults::PATH.to_owned()]))
        .set_cwd(PathBuf::from("/"))
        .set_capabilities(None)
        .set_rlimits(None)
        .set_no_new_privileges(Some(false));
    process
}

/// The OCI form of an identity.
pub(crate) fn user(identity: &Identity) -> User {
    let mut user = User::default();
    user.set_uid(identity.uid).set_gid(identity.gid);
    user.set_additional_gids(Some(identity.additional_gids.clone()).filter(|gids| !gids.is_empty()));
    user
}

/// Command, environment, directory, terminal and user of a container.
pub(crate) fn container(
    request: &ContainerRequest,
    sandbox: &SandboxRequest,
    facts: &NodeFacts,
    place: &ContainerPlace<'_>,
) -> Result<Process, SpecError> {
    let image = place.image.config().as_ref();
    let mut user = user(&place.identity);
    user.set_umask(wishes::umask(sandbox, facts)?);
    let mut process = bare(args(request, image, &place.image_name)?, user);
    process
        .set_terminal(Some(request.tty()))
        .set_env(Some(environment(request, image, sandbox.effective_hostname(&facts.hostname))))
        .set_cwd(working_dir(request, image))
        .set_rlimits(rlimit::oci(&facts.rlimits));
    Ok(process)
}

/// Kubernetes' rule: a command replaces the image's entrypoint and drops its cmd; args replace cmd.
fn args(
    request: &ContainerRequest,
    image: Option<&Config>,
    image_name: &str,
) -> Result<Vec<String>, SpecError> {
    let of_image = |part: fn(&Config) -> &Option<Vec<String>>| image.and_then(|image| part(image).clone());
    let config = request.config();
    let (entrypoint, cmd) = if config.command.is_empty() {
        (of_image(Config::entrypoint).unwrap_or_default(), of_image(Config::cmd).unwrap_or_default())
    } else {
        (config.command.clone(), Vec::new())
    };
    let tail = if config.args.is_empty() { cmd } else { config.args.clone() };
    let args = [entrypoint, tail].concat();
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(SpecError::NoCommand { image: image_name.to_owned() }),
    }
}

/// Defaults, then the image's variables, then the host name, then the request's; a later one takes the place of an
/// earlier one of the same name, and the order stays.
fn environment(request: &ContainerRequest, image: Option<&Config>, hostname: &str) -> Vec<String> {
    let mut env = vec![cri_defaults::PATH.to_owned()];
    if request.tty() {
        env.push(cri_defaults::TERM.to_owned());
    }
    for variable in image.and_then(|image| image.env().as_ref()).into_iter().flatten() {
        set(&mut env, variable.clone());
    }
    if !hostname.is_empty() {
        set(&mut env, format!("HOSTNAME={hostname}"));
    }
    for variable in &request.config().envs {
        set(&mut env, format!("{}={}", variable.key, String::from_utf8_lossy(&variable.value)));
    }
    env
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

fn set(env: &mut Vec<String>, variable: String) {
    match env.iter_mut().find(|present| name_of(present) == name_of(&variable)) {
        Some(present) => *present = variable,
        None => env.push(variable),
    }
}

/// The request's directory, else the image's, else the root; an image's relative directory counts from the root.
fn working_dir(request: &ContainerRequest, image: Option<&Config>) -> PathBuf {
    let asked = request.config().working_dir.as_str();
    let of_image = image.and_then(|image| image.working_dir().as_deref()).unwrap_or_default();
    clean_absolute(if asked.is_empty() { of_image } else { asked })
}

/// The process of an exec: `command` with everything else as the container's own process has it (user, groups,
/// capabilities, no_new_privs, LSM labels, environment, directory). The seccomp filter and the control group are applied
/// by the OCI runtime from the container's spec.
///
/// # Errors
/// [`SpecError::NoProcess`] when `container` has no process, [`SpecError::Missing`] for an empty command.
pub fn process_spec(container: &Spec, command: &[String], tty: bool) -> Result<Process, SpecError> {
    if command.first().is_none_or(String::is_empty) {
        return Err(SpecError::Missing { field: "cmd" });
    }
    let mut process = container.process().clone().ok_or(SpecError::NoProcess)?;
    let mut env = process.env().clone().unwrap_or_default();
    if tty && !env.iter().any(|variable| name_of(variable) == "TERM") {
        env.push(cri_defaults::TERM.to_owned());
    }
    process
        .set_args(Some(command.to_vec()))
        .set_terminal(Some(tty))
        .set_console_size(None)
        .set_env(Some(env));
    Ok(process)
}
