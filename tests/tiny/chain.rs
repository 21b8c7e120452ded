//! The whole chain on a tiny model: SFT, a reward model, a preference model, three iterations with two
//! arms, both models as scorers, a fitted length penalty and a gate that rejects the second checkpoint.
//! Killed at ten random moments it ends the same, and the database tells the story.

use std::collections::VecDeque;
use std::time::Duration;

use rlhfd_tests::dump;
use rlhfd_tests::random::drawn;
use rlhfd_tests::scene::{Daemon, Scene, Settings, signal};
use rlhfd_tests::wait;
use rustix::process::Signal;

use crate::offline_pairs;

/// Kills in the disturbed run, and what their moments and victims are drawn with.
const KILLS: u64 = 10;
const SEED: u64 = 20_240_513;

/// Learning rates of the iterations. The second tears its policy tens of nats away from the reference
/// (whatever the last bits of a machine, five at the least), and the others move theirs by hundredths
/// of a nat: the gate stands far from both.
const RATES: [&str; 3] = ["1e-4", "3e-2", "1e-4"];
const GATE: &str = "kl_max = 0.5";

fn settings(rate: &str) -> Settings {
    let steps = "learning_rate = 1e-3\nepochs = 1\nsave_every_steps = 1";
    let update = "batch_pairs = 2\nmicro_batch_pairs = 1\nepochs = 1\nsave_every_steps = 1";
    crate::settings()
        .with(
            "run",
            "policy = \"models/policy\"\nstart = \"sft/main\"\nseed = 7\niterations_max = 3\n\
             prompts_per_iteration = 6",
        )
        .with("generate", "max_new_tokens = 16\nbatch_prompts = 2")
        .with(
            "[generate.arms]",
            "name = \"head\"\nn = 2\n\n[[generate.arms]]\nname = \"start\"\npolicy = \"initial\"\nn = 2",
        )
        .with("label", "length_penalty_fit = true\nlength_unit = \"characters\"")
        .with(
            "[label.scorers]",
            "name = \"reward\"\njob = \"reward/main\"\nnormalise = \"standard\"\n\n\
             [[label.scorers]]\nname = \"judge\"\nkind = \"preference\"\njob = \"preference/main\"\n\
             normalise = \"standard\"",
        )
        .with("train", &format!("{update}\nlearning_rate = {rate}"))
        .with(
            "evaluate",
            "temperatures = [1.0]\nn = 2\nmax_new_tokens = 16\nbootstrap_samples = 100\n\
             prompts_max = 6",
        )
        .with("gate", GATE)
        .with("sft", &format!("data = [\"talk.jsonl\"]\nblock_tokens = 64\nbatch_sequences = 1\n{steps}"))
        .with("reward", &format!("data = [\"kept.jsonl\"]\nbatch_pairs = 2\n{steps}"))
        .with(
            "preference",
            &format!("data = [\"kept.jsonl\"]\nbatch_sequences = 2\npacking = false\n{steps}"),
        )
}

fn scene() -> Option<Scene> {
    let scene = Scene::real(&settings(RATES[0]))?;
    offline_pairs(&scene, 6);
    let turn = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
    let talk = |n: usize| {
        let turns = [turn("user", &format!("say {n}")), turn("assistant", &format!("e e {n}"))];
        serde_json::json!({ "messages": turns }).to_string() + "\n"
    };
    scene.write("talk.jsonl", &(0..8).map(talk).collect::<String>());
    Some(scene)
}

/// How far a run is: attempts that ended well, and saved steps of trainings.
const PROGRESS: &str = "SELECT (SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit_id
        WHERE a.outcome = 'finished' AND u.work <> 'probe')
    + (SELECT coalesce(sum(last_step), 0) FROM units)";

fn progress(scene: &Scene) -> u64 {
    u64::try_from(scene.number(PROGRESS)).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Daemon,
    Worker,
}

/// A kill: so many milliseconds after this progress.
#[derive(Clone, Copy, Debug)]
struct Kill {
    progress: u64,
    ms: u64,
    victim: Victim,
}

