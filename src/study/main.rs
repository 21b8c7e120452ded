//! `rlhfd-study`: whether online iterative DPO beats offline DPO, on a language small enough for two cores.
//!
//! In: study/study.toml. Out: study/*.csv, plots and a table, and whether what was wanted came out. All
//! models are trained and asked by rlhfd daemons, which this program only speaks to through `rlhfctl`:
//! it is the language, the demonstrator, the annotator and the gold score. May not enter: tensors.

mod annotator;
mod answers;
mod arms;
mod daemon;
mod demonstrator;
mod gold;
mod lanes;
mod models;
mod plots;
mod prepare;
mod prompts;
mod results;
mod rng;
mod settings;
mod stats;
mod summary;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

use crate::daemon::Programs;
use crate::prepare::{Prepared, Scene};
use crate::settings::{Arm, Settings};
use crate::words::Lexicon;

/// Runs the study: SFT, reward model, then offline and online DPO, in several seeds.
#[derive(Debug, Parser)]
#[command(name = "rlhfd-study", version)]
struct Args {
    /// What is done
    #[arg(long, value_name = "FILE", default_value = "study/study.toml")]
    config: PathBuf,
    /// Where daemons and models are kept; an interrupted study goes on there
    #[arg(long, value_name = "DIR", default_value = "study/state")]
    state: PathBuf,
    /// Folder with rlhfd, rlhfctl and rlhfd-worker [default: where this program is]
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Folder for results
    #[arg(long, value_name = "DIR", default_value = "study")]
    out: PathBuf,
    /// These seeds instead of the file's: a try, to be thrown away
    #[arg(long, value_name = "N", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// These arms only
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    arms: Vec<String>,
}

/// A step of the study.
enum Step {
    Prepare(u64),
    Arm(u64, String, Arc<Prepared>),
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rlhfd-study: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let mut settings = Settings::read(&args.config)?;
    if !args.seeds.is_empty() {
        settings.weak.seeds.retain(|seed| args.seeds.contains(seed));
        settings.study.seeds = args.seeds;
    }
    if !args.arms.is_empty() {
        settings.arms.retain(|name, _| args.arms.contains(name));
    }
    std::fs::create_dir_all(&args.state)
        .with_context(|| format!("{} cannot be made", args.state.display()))?;
    let own = std::env::current_exe().context("this program has no place")?;
    let beside = own.parent().map(PathBuf::from).unwrap_or_default();
    let programs = Programs { folder: args.bin.unwrap_or(beside).canonicalize()? };
    let scene =
        Scene { settings, state: args.state.canonicalize()?, programs, lexicon: Lexicon::new() };
    let begun = Instant::now();
    let first = scene.settings.seeds().into_iter().map(Step::Prepare).collect();
    lanes::run(scene.settings.study.lanes, first, |step| take(&scene, step, begun))?;
    let results = results::gather(&scene)?;
    results::write(&scene, &results, &args.out)?;
    plots::draw(&scene, &results, &args.out)?;
    let told = summary::tell(&scene, &results);
    models::write(&args.out.join("summary.md"), &told)?;
    println!("{told}");
    eprintln!("{} s in all", begun.elapsed().as_secs());
    Ok(())
}

/// Does a step, and says what follows from it.
fn take(scene: &Scene, step: Step, begun: Instant) -> Result<Vec<Step>> {
    let since = Instant::now();
    let (told, next) = match step {
        Step::Prepare(seed) => {
            let prepared = prepare::prepare(scene, seed).with_context(|| format!("seed {seed}"))?;
            let worth = prepared.worth;
            let least = scene.settings.study.score_per_gold_min;
            let held = worth.per_gold >= least;
            let told = format!(
                "seed {seed} is prepared: the reward model's score gains {:.2} a unit of gold \
                 (at least {least}: {}) and {:.3} a token, accuracy {:.3}",
                worth.per_gold,
                if held { "passed" } else { "failed, this seed goes no further" },
                worth.per_token,
                worth.accuracy
            );
            let prepared = Arc::new(prepared);
            let arms = scene.settings.arms_of(seed).filter(|_| held);
            let step =
                |(name, _): (&String, &Arm)| Step::Arm(seed, name.clone(), Arc::clone(&prepared));
            (told, arms.map(step).collect())
        }
        Step::Arm(seed, name, prepared) => {
            let arm = &scene.settings.arms[&name];
            let figures = arms::run(scene, seed, (&name, arm), &prepared)
                .with_context(|| format!("seed {seed}, {name}"))?;
            let course: Vec<String> = figures
                .policies
                .iter()
                .filter(|policy| policy.temperature > 0.0)
                .map(|policy| format!("{:.3}", stats::mean(&policy.gold)))
                .collect();
            (format!("seed {seed}, {name}: gold {}", course.join(" ")), Vec::new())
        }
    };
    let (all, own) = (begun.elapsed().as_secs(), since.elapsed().as_secs());
    eprintln!("{all:5} s  {told} ({own} s)");
    Ok(next)
}
