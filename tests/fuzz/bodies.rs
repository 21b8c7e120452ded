//! Bodies that no verb may take: JSON of the wrong shape, uploads with a bad line, SQL of every kind.

use crate::random::Random;

/// The verbs with a JSON body and the keys that each takes. `sql` has its own.
const VERBS: [(&str, &[&str]); 10] = [
    ("/v1/start", &[]),
    ("/v1/pause", &["reason"]),
    ("/v1/resume", &[]),
    ("/v1/cancel", &["iteration", "job"]),
    ("/v1/rollback", &["iteration", "reason"]),
    ("/v1/pin", &["checkpoint"]),
    ("/v1/unpin", &["checkpoint"]),
    ("/v1/backup", &[]),
    ("/v1/doctor", &[]),
    ("/v1/prompt-sets/plain", &["priority", "weight"]),
];

/// Wrong for each of those keys.
const WRONG: [&str; 8] =
    ["[]", "{}", "true", "[null]", "-1.5e400", "{\"a\": []}", "[[[]]]", "false"];

/// A verb's path and a body that it must refuse.
pub fn broken_json(random: &mut Random) -> (String, Vec<u8>) {
    let (path, keys) = VERBS[random.below(VERBS.len())];
    let key = match keys.len() {
        0 => "reson",
        n => keys[random.below(n)],
    };
    let wrong = random.pick(&WRONG);
    let body = match random.below(12) {
        0..=4 => format!("{{\"{key}\": {wrong}}}").into_bytes(),
        5 => random.pick(&["[]", "\"x\"", "12", "nul", "{", "}", "\u{feff}{}", "{}{}"]).into(),
        6 => format!("{{\"{key}\": \"cut").into_bytes(),
        7 => nested(key, 1_000 + random.below(20_000)),
        8 => [b"{\"reason\": \"".as_slice(), &[0xff, 0xfe, 0xc0], b"\"}"].concat(),
        9 => {
            format!("{{\"{key}\": \"{}\"}}", "x".repeat((129 << 10) + random.below(50_000))).into()
        }
        10 => format!("{{\"{key}\": {wrong}, \"{key}\": {wrong}}}").into_bytes(),
        _ => [b"{".to_vec(), random.bytes(40)].concat(),
    };
    (path.to_owned(), body)
}

fn nested(key: &str, depth: usize) -> Vec<u8> {
    format!("{{\"{key}\": {}{}}}", "[".repeat(depth), "]".repeat(depth)).into_bytes()
}

/// An upload's path and lines, of which one at least is bad.
pub fn broken_upload(random: &mut Random) -> (String, Vec<u8>) {
    let name = random.below(20);
    let path = match random.below(4) {
        0 => format!("/v1/prompt-sets/fuzz-{name}/prompts"),
        1 => format!("/v1/preference-sets/fuzz-{name}/preferences"),
        2 => format!("/v1/training-jobs/reward/fuzz-{name}"),
        _ => format!("/v1/training-jobs/sft/fuzz-{name}"),
    };
    let good = random.pick(&[
        "{\"prompt\": \"fuzz\", \"chosen\": \"b\", \"rejected\": \"c\"}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"fuzz\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}",
    ]);
    let mut lines: Vec<Vec<u8>> = vec![good.into(); random.below(30)];
    let bad: Vec<u8> = match random.below(10) {
        0 => random.bytes(200).into_iter().filter(|byte| *byte != b'\n').collect(),
        1 => nested("prompt", 500 + random.below(30_000)),
        2 => b"{\"prompt\": \"\xff\xfe\"}".to_vec(),
        3 => b"{\"prompt\": 7}".to_vec(),
        4 => b"{\"messages\": [{\"role\": \"king\", \"content\": 1}]}".to_vec(),
        5 => b"{\"chosen\": [], \"rejected\": {}}".to_vec(),
        6 if random.below(20) == 0 => vec![b'x'; 5 << 20],
        7 => b"{\"prompt\": \"cut".to_vec(),
        8 => b"[1, 2, 3]".to_vec(),
        _ => b"null".to_vec(),
    };
    // Never blank, which would be no line at all.
    let bad = if bad.iter().all(u8::is_ascii_whitespace) { b"?".to_vec() } else { bad };
    lines.insert(random.below(lines.len() + 1), bad);
    (path, lines.join(&b'\n'))
}

/// A statement, good or bad.
pub fn statement(random: &mut Random) -> String {
    const FIXED: [&str; 26] = [
        "SELECT count(*) FROM responses",
        "SELECT * FROM iteration_history",
        "SELECT * FROM sqlite_master",
        "DELETE FROM runs",
        "UPDATE runs SET seed = 1",
        "INSERT INTO runs (id) VALUES (9)",
        "DROP TABLE runs",
        "CREATE TEMP TABLE t (x)",
        "ATTACH DATABASE '/etc/passwd' AS x",
        "ATTACH DATABASE 'file:/tmp/x?mode=rwc' AS x",
        "VACUUM INTO 'copy.db'",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = 1",
        "PRAGMA query_only = 0",
        "PRAGMA table_info(runs)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "BEGIN EXCLUSIVE",
        "SELECT load_extension('x')",
        "SELECT writefile('x', 'y')",
        "SELECT zeroblob(2000000000)",
        "SELECT randomblob(4000000) FROM events",
        "SELECT hex(zeroblob(1000000)) FROM events LIMIT 3",
        "SELECT 1; SELECT 2",
        "SELECT ?1",
        "EXPLAIN DELETE FROM runs",
        "SELECT printf('%2000000000d', 1)",
    ];
    match random.below(10) {
        0..=5 => random.pick(&FIXED).to_owned(),
        6 => format!("SELECT {}1{}", "(".repeat(random.below(300)), ")".repeat(random.below(300))),
        7 => {
            let words = [
                "SELECT", "FROM", "runs", "WHERE", "'", "\"", "(", ")", ";", "--", "/*", "\0", "*",
            ];
            (0..random.below(30)).map(|_| format!("{} ", random.pick(&words))).collect()
        }
        8 => {
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
                .into()
        }
        _ => {
            let tables = vec!["units"; 2 + random.below(6)];
            format!("SELECT count(*) FROM {}", tables.join(", "))
        }
    }
}
