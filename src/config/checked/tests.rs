//! Tests of whole configurations: defaults, rules between knobs, the frozen text and its way back.

use std::path::Path;

use super::*;
use crate::reference::Reference;
use crate::sections::{
    Compare, GateFailure, ScorerKind, ScorerModel, ScorerRole, UseDevices, WhenShort,
};
use crate::train::History;

const MINIMAL: &str = "[run]\npolicy = \"models/policy\"\n";

fn read(text: &str) -> Result<CheckedConfig, ConfigError> {
    CheckedConfig::from_text(text, Path::new("/etc/rlhfd"))
}

fn complaint(text: &str) -> String {
    read(&format!("{MINIMAL}{text}")).unwrap_err().to_string()
}

#[test]
fn the_policy_alone_is_a_configuration_with_the_papers_defaults() {
    let config = read(MINIMAL).unwrap();
    assert_eq!(config.run.policy.path, Path::new("/etc/rlhfd/models/policy"));
    assert_eq!(config.reference_path(), config.run.policy.path);
    assert_eq!((config.run.name.as_str(), config.run.seed), ("main", 1));
    assert_eq!((config.run.iterations_max, config.run.prompts_per_iteration), (3, 20_000));
    assert_eq!(config.run.when_short, WhenShort::Wait);
    assert_eq!(config.generate.responses_per_prompt(), 8);
    let temperatures: Vec<f64> = config.generate.arms.iter().map(|arm| arm.temperature).collect();
    assert_eq!(temperatures, [1.0, 0.7]);
    assert_eq!(config.label.scorers[0].model, ScorerModel::Job("main".to_owned()));
    assert_eq!(config.train.settings.learning_rate, 5e-7);
    assert_eq!(config.train.history, History::All);
    assert_eq!(config.reward.settings.learning_rate, 2e-6);
    assert_eq!(config.evaluate.max_new_tokens, config.generate.max_new_tokens);
    assert_eq!(config.devices.use_devices, UseDevices::Auto);
}

#[test]
fn the_commented_sample_is_the_default_configuration() {
    let sample = read(&crate::commented_toml()).unwrap();
    assert_eq!(sample, read(MINIMAL).unwrap());
}

#[test]
fn the_shipped_sample_is_what_the_rows_say() {
    let shipped = include_str!("../../../configs/rlhfd.toml");
    assert!(
        shipped == crate::commented_toml(),
        "configs/rlhfd.toml differs from the rows of `knobs`: make it again with \
         `cargo run -p rlhfd-config --example commented > configs/rlhfd.toml`"
    );
}

#[test]
fn the_demos_configuration_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let demo = CheckedConfig::load(&folder.join("demo.toml")).unwrap();
    assert_eq!((demo.run.iterations_max, demo.generate.responses_per_prompt()), (2, 4));
}

#[test]
fn the_sample_with_every_mark_taken_away_is_read_too() {
    // What a user gets who uncomments a line: every example must be one that the parser takes.
    let mut text = String::new();
    for line in crate::commented_toml().lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let key = bare.split(" = ").next().unwrap_or_default();
        let is_knob = bare.contains(" = ") && SECTIONS.iter().any(|s| s.knob(key).is_some());
        // The scorer here names its model and no job, is a reward model, and no canary.
        let alone = ["job", "compare", "canary_gain_min"].contains(&key);
        if (is_knob && !alone) || bare.starts_with('[') && bare.ends_with(']') {
            text.push_str(bare);
            text.push('\n');
        }
    }
    let config = read(&text).unwrap();
    assert_eq!(config.train.settings.trainable_layers, Some(4));
    assert!(matches!(config.label.scorers[0].model, ScorerModel::Folder(_)));
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_its_line() {
    let text = "[run]\nseed = -1\nnmae = 'x'\n[generat]\nn = 0\n[train]\nbeta = 'high'\n\
                learnin_rate = 1.0\n[[generate.arms]]\nn = 0\n[evaluate]\ntemperatures = []\n";
    let message = read(text).unwrap_err().to_string();
    for part in [
        "line 2: run.seed: is -1, but must be a whole number from 0",
        "line 3: run.nmae: is unknown; did you mean `name`?",
        "run.policy: is missing",
        "line 4: generat: is no section; did you mean [generate]?",
        "line 7: train.beta: is \"high\", but must be a number above 0",
        "line 8: train.learnin_rate: is unknown; did you mean `learning_rate`?",
        "line 10: generate.arms.n: is 0, but must be a whole number from 1",
        "line 12: evaluate.temperatures: is a list of 0",
    ] {
        assert!(message.contains(part), "`{part}` is not in:\n{message}");
    }
}

