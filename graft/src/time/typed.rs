//! Moments as a person types them: an LSN, or a time as `date -Is` and most programs print it.

use std::str::FromStr;

use super::At;
use crate::ids::Lsn;

/// What was typed is neither an LSN nor a time. Whoever shows it shows what was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give an LSN like 42, or a time like 2026-11-22T09:30:00Z or 2026-11-22T10:30+01:00")]
pub struct NotAMoment;

impl FromStr for At {
    type Err = NotAMoment;
    fn from_str(text: &str) -> Result<At, NotAMoment> {
        match text.parse::<u64>() {
            Ok(lsn) => Ok(At::Lsn(Lsn(lsn))),
            Err(_) => time_ms(text).map(At::TimeMs).ok_or(NotAMoment),
        }
    }
}

/// `09` of so many digits, and nothing else.
fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// A time of day without its `+01:00`, and how many minutes that is ahead of UTC; 0 where there is none.
fn without_offset(time: &str) -> Option<(&str, i64)> {
    let Some(at) = time.find(['+', '-']) else { return Some((time, 0)) };
    let (hours, minutes) = time[at + 1..].split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    let ahead = hours * 60 + minutes;
    (hours < 24 && minutes < 60)
        .then_some((&time[..at], if time[at..].starts_with('+') { ahead } else { -ahead }))
}

/// `2026-11-22`, then perhaps `T` or a space and `09:30`, `:00`, `.123`, and `Z` or `+01:00`. What is finer
/// than a millisecond is cut off.
fn time_ms(text: &str) -> Option<i64> {
    let utc = text.strip_suffix(['Z', 'z']).or_else(|| text.strip_suffix(" UTC"));
    let text = utc.unwrap_or(text);
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, time),
        None => (text, "00:00"),
    };
    let (time, ahead) = if utc.is_some() { (time, 0) } else { without_offset(time)? };
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts_of_clock = clock.split(':');
    let (hour, minute) = (number(parts_of_clock.next()?, 2)?, number(parts_of_clock.next()?, 2)?);
    let second = parts_of_clock.next().map_or(Some(0), |second| number(second, 2))?;
    let ms = match fraction.len() {
        0 if !time.ends_with('.') => 0,
        digits @ 1..=3 => number(fraction, digits)? * 10i64.pow(3 - digits as u32),
        digits @ 4..=9 => number(fraction, digits)? / 10i64.pow(digits as u32 - 3),
        _ => return None,
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let fits = (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !fits || parts.next().is_some() || parts_of_clock.next().is_some() {
        return None;
    }
    let days = days_from_civil(year, month, day);
    Some((((days * 24 + hour) * 60 + minute - ahead) * 60 + second) * 1000 + ms)
}

/// Days since 1970-01-01, by Howard Hinnant's days-from-civil.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_lsns_or_utc_times() {
        for (text, at) in [
            ("42", At::Lsn(Lsn(42))),
            ("1970-01-01", At::TimeMs(0)),
            ("1970-01-01T00:00:00Z", At::TimeMs(0)),
            ("1970-01-01Z", At::TimeMs(0)),
            ("1970-01-01 UTC", At::TimeMs(0)),
            ("2000-02-29 00:00", At::TimeMs(951_782_400_000)),
            ("2026-11-22T03:04:05.678Z", At::TimeMs(1_795_316_645_678)),
            ("2026-11-22 03:04:05.678 UTC", At::TimeMs(1_795_316_645_678)),
            ("2026-11-22T03:04:05.6Z", At::TimeMs(1_795_316_645_600)),
            ("2100-03-01", At::TimeMs(4_107_542_400_000)),
            // What `date -Is`, Python's isoformat() and JavaScript's toISOString() print.
            ("2026-11-22T04:04:05+01:00", At::TimeMs(1_795_316_645_000)),
            ("2026-11-21T21:34:05-05:30", At::TimeMs(1_795_316_645_000)),
            ("2026-11-22T03:04:05.678901+00:00", At::TimeMs(1_795_316_645_678)),
            ("2026-11-22t03:04:05.678z", At::TimeMs(1_795_316_645_678)),
        ] {
            assert_eq!(text.parse(), Ok(at), "{text}");
        }
        for text in [
            "",
            "-1",
            "now",
            "2026-13-01",
            "2026-02-29",
            "2026-11-22T24:00",
            "2026-11-22T9:30",
            "2026-11-22T09:30:00.",
            "2026-11-22T09:30:00.1234567890",
            "2026-11-22T09:30:00.12 4",
            "2026-11-22T09:30:00:00",
            "2026-11-22-01",
            "99999999999999999999999",
            "2026-11-22T09:30+24:00",
            "2026-11-22T09:30+1:00",
            "2026-11-22T09:30+0100",
            "2026-11-22T09:30Z+01:00",
            "2026-11-22T+01:00",
            "é",
            "2026-11-22T09:30+é1:00",
        ] {
            assert!(text.parse::<At>().is_err(), "{text}");
        }
    }
}
