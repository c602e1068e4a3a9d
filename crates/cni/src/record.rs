//! Records of attachments: what must be known to undo one.
//!
//! ```text
//! cache_dir/<sandbox id>.json     one file per sandbox, written whole or not at all
//! ```
//!
//! A record is written before the first plugin of ADD runs (intent), again with the result after the last one, and
//! removed after DEL succeeded. So: no record, nothing to undo. It carries the whole list and what the plugins were
//! told about the pod, and depends on nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::SandboxId;

use crate::error::CniError;
use crate::list::{ListError, NetworkList};
use crate::pod::PodNetwork;

/// Layout of the records that are written now.
const VERSION: u32 = 1;
const SUFFIX: &str = ".json";

/// One attachment, begun or complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) pod: PodNetwork,
    pub(crate) interface: String,
    pub(crate) list: NetworkList,
    /// How many plugins, from the first, may have done something; None when that is not known.
    pub(crate) started: Option<usize>,
    /// The final result of ADD.
    pub(crate) result: Option<Value>,
}

/// A record as it stands on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    pod: PodNetwork,
    interface: String,
    list: Value,
    #[serde(default)]
    started: Option<usize>,
    #[serde(default)]
    result: Option<Value>,
}

/// What a look for a record found.
#[derive(Debug)]
pub(crate) enum Lookup {
    None,
    Found(Box<Record>),
    /// There is one, but it cannot be understood.
    Unreadable(RecordError),
}

/// Why the content of a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("its layout {0} is not known")]
    Version(u64),
    #[error("it is not a record")]
    Json(#[from] serde_json::Error),
    #[error("its network list is not valid")]
    List(#[from] ListError),
}

impl Record {
    fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Stored {
            version: VERSION,
            pod: self.pod.clone(),
            interface: self.interface.clone(),
            list: self.list.to_value(),
            started: self.started,
            result: self.result.clone(),
        })
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let value: Value = serde_json::from_slice(bytes)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version != u64::from(VERSION) => return Err(RecordError::Version(version)),
            _ => {}
        }
        let stored: Stored = serde_json::from_value(value)?;
        Ok(Self {
            pod: stored.pod,
            interface: stored.interface,
            list: NetworkList::parse(stored.list.to_string().as_bytes())?,
            started: stored.started,
            result: stored.result,
        })
    }
}

/// The directory of records. Its calls wait for the disk on a blocking thread.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Makes the directory if it is missing and removes what interrupted writes left in it.
    pub(crate) async fn open(dir: PathBuf) -> Result<Self, CniError> {
        let records = Self { dir };
        let this = records.clone();
        blocking("read", move || this.prepare()).await.map_err(|error| records.directory_error(error))?;
        Ok(records)
    }

    fn prepare(&self) -> Result<(), CniError> {
        sys::atomic::create_dir_all(&self.dir, 0o700).map_err(|error| failed("written", error))?;
        sys::atomic::sweep(&self.dir).map_err(|error| failed("removed", error))
    }

    /// The error of a directory that cannot be listed.
    pub(crate) fn unusable(&self, error: io::Error) -> CniError {
        CniError::Directory { path: self.dir.clone(), source: Box::new(error) }
    }

    fn directory_error(&self, error: CniError) -> CniError {
        match error {
            CniError::Record { source, .. } => CniError::Directory { path: self.dir.clone(), source },
            other => other,
        }
    }

    pub(crate) async fn write(&self, record: &Record) -> Result<(), CniError> {
        let path = self.path(&record.pod.sandbox);
        let bytes = record.to_bytes().map_err(|error| failed("written", error))?;
        blocking("written", move || {
            sys::atomic::write(&path, &bytes, 0o600).map_err(|error| failed("written", error))
        })
        .await
    }

    pub(crate) async fn read(&self, sandbox: &SandboxId) -> Result<Lookup, CniError> {
        let path = self.path(sandbox);
        blocking("read", move || match fs::read(&path) {
            Ok(bytes) => Ok(match Record::from_bytes(&bytes) {
                Ok(record) => Lookup::Found(Box::new(record)),
                Err(error) => Lookup::Unreadable(error),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lookup::None),
            Err(error) => Err(failed("read", error)),
        })
        .await
    }

    pub(crate) async fn remove(&self, sandbox: &SandboxId) -> Result<(), CniError> {
        let path = self.path(sandbox);
        blocking("removed", move || sys::atomic::remove(&path).map_err(|error| failed("removed", error)))
            .await
    }

    /// Sandboxes that have a record.
    pub(crate) fn list(&self) -> io::Result<Vec<SandboxId>> {
        recorded_in(&self.dir)
    }

    fn path(&self, sandbox: &SandboxId) -> PathBuf {
        self.dir.join(format!("{sandbox}{SUFFIX}"))
    }
}

