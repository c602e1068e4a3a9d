//! RFC 3339 with nanoseconds, in UTC, without a calendar library: days to dates after the proleptic Gregorian calendar
//! with years that begin in March, which puts the leap day last.

use types::Timestamp;

/// The length of a formatted timestamp.
pub const TIMESTAMP_LEN: usize = "2026-01-31T12:00:00.123456789Z".len();

const NANOS: i64 = 1_000_000_000;
const DAY_SECS: i64 = 86_400;
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH_SHIFT: i64 = 719_468;
const DAYS_PER_ERA: i64 = 146_097;

/// The timestamp as log lines begin with it. All nine digits of the fraction stand there, so that lines sort as text.
#[must_use]
pub fn format_timestamp(time: Timestamp) -> [u8; TIMESTAMP_LEN] {
    let (seconds, nanos) = (time.0.div_euclid(NANOS), time.0.rem_euclid(NANOS));
    let (days, second) = (seconds.div_euclid(DAY_SECS), seconds.rem_euclid(DAY_SECS));
    let (year, month, day) = date_of(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let fields = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 9, nanos),
    ];
    for (at, width, value) in fields {
        put(&mut text, at, width, value);
    }
    text
}

fn put(text: &mut [u8], at: usize, width: usize, mut value: i64) {
    for place in text.iter_mut().skip(at).take(width).rev() {
        *place = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

fn date_of(days: i64) -> (i64, i64, i64) {
    let shifted = days + EPOCH_SHIFT;
    let (era, day_of_era) = (shifted.div_euclid(DAYS_PER_ERA), shifted.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    era * DAYS_PER_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - EPOCH_SHIFT
}

/// Reads a UTC timestamp with a fraction of up to nine digits. Offsets other than `Z` are not read: no writer of ours
/// makes them.
#[must_use]
pub fn parse_timestamp(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (date, clock) = text.split_once('T')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let valid =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !valid || fraction.len() > 9 {
        return None;
    }
    let nanos = digits(fraction)? * 10i64.pow(9 - u32::try_from(fraction.len()).ok()?);
    let seconds = days_of(year, month, day) * DAY_SECS + hour * 3600 + minute * 60 + second;
    Some(Timestamp(seconds.checked_mul(NANOS)?.checked_add(nanos)?))
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator).map(digits);
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

fn digits(text: &str) -> Option<i64> {
    let valid = !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    if valid { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(nanos: i64, text: &str) {
        assert_eq!(std::str::from_utf8(&format_timestamp(Timestamp(nanos))).unwrap(), text);
        assert_eq!(parse_timestamp(text.as_bytes()), Some(Timestamp(nanos)));
    }

    #[test]
    fn known_moments() {
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z");
        check(1_709_251_199_999_999_999, "2024-02-29T23:59:59.999999999Z");
        check(4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn shorter_fractions_are_read_and_nonsense_is_not() {
        assert_eq!(parse_timestamp(b"1970-01-01T00:00:01.5Z"), Some(Timestamp(1_500_000_000)));
        assert_eq!(parse_timestamp(b"1970-01-01T00:00:01Z"), Some(Timestamp(1_000_000_000)));
        for bad in [
            "",
            "Z",
            "1970-01-01",
            "1970-13-01T00:00:00Z",
            "1970-01-01T00:00:00.0000000000Z",
            "x-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_timestamp(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_survives_the_journey(nanos in 0i64..i64::MAX) {
            prop_assert_eq!(parse_timestamp(&format_timestamp(Timestamp(nanos))), Some(Timestamp(nanos)));
        }
    }
}
