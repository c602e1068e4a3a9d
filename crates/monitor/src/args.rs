//! The command line. It is spoken by the daemon and by the monitor itself, never by people, so it is parsed by hand.

use std::ffi::OsString;
use std::path::PathBuf;

use monitor_api::{ImageMount, MappedVolume};
use types::SandboxId;

/// What to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Serve(Serve),
    Launch(Launch),
}

/// `serve --sandbox ID --socket PATH --pid-file PATH [--cgroup DIR]…`, with the listening socket as stdin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Serve {
    pub(crate) sandbox: SandboxId,
    /// Where the socket is bound, to be removed at the end.
    pub(crate) socket: PathBuf,
    pub(crate) pid_file: PathBuf,
    /// The monitor's own cgroups, one for each hierarchy; its starter's, without.
    pub(crate) cgroups: Vec<PathBuf>,
}

/// `launch --log PATH [--target DIR --lower DIR… [--upper DIR --work DIR] [--readonly yes]] [IMAGE]… [--userns FILE
/// [--bind-userns FILE] [VOLUME]…] -- PROGRAM ARG…`, where each IMAGE is `--image DIR --layer DIR… [--sub-path PATH]` and each
/// VOLUME is `--volume PATH --source PATH`
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Launch {
    /// The runtime's log, to which a failure is added in the runtime's manner.
    pub(crate) log: PathBuf,
    /// Where the overlay is mounted, if there is one.
    pub(crate) target: PathBuf,
    /// Topmost first; none for no overlay.
    pub(crate) lowers: Vec<PathBuf>,
    pub(crate) upper: Option<PathBuf>,
    pub(crate) work: Option<PathBuf>,
    pub(crate) readonly: bool,
    /// What else is mounted, after that overlay.
    pub(crate) images: Vec<ImageMount>,
    /// The user namespace that maps the ids of all that is mounted, or what belongs to it.
    pub(crate) userns: Option<PathBuf>,
    /// Where that namespace is bound for the runtime to join it.
    pub(crate) bind_userns: Option<PathBuf>,
    /// What is bound with its ids mapped.
    pub(crate) volumes: Vec<MappedVolume>,
    /// What to become.
    pub(crate) program: Vec<OsString>,
}

impl Launch {
    /// The arguments that [`parse`] turns into this.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["launch".into()];
        let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
        option("--log", self.log.clone().into());
        if !self.lowers.is_empty() {
            option("--target", self.target.clone().into());
        }
        self.lowers.iter().for_each(|lower| option("--lower", lower.into()));
        self.upper.iter().for_each(|upper| option("--upper", upper.into()));
        self.work.iter().for_each(|work| option("--work", work.into()));
        if self.readonly {
            option("--readonly", "yes".into());
        }
        for image in &self.images {
            option("--image", image.target.clone().into());
            image.layers.iter().for_each(|layer| option("--layer", layer.into()));
            option("--sub-path", image.sub_path.clone().into());
        }
        self.userns.iter().for_each(|userns| option("--userns", userns.into()));
        self.bind_userns.iter().for_each(|file| option("--bind-userns", file.into()));
        for volume in &self.volumes {
            option("--volume", volume.target.clone().into());
            option("--source", volume.source.clone().into());
        }
        args.push("--".into());
        args.extend(self.program.iter().cloned());
        args
    }
}

/// Reads the arguments after the program's name; the text of what is wrong otherwise.
pub(crate) fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    match args.next().as_ref().and_then(|command| command.to_str()) {
        Some("serve") => parse_serve(args).map(Command::Serve),
        Some("launch") => parse_launch(args).map(Command::Launch),
        _ => Err("usage: crimson-monitor serve|launch …, as the crimson daemon calls it".to_owned()),
    }
}

fn parse_serve(mut args: impl Iterator<Item = OsString>) -> Result<Serve, String> {
    let (mut sandbox, mut socket, mut pid_file, mut cgroups) = (None, None, None, Vec::new());
    while let Some(name) = args.next() {
        let value = value_of(&name, args.next())?;
        match name.to_str() {
            Some("--sandbox") => {
                let text = value.to_string_lossy();
                sandbox = Some(SandboxId::parse(&text).map_err(|error| error.to_string())?);
            }
            Some("--socket") => socket = Some(value.into()),
            Some("--pid-file") => pid_file = Some(value.into()),
            Some("--cgroup") => cgroups.push(value.into()),
            _ => return Err(unknown(&name)),
        }
    }
    match (sandbox, socket, pid_file) {
        (Some(sandbox), Some(socket), Some(pid_file)) => Ok(Serve { sandbox, socket, pid_file, cgroups }),
        _ => Err("serve needs --sandbox, --socket and --pid-file".to_owned()),
    }
}

