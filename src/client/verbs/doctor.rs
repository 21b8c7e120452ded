//! `rlhfctl doctor`: what is wrong, and what to do about it.

use rlhfd_protocol::control::{Command, Doctor};

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::render;

/// Asks, prints, and fails where something is bad.
pub async fn run(daemon: &Daemon, json: bool) -> Result<(), ClientError> {
    let found: Doctor = daemon.post("/v1/doctor", &Command::default()).await?;
    if json {
        render::json(&found)?;
    } else {
        render::text(&for_people(&found))?;
    }
    match bad(&found) {
        0 => Ok(()),
        count => Err(ClientError::Unwell { count }),
    }
}

fn bad(found: &Doctor) -> usize {
    found.findings.iter().filter(|finding| finding.level == "bad").count()
}

/// A line a finding, its further lines below it.
fn for_people(found: &Doctor) -> String {
    let mut text = String::new();
    for finding in &found.findings {
        let word = match finding.level.as_str() {
            "well" => "ok   ",
            "warn" => "warn ",
            _ => "BAD  ",
        };
        let what = finding.what.replace('\n', &format!("\n{:21}", ""));
        text.push_str(&format!("{word} {:13}  {what}\n", finding.about));
    }
    text
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::control::Finding;

    use super::*;

    #[test]
    fn findings_stand_below_each_other_and_the_bad_ones_are_counted() {
        let finding = |level: &str, what: &str| Finding {
            level: level.into(),
            about: "disk".into(),
            what: what.into(),
        };
        let found = Doctor { findings: vec![finding("well", "a"), finding("bad", "b\nc")] };
        let indent = " ".repeat(21);
        assert_eq!(
            for_people(&found),
            format!("ok    disk           a\nBAD   disk           b\n{indent}c\n")
        );
        assert_eq!(bad(&found), 1);
    }
}
