//! Who may do what: users and groups at the sockets and at the files, tried as a third user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rlhfd_tests::binaries::program;
use rlhfd_tests::others::{Other, may_be_played};
use rlhfd_tests::scene::{Scene, Settings};

/// Numbers of groups that no machine gives a name to: those who steer, those who look, and others.
const STEER: u32 = 74_711;
const LOOK: u32 = 74_712;
const OTHERS: u32 = 74_713;

const fn third(gid: u32, groups: &'static [u32]) -> Other {
    Other { uid: 74_700, gid, groups }
}

/// By the primary group, by a further one among others, and not at all.
const STEERS: [Other; 2] = [third(STEER, &[]), third(OTHERS, &[OTHERS, STEER])];
const LOOKS: [Other; 2] = [third(LOOK, &[]), third(OTHERS, &[1, LOOK])];
const STRANGER: Other = third(OTHERS, &[OTHERS]);

fn open_to(path: &Path, group: Option<u32>, mode: u32) {
    chown(path, None, group).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The modes let everybody in: what is refused is refused by the daemon.
#[test]
fn groups_decide_at_the_sockets_where_their_modes_let_everybody_in() {
    if !may_be_played() {
        return;
    }
    let scene = Scene::fake(&Settings::default().with("control", "readers_socket = \"readers\""));
    open_to(&scene.path(""), None, 0o755);
    let _daemon = scene.start();
    let (main, readers) = (scene.socket(), scene.path("readers"));
    open_to(&main, Some(STEER), 0o666);
    open_to(&readers, Some(LOOK), 0o666);
    let status = |who: &Other, socket: &Path| who.asks(socket, "GET", "/v1/status", "").unwrap();
    for stranger in [&STRANGER, &LOOKS[0], &LOOKS[1]] {
        let (code, body) = status(stranger, &main);
        assert_eq!(code, 403, "{stranger:?}: {body}");
        assert!(body.contains("may not use the daemon") && body.contains("user 74700"), "{body}");
        assert_eq!(stranger.asks(&main, "POST", "/v1/pause", "{}").unwrap().0, 403);
    }
    assert_eq!(scene.status()["run"]["paused_by"], serde_json::Value::Null);
    for (n, friend) in STEERS.iter().enumerate() {
        assert_eq!(status(friend, &main).0, 200, "{friend:?}");
        let reason = format!("{{\"reason\": \"friend {n}\"}}");
        let (code, body) = friend.asks(&main, "POST", "/v1/pause", &reason).unwrap();
        assert_eq!(code, 200, "{friend:?}: {body}");
        let kept = format!(
            "SELECT count(*) FROM events WHERE kind = 'pause_asked' AND uid = 74700
             AND message = 'friend {n}'"
        );
        assert_eq!(scene.number(&kept), 1);
        // Root is kept out of nothing.
        scene.ctl_ok(&["resume"]);
    }
    for reader in &LOOKS {
        assert_eq!(status(reader, &readers).0, 200, "{reader:?}");
        let sql = "{\"sql\": \"SELECT 1\"}";
        assert_eq!(reader.asks(&readers, "POST", "/v1/sql", sql).unwrap().0, 200);
        let (code, body) = reader.asks(&readers, "POST", "/v1/resume", "{}").unwrap();
        assert!(code == 403 && body.contains("for reading"), "{code} {body}");
    }
    assert_eq!(status(&STRANGER, &readers).0, 403);
}

/// What every command leaves in the events.
#[test]
fn each_command_is_kept_with_the_user_who_gave_it() {
    let scene = Scene::fake(&Settings::default());
    let _daemon = scene.start();
    scene.add_prompts("own", 0, 4, "0");
    scene.ctl_ok(&["prompts", "set", "own", "--priority", "2"]);
    scene.ctl_ok(&["pause"]);
    scene.ctl_ok(&["resume"]);
    scene.ctl_ok(&["start"]);
    scene.ctl_ok(&["pin", "initial"]);
    scene.ctl_ok(&["backup"]);
    let uid = rustix::process::geteuid().as_raw();
    for kind in [
        "upload_published",
        "prompt_set_changed",
        "pause_asked",
        "resume_asked",
        "start_asked",
        "checkpoint_pinned",
        "backup_made",
    ] {
        let sql = format!("SELECT count(*) FROM events WHERE kind = '{kind}' AND uid = {uid}");
        let kinds = "SELECT group_concat(kind || ' ' || coalesce(uid, '-'), ', ') FROM events";
        let all = rlhfd_tests::dump::text(&scene.database(), kinds);
        assert_eq!(scene.number(&sql), 1, "{kind} of {all:?}");
    }
}

/// The folder as the service's is made, and the daemon as the service's user: of no special right.
#[test]
fn the_database_is_for_its_group_and_nobody_else_and_so_are_its_side_files() {
    if !may_be_played() {
        return;
    }
    const DAEMON: u32 = 74_600;
    let scene = Scene::fake(&Settings::default());
    let (root, state) = (scene.path(""), scene.state());
    fs::create_dir_all(state.join("db")).unwrap();
    chown(&root, Some(DAEMON), Some(DAEMON)).unwrap();
    open_to(&root, None, 0o755);
    for (folder, group, mode) in [(state.clone(), DAEMON, 0o751), (state.join("db"), LOOK, 0o2750)]
    {
        chown(&folder, Some(DAEMON), Some(group)).unwrap();
        open_to(&folder, None, mode);
    }
    // The program itself may lie where only we may go. Copied by a process of its own: a file that another
    // thread's child still holds open for writing cannot be executed.
    let copy = scene.path("rlhfd");
    let copied = Command::new("cp").arg(program("rlhfd")).arg(&copy).status().unwrap();
    assert!(copied.success());
    let mut env = Command::new("env");
    env.uid(DAEMON).gid(DAEMON).current_dir("/").arg("-u").arg("NOTIFY_SOCKET");
    let daemon = scene.start_copy(&copy, env);
    scene.add_prompts("own", 0, 4, "0");
    for name in ["rlhfd.db", "rlhfd.db-wal", "rlhfd.db-shm"] {
        let file = fs::metadata(state.join("db").join(name)).unwrap();
        let mode = file.mode() & 0o7777;
        assert_eq!((file.uid(), file.gid(), mode), (DAEMON, LOOK, 0o640), "{name}: {mode:o}");
    }
    for name in ["uploads", "orphans"] {
        assert_eq!(fs::metadata(state.join(name)).unwrap().mode() & 0o007, 0, "{name}");
    }
    let count = "SELECT count(*) FROM prompts";
    let all_look = |when: &str| {
        for reader in &LOOKS {
            assert_eq!(reader.reads(&scene.database(), count).as_deref(), Ok("4"), "{when}");
        }
        for stranger in [STRANGER, STEERS[0]] {
            let refused = stranger.reads(&scene.database(), count);
            assert!(refused.is_err(), "{stranger:?} {when}: {refused:?}");
        }
    };
    all_look("while it runs");
    daemon.kill();
    all_look("after a kill");
}
