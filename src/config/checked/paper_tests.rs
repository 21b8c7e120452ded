//! `configs/llama3-8b.toml` against the paper's numbers, which stand here as a table: arXiv 2405.07863,
//! where each is said, and by which knob the configuration says it.

use std::path::Path;

use super::*;
use crate::{LengthUnit, TrainSettings, Training};

/// Table of the file, key, value as TOML writes it, and where the paper says so. The file's own remark
/// behind the value names the same place.
const NUMBERS: [(&str, &str, &str, &str); 44] = [
    ("[run]", "iterations_max", "3", "section 3.3"),
    ("[run]", "prompts_per_iteration", "20000", "section 3.3"),
    ("[run]", "reuse_prompts", "false", "section 3.3"),
    ("[generate]", "max_new_tokens", "2048", "algorithm 2"),
    ("[[generate.arms]] 1", "temperature", "1.0", "algorithm 2"),
    ("[[generate.arms]] 1", "n", "4", "algorithm 2"),
    ("[[generate.arms]] 1", "top_p", "1.0", ""),
    ("[[generate.arms]] 1", "top_k", "0", ""),
    ("[[generate.arms]] 2", "temperature", "0.7", "algorithm 2"),
    ("[[generate.arms]] 2", "n", "4", "algorithm 2"),
    ("[[generate.arms]] 2", "top_p", "1.0", ""),
    ("[[generate.arms]] 2", "top_k", "0", ""),
    ("# [label]", "# length_penalty", "0.001", "equation 9"),
    ("# [label]", "# length_unit", "\"characters\"", "equation 9"),
    ("[pair]", "rule", "\"best_worst\"", "section 3.3"),
    ("[train]", "loss", "\"sigmoid\"", "section 3.3"),
    ("[train]", "beta", "0.1", "section 3.3 and equation 2"),
    ("[train]", "learning_rate", "5e-7", "table 7"),
    ("[train]", "schedule", "\"cosine\"", "table 7"),
    ("[train]", "warmup_ratio", "0.03", "table 7"),
    ("[train]", "epochs", "2", "table 7"),
    ("[train]", "batch_pairs", "128", "table 7"),
    ("[train]", "history", "\"all\"", "section 3.3"),
    ("[sft]", "learning_rate", "2e-5", "section 3.1"),
    ("[sft]", "schedule", "\"cosine\"", "section 3.1"),
    ("[sft]", "warmup_ratio", "0.03", "section 3.1"),
    ("[sft]", "epochs", "1", "section 3.1"),
    ("[sft]", "batch_sequences", "32", "section 3.1"),
    ("[sft]", "packing", "true", "section 3.1"),
    ("[sft]", "block_tokens", "8192", "section 3.1"),
    ("[reward]", "base", "\"models/Meta-Llama-3-8B-Instruct\"", "section 2.1"),
    ("[reward]", "learning_rate", "2e-6", "section 2.1"),
    ("[reward]", "schedule", "\"cosine\"", "section 2.1"),
    ("[reward]", "warmup_ratio", "0.03", "section 2.1"),
    ("[reward]", "epochs", "1", "section 2.1"),
    ("[reward]", "batch_pairs", "512", "section 2.1"),
    ("[preference]", "base", "\"models/Meta-Llama-3-8B-Instruct\"", "section 2.1"),
    ("[preference]", "learning_rate", "5e-6", "section 2.1"),
    ("[preference]", "schedule", "\"cosine\"", "section 2.1"),
    ("[preference]", "warmup_ratio", "0.03", "section 2.1"),
    ("[preference]", "epochs", "1", "section 2.1"),
    ("[preference]", "batch_sequences", "128", "section 2.1"),
    ("[preference]", "block_tokens", "3072", "section 2.1"),
    ("[preference]", "packing", "true", "section 2.1"),
];

/// What no knob says: the data's sizes and the results. They stand in remarks, with their place.
const REMARKS: [(&str, &[&str]); 6] = [
    (
        "table 5, appendix B",
        &[
            "HH-RLHF 115,396",
            "SHP 93,301",
            "HelpSteer 37,131",
            "SafeRLHF 26,874",
            "UltraFeedback 340,025",
            "UltraInteract 161,927",
            "CodeUltraFeedback 50,156",
            "Argilla-Math 2,418",
            "OpenOrca 6,926",
            "Capybara 14,811",
        ],
    ),
    ("table 1", &["99.4 / 65.1 / 87.8 / 86.4", "98.3 / 65.8 / 89.7 / 94.7"]),
    ("table 2", &["10.2 / 7.69 / 5.6", "22.5 / 8.17 / 22.4", "31.3 / 8.46 / 29.1"]),
    ("table 4", &["LC 38.1", "Arena-Hard 22.1", "382", "656"]),
    ("figure 3", &["0.06", "2,000 prompts with 8 answers"]),
    (
        "section 3.3 speaks of 16 responses",
        &["n = 8", "60K prompts in three disjoint parts of 20K"],
    ),
];