#[test]
fn a_key_in_the_wrong_place_is_told_where_it_belongs() {
    assert!(complaint("[generate]\nbeta = 0.1\n").contains("it belongs in [train]"));
    let message = read("beta = 0.1\n[run]\npolicy = 'p'\n").unwrap_err().to_string();
    assert!(message.contains("line 1: beta: stands outside a section; it belongs in [train]"));
    assert!(complaint("[generate]\narms = 3\n").contains("write [[generate.arms]]"));
    assert!(read("run = 3").unwrap_err().to_string().contains("is a section: write [run]"));
}

#[test]
fn sets_are_a_list_of_different_names() {
    let offline = |value: &str| read(&format!("[run]\npolicy = 'p'\n[train]\noffline = {value}\n"));
    assert!(offline("[]").unwrap().train.offline.is_empty());
    let config = offline("['ultra', 'own-2']").unwrap();
    assert_eq!(config.train.offline, ["ultra", "own-2"]);
    assert_eq!((config.train.offline_weight, config.train.history_weight), (1.0, 1.0));
    assert_eq!(config.with_frozen(&config.to_frozen_toml()).unwrap(), config);
    for wrong in ["'ultra'", "['a', 'a']", "['A']", "['a/b']", "[3]", "['']"] {
        let message = offline(wrong).unwrap_err().to_string();
        assert!(message.contains("train.offline: is"), "{wrong}: {message}");
    }
    assert!(complaint("[train]\noffline_weight = 0\n").contains("above 0"));
    assert!(complaint("[train]\nhistory_weight = -1\n").contains("above 0"));
}

#[test]
fn a_reference_that_moves_is_a_policy_of_the_run() {
    let read_train = |train: &str| read(&format!("[run]\npolicy = 'p'\n[train]\n{train}\n"));
    for (train, which) in [
        ("", Reference::Fixed),
        ("reference = 'fixed'\nlora_rank = 8", Reference::Fixed),
        ("reference = 'previous'", Reference::Previous),
        ("reference = 'every'\nreference_every = 3", Reference::Every),
        ("reference = 'average'\nreference_decay = 0.9", Reference::Average),
    ] {
        let config = read_train(train).unwrap();
        assert_eq!(config.train.reference.which, which, "{train}");
        assert_eq!(config.with_frozen(&config.to_frozen_toml()).unwrap(), config);
    }
    for wrong in ["reference = 'pi0'", "reference_every = 0", "reference_decay = 0.0"] {
        assert!(read_train(wrong).is_err(), "{wrong}");
    }
    assert!(read_train("reference_decay = 1.0").is_err());
    for word in ["previous", "every", "average"] {
        let said = complaint(&format!("[train]\nreference = '{word}'\nlora_rank = 8\n"));
        assert!(said.contains("train.reference") && said.contains("write reference = \"fixed\""));
        let text = format!("[run]\npolicy = 'p'\nreference = 'r'\n[train]\nreference = '{word}'\n");
        let said = read(&text).unwrap_err().to_string();
        assert!(said.contains("line 5: train.reference") && said.contains("[run] reference"));
    }
}

