use super::*;

const YAML: &str = r#"
cdiVersion: "0.7.0"
kind: vendor.com/gpu
annotations: {note: x}
devices:
  - name: "0"
    containerEdits:
      env: [GPU=0]
      deviceNodes:
        - {path: /dev/gpu0, hostPath: /dev/host-gpu0, type: c, major: 195, minor: 3, fileMode: 0660, permissions: rw, uid: 1, gid: 2}
  - name: all
    containerEdits:
      mounts: [{hostPath: /lib/gpu, containerPath: /lib/gpu, options: [ro, bind]}]
      additionalGids: [44]
containerEdits:
  hooks:
    - {hookName: createContainer, path: /usr/bin/hook, args: [hook, ldcache], env: [A=b], timeout: 5}
"#;

#[test]
fn a_whole_file() {
    let file = SpecFile::from_yaml(YAML.as_bytes()).unwrap();
    assert_eq!(file.kind, "vendor.com/gpu");
    let node = &file.devices[0].container_edits.device_nodes[0];
    assert_eq!((node.major, node.minor, node.file_mode), (195, 3, Some(0o660)));
    assert_eq!(file.devices[1].container_edits.additional_gids, [44]);
    assert_eq!(file.container_edits.hooks[0].hook_name, HookName::CreateContainer);
}

#[test]
fn the_same_as_json_with_nulls() {
    let json = r#"{"cdiVersion":"0.3.0","kind":"v/c","containerEdits":null,
        "devices":[{"name":"d","containerEdits":{"env":["A=b"],"mounts":null,
        "deviceNodes":[{"path":"/dev/x","fileMode":432,"major":null}]}}]}"#;
    let file = SpecFile::from_json(json.as_bytes()).unwrap();
    assert_eq!(file.devices[0].container_edits.device_nodes[0].file_mode, Some(0o660));
}

/// A device with these edits in a file of this version, as YAML.
fn with(version: &str, edits: &str) -> Result<SpecFile, FileError> {
    let text =
        format!("cdiVersion: {version}\nkind: v/c\ndevices: [{{name: d, containerEdits: {{{edits}}}}}]\n");
    SpecFile::from_yaml(text.as_bytes())
}

#[test]
fn versions_bring_their_parts() {
    for (version, edits) in [
        ("0.4.0", "mounts: [{hostPath: /a, containerPath: /a, type: bind}]"),
        ("0.5.0", "deviceNodes: [{path: /dev/a, hostPath: /dev/b}]"),
        ("0.7.0", "additionalGids: [1]"),
        ("0.7.0", "intelRdt: {closID: a}"),
        ("1.1.0", "intelRdt: {schemata: [L3]}"),
        ("1.1.0", "netDevices: [{hostInterfaceName: ens1, name: net0}]"),
    ] {
        with(version, edits).unwrap();
        let before = VERSIONS.iter().rev().find(|known| **known < parse_version(version).unwrap()).unwrap();
        let before = format!("{}.{}.{}", before.0, before.1, before.2);
        let error = with(&before, edits).unwrap_err().to_string();
        assert!(error.contains(&format!("needs version {version}")), "{edits}: {error}");
    }
    for version in ["0.3.0", "v0.6.0", "0.8.0", "1.0.0", "1.1.0"] {
        with(version, "env: [A=b]").unwrap();
    }
    for version in ["0.2.0", "1.2.0", "2.0.0", "x", "1.0"] {
        assert!(with(version, "env: [A=b]").is_err(), "{version}");
    }
}

#[test]
fn what_breaks_a_rule_is_refused() {
    for edits in [
        "",
        "env: [NOVALUE]",
        "env: [=x]",
        "deviceNodes: [{path: dev/a}]",
        "deviceNodes: [{path: /dev/a, type: x}]",
        "deviceNodes: [{path: /dev/a, permissions: rwx}]",
        "deviceNodes: [{path: /dev/a, fileMode: rw}]",
        "deviceNodes: [{path: /dev/a, colour: red}]",
        "hooks: [{hookName: later, path: /h}]",
        "hooks: [{hookName: poststop, path: h}]",
        "mounts: [{hostPath: '', containerPath: /a}]",
        "mounts: [{hostPath: /a, containerPath: a}]",
        "intelRdt: {closID: ..}",
        "netDevices: [{hostInterfaceName: a, name: x}, {hostInterfaceName: b, name: x}]",
        "env: [A=b], env: [C=d]",
    ] {
        assert!(with("1.1.0", edits).is_err(), "{edits}");
    }
    let twice = "cdiVersion: 0.3.0\nkind: v/c\ndevices: [{name: d, containerEdits: {env: [A=b]}}, {name: d, containerEdits: {env: [A=b]}}]";
    assert!(SpecFile::from_yaml(twice.as_bytes()).unwrap_err().to_string().contains("stands twice"));
    for text in ["", "[]", "cdiVersion: 0.3.0\nkind: v/c", "cdiVersion: 0.3.0\nkind: nothing\ndevices: []"] {
        assert!(SpecFile::from_yaml(text.as_bytes()).is_err(), "{text:?}");
    }
}
