//! A daemon of the study's own: started on a folder, spoken to through `rlhfctl`, stopped at the end.
//!
//! In: a configuration, words of `rlhfctl`. Out: what they print, and rows of SQL. Nothing here reads
//! the state folder. May not enter: what is asked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rlhfd_protocol::control::Table;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a daemon may take to serve, and how often it is asked meanwhile.
const TRIES: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);

/// Rows of one question.
const PAGE: usize = 10_000;

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The folder with `rlhfd`, `rlhfctl` and `rlhfd-worker`.
    pub folder: PathBuf,
}

impl Programs {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join(name));
        command.env_remove("RLHFD_SOCKET").stdin(Stdio::null());
        command
    }

    /// Runs `rlhfd-worker` to its end.
    ///
    /// Errors: what it said.
    pub fn worker(&self, words: &[&str]) -> Result<()> {
        finished(&mut self.command("rlhfd-worker"), words).map(drop)
    }
}

/// A running daemon.
pub struct Daemon {
    programs: Programs,
    folder: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts one in `folder`, which gets `rlhfd.toml`, `state` and `daemon.log`, and waits until it serves.
    ///
    /// Errors: it ended, or does not answer.
    pub fn start(programs: &Programs, folder: &Path, config: &str) -> Result<Self> {
        let shown = folder.display();
        fs::create_dir_all(folder).with_context(|| format!("{shown} cannot be made"))?;
        let file = folder.join("rlhfd.toml");
        crate::models::write(&file, config)?;
        let log = File::options().create(true).append(true).open(folder.join("daemon.log"))?;
        let mut command = programs.command("rlhfd");
        command.arg("run").arg("--config").arg(&file);
        command.arg("--state").arg(folder.join("state")).arg("--socket").arg(socket(folder));
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("rlhfd cannot be started")?;
        let mut daemon = Self { programs: programs.clone(), folder: folder.to_owned(), child };
        for _ in 0..TRIES {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("rlhfd ended ({status}): see {shown}/daemon.log");
            }
            if daemon.ctl(&["status"]).is_ok() {
                return Ok(daemon);
            }
            thread::sleep(PAUSE);
        }
        bail!("rlhfd does not serve: see {shown}/daemon.log");
    }

    /// Runs `rlhfctl` with these words; gives what it printed.
    ///
    /// Errors: what it complained of.
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        let mut command = self.programs.command("rlhfctl");
        command.arg("--socket").arg(socket(&self.folder));
        finished(&mut command, words)
            .with_context(|| format!("the daemon's log is {}/daemon.log", self.folder.display()))
    }

    /// Waits until an iteration is done.
    ///
    /// Errors: it will not be.
    pub fn await_iteration(&self, iteration: u64) -> Result<()> {
        self.ctl(&["wait", "--iteration", &iteration.to_string()]).map(drop)
    }

    /// Waits until a training job is done.
    ///
    /// Errors: it failed.
    pub fn await_job(&self, job: &str) -> Result<()> {
        self.ctl(&["wait", "--job", job]).map(drop)
    }

    /// Queues prompts; `reserve` keeps all of them for evaluation.
    ///
    /// Errors: a bad line, or a full disk.
    pub fn add_prompts(&self, set: &str, texts: &[String], reserve: bool) -> Result<()> {
        let lines = texts.iter().map(|text| serde_json::json!({ "prompt": text }).to_string());
        let file = self.folder.join(format!("{set}.jsonl"));
        crate::models::write(&file, &(lines.collect::<Vec<_>>().join("\n") + "\n"))?;
        let file = file.to_string_lossy();
        // A share below 1 that takes every prompt: the hash that decides has 53 bits.
        let share = if reserve { "0.9999999999999" } else { "0" };
        // The key makes a repetition harmless: an interrupted study has sent these already.
        let words = ["prompts", "add", &file, "--set", set, "--reserve", share];
        self.ctl(&[&words[..], &["--client-key", set]].concat()).map(drop)
    }

    /// The rows of a statement.
    ///
    /// Errors: SQL's.
    pub fn rows(&self, statement: &str) -> Result<Vec<Vec<Value>>> {
        let text = self.ctl(&["--json", "sql", statement])?;
        let table: Table = serde_json::from_str(&text).context("rlhfctl sql printed no table")?;
        ensure!(!table.truncated, "there were more rows than the daemon gives at once");
        Ok(table.rows)
    }

    /// All rows of a statement that ends in an `AND` of its own and begins with an ascending id:
    /// asked for page by page.
    ///
    /// Errors: SQL's.
    pub fn pages(&self, statement: &str, id: &str) -> Result<Vec<Vec<Value>>> {
        let mut all: Vec<Vec<Value>> = Vec::new();
        let mut after = -1;
        loop {
            let page = format!("{statement} {id} > {after} ORDER BY {id} LIMIT {PAGE}");
            let rows = self.rows(&page)?;
            let Some(last) = rows.last() else { return Ok(all) };
            after = last.first().and_then(Value::as_i64).context("a page begins with its id")?;
            let full = rows.len() == PAGE;
            all.extend(rows);
            if !full {
                return Ok(all);
            }
        }
    }

    /// Ends it as an operator would.
    ///
    /// Errors: it ended badly.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("the daemon has no process id")?, Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "rlhfd ended with {status}: see {}", self.folder.display());
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Stopped already, as a rule; else something failed, and nothing may be left running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

fn finished(command: &mut Command, words: &[&str]) -> Result<String> {
    let output = command.args(words).output();
    let output = output.with_context(|| format!("{:?} cannot be run", command.get_program()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = told.lines().rev().take(6).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(anyhow!("{} failed: {}", words.first().unwrap_or(&""), last.join("\n")))
}
