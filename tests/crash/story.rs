//! A run whose disk is written down, and what was acknowledged in it.
//!
//! Comes in: the real worker on a tiny model, under `tests/support/disk_log.c`. Goes out: the log, the
//! requests with the marks around them, the facts at the end. The same steps, done where they are not in
//! effect yet, let a run go on that a power cut ended. May not enter: what a disk keeps.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::native;
use rlhfd_tests::scene::{Scene, Settings};
use rlhfd_tests::wait;

use crate::log;
use crate::promises;

/// Whose worker computes, and how much.
#[derive(Clone, Copy)]
pub enum Cast {
    /// The fake one, with evaluations: in seconds through the whole story.
    Fake,
    /// The real one on a tiny model, by whose code checkpoints are published.
    Real,
}

impl Cast {
    fn iterations(self) -> i64 {
        match self {
            // Beside the head, the policy before it and the best one stay.
            Self::Fake => 4,
            Self::Real => 3,
        }
    }

    /// Few short answers a prompt; only the newest checkpoints stay.
    fn settings(self) -> Settings {
        let (iterations, prompts) = (self.iterations(), self.prompts_per_iteration());
        let settings = Settings::default()
            .set("run", "iterations_max", &iterations.to_string())
            .set("run", "prompts_per_iteration", &prompts.to_string())
            .set("store", "keep_checkpoints", "1")
            .with("[generate.arms]", "name = \"warm\"\ntemperature = 1.0\nn = 2")
            .with(
                "sft",
                "block_tokens = 64\nbatch_sequences = 2\nepochs = 1\nsave_every_steps = 2",
            );
        match self {
            Self::Fake => settings,
            Self::Real => settings
                .with(
                    "scheduler",
                    "unit_tokens_cpu = 2000\nheartbeat_ms = 200\nsilence_timeout_s = 60\n\
                     progress_timeout_s = 60\nstop_timeout_s = 10",
                )
                .set("train", "batch_pairs", "1"),
        }
    }

    fn prompts_per_iteration(self) -> i64 {
        match self {
            Self::Fake => 6,
            Self::Real => 3,
        }
    }

    /// Prompts of the set "plain", and the share that evaluations keep.
    fn prompts(self) -> (i64, &'static str) {
        match self {
            Self::Fake => (40, "0.25"),
            Self::Real => (9, "0"),
        }
    }

    /// The name that a worker gives to a checkpoint and dies, before it could make it last: the next
    /// worker has to.
    fn dies_at(self) -> &'static str {
        match self {
            Self::Fake => "nothing",
            Self::Real => "iteration-0002",
        }
    }

    fn scene(self) -> Option<Scene> {
        match self {
            Self::Fake => Some(Scene::fake(&self.settings())),
            Self::Real => Scene::real(&self.settings()),
        }
    }
}

/// Something that a person asks for, or waits for.
pub struct Step {
    pub name: &'static str,
    /// Whether it is in effect.
    pub holds: Box<dyn Fn(&Path) -> bool>,
    pub act: Act,
    /// The step by which it may be undone.
    pub until: Option<&'static str>,
}

pub enum Act {
    /// A request that is acknowledged.
    Ask(Box<dyn Fn(&Scene)>),
    /// Nothing but time is needed.
    Wait,
}

fn ask(
    name: &'static str,
    holds: impl Fn(&Path) -> bool + 'static,
    act: impl Fn(&Scene) + 'static,
) -> Step {
    Step { name, holds: Box::new(holds), act: Act::Ask(Box::new(act)), until: None }
}

fn wait_for(name: &'static str, holds: impl Fn(&Path) -> bool + 'static) -> Step {
    Step { name, holds: Box::new(holds), act: Act::Wait, until: None }
}

/// Before the first daemon's end, and after it.
pub fn steps(cast: Cast) -> [Vec<Step>; 2] {
    let (prompts, share) = cast.prompts();
    let paused = ask(
        "pause",
        |state| one(state, "SELECT count(*) FROM runs WHERE paused_by = 'operator'") == 1,
        |scene| drop(scene.ctl_ok(&["pause"])),
    );
    let first = vec![
        ask(
            "prompts add plain",
            move |state| set(state, "plain") == prompts,
            move |scene| scene.add_prompts("plain", 0, prompts as usize, share),
        ),
        wait_for("iteration 1", |state| ended(state) >= 1),
        Step { until: Some("resume"), ..paused },
        ask(
            "resume",
            |state| one(state, "SELECT count(*) FROM runs WHERE paused_by IS NULL") == 1,
            |scene| drop(scene.ctl_ok(&["resume"])),
        ),
        ask("train sft", promises::has_job, |scene| {
            let data = scene.path("talk.jsonl").to_string_lossy().into_owned();
            scene.ctl_ok(&["train", "sft", "--data", &data, "--name", "talk"]);
        }),
        wait_for("the job", |state| {
            one(state, "SELECT count(*) FROM training_jobs WHERE status = 'done'") == 1
        }),
        ask(
            "pin",
            |state| one(state, "SELECT pinned FROM checkpoints WHERE name = 'sft-talk'") == 1,
            |scene| drop(scene.ctl_ok(&["pin", "sft-talk"])),
        ),
        ask("backup", promises::has_backup, |scene| drop(scene.ctl_ok(&["backup"]))),
        wait_for("all iterations", move |state| ended(state) >= cast.iterations()),
        wait_for("what is old to go", tidied),
    ];
    let second = vec![ask(
        "prompts add later",
        |state| set(state, "later") == 8,
        |scene| scene.add_prompts("later", 100, 108, "0"),
    )];
    [first, second]
}

