//! Finds stop strings in a text that comes in pieces. Pure.
//!
//! Text that could still become a stop string is held back; other text is passed on at once. The result does not depend on how
//! the text was cut into pieces.

/// Searches one text.
#[derive(Clone, Debug, Default)]
pub(super) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Searches for any of `stops`; empty ones are ignored.
    pub(super) fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new() }
    }

    /// Takes a piece of the text and appends to `out` the text that is certain to be before any stop string. Returns true if a
    /// stop string is complete: the text ends before it, and the caller must push no more.
    pub(super) fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(piece);
            return false;
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_match() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return true;
        }
        let certain = self.held.len() - self.longest_possible_start();
        out.extend(self.held.drain(..certain));
        false
    }

    /// Ends the text without a stop string: appends the text that was held back.
    pub(super) fn finish(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }

    /// The start of the stop string that is complete first; of several that end at one place, the longest.
    fn first_match(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        found.min().map(|(_, start)| start)
    }

    /// The most bytes at the end of the held text that are the start of a stop string.
    fn longest_possible_start(&self) -> usize {
        let partial = |stop: &String| {
            let longest = self.held.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&bytes| self.held.as_bytes().ends_with(&stop.as_bytes()[..bytes])).unwrap_or(0)
        };
        self.stops.iter().map(partial).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<'a>(stops: &[String], pieces: impl IntoIterator<Item = &'a str>) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut out) {
                return (out, true);
            }
        }
        matcher.finish(&mut out);
        (out, false)
    }

    fn owned(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|&stop| stop.to_owned()).collect()
    }

    #[test]
    fn a_stop_string_across_pieces_is_trimmed() {
        assert_eq!(run(&owned(&["\n\nQ:"]), ["yes", "\n", "\nQ", ": why"]), ("yes".to_owned(), true));
    }

    #[test]
    fn a_start_that_does_not_become_a_stop_string_is_returned() {
        assert_eq!(run(&owned(&["END"]), ["the E", "N", "D."]), ("the ".to_owned(), true));
        assert_eq!(run(&owned(&["END"]), ["the E", "N", "d."]), ("the ENd.".to_owned(), false));
        assert_eq!(run(&owned(&["END"]), ["the E", "N"]), ("the EN".to_owned(), false));
    }

    #[test]
    fn only_what_could_become_a_stop_string_is_held_back() {
        let mut matcher = StopMatcher::new(owned(&["abc"]));
        let mut out = String::new();
        assert!(!matcher.push("xxab", &mut out));
        assert_eq!(out, "xx");
        assert!(!matcher.push("abz", &mut out));
        assert_eq!(out, "xxababz");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            stops in proptest::collection::vec("[abé]{1,4}", 0..4),
            text in "[abcé]{0,30}",
            cuts in proptest::collection::vec(0usize..30, 0..6),
        ) {
            let mut ends: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            ends.push(text.len());
            ends.sort_unstable();
            let mut start = 0;
            let pieces: Vec<&str> = ends.iter().map(|&end| &text[std::mem::replace(&mut start, end)..end]).collect();
            let (out, stopped) = run(&stops, pieces);
            // The plain definition: the shortest beginning of the text that ends with a stop string.
            let expected = (0..=text.len())
                .filter(|&end| text.is_char_boundary(end))
                .find_map(|end| {
                    let longest = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max()?;
                    Some(text[..end - longest].to_owned())
                });
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(out, expected.unwrap_or(text));
        }
    }
}
