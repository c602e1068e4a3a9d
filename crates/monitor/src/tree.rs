//! Ending a process with everything that descends from it.
//!
//! Each process is stopped before its children are listed: a stopped parent neither forks nor reaps, so a listed child
//! keeps its pid and the walk comes to an end. Descendants whose parent had ended before belong to somebody else by then;
//! the end of their container takes them.

use std::collections::BTreeSet;
use std::fs;

const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;

/// Kills the tree below `root`, which must be a child of ours that was not waited for, or a descendant of one.
pub(crate) fn kill(root: i32) {
    let mut found = BTreeSet::new();
    let mut pending = vec![root];
    while let Some(pid) = pending.pop() {
        if found.insert(pid) {
            signal(pid, SIGSTOP);
            pending.extend(children(pid));
        }
    }
    found.into_iter().for_each(|pid| signal(pid, SIGKILL));
}

fn signal(pid: i32, signal: i32) {
    // One that has ended meanwhile needs none.
    sys::process::kill(pid, signal).ok();
}

fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn grandchildren_die_too() {
        let script = "sh -c 'sleep 1000 & sleep 1000' & sleep 1000";
        let mut shell = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        while children(pid).len() < 2 || children(pid).iter().all(|child| children(*child).len() < 2) {
            std::thread::yield_now();
        }
        kill(pid);
        shell.wait().unwrap();
        // Every process of the tree held the pipe; it ends with the last of them.
        assert_eq!(shell.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap(), 0);
    }
}
