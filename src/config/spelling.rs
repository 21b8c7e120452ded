//! Spelling: which of the known words a wrong one was probably meant to be.
//!
//! In: a word and the known words. Out: the known one with the smallest edit distance. Pure.

/// Words longer than this are cut before they are compared, so that a giant key stays cheap.
const COMPARED_CHARS_MAX: usize = 64;

/// The known word nearest to `word`; `None` only where there are no known words.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(COMPARED_CHARS_MAX).collect();
    known.into_iter().min_by_key(|candidate| edit_distance(&word, candidate))
}

/// Levenshtein distance: insertions, deletions and replacements, each counted once.
fn edit_distance(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (i, b) in to.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, a) in from.iter().enumerate() {
            let replaced = diagonal + usize::from(*a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[from.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        let chars = |word: &str| word.chars().collect::<Vec<_>>();
        assert_eq!(edit_distance(&chars("kitten"), "sitting"), 3);
        assert_eq!(edit_distance(&chars(""), "abc"), 3);
        assert_eq!(edit_distance(&chars("abc"), ""), 3);
        assert_eq!(edit_distance(&chars("beta"), "beta"), 0);
    }

    #[test]
    fn the_nearest_word_wins_and_a_giant_one_is_no_burden() {
        assert_eq!(nearest("epoch", ["beta", "epochs"]), Some("epochs"));
        assert_eq!(nearest(&"x".repeat(1 << 20), ["beta"]), Some("beta"));
        assert_eq!(nearest("beta", []), None);
    }
}