#[test]
fn rules_between_knobs_hold() {
    for (text, part) in [
        ("[[generate.arms]]\nn = 1\n", "a preference needs two"),
        ("[[generate.arms]]\ntemperature = 0\nn = 2\n", "greedy writes the same response"),
        ("[[generate.arms]]\n[[generate.arms]]\n", "\"t1.0\", made from the temperature, is taken"),
        ("[[generate.arms]]\nname='a'\n[[generate.arms]]\nname='a'\n", "\"a\" is taken already"),
        ("[[label.scorers]]\nname = 'r'\n", "names no model"),
        ("[[label.scorers]]\nmodel = 'm'\njob = 'reward/x'\n", "names both model and job"),
        ("[[label.scorers]]\njob = 'x'\n", "\"reward/NAME\""),
        ("[[label.scorers]]\njob = 'reward/../x'\n", "\"reward/NAME\""),
        (
            "[[label.scorers]]\nmodel='m'\n[[label.scorers]]\nmodel='n'\n",
            "\"reward\" is taken already",
        ),
        ("[[label.scorers]]\nmodel='m'\nweight=0\n", "write canary = true"),
        ("[[label.scorers]]\nmodel='m'\nweight=-1\n", "must be a number from 0"),
        ("[[label.scorers]]\nmodel='m'\ncanary=true\n", "are canaries alone"),
        (
            "[[label.scorers]]\nmodel='m'\n[[label.scorers]]\nname='c'\nmodel='m'\ncanary=true\n\
             weight=1\n",
            "is given to a canary",
        ),
        (
            "[[label.scorers]]\nmodel='m'\n[[label.scorers]]\nname='c'\nmodel='m'\ncanary=true\n\
             normalise='standard'\n",
            "which is never weighed",
        ),
        ("[[label.scorers]]\nmodel='m'\nnormalise='ranks'\n", "\"standard\" or \"rank\""),
        ("[label]\nlength_penalty = 0.001\n", "has no lengths to go by"),
        ("[label]\nlength_penalty_fit = true\n", "has no lengths to go by"),
        ("[label]\nlength_penalty = -1\nlength_unit='tokens'\n", "must be a number from 0"),
        (
            "[label]\nlength_penalty=0.1\nlength_penalty_fit=true\nlength_unit='tokens'\n",
            "leave one of them out",
        ),
        ("[pair]\nrule = 'threshold'\n", "say how far apart"),
        ("[pair]\nthreshold = 1\n", "belongs to rule = \"threshold\""),
        ("[pair]\nmax_pairs = 2\n", "the others give one pair"),
        ("[pair]\narms = 'across'\n[[generate.arms]]\n", "but there is one arm"),
        (
            "[pair]\narms='within'\n[[generate.arms]]\nn=1\n[[generate.arms]]\nname='b'\nn=1\n",
            "no arm gives two responses",
        ),
        ("[train]\nlabel_smoothing = 0.1\n", "use `loss = \"cdpo\"`"),
        ("[reward]\nbeta = 0.1\n", "it belongs in [train]"),
        ("[scheduler]\nheartbeat_ms = 60000\n", "less than three heartbeats"),
        ("[devices]\nyield_above_mib = 1\nlook_ms = 1999\n", "less than two heartbeats"),
        ("[evaluate]\ntemperatures = [1.0, 1]\n", "a list of different numbers"),
        ("[gate]\nwin_rate_min = 1.5\n", "must be a number from 0 to 1"),
        ("[gate]\nagainst = 'best'\n", "must be \"initial\" or \"previous\""),
        ("[gate]\nagainst = 'previous'\n", "belongs to win_rate_min"),
        ("[gate]\non_fail = 'pause'\n", "nothing can fail"),
        ("[gate]\ncanary_gain_min = 0\n", "has no canary to ask"),
        ("[gate]\nlength_growth_max = 0\n", "must be a number above 0"),
        ("[gate]\nkl_max = 9\n[evaluate]\ntemperatures = [0.0]\n", "add 1.0 to [evaluate]"),
        ("[gate]\nkl_min = 9\n", "did you mean `kl_max`?"),
        ("[devices]\nuse = ['cpu', 0]\n", "must be \"auto\", [\"cpu\"], or a list"),
    ] {
        let message = complaint(text);
        assert!(message.contains(part), "`{part}` is not in:\n{message}");
    }
    let name = read("[run]\npolicy = 'p'\nname = '../x'\n").unwrap_err().to_string();
    assert!(name.contains("run.name"), "{name}");
}

#[test]
fn several_scorers_a_canary_and_a_penalty_are_read_and_frozen() {
    let text = format!(
        "{MINIMAL}[label]\nlength_penalty_fit = true\nlength_unit = 'tokens'\n\
         [[label.scorers]]\nname = 'watch'\nmodel = 'm'\ncanary = true\n\
         [[label.scorers]]\nname = 'help'\nmodel = 'm'\nweight = 0.5\nnormalise = 'standard'\n\
         [[label.scorers]]\nname = 'safe'\njob = 'reward/safe'\n\
         [pair]\nrule = 'all'\nmax_pairs = 3\narms = 'within'\nunfinished = 'only_rejected'\n"
    );
    let config = read(&text).unwrap();
    let roles: Vec<_> = config.label.scorers.iter().map(|scorer| scorer.role).collect();
    let weighted = ScorerRole::Weighted;
    assert_eq!(roles, [ScorerRole::Canary, weighted(0.5), weighted(1.0)]);
    let order: Vec<_> = config.label.scorers_first_weighted().map(|s| s.name.as_str()).collect();
    assert_eq!(order, ["help", "safe", "watch"]);
    assert_eq!((config.pair.pairs_max(), config.pair.responses_max(8)), (3, 6));
    let frozen = config.to_frozen_toml();
    assert_eq!(config.with_frozen(&frozen).unwrap(), config);
    // The paper's rule gives one pair of two responses.
    let paper = read(MINIMAL).unwrap().pair;
    assert_eq!((paper.pairs_max(), paper.responses_max(8)), (1, 2));
}

