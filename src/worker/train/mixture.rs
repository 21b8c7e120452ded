//! Several files of data as one list of rows, each taken as often as its weights say.
//!
//! In: JSONL files, a weight for each; a line may have a `"weight"` of its own, and the two are
//! multiplied. Out: [`Row`]s in the order of files and lines. A weight of 2 takes a row twice, of 0.5
//! once with a probability of a half, of 2.5 twice or three times: drawn by (seed, the row's number)
//! alone, so that it is the same in every epoch and after a restart. Which rows are fit is decided
//! before copies are made, so that a copy is no duplicate. May not enter: what a row means.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::{Lines, Refusal};
use crate::errors::{InputError, TextError};
use crate::philox::philox4x32;

/// The largest weight: beyond it an epoch is one file many times over.
pub const WEIGHT_MAX: f64 = 1000.0;

/// A row that its weight took never is counted under this reason.
pub const NOT_DRAWN: &str = "weight";

/// Sets these draws apart from all others of the same seed.
const MIXTURE: u32 = 0x4d49_5854;

/// A file of training data.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Above 0, at most [`WEIGHT_MAX`].
    pub weight: f64,
}

impl DataFile {
    /// A file whose lines are taken once.
    #[must_use]
    pub fn once(path: PathBuf) -> Self {
        Self { path, weight: 1.0 }
    }
}

/// A line of one of the files.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<'a, T> {
    /// The file.
    pub path: &'a Path,
    /// Counted from 1.
    pub line: usize,
    /// Among the lines of all files, from 1.
    pub number: u64,
    /// How often it is taken.
    pub copies: usize,
    /// What it says.
    pub item: T,
}

impl<T> Row<'_, T> {
    /// An error about this row.
    pub fn refused(&self, error: TextError) -> InputError {
        let Refusal { problem, mend } = Refusal::from(error);
        InputError::Line { path: self.path.to_owned(), line: self.line, problem, mend }
    }
}

/// Reads every line of every file.
///
/// # Errors
/// [`InputError`], naming the first bad line.
pub fn read<T>(
    files: &[DataFile],
    seed: u64,
    read: impl Fn(&Map<String, Value>) -> Result<T, Refusal>,
) -> Result<Vec<Row<'_, T>>, InputError> {
    let mut rows = Vec::new();
    let mut number = 0;
    for file in files {
        let lines = Lines::read_all(&file.path, |object| Ok((weight(object)?, read(object)?)))?;
        for (line, (weight, item)) in lines {
            number += 1;
            let copies = copies(seed, number, weight * file.weight);
            rows.push(Row { path: &file.path, line, number, copies, item });
        }
    }
    Ok(rows)
}

/// Each item as often as it is taken, in order, and how many never are.
#[must_use]
pub fn spread<T: Clone>(items: Vec<(T, usize)>) -> (Vec<T>, u64) {
    let mut spread = Vec::with_capacity(items.len());
    let mut never = 0;
    for (item, copies) in items {
        never += u64::from(copies == 0);
        spread.extend(std::iter::repeat_n(item, copies));
    }
    (spread, never)
}

/// A line's own weight.
fn weight(object: &Map<String, Value>) -> Result<f64, Refusal> {
    match object.get("weight") {
        None | Some(Value::Null) => Ok(1.0),
        Some(value) => value.as_f64().filter(|weight| is_weight(*weight)).ok_or_else(|| Refusal {
            problem: format!("\"weight\" is {value}"),
            mend: format!("give a number above 0, at most {WEIGHT_MAX}, or leave it out"),
        }),
    }
}

/// Whether rows may be weighted so.
#[must_use]
pub fn is_weight(weight: f64) -> bool {
    weight > 0.0 && weight <= WEIGHT_MAX
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a weight is not negative, and at most WEIGHT_MAX squared"
)]
fn copies(seed: u64, number: u64, weight: f64) -> usize {
    let halves = |x: u64| [(x & 0xffff_ffff) as u32, (x >> 32) as u32];
    let [low, high] = halves(number);
    let drawn = philox4x32([low, high, 0, MIXTURE], halves(seed))[0];
    let uniform = f64::from(drawn) / (f64::from(u32::MAX) + 1.0);
    let whole = weight.floor();
    whole as usize + usize::from(uniform < weight - whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str, lines: &str, weight: f64) -> DataFile {
        let path = dir.join(name);
        std::fs::write(&path, lines).unwrap();
        DataFile { path, weight }
    }

    fn text(object: &Map<String, Value>) -> Result<String, Refusal> {
        Ok(object["t"].as_str().unwrap().to_owned())
    }

    #[test]
    fn files_and_lines_multiply_their_weights_and_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let one = file(dir.path(), "one", "{\"t\": \"a\"}\n\n{\"t\": \"b\", \"weight\": 2}\n", 3.0);
        let two = file(dir.path(), "two", "{\"t\": \"c\"}\n", 1.0);
        let files = [one, two];
        let rows = read(&files, 7, text).unwrap();
        let told: Vec<_> =
            rows.iter().map(|row| (row.item.as_str(), row.line, row.number, row.copies)).collect();
        assert_eq!(told, [("a", 1, 1, 3), ("b", 3, 2, 6), ("c", 1, 3, 1)]);
        let items = rows.into_iter().map(|row| (row.item, row.copies - 1)).collect();
        let (spread, never) = spread(items);
        assert_eq!((spread.concat().as_str(), never), ("aabbbbb", 1));
        for weight in ["0", "-1", "\"2\"", "1001"] {
            let line = format!("{{\"t\": \"a\"}}\n{{\"t\": \"b\", \"weight\": {weight}}}\n");
            let bad = [file(dir.path(), "bad", &line, 1.0)];
            let error = read(&bad, 7, text).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains("\"weight\" is"), "{error}");
        }
    }

    #[test]
    fn a_half_is_drawn_by_the_seed_and_the_rows_number_alone() {
        let drawn = |seed, weight| (1..=4000).map(|n| copies(seed, n, weight)).collect::<Vec<_>>();
        assert_eq!(drawn(7, 0.5), drawn(7, 0.5));
        assert_ne!(drawn(7, 0.5), drawn(8, 0.5));
        assert_eq!(drawn(7, 2.0), [2; 4000]);
        // 2000, deviation 32: six deviations either way; a quarter of 4000 in the same way.
        let half: usize = drawn(7, 0.5).iter().sum();
        assert!((1810..2190).contains(&half), "{half}");
        let more: usize = drawn(7, 2.25).iter().sum();
        assert!((8835..9165).contains(&more), "{more}");
        // Who is drawn at a smaller weight is drawn at a larger one.
        assert!(drawn(7, 0.2).iter().zip(drawn(7, 0.5)).all(|(less, more)| *less <= more));
    }
}
