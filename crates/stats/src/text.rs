//! The forms in which the kernel writes figures.

use crate::usage::{Average, Pressure};

/// The number after `name` in lines of a name and a number.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A limit; `max` and what v1 writes for none, a number near the largest of pages, are none.
pub(crate) fn limit(text: &str) -> Option<u64> {
    const NONE_OF_V1: u64 = 1 << 62;
    text.trim().parse().ok().filter(|limit| *limit < NONE_OF_V1)
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`, which older kernels leave out for processors.
pub(crate) fn pressure(text: &str) -> Option<Pressure> {
    let of = |kind: &str| text.lines().find_map(|line| average(line.strip_prefix(kind)?));
    Some(Pressure { some: of("some ")?, full: of("full ").unwrap_or_default() })
}

fn average(fields: &str) -> Option<Average> {
    let value = |name: &str| fields.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let share = |name: &str| value(name)?.parse().ok();
    Some(Average {
        total: value("total")?.parse().ok()?,
        last_10: share("avg10")?,
        last_60: share("avg60")?,
        last_300: share("avg300")?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "inactive_file_x 1\nactive_file 2\ninactive_file 3\n";
        assert_eq!(field(text, "inactive_file"), Some(3));
        assert_eq!(field(text, "file"), None);
        assert_eq!(field("usage_usec -1\n", "usage_usec"), None);
    }

    #[test]
    fn no_limit_in_either_form() {
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("16777216\n"), Some(16 << 20));
    }

    #[test]
    fn pressure_with_and_without_full() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.01 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let found = pressure(text).unwrap();
        assert_eq!(found.some, Average { total: 77, last_10: 1.5, last_60: 0.25, last_300: 0.01 });
        assert_eq!(found.full.total, 5);
        let some = text.lines().next().unwrap();
        assert_eq!(pressure(some).unwrap().full, Average::default());
        assert_eq!(pressure(""), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "(?s).{0,200}") {
            field(&text, "x");
            limit(&text);
            pressure(&text);
        }
    }
}
