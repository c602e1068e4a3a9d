//! A network configuration list: a network's name, the version it is written in, and its plugins in order.
//!
//! A list is valid by construction. What plugins are configured with is kept as JSON and passed on as it is; only the
//! few keys that the client itself acts upon are read.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::version::SpecVersion;

/// A network and the plugins that make it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetworkList {
    pub(crate) name: String,
    pub(crate) version: SpecVersion,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    /// More plugins may stand in files of their own, beside the list.
    pub(crate) load_plugins_beside: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plugin {
    /// Name of its program.
    pub(crate) kind: String,
    /// Runtime settings that it understands.
    capabilities: BTreeMap<String, bool>,
    /// Its whole configuration.
    pub(crate) conf: Map<String, Value>,
}

/// Why a text is no usable network configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("it cannot be read")]
    Read(#[from] std::io::Error),
    #[error("it is not valid JSON of a network configuration")]
    Json(#[from] serde_json::Error),
    #[error("it is larger than {0} bytes")]
    Large(u64),
    #[error("the network name {0:?} is not made of letters, digits, '_', '.' and '-'")]
    Name(String),
    #[error("the CNI version {0:?} is not supported")]
    Version(String),
    #[error("it names no plugins")]
    NoPlugins,
    #[error("a plugin has no type")]
    NoType,
    #[error("the plugin type {0:?} is not a file name")]
    Type(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenList {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    disable_check: Switch,
    #[serde(default, rename = "disableGC")]
    disable_gc: Switch,
    #[serde(default)]
    load_only_inlined_plugins: bool,
    #[serde(default)]
    plugins: Vec<Map<String, Value>>,
}

/// A switch, which older lists write as a text.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(from = "SwitchText")]
struct Switch(bool);

#[derive(Deserialize)]
#[serde(untagged)]
enum SwitchText {
    Bool(bool),
    Text(String),
}

impl From<SwitchText> for Switch {
    fn from(text: SwitchText) -> Self {
        match text {
            SwitchText::Bool(on) => Self(on),
            SwitchText::Text(text) => Self(text.eq_ignore_ascii_case("true")),
        }
    }
}

impl NetworkList {
    /// Reads a `.conflist`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ListError> {
        // By way of a map: a JSON array would otherwise pass for the fields in their order.
        let written: Map<String, Value> = serde_json::from_slice(bytes)?;
        Self::new(WrittenList::deserialize(Value::Object(written))?)
    }

    /// Reads a `.conf` or `.json`, which holds a single plugin: a list of one.
    pub(crate) fn parse_single(bytes: &[u8]) -> Result<Self, ListError> {
        let conf: Map<String, Value> = serde_json::from_slice(bytes)?;
        let text = |key: &str| conf.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self::new(WrittenList {
            cni_version: text("cniVersion"),
            cni_versions: Vec::new(),
            name: text("name"),
            disable_check: Switch(false),
            disable_gc: Switch(false),
            load_only_inlined_plugins: true,
            plugins: vec![conf],
        })
    }

    fn new(written: WrittenList) -> Result<Self, ListError> {
        let plugins: Vec<Plugin> = written.plugins.into_iter().map(Plugin::new).collect::<Result<_, _>>()?;
        if plugins.is_empty() && written.load_only_inlined_plugins {
            return Err(ListError::NoPlugins);
        }
        Ok(Self {
            version: newest(&written.cni_version, &written.cni_versions)?,
            name: checked_name(written.name)?,
            disable_check: written.disable_check.0,
            disable_gc: written.disable_gc.0,
            load_plugins_beside: !written.load_only_inlined_plugins,
            plugins,
        })
    }

    /// The list as JSON, from which [`NetworkList::parse`] makes the same list again. Plugins from files of their own
    /// are inlined, so it no longer depends on the configuration directory.
    pub(crate) fn to_value(&self) -> Value {
        let plugins: Vec<&Map<String, Value>> = self.plugins.iter().map(|plugin| &plugin.conf).collect();
        json!({
            "cniVersion": self.version.as_str(),
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": !self.load_plugins_beside,
            "plugins": plugins,
        })
    }
}

impl Plugin {
    pub(crate) fn new(conf: Map<String, Value>) -> Result<Self, ListError> {
        let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.is_empty() {
            return Err(ListError::NoType);
        }
        if kind.contains('/') || kind == "." || kind == ".." {
            return Err(ListError::Type(kind));
        }
        let capabilities = conf.get("capabilities").filter(|value| !value.is_null());
        let capabilities = capabilities.map(BTreeMap::deserialize).transpose()?.unwrap_or_default();
        Ok(Self { kind, capabilities, conf })
    }

    /// Whether the plugin wants to be told about `capability`.
    pub(crate) fn understands(&self, capability: &str) -> bool {
        self.capabilities.get(capability).copied().unwrap_or(false)
    }
}

/// The newest version that the list is written in and this client speaks.
fn newest(version: &str, versions: &[String]) -> Result<SpecVersion, ListError> {
    let offered = versions
        .iter()
        .map(String::as_str)
        .chain((!version.is_empty() || versions.is_empty()).then_some(version));
    offered.filter_map(SpecVersion::parse).max().ok_or_else(|| {
        let all: Vec<&str> = std::iter::once(version).chain(versions.iter().map(String::as_str)).collect();
        ListError::Version(all.join(", "))
    })
}

fn checked_name(name: String) -> Result<String, ListError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let good = first && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if good { Ok(name) } else { Err(ListError::Name(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(list: &NetworkList) -> Vec<&str> {
        list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect()
    }

    #[test]
    fn a_list_survives_being_written_and_read_again() {
        let text = r#"{"cniVersion":"0.4.0","name":"net.1","disableCheck":"true","disableGC":true,"extra":1,"plugins":[
            {"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/16"},"mtu":1400},
            {"type":"portmap","capabilities":{"portMappings":true,"dns":false}}]}"#;
        let list = NetworkList::parse(text.as_bytes()).unwrap();
        assert_eq!((list.name.as_str(), list.version), ("net.1", SpecVersion::V0_4_0));
        assert!(list.disable_check && list.disable_gc);
        assert_eq!(kinds(&list), ["bridge", "portmap"]);
        assert_eq!(list.plugins[0].conf["mtu"], 1400);
        assert!(list.plugins[1].understands("portMappings") && !list.plugins[1].understands("dns"));
        let again = NetworkList::parse(list.to_value().to_string().as_bytes()).unwrap();
        assert_eq!(again, list);
    }

    #[test]
    fn a_single_configuration_is_a_list_of_one() {
        let list =
            NetworkList::parse_single(br#"{"cniVersion":"0.3.1","name":"n","type":"ptp","ipMasq":true}"#)
                .unwrap();
        assert_eq!((kinds(&list), list.version), (vec!["ptp"], SpecVersion::V0_3_1));
        assert_eq!(list.plugins[0].conf["ipMasq"], true);
        assert!(matches!(NetworkList::parse_single(br#"{"name":"n","plugins":[]}"#), Err(ListError::NoType)));
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        let cases: &[(&str, &str)] = &[
            (r#""cniVersion":"1.0.0""#, "1.0.0"),
            (r#""cniVersions":["0.4.0","1.1.0","1.0.0"]"#, "1.1.0"),
            (r#""cniVersion":"0.3.1","cniVersions":["1.0.0","9.0.0"]"#, "1.0.0"),
            (r#""cniVersion":"9.0.0","cniVersions":["0.4.0"]"#, "0.4.0"),
            (r#""x":1"#, "0.1.0"),
        ];
        for (keys, expected) in cases {
            let text = format!(r#"{{{keys},"name":"n","plugins":[{{"type":"p"}}]}}"#);
            assert_eq!(NetworkList::parse(text.as_bytes()).unwrap().version.as_str(), *expected, "{keys}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_reason() {
        let cases: &[(&str, &str)] = &[
            ("", "not valid JSON"),
            ("[]", "not valid JSON"),
            (r#"{"name":"n","plugins":{}}"#, "not valid JSON"),
            (r#"{"name":"n","plugins":[],"loadOnlyInlinedPlugins":true}"#, "no plugins"),
            (r#"{"name":"n","plugins":[{}]}"#, "no type"),
            (r#"{"name":"n","plugins":[{"type":"../sh"}]}"#, "\"../sh\" is not a file name"),
            (r#"{"name":"n","plugins":[{"type":".."}]}"#, "is not a file name"),
            (r#"{"name":"","plugins":[{"type":"p"}]}"#, "network name \"\""),
            (r#"{"name":"a b","plugins":[{"type":"p"}]}"#, "network name \"a b\""),
            (r#"{"name":"-a","plugins":[{"type":"p"}]}"#, "network name"),
            (r#"{"name":"n","cniVersion":"1.9.0","plugins":[{"type":"p"}]}"#, "version \"1.9.0\""),
            (r#"{"name":"n","plugins":[{"type":"p","capabilities":{"dns":"yes"}}]}"#, "not valid JSON"),
        ];
        for (text, expected) in cases {
            let error = NetworkList::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            drop(NetworkList::parse(text.as_bytes()));
            drop(NetworkList::parse_single(text.as_bytes()));
        }
    }
}
