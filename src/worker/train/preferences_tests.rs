//! Tests of `preferences`: what lines mean, which are refused, what is left out and counted.

use rlhfd_config::Training;

use super::*;

fn parse(line: &str) -> Result<PreferenceLine, String> {
    read(&serde_json::from_str(line).unwrap()).map_err(|refusal| refusal.problem)
}

#[test]
fn a_pair_may_carry_a_margin_a_source_and_scores() {
    let line = r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0.5, "source": "hh",
        "chosen_score": 4, "rejected_score": 1.5}"#;
    let line = parse(line).unwrap();
    assert_eq!(line.pairs, [Ranked { chosen: 0, rejected: 1, apart: 0.5 }]);
    assert_eq!((line.source.as_deref(), line.scores), (Some("hh"), Some((4.0, 1.5))));
    let plain =
        parse(r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": null}"#).unwrap();
    assert_eq!((plain.pairs[0].apart, plain.source, plain.scores), (0.0, None, None));
}

#[test]
fn a_group_names_its_pairs_by_the_places_of_its_responses() {
    let line = r#"{"prompt": [{"role": "user", "content": "q"}], "responses": ["a", "b", "c"],
        "pairs": [[2, 0], [0, 1]]}"#;
    let line = parse(line).unwrap();
    let places: Vec<_> = line.pairs.iter().map(|pair| (pair.chosen, pair.rejected)).collect();
    assert_eq!(places, [(2, 0), (0, 1)]);
    let Text::Messages { prompt, responses } = line.text else { panic!() };
    assert_eq!((prompt.len(), responses.len()), (1, 3));
    assert_eq!(
        (responses[2][0].role.as_str(), responses[2][0].content.as_str()),
        ("assistant", "c")
    );
}

