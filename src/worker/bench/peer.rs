//! The same work by transformers and TRL, in turns with ours.
//!
//! In: a Python that has them, `scripts/bench-peer`. Out: ratios, and whether the results agree. The
//! peer is one process that loads before it is timed and answers one JSON line a request. May not
//! enter: how the peer computes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::json;
use tch::Device;

use super::clock::{Took, timed};
use super::report::{Compared, Report};
use super::subject::Subject;
use super::work::Work;
use super::{BenchArgs, stages};
use crate::errors::{InputError, WorkerError};
use crate::model::Trainable;
use crate::process::SPIN_COUNT;
use crate::train::trunk::Activations;

/// The most that scores, and a step's loss, may be apart.
const WITHIN: f64 = 1e-3;
/// Two logits nearer than this may change places.
const NEAR_TIE: f64 = 2e-3;

/// What is done by both.
pub struct Works<'a> {
    pub usual: &'a Work,
    pub long: Option<&'a Work>,
}

/// What the peer answers.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(flatten)]
    took: Took,
    /// Scores, or losses by step.
    #[serde(default)]
    numbers: Vec<f64>,
    /// Greedy ids by prompt, and how far the second best logit lay behind at each.
    #[serde(default)]
    ids: Vec<Vec<u32>>,
    #[serde(default)]
    gaps: Vec<Vec<f64>>,
}

/// Takes turns, and tells.
///
/// # Errors
/// The peer cannot be run or ends early; ours.
pub fn measure(
    subject: &Subject,
    works: &Works<'_>,
    (python, args): (&Path, &BenchArgs),
    report: &mut Report<'_>,
) -> Result<(), WorkerError> {
    let mut peer = Peer::start(subject, works, python, args)?;
    let (greedy, agreement) = greedy(subject, works.usual, &mut peer)?;
    let mut generate = Turns::new("generate");
    let mut score = Turns::new("score");
    let mut train = Turns::new("train");
    let mut long = Turns::new("train_long");
    let policy = subject.policy(Trainable::Nothing)?;
    let scorer = subject.scorer(&Work::score_head(subject.config.width))?;
    for _ in 0..args.turns.max(1) {
        let own = timed(|| stages::generate(&policy, works.usual, 1.0).map(|_| Vec::new()))?;
        generate.add(own, peer.ask("generate")?);
        let scores = |scorer| -> Result<Vec<f64>, WorkerError> {
            Ok(stages::score(scorer, works.usual)?.into_iter().map(f64::from).collect())
        };
        score.add(timed(|| scores(&scorer))?, peer.ask("score")?);
        train.add(trained(subject, works.usual)?, peer.ask("train")?);
        if let Some(work) = works.long {
            long.add(trained(subject, work)?, peer.ask("train_long")?);
        }
    }
    report.compared(Compared { equal: greedy, agreement, ..generate.told() });
    report.compared(score.told());
    report.compared(train.told());
    if works.long.is_some() {
        report.compared(long.told());
    }
    report.total(total(&[&generate, &score, &train]));
    peer.end()
}

/// What ours gave in one turn: numbers to compare, and what it took.
type Turn = (Vec<f64>, Took);

fn trained(subject: &Subject, work: &Work) -> Result<Turn, WorkerError> {
    let settings = stages::train_settings(work)?;
    let model = subject.policy(Trainable::Everything)?;
    timed(|| stages::train(&model, work, (&settings, Activations::Kept)))
}

/// All turns of one stage.
struct Turns {
    stage: &'static str,
    ours: Vec<Took>,
    peers: Vec<Took>,
    apart: f64,
}

impl Turns {
    fn new(stage: &'static str) -> Self {
        Self { stage, ours: Vec::new(), peers: Vec::new(), apart: 0.0 }
    }

    fn add(&mut self, (numbers, own): Turn, peer: Answer) {
        self.ours.push(own);
        self.peers.push(peer.took);
        let alike = numbers.len() == peer.numbers.len();
        let apart = numbers.iter().zip(&peer.numbers).map(|(a, b)| (a - b).abs());
        let worst = apart.fold(0.0, f64::max);
        self.apart = if alike { self.apart.max(worst) } else { f64::INFINITY };
    }

    fn told(&self) -> Compared {
        let of = |all: &[Took], figure: fn(&Took) -> f64| {
            median(&all.iter().map(figure).collect::<Vec<_>>())
        };
        let ratio = |(own, peer): (&Took, &Took)| peer.seconds / own.seconds;
        let ratios: Vec<f64> = self.ours.iter().zip(&self.peers).map(ratio).collect();
        let peak = |all: &[Took]| all.iter().map(|took| took.peak_mib).max().unwrap_or(0);
        Compared {
            stage: self.stage,
            ours_s: of(&self.ours, |took| took.seconds),
            peer_s: of(&self.peers, |took| took.seconds),
            ratio: median(&ratios),
            ours_cpu_s: of(&self.ours, |took| took.cpu_s),
            peer_cpu_s: of(&self.peers, |took| took.cpu_s),
            equal: self.apart <= WITHIN,
            agreement: format!("at most {:.1e} apart", self.apart),
            ours_peak_mib: peak(&self.ours),
            peer_peak_mib: peak(&self.peers),
        }
    }
}