/// Sandboxes that have a record in `dir`, read without opening the driver: a server may be at work there.
///
/// # Errors
/// When the directory cannot be read; one that is not there has none.
pub fn recorded_in(dir: &Path) -> io::Result<Vec<SandboxId>> {
    let mut sandboxes = Vec::new();
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                sandboxes.extend(sandbox_of(&entry?.path()));
            }
        }
    }
    Ok(sandboxes)
}

fn sandbox_of(path: &Path) -> Option<SandboxId> {
    SandboxId::parse(path.file_name()?.to_str()?.strip_suffix(SUFFIX)?).ok()
}

fn failed(action: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> CniError {
    CniError::Record { action, source: Box::new(error) }
}

/// Runs `work` where it may wait for a disk.
async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, CniError> + Send + 'static,
) -> Result<T, CniError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| failed(action, error))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn record(seed: u8) -> Record {
        let mut pod = testing::pod(seed);
        pod.netns = Some("/run/netns/cni-1".into());
        pod.bandwidth = Some(crate::Bandwidth { egress_rate: 5000, egress_burst: 7, ..Default::default() });
        let list = br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","mtu":9000,"x":1.5}]}"#;
        Record {
            pod,
            interface: "eth0".to_owned(),
            list: NetworkList::parse(list).unwrap(),
            started: Some(1),
            result: Some(serde_json::json!({"ips": [{"address": "10.0.0.2/8"}]})),
        }
    }

    #[tokio::test]
    async fn a_record_reads_back_as_it_was_written_until_removed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().join("a/b")).await.unwrap();
        let (first, second) = (record(1), record(2));
        records.write(&first).await.unwrap();
        records.write(&second).await.unwrap();
        let again = Records::open(dir.path().join("a/b")).await.unwrap();
        assert_eq!(again.list().unwrap().len(), 2);
        let Lookup::Found(found) = again.read(&first.pod.sandbox).await.unwrap() else { panic!("no record") };
        assert_eq!(*found, first);
        again.remove(&first.pod.sandbox).await.unwrap();
        again.remove(&first.pod.sandbox).await.unwrap();
        assert!(matches!(again.read(&first.pod.sandbox).await.unwrap(), Lookup::None));
        assert_eq!(again.list().unwrap(), [second.pod.sandbox]);
    }

    #[tokio::test]
    async fn what_is_no_record_of_ours_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().to_owned()).await.unwrap();
        let id = testing::pod(1).sandbox;
        for (text, expected) in [
            ("", "it is not a record"),
            ("{}", "it is not a record"),
            (r#"{"version":2}"#, "its layout 2 is not known"),
        ] {
            fs::write(records.path(&id), text).unwrap();
            let Lookup::Unreadable(error) = records.read(&id).await.unwrap() else {
                panic!("{text:?} was read")
            };
            assert_eq!(error.to_string(), expected);
        }
        fs::write(dir.path().join("notes.json"), "x").unwrap();
        assert_eq!(records.list().unwrap(), [id]);
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = Records::open(dir.path().join("file/x")).await.unwrap_err();
        assert!(matches!(&error, CniError::Directory { path, .. } if path.ends_with("file/x")), "{error}");
    }
}
