//! Which network the configuration directory means: its first valid file in lexical order.
//!
//! A file that is not valid is passed over; why it is not stays known, for the node's status tells it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::list::{ListError, NetworkList, Plugin};

/// No configuration is longer than this.
const LIMIT: u64 = 1 << 20;

/// What a look into the configuration directory found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Found {
    /// The network, and the file it came from.
    pub(crate) network: Option<Source>,
    /// Files that were passed over, each with the reason.
    pub(crate) problems: Vec<String>,
    /// The directory does not exist.
    pub(crate) missing: bool,
}

/// A valid list and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    pub(crate) list: NetworkList,
    pub(crate) path: PathBuf,
    /// The file's text, for people who look at the node.
    pub(crate) text: String,
}

/// Looks for the network that `dir` means.
pub(crate) fn look(dir: &Path) -> Found {
    let mut found = Found::default();
    let files = match candidates(dir) {
        Ok(files) => files,
        Err(error) => {
            found.missing = error.kind() == io::ErrorKind::NotFound;
            if !found.missing {
                found.problems.push(format!("directory cannot be read: {error}"));
            }
            return found;
        }
    };
    for path in files {
        match load(&path) {
            Ok(source) => {
                found.network = Some(source);
                break;
            }
            Err(error) => found.problems.push(describe(&path, &error)),
        }
    }
    found
}

/// Files in `dir` that may hold a configuration, in lexical order.
pub(crate) fn candidates(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if matches!(extension(&path), "conflist" | "conf" | "json") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|ext| ext.to_str()).unwrap_or_default()
}

fn load(path: &Path) -> Result<Source, ListError> {
    let bytes = read(path)?;
    let list = if extension(path) == "conflist" {
        with_plugins_beside(NetworkList::parse(&bytes)?, path.parent().unwrap_or(Path::new("/")))?
    } else {
        NetworkList::parse_single(&bytes)?
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Source { list, path: path.to_owned(), text })
}

/// Adds the plugins that stand in `<dir>/<network name>/*.conf`, which a list may be completed by.
fn with_plugins_beside(mut list: NetworkList, dir: &Path) -> Result<NetworkList, ListError> {
    if list.load_plugins_beside {
        for path in beside(&dir.join(&list.name))? {
            list.plugins.push(Plugin::new(serde_json::from_slice(&read(&path)?)?)?);
        }
        list.load_plugins_beside = false;
    }
    if list.plugins.is_empty() { Err(ListError::NoPlugins) } else { Ok(list) }
}

fn beside(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match candidates(dir) {
        Ok(mut files) => {
            files.retain(|path| extension(path) == "conf");
            Ok(files)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ListError> {
    let mut bytes = Vec::new();
    // Not a device or fifo: opening one could wait for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file").into());
    }
    File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT { Err(ListError::Large(LIMIT)) } else { Ok(bytes) }
}

fn describe(path: &Path, error: &ListError) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}: {}", types::error::chain(error))
}

