//! The timed steps of an operation, read from the daemon's log: events of target `crimson::step` with the fields `op`,
//! `step` and `elapsed_ms`, in either log format.

use serde_json::Value;

/// One step that was logged.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The operation, such as `run_pod`.
    pub op: String,
    /// The step, such as `netns`.
    pub step: String,
    /// How long it took.
    pub elapsed_ms: f64,
}

/// All steps in a log, in order; other lines are passed over.
#[must_use]
pub fn parse_steps(log: &str) -> Vec<Step> {
    log.lines()
        .filter(|line| line.contains("crimson::step"))
        .filter_map(|line| json(line).or_else(|| text(line)))
        .collect()
}

fn json(line: &str) -> Option<Step> {
    let value: Value = serde_json::from_str(line).ok()?;
    let fields = value.get("fields").unwrap_or(&value);
    let elapsed = fields.get("elapsed_ms")?;
    Some(Step {
        op: fields.get("op")?.as_str()?.to_owned(),
        step: fields.get("step")?.as_str()?.to_owned(),
        elapsed_ms: elapsed.as_f64().or_else(|| elapsed.as_str()?.parse().ok())?,
    })
}

fn text(line: &str) -> Option<Step> {
    let field = |name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}="))?;
        let end = if rest.starts_with('"') { '"' } else { ' ' };
        rest.trim_start_matches('"').split(end).next().map(str::to_owned)
    };
    Some(Step { op: field("op")?, step: field("step")?, elapsed_ms: field("elapsed_ms")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_log_formats_give_the_same_step() {
        let json = r#"{"level":"DEBUG","target":"crimson::step","fields":{"op":"run_pod","step":"OCI create","elapsed_ms":12.5}}"#;
        let text = r#"2026-01-01T00:00:00Z DEBUG rpc{x=1}: crimson::step: op="run_pod" step="OCI create" elapsed_ms=12.5"#;
        let expected = [Step { op: "run_pod".to_owned(), step: "OCI create".to_owned(), elapsed_ms: 12.5 }];
        assert_eq!(parse_steps(json), expected);
        assert_eq!(parse_steps(text), expected);
        assert_eq!(parse_steps("INFO crimson: ready"), []);
    }
}
