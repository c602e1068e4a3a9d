use std::fs::{create_dir, create_dir_all, write};
use std::process::{Child, Command, Stdio};

use types::Kind;

use super::*;
use crate::mounts::tests::table;
use crate::{CgroupDriver, Cgroupfs, DEFAULT_ROOT, Endpoint, Systemd, SystemdBus};

const NAMES: [&str; 3] = ["cpuset", "memory", "name=systemd"];

fn mounts(root: &Path) -> Mounts {
    let table = table(root, &NAMES, Some("unified"));
    table.iter().for_each(|entry| create_dir_all(&entry.mount_point).unwrap());
    write(root.join("cpuset/cpuset.cpus"), "0-3\n").unwrap();
    write(root.join("cpuset/cpuset.mems"), "0\n").unwrap();
    Mounts::among(&table, root).unwrap()
}

fn systemd(root: &Path) -> Systemd {
    Systemd::new(mounts(root), SystemdBus::at(Endpoint::Peer(root.join("none")), Duration::ZERO))
}

#[test]
fn slices_that_are_missing_are_named_and_left_to_systemd() {
    let root = tempfile::tempdir().unwrap();
    let driver = systemd(root.path());
    let parent = Some("pods-burstable-one.slice");
    assert_eq!(
        driver.missing_parents(parent).unwrap(),
        ["pods.slice", "pods-burstable.slice", "pods-burstable-one.slice"]
    );
    driver.ensure_parent(parent).unwrap();
    assert_eq!(driver.missing_parents(parent).unwrap().len(), 3);
    std::fs::create_dir_all(root.path().join("unified/pods.slice/pods-burstable.slice")).unwrap();
    assert_eq!(driver.missing_parents(parent).unwrap(), ["pods-burstable-one.slice"]);
}

#[test]
fn parents_are_made_only_where_nobody_has_them() {
    let root = tempfile::tempdir().unwrap();
    let driver = Cgroupfs::new(mounts(root.path()));
    create_dir(root.path().join("memory/kubelets")).unwrap();
    assert_eq!(driver.missing_parents(Some("/kubelets/a/b")).unwrap(), ["/kubelets/a", "/kubelets/a/b"]);
    create_dir(root.path().join("cpuset/kubelets")).unwrap();
    ["name=systemd", "unified"].iter().for_each(|name| {
        create_dir(root.path().join(name.trim_start_matches("name=")).join("kubelets")).unwrap();
    });
    driver.ensure_parent(Some("/kubelets/a/b")).unwrap();
    driver.ensure_parent(Some("/kubelets/a/b")).unwrap();
    assert!(driver.missing_parents(Some("/kubelets/a/b")).unwrap().is_empty());
    assert_eq!(driver.directories("/kubelets/a/b").len(), 4);
    assert!(driver.missing_parents(Some("x.slice")).is_err());
}

#[test]
fn a_new_cpuset_gets_what_its_parent_has() {
    let root = tempfile::tempdir().unwrap();
    let driver = Cgroupfs::new(mounts(root.path()));
    driver.ensure_parent(Some("/a/b")).unwrap();
    assert_eq!(std::fs::read(root.path().join("cpuset/a/b/cpuset.cpus")).unwrap(), b"0-3\n");
    assert_eq!(std::fs::read(root.path().join("cpuset/a/b/cpuset.mems")).unwrap(), b"0\n");
}

#[tokio::test]
async fn removal_takes_children_and_is_repeatable() {
    let root = tempfile::tempdir().unwrap();
    let driver = Cgroupfs::new(mounts(root.path()));
    for place in ["memory/pod/c/nested/deeper", "unified/pod/c", "systemd/pod/other"] {
        create_dir_all(root.path().join(place)).unwrap();
    }
    assert_eq!(driver.directories("/pod/c").len(), 2);
    driver.remove("/pod/c").unwrap();
    driver.remove("/pod/c").unwrap();
    assert!(driver.directories("/pod/c").is_empty());
    assert!(!driver.remove_parent_if_empty("/pod").await.unwrap(), "somebody else's group is in it");
    std::fs::remove_dir(root.path().join("systemd/pod/other")).unwrap();
    create_dir(root.path().join("systemd/pod")).ok();
    assert!(driver.remove_parent_if_empty("/pod").await.unwrap());
    assert!(driver.remove_parent_if_empty("/pod").await.unwrap());
}

#[test]
fn what_cannot_be_removed_is_named_and_does_not_keep_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let driver = Cgroupfs::new(mounts(root.path()));
    for place in ["memory/pod/c", "unified/pod/c"] {
        create_dir_all(root.path().join(place)).unwrap();
    }
    write(root.path().join("memory/pod/c/file"), "rmdir refuses because of it").unwrap();
    let error = driver.remove("/pod/c").unwrap_err();
    assert!(error.to_string().ends_with("memory/pod/c"), "{error}");
    assert_eq!(driver.directories("/pod/c"), [root.path().join("memory/pod/c")]);
}

