//! Kubernetes quantities (`10M`, `1.5Gi`, `250m`, `1e6`), as far as whole non-negative numbers of them are needed.

/// Decimal and binary suffixes with the power they stand for.
const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: &[(&str, u32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// The value of a quantity rounded up to a whole number; None when the text is no quantity, is negative or is out of
/// the range of numbers that any use of it has.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(split)?;
    let (mantissa, places) = mantissa(number)?;
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return round_up(mantissa.checked_mul(1_u128.checked_shl(*power)?)?, -places);
    }
    let exponent = DECIMAL.iter().find(|(name, _)| *name == suffix).map(|(_, power)| *power);
    round_up(mantissa, exponent.or_else(|| scientific(suffix))? - places)
}

/// Digits of `number` without the point, and how many of them stood behind it.
fn mantissa(number: &str) -> Option<(u128, i32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 24 {
        return None;
    }
    Some((format!("{whole}{fraction}").parse().ok()?, i32::try_from(fraction.len()).ok()?))
}

fn scientific(suffix: &str) -> Option<i32> {
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-30..=30).contains(&exponent).then_some(exponent)
}

/// `mantissa` × 10^`power`, rounded up.
fn round_up(mantissa: u128, power: i32) -> Option<u64> {
    let factor = 10_u128.checked_pow(power.unsigned_abs())?;
    let value = if power < 0 { mantissa.div_ceil(factor) } else { mantissa.checked_mul(factor)? };
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        let cases: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("10", Some(10)),
            ("+10", Some(10)),
            ("1k", Some(1_000)),
            ("10M", Some(10_000_000)),
            ("1.5G", Some(1_500_000_000)),
            ("1Ki", Some(1024)),
            ("1.5Ki", Some(1536)),
            ("0.1Ki", Some(103)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("1500m", Some(2)),
            ("1n", Some(1)),
            ("1e6", Some(1_000_000)),
            ("1E3", Some(1_000)),
            ("12e-1", Some(2)),
            (".5k", Some(500)),
            ("5.", Some(5)),
            ("", None),
            (".", None),
            ("-1", None),
            ("1K", None),
            ("1kb", None),
            ("1 M", None),
            ("M", None),
            ("1.2.3", None),
            ("1e", None),
            ("1e99", None),
            ("99999E", None),
            ("9999999999999999999999999", None),
            ("१", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), *expected, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            proptest::prop_assert!(parse(&text).is_none_or(|_| text.contains(|c: char| c.is_ascii_digit())));
        }

        #[test]
        fn whole_numbers_are_themselves(value: u64) {
            proptest::prop_assert_eq!(parse(&value.to_string()), Some(value));
        }
    }
}
