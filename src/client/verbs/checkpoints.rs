//! `rlhfctl checkpoints`: what the runs made, or the line from one of them back to its beginning.

use rlhfd_protocol::control::Table;
use serde_json::Value;

use crate::connect::{Daemon, escape};
use crate::errors::ClientError;
use crate::{format, render};

/// Asks and prints.
pub async fn run(daemon: &Daemon, lineage: Option<String>, json: bool) -> Result<(), ClientError> {
    let target = match lineage {
        Some(name) => format!("/v1/checkpoints?lineage={}", escape(&name)),
        None => "/v1/checkpoints".to_owned(),
    };
    let table: Table = daemon.get(&target).await?;
    if json {
        return render::json(&table);
    }
    if table.rows.is_empty() {
        return render::line("no checkpoint yet");
    }
    render::result(&for_people(table))
}

/// Columns that are shown as a word behind the name.
const MARKS: [&str; 5] = ["head", "best", "rejected", "pinned", "removed"];

/// Sums cut to what tells them apart, times and sizes as people read them, [`MARKS`] behind the name.
fn for_people(mut table: Table) -> Table {
    let name = table.column("checkpoint");
    for row in &mut table.rows {
        for (column, value) in table.columns.iter().zip(row.iter_mut()) {
            *value = match (column.as_str(), &*value) {
                ("sha256", Value::String(sum)) => sum.chars().take(12).collect::<String>().into(),
                ("created_ms", Value::Number(ms)) => {
                    ms.as_i64().map(format::time).unwrap_or_default().into()
                }
                ("bytes", Value::Number(bytes)) => {
                    bytes.as_u64().map(format::size).unwrap_or_default().into()
                }
                ("sound", Value::Number(sound)) => {
                    if sound.as_i64() == Some(1) { "yes" } else { "no" }.into()
                }
                (_, same) => same.clone(),
            };
        }
        let is = |mark: &&str| {
            let place = table.columns.iter().position(|column| column == mark);
            place.and_then(|place| row.get(place)).and_then(Value::as_i64) == Some(1)
        };
        let marks: Vec<&str> = MARKS.into_iter().filter(is).collect();
        if let Some(Value::String(name)) = name.and_then(|name| row.get_mut(name))
            && !marks.is_empty()
        {
            name.push_str(&format!(" ({})", marks.join(", ")));
        }
    }
    for mark in MARKS {
        if let Some(place) = table.column(mark) {
            table.columns.remove(place);
            table.rows.iter_mut().for_each(|row| drop(row.remove(place)));
        }
    }
    for column in &mut table.columns {
        match column.as_str() {
            "created_ms" => "made (UTC)".clone_into(column),
            "bytes" => "size".clone_into(column),
            _ => {}
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_head_is_marked_and_long_sums_are_cut() {
        let table = Table {
            columns: ["checkpoint", "head", "bytes", "sha256", "best", "rejected"]
                .map(str::to_owned)
                .to_vec(),
            rows: vec![vec![
                json!("initial"),
                json!(1),
                json!(2048),
                json!("ab".repeat(32)),
                json!(1),
                json!(0),
            ]],
            truncated: false,
        };
        let shown = for_people(table);
        assert_eq!(shown.columns, ["checkpoint", "size", "sha256"]);
        assert_eq!(
            shown.rows[0],
            [json!("initial (head, best)"), json!("2.0 KiB"), json!("abababababab")]
        );
    }
}
