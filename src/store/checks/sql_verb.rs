//! The `sql` verb: what it answers and what it does not.

use super::*;
use crate::{SqlError, SqlLimits, SqlReader, SqlValue};

fn bench() -> (Bench, SqlReader) {
    let mut bench = Bench::new();
    bench.run();
    bench.add("s", 0.0, &texts(0, 300));
    let sql = SqlReader::open(bench.dir.path()).unwrap();
    (bench, sql)
}

#[test]
fn a_select_is_answered_with_its_columns() {
    let (_bench, mut sql) = bench();
    let answer = sql
        .query("SELECT name AS run, 1.5 AS x, NULL, x'00ff' FROM runs", SqlLimits::CEILING)
        .unwrap();
    assert_eq!(answer.columns[..2], ["run".to_owned(), "x".to_owned()]);
    let blob = SqlValue::Blob(vec![0, 255]);
    let row = vec![SqlValue::Text("main".into()), SqlValue::Real(1.5), SqlValue::Null, blob];
    assert_eq!(answer.rows, [row]);
    for good in [
        "SELECT * FROM iteration_history",
        "SELECT * FROM checkpoint_lineage ORDER BY depth",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT sum(i) FROM n",
        "SELECT name FROM pragma_table_info('runs')",
        "PRAGMA table_info(runs)",
        "SELECT count(*) FROM sqlite_schema;  -- and nothing after it",
        "VALUES (1), (2)",
        "EXPLAIN QUERY PLAN SELECT * FROM prompts WHERE id = 1",
        "SELECT json_extract(messages, '$[0].content') FROM prompts LIMIT 1",
    ] {
        assert!(sql.query(good, SqlLimits::CEILING).is_ok(), "{good}");
    }
}

#[test]
fn nothing_else_is() {
    let (bench, mut sql) = bench();
    let before = std::fs::read(crate::open::database(bench.dir.path())).unwrap();
    for bad in [
        "",
        "   -- nothing",
        "DELETE FROM runs",
        "INSERT INTO events (at_ms, level, kind, message) VALUES (0, 'info', 'x', 'x')",
        "UPDATE runs SET name = 'x'",
        "INSERT INTO events (at_ms, level, kind, message) VALUES (0, 'info', 'x', 'x') RETURNING id",
        "CREATE TABLE t (x)",
        "CREATE TEMP TABLE t (x)",
        "DROP TABLE runs",
        "ATTACH 'other.db' AS other",
        "DETACH main",
        "PRAGMA query_only = 0",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA user_version",
        "PRAGMA integrity_check",
        "SELECT * FROM pragma_integrity_check",
        "PRAGMA writable_schema = 1",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "VACUUM",
        "VACUUM INTO 'copy.db'",
        "REINDEX",
        "ANALYZE",
        "BEGIN",
        "COMMIT",
        "SAVEPOINT s",
        "SELECT load_extension('x')",
        "SELECT 1; DELETE FROM runs",
        "SELECT 1; SELECT 2",
        "SELECT ?1",
        "SELECT * FROM no_such_table",
        "SELEC 1",
        "SELECT zeroblob(1000000000)",
        "SELECT * FROM runs\0; DROP TABLE runs",
    ] {
        let outcome = sql.query(bad, SqlLimits::CEILING);
        assert!(
            matches!(outcome, Err(SqlError::Refused { .. } | SqlError::Statement { .. })),
            "{bad}: {outcome:?}"
        );
    }
    assert_eq!(before, std::fs::read(crate::open::database(bench.dir.path())).unwrap());
    assert!(sql.query("SELECT 1", SqlLimits::CEILING).is_ok(), "it still answers");
}

#[test]
fn rows_bytes_and_time_are_bounded() {
    let (_bench, mut sql) = bench();
    let few = SqlLimits { rows: 10, ..SqlLimits::CEILING };
    let answer = sql.query("SELECT id FROM prompts", few).unwrap();
    assert_eq!((answer.rows.len(), answer.truncated), (10, true));
    let exact = SqlLimits { rows: 300, ..SqlLimits::CEILING };
    assert!(!sql.query("SELECT id FROM prompts", exact).unwrap().truncated);
    let small = SqlLimits { bytes: 1_000, ..SqlLimits::CEILING };
    let answer = sql.query("SELECT messages FROM prompts", small).unwrap();
    assert!(answer.truncated && answer.rows.len() < 50);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                   SELECT count(*) FROM n";
    let quick = SqlLimits { time_ms: 20, ..SqlLimits::CEILING };
    let error = sql.query(endless, quick).unwrap_err();
    assert!(matches!(error, SqlError::TooSlow { time_ms: 20 }), "{error:?}");
    assert!(sql.query("SELECT 1", quick).is_ok(), "the next statement has its own time");
    let long = format!("SELECT '{}'", "x".repeat(70_000));
    assert!(sql.query(&long, SqlLimits::CEILING).is_err());
}
