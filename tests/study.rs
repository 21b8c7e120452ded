//! The study in small: its own program, real daemons and workers, one seed.
//!
//! Comes in: study/small.toml. Goes out: verdicts on the files it writes and on the daemons' databases.
//! May not enter: whether the claim holds (that is what `make study` is for).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use rlhfd_tests::binaries::{program, program_if_built, root};
use rlhfd_tests::scene::text;
use rusqlite::Connection;

const SEED: &str = "7";

/// Runs the study in `place`; `None`, said aloud, where the engine is not built.
fn study(place: &Path) -> Option<String> {
    if program_if_built("rlhfd-worker-torch").is_none() {
        let required = std::env::var_os("RLHFD_REQUIRE_TORCH").is_some();
        assert!(!required, "rlhfd-worker-torch is not built");
        eprintln!("skipped: rlhfd-worker-torch is not built");
        return None;
    }
    let mut command = Command::new(program("rlhfd-study"));
    command.env("RLHFD_LIBTORCH", root().join("libtorch"));
    command.arg("--config").arg(root().join("study/small.toml"));
    command.arg("--state").arg(place.join("state")).arg("--out").arg(place.join("out"));
    let output = command.output().unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    Some(said)
}

/// The rows of a CSV file by its columns' names.
fn csv(file: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(file).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned));
    let names: Vec<String> = lines.next().unwrap().collect();
    let row = |cells: Vec<String>| {
        assert_eq!(cells.len(), names.len(), "{cells:?}");
        names.iter().cloned().zip(cells).collect()
    };
    lines.map(|line| row(line.collect())).collect()
}

fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap_or_else(|_| panic!("{column} of {row:?}"))
}

fn texts(database: &Path, sql: &str) -> BTreeSet<String> {
    let connection = Connection::open(database).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[test]
fn the_study_in_small_has_all_its_parts_and_they_fit_together() {
    let place = tempfile::Builder::new().prefix("rlhfd-").tempdir().unwrap();
    let Some(said) = study(place.path()) else { return };
    let out = place.path().join("out");
    let rows = csv(&out.join("results.csv"));
    every_policy_has_its_row(&rows);
    iteration_one_is_shared(&rows);
    differences_are_those_of_the_means(&rows);
    the_weak_condition_is_caught(&csv(&out.join("weak.csv")));
    held_out_prompts_are_trained_on_nowhere(&place.path().join("state/seed-7"));
    for plot in ["gold.svg", "kl.svg", "weak.svg"] {
        assert!(fs::read_to_string(out.join(plot)).unwrap().contains("<svg"), "{plot}");
    }
    assert!(said.contains("Primary figure"), "{said}");

    // What stands is not made again, and tells the same.
    let before = fs::read(out.join("results.csv")).unwrap();
    study(place.path());
    assert_eq!(fs::read(out.join("results.csv")).unwrap(), before);
}

fn every_policy_has_its_row(rows: &[BTreeMap<String, String>]) {
    let mut wanted = BTreeSet::from([
        ("sft".to_owned(), "0".to_owned(), "1.0".to_owned()),
        ("sft".to_owned(), "0".to_owned(), "0.0".to_owned()),
        ("best_of_n".to_owned(), "0".to_owned(), "1.0".to_owned()),
    ]);
    for arm in ["offline_dpo", "online_dpo", "online_dpo_length"] {
        for (iteration, temperature) in [("1", "1.0"), ("1", "0.0"), ("2", "1.0"), ("2", "0.0")] {
            wanted.insert((arm.to_owned(), iteration.to_owned(), temperature.to_owned()));
        }
    }
    let key = |row: &BTreeMap<String, String>| {
        (row["arm"].clone(), row["iteration"].clone(), row["temperature"].clone())
    };
    assert_eq!(rows.iter().map(key).collect::<BTreeSet<_>>(), wanted);
    assert_eq!(rows.len(), wanted.len());
    for row in rows {
        assert_eq!(row["seed"], SEED);
        assert!((0.0..=1.0).contains(&number(row, "gold_score_mean")), "{row:?}");
        let rate = number(row, "win_rate");
        assert!(number(row, "win_rate_low") <= rate && rate <= number(row, "win_rate_high"));
        assert!(number(row, "response_tokens_mean") >= 1.0);
        assert!(number(row, "score_mean").is_finite());
        let told = !row["kl"].is_empty();
        assert_eq!(told, row["temperature"] == "1.0" && row["arm"] != "best_of_n", "{row:?}");
    }
}

fn of<'a>(
    rows: &'a [BTreeMap<String, String>],
    arm: &str,
    iteration: &str,
    temperature: &str,
) -> &'a BTreeMap<String, String> {
    rows.iter()
        .find(|row| {
            row["arm"] == arm && row["iteration"] == iteration && row["temperature"] == temperature
        })
        .unwrap()
}

