//! Values of flags that have units or parts.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_model::{Direction, rfc3339};

/// A `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountSpec {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// As [`duration`], or no time at all.
pub(crate) fn duration_or_none(text: &str) -> Result<Duration, String> {
    if matches!(text, "0" | "0s") { Ok(Duration::ZERO) } else { duration(text) }
}

/// A time such as `30s`, `1h30m`, `250ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time such as 30s, 5m, 1h30m or 250ms";
    let mut total = Duration::ZERO;
    let mut rest = text;
    if let Ok(seconds) = text.parse::<u64>() {
        total = Duration::from_secs(seconds);
        rest = "";
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86_400),
            _ => return Err(format!("{EXPECTED}; the unit {unit:?} is unknown")),
        };
        let part = u32::try_from(number).ok().and_then(|number| unit.checked_mul(number));
        total = part.and_then(|part| total.checked_add(part)).ok_or("the time is too long")?;
        rest = tail;
    }
    if total.is_zero() { Err("the time must be longer than zero".to_owned()) } else { Ok(total) }
}

/// A moment, as events write it: RFC 3339 in UTC, so that texts are in the order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Since(String);

impl Since {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// So long ago, or a moment in UTC: `10m`, `2026-11-26`, `2026-11-26T07:00:00Z`.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(Since(rfc3339(now.saturating_sub(ago))));
    }
    let moment = text.strip_suffix('Z').unwrap_or(text);
    let whole = format!("{moment}{}", "0000-00-00T00:00:00.".get(moment.len()..).unwrap_or_default());
    let fits = |(byte, like): (u8, u8)| if like == b'0' { byte.is_ascii_digit() } else { byte == like };
    let is_moment = whole.bytes().zip(*b"0000-00-00T00:00:00.000000000").all(fits);
    // A day, a minute, a second, or parts of one.
    if is_moment && matches!(moment.len(), 10 | 16 | 19 | 21..=29) {
        return Ok(Since(whole));
    }
    Err("expected a time such as 10m (ago), 2026-11-26 or 2026-11-26T07:00:00Z (in UTC)".to_owned())
}

/// Seconds since 1970 of a moment as events write it.
pub(crate) fn seconds_of(moment: &str) -> Option<u64> {
    cofferdam_model::since_1970(moment).map(|since| since.as_secs())
}

/// A size such as `512M` or `2G` in bytes; units are powers of 1024, and `K`, `KB` and `KiB` mean the same.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 512M or 2G";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(EXPECTED.to_owned()),
    };
    match number.checked_mul(1 << shift) {
        Some(0) => Err("the size must be more than zero".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("the size is too large".to_owned()),
    }
}

/// So much in each stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub size: u64,
    pub time: Duration,
}

/// A `--net-budget`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    pub bytes: u64,
    pub direction: Direction,
    pub targets: Option<String>,
}

/// Bytes in some time, such as `10M` (a second) or `125K/100ms`.
pub(crate) fn rate_of_bytes(text: &str) -> Result<Rate, String> {
    rate_with(text, size)
}

/// A number in some time, such as `100` (a second) or `10/100ms`.
pub(crate) fn rate(text: &str) -> Result<Rate, String> {
    let number = |text: &str| match text.parse::<u64>() {
        Ok(0) => Err("the number must be more than zero".to_owned()),
        Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
        Ok(_) | Err(_) => Err("expected a number, or a number per time such as 100/10s".to_owned()),
    };
    rate_with(text, number)
}

fn rate_with(text: &str, size: impl Fn(&str) -> Result<u64, String>) -> Result<Rate, String> {
    match text.split_once('/') {
        None => Ok(Rate { size: size(text)?, time: Duration::from_secs(1) }),
        Some((text, time)) => {
            // `10M/s`, as people write it.
            let time = if matches!(time, "s" | "m" | "h" | "d" | "ms") { format!("1{time}") } else { time.to_owned() };
            Ok(Rate { size: size(text)?, time: duration(&time)? })
        }
    }
}

/// `SIZE[:DIRECTION][@TARGET,…]`.
pub(crate) fn budget(text: &str) -> Result<Budget, String> {
    let (amount, targets) = match text.split_once('@') {
        Some((_, targets)) if targets.trim().is_empty() => {
            return Err("expected a target behind @, such as example.org or @pypi".to_owned());
        }
        Some((amount, targets)) => (amount, Some(targets.to_owned())),
        None => (text, None),
    };
    let (bytes, direction) = match amount.split_once(':') {
        None => (amount, Direction::Any),
        Some((bytes, "egress")) => (bytes, Direction::Egress),
        Some((bytes, "ingress")) => (bytes, Direction::Ingress),
        Some((bytes, "any")) => (bytes, Direction::Any),
        Some((_, other)) => return Err(format!("expected egress, ingress or any, not {other:?}")),
    };
    Ok(Budget { bytes: size(bytes)?, direction, targets })
}

/// A number of processors such as `2` or `0.5`.
pub(crate) fn cpus(text: &str) -> Result<f32, String> {
    const EXPECTED: &str = "expected a number of processors such as 2 or 0.5, at least 0.01";
    // Neither signs nor exponents nor `inf`: what is left of the grammar of floats is what people write.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match text.parse::<f32>() {
        // The kernel's smallest quota is 1 ms in a period of 100 ms; no machine has a million processors.
        Ok(number) if plain && (0.01..=1_000_000.0).contains(&number) => Ok(number),
        Ok(_) | Err(_) => Err(EXPECTED.to_owned()),
    }
}

