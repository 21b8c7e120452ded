//! Tests of `pairs`: what lines mean, which are refused, what is left out and counted.

use super::*;

fn parse(line: &str) -> Result<PairText, String> {
    let object = serde_json::from_str(line).unwrap();
    pair_text(&object).map_err(|refusal| refusal.problem)
}

#[test]
fn a_pair_without_two_different_answers_is_refused() {
    let u = r#"{"role": "user", "content": "q"}"#;
    let a = r#"{"role": "assistant", "content": "a"}"#;
    let b = r#"{"role": "assistant", "content": "b"}"#;
    let empty = r#"{"role": "assistant", "content": " "}"#;
    assert!(parse(&format!(r#"{{"chosen": [{u}, {a}], "rejected": [{u}, {b}]}}"#)).is_ok());
    for (line, reason) in [
        (format!(r#"{{"chosen": [{u}, {a}]}}"#), "rejected"),
        (format!(r#"{{"chosen": [{u}, {a}], "rejected": [{u}, {a}]}}"#), "the same"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#.to_owned(), "the same"),
        (format!(r#"{{"chosen": [{u}, {a}], "rejected": [{u}, {empty}]}}"#), "empty"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": ""}"#.to_owned(), "empty"),
    ] {
        let found = parse(&line).unwrap_err();
        assert!(found.contains(reason), "{line}: {found}");
    }
}

#[test]
fn pairs_of_ids_are_held_to_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    let line = |prompt: &str, chosen: &str, rejected: &str, reference: &str| {
        format!(
            r#"{{"prompt_ids": {prompt}, "chosen_ids": {chosen}, "rejected_ids": {rejected}, "reference_logprob_chosen": {reference}, "reference_logprob_rejected": -2.5, "key": 1}}"#
        )
    };
    std::fs::write(&path, line("[1]", "[2, 3]", "[4]", "-1.5")).unwrap();
    let pairs = read_ids(&path, 5).unwrap();
    assert_eq!((pairs[0].reference, pairs[0].weight), (Some((-1.5, -2.5)), 1.0));
    let weighted = |weight: &str| {
        let line = line("[1]", "[2, 3]", "[4]", "-1.5");
        std::fs::write(&path, line.replace("\"key\": 1", &format!("\"weight\": {weight}")))
            .unwrap();
        read_ids(&path, 5)
    };
    assert_eq!(weighted("0.25").unwrap()[0].weight, 0.25);
    for weight in ["0", "-1.0", "1e999"] {
        let found = weighted(weight).unwrap_err().to_string();
        assert!(found.contains("weight") || found.contains("no JSON"), "{found}");
    }
    for (bad, reason) in [
        (line("[1]", "[2, 5]", "[4]", "-1"), "id 5 is beyond"),
        (line("[]", "[2]", "[4]", "-1"), "no token ids"),
        (line("[1]", "[2]", "[2]", "-1"), "the same token ids"),
        (line("[1]", "[2]", "[3]", "null"), "cannot be read"),
        (line("[-1]", "[2]", "[3]", "-1"), "cannot be read"),
    ] {
        std::fs::write(&path, bad).unwrap();
        let found = read_ids(&path, 5).unwrap_err().to_string();
        assert!(found.contains(reason), "{found}");
    }
}

fn ids(prompt: usize, chosen: usize, rejected: usize) -> TokenPair {
    // Chosen and rejected share their beginning and differ in their last id.
    let mut chosen: Vec<u32> = vec![7; chosen];
    if let Some(last) = chosen.last_mut() {
        *last = 9;
    }
    let (prompt, rejected) = (vec![1; prompt], vec![7; rejected]);
    TokenPair { prompt, chosen, rejected, reference: None, weight: 1.0 }
}

fn fitted(text: &str, training: Training, pair: TokenPair) -> Result<TokenPair, &'static str> {
    let settings = TrainSettings::read(training, text, &[]).unwrap();
    let mut fitted = fit(vec![pair], &Limits::of(&settings, training, 64));
    match fitted.pairs.pop() {
        Some(pair) => Ok(pair),
        None => Err(fitted.dropped.into_keys().next().unwrap()),
    }
}

#[test]
fn over_long_pairs_are_dropped_or_cut_and_always_counted() {
    let drop = "max_length = 8";
    let cut = "max_length = 8\noverlong = 'truncate'";
    assert!(fitted(drop, Training::Dpo, ids(4, 4, 2)).is_ok());
    assert_eq!(fitted(drop, Training::Dpo, ids(4, 5, 2)), Err("too_long"));
    let pair = fitted(cut, Training::Dpo, ids(4, 2, 9)).unwrap();
    assert_eq!((pair.prompt.len(), pair.chosen.len(), pair.rejected.len()), (4, 2, 4));
    assert_eq!(fitted(cut, Training::Dpo, ids(8, 1, 2)), Err("prompt_fills_max_length"));
    assert_eq!(fitted(cut, Training::Dpo, ids(4, 5, 6)), Err("same_ids_after_truncation"));
    assert_eq!(fitted(cut, Training::Reward, ids(0, 9, 2)), Err("too_long"));
    let known = |pair| TokenPair { reference: Some((-1.0, -2.0)), ..pair };
    assert_eq!(fitted(cut, Training::Dpo, known(ids(4, 2, 9))), Err("too_long"), "of whole sides");
    assert!(fitted(cut, Training::Dpo, known(ids(4, 2, 4))).is_ok());
    let short = "max_length = 8\nmax_prompt_length = 3";
    assert_eq!(fitted(short, Training::Dpo, ids(4, 1, 1)), Err("prompt_too_long"));
    let long = "max_length = 500";
    assert_eq!(fitted(long, Training::Dpo, ids(60, 5, 2)), Err("too_long"), "64 positions");
    let same = TokenPair { chosen: vec![7], ..ids(1, 0, 1) };
    assert_eq!(fitted(drop, Training::Dpo, same), Err("same_ids"));
    // What is cut is counted as what is left out is.
    let settings = TrainSettings::read(Training::Dpo, cut, &[]).unwrap();
    let pairs = vec![ids(4, 2, 9), ids(4, 1, 2), ids(8, 1, 2), ids(4, 9, 2)];
    let fitted = fit(pairs, &Limits::of(&settings, Training::Dpo, 64));
    let dropped: Vec<_> = fitted.dropped.into_iter().collect();
    assert_eq!((fitted.pairs.len(), fitted.truncated), (3, 2));
    assert_eq!(dropped, [("prompt_fills_max_length", 1)]);
}
