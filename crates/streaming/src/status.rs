//! How the end of a session is told to its client: a `meta/v1` Status as JSON, or text for old protocols.

use serde::Serialize;

use crate::channels::StatusForm;

/// How a session has ended, as its client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The command returned 0; the attached container ended.
    Success,
    /// The command returned something else.
    ExitCode(i32),
    /// Anything else.
    Failure(String),
}

#[derive(Serialize)]
struct Status<'a> {
    metadata: Metadata,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Metadata {}

#[derive(Serialize)]
struct Details<'a> {
    causes: [Cause<'a>; 1],
}

#[derive(Serialize)]
struct Cause<'a> {
    reason: &'a str,
    message: String,
}

impl Outcome {
    /// What is written to the error channel; nothing when there is nothing to say.
    pub(crate) fn render(&self, form: StatusForm) -> Vec<u8> {
        match form {
            StatusForm::Json => serde_json::to_vec(&self.status()).unwrap_or_default(),
            StatusForm::Text => self.message().unwrap_or_default().into_bytes(),
        }
    }

    fn message(&self) -> Option<String> {
        match self {
            Self::Success => None,
            Self::ExitCode(code) => {
                Some(format!("command terminated with non-zero exit code: exit status {code}"))
            }
            Self::Failure(why) => Some(format!("Internal error occurred: {why}")),
        }
    }

    fn status(&self) -> Status<'_> {
        let (status, reason, code) = match self {
            Self::Success => ("Success", None, None),
            Self::ExitCode(_) => ("Failure", Some("NonZeroExitCode"), None),
            Self::Failure(_) => ("Failure", Some("InternalError"), Some(500)),
        };
        let details = match self {
            // Clients read the code as an unsigned byte.
            Self::ExitCode(exit) => {
                let [low, ..] = exit.to_le_bytes();
                Some(Details { causes: [Cause { reason: "ExitCode", message: low.max(1).to_string() }] })
            }
            Self::Success | Self::Failure(_) => None,
        };
        Status { metadata: Metadata {}, status, message: self.message(), reason, details, code }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(outcome: &Outcome) -> Value {
        serde_json::from_slice(&outcome.render(StatusForm::Json)).unwrap()
    }

    #[test]
    fn success_is_told_in_json_only() {
        assert_eq!(parsed(&Outcome::Success), json!({"metadata": {}, "status": "Success"}));
        assert!(Outcome::Success.render(StatusForm::Text).is_empty());
    }

    #[test]
    fn an_exit_code_is_a_cause_that_clients_find() {
        let status = parsed(&Outcome::ExitCode(3));
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"], json!({"causes": [{"reason": "ExitCode", "message": "3"}]}));
        let text = Outcome::ExitCode(3).render(StatusForm::Text);
        assert_eq!(text, b"command terminated with non-zero exit code: exit status 3");
    }

    #[test]
    fn an_exit_code_fits_the_byte_that_clients_parse() {
        for (code, told) in [(1, "1"), (137, "137"), (255, "255"), (256, "1"), (-1, "255")] {
            assert_eq!(parsed(&Outcome::ExitCode(code))["details"]["causes"][0]["message"], told, "{code}");
        }
    }

    #[test]
    fn other_failures_are_internal_errors_with_their_reason() {
        let failure = Outcome::Failure("error executing command in container: it has ended".to_owned());
        let expected = "Internal error occurred: error executing command in container: it has ended";
        let status = parsed(&failure);
        assert_eq!((&status["reason"], &status["code"]), (&json!("InternalError"), &json!(500)));
        assert_eq!(status["message"], expected);
        assert_eq!(failure.render(StatusForm::Text), expected.as_bytes());
    }
}
