//! Huge pages: a counter for each size that this machine's processors have.

use std::sync::OnceLock;

use super::Group;
use super::v2::number;
use crate::account::HugepageAccount;
use crate::error::StatsError;

pub(super) fn read(group: &Group) -> Result<Vec<HugepageAccount>, StatsError> {
    let sizes = SIZES.get_or_init(sizes);
    Ok(sizes
        .iter()
        .map(|size| of_size(group, size))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// Sizes do not change while a kernel runs.
static SIZES: OnceLock<Vec<String>> = OnceLock::new();

fn of_size(group: &Group, size: &str) -> Result<Option<HugepageAccount>, StatsError> {
    let figure = |what: &str| {
        let text = group.text_anywhere(&format!("hugetlb.{size}.{what}"))?;
        Ok::<_, StatsError>(text.and_then(|text| text.trim().parse().ok()))
    };
    let usage = match number(group, &format!("hugetlb.{size}.current"))? {
        None => figure("usage_in_bytes")?,
        usage => usage,
    };
    let Some(usage) = usage else { return Ok(None) };
    Ok(Some(HugepageAccount { size: size.to_owned(), usage, peak: figure("max_usage_in_bytes")? }))
}

fn sizes() -> Vec<String> {
    let listed = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let names = listed.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut sizes: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()).collect();
    sizes.sort_unstable();
    sizes.into_iter().map(name).collect()
}

/// As the names of the controller's files have it.
fn name(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_in_names_of_files() {
        assert_eq!([64, 2048, 1 << 20, 16 << 20].map(name), ["64KB", "2MB", "1GB", "16GB"]);
    }
}
