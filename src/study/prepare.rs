//! What all arms of a seed begin with: a policy by supervised fine-tuning, and reward models of the
//! annotator's labels.
//!
//! In: a seed. Out: the folders of the models, and what the good reward model is worth. All of it is
//! done by daemons; the program itself writes conversations and labels. May not enter: arms.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::annotator::{Annotator, Seen};
use crate::answers::{self, Answer};
use crate::daemon::{Daemon, Programs};
use crate::demonstrator;
use crate::gold::gold;
use crate::models;
use crate::prompts::{Prompt, Slices};
use crate::rng::Rng;
use crate::settings::{Settings, overlay};
use crate::stats;
use crate::words::Lexicon;

/// What every step of the study works with.
pub struct Scene {
    /// The configuration.
    pub settings: Settings,
    /// Where everything is kept.
    pub state: PathBuf,
    /// rlhfd's.
    pub programs: Programs,
    /// The language.
    pub lexicon: Lexicon,
}

/// What a seed's arms begin with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepared {
    /// The policy of supervised fine-tuning.
    pub policy: PathBuf,
    /// The good reward model.
    pub reward: PathBuf,
    /// The weak one, in the seeds that try it.
    pub weak: Option<PathBuf>,
    /// Pairs that the annotator judged for the good one, and for the weak one.
    pub pairs: (usize, usize),
    /// What the good one is worth.
    pub worth: Worth,
    /// What the weak one is worth.
    pub weak_worth: Option<Worth>,
    /// The policy's answers to the evaluation prompts, by prompt, with the good one's scores.
    pub best: Vec<Vec<Answer>>,
}

/// What a reward model's score follows, over answers to held-out prompts.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Worth {
    /// Score for a unit of gold, at equal length.
    pub per_gold: f64,
    /// Score for a token, at equal gold.
    pub per_token: f64,
    /// How often the one of two answers to a prompt with the higher gold has the higher score.
    pub accuracy: f64,
}

impl Scene {
    /// A seed's folder.
    pub fn folder(&self, seed: u64) -> PathBuf {
        self.state.join(format!("seed-{seed}"))
    }

    /// The configuration of a daemon: `[daemon]`, then `over`, then what the study itself sets.
    pub fn config(&self, over: &Table, own: &str) -> Result<Table> {
        let mut table = self.settings.daemon.clone();
        overlay(&mut table, over);
        overlay(&mut table, &own.parse().context("a configuration of the study's own")?);
        Ok(table)
    }

    fn gold(&self, answer: &Answer) -> f64 {
        gold(&self.lexicon, &answer.prompt, &answer.text, answer.finished)
    }
}

/// Prepares a seed; what stands already is not made again.
///
/// Errors: whatever a daemon says.
pub fn prepare(scene: &Scene, seed: u64) -> Result<Prepared> {
    let folder = scene.folder(seed);
    let kept = folder.join("prepared.json");
    if let Ok(text) = fs::read_to_string(&kept) {
        return serde_json::from_str(&text)
            .with_context(|| format!("{} is broken", kept.display()));
    }
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let slices = Slices::cut(seed, &scene.settings.sizes())?;
    let (trained, pairs) = train(scene, seed, &slices)?;
    let best = collect_best(scene, seed, &slices, &trained)?;
    let worth = worth(&best, |answer| answer.score);
    let weak_worth = trained.weak.is_some().then(|| self::worth(&best, |answer| answer.canary));
    let Trained { policy, reward, weak } = trained;
    let prepared = Prepared { policy, reward, weak, pairs, worth, weak_worth, best };
    models::write(&kept, &serde_json::to_string(&prepared)?)?;
    Ok(prepared)
}

struct Trained {
    policy: PathBuf,
    reward: PathBuf,
    weak: Option<PathBuf>,
}

