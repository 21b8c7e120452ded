//! `rlhfctl wait`: show progress until an iteration or a training job is done, or until the daemon has
//! nothing to do. It has no twin at the daemon's end: it asks for status, lists and events.
//!
//! On a terminal a line of progress moves; elsewhere a line is written where something changed, so
//! that a log stays readable. Events are shown as they happen. A daemon that is restarted meanwhile is
//! waited for.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rlhfd_protocol::control::{Event, Job, Jobs, Status, Table};
use serde_json::Value;

use crate::connect::Daemon;
use crate::errors::ClientError;
use crate::render;
use crate::verbs::status::measures;

/// How often the daemon is asked.
const POLL: Duration = Duration::from_millis(500);

/// How long a daemon that went away is waited for.
const GONE_MAX: Duration = Duration::from_secs(60);

/// How many polls in a row must find nothing to do: between the end of one thing and the start of the
/// next there is a moment in which nothing runs.
const IDLE_POLLS: u32 = 4;

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Nothing runs, and nothing will by itself.
    Idle,
    /// This iteration of the active run is done.
    Iteration(u64),
    /// This training job, as `kind/name`, is done.
    Job(String),
}

impl Goal {
    /// From the command line, where at most one of the two is given.
    pub fn new(iteration: Option<u64>, job: Option<String>) -> Self {
        match (iteration, job) {
            (Some(iteration), _) => Self::Iteration(iteration),
            (None, Some(job)) => Self::Job(job),
            (None, None) => Self::Idle,
        }
    }
}

/// Where the goal stands.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Not yet.
    Open,
    /// Reached; a sentence.
    Reached(String),
    /// It will not be reached by waiting: what happened, and what to do.
    InVain(String, String),
}

