//! `crimson check --images`: stored images compared with their digests, and with `--repair` fetched again.
//!
//! Looking reads every file of every image and is safe beside a server at work. Repairing needs the lock of the state
//! directory, the network, and registries that still have what is damaged; containers keep the files they run on.

use serde::Serialize;

use image::{DamagedImage, Images};

use super::{CheckError, Outcome, Report};
use crate::config::Config;
use crate::{drivers, listener};

/// One damaged image, and what became of it.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The name people know it by, or its record's file.
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// What is wrong.
    faults: Vec<String>,
    /// Whether it is whole again, or gone because nothing told what it was.
    repaired: bool,
    /// Why it could not be repaired.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Finding {
    fn new(damaged: &DamagedImage, outcome: Option<Result<(), String>>) -> Self {
        Self {
            image: damaged.name(),
            id: damaged.id.as_ref().map(ToString::to_string),
            faults: damaged.faults.iter().map(ToString::to_string).collect(),
            repaired: matches!(outcome, Some(Ok(()))),
            error: outcome.and_then(Result::err),
        }
    }
}

impl Outcome for Finding {
    fn is_over(&self) -> bool {
        self.repaired
    }

    fn lines(&self) -> String {
        let (state, reason) = match (&self.error, self.repaired) {
            (Some(error), _) => ("left", format!(": {error}")),
            (None, true) => ("repaired", String::new()),
            (None, false) => ("damaged", String::new()),
        };
        self.faults.iter().map(|fault| format!("{state}: image {}: {fault}{reason}\n", self.image)).collect()
    }
}

/// Looks, and with `repair` fetches what it finds damaged.
///
/// # Errors
/// When the store cannot be read, or a server has it open while it should be repaired.
pub fn run(config: &Config, repair: bool) -> Result<Report<Finding>, CheckError> {
    if !repair {
        let findings = look(config)?.iter().map(|damaged| Finding::new(damaged, None)).collect();
        return Ok(Report { findings });
    }
    let _lock = listener::lock_state(&config.state).map_err(CheckError::Locked)?;
    let damaged = damage(config)?;
    if damaged.is_empty() {
        return Ok(Report { findings: Vec::new() });
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CheckError::Start)?;
    runtime.block_on(mend(config, &damaged))
}

/// What a server at work removes or replaces while we look only looks damaged: what a second look finds counts.
fn look(config: &Config) -> Result<Vec<DamagedImage>, CheckError> {
    let first = damage(config)?;
    let is_served = listener::daemon_on(&config.state).map_err(CheckError::Server)?.is_some();
    if first.is_empty() || !is_served { Ok(first) } else { damage_still(config, &first) }
}

fn damage(config: &Config) -> Result<Vec<DamagedImage>, CheckError> {
    let root = drivers::images(config).root;
    image::damage_on_disk(&root).map_err(|source| CheckError::Read { path: root, source })
}

fn damage_still(config: &Config, found: &[DamagedImage]) -> Result<Vec<DamagedImage>, CheckError> {
    let root = drivers::images(config).root;
    image::still_damaged(&root, found).map_err(|source| CheckError::Read { path: root, source })
}

async fn mend(config: &Config, damaged: &[DamagedImage]) -> Result<Report<Finding>, CheckError> {
    let images = Images::open(drivers::images(config)).await.map_err(CheckError::Images)?;
    let mut outcomes = Vec::new();
    for image in damaged {
        outcomes.push(images.repair(image).await.map_err(|error| types::error::chain(&error)));
    }
    images.shutdown().await;
    let left = damage_still(config, damaged)?;
    let finding = |(image, outcome): (&DamagedImage, Result<(), String>)| {
        let is_left = left.iter().any(|left| left.record == image.record);
        let outcome = if is_left { outcome.and(Err("it is still damaged".to_owned())) } else { outcome };
        Finding::new(image, Some(outcome))
    };
    Ok(Report { findings: damaged.iter().zip(outcomes).map(finding).collect() })
}

#[cfg(test)]
mod tests {
    use image::{Fault, Part};

    use super::*;

    fn damaged() -> DamagedImage {
        let fault = |detail: &str| Fault { part: Part::Record, detail: detail.to_owned() };
        DamagedImage {
            record: "/r/1.json".into(),
            id: None,
            manifest: None,
            tags: vec!["r.example/a:1".to_owned()],
            digests: Vec::new(),
            faults: vec![fault("one"), fault("two")],
        }
    }

    #[test]
    fn every_fault_is_told_with_what_became_of_it() {
        let finding = |outcome| Finding::new(&damaged(), outcome);
        assert_eq!(
            finding(None).lines(),
            "damaged: image r.example/a:1: record: one\ndamaged: image r.example/a:1: record: two\n"
        );
        assert!(finding(Some(Ok(()))).lines().starts_with("repaired: image r.example/a:1: record: one\n"));
        let left = finding(Some(Err("gone".to_owned())));
        assert!(left.lines().starts_with("left: image r.example/a:1: record: one: gone\n"));
        assert!(!Report { findings: vec![left] }.is_clean());
        assert!(Report { findings: vec![finding(Some(Ok(())))] }.is_clean());
        assert_eq!(Report::<Finding> { findings: Vec::new() }.text(), "clean\n");
    }

    #[test]
    fn programs_read_the_same() {
        let json = Report { findings: vec![Finding::new(&damaged(), None)] }.json();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!({ "findings": [{
            "image": "r.example/a:1", "faults": ["record: one", "record: two"], "repaired": false,
        }] });
        assert_eq!(json, expected);
    }
}