/// A moment in each tenth of the work, and who is killed then. The milliseconds let it fall into the
/// middle of a unit as well.
fn kills(whole: u64) -> VecDeque<Kill> {
    let kill = |n| Kill {
        progress: (n * whole + drawn(SEED, n, whole)) / KILLS,
        ms: drawn(SEED, KILLS + n, 60),
        victim: if drawn(SEED, 2 * KILLS + n, 2) == 0 { Victim::Worker } else { Victim::Daemon },
    };
    (0..KILLS).map(kill).collect()
}

/// Kills daemon or worker; gives the daemon that lives then.
fn killed<'a>(scene: &'a Scene, daemon: Daemon<'a>, victim: Victim) -> Daemon<'a> {
    match victim {
        Victim::Daemon => {
            daemon.kill();
            scene.start()
        }
        Victim::Worker => {
            let first = || daemon.workers().first().copied();
            signal(wait::until("a worker", first, || scene.told()), Signal::KILL);
            daemon
        }
    }
}

/// Lets the next iterations train with this rate.
fn configured(scene: &Scene, daemon: &Daemon, rate: &str) {
    let times = || scene.log().matches("the configuration is read again").count();
    let before = times();
    scene.configure(&settings(rate));
    signal(daemon.pid(), Signal::HUP);
    let read = || (times() > before).then_some(());
    wait::until("the configuration to be read again", read, || scene.told());
}

/// Lives through the three iterations, each with its rate and prompts of its own, and the kills.
fn lived(scene: &Scene, mut kills: VecDeque<Kill>) {
    let mut daemon = Some(scene.start());
    scene.add_prompts("kept", 100, 108, "0.9");
    let ended = "SELECT count(*) FROM iterations WHERE ended_ms IS NOT NULL";
    for (iteration, rate) in (1..).zip(RATES) {
        configured(scene, daemon.as_ref().unwrap(), rate);
        let first = 6 * (iteration - 1);
        scene.add_prompts("plain", first, first + 6, "0");
        let mut step = || {
            let over = scene.number(ended) == i64::try_from(iteration).unwrap();
            while let Some(kill) = kills.pop_front_if(|kill| kill.progress <= progress(scene)) {
                std::thread::sleep(Duration::from_millis(kill.ms));
                println!("before the end of iteration {iteration}: {kill:?}");
                daemon = daemon.take().map(|daemon| killed(scene, daemon, kill.victim));
            }
            over.then_some(())
        };
        let what = format!("iteration {iteration} to end");
        // Trainings, an iteration and several kills are more than a single fact.
        wait::until_within(5 * wait::DEADLINE, &what, &mut step, || scene.told());
    }
    assert!(kills.is_empty(), "{kills:?} never came");
    println!("{}", scene.ctl_ok(&["iterations"]));
    daemon.map(Daemon::terminate);
}

#[test]
fn the_whole_chain_killed_at_ten_random_moments_ends_the_same() {
    let Some(scene) = scene() else { return };
    lived(&scene, VecDeque::new());
    let undisturbed = dump::dump(&scene.database());
    tells_the_story(&scene);
    let whole = progress(&scene);

    let Some(scene) = self::scene() else { return };
    let kills = kills(whole);
    println!("kills of seed {SEED}, among {whole} steps of progress: {kills:?}");
    lived(&scene, kills);
    let died = scene.number("SELECT count(*) FROM attempts WHERE outcome = 'died'");
    println!("{died} attempts died");
    assert!(died > 0, "no kill fell among the work");
    assert_eq!(scene.number("SELECT count(*) FROM attempts WHERE counted = 1"), 0);
    // How many steps a training told of before it ended is not the same twice; what it ended with is.
    let unfinished = "SELECT count(*) FROM units u WHERE u.state = 'done' AND NOT EXISTS
        (SELECT 1 FROM attempts a WHERE a.unit_id = u.id AND a.outcome = 'finished')";
    assert_eq!(scene.number(unfinished), 0);
    dump::assert_same(&undisturbed, &dump::dump(&scene.database()), "ten kills");
}

