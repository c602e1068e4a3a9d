//! Some seventy configurations of pods and containers, each with everything in which its OCI spec differs from that of the plain one.
//!
//! The plain specs stand here in full. A spec is shown as facts, one in a line: `where = what`. Lists whose order means nothing
//! (capabilities, namespaces, devices) are shown by name; of a seccomp filter it is shown what becomes of a few system
//! calls. A case names each fact that is another, `- where` for those that are gone, and there must be no others.

use std::collections::{BTreeMap, BTreeSet};

use cri_api::v1;
use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::{ContainerPlace, ContainerRequest, NodeFacts, SandboxPlace, SandboxRequest, fixtures, identity};

/// What a case may change before it is translated.
pub(super) struct Setup {
    pub(super) container: v1::ContainerConfig,
    pub(super) pod: v1::PodSandboxConfig,
    pub(super) facts: NodeFacts,
    pub(super) image: ImageConfiguration,
    /// Changes what the daemon has prepared for the container.
    pub(super) place: fn(&mut ContainerPlace<'_>),
    /// Changes what the daemon has prepared for the sandbox.
    pub(super) sandbox_place: fn(&mut SandboxPlace),
}

/// A name, what is asked for, and what follows.
pub(super) type Case = (&'static str, fn(&mut Setup), &'static str);

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\nwww:x:34:\nlogs:x:4:web\nmail:x:8:other,web\n";

impl Setup {
    fn new() -> Self {
        Self {
            container: fixtures::container(),
            pod: fixtures::pod(),
            facts: fixtures::facts(),
            image: fixtures::image(),
            place: |_| {},
            sandbox_place: |_| {},
        }
    }

    pub(super) fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        fixtures::security(&mut self.container)
    }

    pub(super) fn resources(&mut self) -> &mut v1::LinuxContainerResources {
        fixtures::resources(&mut self.container)
    }

    pub(super) fn pod_security(&mut self) -> &mut v1::LinuxSandboxSecurityContext {
        fixtures::pod_security(&mut self.pod)
    }

    pub(super) fn pod_namespaces(&mut self) -> &mut v1::NamespaceOption {
        fixtures::pod_namespaces(&mut self.pod)
    }

    pub(super) fn namespaces(&mut self) -> &mut v1::NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    pub(super) fn capabilities(&mut self) -> &mut v1::Capability {
        self.security().capabilities.get_or_insert_default()
    }

    pub(super) fn mount(&mut self, container_path: &str, change: fn(&mut v1::Mount)) {
        let mut mount = fixtures::mount(container_path);
        change(&mut mount);
        self.container.mounts.push(mount);
    }

    pub(super) fn image_config(&mut self, change: fn(&mut oci_spec::image::Config)) {
        let mut config = self.image.config().clone().unwrap_or_default();
        change(&mut config);
        self.image.set_config(Some(config));
    }

    fn container_facts(self) -> BTreeMap<String, String> {
        let sandbox = SandboxRequest::parse(self.pod, String::new()).unwrap();
        let request = ContainerRequest::parse(self.container).unwrap();
        let mut place = fixtures::place(&request, &self.image);
        place.identity =
            identity::resolve(&request.identity(&self.image), Some(PASSWD), Some(GROUP)).unwrap();
        (self.place)(&mut place);
        let spec = crate::container_spec(&request, &sandbox, &self.facts, &place).unwrap();
        shown(serde_json::to_value(spec).unwrap())
    }

    fn sandbox_facts(self) -> BTreeMap<String, String> {
        let request = SandboxRequest::parse(self.pod, String::new()).unwrap();
        let mut place = fixtures::sandbox_place();
        (self.sandbox_place)(&mut place);
        shown(serde_json::to_value(crate::sandbox_spec(&request, &self.facts, &place).unwrap()).unwrap())
    }
}

/// The facts of a spec.
fn shown(mut spec: Value) -> BTreeMap<String, String> {
    let mounts: Vec<Value> = taken(&mut spec["mounts"]);
    let order: Vec<&str> = mounts.iter().map(|mount| text(&mount["destination"])).collect();
    let mut facts = BTreeMap::from([("mounts".to_owned(), order.join(" "))]);
    for mount in &mounts {
        let options = mount["options"].as_array().map(Vec::as_slice).unwrap_or_default();
        let options: Vec<&str> = options.iter().map(text).collect();
        let mut line = format!("{} {} {}", text(&mount["type"]), text(&mount["source"]), options.join(","));
        for ids in ["uidMappings", "gidMappings"].iter().filter(|ids| mount.get(**ids).is_some()) {
            line.push_str(&format!(" {ids}={}", mount[*ids]));
        }
        facts.insert(format!("mounts {}", text(&mount["destination"])), line);
    }
    by_name(&mut facts, "namespace", taken(&mut spec["linux"]["namespaces"]), "type", |it| {
        it.get("path").map_or("new".to_owned(), |path| text(path).to_owned())
    });
    by_name(&mut facts, "device", taken(&mut spec["linux"]["devices"]), "path", |it| {
        let mode = it["fileMode"].as_u64().unwrap();
        format!("{} {}:{} {mode:o} {}:{}", text(&it["type"]), it["major"], it["minor"], it["uid"], it["gid"])
    });
    by_name(&mut facts, "rlimit", taken(&mut spec["process"]["rlimits"]), "type", |it| {
        format!("{}:{}", it["soft"], it["hard"])
    });
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        let names = taken(&mut spec["process"]["capabilities"][set]);
        let mut names: Vec<&str> =
            names.iter().map(|name| text(name).strip_prefix("CAP_").unwrap()).collect();
        names.sort_unstable();
        facts.insert(format!("capabilities {set}"), names.join(" "));
    }
    let seccomp = spec["linux"]["seccomp"].take();
    if !seccomp.is_null() {
        facts.insert("seccomp".to_owned(), filter(&seccomp));
    }
    flatten(&mut facts, String::new(), &spec);
    facts
}

