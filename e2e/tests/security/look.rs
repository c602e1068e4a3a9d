//! Looking at a process from inside: what it prints about itself, as facts, and what is to be said of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::cases::Case;

/// Prints in sections all that a process can find out about itself.
pub(super) const LOOK: &str = r#"
echo '[status]'; grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/self/status
echo '[ids]'; cat /proc/self/uid_map /proc/self/gid_map
echo '[cgroup]'; cat /proc/self/cgroup
echo '[namespaces]'; for n in cgroup ipc mnt net pid user uts; do echo $n $(readlink /proc/self/ns/$n); done
echo '[mounts]'; cat /proc/self/mountinfo
echo '[devices]'
for d in null zero full random urandom ptmx kmsg mem fuse mine; do
  if [ ! -e /dev/$d ]; then echo $d absent
  elif (: </dev/$d) 2>/dev/null; then if (: >/dev/$d) 2>/dev/null; then echo $d opens; else echo $d reads; fi
  else echo $d shut; fi
done
echo '[paths]'
for p in /proc/kcore /proc/timer_list /sys/firmware /proc/sys/kernel/hostname /proc/sysrq-trigger / /etc/hostname /dev/shm /sys; do
  if [ ! -e $p ]; then echo $p absent; continue; fi
  k=-
  if [ -d $p ]; then (mkdir $p/.probe && rm -r $p/.probe) 2>/dev/null && k=w; else (: >>$p) 2>/dev/null && k=w; fi
  n=full; [ -d $p ] && [ -z "$(ls $p 2>/dev/null)" ] && n=empty; [ -c $p ] && n=null; echo $p $k $n
done
echo '[limits]'; grep -E '^Max (open files|core file)' /proc/self/limits | tr -s ' '; umask
cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes
echo '[where]'; pwd; id -u; id -g; id -G; hostname
echo '[label]'; cat /proc/self/attr/current 2>/dev/null || echo none; echo
echo '[environment]'; env
echo '[end]'
"#;

/// After the look the container stays until it is told to end.
pub(super) const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// What was seen: sections with their lines.
pub(super) type Seen = BTreeMap<String, Vec<String>>;

/// Bits of capability masks.
const DEFAULT: u64 = 0xa804_25fb;
const NET_BIND_SERVICE: u64 = 1 << 10;
const SYS_ADMIN: u64 = 1 << 21;

/// The mask that an expectation names.
fn mask(words: &str, host: u64) -> u64 {
    let mut mask = 0;
    let mut take = false;
    for word in words.split(' ') {
        let bits = match word {
            "+" | "-" => {
                take = word == "-";
                continue;
            }
            "none" => 0,
            "all" => host,
            "default" => DEFAULT & host,
            "bind" => NET_BIND_SERVICE,
            "admin" => SYS_ADMIN,
            other => panic!("what is {other:?}?"),
        };
        mask = if take { mask & !bits } else { mask | bits };
    }
    mask
}

/// What was printed, with what is another in each container made alike: names, numbers, and the order where it means nothing.
pub(super) fn parse(text: &str) -> Seen {
    let mut seen = Seen::new();
    let mut section = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let lines = seen.entry(section.clone()).or_default();
        match section.as_str() {
            "mounts" => lines.extend(mount_line(line)),
            "status" | "ids" | "limits" => {
                let words: Vec<&str> = line.split_whitespace().collect();
                lines.push(words.join(" ").replacen(':', "", 1));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    for name in ["mounts", "environment"] {
        let lines = seen.entry(name.to_owned()).or_default();
        lines.sort();
        lines.dedup();
    }
    seen
}

/// A mount as `place options`; all those of control groups as one. On v1 they lie in a tmpfs that runc leaves writable.
fn mount_line(line: &str) -> Option<String> {
    let fields: Vec<&str> = line.split(' ').collect();
    let (place, options) = (*fields.get(4)?, *fields.get(5)?);
    let above = "/sys/fs/cgroup";
    let place = if Path::new(place).starts_with(above) { above } else { place };
    if place == above && line.contains(" - tmpfs ") {
        return None;
    }
    if place == "/proc/timer_list" {
        // Only crun makes what hides a file read-only; that it is hidden is seen among the paths.
        return Some(format!("{place} hidden"));
    }
    let given: BTreeSet<&str> = options.split(',').collect();
    let known = ["ro", "rw", "nosuid", "nodev", "noexec"].into_iter().filter(|option| given.contains(option));
    Some(format!("{place} {}", known.collect::<Vec<_>>().join(",")))
}

/// What is missing of what was expected.
pub(super) fn missing(case: &Case, seen: &Seen, host: u64) -> Vec<String> {
    let there = |expected: &str| {
        let (section, line) = expected.split_once(": ").expect("section: line");
        let line =
            match line.split_once(' ').filter(|(name, _)| section == "status" && name.starts_with("Cap")) {
                Some((name, words)) => format!("{name} {:016x}", mask(words, host)),
                None => line.to_owned(),
            };
        let lines = seen.get(section).map(Vec::as_slice).unwrap_or_default();
        (!lines.contains(&line)).then(|| format!("{}: {section}: {line:?} is not in {lines:?}", case.name))
    };
    case.expect.iter().filter_map(|expected| there(expected)).collect()
}

/// What two processes see that ought to see the same.
pub(super) fn differences(what: &str, one: &Seen, other: &Seen, sections: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for section in sections {
        let of = |seen: &Seen| seen.get(*section).cloned().unwrap_or_default();
        let (ones, others) = (of(one), of(other));
        let only = |these: &[String], those: &[String]| {
            these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<_>>()
        };
        if ones != others {
            found.push(format!(
                "{what}: {section}: {:?} against {:?}",
                only(&ones, &others),
                only(&others, &ones)
            ));
        }
    }
    found
}

/// Everything but the control group, in which an exec has one of its own beneath the container's.
pub(super) const SAME_FOR_AN_EXEC: &[&str] =
    &["status", "ids", "namespaces", "mounts", "devices", "paths", "limits", "where", "label", "environment"];

/// Namespaces and control groups are others in each container.
pub(super) const SAME_FOR_EACH_RUNTIME: &[&str] =
    &["status", "ids", "mounts", "devices", "paths", "limits", "where", "label", "environment"];
