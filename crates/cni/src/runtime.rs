//! Runtime settings: what a pod brings along that a plugin may ask for by declaring a capability.
//!
//! A plugin is told only what its list entry declares, and only what the pod has: a plugin that gets an empty setting
//! may do work for nothing.

use serde_json::{Map, Value, json};
use types::PortMapping;

use crate::list::Plugin;
use crate::pod::PodNetwork;

/// The settings of one pod, by capability.
#[derive(Debug, Clone, Default)]
pub(crate) struct RuntimeSettings(Map<String, Value>);

impl RuntimeSettings {
    pub(crate) fn of(pod: &PodNetwork) -> Self {
        let mut settings = Self::default();
        let ports: Vec<Value> =
            pod.port_mappings.iter().filter(|port| port.host_port > 0).map(port_mapping).collect();
        settings.set("portMappings", !ports.is_empty(), || json!(ports));
        settings.set("bandwidth", pod.bandwidth.is_some(), || json!(pod.bandwidth));
        settings.set("dns", !pod.dns.is_empty(), || json!(pod.dns));
        settings.set("cgroupPath", !pod.cgroup_parent.is_empty(), || json!(pod.cgroup_parent));
        let annotations = "io.kubernetes.cri.pod-annotations";
        settings.set(annotations, !pod.annotations.is_empty(), || json!(pod.annotations));
        settings
    }

    fn set(&mut self, capability: &str, present: bool, value: impl FnOnce() -> Value) {
        if present {
            self.0.insert(capability.to_owned(), value());
        }
    }

    /// What `plugin` is to be told; empty when it asked for nothing that the pod has.
    pub(crate) fn for_plugin(&self, plugin: &Plugin) -> Map<String, Value> {
        let wanted = self.0.iter().filter(|(capability, _)| plugin.understands(capability));
        wanted.map(|(capability, value)| (capability.clone(), value.clone())).collect()
    }
}

fn port_mapping(port: &PortMapping) -> Value {
    let mut mapping = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.as_str(),
    });
    if !port.host_ip.is_empty() {
        mapping["hostIP"] = json!(port.host_ip);
    }
    mapping
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bandwidth, testing};
    use types::Protocol;

    fn rich_pod() -> PodNetwork {
        let mut pod = testing::pod(1);
        let port = |host_port, host_ip: &str| PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port,
            host_ip: host_ip.to_owned(),
        };
        pod.port_mappings = vec![port(0, ""), port(5353, ""), port(5454, "127.0.0.1")];
        pod.bandwidth = Some(Bandwidth { ingress_rate: 1000, ingress_burst: 5, ..Bandwidth::default() });
        pod.dns.servers = vec!["10.96.0.10".to_owned()];
        pod.cgroup_parent = "/kubepods/pod1".to_owned();
        pod.annotations.insert("a".to_owned(), "b".to_owned());
        pod
    }

    fn told(pod: &PodNetwork, capabilities: Value) -> Value {
        let conf = json!({"type": "p", "capabilities": capabilities});
        let plugin = Plugin::new(conf.as_object().unwrap().clone()).unwrap();
        Value::Object(RuntimeSettings::of(pod).for_plugin(&plugin))
    }

    #[test]
    fn a_plugin_hears_only_what_it_declares() {
        let pod = rich_pod();
        assert_eq!(told(&pod, json!(null)), json!({}));
        assert_eq!(told(&pod, json!({"dns": false, "mac": true})), json!({}));
        assert_eq!(
            told(&pod, json!({"portMappings": true})),
            json!({"portMappings": [
                {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
                {"hostPort": 5454, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}]})
        );
        assert_eq!(
            told(
                &pod,
                json!({"bandwidth": true, "dns": true, "cgroupPath": true,
                "io.kubernetes.cri.pod-annotations": true})
            ),
            json!({"bandwidth": {"ingressRate": 1000, "ingressBurst": 5}, "cgroupPath": "/kubepods/pod1",
                "dns": {"servers": ["10.96.0.10"], "searches": [], "options": []},
                "io.kubernetes.cri.pod-annotations": {"a": "b"}})
        );
    }

    #[test]
    fn a_plain_pod_tells_nothing() {
        let all = json!({"portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true,
            "io.kubernetes.cri.pod-annotations": true});
        assert_eq!(told(&testing::pod(1), all), json!({}));
    }
}
