//! The messages. Plain data: every rule about them stands in the docs of the field it concerns.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use types::{ContainerId, ExecId, SandboxId, Timestamp};

/// What travels: a body and the number that ties a reply to its request. Events carry `seq` 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// Chosen by the daemon, from 1 upwards, for each connection.
    pub seq: u64,
    /// The message proper.
    pub body: T,
}

/// What the daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first message of a connection.
    Hello {
        /// The newest version that the daemon understands.
        version: u32,
        /// The oldest.
        #[serde(default = "first_version")]
        oldest: u32,
    },
    /// Makes a container up to the point where its init waits for start.
    Create(Box<CreateRequest>),
    /// Lets the init of a created container run its program.
    Start {
        /// Which.
        container: ContainerId,
    },
    /// Sends a signal. To a container that has exited it does nothing, successfully.
    Signal {
        /// Which.
        container: ContainerId,
        /// The signal's number.
        signal: i32,
        /// Every process of the container's cgroup instead of its init alone.
        all: bool,
    },
    /// Runs one more process in a running container. The stdio that the request names travels beside it as descriptors,
    /// in the order stdin, stdout, stderr; what is not named is `/dev/null`.
    Exec(ExecRequest),
    /// Kills an exec's process and all its descendants with SIGKILL. One that has ended is no error.
    KillExec {
        /// Which.
        exec: ExecId,
    },
    /// Lets a client look on at a container that is created or runs, and speak to it. The writing ends of its pipes travel beside
    /// the request, in the order stdout, stderr. Each closes when the container has ended, or when the session does: by
    /// [`Request::Detach`], with this connection, or when nobody reads the pipes any more. The container never waits for a
    /// client: what it does not read in time is lost for it, and a line in its stream says so.
    Attach(AttachRequest),
    /// A session's client will send no more. That ends the stdin of a container with `stdin_once`, when its descriptor is closed
    /// here too.
    CloseStdin {
        /// Which.
        session: ExecId,
    },
    /// Ends a session. One that has ended is no error.
    Detach {
        /// Which.
        session: ExecId,
    },
    /// Sets the size of a terminal.
    Resize {
        /// Which container.
        container: ContainerId,
        /// Which exec of it; the container's own terminal without one.
        exec: Option<ExecId>,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Begins a new log file at the log's path, after the old one was renamed.
    ReopenLog {
        /// Which.
        container: ContainerId,
    },
    /// Kills what is left of the container, lets the runtime forget it (`delete --force`) and forgets it too. Deleting what
    /// is unknown succeeds.
    Delete {
        /// Which.
        container: ContainerId,
    },
    /// Asks for all containers.
    List,
    /// Ends the monitor when no container of it lives, be they known or not; refused as invalid state otherwise.
    Shutdown,
}

fn first_version() -> u32 {
    1
}

/// How to make a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// Its id, also for the runtime.
    pub container: ContainerId,
    /// The OCI bundle: holds `config.json` and the directory `rootfs`.
    pub bundle: PathBuf,
    /// Mounted at `rootfs` of the bundle, in a mount namespace that lives only as long as the runtime's `create`. The bundle
    /// must lie beneath a private mount, or the mount would propagate. Without it, `rootfs` is taken as it is.
    #[serde(default)]
    pub rootfs: Option<Overlay>,
    /// Mounted beside `rootfs`, and in the same namespace; `config.json` binds them to where the container sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageMount>,
    /// The pod's user namespace, if it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespace>,
    /// The runtime.
    pub runtime: RuntimeCommand,
    /// The CRI log file; without one the output is read and dropped.
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// Whether the process has a terminal (its `config.json` must say the same).
    #[serde(default)]
    pub terminal: bool,
    /// Whether stdin is kept open for attach; `/dev/null` otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// Whether stdin is closed when its first attached client leaves.
    #[serde(default)]
    pub stdin_once: bool,
    /// Where the [`ExitRecord`] is written, as JSON.
    pub exit_file: PathBuf,
    /// How long the runtime may take.
    pub timeout_ms: u64,
}