fn one(state: &Path, sql: &str) -> i64 {
    let Ok(connection) = promises::open(state) else { return 0 };
    connection.query_row(sql, [], |row| row.get(0)).unwrap_or(0)
}

fn set(state: &Path, name: &str) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM prompts p JOIN uploads u ON u.id = p.upload_id
         JOIN prompt_sets s ON s.id = u.set_id WHERE s.name = '{name}' AND u.state = 'published'"
    );
    one(state, &sql)
}

fn ended(state: &Path) -> i64 {
    one(state, "SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL")
}

/// The oldest checkpoint at the least is gone, none is on its way, and one iteration's input stays.
fn tidied(state: &Path) -> bool {
    let gone =
        "SELECT count(removed_ms) > 0 AND count(removal_ms) = count(removed_ms) FROM checkpoints";
    let inputs = fs::read_dir(state.join("runs/main/iterations"));
    one(state, gone) == 1 && inputs.is_ok_and(|inputs| inputs.count() == 1)
}

/// Does each step that is not in effect, and calls `around` before and after.
fn go_through(scene: &Scene, steps: &[Step], around: impl Fn(&Step, bool)) {
    let state = scene.state();
    for step in steps {
        if (step.holds)(&state) {
            continue;
        }
        around(step, false);
        match &step.act {
            Act::Ask(act) => act(scene),
            Act::Wait => {
                let ask = || (step.holds)(&state).then_some(());
                // A loaded machine may take its time over three iterations.
                let told = || scene.told();
                wait::until_within(4 * wait::DEADLINE, step.name, &mut { ask }, told);
            }
        }
        around(step, true);
    }
}

/// What was written down.
pub struct Recording {
    cast: Cast,
    pub scene: Scene,
    pub log: Vec<u8>,
    pub dump: Dump,
    /// The inode of the folder that the state folder stood in.
    pub above: u64,
    /// Where the state folder of the recorded run lies now.
    pub kept: PathBuf,
}

impl Recording {
    /// Lives through the whole story. `None`, said aloud, without the engine or a C compiler.
    pub fn made(cast: Cast) -> Option<Self> {
        let mut scene = cast.scene()?;
        let library = native::library(&scene, "disk_log.c", "disk_log.so")?;
        let talk = |n| {
            format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"talk {n}\"}}, \
                 {{\"role\": \"assistant\", \"content\": \"e e {n}\"}}]}}\n"
            )
        };
        scene.write("talk.jsonl", &(0..6).map(talk).collect::<String>());
        let log = scene.path("disk.log");
        let above = fs::metadata(scene.path("")).expect("the scene's folder").ino();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        scene.environment = vec![
            ("LD_PRELOAD".into(), text(&library)),
            ("RLHFD_DISK_LOG".into(), text(&log)),
            ("RLHFD_DISK_ROOT".into(), text(&scene.state())),
            // By the real worker alone: the fake one has no code of its own for what is missed then.
            ("RLHFD_DISK_DIES".into(), cast.dies_at().into()),
        ];
        let note = |step: &Step, done: bool| {
            if let Act::Ask(_) = step.act {
                log::mark(&log, &mark_of(step.name, done));
            }
        };
        let [first, second] = steps(cast);
        for (steps, last) in [(first, false), (second, true)] {
            let daemon = scene.start();
            go_through(&scene, &steps, note);
            assert!(daemon.terminate().success(), "{}", scene.told());
            if !last {
                plant_a_stranger(&scene);
            }
        }
        scene.environment.clear();
        let dump = dump::dump(&scene.database());
        let kept = scene.path("recorded");
        fs::rename(scene.state(), &kept).expect("the recorded state");
        let log = fs::read(&log).expect("the log");
        Some(Self { cast, scene, log, dump, above, kept })
    }

    /// Starts a daemon on the state folder that stands there now, lets it go on to the end of the story,
    /// and holds what it says to what was recorded.
    pub fn goes_on(&self) {
        let daemon = self.scene.start();
        for steps in steps(self.cast) {
            go_through(&self.scene, &steps, |_, _| {});
        }
        assert!(daemon.terminate().success(), "{}", self.scene.told());
        dump::assert_same(&self.dump, &dump::dump(&self.scene.database()), "a power cut");
    }
}

/// The mark before a request is sent, and after it is acknowledged.
pub fn mark_of(step: &str, done: bool) -> String {
    format!("{} {step}", if done { "acknowledged" } else { "asked" })
}

/// A folder among the checkpoints that is none of ours: the next start moves it away.
fn plant_a_stranger(scene: &Scene) {
    let script = "mkdir stranger && echo words > stranger/README && sync stranger/README stranger";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(scene.state().join("runs/main/checkpoints"));
    shell.envs(scene.environment.iter().map(|(key, value)| (key, value)));
    assert!(shell.status().expect("sh").success());
}
