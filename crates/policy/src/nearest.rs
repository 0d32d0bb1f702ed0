/// The candidate that a misspelt `word` most likely stands for: at most a third of its letters (and at least one) are off.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    within(word, candidates, 3)
}

/// As [`nearest`], for candidates that have little in common: half of the letters may be off.
pub(crate) fn roughly<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    within(word, candidates, 2)
}

fn within<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, letters_per_slip: usize) -> Option<&'a str> {
    // A word this long is no misspelling of ours, and the distance takes time in proportion to the product of both lengths.
    if word.len() > 64 {
        return None;
    }
    let word: Vec<char> = word.to_lowercase().chars().collect();
    let allowed = (word.len() / letters_per_slip.max(1)).max(1);
    let distances = candidates.into_iter().map(|candidate| (distance(&word, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= allowed).min_by_key(|(distance, _)| *distance).map(|(_, found)| found)
}

/// Levenshtein distance, where swapped neighbours count once (restricted Damerau).
fn distance(word: &[char], candidate: &str) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=word.len()).collect();
    let mut previous = None;
    for (row, right) in candidate.chars().enumerate() {
        let mut next = vec![row + 1];
        for (column, left) in word.iter().enumerate() {
            let at = |line: &[usize], column: usize| line.get(column).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&last, column) + usize::from(*left != right)).min(at(&last, column + 1) + 1);
            best = best.min(at(&next, column) + 1);
            let swapped = column > 0 && previous == Some(*left) && word.get(column - 1) == Some(&right);
            if swapped && let Some(crossed) = before.get(column - 1) {
                best = best.min(crossed + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut last, next);
        previous = Some(right);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_that_was_meant() {
        let words = ["allow", "deny", "egress", "ingress", "private", "public"];
        let cases = [
            ("alow", Some("allow")),
            ("dney", Some("deny")),
            ("egres", Some("egress")),
            ("pubilc", Some("public")),
            ("Private", Some("private")),
            ("banana", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, words), expected, "{word}");
        }
    }
}