/// Supervised fine-tuning, answers for the annotator, reward models: one daemon, one run.
fn train(scene: &Scene, seed: u64, slices: &Slices) -> Result<(Trained, (usize, usize))> {
    let folder = scene.folder(seed);
    write_models(scene, seed, &folder)?;
    let mut rng = Rng::new(seed, "demonstrator");
    let lines: String =
        slices.sft.iter().map(|prompt| conversation(prompt, &mut rng) + "\n").collect();
    models::write(&folder.join("conversations.jsonl"), &lines)?;

    let asked: Vec<Prompt> = slices.labels.iter().chain(&slices.weak_labels).copied().collect();
    let own = format!(
        "[run]\nname = \"prepare\"\nseed = {seed}\npolicy = \"../random\"\nstart = \"sft/main\"\n\
         prompts_per_iteration = {}\n[sft]\ndata = [\"../conversations.jsonl\"]\n\
         [[label.scorers]]\nname = \"stand-in\"\nmodel = \"../stand-in\"\n",
        asked.len()
    );
    let mut over = scene.settings.collect.clone();
    overlay(&mut over, &scene.settings.annotated);
    let config = scene.config(&over, &own)?;
    let home = folder.join("prepare");
    let daemon = Daemon::start(&scene.programs, &home, &toml::to_string(&config)?)?;
    daemon.add_prompts("labels", &texts(&asked), false)?;
    daemon.await_iteration(1)?;
    let answers = answers::generated(&daemon, "stand-in", None)?;

    let of_main: HashSet<Prompt> = slices.labels.iter().copied().collect();
    let (main, rest): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|group| group.first().is_some_and(|first| of_main.contains(&first.prompt)));
    let annotator = scene.settings.annotator;
    let mut rng = Rng::new(seed, "annotator");
    let pairs = reward_job(scene, &daemon, &home, ("main", annotator), &main, &mut rng)?;
    let reward = home.join("state").join(path_of(&daemon, "reward-main")?);
    let weak_seed = scene.settings.weak.seeds.contains(&seed);
    let (mut weak, mut weak_pairs) = (None, 0);
    if weak_seed {
        let annotator = scene.settings.weak.annotator;
        weak_pairs = reward_job(scene, &daemon, &home, ("weak", annotator), &rest, &mut rng)?;
        weak = Some(home.join("state").join(path_of(&daemon, "reward-weak")?));
    }
    let policy = home.join("state").join(path_of(&daemon, "sft-main")?);
    daemon.stop()?;
    Ok((Trained { policy, reward, weak }, (pairs, weak_pairs)))
}

fn write_models(scene: &Scene, seed: u64, folder: &Path) -> Result<()> {
    let (tokenizer, words) = (folder.join("tokenizer"), scene.lexicon.words.len());
    models::tokenizer(&tokenizer, &scene.lexicon)?;
    let configs = [
        ("random", models::policy(&scene.settings.model, words)),
        ("stand-in", models::stand_in(words)),
    ];
    for (name, text) in configs {
        let (config, out) = (folder.join(format!("{name}.json")), folder.join(name));
        models::write(&config, &text)?;
        if out.exists() {
            continue;
        }
        let [config, tokenizer, out] = [&config, &tokenizer, &out].map(|p| p.to_string_lossy());
        let seed = seed.to_string();
        scene.programs.worker(&[
            "init",
            "--config",
            &config,
            "--tokenizer",
            &tokenizer,
            "--seed",
            &seed,
            "--out",
            &out,
        ])?;
    }
    Ok(())
}

fn conversation(prompt: &Prompt, rng: &mut Rng) -> String {
    let answer = demonstrator::answer(prompt, rng);
    serde_json::json!({"messages": [
        {"role": "user", "content": prompt.text()}, {"role": "assistant", "content": answer}
    ]})
    .to_string()
}

/// Has the annotator judge these answers and a reward model learn from it; how many pairs it judged.
fn reward_job(
    scene: &Scene,
    daemon: &Daemon,
    home: &Path,
    (name, annotator): (&str, Annotator),
    answers: &[Vec<Answer>],
    rng: &mut Rng,
) -> Result<usize> {
    let groups = answers.iter().filter_map(|answers| {
        let prompt = answers.first()?.prompt;
        let seen = |answer: &Answer| Seen { text: answer.text.clone(), gold: scene.gold(answer) };
        annotator.judge(prompt, &answers.iter().map(seen).collect::<Vec<_>>(), rng)
    });
    let groups: Vec<_> = groups.collect();
    let lines: Vec<String> = groups.iter().map(|group| group.line() + "\n").collect();
    let file = home.join(format!("{name}.jsonl"));
    models::write(&file, &lines.concat())?;
    let (file, job) = (file.to_string_lossy(), format!("reward/{name}"));
    // The key makes a repetition harmless, as with prompts.
    daemon.ctl(&["train", "reward", "--data", &file, "--name", name, "--client-key", &job])?;
    daemon.await_job(&job)?;
    Ok(groups.iter().map(|group| group.pairs.len()).sum())
}

