//! Whose processes these are: a group's own and those of the groups in it.

use super::{Directory, Group, inside};
use crate::error::StatsError;

/// The longest list of processes of one group, in bytes.
const LONGEST: usize = 1 << 20;

/// All hierarchies list the same processes, so one is asked, with preference for one that counts them.
pub(super) fn of(group: &Group) -> Result<Vec<i32>, StatsError> {
    let counting = group.directories.iter().find(|directory| directory.has("pids.current"));
    let Some(directory) = counting.or(group.directories.first()) else { return Err(group.gone()) };
    let Some(mut pids) = listed(directory)? else { return Err(group.gone()) };
    for inner in inside::of(directory) {
        pids.extend(listed(&inner)?.unwrap_or_default());
    }
    Ok(pids)
}

fn listed(directory: &Directory) -> Result<Option<Vec<i32>>, StatsError> {
    let text = directory.text_within("cgroup.procs", LONGEST)?;
    Ok(text.map(|text| text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()))
}
