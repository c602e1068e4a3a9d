//! A look at what a configuration directory means, and whether its programs are there, for people who look after a node.
//! Nothing is run and nothing is remembered.

use std::path::{Path, PathBuf};

use crate::discover::{self, Source};
use crate::plugin;
use crate::published;

/// What a directory of network configurations holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The network that pods would get.
    pub network: Option<SurveyedNetwork>,
    /// Files that were passed over, each with the reason.
    pub problems: Vec<String>,
    /// Whether there is no such directory.
    pub missing: bool,
}

/// The network that a directory means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SurveyedNetwork {
    /// Its name.
    pub name: String,
    /// The file it stands in.
    pub file: PathBuf,
    /// The plugins that it names, in order.
    pub plugins: Vec<String>,
    /// Those of them that are no programs in any of the plugin directories.
    pub missing: Vec<String>,
}

impl Survey {
    /// Why there is no network in `conf_dir`.
    #[must_use]
    pub fn why_none(&self, conf_dir: &Path) -> String {
        published::why_none(self.missing, &self.problems, conf_dir)
    }
}

/// Looks at `conf_dir` and for its plugins in `bin_dirs`.
#[must_use]
pub fn survey(conf_dir: &Path, bin_dirs: &[PathBuf]) -> Survey {
    let found = discover::look(conf_dir);
    let network = found.network.map(|source| look_for_plugins(&source, bin_dirs));
    Survey { network, problems: found.problems, missing: found.missing }
}

fn look_for_plugins(source: &Source, bin_dirs: &[PathBuf]) -> SurveyedNetwork {
    let plugins: Vec<String> = source.list.plugins.iter().map(|plugin| plugin.kind.clone()).collect();
    let missing = plugins.iter().filter(|plugin| plugin::find(plugin, bin_dirs).is_err()).cloned().collect();
    SurveyedNetwork { name: source.list.name.clone(), file: source.path.clone(), plugins, missing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn the_network_and_the_programs_it_lacks_are_named() {
        let bench = Bench::new();
        let none = survey(&bench.path("conf"), &[]);
        assert!(none.network.is_none() && !none.missing);
        assert!(none.why_none(&bench.path("conf")).starts_with("no valid network config found in "));
        assert!(survey(&bench.path("nowhere"), &[]).missing);
        bench.list("1.0.0", &[r#"{"type":"there"}"#, r#"{"type":"gone"}"#]);
        bench.good_plugin("there", "10.0.0.1");
        let network = survey(&bench.path("conf"), &[bench.path("bin")]).network.unwrap();
        assert_eq!((network.name.as_str(), network.plugins.len()), ("testnet", 2));
        assert_eq!(network.missing, ["gone"]);
    }
}
