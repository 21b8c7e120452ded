//! Two scorers, a canary, a fitted length penalty and all pairs of a prompt, through a whole run.

use rlhfd_tests::models;
use rlhfd_tests::scene::{Scene, Settings};

use crate::story;

/// The canary stands first and shares the second scorer's model: neither may matter.
const SCORERS: &str = "name = \"watch\"\nmodel = \"models/brief\"\ncanary = true\n\n\
    [[label.scorers]]\nname = \"reward\"\nmodel = \"models/reward\"\n\n\
    [[label.scorers]]\nname = \"brief\"\nmodel = \"models/brief\"\nweight = 0.25\n\
    normalise = \"standard\"";

fn settings() -> Settings {
    Settings::default()
        .with("[label.scorers]", SCORERS)
        .set("label", "length_penalty_fit", "true")
        .set("label", "length_unit", "\"characters\"")
        .with("pair", "rule = \"all\"\nunfinished = \"only_rejected\"")
}

fn scene() -> Scene {
    let scene = Scene::fake(&settings());
    models::reward(&scene.path("models"), "brief");
    scene
}

#[test]
fn every_scorer_labels_everything_and_the_canary_shapes_nothing() {
    let (scene, _) = story::whole(scene());
    story::check_laws(&scene);
    let unjudged = "SELECT count(*) FROM responses x CROSS JOIN scorers s WHERE NOT EXISTS
        (SELECT 1 FROM labels l WHERE l.response_id = x.id AND l.scorer_id = s.id)";
    assert_eq!((scene.number("SELECT count(*) FROM scorers"), scene.number(unjudged)), (3, 0));
    let kept = "SELECT count(*) FROM scorer_totals t JOIN scorers s ON s.id = t.scorer_id
        WHERE labelled = 36 AND (t.weight IS NULL) = (s.name = 'watch')";
    assert_eq!(scene.number(kept), 6);
    // The combined score of every preference by hand, from labels and from what was kept.
    let by_hand = "WITH combined AS (
            SELECT x.id, x.iteration, a.score + 0.25 * (b.score - t.score_mean) / t.score_deviation
                   - f.length_penalty * x.characters AS score
            FROM responses x JOIN label_fits f ON f.iteration = x.iteration
            JOIN labels a ON a.response_id = x.id JOIN scorers sa ON sa.id = a.scorer_id
            JOIN labels b ON b.response_id = x.id JOIN scorers sb ON sb.id = b.scorer_id
            JOIN scorer_totals t ON t.iteration = x.iteration AND t.scorer_id = sb.id
            WHERE x.purpose = 'generate' AND sa.name = 'reward' AND sb.name = 'brief')
        SELECT count(*) FROM preferences p JOIN combined c ON c.id = p.chosen_id
        JOIN combined r ON r.id = p.rejected_id
        WHERE abs(c.score - p.chosen_score) < 1e-9 AND abs(r.score - p.rejected_score) < 1e-9";
    let pairs = scene.number("SELECT count(*) FROM preferences");
    assert_eq!(scene.number(by_hand), pairs);
    assert!(scene.number("SELECT max(rank) FROM preferences") >= 1, "no prompt gave two pairs");
    let chosen = "SELECT count(*) FROM preferences p JOIN responses c ON c.id = p.chosen_id
                  WHERE c.finish = 'length'";
    assert_eq!(scene.number(chosen), 0, "an unfinished response was chosen");
    let fitted = "SELECT count(*) FROM label_fits WHERE fitted = 1 AND length_unit = 'characters'
        AND responses = 36 AND abs(correlation_after) <= abs(correlation_before)
        AND (length_penalty > 0) = (correlation_before > 0)";
    assert_eq!(scene.number(fitted), 2);
}

