//! Rules on single values that sandbox and container requests share.

use std::path::{Component, Path, PathBuf};

use cri_api::v1;

use crate::error::SpecError;

/// Ids above this are reserved by the kernel to say "no id".
const MAX_ID: i64 = u32::MAX as i64 - 1;

/// A text that must be there.
pub(crate) fn required(field: &'static str, value: &str) -> Result<(), SpecError> {
    if value.is_empty() { Err(SpecError::Missing { field }) } else { Ok(()) }
}

/// A text that is going to be an argument, a variable or a path of a program.
pub(crate) fn no_nul(field: &'static str, value: &str) -> Result<(), SpecError> {
    if value.contains('\0') {
        Err(SpecError::invalid(field, value, "it contains a zero byte"))
    } else {
        Ok(())
    }
}

/// A user or group id of the wire, which is wider than the kernel's.
pub(crate) fn id(field: &'static str, value: i64) -> Result<u32, SpecError> {
    let refused = || SpecError::invalid(field, value.to_string(), "it must be between 0 and 4294967294");
    if value > MAX_ID {
        return Err(refused());
    }
    u32::try_from(value).map_err(|_| refused())
}

/// User and group of a security context: each in range, and no group without a user.
pub(crate) fn user_and_group(
    user: Option<v1::Int64Value>,
    username: &str,
    group: Option<v1::Int64Value>,
) -> Result<(), SpecError> {
    if let Some(user) = user {
        id("run_as_user", user.value)?;
    }
    if let Some(group) = group {
        id("run_as_group", group.value)?;
        if user.is_none() && username.is_empty() {
            return Err(SpecError::Conflict {
                field: "run_as_group",
                reason: "a group is specified without a user (run_as_user or run_as_username)",
            });
        }
    }
    Ok(())
}

/// Supplemental groups, each in range.
pub(crate) fn groups(values: &[i64]) -> Result<(), SpecError> {
    values.iter().try_for_each(|value| id("supplemental_groups", *value).map(|_| ()))
}

/// Supplemental groups policy, a known number.
pub(crate) fn groups_policy(value: i32) -> Result<(), SpecError> {
    match v1::SupplementalGroupsPolicy::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(SpecError::invalid(
            "supplemental_groups_policy",
            value.to_string(),
            "it is neither Merge nor Strict",
        )),
    }
}

/// A namespace mode, a known number.
pub(crate) fn mode(field: &'static str, value: i32) -> Result<v1::NamespaceMode, SpecError> {
    v1::NamespaceMode::try_from(value)
        .map_err(|_| SpecError::invalid(field, value.to_string(), "it is not a namespace mode"))
}

/// A security profile: a known type, and a reference if and only if it is needed.
pub(crate) fn profile(field: &'static str, profile: Option<&v1::SecurityProfile>) -> Result<(), SpecError> {
    let Some(profile) = profile else { return Ok(()) };
    let kind = v1::security_profile::ProfileType::try_from(profile.profile_type).map_err(|_| {
        SpecError::invalid(field, profile.profile_type.to_string(), "it is not a profile type")
    })?;
    if kind == v1::security_profile::ProfileType::Localhost && profile.localhost_ref.is_empty() {
        return Err(SpecError::Conflict {
            field,
            reason: "a localhost profile is asked for without its name",
        });
    }
    Ok(())
}

/// Resolves `.`, `..` and doubled slashes by text, as seen from the root. The path need not exist.
pub(crate) fn clean_absolute(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// A path that must be absolute, cleaned.
pub(crate) fn absolute(field: &'static str, path: &str) -> Result<PathBuf, SpecError> {
    required(field, path)?;
    no_nul(field, path)?;
    if path.starts_with('/') {
        Ok(clean_absolute(path))
    } else {
        Err(SpecError::invalid(field, path, "it must be an absolute path"))
    }
}

/// A path below a directory that is known elsewhere; a leading slash counts as that directory.
pub(crate) fn beneath(field: &'static str, path: &str) -> Result<PathBuf, SpecError> {
    no_nul(field, path)?;
    let mut relative = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(SpecError::invalid(field, path, "it must not leave its directory"));
            }
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(SpecError::invalid(field, path, "it names no file"));
    }
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_by_text() {
        for (path, clean) in
            [("/a/b", "/a/b"), ("/a/../b/./c//", "/b/c"), ("/../..", "/"), ("a", "/a"), ("", "/")]
        {
            assert_eq!(clean_absolute(path), Path::new(clean), "{path:?}");
        }
    }

    #[test]
    fn relative_paths_stay_beneath() {
        assert_eq!(beneath("log_path", "a/./0.log").unwrap(), Path::new("a/0.log"));
        assert_eq!(beneath("log_path", "/a/0.log").unwrap(), Path::new("a/0.log"));
        for bad in ["../x", "a/../../x", "a/..", "/", ".", "x\0"] {
            assert!(beneath("log_path", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_fit_the_kernel() {
        assert_eq!(id("run_as_user", 4_294_967_294).unwrap(), u32::MAX - 1);
        for bad in [-1, 4_294_967_295, i64::MAX, i64::MIN] {
            assert!(id("run_as_user", bad).is_err(), "{bad}");
        }
    }
}
