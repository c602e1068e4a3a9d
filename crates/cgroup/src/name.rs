//! Names of groups in the three forms they take: what kubelet asks for, what the OCI runtime gets, and the path below each
//! hierarchy.

use std::path::{Path, PathBuf};

use types::id::ID_LEN;

use crate::driver::DriverKind;
use crate::error::CgroupError;

/// The parent of groups whose pod asks for none, with the cgroupfs driver.
const DEFAULT_PARENT: &str = "/crimson";
/// The same with the systemd driver.
const DEFAULT_SLICE: &str = "system.slice";
/// What scopes begin with; cAdvisor knows container groups by it.
const SCOPE_PREFIX: &str = "crimson";
/// The units of all groups of ours, for those who look for units by a shell pattern.
pub(crate) const SCOPE_PATTERN: &str = "crimson-*.scope";

/// The parent as kubelet means it, in this driver's own form: an absolute path, or the name of a slice.
pub(crate) fn parent(kind: DriverKind, requested: Option<&str>) -> Result<String, CgroupError> {
    let requested = requested.map(str::trim).filter(|text| !text.is_empty());
    let Some(text) = requested else { return Ok(default_parent(kind).to_owned()) };
    let components = components(text)?;
    let last = components.last().copied().unwrap_or_default();
    match (kind, last.ends_with(".slice")) {
        (DriverKind::Cgroupfs, false) => Ok(format!("/{}", components.join("/"))),
        (DriverKind::Systemd, true) => slice_path(last).map(|_| last.to_owned()),
        _ => Err(CgroupError::OtherDriver { parent: text.to_owned(), ours: kind }),
    }
}

fn default_parent(kind: DriverKind) -> &'static str {
    match kind {
        DriverKind::Cgroupfs => DEFAULT_PARENT,
        DriverKind::Systemd => DEFAULT_SLICE,
    }
}

/// The `cgroupsPath` of the OCI runtime specification for the group `id` below `requested`.
pub(crate) fn oci_path(kind: DriverKind, requested: Option<&str>, id: &str) -> Result<String, CgroupError> {
    let parent = parent(kind, requested)?;
    let is_one_component = components(id)?.len() == 1 && !id.contains(['/', ':']);
    match (kind, is_one_component) {
        (_, false) => Err(CgroupError::name(
            id,
            "the name of a container's group is one path component without a colon",
        )),
        (DriverKind::Cgroupfs, true) => Ok(format!("{}/{id}", parent.trim_end_matches('/'))),
        (DriverKind::Systemd, true) => Ok(format!("{parent}:{SCOPE_PREFIX}:{id}")),
    }
}

/// Where the group that the OCI runtime knows as `oci_path` lies below each hierarchy.
pub(crate) fn relative(kind: DriverKind, oci_path: &str) -> Result<PathBuf, CgroupError> {
    match kind {
        DriverKind::Cgroupfs => Ok(components(oci_path)?.iter().collect()),
        DriverKind::Systemd => scope_path(oci_path),
    }
}

fn scope_path(oci_path: &str) -> Result<PathBuf, CgroupError> {
    let (slice, scope) = slice_and_scope(oci_path)?;
    Ok(slice_path(slice)?.join(scope))
}

/// The id and the `cgroupsPath` of the group at `path` below a hierarchy, if it is named as [`oci_path`] names one.
pub(crate) fn named(kind: DriverKind, path: &Path) -> Option<(String, String)> {
    let name = path.file_name()?.to_str()?;
    let id = match kind {
        DriverKind::Cgroupfs => name,
        DriverKind::Systemd => name.strip_prefix(SCOPE_PREFIX)?.strip_prefix('-')?.strip_suffix(".scope")?,
    };
    if id.len() != ID_LEN || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let parent = path.parent()?;
    let oci = match kind {
        DriverKind::Cgroupfs => format!("/{}", path.to_str()?),
        DriverKind::Systemd if parent.as_os_str().is_empty() => format!("-.slice:{SCOPE_PREFIX}:{id}"),
        DriverKind::Systemd => format!("{}:{SCOPE_PREFIX}:{id}", parent.file_name()?.to_str()?),
    };
    // A scope that lies where no slice of its name does is nobody's that we know.
    (relative(kind, &oci).ok()? == path).then(|| (id.to_owned(), oci))
}

/// The unit of the group that the OCI runtime knows as `oci_path`.
pub(crate) fn scope(oci_path: &str) -> Result<String, CgroupError> {
    slice_and_scope(oci_path).map(|(_, scope)| scope)
}

fn slice_and_scope(oci_path: &str) -> Result<(&str, String), CgroupError> {
    let parts: Vec<&str> = oci_path.split(':').collect();
    let [slice, prefix, id] = parts.as_slice() else {
        return Err(CgroupError::name(oci_path, "with the systemd driver it is slice:prefix:name"));
    };
    let scope = format!("{prefix}-{id}.scope");
    match components(&scope)?.as_slice() {
        [_] => Ok((slice, scope)),
        _ => Err(CgroupError::name(oci_path, "a scope is one path component")),
    }
}

