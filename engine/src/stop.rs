//! Stop strings across token boundaries: text that may be the start of one is held back, so that
//! no part of a stop string is ever sent.

/// Watches one sequence's text for its stop strings.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher of the stop strings; empty ones are passed over.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece of text and returns what may be sent now. After a stop string has
    /// been met nothing more is.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        let met = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = met {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has been met.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What is still held back, when the sequence ends for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a proper start of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .filter(|at| *at > 0 && text.ends_with(&stop[..*at]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&str], stops: &[&str]) -> (String, bool) {
        let stops: Vec<_> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut out: String = pieces.iter().map(|piece| matcher.push(piece)).collect();
        out.push_str(&matcher.finish());
        (out, matcher.stopped())
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_never_sent() {
        assert_eq!(
            run(&["Hi", "\n", "US", "ER: x"], &["\nUSER:"]),
            ("Hi".into(), true)
        );
        assert_eq!(
            run(&["Hi", "\n", "USE"], &["\nUSER:"]),
            ("Hi\nUSE".into(), false)
        );
        assert_eq!(run(&["aab"], &["ab", "aab"]), (String::new(), true));
        assert_eq!(run(&["né", "e"], &["ée"]), ("n".into(), true));
        assert_eq!(run(&["x"], &[""]), ("x".into(), false));
    }

    proptest! {
        /// However the text is cut, the result is the text up to the first stop string.
        #[test]
        fn cutting_does_not_matter(text in "[abé]{0,24}", stop in "[abé]{1,4}", cuts in prop::collection::vec(0usize..24, 0..6)) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(chars.len())).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let whole = text.split(stop.as_str()).next().unwrap_or_default().to_owned();
            prop_assert_eq!(run(&pieces, &[&stop]), (whole, text.contains(&stop)));
        }
    }
}
