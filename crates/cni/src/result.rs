//! What a plugin's result says about the pod's interface, for every layout that results have had.
//!
//! Version 0.3.0 and later: `interfaces` and `ips`, where an address names its interface by index. Before: one `ip4`
//! and one `ip6`, both of the pod's interface.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::error::CniError;
use crate::network::Attachment;

#[derive(Debug, Deserialize)]
struct Result {
    #[serde(default, deserialize_with = "null_as_default")]
    interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "null_as_default")]
    ips: Vec<Ip>,
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    interface: Option<i64>,
    address: String,
}

#[derive(Debug, Deserialize)]
struct OldIp {
    ip: String,
}

fn null_as_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads the final result of the plugins of `network`, the last of which is `plugin`.
pub(crate) fn attachment(
    network: &str,
    plugin: &str,
    interface: &str,
    result: Value,
) -> std::result::Result<Attachment, CniError> {
    let read = Result::deserialize(&result);
    let read =
        read.map_err(|source| CniError::Result { plugin: plugin.to_owned(), command: "ADD", source })?;
    let ips = read.addresses(interface);
    if ips.is_empty() {
        return Err(CniError::NoAddress { network: network.to_owned(), interface: interface.to_owned() });
    }
    let mac = read.mac(interface);
    Ok(Attachment { network: network.to_owned(), interface: interface.to_owned(), ips, mac, result })
}

impl Result {
    fn addresses(&self, interface: &str) -> Vec<IpAddr> {
        let new = self.ips.iter().filter(|ip| self.is_of_pod(ip, interface)).map(|ip| ip.address.as_str());
        let old = [&self.ip4, &self.ip6].into_iter().flatten().map(|ip| ip.ip.as_str());
        new.chain(old).filter_map(address).collect()
    }

    /// An address without an interface is the pod's.
    fn is_of_pod(&self, ip: &Ip, interface: &str) -> bool {
        let Some(index) = ip.interface else { return true };
        let owner = usize::try_from(index).ok().and_then(|index| self.interfaces.get(index));
        owner.is_some_and(|owner| self.is_in_pod(owner) && owner.name == interface)
    }

    /// The host may have an interface of the same name; only plugins that name no sandbox at all leave it open.
    fn is_in_pod(&self, interface: &Interface) -> bool {
        !interface.sandbox.is_empty() || self.interfaces.iter().all(|other| other.sandbox.is_empty())
    }

    fn mac(&self, interface: &str) -> Option<String> {
        let mut own = self.interfaces.iter().filter(|other| self.is_in_pod(other) && other.name == interface);
        own.next().map(|own| own.mac.clone()).filter(|mac| !mac.is_empty())
    }
}

/// The address of `10.1.2.3/24` or `10.1.2.3`.
fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(result: Value, ips: &[&str], mac: Option<&str>) {
        let got = attachment("net", "bridge", "eth0", result.clone());
        match got {
            Ok(got) => {
                let texts: Vec<String> = got.ips.iter().map(ToString::to_string).collect();
                assert_eq!(texts, ips, "{result}");
                assert_eq!(got.mac.as_deref(), mac, "{result}");
                assert_eq!(got.result, result);
            }
            Err(error) => {
                assert!(ips.is_empty(), "{result}: {error}");
                assert_eq!(error.to_string(), r#"network "net" gave interface eth0 no address"#);
            }
        }
    }

    #[test]
    fn results_of_every_version_are_understood() {
        check(
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24"}, "ip6": {"ip": "fd00::2/64"}, "dns": {}}),
            &["10.1.0.2", "fd00::2"],
            None,
        );
        let interfaces = json!([{"name": "cni0", "mac": "aa"}, {"name": "veth1"}, {"name": "eth0", "mac": "0a:58", "sandbox": "/ns"}]);
        for version in ["0.3.1", "0.4.0"] {
            check(
                json!({"cniVersion": version, "interfaces": interfaces,
                    "ips": [{"version": "4", "interface": 2, "address": "10.1.0.2/24", "gateway": "10.1.0.1"}]}),
                &["10.1.0.2"],
                Some("0a:58"),
            );
        }
        for version in ["1.0.0", "1.1.0"] {
            check(
                json!({"cniVersion": version, "interfaces": interfaces, "routes": [{"dst": "0.0.0.0/0"}],
                    "ips": [{"interface": 2, "address": "fd00::2/64"}, {"interface": 2, "address": "10.1.0.2/24"}]}),
                &["fd00::2", "10.1.0.2"],
                Some("0a:58"),
            );
        }
    }

    #[test]
    fn only_addresses_of_the_pods_own_interface_count() {
        check(
            json!({"interfaces": [{"name": "eth0", "mac": "host"}, {"name": "eth0", "mac": "pod", "sandbox": "/ns"},
                    {"name": "net1", "sandbox": "/ns"}],
                "ips": [{"interface": 0, "address": "192.0.2.1/24"}, {"interface": 2, "address": "10.9.0.2/24"},
                    {"interface": 1, "address": "10.1.0.2/24"}, {"interface": 9, "address": "10.8.0.2/24"},
                    {"interface": -1, "address": "10.7.0.2/24"}]}),
            &["10.1.0.2"],
            Some("pod"),
        );
    }

    #[test]
    fn addresses_without_an_interface_are_the_pods() {
        check(json!({"interfaces": null, "ips": [{"address": "10.1.0.2/24"}]}), &["10.1.0.2"], None);
        check(
            json!({"interfaces": [{"name": "eth0", "mac": "m"}], "ips": [{"interface": 0, "address": "10.1.0.2"}]}),
            &["10.1.0.2"],
            Some("m"),
        );
    }

    #[test]
    fn a_result_without_an_address_is_a_failure() {
        check(json!({}), &[], None);
        check(json!({"ips": null}), &[], None);
        check(json!({"ips": [{"address": "not an address"}]}), &[], None);
        for garbage in [json!([]), json!("x"), json!({"ips": 3}), json!({"ips": [{}]})] {
            let error = attachment("net", "bridge", "eth0", garbage.clone()).unwrap_err();
            assert!(matches!(error, CniError::Result { .. }), "{garbage}: {error}");
        }
    }
}