#[test]
fn log_probs_and_training_take_every_pair_once_and_in_order() {
    let (scene, _) = story::whole(scene());
    // Of each response in any pair, the reference's log-probs once; of others in training, none.
    let wanted = "SELECT count(DISTINCT x.id) FROM responses x JOIN preferences p
                  ON x.id IN (p.chosen_id, p.rejected_id)";
    let kept = "SELECT count(*) FROM reference_logprobs k JOIN responses x ON x.id = k.response_id
                WHERE x.purpose = 'generate'";
    assert_eq!(scene.number(kept), scene.number(wanted));
    let members = "SELECT count(*) FROM training_set_members";
    let expected = "SELECT sum(CASE iteration WHEN 1 THEN 2 ELSE 1 END) FROM preferences";
    assert_eq!(scene.number(members), scene.number(expected));
    let disorder =
        "SELECT count(*) FROM (SELECT p.iteration * 1000000 + p.ordinal * 1000 + p.rank AS place,
            lag(p.iteration * 1000000 + p.ordinal * 1000 + p.rank)
                OVER (PARTITION BY m.unit_id ORDER BY m.position) AS before
        FROM training_set_members m JOIN preferences p ON p.id = m.preference_id)
        WHERE before >= place";
    assert_eq!(scene.number(disorder), 0);
}

#[test]
fn all_scorers_evaluate_and_the_first_with_a_weight_stands_for_the_iteration() {
    let (scene, _) = story::whole(scene());
    // Two policies and the initial one beside the initial one, and the second beside the first, by
    // three scorers at one temperature.
    assert_eq!(scene.number("SELECT count(*) FROM evaluations"), 12);
    let shown = "SELECT count(*) FROM iteration_history h JOIN evaluations e
        ON e.iteration = h.iteration JOIN scorers s ON s.id = e.scorer_id
        WHERE s.name = 'reward' AND e.score_mean = h.eval_score_mean
          AND e.win_rate = h.eval_win_rate AND e.kl_k3 = h.kl_k3";
    assert_eq!(scene.number(shown), 2);
    // The canary and the second scorer are one model, and say the same of the same answers.
    let twins = "SELECT count(*) FROM evaluations a JOIN evaluations b ON a.iteration = b.iteration
        AND a.policy_id = b.policy_id AND a.baseline_id = b.baseline_id
        AND a.score_mean = b.score_mean
        JOIN scorers sa ON sa.id = a.scorer_id JOIN scorers sb ON sb.id = b.scorer_id
        WHERE sa.name = 'watch' AND sb.name = 'brief'";
    assert_eq!(scene.number(twins), 4);
    let watched = "SELECT count(*) FROM iteration_history h JOIN scorer_totals t
        ON t.iteration = h.iteration JOIN scorers s ON s.id = t.scorer_id
        WHERE s.name = 'watch' AND t.score_mean = h.canary_score_mean";
    assert_eq!(scene.number(watched), 2);
}

#[test]
fn a_daemon_killed_while_it_labels_ends_with_the_same_rows() {
    let (_, undisturbed) = story::whole(scene());
    story::survives_a_kill(&scene(), ("score", 2), &undisturbed, "a kill among three scorers");
}

#[test]
fn a_scorer_that_comes_later_scores_the_answers_that_stand() {
    let scene = Scene::fake(&Settings::default().set("run", "iterations_max", "1"));
    models::reward(&scene.path("models"), "brief");
    let daemon = scene.start();
    story::queue(&scene);
    scene.wait_iterations(1);
    assert!(daemon.terminate().success());
    let initial = "SELECT count(*) FROM responses WHERE lane LIKE 'initial%'";
    let before = scene.number(initial);
    let both = "name = \"reward\"\nmodel = \"models/reward\"\n\n\
                [[label.scorers]]\nname = \"watch\"\nmodel = \"models/brief\"\ncanary = true";
    scene.configure(&Settings::default().with("[label.scorers]", both));
    let _daemon = scene.start();
    scene.wait_iterations(2);
    assert_eq!(scene.number(initial), before, "the initial policy answered again");
    let rows = "SELECT count(*) FROM evaluations e JOIN scorers s ON s.id = e.scorer_id
                WHERE s.name = 'watch' AND e.iteration IN (0, 2)";
    assert_eq!(scene.number(rows), 2);
}