impl Source {
    /// The shape in which containerd, and so `crictl info`, shows a network.
    pub(crate) fn describe(&self, interface: &str) -> Value {
        let list = &self.list;
        let plugins: Vec<Value> = list
            .plugins
            .iter()
            .map(|plugin| {
                serde_json::json!({"Network": plugin.conf, "Source": Value::Object(plugin.conf.clone()).to_string()})
            })
            .collect();
        serde_json::json!({
            "Config": {
                "Name": list.name,
                "CNIVersion": list.version.as_str(),
                "Plugins": plugins,
                "Source": self.text,
            },
            "IFName": interface,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"NAME","plugins":[{"type":"bridge"}]}"#;
    const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"NAME","type":"ptp"}"#;

    /// Writes the files, looks, and compares the network's name and the problems' beginnings.
    #[track_caller]
    fn check(files: &[(&str, &str)], name: Option<&str>, problems: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = look(dir.path());
        assert_eq!(found.network.as_ref().map(|source| source.list.name.as_str()), name, "{found:?}");
        assert_eq!(found.problems.len(), problems.len(), "{:?}", found.problems);
        for (got, expected) in found.problems.iter().zip(problems) {
            assert!(got.starts_with(expected), "{got:?} should begin with {expected:?}");
        }
    }

    #[test]
    fn the_first_valid_file_in_lexical_order_wins() {
        let named = |name: &str| GOOD.replace("NAME", name);
        let single = |name: &str| SINGLE.replace("NAME", name);
        check(&[], None, &[]);
        check(&[("20-b.conflist", &named("b")), ("10-a.conflist", &named("a"))], Some("a"), &[]);
        check(&[("20-b.conflist", &named("b")), ("10-a.conf", &single("a"))], Some("a"), &[]);
        check(&[("20-b.json", &single("b")), ("30-c.conflist", &named("c"))], Some("b"), &[]);
        check(
            &[("10-a.conflist.bak", &named("a")), ("README", "x"), ("b.conflist", &named("b"))],
            Some("b"),
            &[],
        );
        check(&[(".hidden.conflist", &named("h")), ("b.conflist", &named("b"))], Some("h"), &[]);
    }

    #[test]
    fn an_invalid_file_is_passed_over_and_remembered() {
        let good = GOOD.replace("NAME", "good");
        check(
            &[
                ("1.conflist", "{"),
                ("2.json", &good),
                ("3.conflist", &good),
                ("4.conflist", "never looked at"),
            ],
            Some("good"),
            &["1.conflist: it is not valid JSON", "2.json: a plugin has no type"],
        );
        check(&[("1.conflist", "")], None, &["1.conflist: it is not valid JSON"]);
        let large = " ".repeat(usize::try_from(LIMIT).unwrap() + 1);
        check(&[("1.conflist", &large)], None, &["1.conflist: it is larger than 1048576 bytes"]);
        check(&[("1.conflist/file", "")], None, &[]);
    }

    #[test]
    fn plugins_beside_the_list_complete_it() {
        let list = r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}"#;
        let files =
            [("1.conflist", list), ("n/20.conf", r#"{"type":"c"}"#), ("n/10.conf", r#"{"type":"b"}"#)];
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("n")).unwrap();
        for (file, text) in files {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let source = look(dir.path()).network.unwrap();
        let kinds: Vec<_> = source.list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["a", "b", "c"]);
        let inlined = r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"a"}]}"#;
        fs::write(dir.path().join("1.conflist"), inlined).unwrap();
        assert_eq!(look(dir.path()).network.unwrap().list.plugins.len(), 1);
        check(&[("1.conflist", r#"{"name":"n","plugins":[]}"#)], None, &["1.conflist: it names no plugins"]);
    }

    #[test]
    fn a_missing_directory_and_a_dangling_link_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let found = look(&dir.path().join("none"));
        assert!(found.missing && found.problems.is_empty());
        std::os::unix::fs::symlink("nowhere", dir.path().join("1.conflist")).unwrap();
        let found = look(dir.path());
        assert!(
            !found.missing && found.problems[0].starts_with("1.conflist: it cannot be read"),
            "{found:?}"
        );
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("0.conf"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(look(dir.path()).problems[0].contains("not a regular file"));
    }

    #[test]
    fn a_network_is_described_as_containerd_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        let text = GOOD.replace("NAME", "n");
        fs::write(dir.path().join("1.conflist"), &text).unwrap();
        let shown = look(dir.path()).network.unwrap().describe("eth0");
        assert_eq!(shown["IFName"], "eth0");
        assert_eq!(shown["Config"]["Source"], text);
        assert_eq!(shown["Config"]["CNIVersion"], "1.0.0");
        assert_eq!(shown["Config"]["Plugins"][0]["Network"]["type"], "bridge");
        assert_eq!(shown["Config"]["Plugins"][0]["Source"], r#"{"type":"bridge"}"#);
    }
}
