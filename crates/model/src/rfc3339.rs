use std::time::Duration;

/// A time of the wall clock as RFC 3339 in UTC with microseconds, such as `2026-01-31T23:59:59.000001Z`.
#[must_use]
pub fn rfc3339(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let second = seconds % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since_1970.subsec_micros())
}

/// The time since 1970 of what [`rfc3339`] writes; its end may be missing from the second's fraction on.
#[must_use]
pub fn since_1970(moment: &str) -> Option<Duration> {
    let number = |from: usize, to: usize| moment.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // The usual days-from-civil arithmetic: years begin in March, so that the leap day is their last.
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let month_from_march = (month.checked_add(9)?) % 12;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month_from_march + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    let micros = number(20, 26).unwrap_or(0);
    Some(Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second) + Duration::from_micros(micros))
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
///
/// The calendar is counted from 0000-03-01, so that the leap day is the last of its year and months have a pattern of
/// 153 days in five (the usual civil-from-days arithmetic).
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let shifted = days + DAYS_TO_1970;
    let era = shifted / DAYS_PER_ERA;
    let day_of_era = shifted % DAYS_PER_ERA;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_known_times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
            assert_eq!(since_1970(text), Some(Duration::from_secs(seconds)));
        }
        let odd = Duration::from_micros(1_767_225_599_000_123);
        assert_eq!(since_1970(&rfc3339(odd)), Some(odd));
        assert_eq!((since_1970("then"), since_1970(""), since_1970("1969-12-31T23:59:59Z")), (None, None, None));
        assert_eq!(rfc3339(Duration::from_nanos(1_999)), "1970-01-01T00:00:00.000001Z");
    }
}