#[tokio::test]
async fn processes_are_those_of_all_hierarchies_and_children_once() {
    let root = tempfile::tempdir().unwrap();
    let driver = systemd(root.path());
    let path = driver.oci_path(Some("pods-one.slice"), "c").unwrap();
    let scope = "pods.slice/pods-one.slice/crimson-c.scope";
    for (hierarchy, pids) in [("memory", "7\n3\n"), ("unified", "3\n0\n")] {
        create_dir_all(root.path().join(hierarchy).join(scope).join("init.scope")).unwrap();
        write(root.path().join(hierarchy).join(scope).join("cgroup.procs"), pids).unwrap();
    }
    write(root.path().join("memory").join(scope).join("init.scope/cgroup.procs"), "11\n").unwrap();
    assert_eq!(driver.processes(&path).unwrap(), [3, 7, 11]);
    assert!(driver.processes("pods-two.slice:crimson:c").unwrap().is_empty());
    driver.ensure_parent(Some("pods-one.slice")).unwrap();
    assert!(driver.missing_parents(Some("pods-one.slice")).unwrap().is_empty());
    assert!(!driver.remove_parent_if_empty("pods-one.slice").await.unwrap());
}

#[test]
fn a_group_without_processes_is_killed_already() {
    let root = tempfile::tempdir().unwrap();
    let driver = Cgroupfs::new(mounts(root.path()));
    driver.kill_all("/no/such").unwrap();
    let error = driver.kill_all("/../x").unwrap_err();
    assert_eq!(error.kind(), types::ErrorKind::InvalidArgument);
}

/// A group of this host, removed with everything in it when the test ends, however it ends.
struct Real {
    driver: Cgroupfs,
    parent: String,
    path: String,
    children: Vec<Child>,
}

impl Real {
    fn new() -> Self {
        let driver = Cgroupfs::new(Mounts::under(Path::new(DEFAULT_ROOT)).unwrap());
        let parent = format!("/crimson-test-{:016x}", u64::from_ne_bytes(sys::random::bytes()));
        assert_eq!(driver.missing_parents(Some(&parent)).unwrap(), [parent.as_str()]);
        driver.ensure_parent(Some(&parent)).unwrap();
        let path = driver.oci_path(Some(&parent), "container").unwrap();
        driver.ensure_parent(Some(&path)).unwrap();
        Self { driver, parent, path, children: Vec::new() }
    }

    /// Runs a script in the group of every hierarchy; it announces itself by a line of output.
    fn run(&mut self, script: &str) {
        let joins: String = self
            .driver
            .directories(&self.path)
            .iter()
            .map(|directory| format!("echo $$ >{}/cgroup.procs && ", directory.display()))
            .collect();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{joins} {script}")).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        self.children.push(child);
        assert_eq!(line, "ready\n");
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        drop(self.driver.kill_all(&self.path));
        self.children.iter_mut().for_each(|child| drop(child.wait()));
        drop(self.driver.remove(&self.parent));
    }
}

#[tokio::test]
async fn on_this_host_a_group_lives_and_dies() {
    let mut group = Real::new();
    group.run("echo ready; sleep 600");
    let shell = i32::try_from(group.children[0].id()).unwrap();
    let pids = group.driver.processes(&group.path).unwrap();
    assert!(pids.contains(&shell), "{shell} in {pids:?}");
    assert!(!group.driver.remove_parent_if_empty(&group.parent).await.unwrap());
    group.driver.kill_all(&group.path).unwrap();
    assert!(group.driver.processes(&group.path).unwrap().is_empty());
    group.driver.remove(&group.path).unwrap();
    assert!(group.driver.remove_parent_if_empty(&group.parent).await.unwrap());
    assert!(group.driver.directories(&group.parent).is_empty());
}

#[test]
fn on_this_host_frozen_and_multiplying_processes_die() {
    let mut group = Real::new();
    group.run("echo ready; while true; do sh -c 'sleep 5 & sleep 5 & :' & sleep 0.01; done");
    group.run("echo ready; sleep 600");
    if let Some(freezer) = Mounts::under(Path::new(DEFAULT_ROOT)).unwrap().of_controller("freezer") {
        let group = freezer.path.join(group.path.trim_start_matches('/'));
        let nested = group.join("nested");
        create_dir(&nested).unwrap();
        write(group.join("freezer.state"), "FROZEN").unwrap();
    }
    group.driver.kill_all(&group.path).unwrap();
    group.driver.remove(&group.path).unwrap();
    assert!(group.driver.directories(&group.path).is_empty());
}
