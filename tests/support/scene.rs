//! A place of its own for each test: models, configuration, worker, daemon and client.
//!
//! Comes in: what the test wants changed. Goes out: a daemon as a process, its database, and words
//! to wait by. Everything lies in one folder that goes when the scene goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;

use crate::binaries::{program, program_if_built, root};
use crate::fake::faults::fired_folder;
use crate::{dump, http, measure, models, wait};

/// What a test may change of the usual configuration: whole sections by name.
pub struct Settings {
    sections: Vec<(&'static str, String)>,
}

impl Default for Settings {
    /// Small units, two iterations, two arms, an evaluation, and quick timeouts.
    fn default() -> Self {
        let section = |name, text: &str| (name, text.to_owned());
        Self {
            sections: vec![
                section(
                    "run",
                    "policy = \"models/policy\"\nseed = 7\niterations_max = 2\n\
                     prompts_per_iteration = 12",
                ),
                section("store", "disk_free_min_mib = 0"),
                section("devices", "use = [\"cpu\"]"),
                section(
                    "scheduler",
                    "unit_tokens_cpu = 100\nheartbeat_ms = 50\nsilence_timeout_s = 2\n\
                     progress_timeout_s = 2\nstop_timeout_s = 5",
                ),
                section("worker", "program = \"worker\"\nthreads = 1\nnice = 0"),
                section("prompts", "prompt_tokens_max = 200"),
                section("generate", "max_new_tokens = 8\nbatch_prompts = 2"),
                section("[generate.arms]", "name = \"warm\"\ntemperature = 1.0\nn = 2"),
                section("[generate.arms]", "name = \"cool\"\ntemperature = 0.7\nn = 1"),
                section("label", "batch_responses = 4"),
                section("[label.scorers]", "name = \"reward\"\nmodel = \"models/reward\""),
                section(
                    "train",
                    "batch_pairs = 2\nmicro_batch_pairs = 1\nepochs = 1\nlearning_rate = 1e-3\n\
                     save_every_steps = 2",
                ),
                section(
                    "evaluate",
                    "temperatures = [1.0]\nn = 1\nmax_new_tokens = 8\nbootstrap_samples = 100",
                ),
            ],
        }
    }
}

impl Settings {
    /// Puts another text in the place of a section.
    pub fn with(mut self, name: &'static str, text: &str) -> Self {
        self.sections.retain(|(known, _)| *known != name);
        self.sections.push((name, text.to_owned()));
        self
    }

    /// Sets one key of a section, in the place of its former line.
    pub fn set(mut self, name: &'static str, key: &str, value: &str) -> Self {
        let found = self.sections.iter_mut().find(|(known, _)| *known == name);
        let (_, text) = found.unwrap_or_else(|| panic!("no section {name}"));
        let others: Vec<&str> = text
            .lines()
            .filter(|line| line.split('=').next().map(str::trim) != Some(key))
            .collect();
        *text = format!("{}\n{key} = {value}", others.join("\n"));
        self
    }

    /// The text of the configuration file.
    pub fn text(&self) -> String {
        self.sections.iter().map(|(name, text)| format!("[{name}]\n{text}\n\n")).collect()
    }
}

/// A test's own folder and all that lies in it.
pub struct Scene {
    folder: tempfile::TempDir,
    /// Variables of the daemon's environment.
    pub environment: Vec<(String, String)>,
}

impl Scene {
    /// A scene with the fake worker and fake models.
    pub fn fake(settings: &Settings) -> Self {
        let scene = Self::empty(settings);
        models::policy(&scene.path("models"), "policy");
        models::reward(&scene.path("models"), "reward");
        scene.worker_script(&scene.fake_worker_line());
        scene.plan("{}");
        scene
    }

    /// A scene with the real worker and the tiny golden models; `None`, said aloud, where the
    /// engine is not built.
    pub fn real(settings: &Settings) -> Option<Self> {
        if program_if_built("rlhfd-worker-torch").is_none() {
            let required = std::env::var_os("RLHFD_REQUIRE_TORCH").is_some();
            assert!(!required, "rlhfd-worker-torch is not built");
            eprintln!("skipped: rlhfd-worker-torch is not built");
            return None;
        }
        let scene = Self::empty(settings);
        let golden = root().join("tests/golden/models");
        models::copy(&golden.join("tiny-tied"), &scene.path("models/policy"));
        models::copy(&golden.join("tiny-reward"), &scene.path("models/reward"));
        scene.worker_script(&scene.real_worker_line());
        Some(scene)
    }