/// An overlay mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The read-only layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer.
    #[serde(default)]
    pub upper: Option<PathBuf>,
    /// Overlayfs' scratch directory beside the writable layer.
    #[serde(default)]
    pub work: Option<PathBuf>,
    /// Mounts the whole read-only.
    #[serde(default)]
    pub readonly: bool,
}

/// The files of an image, mounted read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// Where to: a directory beneath the bundle, made when it is mounted, so that a monitor which does not know of image
    /// mounts leaves the OCI runtime without a source instead of with an empty one.
    pub target: PathBuf,
    /// The image's layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// The directory inside the image to mount; empty for all of it.
    #[serde(default)]
    pub sub_path: PathBuf,
}

/// What a container in a user namespace needs: the ids of its file systems are mapped as the namespace maps them, and its streams
/// belong to its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// A file of the namespace, or of a namespace that belongs to it.
    pub path: PathBuf,
    /// A file beneath the bundle, at which `config.json` finds the namespace while the runtime creates the container; made when
    /// the namespace is bound there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<PathBuf>,
    /// What the user of the container's process is outside; its pipes belong to it, so that it can open them by name.
    pub uid: u32,
    /// What its group is outside.
    pub gid: u32,
    /// What is bound with its ids mapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<MappedVolume>,
}

/// A directory or file whose owners are shown as the pod's user namespace maps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedVolume {
    /// Where it is.
    pub source: PathBuf,
    /// Where it is bound: a place beneath the bundle, made when it is, so that a monitor which does not know of such volumes
    /// leaves the runtime without a source.
    pub target: PathBuf,
}

/// An OCI runtime's command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeCommand {
    /// The program.
    pub path: PathBuf,
    /// The runtime's own state directory (`--root`).
    pub root: PathBuf,
    /// Whether systemd makes the cgroups (`--systemd-cgroup`).
    #[serde(default)]
    pub systemd_cgroup: bool,
}

/// How to run one more process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Its id, used in [`Event::ExecExited`].
    pub exec: ExecId,
    /// Where.
    pub container: ContainerId,
    /// A file with the OCI `process` object.
    pub process: PathBuf,
    /// Whether a descriptor for stdin travels with the request.
    #[serde(default)]
    pub stdin: bool,
    /// Whether a descriptor for stdout travels with the request.
    #[serde(default)]
    pub stdout: bool,
    /// Whether a descriptor for stderr travels with the request.
    #[serde(default)]
    pub stderr: bool,
    /// Whether the process has a terminal, whose master comes back with [`Reply::ExecStarted`]. No stdio travels then.
    #[serde(default)]
    pub terminal: bool,
    /// How long the runtime may take to start it; the process itself has no limit here.
    pub timeout_ms: u64,
}

/// How to attach a client to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The session's id. It is nobody else's, execs' included.
    pub session: ExecId,
    /// Where.
    pub container: ContainerId,
    /// Whether the client wants the container's stdin. Writing to what comes back does not wait for the container.
    #[serde(default)]
    pub stdin: bool,
    /// Whether a descriptor for stdout, or for a terminal's output, travels with the request.
    #[serde(default)]
    pub stdout: bool,
    /// Whether a descriptor for stderr travels with the request.
    #[serde(default)]
    pub stderr: bool,
}

/// What the monitor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The version to speak: the newest that both understand.
        version: u32,
        /// The monitor's process id.
        pid: i32,
        /// Whose monitor it is.
        sandbox: SandboxId,
    },
    /// To [`Request::Create`].
    Created {
        /// The init process, in the monitor's pid namespace.
        pid: i32,
        /// How long mounting the root filesystem took, in microseconds; 0 when there was none to mount.
        #[serde(default)]
        mount_us: u64,
    },
    /// To [`Request::Start`].
    Started {
        /// When the program began.
        started_at: Timestamp,
    },
    /// To every request without an answer of its own.
    Done,
    /// To [`Request::Exec`]; with a terminal its master comes as the only descriptor.
    ExecStarted {
        /// The process.
        pid: i32,
    },
    /// To [`Request::Attach`]; the container's stdin comes as the only descriptor, if it was asked for and is open.
    Attached {
        /// Whether it came.
        stdin: bool,
    },
    /// To [`Request::List`].
    List(Vec<ContainerState>),
    /// The request was not done.
    Refused(Refusal),
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The class.
    pub kind: RefusalKind,
    /// For people. For [`RefusalKind::RuntimeFailed`] the runtime's own words, without time stamps and paths of ours.
    pub message: String,
}

