//! User namespaces: the rules on their mappings. A pod that passes them is refused for now, since nothing on this node
//! maps the ids of its root file system yet; a handler that reports no user namespace support never sees such a pod
//! from kubelet.

use cri_api::v1;

use crate::error::SpecError;

/// Checks the options; only "the node's user namespace" passes.
pub(crate) fn check(options: Option<&v1::UserNamespace>) -> Result<(), SpecError> {
    let Some(options) = options else { return Ok(()) };
    match v1::NamespaceMode::try_from(options.mode) {
        Ok(v1::NamespaceMode::Node) => no_mappings(options),
        Ok(v1::NamespaceMode::Pod) => {
            mapping("userns_options.uids", &options.uids)?;
            mapping("userns_options.gids", &options.gids)?;
            Err(SpecError::Unavailable {
                what: "a user namespace of the pod's own".to_owned(),
                reason: "this server cannot map file ownership yet",
            })
        }
        Ok(mode) => {
            let reason = "a user namespace is POD or NODE";
            Err(SpecError::invalid("userns_options.mode", mode.as_str_name(), reason))
        }
        Err(_) => {
            let reason = "it is not a namespace mode";
            Err(SpecError::invalid("userns_options.mode", options.mode.to_string(), reason))
        }
    }
}

fn no_mappings(options: &v1::UserNamespace) -> Result<(), SpecError> {
    if options.uids.is_empty() && options.gids.is_empty() {
        return Ok(());
    }
    Err(SpecError::Conflict {
        field: "userns_options",
        reason: "the node's user namespace has no mappings of its own",
    })
}

/// Exactly one line, with id 0 of the container and a length.
fn mapping(field: &'static str, lines: &[v1::IdMapping]) -> Result<(), SpecError> {
    let [line] = lines else {
        let reason = "exactly one mapping is needed";
        return Err(SpecError::invalid(field, format!("{} mappings", lines.len()), reason));
    };
    let refused = |value: u32, reason| Err(SpecError::invalid(field, value.to_string(), reason));
    if line.container_id != 0 {
        return refused(line.container_id, "the container's id 0 must be mapped");
    }
    if line.length == 0 {
        return refused(line.length, "a mapping needs a length");
    }
    if line.host_id.checked_add(line.length).is_none() {
        return refused(line.host_id, "the mapping ends above the highest id");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{ErrorKind, Kind};

    #[test]
    fn mappings_are_judged_before_support() {
        let line = |container_id, length| v1::IdMapping { host_id: 65536, container_id, length };
        let options = |mode: v1::NamespaceMode, uids: Vec<v1::IdMapping>| v1::UserNamespace {
            mode: mode.into(),
            gids: uids.clone(),
            uids,
        };
        let kind = |options: &v1::UserNamespace| check(Some(options)).map_err(|error| error.kind());
        let invalid = Err(ErrorKind::InvalidArgument);
        assert!(check(None).is_ok());
        assert_eq!(kind(&options(v1::NamespaceMode::Node, vec![])), Ok(()));
        assert_eq!(kind(&options(v1::NamespaceMode::Node, vec![line(0, 1)])), invalid);
        assert_eq!(kind(&options(v1::NamespaceMode::Pod, vec![])), invalid);
        assert_eq!(kind(&options(v1::NamespaceMode::Pod, vec![line(0, 1), line(1, 1)])), invalid);
        assert_eq!(kind(&options(v1::NamespaceMode::Pod, vec![line(1, 1)])), invalid);
        assert_eq!(kind(&options(v1::NamespaceMode::Pod, vec![line(0, u32::MAX)])), invalid);
        assert_eq!(kind(&options(v1::NamespaceMode::Container, vec![line(0, 1)])), invalid);
        assert_eq!(kind(&options(v1::NamespaceMode::Target, vec![line(0, 1)])), invalid);
        assert_eq!(
            kind(&options(v1::NamespaceMode::Pod, vec![line(0, 65536)])),
            Err(ErrorKind::FailedPrecondition)
        );
    }
}