    /// How the fake worker is started.
    pub fn fake_worker_line(&self) -> String {
        let (plan, fake) = (self.path("plan.json"), program("fake-worker"));
        format!("FAKE_WORKER_PLAN='{}' exec '{}' \"$@\"", plan.display(), fake.display())
    }

    /// How the real worker is started.
    pub fn real_worker_line(&self) -> String {
        let (front, libtorch) = (program("rlhfd-worker"), root().join("libtorch"));
        format!("RLHFD_LIBTORCH='{}' exec '{}' \"$@\"", libtorch.display(), front.display())
    }

    /// A scene with a configuration and nothing else.
    pub fn empty(settings: &Settings) -> Self {
        let folder = tempfile::Builder::new().prefix("rlhfd-").tempdir().expect("a folder");
        let scene = Self { folder, environment: Vec::new() };
        scene.configure(settings);
        fs::create_dir_all(scene.path("models")).expect("a folder");
        scene
    }

    /// What `[worker] program` runs.
    pub fn worker_script(&self, line: &str) {
        let script = self.path("worker");
        fs::write(&script, format!("#!/bin/sh\n{line}\n")).expect("the worker's script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// A path below the scene's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// The database by the link that users read.
    pub fn database(&self) -> PathBuf {
        self.state().join("rlhfd.db")
    }

    pub fn configure(&self, settings: &Settings) {
        fs::write(self.path("rlhfd.toml"), settings.text()).expect("the configuration");
    }

    /// Writes the fake worker's plan; earlier firings are forgotten.
    pub fn plan(&self, text: &str) {
        let plan = self.path("plan.json");
        fs::write(&plan, text).expect("the plan");
        let _ = fs::remove_dir_all(fired_folder(&plan));
    }

    /// Waits until a worker holds at the fault `name`, and gives the worker's process id.
    pub fn held(&self, name: &str) -> i32 {
        let file = fired_folder(&self.path("plan.json")).join(format!("{name}.held"));
        let ask = || fs::read_to_string(&file).ok().and_then(|text| text.parse().ok());
        wait::until(&format!("a worker to hold at {name}"), ask, || self.told())
    }

    /// Lets the worker that holds go on.
    pub fn release(&self, name: &str) {
        let file = fired_folder(&self.path("plan.json")).join(format!("{name}.release"));
        fs::write(file, "").expect("the word to go on");
    }

    /// A file of prompts, one JSON line each, none equal to another.
    pub fn prompts(&self, file: &str, from: usize, to: usize) -> PathBuf {
        let line = |n| format!("{{\"prompt\": \"say {n}\"}}\n");
        self.write(file, &(from..to).map(line).collect::<String>())
    }

    pub fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.path(file);
        fs::write(&path, text).expect("a file of the scene");
        path
    }

    /// `rlhfd` with these words and this scene's places.
    pub fn rlhfd(&self, words: &[&str]) -> Command {
        self.rlhfd_at(words, &self.socket())
    }

    /// As [`Self::rlhfd`], at another socket.
    pub fn rlhfd_at(&self, words: &[&str], socket: &Path) -> Command {
        let mut command = Command::new(program("rlhfd"));
        command.args(words).arg("--config").arg(self.path("rlhfd.toml"));
        command.arg("--state").arg(self.state()).arg("--socket").arg(socket);
        command.env_remove("RLHFD_SOCKET").env_remove("NOTIFY_SOCKET");
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&self) -> Daemon<'_> {
        self.answering(self.start_unasked())
    }

    /// As [`Self::start`], with the daemon's command line as last arguments of another.
    pub fn start_by(&self, mut command: Command) -> Daemon<'_> {
        let daemon = self.rlhfd(&["run"]);
        command.arg(daemon.get_program()).args(daemon.get_args());
        command.env_remove("RLHFD_SOCKET").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        self.answering(self.spawn(command))
    }