impl Refusal {
    /// A refusal of this class.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The class of a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The container or exec is not known here.
    NotFound,
    /// The container is in a state that does not allow this.
    InvalidState,
    /// The OCI runtime reported an error.
    RuntimeFailed,
    /// The OCI runtime did not end in time and was killed.
    RuntimeTimedOut,
    /// The operating system refused something.
    Io,
    /// This monitor does not know the request.
    Unsupported,
    /// A class that a newer monitor knows.
    #[serde(other)]
    Unknown,
}

/// A container as the monitor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Which.
    pub container: ContainerId,
    /// Its init process, while there is one.
    pub pid: Option<i32>,
    /// How far it is.
    pub phase: Phase,
    /// How it ended; present exactly when `phase` is [`Phase::Exited`].
    #[serde(default)]
    pub exit: Option<ExitRecord>,
    /// Log lines that could not be written.
    #[serde(default)]
    pub dropped_log_lines: u64,
    /// How many of them the monitor has told a daemon of before, by a list or an event; none from a monitor that does not
    /// keep that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_log_lines_told: Option<u64>,
    /// When its program began.
    #[serde(default)]
    pub started_at: Timestamp,
}

/// How far a container is. One that is still being created is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Its init waits for start.
    Created,
    /// Its program runs, or has ended so recently that its exit record is not on disk yet.
    Running,
    /// Its exit record is on disk.
    Exited,
}

/// How a container ended; also the content of its exit file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Of this record's form: [`ExitRecord::VERSION`].
    pub version: u32,
    /// Which.
    pub container: ContainerId,
    /// The exit code; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// When the init process was found dead.
    pub finished_at: Timestamp,
    /// When its program began; unset when it never did.
    #[serde(default)]
    pub started_at: Timestamp,
    /// Whether the kernel's OOM killer struck in the container's cgroup while it ran.
    #[serde(default)]
    pub oom_killed: bool,
}

impl ExitRecord {
    /// The present form.
    pub const VERSION: u32 = 1;

    /// Reads an exit file's content.
    ///
    /// # Errors
    /// When it is not JSON of a known form.
    pub fn from_json(bytes: &[u8]) -> Result<Self, crate::CodecError> {
        let record: Self = serde_json::from_slice(bytes).map_err(crate::CodecError::Malformed)?;
        if record.version == Self::VERSION {
            Ok(record)
        } else {
            Err(crate::CodecError::Version(record.version))
        }
    }

    /// The exit file's content.
    ///
    /// # Errors
    /// Never in practice; the type says so because JSON can fail in general.
    pub fn to_json(&self) -> Result<Vec<u8>, crate::CodecError> {
        serde_json::to_vec(self).map_err(crate::CodecError::Malformed)
    }
}

/// What the monitor tells unasked, to every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container has ended; its exit file is written and its log complete.
    Exited(ExitRecord),
    /// An exec has ended. It never comes before the exec's [`Reply::ExecStarted`] on the connection that asked for it.
    ExecExited {
        /// Which.
        exec: ExecId,
        /// The exit code; 128 + signal when a signal ended it.
        exit_code: i32,
        /// The signal that ended it.
        #[serde(default)]
        signal: Option<i32>,
    },
    /// More log lines of a container could not be written. It comes once in [`crate::DROPS_TOLD_EVERY`] at most, and once more before
    /// the container's [`Event::Exited`] if there is news; an older monitor never sends it.
    LogLinesDropped {
        /// Which.
        container: ContainerId,
        /// How many of its lines were lost since it was made.
        lines: u64,
    },
}