fn path_of(daemon: &Daemon, checkpoint: &str) -> Result<String> {
    let statement = format!("SELECT path FROM checkpoints WHERE name = '{checkpoint}'");
    let rows = daemon.rows(&statement)?;
    let path = rows.first().and_then(|row| row.first()).and_then(Json::as_str);
    Ok(path.with_context(|| format!("there is no checkpoint {checkpoint}"))?.to_owned())
}

/// The policy's answers to the evaluation prompts, n each, with all reward models' scores.
fn collect_best(
    scene: &Scene,
    seed: u64,
    slices: &Slices,
    trained: &Trained,
) -> Result<Vec<Vec<Answer>>> {
    let own = format!(
        "[run]\nname = \"best\"\nseed = {seed}\niterations_max = 1\nprompts_per_iteration = {}\n",
        slices.evaluation.len()
    );
    let mut config = scene.config(&scene.settings.collect, &own)?;
    let canary = trained.weak.as_deref();
    set_models(&mut config, &trained.policy, (&trained.reward, canary));
    let home = scene.folder(seed).join("best");
    let daemon = Daemon::start(&scene.programs, &home, &toml::to_string(&config)?)?;
    daemon.add_prompts("held-out", &texts(&slices.evaluation), false)?;
    daemon.await_iteration(1)?;
    let mut answers = answers::generated(&daemon, "reward", Some("canary"))?;
    daemon.stop()?;
    for answer in answers.iter_mut().flatten() {
        answer.gold = scene.gold(answer);
    }
    Ok(answers)
}

/// Names policy, scorer and canary in a daemon's configuration.
pub fn set_models(config: &mut Table, policy: &Path, scorers: (&Path, Option<&Path>)) {
    let text = |path: &Path| Value::String(path.to_string_lossy().into_owned());
    let run = config.entry("run").or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(run) = run {
        run.insert("policy".to_owned(), text(policy));
    }
    let scorer = |name: &str, path: &Path, canary: bool| {
        let mut scorer = Table::new();
        scorer.insert("name".to_owned(), Value::String(name.to_owned()));
        scorer.insert("model".to_owned(), text(path));
        if canary {
            scorer.insert("canary".to_owned(), Value::Boolean(true));
        }
        Value::Table(scorer)
    };
    let (first, canary) = scorers;
    let canary = canary.map(|path| scorer("canary", path, true));
    let all = std::iter::once(scorer("reward", first, false)).chain(canary).collect();
    let label = config.entry("label").or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(label) = label {
        label.insert("scorers".to_owned(), Value::Array(all));
    }
}

/// The texts of prompts.
pub fn texts(prompts: &[Prompt]) -> Vec<String> {
    prompts.iter().map(Prompt::text).collect()
}

fn worth(groups: &[Vec<Answer>], score: impl Fn(&Answer) -> f64) -> Worth {
    let (mut scores, mut golds, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    let (mut right, mut all) = (0, 0);
    for group in groups {
        for (index, answer) in group.iter().enumerate() {
            scores.push(score(answer));
            golds.push(answer.gold);
            tokens.push(answer.tokens);
            for other in &group[..index] {
                let (gold, own) = (answer.gold - other.gold, score(answer) - score(other));
                if gold.abs() > 1e-9 {
                    all += 1;
                    right += usize::from(gold > 0.0 && own > 0.0 || gold < 0.0 && own < 0.0);
                }
            }
        }
    }
    let (per_gold, per_token) = stats::slopes(&scores, &golds, &tokens);
    Worth { per_gold, per_token, accuracy: stats::number(right) / stats::number(all) }
}
