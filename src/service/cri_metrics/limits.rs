//! What a container was asked to be held to, with what was changed since.

use spec::NodeFacts;

use super::families as f;
use super::sheet::Sheet;
use crate::pod::view::ContainerView;

/// Whoever sets a limit by the unified map of cgroup v2 reserves memory so.
const RESERVATION: &str = "memory.min";

/// Limits on memory are 0 where there is none, which is their definition; of others nothing is said then.
pub(super) fn asked_for(sheet: &mut Sheet, container: &ContainerView, facts: &NodeFacts) {
    let asked = spec::resources::in_force(&container.request, facts).unwrap_or_default();
    let reservation = asked.unified.get(RESERVATION).and_then(|text| text.trim().parse().ok());
    sheet.add(&f::SPEC_CPU_PERIOD, said(asked.cpu_period));
    sheet.add(&f::SPEC_CPU_QUOTA, said(asked.cpu_quota));
    sheet.add(&f::SPEC_CPU_SHARES, said(asked.cpu_shares));
    sheet.add(&f::SPEC_MEMORY_LIMIT_BYTES, said(asked.memory_limit_in_bytes).or(Some(0)));
    sheet.add(&f::SPEC_MEMORY_SWAP_LIMIT_BYTES, said(asked.memory_swap_limit_in_bytes).or(Some(0)));
    sheet.add(&f::SPEC_MEMORY_RESERVATION_LIMIT_BYTES, reservation.or(Some(0)));
}

/// 0 is "not said", and below 0 is "without limit".
fn said(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_or_unlimited_is_no_limit() {
        assert_eq!([0, -1, 5].map(said), [None, None, Some(5)]);
    }
}
