//! `rlhfctl events`: what happened, and with `--follow` what happens.
//!
//! Following survives a daemon that is restarted: it goes on after the last event that was shown.

use std::time::Duration;

use rlhfd_protocol::control::Event;

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::{format, render};

/// How long a daemon that went away is waited for, in pauses of one second.
const PAUSES_MAX: u32 = 600;

/// Which events.
#[derive(Debug, Clone, Copy)]
pub struct Which {
    /// Stay and show what happens.
    pub follow: bool,
    /// Begin after this one.
    pub since: Option<i64>,
    /// Or with so many of the newest.
    pub last: u32,
}

/// Asks and prints, line by line.
pub async fn run(daemon: &Daemon, which: Which, json: bool) -> Result<(), ClientError> {
    let mut since = which.since;
    let mut pauses = 0;
    loop {
        let begin = match since {
            Some(id) => format!("since={id}"),
            None => format!("last={}", which.last),
        };
        let target = format!("/v1/events?{begin}&follow={}", which.follow);
        let ended = stream(daemon, &target, json, &mut since, &mut pauses).await;
        match ended {
            Err(error) if !(which.follow && error.may_retry()) => return Err(error),
            Err(error) if pauses >= PAUSES_MAX => return Err(error),
            Ok(()) if !which.follow => return Ok(()),
            _ => {
                if pauses == 0 {
                    render::warn("the daemon ended the stream; waiting for it to come back");
                }
                pauses += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn stream(
    daemon: &Daemon,
    target: &str,
    json: bool,
    since: &mut Option<i64>,
    pauses: &mut u32,
) -> Result<(), ClientError> {
    let mut lines = daemon.lines(target).await?;
    *pauses = 0;
    while let Some(text) = lines.next().await? {
        if text.is_empty() {
            continue; // A sign of life.
        }
        let event: Event = serde_json::from_str(&text).map_err(|e| ClientError::Talk {
            what: format!("an event could not be read ({e})"),
            place: target.to_owned(),
        })?;
        *since = Some(event.id);
        if json { render::line(&text)? } else { render::line(&sentence(&event))? }
    }
    Ok(())
}

/// One event as one line.
pub fn sentence(event: &Event) -> String {
    let mut text = format!("{}  {:<5}  ", format::time(event.at_ms), event.level);
    // Most messages of an iteration name it themselves.
    if let Some(iteration) = event.iteration.filter(|_| !event.message.starts_with("iteration ")) {
        text.push_str(&format!("iteration {iteration}: "));
    }
    text.extend(event.message.chars().map(|c| if c.is_control() { ' ' } else { c }));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_its_message_holds() {
        let event = Event {
            id: 7,
            at_ms: 0,
            level: "warn".to_owned(),
            kind: "unit_set_aside".to_owned(),
            run: None,
            iteration: Some(2),
            unit: None,
            uid: None,
            message: "a\nb".to_owned(),
            data: None,
        };
        assert_eq!(sentence(&event), "1970-01-01 00:00:00  warn   iteration 2: a b");
    }
}