#[test]
fn a_preference_model_is_a_scorer_and_its_tournament_is_held_to_what_it_tells() {
    let judge = "[[label.scorers]]\nname = 'judge'\nkind = 'preference'\njob = 'preference/main'\n";
    let config = read(&format!("{MINIMAL}{judge}")).unwrap();
    let scorer = &config.label.scorers[0];
    assert_eq!((scorer.kind, scorer.compare), (ScorerKind::Preference, Compare::RoundRobin));
    assert_eq!(scorer.model, ScorerModel::Job("main".to_owned()));
    let linear = format!("{judge}compare = 'linear'\n");
    let sound = read(&format!("{MINIMAL}{linear}")).unwrap();
    assert_eq!(sound.with_frozen(&sound.to_frozen_toml()).unwrap(), sound);
    let reward = "[[label.scorers]]\nname = 'help'\nmodel = 'm'\n";
    for (text, part) in [
        (format!("{linear}{reward}"), "the only scorer with a weight"),
        (format!("{linear}canary = true\n{reward}"), "and no canary"),
        (format!("[label]\nlength_penalty = 0.1\nlength_unit = 'tokens'\n{linear}"), "penalty"),
        (format!("{linear}[pair]\nrule = 'all'\n"), "rule must be \"best_worst\""),
        (format!("{linear}[pair]\nunfinished = 'exclude'\n"), "may not meet"),
        (format!("{reward}compare = 'linear'\n"), "belongs to kind = \"preference\""),
        (format!("{judge}score_position = 'last'\n"), "belongs to kind = \"reward\""),
        (judge.replace("'preference/main'", "'reward/main'"), "write kind = \"reward\""),
        (judge.replace("'preference/main'", "'sft/main'"), "\"reward/NAME\" or"),
        (judge.replace("'preference'", "'judge'"), "\"reward\" or \"preference\""),
    ] {
        let message = complaint(&text);
        assert!(message.contains(part), "`{part}` is not in:\n{message}");
    }
}

#[test]
fn a_gate_is_read_and_frozen_and_none_is_the_default() {
    let text = format!(
        "{MINIMAL}[[label.scorers]]\nmodel = 'm'\n\
         [[label.scorers]]\nname = 'watch'\nmodel = 'm'\ncanary = true\n\
         [gate]\nwin_rate_min = 0.5\nagainst = 'previous'\ncanary_gain_min = -0.25\n\
         on_fail = 'pause'\n"
    );
    let config = read(&text).unwrap();
    let gate = &config.gate;
    assert_eq!((gate.win_rate_min, gate.canary_gain_min), (Some(0.5), Some(-0.25)));
    assert_eq!((gate.kl_max, gate.on_fail), (None, GateFailure::Pause));
    assert_eq!(config.with_frozen(&config.to_frozen_toml()).unwrap(), config);
    let none = read(MINIMAL).unwrap();
    assert_eq!((none.gate.win_rate_min, none.gate.length_growth_max), (None, None));
    assert_eq!(none.run.patience, 0);
}

#[test]
fn a_frozen_text_reads_back_as_the_same_configuration() {
    let text = "[run]\npolicy = \"m/a \\\"b\\\" \\\\c\"\nreference = '/r'\nseed = 9223372036854775807\n\
                [generate]\nmax_new_tokens = 48\n[[generate.arms]]\ntop_p = 0.9\nn = 2\n\
                [[label.scorers]]\njob = 'reward/demo'\n[train]\nlearning_rate = 3e-6\n\
                trainable_layers = 2\n[devices]\nuse = ['cpu']\n[worker]\nthreads = 2\n";
    let config = read(text).unwrap();
    let frozen = config.to_frozen_toml();
    let again = config.with_frozen(&frozen).unwrap();
    assert_eq!(again, config);
    assert_eq!(again.to_frozen_toml(), frozen);
    assert!(!frozen.contains("/etc/rlhfd"), "{frozen}");
    // The machine's part is not frozen: another one keeps the text and takes its own place.
    let other = read(&text.replace("threads = 2", "threads = 1")).unwrap();
    assert_eq!(other.to_frozen_toml(), frozen);
    assert_eq!(other.with_frozen(&frozen).unwrap().worker.threads, 1);
}