/// Two ports: `8080:80`.
pub(crate) fn port_pair(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
    let pair = text.split_once(':').and_then(|(host, guest)| Some((port(host)?, port(guest)?)));
    pair.ok_or_else(|| "expected HOST:GUEST, two ports from 1 to 65535".to_owned())
}

/// `SRC:DST` with `:ro` or `:rw` (the default) behind.
pub(crate) fn mount(text: &str) -> Result<MountSpec, String> {
    const EXPECTED: &str = "expected SRC:DST or SRC:DST:ro, with DST an absolute path";
    let (text, read_only) = match (text.strip_suffix(":ro"), text.strip_suffix(":rw")) {
        (Some(rest), _) => (rest, true),
        (None, Some(rest)) => (rest, false),
        (None, None) => (text, false),
    };
    let (source, target) = text.rsplit_once(':').ok_or(EXPECTED)?;
    if source.is_empty() || !target.starts_with('/') {
        return Err(EXPECTED.to_owned());
    }
    Ok(MountSpec { source: source.into(), target: target.into(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, millis) in
            [("30", 30_000), ("30s", 30_000), ("1h30m", 5_400_000), ("250ms", 250), ("1m1s1ms", 61_001)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "s", "0", "0s", "5x", "1.5s", "-3", "99999999999999999999s", "4294967295d999999999999d", "5m3", " 5s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments() {
        for (text, written) in [
            ("2026-11-26", "2026-11-26T00:00:00."),
            ("2026-11-26T07:05", "2026-11-26T07:05:00."),
            ("2026-11-26T07:05:09Z", "2026-11-26T07:05:09."),
            ("2026-11-26T07:05:09.5Z", "2026-11-26T07:05:09.5"),
        ] {
            assert_eq!(since(text), Ok(Since(written.to_owned())), "{text}");
        }
        let hour_ago = since("1h").unwrap();
        let seconds = |moment: &str| seconds_of(moment).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!((3599..3700).contains(&(now - seconds(hour_ago.as_str()))));
        for text in ["", "yesterday", "2026-11-26 07:00", "2026-11-26T07", "2026-11-26T07:00:00+02:00", "07:00"] {
            assert!(since(text).is_err(), "{text}");
        }
        for at in [0, 951_782_399, 951_782_400, 1_767_225_599, 4_107_542_400] {
            assert_eq!(seconds_of(&rfc3339(Duration::from_secs(at))), Some(at));
        }
        assert_eq!((seconds_of("then"), seconds_of("1969-12-31T23:59:59Z")), (None, None));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("1", 1), ("4k", 4096), ("512M", 512 << 20), ("2GiB", 2 << 30), ("3gb", 3 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "0M", "M", "5X", "1.5G", "-1", "99999999999T", "5 M"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        let rate_of = |size, millis| Ok(Rate { size, time: Duration::from_millis(millis) });
        for (text, size, millis) in [
            ("125000", 125_000, 1000),
            ("10M", 10 << 20, 1000),
            ("10M/s", 10 << 20, 1000),
            ("125K/100ms", 125 << 10, 100),
            ("1G/1m", 1 << 30, 60_000),
        ] {
            assert_eq!(rate_of_bytes(text), rate_of(size, millis), "{text}");
        }
        assert_eq!(rate("100"), rate_of(100, 1000));
        assert_eq!(rate("7/10s"), rate_of(7, 10_000));
        for text in ["", "0", "1M/", "/1s", "1M/0", "1M/1x", "1Mbit", "1M/s/s", "-1"] {
            assert!(rate_of_bytes(text).is_err(), "{text}");
        }
        for text in ["", "0", "1K", "+1", "1/", "/1s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn budgets() {
        for (text, bytes, direction, targets) in [
            ("10M", 10 << 20, Direction::Any, None),
            ("1000:egress", 1000, Direction::Egress, None),
            ("1G:ingress@example.org", 1 << 30, Direction::Ingress, Some("example.org")),
            ("5@@pypi,[::1],*.example.org", 5, Direction::Any, Some("@pypi,[::1],*.example.org")),
        ] {
            let targets = targets.map(str::to_owned);
            assert_eq!(budget(text), Ok(Budget { bytes, direction, targets }), "{text}");
        }
        for text in ["", "0", "@example.org", "10M@", "10M:up", "10M:egress:x", "x@example.org"] {
            assert!(budget(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors() {
        for (text, number) in [("1", 1.0), ("0.5", 0.5), ("2.25", 2.25), ("0.01", 0.01)] {
            assert_eq!(cpus(text), Ok(number), "{text}");
        }
        for text in ["", "0", "0.001", "-1", "1e3", "inf", "nan", "99999999999", "1.2.3"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mounts() {
        let plain = |read_only| MountSpec { source: "/a:b".into(), target: "/c".into(), read_only };
        assert_eq!(mount("/a:b:/c"), Ok(plain(false)));
        assert_eq!(mount("/a:b:/c:ro"), Ok(plain(true)));
        assert_eq!(mount("/a:b:/c:rw"), Ok(plain(false)));
        for text in ["", "/a", "/a:", ":/a", "/a:b", "/a:ro"] {
            assert!(mount(text).is_err(), "{text}");
        }
    }
}