fn taken(list: &mut Value) -> Vec<Value> {
    match list.take() {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn by_name(
    facts: &mut BTreeMap<String, String>,
    what: &str,
    list: Vec<Value>,
    name: &str,
    show: fn(&Value) -> String,
) {
    for item in &list {
        let earlier = facts.insert(format!("{what} {}", text(&item[name])), show(item));
        assert_eq!(earlier, None, "{what} {} stands there twice", item[name]);
    }
}

/// Everything that is not shown in another way, by its path; what is empty or null is not there.
fn flatten(facts: &mut BTreeMap<String, String>, path: String, value: &Value) {
    let shown = match value {
        Value::Null => return,
        Value::Object(map) => {
            for (name, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(facts, format!("{path}{dot}{name}"), value);
            }
            return;
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    facts.insert(path, shown);
}

/// What a filter does in general, and what it does with some calls of which some need capabilities.
fn filter(filter: &Value) -> String {
    const CALLS: [&str; 6] = ["read", "chmod", "mount", "settimeofday", "reboot", "kexec_load"];
    let rules = filter["syscalls"].as_array().map(Vec::as_slice).unwrap_or_default();
    let with = |action: &str| {
        let named = |call: &str, rule: &Value| rule["names"].as_array().unwrap().contains(&json!(call));
        let ruled = |call: &&str| rules.iter().any(|rule| rule["action"] == action && named(call, rule));
        CALLS.into_iter().filter(ruled).collect::<Vec<_>>().join(" ")
    };
    let (open, shut) = (with("SCMP_ACT_ALLOW"), with("SCMP_ACT_ERRNO"));
    let (default, errno) = (text(&filter["defaultAction"]), &filter["defaultErrnoRet"]);
    format!("{default} {errno}; allows {open}; refuses {shut}")
}

fn lines(facts: &BTreeMap<String, String>) -> BTreeSet<String> {
    facts.iter().map(|(name, value)| format!("{name} = {value}").trim_end().to_owned()).collect()
}

fn written(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn differences(base: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> BTreeSet<String> {
    let changed: BTreeMap<String, String> = other
        .iter()
        .filter(|(name, value)| base.get(*name) != Some(*value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let gone = base.keys().filter(|name| !other.contains_key(*name)).map(|name| format!("- {name}"));
    gone.chain(lines(&changed)).collect()
}

/// What is wrong with the case, if anything: lines that are missing, and lines that nobody expected.
fn complaint(name: &str, found: &BTreeSet<String>, expected: &str) -> Option<String> {
    let expected = written(expected);
    let side = |sign: &str, one: &BTreeSet<String>, other: &BTreeSet<String>| {
        one.difference(other).map(|line| format!("\n  {sign} {line}")).collect::<String>()
    };
    let (missing, new) = (side("expected:", &expected, found), side("found:   ", found, &expected));
    (found != &expected).then(|| format!("{name}:{missing}{new}\n"))
}

fn check(
    base: &BTreeMap<String, String>,
    cases: &[&[Case]],
    translate: fn(Setup) -> BTreeMap<String, String>,
) -> usize {
    let mut names = BTreeSet::new();
    let mut complaints = String::new();
    for (name, change, expected) in cases.iter().copied().flatten() {
        assert!(names.insert(name), "{name} stands there twice");
        let mut setup = Setup::new();
        change(&mut setup);
        let found = differences(base, &translate(setup));
        complaints.extend(complaint(name, &found, expected));
    }
    assert!(complaints.is_empty(), "\n{complaints}");
    names.len()
}

#[test]
fn a_container_is_what_was_asked_for_and_nothing_else() {
    let base = Setup::new().container_facts();
    assert_eq!(complaint("the plain container", &lines(&base), super::cases::PLAIN), None);
    let count = check(&base, super::cases::CONTAINERS, Setup::container_facts);
    assert!(count >= 60, "{count} cases");
}

#[test]
fn a_sandbox_is_what_was_asked_for_and_nothing_else() {
    let base = Setup::new().sandbox_facts();
    assert_eq!(complaint("the plain sandbox", &lines(&base), super::cases::PLAIN_SANDBOX), None);
    check(&base, super::cases::SANDBOXES, Setup::sandbox_facts);
}