/// By SQL alone: what was made of what, who wrote and judged what, and what the gate said.
fn tells_the_story(scene: &Scene) {
    let told = |sql: &str| dump::text(&scene.database(), sql).unwrap();
    let made = "SELECT group_concat(c.name || ' of ' || p.name, ', ' ORDER BY c.name)
        FROM checkpoints c JOIN checkpoints p ON p.id = c.parent_id WHERE c.unit_id IS NOT NULL";
    assert_eq!(
        told(made),
        "iteration-0001 of sft-main, iteration-0002 of iteration-0001, \
         iteration-0003 of iteration-0001, preference-main of sft-main, reward-main of sft-main, \
         sft-main of base"
    );
    let gate = "SELECT group_concat(iteration || substr(gate, 1, 6), ' ' ORDER BY iteration)
        FROM iteration_history";
    assert_eq!(told(gate), "1passed 2failed 3passed");
    let rejected = "SELECT group_concat(name) FROM checkpoints WHERE rejected = 1";
    assert_eq!(told(rejected), "iteration-0002");
    let measured =
        "SELECT group_concat(iteration || iif(value > limit_value, ' above', ' below'), ', '
        ORDER BY iteration) FROM gate_verdicts WHERE figure = 'kl_k3' AND against = 'reference'";
    assert_eq!(told(measured), "1 below, 2 above, 3 below");
    let rates = "SELECT group_concat(rate, ' ') FROM (SELECT u.iteration, max(t.lr) AS rate
        FROM training_steps t JOIN units u ON u.id = t.unit_id WHERE u.work = 'train_dpo'
        GROUP BY u.iteration ORDER BY u.iteration)";
    assert_eq!(told(rates), "0.0001 0.03 0.0001");
    let wrote = "SELECT group_concat(line, ', ') FROM (SELECT x.iteration || ' ' || x.arm || ' '
            || c.name || ' ' || count(*) AS line
        FROM responses x JOIN checkpoints c ON c.id = x.policy_id WHERE x.purpose = 'generate'
        GROUP BY x.iteration, x.arm ORDER BY x.iteration, x.arm)";
    assert_eq!(
        told(wrote),
        "1 head sft-main 12, 1 start sft-main 12, 2 head iteration-0001 12, 2 start sft-main 12, \
         3 head iteration-0001 12, 3 start sft-main 12"
    );
    let judged = "SELECT group_concat(line, ', ') FROM (SELECT s.name || ' ' || s.kind || ' '
            || count(DISTINCT x.id) AS line
        FROM labels l JOIN responses x ON x.id = l.response_id JOIN scorers s ON s.id = l.scorer_id
        WHERE x.purpose = 'generate' AND l.versus_id IS NULL AND l.score IS NOT NULL
        GROUP BY s.id ORDER BY s.name)";
    assert_eq!(told(judged), "judge preference 72, reward reward 72");
    let compared = "SELECT count(*) FROM labels WHERE preference IS NOT NULL";
    assert!(scene.number(compared) > 3 * 6, "{}", scene.number(compared));
    assert_eq!(scene.number("SELECT count(*) FROM label_fits WHERE fitted = 1"), 3);
    let trained = "SELECT group_concat(line, ', ') FROM (SELECT u.iteration || ' of '
            || group_concat(DISTINCT p.iteration ORDER BY p.iteration) AS line
        FROM training_set_members m JOIN units u ON u.id = m.unit_id
        JOIN preferences p ON p.id = m.preference_id GROUP BY u.id ORDER BY u.iteration)";
    assert_eq!(told(trained), "1 of 1, 2 of 1,2, 3 of 1,2,3");
    let head = "SELECT group_concat(ancestor, ' ' ORDER BY depth) FROM checkpoint_lineage l
        JOIN runs r JOIN checkpoints c ON c.id = r.head_id
        WHERE l.checkpoint = r.name || '/' || c.name";
    assert_eq!(told(head), "main/iteration-0003 main/iteration-0001 main/sft-main main/base");
}
