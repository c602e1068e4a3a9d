//! Classes of block I/O and of processor caches, which pods ask for by annotations that Kubernetes has no field for.
//!
//! containerd and CRI-O take a file that says what each class means. This server has none, so a container that is to be in a class
//! is refused by the class's name rather than started outside it. No class, or an empty one, is nothing to refuse.

use crate::error::SpecError;
use crate::request::{ContainerRequest, SandboxRequest};

/// Where one kind of class is asked for.
struct Kind {
    what: &'static str,
    reason: &'static str,
    /// On the container.
    own: &'static str,
    /// On the pod: followed by `container.` and a name, or by `pod`.
    of_pod: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        what: "block I/O class",
        reason: "this server knows no classes of block I/O",
        own: "io.kubernetes.cri.blockio-class",
        of_pod: "blockio.resources.beta.kubernetes.io/",
    },
    Kind {
        what: "RDT class",
        reason: "this server knows no classes of processor caches",
        own: "io.kubernetes.cri.rdt-class",
        of_pod: "rdt.resources.beta.kubernetes.io/",
    },
];

/// Refuses a container that is to be in a class.
pub(crate) fn check(request: &ContainerRequest, sandbox: &SandboxRequest) -> Result<(), SpecError> {
    for kind in &KINDS {
        if let Some(class) = kind.class_of(request, sandbox).filter(|class| !class.is_empty()) {
            let what = format!("{} {class:?}", kind.what);
            return Err(SpecError::Unavailable { what, reason: kind.reason });
        }
    }
    Ok(())
}

impl Kind {
    /// The nearest says it: the container, the pod for this container, the pod for all.
    fn class_of<'a>(&self, request: &'a ContainerRequest, sandbox: &'a SandboxRequest) -> Option<&'a str> {
        let on_pod = |name: String| sandbox.annotations().get(&format!("{}{name}", self.of_pod));
        let own = request.annotations().get(self.own);
        own.or_else(|| on_pod(format!("container.{}", request.name())))
            .or_else(|| on_pod("pod".to_owned()))
            .map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn checked(own: &[(&str, &str)], of_pod: &[(&str, &str)]) -> Result<(), String> {
        let owned = |list: &[(&str, &str)]| {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let (mut config, mut pod) = (fixtures::container(), fixtures::pod());
        config.annotations.extend(owned(own));
        pod.annotations.extend(owned(of_pod));
        let request = ContainerRequest::parse(config).unwrap();
        let sandbox = SandboxRequest::parse(pod, String::new()).unwrap();
        check(&request, &sandbox).map_err(|error| error.to_string())
    }

    #[test]
    fn classes_are_refused_by_name_and_the_nearest_counts() {
        let name = ContainerRequest::parse(fixtures::container()).unwrap().name().to_owned();
        let for_it = format!("blockio.resources.beta.kubernetes.io/container.{name}");
        assert_eq!(checked(&[], &[]), Ok(()));
        assert_eq!(checked(&[], &[("rdt.resources.beta.kubernetes.io/container.other", "gold")]), Ok(()));
        let pod = ("blockio.resources.beta.kubernetes.io/pod", "slow");
        assert!(checked(&[], &[pod]).unwrap_err().starts_with("block I/O class \"slow\""));
        assert!(checked(&[], &[pod, (&for_it, "fast")]).unwrap_err().contains("\"fast\""));
        assert_eq!(
            checked(&[], &[pod, (&for_it, "")]),
            Ok(()),
            "the container is taken out of the pod's class"
        );
        let own = checked(&[("io.kubernetes.cri.rdt-class", "gold")], &[]).unwrap_err();
        assert!(own.starts_with("RDT class \"gold\" is not available on this node"), "{own}");
    }
}