fn text() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    std::fs::read_to_string(folder.join("llama3-8b.toml")).unwrap()
}

/// Lines `key = value # remark` by the table that they stand in; arms are numbered.
fn lines(text: &str) -> Vec<(String, String, String, String)> {
    let (mut head, mut arms, mut found) = (String::new(), 0, Vec::new());
    for line in text.lines() {
        if line.starts_with('[') || line.starts_with("# [label]") {
            head = line.split_once("  ").map_or(line, |(head, _)| head).trim().to_owned();
            if head == "[[generate.arms]]" {
                arms += 1;
                head.push_str(&format!(" {arms}"));
            }
            continue;
        }
        let Some((key, rest)) = line.split_once(" = ") else { continue };
        let (value, remark) = rest.split_once('#').unwrap_or((rest, ""));
        found.push((
            head.clone(),
            key.to_owned(),
            value.trim().to_owned(),
            remark.trim().to_owned(),
        ));
    }
    found
}

#[test]
fn every_number_of_the_paper_stands_in_its_configuration_with_its_place() {
    let text = text();
    let lines = lines(&text);
    for (head, key, value, place) in NUMBERS {
        let of = |line: &&(String, String, String, String)| line.0 == head && line.1 == key;
        let Some((_, _, found, remark)) = lines.iter().find(of) else {
            panic!("{head} has no {key}")
        };
        assert_eq!(found, value, "{head} {key}");
        assert!(remark.starts_with(place), "{head} {key}: {remark:?} is not from {place}");
    }
    let remarks: String =
        text.lines().map(|line| line.trim_start_matches("# ")).collect::<Vec<_>>().join(" ");
    for (place, numbers) in REMARKS {
        assert!(remarks.contains(place), "{place}");
        for number in numbers {
            assert!(remarks.contains(number), "{number} of {place}");
        }
    }
}

#[test]
fn what_it_says_is_what_the_parser_reads() {
    let config = CheckedConfig::from_text(&text(), Path::new("/etc")).unwrap();
    assert_eq!(config.generate.responses_per_prompt(), 8, "n of algorithm 2");
    assert_eq!(config.reference_path(), config.run.policy.path, "the initial policy, fixed");
    assert_eq!(config.train.settings.label_smoothing, 0.0);
    // The length-penalised run is the same file with its marks taken away.
    let penalised = ["[label]", "length_penalty", "length_unit"]
        .into_iter()
        .fold(text(), |text, key| text.replace(&format!("\n# {key}"), &format!("\n{key}")));
    let penalised = CheckedConfig::from_text(&penalised, Path::new("/etc")).unwrap();
    assert_eq!(penalised.label.length_penalty, 0.001);
    assert_eq!(penalised.label.length_unit, Some(LengthUnit::Characters));
    assert_eq!(config.label.length_penalty, 0.0);
}

/// The defaults are the paper's too, so that a configuration that says nothing departs from it nowhere.
#[test]
fn what_is_left_out_is_the_papers() {
    let paper = CheckedConfig::from_text(&text(), Path::new("/etc")).unwrap();
    let plain = CheckedConfig::from_text("[run]\npolicy = 'p'\n", Path::new("/etc")).unwrap();
    let numbers = |config: &CheckedConfig| {
        let arms: Vec<_> = config
            .generate
            .arms
            .iter()
            .map(|arm| (arm.temperature, arm.top_p, arm.top_k, arm.n))
            .collect();
        let run = &config.run;
        (arms, config.generate.max_new_tokens, run.iterations_max, run.prompts_per_iteration)
    };
    assert_eq!(numbers(&plain), numbers(&paper));
    for (training, said) in [
        (Training::Dpo, &paper.train.settings),
        (Training::Sft, &paper.sft.settings),
        (Training::Reward, &paper.reward.settings),
        (Training::Preference, &paper.preference.settings),
    ] {
        let silent = TrainSettings::defaults(training).unwrap();
        let of = |settings: &TrainSettings| {
            (
                settings.learning_rate,
                settings.schedule.label(),
                settings.warmup_ratio,
                settings.epochs,
            )
        };
        assert_eq!(of(&silent), of(said), "{training:?}");
        let sizes = |settings: &TrainSettings| {
            (settings.batch_pairs, settings.batch_sequences, settings.block_tokens, settings.beta)
        };
        assert_eq!(sizes(&silent), sizes(said), "{training:?}");
    }
}