#[test]
fn every_knob_that_is_frozen_stands_in_the_frozen_text() {
    // With every key given, so that none is left out for want of a value, but for those that need
    // another scorer than this one.
    let alone = ["job", "compare", "canary_gain_min"];
    let mut text = String::from("[run]\n");
    for section in SECTIONS.into_iter().filter(|section| section.frozen) {
        if section.name != "run" {
            let head = if section.repeated {
                format!("[[{}]]", section.name)
            } else {
                format!("[{}]", section.name)
            };
            text.push_str(&format!("{head}\n"));
        }
        for knob in section.knobs.iter().filter(|knob| !alone.contains(&knob.key)) {
            let value = if knob.default.is_empty() { knob.example } else { knob.default };
            text.push_str(&format!("{} = {value}\n", knob.key));
        }
    }
    let frozen = read(&text).unwrap().to_frozen_toml();
    let table: toml::Table = frozen.parse().unwrap();
    for section in SECTIONS.into_iter().filter(|section| section.frozen) {
        let mut at = toml::Value::Table(table.clone());
        for part in section.name.split('.') {
            at = at[part].clone();
        }
        let at = if section.repeated { at[0].clone() } else { at };
        for knob in section.knobs.iter().filter(|knob| !alone.contains(&knob.key)) {
            assert!(at.get(knob.key).is_some(), "[{}] {} is not frozen", section.name, knob.key);
        }
    }
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let folder = std::env::temp_dir().join(format!("rlhfd-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("rlhfd.toml");
    let load = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        CheckedConfig::load(&file)
    };
    assert!(matches!(
        load(b"[run]\npolicy = '\xff'\n"),
        Err(ConfigError::NotText { offset: 16, .. })
    ));
    assert!(matches!(load(&vec![b'#'; 1 << 21]), Err(ConfigError::TooLarge { .. })));
    assert!(matches!(load(b"\0\0"), Err(ConfigError::Wrong { .. })));
    let config = load(MINIMAL.as_bytes()).unwrap();
    assert_eq!(config.run.policy.path, folder.join("models/policy"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(CheckedConfig::load(&file), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn a_chain_names_its_start_and_its_data() {
    let text = "[run]\npolicy = 'p'\nstart = 'sft/main'\n[sft]\ndata = ['a.jsonl', { file = 'b.jsonl', weight = 2 }]\n";
    let config = CheckedConfig::from_text(text, Path::new("/etc")).unwrap();
    assert_eq!(config.run.start.job(), Some("main"));
    let file = |file: &'_ crate::DataFile| (file.place.path.display().to_string(), file.weight);
    let files: Vec<_> = config.sft.data.files.iter().map(file).collect();
    assert_eq!(files, [("/etc/a.jsonl".to_owned(), 1.0), ("/etc/b.jsonl".to_owned(), 2.0)]);
    assert_eq!((config.sft.data.job.as_str(), config.reward.data.files.len()), ("main", 0));
    let frozen = CheckedConfig::from_text(&config.to_frozen_toml(), Path::new("/etc")).unwrap();
    assert_eq!((&frozen.run, &frozen.sft), (&config.run, &config.sft));
    for (given, told) in [
        ("start = 'reward/main'", "\"policy\" or \"sft/NAME\""),
        ("start = 'sft/main'\n[sft]\nbase = 'b'", "leave one of them out"),
        ("[reward]\ndata = ['a', 'a']", "a list of different paths"),
        ("[reward]\ndata = [{ file = 'a', weight = 0 }]", "a list of different paths"),
        ("[reward]\ndata = [{ file = 'a', wait = 2 }]", "a list of different paths"),
    ] {
        let text = format!("[run]\npolicy = 'p'\n{given}\n");
        let error = CheckedConfig::from_text(&text, Path::new("/etc")).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
}