/// A slice lies in the slices its name is made of: `a-b.slice` in `a.slice`.
pub(crate) fn slice_path(slice: &str) -> Result<PathBuf, CgroupError> {
    let refused = |reason| Err(CgroupError::name(slice, reason));
    let Some(stem) = slice.strip_suffix(".slice") else { return refused("a slice ends with .slice") };
    if stem == "-" {
        return Ok(PathBuf::new());
    }
    if stem.contains(['/', ':', '\0']) || stem.split('-').any(str::is_empty) {
        return refused("a slice is made of parts joined by single dashes");
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Ok(ends.filter_map(|end| stem.get(..end)).map(|part| format!("{part}.slice")).collect())
}

/// The parts of a path, none of which leads elsewhere.
fn components(text: &str) -> Result<Vec<&str>, CgroupError> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(CgroupError::name(text, "it is empty, and the root group is nobody's"));
    }
    if parts.iter().any(|part| matches!(*part, "." | "..") || part.contains(['\0', '\n'])) {
        return Err(CgroupError::name(text, "it has a component that is no plain name"));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use types::{ErrorKind, Kind};

    use super::*;

    const ID: &str = "0123abcd";

    #[test]
    fn paths_for_the_oci_runtime() {
        let fs = |parent| oci_path(DriverKind::Cgroupfs, parent, ID).unwrap();
        assert_eq!(fs(None), "/crimson/0123abcd");
        assert_eq!(fs(Some("")), "/crimson/0123abcd");
        assert_eq!(fs(Some("/kubepods/burstable/pod1")), "/kubepods/burstable/pod1/0123abcd");
        assert_eq!(fs(Some("relative//twice/")), "/relative/twice/0123abcd");
        let systemd = |parent| oci_path(DriverKind::Systemd, parent, ID).unwrap();
        assert_eq!(systemd(None), "system.slice:crimson:0123abcd");
        assert_eq!(
            systemd(Some("/kubepods.slice/kubepods-pod1.slice")),
            "kubepods-pod1.slice:crimson:0123abcd"
        );
    }

    #[test]
    fn a_group_is_known_again_by_its_name() {
        let id = "0123456789abcdef".repeat(4);
        for (kind, parent) in [
            (DriverKind::Cgroupfs, None),
            (DriverKind::Cgroupfs, Some("/kubepods/pod1")),
            (DriverKind::Systemd, None),
            (DriverKind::Systemd, Some("kubepods-burstable-pod1_2.slice")),
            (DriverKind::Systemd, Some("-.slice")),
        ] {
            let oci = oci_path(kind, parent, &id).unwrap();
            let path = relative(kind, &oci).unwrap();
            assert_eq!(named(kind, &path), Some((id.clone(), oci)));
        }
        let scope = format!("crimson-{id}.scope");
        for path in
            ["a/b", "0123", &format!("a/{scope}"), &format!("x-y.slice/{scope}"), &format!("a/{id}.scope")]
        {
            assert_eq!(named(DriverKind::Systemd, Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn the_other_drivers_form_is_refused_with_the_fix() {
        for (kind, parent) in
            [(DriverKind::Cgroupfs, "/kubepods-pod1.slice"), (DriverKind::Systemd, "/kubepods/pod1")]
        {
            let error = oci_path(kind, Some(parent), ID).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            for part in [parent, "systemd driver", "cgroupfs driver", "cgroupDriver to", "--cgroup-driver"] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
    }

    #[test]
    fn what_could_leave_the_hierarchy_is_refused() {
        for parent in ["/a/../..", "..", "/", "/a/./b", "/a\0b"] {
            assert!(oci_path(DriverKind::Cgroupfs, Some(parent), ID).is_err(), "{parent:?}");
        }
        for slice in ["../x.slice", "a--b.slice", "-a.slice", ".slice", "a:b.slice"] {
            assert!(oci_path(DriverKind::Systemd, Some(slice), ID).is_err(), "{slice:?}");
        }
        for id in ["", "a/b", "..", "a:b"] {
            assert!(oci_path(DriverKind::Cgroupfs, None, id).is_err(), "{id:?}");
        }
        for path in ["a.slice:x", "a:b:c", "a.slice:b:../c", "a.slice:b:c:d"] {
            assert!(relative(DriverKind::Systemd, path).is_err(), "{path:?}");
        }
    }

    /// As kubelet names the slices of the three classes of pods, the dashes of the pod's uid replaced.
    #[test]
    fn slices_of_kubelet() {
        let uid = "pod0f1e2d3c_4b5a_6978_8796_a5b4c3d2e1f0";
        for (class, outer) in [
            ("", ""),
            ("-burstable", "kubepods-burstable.slice/"),
            ("-besteffort", "kubepods-besteffort.slice/"),
        ] {
            let slice = format!("kubepods{class}-{uid}.slice");
            let path = slice_path(&slice).unwrap();
            assert_eq!(path, Path::new(&format!("kubepods.slice/{outer}{slice}")));
            let oci = oci_path(DriverKind::Systemd, Some(&slice), ID).unwrap();
            assert_eq!(scope(&oci).unwrap(), "crimson-0123abcd.scope");
            assert_eq!(relative(DriverKind::Systemd, &oci).unwrap(), path.join("crimson-0123abcd.scope"));
        }
    }

    #[test]
    fn a_scope_lies_in_all_the_slices_of_its_name() {
        let path = relative(DriverKind::Systemd, "kubepods-burstable-pod1_2.slice:crimson:0123").unwrap();
        let slices = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        assert_eq!(path, Path::new(slices).join("crimson-0123.scope"));
        assert_eq!(relative(DriverKind::Systemd, "-.slice:crimson:1").unwrap(), Path::new("crimson-1.scope"));
        assert_eq!(relative(DriverKind::Cgroupfs, "/a/b").unwrap(), Path::new("a/b"));
    }
}