    /// As [`Self::start_by`], with a copy of the program, for a user who may not go where it lies.
    pub fn start_copy(&self, copy: &Path, mut command: Command) -> Daemon<'_> {
        let daemon = self.rlhfd(&["run"]);
        command.arg(copy).args(daemon.get_args());
        command.env_remove("RLHFD_SOCKET").stdin(Stdio::null());
        self.answering(self.spawn(command))
    }

    fn answering<'a>(&'a self, mut daemon: Daemon<'a>) -> Daemon<'a> {
        let ask = || {
            let ended = daemon.child.try_wait().expect("a child");
            assert!(ended.is_none(), "the daemon ended: {ended:?}\n{}", self.log());
            http::open(&self.socket()).ok()?;
            // It serves before it has opened the run, or knows why it cannot.
            let status = self.status();
            let waits = status["waits_for"].as_array().is_some_and(|waits| !waits.is_empty());
            (waits || !status["run"].is_null()).then_some(())
        };
        wait::until("the daemon to answer", ask, || self.told());
        daemon
    }

    /// Starts the daemon without waiting for anything.
    pub fn start_unasked(&self) -> Daemon<'_> {
        self.spawn(self.rlhfd(&["run"]))
    }

    fn spawn(&self, mut command: Command) -> Daemon<'_> {
        let log = fs::File::options().create(true).append(true).open(self.path("daemon.log"));
        let log = log.expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        Daemon { child: command.spawn().expect("rlhfd"), scene: self }
    }

    /// Runs `rlhfctl` on this scene's socket.
    pub fn ctl(&self, words: &[&str]) -> Output {
        let mut command = Command::new(program("rlhfctl"));
        command.arg("--socket").arg(self.socket()).args(words);
        command.stdin(Stdio::null()).output().expect("rlhfctl")
    }

    /// As [`Self::ctl`], where success is expected; gives stdout.
    pub fn ctl_ok(&self, words: &[&str]) -> String {
        let output = self.ctl(words);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "rlhfctl {words:?}: {out}{err}\n{}", self.told());
        out
    }

    /// Queues prompts `from..to` as the set `name`.
    pub fn add_prompts(&self, name: &str, from: usize, to: usize, reserve: &str) {
        let file = self.prompts(&format!("{name}-{from}.jsonl"), from, to);
        let file = file.to_string_lossy().into_owned();
        self.ctl_ok(&["prompts", "add", &file, "--set", name, "--reserve", reserve]);
    }

    pub fn status(&self) -> Value {
        http::get(&self.socket(), "/v1/status")
    }

    /// One number by SQL.
    pub fn number(&self, sql: &str) -> i64 {
        dump::number(&self.database(), sql)
    }

    /// Waits until a number by SQL is at least `wanted`.
    pub fn wait_number(&self, what: &str, sql: &str, wanted: i64) {
        wait::until(what, || (self.number(sql) >= wanted).then_some(()), || self.told());
    }

    /// Waits until so many iterations ended.
    pub fn wait_iterations(&self, wanted: i64) {
        let sql = "SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL \
                   AND cancelled_ms IS NULL";
        self.wait_number(&format!("{wanted} iterations to end"), sql, wanted);
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// What the scene can tell of itself when a test gives up.
    pub fn told(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(40);
        let status = match http::open(&self.socket()) {
            Ok(_) => http::request(&self.socket(), "GET", "/v1/status", None).body,
            Err(e) => e.to_string(),
        };
        format!("status: {status}\nthe daemon's last lines:\n{}", lines[from..].join("\n"))
    }
}

/// A daemon process of a scene.
pub struct Daemon<'a> {
    pub child: Child,
    scene: &'a Scene,
}

impl Daemon<'_> {
    /// `kill -9`, and the death is awaited. Its workers die with it; so that the next daemon does
    /// not meet them, their death is awaited too.
    pub fn kill(mut self) {
        let workers = self.workers();
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        for pid in workers {
            let gone = || (!alive(pid)).then_some(());
            wait::until("a worker to die with its daemon", gone, || self.scene.told());
        }
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(mut self) -> ExitStatus {
        signal(self.pid(), rustix::process::Signal::TERM);
        self.ended()
    }

    /// Waits until the daemon has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let scene = self.scene;
        let ask = || child.try_wait().expect("a child");
        wait::until("the daemon to end", ask, || scene.told())
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// The process ids of its children.
    pub fn workers(&self) -> Vec<i32> {
        let mut found = Vec::new();
        let tasks = format!("/proc/{0}/task", self.child.id());
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        found
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        measure::usage(self.pid()).expect("the daemon's status").resident_kib
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.scene.told());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process computes still; one that only waits to be reaped does not.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before the state may hold anything, so the last parenthesis counts.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Sends a signal to a process that the test started.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("kill");
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