fn parse_launch(mut args: impl Iterator<Item = OsString>) -> Result<Launch, String> {
    let mut launch = Launch::default();
    while let Some(name) = args.next() {
        if name == "--" {
            launch.program = args.collect();
            break;
        }
        let value = value_of(&name, args.next())?;
        match name.to_str() {
            Some("--log") => launch.log = value.into(),
            Some("--target") => launch.target = value.into(),
            Some("--lower") => launch.lowers.push(value.into()),
            Some("--upper") => launch.upper = Some(value.into()),
            Some("--work") => launch.work = Some(value.into()),
            Some("--readonly") => launch.readonly = true,
            Some("--image") => {
                let (target, layers, sub_path) = (value.into(), Vec::new(), PathBuf::new());
                launch.images.push(ImageMount { target, layers, sub_path });
            }
            Some("--layer") => last_image(&mut launch, &name)?.layers.push(value.into()),
            Some("--sub-path") => last_image(&mut launch, &name)?.sub_path = value.into(),
            Some("--userns") => launch.userns = Some(value.into()),
            Some("--bind-userns") => launch.bind_userns = Some(value.into()),
            Some("--volume") => {
                launch.volumes.push(MappedVolume { source: PathBuf::new(), target: value.into() });
            }
            Some("--source") => last_volume(&mut launch, &name)?.source = value.into(),
            _ => return Err(unknown(&name)),
        }
    }
    if launch.program.is_empty() { Err("launch needs a program".to_owned()) } else { Ok(launch) }
}

/// The image that an option is about: the one named last.
fn last_image<'a>(launch: &'a mut Launch, option: &OsString) -> Result<&'a mut ImageMount, String> {
    launch.images.last_mut().ok_or_else(|| format!("{} needs an --image before it", option.display()))
}

/// The volume that an option is about: the one named last.
fn last_volume<'a>(launch: &'a mut Launch, option: &OsString) -> Result<&'a mut MappedVolume, String> {
    launch.volumes.last_mut().ok_or_else(|| format!("{} needs a --volume before it", option.display()))
}

fn value_of(name: &OsString, value: Option<OsString>) -> Result<OsString, String> {
    value.ok_or_else(|| format!("{} needs a value", name.display()))
}

fn unknown(name: &OsString) -> String {
    format!("unknown option {}", name.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Command, String> {
        parse(words.split_whitespace().map(OsString::from))
    }

    fn image(target: &str, sub_path: &str) -> ImageMount {
        let layers = vec!["/l2".into(), "/l1".into()];
        ImageMount { target: target.into(), layers, sub_path: sub_path.into() }
    }

    fn volume(source: &str, target: &str) -> MappedVolume {
        MappedVolume { source: source.into(), target: target.into() }
    }

    #[test]
    fn launch_arguments_survive_the_journey() {
        let launch = Launch {
            log: "/l".into(),
            target: "/t".into(),
            lowers: vec!["/a".into(), "/b c".into()],
            upper: Some("/u".into()),
            work: Some("/w".into()),
            readonly: true,
            images: vec![image("/i 0", ""), image("/i1", "a/b c")],
            userns: Some("/n 1".into()),
            bind_userns: Some("/b".into()),
            volumes: vec![volume("/s 0", "/v0"), volume("/s1", "/v1")],
            program: vec!["/runc".into(), "--root".into(), "--".into()],
        };
        assert_eq!(parse(launch.to_args().into_iter()), Ok(Command::Launch(launch)));
    }

    #[test]
    fn serve_needs_all_of_its_options_and_no_others() {
        let id = "ab".repeat(32);
        let all = format!("serve --sandbox {id} --socket /s --pid-file /p");
        assert!(matches!(parse_words(&all), Ok(Command::Serve(serve)) if serve.sandbox.as_str() == id));
        let placed = parse_words(&format!("{all} --cgroup /a --cgroup /b"));
        assert!(
            matches!(placed, Ok(Command::Serve(serve)) if serve.cgroups == [PathBuf::from("/a"), "/b".into()])
        );
        for bad in [
            "",
            "dance",
            "serve",
            "serve --sandbox x",
            "serve --sandbox",
            &format!("{all} --more 1"),
            "launch --",
            "launch --layer /l -- /runc",
            "launch --sub-path x -- /runc",
            "launch --source x -- /runc",
        ] {
            assert!(parse_words(bad).is_err(), "{bad:?}");
        }
    }
}