#[test]
fn a_line_that_can_mean_nothing_is_refused_with_its_reason() {
    let group = |responses: &str, pairs: &str| {
        format!(r#"{{"prompt": "q", "responses": {responses}, "pairs": {pairs}}}"#)
    };
    for (line, reason) in [
        (r#"{"prompt": "q", "chosen": "a"}"#.to_owned(), "rejected"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#.to_owned(), "the same"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": " "}"#.to_owned(), "empty"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}"#.to_owned(), "margin"),
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b", "source": 1}"#.to_owned(), "source"),
        (
            r#"{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1}"#.to_owned(),
            "only one of",
        ),
        (group(r#"["a"]"#, "[[0, 0]]"), "list of 2 to 1024 texts"),
        (group(r#"["a", 3]"#, "[[0, 1]]"), "list of 2 to 1024 texts"),
        (group(r#"["a", " "]"#, "[[0, 1]]"), "response 1 (from 0) is empty"),
        (group(r#"["a", "b"]"#, "[]"), "\"pairs\" is not a list"),
        (group(r#"["a", "b"]"#, "[[0]]"), "[0] is not a pair"),
        (group(r#"["a", "b"]"#, "[[0, -1]]"), "[0,-1] is not a pair"),
        (group(r#"["a", "b"]"#, "[[0, 2]]"), "[0,2] is beyond the 2 responses"),
        (group(r#"["a", "b", "a"]"#, "[[0, 2]]"), "the responses of [0,2] are the same"),
        (group(r#"["a", "b"]"#, "[[0, 1], [0, 1]]"), "[0,1] is given twice"),
        (
            r#"{"prompt": "q", "responses": ["a", "b"], "pairs": [[0, 1]], "margin": 1}"#
                .to_owned(),
            "and \"margin\" too",
        ),
        (r#"{"responses": ["a", "b"], "pairs": [[0, 1]]}"#.to_owned(), "no \"prompt\""),
    ] {
        let found = parse(&line).unwrap_err();
        assert!(found.contains(reason), "{line}: {found}");
    }
}

fn why_not(text: &str, lines: &[&str]) -> Vec<Option<&'static str>> {
    let settings = TrainSettings::read(Training::Reward, text, &[]).unwrap();
    let mut seen = Seen::new(settings.near_duplicates);
    lines.iter().map(|line| unfit(&parse(line).unwrap(), &settings, &mut seen)).collect()
}

#[test]
fn ties_and_close_scores_are_left_out_where_scores_are_given() {
    let scored = |chosen: &str, rejected: &str| {
        format!(
            r#"{{"prompt": "{chosen} {rejected}", "chosen": "a", "rejected": "b", "chosen_score": {chosen}, "rejected_score": {rejected}}}"#
        )
    };
    let lines = [scored("2", "2"), scored("1", "2"), scored("2.5", "2"), scored("3", "2")];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let [tie, against, close] = ["tie", "scores_contradict", "near_equal_scores"].map(Some);
    assert_eq!(why_not("", &lines), [tie, against, None, None]);
    assert_eq!(why_not("score_gap_min = 1", &lines), [tie, against, close, None]);
}

#[test]
fn turns_that_do_not_alternate_are_left_out() {
    let turn = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let (s, u, a) = (turn("system", ""), turn("user", "q"), turn("assistant", "x"));
    let line = |prompt: &[&str]| {
        let prompt = prompt.join(", ");
        format!(r#"{{"prompt": [{prompt}], "responses": ["a", "b"], "pairs": [[0, 1]]}}"#)
    };
    let empty = turn("user", " ");
    for (prompt, good) in [
        (line(&[&u]), true),
        (line(&[&s, &u]), true),
        (line(&[&s, &u, &a, &u]), true),
        (line(&[&u, &u]), false),
        (line(&[&a]), false),
        (line(&[&u, &s]), false),
        (line(&[&s]), false),
        (line(&[&empty]), false),
    ] {
        let wanted = if good { None } else { Some("bad_turns") };
        assert_eq!(why_not("", &[&prompt]), [wanted], "{prompt}");
    }
}

#[test]
fn a_repetition_is_left_out_and_a_contradiction_is_not() {
    let one = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    let other = r#"{"prompt": "q", "chosen": "b", "rejected": "a"}"#;
    let moved = r#"{"prompt": "qa", "chosen": "b", "rejected": "bb"}"#;
    let group = r#"{"prompt": "q", "responses": ["a", "b"], "pairs": [[0, 1]]}"#;
    let lines = [one, other, one, moved, group];
    let again = Some("duplicate");
    assert_eq!(why_not("", &lines), [None, None, again, None, again]);
    assert_eq!(why_not("drop_duplicates = false", &lines), [None; 5]);
    let near = r#"{"prompt": "Q", "chosen": "A", "rejected": "B"}"#;
    assert_eq!(why_not("near_duplicates = 0.9", &[one, near]), [None, Some("near_duplicate")]);
    assert_eq!(why_not("", &[one, near]), [None, None]);
}

#[test]
fn the_share_held_out_follows_from_the_prompt_and_grows() {
    let mut taken = 0;
    for index in 0..10_000_u32 {
        let text = Text::Plain { prompt: index.to_string(), responses: Vec::new() };
        let sum: [u8; 32] = prompt_hash(&text).finalize().into();
        assert!(!is_held_out(&sum, 0.0));
        assert!(!is_held_out(&sum, 0.1) || is_held_out(&sum, 0.2));
        taken += u32::from(is_held_out(&sum, 0.2));
    }
    // Binomial(10000, 0.2): mean 2000, deviation 40; five deviations on either side.
    assert!((1800..=2200).contains(&taken), "{taken}");
}

#[test]
fn pairs_of_a_group_that_do_not_fit_go_alone_and_are_counted() {
    let ranked = |chosen, rejected| Ranked { chosen, rejected, apart: 0.0 };
    let group = Group {
        line: 1,
        conversations: vec![vec![1, 2], vec![1, 3], vec![1; 9], vec![1, 2]],
        response_tokens: vec![1, 1, 8, 1],
        pairs: vec![ranked(0, 1), ranked(2, 1), ranked(0, 3)],
        source: None,
        prompt_sum: [0; 32],
    };
    let mut dropped = BTreeMap::new();
    let left = fitting(group, 8, &mut dropped).unwrap();
    assert_eq!((left.conversations.len(), left.pairs), (2, vec![ranked(0, 1)]));
    assert_eq!(dropped, BTreeMap::from([("same_ids", 1), ("too_long", 1)]));
}
