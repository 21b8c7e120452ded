//! A preference model among the scorers: it compares the responses to each prompt, and the new policy's
//! answers with its baselines'.

use rlhfd_tests::dump;
use rlhfd_tests::models;
use rlhfd_tests::scene::{Scene, Settings, text};

use crate::story;

const JUDGE: &str = "name = \"judge\"\nkind = \"preference\"\nmodel = \"models/judge\"";

/// It stands behind a reward model, of which it is a part of the sum.
fn settings() -> Settings {
    let both = format!(
        "name = \"reward\"\nmodel = \"models/reward\"\n\n[[label.scorers]]\n{JUDGE}\nweight = 0.5"
    );
    Settings::default().with("[label.scorers]", &both)
}

fn scene(settings: &Settings) -> Scene {
    let scene = Scene::fake(settings);
    models::preference(&scene.path("models"), "judge");
    scene
}

/// Different texts among the responses to each prompt, and all pairs of them.
const PAIRS: &str =
    "SELECT sum(texts * (texts - 1) / 2) FROM (SELECT count(DISTINCT text_key) AS texts
    FROM responses WHERE purpose = 'generate' GROUP BY iteration, ordinal)";

const COMPARED: &str = "SELECT count(*) FROM labels l JOIN scorers s ON s.id = l.scorer_id
    JOIN responses x ON x.id = l.response_id JOIN responses y ON y.id = l.versus_id
    WHERE s.kind = 'preference' AND l.score IS NULL AND l.preference BETWEEN 0 AND 1";

#[test]
fn a_round_robin_compares_every_two_texts_once_and_scores_each_response() {
    let (scene, _) = story::whole(scene(&settings()));
    story::check_laws(&scene);
    let compared = format!(
        "{COMPARED} AND x.purpose = 'generate' AND x.ordinal = y.ordinal
         AND x.iteration = y.iteration AND x.text_key <> y.text_key"
    );
    assert_eq!(scene.number(&compared), scene.number(PAIRS));
    // Every response's score by hand: its mean P over the other texts.
    let by_hand = "WITH sides AS (
            SELECT x.iteration, x.ordinal, x.text_key, l.preference AS p FROM labels l
            JOIN responses x ON x.id = l.response_id
            WHERE l.versus_id IS NOT NULL AND x.purpose = 'generate'
            UNION ALL
            SELECT y.iteration, y.ordinal, y.text_key, 1 - l.preference FROM labels l
            JOIN responses y ON y.id = l.versus_id WHERE y.purpose = 'generate'),
        means AS (SELECT iteration, ordinal, text_key, avg(p) AS score FROM sides GROUP BY 1, 2, 3)
        SELECT count(*) FROM responses x JOIN labels l ON l.response_id = x.id
        JOIN scorers s ON s.id = l.scorer_id
        LEFT JOIN means m ON m.iteration = x.iteration AND m.ordinal = x.ordinal
         AND m.text_key = x.text_key
        WHERE x.purpose = 'generate' AND s.kind = 'preference' AND l.versus_id IS NULL
          AND abs(l.score - coalesce(m.score, 0.5)) < 1e-9";
    assert_eq!(scene.number(by_hand), 2 * 36);
    let totals = "SELECT count(*) FROM scorer_totals t JOIN scorers s ON s.id = t.scorer_id
        WHERE s.kind = 'preference' AND t.labelled = 36 AND t.set_aside = 0 AND t.weight = 0.5";
    assert_eq!(scene.number(totals), 2);
}

#[test]
fn its_win_rates_are_mean_preferences_over_paired_answers() {
    let (scene, _) = story::whole(scene(&settings()));
    // Two policies and the initial one beside the initial one, and the second beside the first.
    let by_hand = "SELECT count(*) FROM evaluations e JOIN scorers s ON s.id = e.scorer_id
        WHERE s.kind = 'preference' AND e.score_mean = e.win_rate
          AND abs(e.gain - (e.win_rate - 0.5)) < 1e-12 AND e.win_rate_low <= e.win_rate
          AND abs(e.win_rate - iif(e.policy_id = e.baseline_id, 0.5,
              (SELECT avg(l.preference) FROM labels l JOIN responses x ON x.id = l.response_id
               JOIN responses y ON y.id = l.versus_id
               WHERE l.scorer_id = e.scorer_id AND x.policy_id = e.policy_id
                 AND y.policy_id = e.baseline_id AND x.purpose = 'evaluate'
                 AND y.sample = x.sample AND y.ordinal = x.ordinal))) < 1e-12";
    assert_eq!(scene.number(by_hand), 4);
    let same = "SELECT count(*) FROM labels l JOIN responses x ON x.id = l.response_id
        JOIN responses y ON y.id = l.versus_id
        WHERE x.text_key = y.text_key AND l.preference <> 0.5";
    assert_eq!(scene.number(same), 0, "the same text is even");
}