fn iteration_one_is_shared(rows: &[BTreeMap<String, String>]) {
    for temperature in ["1.0", "0.0"] {
        let mut offline = of(rows, "offline_dpo", "1", temperature).clone();
        let online = of(rows, "online_dpo", "1", temperature);
        offline.insert("arm".to_owned(), "online_dpo".to_owned());
        assert_eq!(&offline, online);
        assert_eq!(number(online, "gold_minus_offline"), 0.0);
    }
    let second = |arm| &of(rows, arm, "2", "1.0")["kl"];
    assert_ne!(second("offline_dpo"), second("online_dpo"), "later they sample differently");
}

fn differences_are_those_of_the_means(rows: &[BTreeMap<String, String>]) {
    for row in rows.iter().filter(|row| !row["gold_minus_offline"].is_empty()) {
        let offline = of(rows, "offline_dpo", &row["iteration"], &row["temperature"]);
        let gap = number(row, "gold_score_mean") - number(offline, "gold_score_mean");
        assert!((gap - number(row, "gold_minus_offline")).abs() < 2e-5, "{row:?}");
    }
}

fn the_weak_condition_is_caught(rows: &[BTreeMap<String, String>]) {
    let gated: Vec<_> = rows.iter().filter(|row| row["arm"] == "weak_gated").collect();
    assert_eq!(gated.len(), 6);
    for row in gated {
        let rejected = row["gate"].starts_with("failed");
        assert_eq!(rejected, row["iteration"] != "0", "{row:?}");
        assert!(number(row, "canary_score_mean").is_finite());
    }
}

fn held_out_prompts_are_trained_on_nowhere(seed: &Path) {
    let prompt = "json_extract(p.messages, '$[0].content')";
    let mut kept = BTreeSet::new();
    let mut trained: Vec<(String, BTreeSet<String>)> = Vec::new();
    let sft = fs::read_to_string(seed.join("conversations.jsonl")).unwrap();
    let first = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    trained.push(("sft".to_owned(), sft.lines().map(first).collect()));
    for arm in ["prepare", "offline_dpo", "online_dpo", "online_dpo_length", "weak_gated"] {
        let database = seed.join(arm).join("state/rlhfd.db");
        let drawn = format!("SELECT {prompt} FROM draws d JOIN prompts p ON p.id = d.prompt_id");
        let asked = format!(
            "SELECT {prompt} FROM evaluation_prompts e JOIN prompts p ON p.id = e.prompt_id"
        );
        kept.extend(texts(&database, &asked));
        trained.push((arm.to_owned(), texts(&database, &drawn)));
    }
    assert_eq!(kept.len(), 26);
    for (name, prompts) in &trained {
        assert!(!prompts.is_empty(), "{name}");
        assert!(prompts.is_disjoint(&kept), "{name} was trained on held-out prompts");
    }
    let arms_draw = |arm: &str| &trained.iter().find(|(name, _)| name == arm).unwrap().1;
    assert_eq!(arms_draw("offline_dpo"), arms_draw("online_dpo"), "the same prompt slices");
    assert!(arms_draw("prepare").is_disjoint(arms_draw("online_dpo")));
    assert!(trained[0].1.is_disjoint(arms_draw("online_dpo")));
}
