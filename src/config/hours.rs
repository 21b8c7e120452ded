//! Hours of the day, as `"22:00-06:00"`: in UTC, for a service has no time zone of its own.
//!
//! In: a text. Out: [`Hours`]. May not enter: clocks.

const DAY_MINUTES: u32 = 24 * 60;

/// From a minute of each day to before another; over midnight where the second is the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    from_minute: u32,
    to_minute: u32,
}

impl Hours {
    /// Reads `HH:MM-HH:MM`, the two of which differ.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once('-')?;
        let hours = Self { from_minute: minute(from)?, to_minute: minute(to)? };
        (hours.from_minute != hours.to_minute).then_some(hours)
    }

    /// Whether a time, in milliseconds since the epoch, lies in them.
    #[must_use]
    pub fn hold(self, at_ms: i64) -> bool {
        let minutes = at_ms.div_euclid(60_000).rem_euclid(i64::from(DAY_MINUTES));
        let (from, to) = (i64::from(self.from_minute), i64::from(self.to_minute));
        if from < to { (from..to).contains(&minutes) } else { minutes >= from || minutes < to }
    }
}

impl std::fmt::Display for Hours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (from, to) = (self.from_minute, self.to_minute);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

fn minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str, below: u32| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|number| digits && *number < below)
    };
    Some(number(hour, 24)? * 60 + number(minute, 60)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64, minute: i64) -> i64 {
        // A day of 2026.
        (20_500 * 24 * 60 + hour * 60 + minute) * 60_000
    }

    #[test]
    fn hours_begin_with_their_first_minute_and_end_before_their_last() {
        let day = Hours::parse("08:30-17:00").unwrap();
        assert_eq!(day.to_string(), "08:30-17:00");
        assert!(!day.hold(at(8, 29)) && day.hold(at(8, 30)));
        assert!(day.hold(at(16, 59)) && !day.hold(at(17, 0)));
    }

    #[test]
    fn hours_may_go_over_midnight() {
        let night = Hours::parse("22:00-06:00").unwrap();
        for (hour, quiet) in [(21, false), (22, true), (0, true), (5, true), (6, false)] {
            assert_eq!(night.hold(at(hour, 0)), quiet, "{hour}");
        }
        assert!(night.hold(-1));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for wrong in
            ["22-06", "24:00-01:00", "1:00-2:00", "10:60-11:00", "08:00-08:00", "", "+8:00-09:00"]
        {
            assert_eq!(Hours::parse(wrong), None, "{wrong}");
        }
    }
}
