//! The verbs over a whole list: which plugins run, in which order, with which environment and configuration.
//!
//! | verb | order | stops | previous result |
//! |---|---|---|---|
//! | ADD | first to last | at the first failure | of the plugin before |
//! | DEL | last to first | at the first failure | of ADD, since 0.4.0 |
//! | CHECK | first to last | at the first failure | of ADD |
//! | GC | first to last | never; failures are collected | none |
//! | STATUS | first to last | at the first failure | none |
//!
//! DEL stops at a failure on purpose: when the port mapper cannot remove its rules, the address they lead to must not
//! be given to another pod.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tracing::Instrument as _;
use tracing::field::Empty;
use types::{SandboxId, spans};

use crate::counts::Counts;
use crate::error::CniError;
use crate::list::{NetworkList, Plugin};
use crate::plugin::{self, Deadline, Run, Verb};
use crate::pod::PodNetwork;
use crate::runtime::RuntimeSettings;

/// Whom an ADD, DEL or CHECK is about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) sandbox: SandboxId,
    /// Empty when the namespace is gone.
    pub(crate) netns: String,
    pub(crate) interface: String,
    pub(crate) args: String,
    pub(crate) settings: RuntimeSettings,
}

impl Subject {
    pub(crate) fn new(pod: &PodNetwork, netns: String, interface: &str) -> Self {
        Self {
            sandbox: pod.sandbox.clone(),
            netns,
            interface: interface.to_owned(),
            args: arguments(pod),
            settings: RuntimeSettings::of(pod),
        }
    }

    fn env(&self) -> [(&'static str, String); 4] {
        [
            ("CNI_CONTAINERID", self.sandbox.to_string()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.interface.clone()),
            ("CNI_ARGS", self.args.clone()),
        ]
    }
}

/// `CNI_ARGS` as Multus and others read it.
fn arguments(pod: &PodNetwork) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.sandbox, pod.uid
    )
}

/// Refuses a pod whose names would break `CNI_ARGS` apart.
pub(crate) fn check_arguments(pod: &PodNetwork) -> Result<(), CniError> {
    for (what, text) in [("name", &pod.name), ("namespace", &pod.namespace), ("uid", &pod.uid)] {
        if let Some(bad) = text.chars().find(|c| matches!(c, ';' | '=') || c.is_control()) {
            return Err(CniError::InvalidPod { what, reason: format!("{text:?} contains {bad:?}") });
        }
    }
    Ok(())
}

/// An ADD that failed, and how many plugins had been started by then.
#[derive(Debug)]
pub(crate) struct AddFailure {
    pub(crate) started: usize,
    pub(crate) error: CniError,
}

/// Runs lists of plugins found in some directories.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) bin_dirs: Vec<PathBuf>,
    pub(crate) counts: Arc<Counts>,
}

impl Chain {
    /// Whether each plugin of the list has a program; asked before anything is done.
    pub(crate) fn check_programs(&self, list: &NetworkList) -> Result<(), CniError> {
        list.plugins.iter().try_for_each(|plugin| plugin::find(&plugin.kind, &self.bin_dirs).map(drop))
    }

    /// ADD; returns the last plugin's result.
    pub(crate) async fn add(
        &self,
        list: &NetworkList,
        subject: &Subject,
        deadline: Deadline,
    ) -> Result<Value, AddFailure> {
        let mut started = 0;
        let work = self.add_all(list, subject, &mut started, deadline);
        let added = self.counts.around(Verb::Add, work).await;
        added.map_err(|error| AddFailure { started, error })
    }

    async fn add_all(
        &self,
        list: &NetworkList,
        subject: &Subject,
        started: &mut usize,
        deadline: Deadline,
    ) -> Result<Value, CniError> {
        let mut result = None;
        for plugin in &list.plugins {
            *started += 1;
            result = Some(self.add_one(list, plugin, subject, result.as_ref(), deadline).await?);
        }
        Ok(result.unwrap_or_default())
    }

    async fn add_one(
        &self,
        list: &NetworkList,
        plugin: &Plugin,
        subject: &Subject,
        previous: Option<&Value>,
        deadline: Deadline,
    ) -> Result<Value, CniError> {
        let config = pod_config(list, plugin, subject, previous);
        let output = self.run(plugin, Verb::Add, Some(subject), &config, deadline).await?;
        let read: Result<Map<String, Value>, _> = serde_json::from_slice(&output);
        let mut result = read.map_err(|source| CniError::Result {
            plugin: plugin.kind.clone(),
            command: Verb::Add.as_str(),
            source,
        })?;
        // A few plugins forget it; the next one needs it to read the result.
        result.entry("cniVersion").or_insert_with(|| json!(list.version.as_str()));
        Ok(Value::Object(result))
    }

    /// DEL of the first `count` plugins.
    pub(crate) async fn del(
        &self,
        list: &NetworkList,
        count: usize,
        subject: &Subject,
        result: Option<&Value>,
        deadline: Deadline,
    ) -> Result<(), CniError> {
        let previous = result.filter(|_| list.version.has_check());
        let work = async {
            for plugin in list.plugins.iter().take(count).rev() {
                let config = pod_config(list, plugin, subject, previous);
                self.run(plugin, Verb::Del, Some(subject), &config, deadline).await?;
            }
            Ok(())
        };
        self.counts.around(Verb::Del, work).await
    }

