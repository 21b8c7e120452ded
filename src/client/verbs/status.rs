//! `rlhfctl status`: what runs, how fast, how long still, and what it waits for.

use std::time::Duration;

use rlhfd_protocol::control::{IterationStatus, LeaseStatus, ScorerStatus, StageStatus, Status};

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::format::{count, counted, duration, table, time};
use crate::render;

/// Asks and prints, again and again with `watch`.
pub async fn run(daemon: &Daemon, watch: bool, json: bool) -> Result<(), ClientError> {
    loop {
        let status: Status = daemon.get("/v1/status").await?;
        match (watch, json) {
            (true, true) => render::json_line(&status)?,
            (false, true) => render::json(&status)?,
            (true, false) => render::screen(&page(&status))?,
            (false, false) => render::text(&page(&status))?,
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The whole page.
fn page(status: &Status) -> String {
    let mut page = head(status);
    if let Some(iteration) = &status.iteration {
        page.push_str(&format!(
            "\niteration {}, since {} UTC{}\n",
            iteration.iteration,
            time(iteration.started_ms),
            left(iteration.seconds_left)
        ));
        page.push_str(&stages(iteration));
    }
    if !status.jobs.is_empty() {
        page.push('\n');
        for job in &status.jobs {
            page.push_str(&format!("training job {}: {}\n", job.job, job.state));
        }
    }
    if !status.leases.is_empty() {
        page.push('\n');
        for lease in &status.leases {
            page.push_str(&format!("worker {}\n", worker(lease)));
        }
    }
    for (i, reason) in status.waits_for.iter().enumerate() {
        page.push_str(if i == 0 { "\nwaits for: " } else { "           " });
        page.push_str(&format!("{reason}\n"));
    }
    if let Some(pending) = &status.config_pending {
        page.push_str(&format!("\nconfiguration: {pending}\n"));
    }
    page
}

fn head(status: &Status) -> String {
    let mut text = match &status.run {
        None => "no run is open\n".to_owned(),
        Some(run) => {
            let of = match run.iterations_max {
                0 => String::new(),
                max => format!(" of {max}"),
            };
            let paused = run.paused_reason.as_ref().map_or_else(String::new, |reason| {
                let by = run.paused_by.as_deref().unwrap_or("the daemon");
                format!("paused by {by}: {reason}\n")
            });
            let best = run.best.as_ref().map_or_else(String::new, |best| format!(", best {best}"));
            let gate = run.gate.as_ref().map_or_else(String::new, |gate| format!("gate: {gate}\n"));
            format!(
                "run {}: {}{of} iterations done, head {}{best}\n{gate}{paused}",
                run.name, run.iterations_done, run.head
            )
        }
    };
    let prompts = &status.prompts;
    text.push_str(&format!(
        "prompts: {} fresh, {} kept for evaluation; an iteration takes {}\n",
        count(prompts.fresh),
        count(prompts.reserved),
        count(prompts.per_iteration)
    ));
    for device in &status.devices {
        let memory = match (device.memory_free_mib, device.memory_mib) {
            (Some(free), Some(all)) => format!(", {} of {} MiB free", count(free), count(all)),
            (None, Some(all)) => format!(", {} MiB", count(all)),
            _ => String::new(),
        };
        let hold = device.hold.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        text.push_str(&format!("device {}: {}{memory}{hold}\n", device.uuid, device.name));
    }
    text
}

fn stages(iteration: &IterationStatus) -> String {
    let mut rows = Vec::new();
    for stage in &iteration.stages {
        let told = |number: u64, what: &str| match number {
            0 => String::new(),
            number => format!("{number} {what}"),
        };
        let closed = stage.done + stage.set_aside;
        rows.push(vec![
            format!("  {}", stage.stage),
            bar(closed, units(stage)),
            format!("{closed}/{}", units(stage)),
            told(stage.running, "running"),
            told(stage.set_aside, "set aside"),
            if stage.seconds > 0.0 { duration(stage.seconds) } else { String::new() },
        ]);
        // Each scorer labels all prompts: what they have in common is the sum.
        for ScorerStatus { scorer, units, closed } in &stage.scorers {
            let share = format!("{closed}/{units}");
            let mut row = vec![format!("    {scorer}"), bar(*closed, *units), share];
            row.resize(rows[0].len(), String::new());
            rows.push(row);
        }
    }
    let headers = ["  stage", "", "units", "", "", "work"];
    table(&headers, &rows)
}

fn units(stage: &StageStatus) -> u64 {
    stage.open + stage.running + stage.done + stage.set_aside
}

fn bar(closed: u64, all: u64) -> String {
    const WIDTH: u64 = 20;
    if all == 0 {
        return " ".repeat(WIDTH as usize);
    }
    let full = closed * WIDTH / all;
    let (full, rest) = (full as usize, (WIDTH - full) as usize);
    format!("{}{}", "█".repeat(full), "░".repeat(rest))
}

/// One worker in one line: what it does, how far, how fast, how long still.
pub fn worker(lease: &LeaseStatus) -> String {
    let pid = lease.pid.map_or_else(|| "–".to_owned(), |pid| pid.to_string());
    let mut text = format!("{pid} on {}: {}", lease.devices.join(", "), lease.state);
    if let Some(unit) = &lease.unit {
        text.push_str(&format!(" {unit}"));
    }
    text + &measures(lease)
}

/// How far, how fast and how long still, as far as it is known.
pub fn measures(lease: &LeaseStatus) -> String {
    let mut text = String::new();
    if let (Some(step), Some(steps)) = (lease.step, lease.steps) {
        text.push_str(&format!(", step {step}/{steps}"));
    } else if lease.items > 0 {
        text.push_str(&format!(", {}/{}", lease.items_done, counted(lease.items, "item")));
    }
    if let Some(loss) = lease.loss {
        text.push_str(&format!(", loss {loss:.4}"));
    }
    if let Some(rate) = lease.tokens_per_s {
        text.push_str(&format!(", {} tokens/s", count(rate.max(0.0).round() as u64)));
    }
    text + &left(lease.seconds_left)
}

fn left(seconds: Option<f64>) -> String {
    seconds.map_or_else(String::new, |s| format!(", about {} left", duration(s)))
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::control::{PromptsStatus, RunStatus};

    use super::*;

    #[test]
    fn an_idle_daemon_says_what_it_waits_for() {
        let status = Status {
            run: Some(RunStatus {
                name: "main".to_owned(),
                head: "initial".to_owned(),
                iterations_max: 3,
                best: Some("initial".to_owned()),
                gate: Some("iteration 1 failed: win_rate 0.400 < 0.500 (initial)".to_owned()),
                ..RunStatus::default()
            }),
            prompts: PromptsStatus { fresh: 120, reserved: 16, per_iteration: 20_000 },
            waits_for: vec!["120 of 20,000 prompts; or `rlhfctl start`".to_owned()],
            ..Status::default()
        };
        assert_eq!(
            page(&status),
            "run main: 0 of 3 iterations done, head initial, best initial\n\
             gate: iteration 1 failed: win_rate 0.400 < 0.500 (initial)\n\
             prompts: 120 fresh, 16 kept for evaluation; an iteration takes 20,000\n\
             \nwaits for: 120 of 20,000 prompts; or `rlhfctl start`\n"
        );
    }

    #[test]
    fn a_worker_says_how_far_how_fast_and_how_long() {
        let lease = LeaseStatus {
            pid: Some(7),
            devices: vec!["cpu".to_owned()],
            state: "running".to_owned(),
            unit: Some("1/generate/0-64".to_owned()),
            items_done: 16,
            items: 64,
            tokens_per_s: Some(158.4),
            seconds_left: Some(95.0),
            ..LeaseStatus::default()
        };
        assert_eq!(
            worker(&lease),
            "7 on cpu: running 1/generate/0-64, 16/64 items, 158 tokens/s, about 1 min 35 s left"
        );
    }

    #[test]
    fn a_stage_shows_its_share_and_each_scorers() {
        let of =
            |scorer: &str, closed| ScorerStatus { scorer: scorer.to_owned(), units: 2, closed };
        let stage = StageStatus {
            stage: "label".to_owned(),
            open: 1,
            done: 3,
            scorers: vec![of("help", 2), of("watch", 1)],
            ..StageStatus::default()
        };
        let page = stages(&IterationStatus { stages: vec![stage], ..IterationStatus::default() });
        let shares: Vec<(&str, usize, bool)> = page
            .lines()
            .skip(1)
            .map(|line| {
                let bar = line.chars().filter(|c| *c == '█').count();
                (line.split_whitespace().next().unwrap_or_default(), bar, line.contains("3/4"))
            })
            .collect();
        assert_eq!(shares, [("label", 15, true), ("help", 20, false), ("watch", 10, false)]);
        assert_eq!(bar(0, 0).trim(), "");
    }
}