/// Of each turn the peer's seconds over ours, all stages together; the median.
fn total(stages: &[&Turns]) -> f64 {
    let turns = stages.first().map_or(0, |stage| stage.ours.len());
    let ratio = |turn: usize| {
        let sum = |side: fn(&Turns) -> &Vec<Took>| -> f64 {
            stages.iter().map(|stage| side(stage)[turn].seconds).sum()
        };
        sum(|stage| &stage.peers) / sum(|stage| &stage.ours)
    };
    median(&(0..turns).map(ratio).collect::<Vec<_>>())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Whether both write the same greedy answers, but where the peer saw a near tie.
fn greedy(subject: &Subject, work: &Work, peer: &mut Peer) -> Result<(bool, String), WorkerError> {
    let model = subject.policy(Trainable::Nothing)?;
    let ours = stages::generate(&model, work, 0.0)?;
    let answer = peer.ask("greedy")?;
    let (mut same, mut tied) = (0, 0);
    for ((own, other), gaps) in ours.iter().zip(&answer.ids).zip(&answer.gaps) {
        match own.iter().zip(other).position(|(a, b)| a != b) {
            None if own.len() == other.len() => same += 1,
            Some(parted) if gaps.get(parted).is_some_and(|gap| *gap < NEAR_TIE) => tied += 1,
            _ => {}
        }
    }
    let all = ours.len();
    let equal = all == answer.ids.len() && same + tied == all;
    Ok((equal, format!("greedy: {same} of {all} the same, {tied} part at a near tie")))
}

/// The peer's process.
struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(
        subject: &Subject,
        works: &Works<'_>,
        python: &Path,
        args: &BenchArgs,
    ) -> Result<Self, WorkerError> {
        let device = match subject.compute.devices.first() {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        };
        // The spin count is ours: the peer's threads wait as its libraries have it.
        let mut child = Command::new(python)
            .env_remove(SPIN_COUNT.0)
            .arg(&args.peer_script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| refused(&format!("it cannot be started ({error})")))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let Some((requests, answers)) = pipes else {
            return Err(refused("it has no pipes"));
        };
        let mut peer = Self { child, requests, answers: BufReader::new(answers) };
        peer.send(&json!({
            "model": args.model, "device": device, "threads": tch::get_num_threads(),
            "work": works.usual, "long": works.long,
            "score_head": Work::score_head(subject.config.width),
        }))?;
        Ok(peer)
    }

    fn send(&mut self, request: &serde_json::Value) -> Result<(), WorkerError> {
        writeln!(self.requests, "{request}")
            .and_then(|()| self.requests.flush())
            .map_err(|error| refused(&format!("it takes no requests ({error})")))
    }

    fn ask(&mut self, what: &str) -> Result<Answer, WorkerError> {
        self.send(&json!({ "do": what }))?;
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        match read {
            Ok(0) => Err(refused("it ended early; what it said is above")),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| refused(&format!("its answer to {what} is no answer ({error})"))),
            Err(error) => Err(refused(&format!("its answers cannot be read ({error})"))),
        }
    }

    fn end(mut self) -> Result<(), WorkerError> {
        drop(self.requests);
        let ended = self.child.wait().map_err(|error| refused(&error.to_string()))?;
        if ended.success() { Ok(()) } else { Err(refused(&format!("it ended with {ended}"))) }
    }
}

fn refused(problem: &str) -> WorkerError {
    InputError::Setting {
        name: "--peer".to_owned(),
        value: "the Python that was named".to_owned(),
        rule: problem.to_owned(),
        mend:
            "a Python with torch, transformers, trl and datasets (`scripts/parity-env` makes one)"
                .to_owned(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_gave_something_else_is_not_equal() {
        let took = |seconds| Took { seconds, cpu_s: 2.0 * seconds, peak_mib: 5 };
        let turn = |numbers: &[f64]| (numbers.to_vec(), took(1.0));
        let answer = |numbers: &[f64]| Answer {
            took: took(2.0),
            numbers: numbers.to_vec(),
            ids: Vec::new(),
            gaps: Vec::new(),
        };
        let mut turns = Turns::new("score");
        turns.add(turn(&[1.0, 2.0]), answer(&[1.0, 2.0005]));
        let told = turns.told();
        assert!(told.equal && told.ratio == 2.0 && told.peer_cpu_s == 4.0);
        turns.add(turn(&[1.0, 2.0]), answer(&[1.0]));
        assert!(!turns.told().equal);
        assert_eq!(total(&[&turns, &turns]), 2.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
    }
}