/// It alone, as a gate goes by it, with as few questions as tell best and worst.
#[test]
fn a_linear_tournament_alone_makes_the_pairs_that_a_round_of_all_would_make() {
    let alone = |compare: &str| {
        let judge = format!("{JUDGE}\ncompare = \"{compare}\"");
        let settings = Settings::default().with("[label.scorers]", &judge);
        story::whole(scene(&settings.with("gate", "win_rate_min = 0.0")))
    };
    let (linear, _) = alone("linear");
    story::check_laws(&linear);
    let asked = format!("{COMPARED} AND x.purpose = 'generate'");
    assert!(linear.number(&asked) <= linear.number(PAIRS));
    let ends = "SELECT count(*) FROM preferences WHERE chosen_score <> 1 OR rejected_score <> 0";
    assert_eq!(linear.number(ends), 0);
    let pairs = "SELECT group_concat(ordinal || ':' || c.text_key || '>' || r.text_key, ' ' ORDER BY p.ordinal)
        FROM preferences p JOIN responses c ON c.id = p.chosen_id JOIN responses r ON r.id = p.rejected_id
        WHERE p.iteration = 1";
    let pairs = pairs.replace("group_concat(ordinal", "group_concat(p.ordinal");
    let (all, _) = alone("round_robin");
    let told = |scene: &Scene| dump::text(&scene.database(), &pairs).unwrap();
    assert_eq!(told(&linear), told(&all), "the judge is transitive");
    let verdicts = "SELECT count(*) FROM gate_verdicts g JOIN evaluations e
        ON e.iteration = g.iteration JOIN runs r ON r.initial_id = e.baseline_id
        WHERE g.figure = 'win_rate' AND g.held = 1 AND abs(g.value - e.win_rate) < 1e-12";
    assert_eq!(all.number(verdicts), 2);
}

#[test]
fn a_daemon_killed_while_it_compares_ends_with_the_same_rows() {
    let (_, undisturbed) = story::whole(scene(&settings()));
    let scene = scene(&settings());
    story::survives_a_kill(&scene, ("prefer", 1), &undisturbed, "a kill among comparisons");
}

#[test]
fn what_cannot_be_compared_is_set_aside_and_counted() {
    let scene = scene(&settings().set("run", "iterations_max", "1"));
    scene.plan(
        "{\"faults\": [{\"name\": \"nan\", \"work\": \"prefer\", \"after\": 0, \
         \"act\": {\"kind\": \"non_finite_answer\"}}, {\"name\": \"no\", \"work\": \"prefer\", \
         \"after\": 1, \"act\": {\"kind\": \"refuse\"}}]}",
    );
    let _daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    story::check_laws(&scene);
    let pairs =
        "SELECT count(*) FROM labels WHERE versus_id IS NOT NULL AND set_aside = 'non_finite'";
    assert!(scene.number(pairs) >= 1);
    let responses = "SELECT count(*) FROM labels l JOIN scorers s ON s.id = l.scorer_id
        WHERE s.kind = 'preference' AND l.versus_id IS NULL AND l.set_aside IS NOT NULL";
    assert!(scene.number(responses) >= 2);
    let counted = format!(
        "SELECT count(*) FROM scorer_totals WHERE labelled + set_aside = 36 AND set_aside = ({responses})"
    );
    assert_eq!(scene.number(&counted), 1);
}

#[test]
fn a_model_of_another_kind_is_told_before_any_work() {
    for (name, kind, told) in [
        ("models/reward", "preference", "it is a reward model"),
        ("models/policy", "preference", "it is a policy"),
        ("models/judge", "reward", "it is a preference model"),
    ] {
        let scorer = format!("name = \"s\"\nkind = \"{kind}\"\nmodel = \"{name}\"");
        let scene = scene(&Settings::default().with("[label.scorers]", &scorer));
        let output = scene.rlhfd(&["check"]).output().unwrap();
        assert!(text(&output.stdout).contains(told), "{}", text(&output.stdout));
        assert!(!output.status.success());
    }
}
