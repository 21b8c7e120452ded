//! The story that most tests tell: prompts are queued, two iterations run, the rows are looked at.

use std::sync::OnceLock;

use rlhfd_tests::dump::{self, Dump};
use rlhfd_tests::scene::{Scene, Settings};

/// Prompts of the story: 24 are drawn in two iterations, about a quarter is reserved.
pub const PROMPTS: usize = 44;

/// Queues the story's prompts.
pub fn queue(scene: &Scene) {
    scene.add_prompts("plain", 0, PROMPTS, "0.25");
}

/// The whole story with nothing in its way; told once for all tests that compare with it.
pub fn undisturbed() -> &'static Dump {
    static DUMP: OnceLock<Dump> = OnceLock::new();
    DUMP.get_or_init(|| whole(Scene::fake(&Settings::default())).1)
}

/// The whole story in this scene, with nothing in its way.
pub fn whole(scene: Scene) -> (Scene, Dump) {
    let daemon = scene.start();
    queue(&scene);
    scene.wait_iterations(2);
    let dump = dump::dump(&scene.database());
    assert!(daemon.terminate().success());
    (scene, dump)
}

/// The story in which the daemon dies while a unit of `work` is held after so many answers; it is held
/// against `undisturbed`.
pub fn survives_a_kill(scene: &Scene, (work, after): (&str, u32), undisturbed: &Dump, what: &str) {
    scene.plan(&format!(
        "{{\"faults\": [{{\"name\": \"here\", \"work\": \"{work}\", \"after\": {after}, \
         \"act\": {{\"kind\": \"hold\"}}}}]}}"
    ));
    let daemon = scene.start();
    queue(scene);
    scene.held("here");
    daemon.kill();
    let _daemon = scene.start();
    scene.wait_iterations(2);
    check_laws(scene);
    dump::assert_same(undisturbed, &dump::dump(&scene.database()), what);
}

/// Tells the rest of a disturbed story and holds it against the undisturbed one.
pub fn ends_the_same(scene: &Scene, what: &str) {
    scene.wait_iterations(2);
    check_laws(scene);
    dump::assert_same(undisturbed(), &dump::dump(&scene.database()), what);
}

/// What must hold after any run, however often it was disturbed.
pub fn check_laws(scene: &Scene) {
    let twice = "SELECT count(*) FROM (SELECT unit_id FROM attempts WHERE outcome = 'finished'
                 GROUP BY unit_id HAVING count(*) > 1)";
    assert_eq!(scene.number(twice), 0, "a unit has two finished attempts");
    let lost = "SELECT count(*) FROM draws d WHERE d.returned_ms IS NULL
        AND (SELECT count(*) FROM preferences p WHERE p.run_id = d.run_id
             AND p.iteration = d.iteration AND p.ordinal = d.ordinal)
          + (SELECT count(*) FROM unpaired u WHERE u.run_id = d.run_id
             AND u.iteration = d.iteration AND u.ordinal = d.ordinal) = 0
        AND (d.run_id, d.iteration) IN
            (SELECT run_id, iteration FROM iterations WHERE ended_ms IS NOT NULL)";
    assert_eq!(scene.number(lost), 0, "a drawn prompt is in no account");
    let unlabelled = "SELECT count(*) FROM responses r WHERE r.purpose = 'generate'
        AND NOT EXISTS (SELECT 1 FROM labels l WHERE l.response_id = r.id)
        AND (r.run_id, r.iteration) IN
            (SELECT run_id, iteration FROM iterations WHERE ended_ms IS NOT NULL
             AND cancelled_ms IS NULL)";
    assert_eq!(scene.number(unlabelled), 0, "a response has no label");
}