    /// CHECK; success without running anything where the list has none.
    pub(crate) async fn check(
        &self,
        list: &NetworkList,
        subject: &Subject,
        result: &Value,
        deadline: Deadline,
    ) -> Result<(), CniError> {
        if !list.version.has_check() || list.disable_check {
            return Ok(());
        }
        let work = async {
            for plugin in &list.plugins {
                let config = pod_config(list, plugin, subject, Some(result));
                self.run(plugin, Verb::Check, Some(subject), &config, deadline).await?;
            }
            Ok(())
        };
        self.counts.around(Verb::Check, work).await
    }

    /// GC; success without running anything where the list has none.
    pub(crate) async fn gc(
        &self,
        list: &NetworkList,
        valid: &[SandboxId],
        interface: &str,
        deadline: Deadline,
    ) -> Result<(), CniError> {
        if !list.version.has_gc_and_status() || list.disable_gc {
            return Ok(());
        }
        let attachment = |id: &SandboxId| json!({"containerID": id, "ifname": interface});
        let attachments: Vec<Value> = valid.iter().map(attachment).collect();
        let work = async {
            let mut failures = Vec::new();
            for plugin in &list.plugins {
                let mut config = config(list, plugin);
                config.insert("cni.dev/valid-attachments".to_owned(), json!(attachments));
                // The name that the first plugins with GC looked for, after a slip in the specification.
                config.insert("cni.dev/attachments".to_owned(), json!(attachments));
                failures.extend(self.run(plugin, Verb::Gc, None, &config, deadline).await.err());
            }
            CniError::collect(failures)
        };
        self.counts.around(Verb::Gc, work).await
    }

    /// STATUS; success without running anything where the list has none.
    pub(crate) async fn status(&self, list: &NetworkList, deadline: Deadline) -> Result<(), CniError> {
        if !list.version.has_gc_and_status() {
            return Ok(());
        }
        let work = async {
            for plugin in &list.plugins {
                self.run(plugin, Verb::Status, None, &config(list, plugin), deadline).await?;
            }
            Ok(())
        };
        self.counts.around(Verb::Status, work).await
    }

    async fn run(
        &self,
        plugin: &Plugin,
        verb: Verb,
        subject: Option<&Subject>,
        config: &Map<String, Value>,
        deadline: Deadline,
    ) -> Result<Vec<u8>, CniError> {
        let program = plugin::find(&plugin.kind, &self.bin_dirs)?;
        let mut env = vec![("CNI_COMMAND", verb.as_str().to_owned()), ("CNI_PATH", self.search_path())];
        env.extend(subject.map(Subject::env).into_iter().flatten());
        let sandbox = subject.map(|subject| &subject.sandbox);
        let config = serde_json::to_vec(config).map_err(|source| CniError::Result {
            plugin: plugin.kind.clone(),
            command: verb.as_str(),
            source,
        })?;
        let run = Run { plugin: &plugin.kind, verb, sandbox, env: &env, config: &config, deadline };
        let span = tracing::info_span!(
            target: spans::TARGET, "plugin", otel.name = format!("CNI {} {}", verb.as_str(), plugin.kind), cni.command = verb.as_str(),
            cni.plugin = plugin.kind, pod.id = sandbox.map(SandboxId::as_str), otel.status_description = Empty,
        );
        let done = run.execute(&program).instrument(span.clone()).await;
        if let Some(error) = done.as_ref().err().filter(|_| !span.is_disabled()) {
            span.record(spans::FAILURE, types::error::chain(error));
        }
        done
    }

    /// Where plugins find the plugins that they delegate to.
    fn search_path(&self) -> String {
        self.bin_dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":")
    }
}

/// A plugin's configuration as the specification derives it from the list.
fn config(list: &NetworkList, plugin: &Plugin) -> Map<String, Value> {
    let mut config = plugin.conf.clone();
    config.insert("name".to_owned(), json!(list.name));
    config.insert("cniVersion".to_owned(), json!(list.version.as_str()));
    config
}

fn pod_config(
    list: &NetworkList,
    plugin: &Plugin,
    subject: &Subject,
    previous: Option<&Value>,
) -> Map<String, Value> {
    let mut config = config(list, plugin);
    let settings = subject.settings.for_plugin(plugin);
    if !settings.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(settings));
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn names_that_would_break_the_arguments_are_refused() {
        let mut pod = testing::pod(1);
        assert!(check_arguments(&pod).is_ok());
        for bad in ["a;K8S_POD_UID=x", "a=b", "a\n"] {
            pod.namespace = bad.to_owned();
            let error = check_arguments(&pod).unwrap_err();
            assert!(error.to_string().starts_with("the pod's namespace cannot be used"), "{error}");
        }
    }

    #[test]
    fn arguments_have_the_names_that_plugins_look_for() {
        let pod = testing::pod(1);
        let id = &pod.sandbox;
        let expected = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=uid-1"
        );
        assert_eq!(arguments(&pod), expected);
    }
}