/// Waits.
pub async fn run(
    daemon: &Daemon,
    goal: &Goal,
    timeout_s: Option<u64>,
    json: bool,
) -> Result<(), ClientError> {
    let begin = Instant::now();
    let mut show = Show::new();
    let mut seen = None;
    let mut idle_polls = 0;
    let mut answered = Instant::now();
    loop {
        match look(daemon, goal, &mut seen, &mut show).await {
            Ok((status, outcome)) => {
                answered = Instant::now();
                show.progress(&status);
                idle_polls =
                    if *goal == Goal::Idle && is_idle(&status) { idle_polls + 1 } else { 0 };
                let outcome = if idle_polls >= IDLE_POLLS { idle(&status) } else { outcome };
                match outcome {
                    Outcome::Open => {}
                    Outcome::Reached(sentence) => {
                        show.end();
                        return if json { render::json(&status) } else { render::line(&sentence) };
                    }
                    Outcome::InVain(what, mend) => {
                        show.end();
                        return Err(ClientError::InVain { what, mend });
                    }
                }
            }
            Err(error) if error.may_retry() && answered.elapsed() < GONE_MAX => {
                show.line("the daemon does not answer; waiting for it");
            }
            Err(error) => {
                show.end();
                return Err(error);
            }
        }
        if timeout_s.is_some_and(|s| begin.elapsed() >= Duration::from_secs(s)) {
            show.end();
            return Err(ClientError::InVain {
                what: format!("{} s have passed", begin.elapsed().as_secs()),
                mend: "`rlhfctl status` shows how far it is".to_owned(),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn look(
    daemon: &Daemon,
    goal: &Goal,
    seen: &mut Option<i64>,
    show: &mut Show,
) -> Result<(Status, Outcome), ClientError> {
    let status: Status = daemon.get("/v1/status").await?;
    let since = *seen.get_or_insert(status.last_event);
    if status.last_event > since {
        let mut lines = daemon.lines(&format!("/v1/events?since={since}")).await?;
        while let Some(text) = lines.next().await? {
            if let Ok(event) = serde_json::from_str::<Event>(&text) {
                *seen = Some(event.id);
                show.event(&event);
            }
        }
    }
    let outcome = match goal {
        Goal::Idle => Outcome::Open,
        Goal::Iteration(n) => {
            let history: Table = daemon.get("/v1/iterations").await?;
            iteration_outcome(*n, &status, &history)
        }
        Goal::Job(job) => {
            let jobs: Jobs = daemon.get("/v1/training-jobs").await?;
            job_outcome(job, &status, &jobs)
        }
    };
    Ok((status, outcome))
}

fn is_idle(status: &Status) -> bool {
    let works = status.leases.iter().any(|lease| lease.unit.is_some());
    let paused = status.run.as_ref().is_some_and(|run| run.paused_reason.is_some());
    let nothing_open = status.iteration.is_none() && status.jobs.is_empty();
    !works && (paused || nothing_open && !status.waits_for.is_empty())
}

fn idle(status: &Status) -> Outcome {
    let paused = status.run.as_ref().and_then(|run| {
        let reason = run.paused_reason.as_ref()?;
        Some((run.paused_by.as_deref() == Some("daemon"), reason))
    });
    match paused {
        Some((true, reason)) => Outcome::InVain(
            format!("the run is paused: {reason}"),
            "mend the cause, then `rlhfctl resume`".to_owned(),
        ),
        Some((false, reason)) => Outcome::Reached(format!("the run is paused: {reason}")),
        None => Outcome::Reached(format!(
            "nothing runs; waits for: {}",
            status.waits_for.first().map_or("–", String::as_str)
        )),
    }
}

fn iteration_outcome(n: u64, status: &Status, history: &Table) -> Outcome {
    let run = status.run.as_ref().map_or("", |run| run.name.as_str());
    let cell = |row: &[Value], name: &str| {
        history.column(name).and_then(|i| row.get(i)).cloned().unwrap_or(Value::Null)
    };
    let row = history
        .rows
        .iter()
        .find(|row| cell(row, "run") == run && cell(row, "iteration").as_u64() == Some(n));
    let word = row.map(|row| cell(row, "status"));
    match word.as_ref().and_then(Value::as_str) {
        Some("done") => Outcome::Reached(format!("iteration {n} is done")),
        Some("cancelled") => Outcome::InVain(
            format!("iteration {n} was cancelled"),
            "`rlhfctl events` says by whom".to_owned(),
        ),
        _ => paused(status),
    }
}

fn job_outcome(wanted: &str, status: &Status, jobs: &Jobs) -> Outcome {
    let run = status.run.as_ref().map_or("", |run| run.name.as_str());
    let named = |kind: &str, name: &str| format!("{kind}/{name}") == wanted;
    // A name may be that of an earlier job too, which failed or was cancelled: the newest counts.
    let own = |job: &&Job| job.run == run && named(&job.kind, &job.name);
    let Some(job) = jobs.jobs.iter().rev().find(own) else {
        return Outcome::InVain(
            format!("run {run} has no training job {wanted}"),
            "`rlhfctl jobs` lists them".to_owned(),
        );
    };
    match job.status.as_str() {
        "done" => Outcome::Reached(format!("training job {wanted} is done")),
        "open" => paused(status),
        word => Outcome::InVain(
            format!("training job {wanted} has {word}: {}", job.reason.as_deref().unwrap_or("–")),
            "`rlhfctl events` says more".to_owned(),
        ),
    }
}

/// A run that the daemon paused goes nowhere until somebody looks.
fn paused(status: &Status) -> Outcome {
    match status.run.as_ref().map(|run| (&run.paused_by, &run.paused_reason)) {
        Some((by, Some(reason))) if by.as_deref() == Some("daemon") => Outcome::InVain(
            format!("the run is paused: {reason}"),
            "mend the cause, then `rlhfctl resume`".to_owned(),
        ),
        _ => Outcome::Open,
    }
}

/// Progress on standard error: a moving line on a terminal, else lines.
struct Show {
    bar: Option<ProgressBar>,
    last: String,
}

impl Show {
    fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            match ProgressStyle::with_template("{spinner} {wide_msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar, last: String::new() }
    }

    fn progress(&mut self, status: &Status) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}{}", place(status), speed(status))),
            // A log gets a line where units ended, not one for every look.
            None => self.line(&place(status)),
        }
    }

    fn event(&mut self, event: &Event) {
        let line = crate::verbs::event_line(event);
        match &self.bar {
            Some(bar) => bar.println(line),
            None => render::progress(&line),
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.to_owned());
        } else if self.last != line {
            render::progress(line);
            line.clone_into(&mut self.last);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Where the work stands: the first stage that is not done, or the job, or what is waited for.
fn place(status: &Status) -> String {
    if let Some(iteration) = &status.iteration {
        let open: Vec<String> = iteration
            .stages
            .iter()
            .filter(|stage| stage.open + stage.running > 0)
            .map(|stage| {
                let ended = stage.done + stage.set_aside;
                format!("{} {ended}/{}", stage.stage, ended + stage.open + stage.running)
            })
            .collect();
        return format!("iteration {}: {}", iteration.iteration, open.join(", "));
    }
    if let Some(job) = status.jobs.first() {
        return format!("training job {}: {}", job.job, job.state);
    }
    match status.waits_for.first() {
        Some(reason) => format!("waits for: {reason}"),
        None => "nothing runs yet".to_owned(),
    }
}

fn speed(status: &Status) -> String {
    status.leases.iter().find(|lease| lease.unit.is_some()).map_or_else(String::new, measures)
}

#[cfg(test)]
mod tests {
    use rlhfd_protocol::control::{IterationStatus, RunStatus, StageStatus};
    use serde_json::json;

    use super::*;

    fn status(paused_by: Option<&str>) -> Status {
        Status {
            run: Some(RunStatus {
                name: "main".to_owned(),
                paused_by: paused_by.map(str::to_owned),
                paused_reason: paused_by.map(|_| "the disk is full".to_owned()),
                ..RunStatus::default()
            }),
            ..Status::default()
        }
    }

    fn history(word: &str) -> Table {
        Table {
            columns: ["run", "iteration", "status"].map(str::to_owned).to_vec(),
            rows: vec![
                vec![json!("other"), json!(2), json!("done")],
                vec![json!("main"), json!(2), json!(word)],
            ],
            truncated: false,
        }
    }

    #[test]
    fn an_iteration_is_that_of_the_active_run() {
        let outcome = |word| iteration_outcome(2, &status(None), &history(word));
        assert_eq!(outcome("running"), Outcome::Open);
        assert_eq!(outcome("done"), Outcome::Reached("iteration 2 is done".to_owned()));
        assert!(matches!(outcome("cancelled"), Outcome::InVain(..)));
        assert_eq!(iteration_outcome(3, &status(None), &history("done")), Outcome::Open);
    }

    #[test]
    fn a_run_that_the_daemon_paused_ends_the_wait() {
        let outcome = |by| iteration_outcome(2, &status(by), &history("paused"));
        assert!(
            matches!(outcome(Some("daemon")), Outcome::InVain(what, _) if what.contains("disk"))
        );
        assert_eq!(outcome(Some("operator")), Outcome::Open);
    }

    #[test]
    fn a_failed_job_ends_the_wait_with_its_reason() {
        let job = |word: &str| Jobs {
            jobs: vec![Job {
                run: "main".to_owned(),
                kind: "reward".to_owned(),
                name: "demo".to_owned(),
                status: word.to_owned(),
                reason: Some("non-finite loss".to_owned()),
                checkpoint: None,
                examples: None,
                step: None,
                loss: None,
                held_out_accuracy: None,
                calibration_error: None,
                created_ms: 0,
                started_ms: None,
                ended_ms: None,
            }],
        };
        let outcome = |word| job_outcome("reward/demo", &status(None), &job(word));
        let mut again = job("failed");
        again.jobs.extend(job("done").jobs);
        let newest = job_outcome("reward/demo", &status(None), &again);
        assert!(matches!(newest, Outcome::Reached(_)), "the newest of its name counts");
        assert!(matches!(outcome("done"), Outcome::Reached(_)));
        assert_eq!(outcome("open"), Outcome::Open);
        assert!(
            matches!(outcome("failed"), Outcome::InVain(what, _) if what.contains("non-finite"))
        );
        assert!(matches!(
            job_outcome("reward/x", &status(None), &job("done")),
            Outcome::InVain(..)
        ));
    }

    #[test]
    fn idle_is_when_nothing_runs_and_something_is_waited_for() {
        let mut now = status(None);
        assert!(!is_idle(&now), "about to start something");
        now.waits_for = vec!["120 of 20,000 prompts".to_owned()];
        assert!(is_idle(&now));
        now.iteration = Some(IterationStatus {
            iteration: 1,
            stages: vec![
                StageStatus { stage: "prompts".to_owned(), done: 1, ..StageStatus::default() },
                StageStatus {
                    stage: "generate".to_owned(),
                    done: 2,
                    running: 1,
                    open: 5,
                    ..StageStatus::default()
                },
            ],
            ..IterationStatus::default()
        });
        assert!(!is_idle(&now));
        assert_eq!(place(&now), "iteration 1: generate 2/8");
    }
}
