//! From tokens to the text of an answer: whole characters, and an end where a stop text begins.

use mgsd_model::processor::Processor;
use mgsd_model::tokenizer::Characters;

/// Puts the text of one answer together.
pub struct TextBuilder {
    stops: Vec<String>,
    keep_stop: bool,
    characters: Characters,
    /// Text that may turn out to be the beginning of a stop text.
    held: String,
    stopped_by: Option<String>,
}

impl TextBuilder {
    /// An empty answer that ends where one of `stops` begins, or ends if it is to be kept.
    pub fn new(stops: Vec<String>, keep_stop: bool) -> Self {
        Self { stops, keep_stop, characters: Characters::default(), held: String::new(), stopped_by: None }
    }

    /// Takes a token; returns the text that is certain now.
    pub fn push(&mut self, processor: &Processor, id: u32) -> mgsd_model::error::Result<String> {
        if self.stopped_by.is_some() {
            return Ok(String::new());
        }
        let text = self.characters.push(&processor.tokenizer, id)?;
        Ok(self.take(&text))
    }

    /// The answer has ended: returns what is left of its text.
    pub fn finish(&mut self, processor: &Processor) -> mgsd_model::error::Result<String> {
        if self.stopped_by.is_some() {
            return Ok(String::new());
        }
        let text = self.characters.finish(&processor.tokenizer)?;
        let mut last = self.take(&text);
        last.push_str(&std::mem::take(&mut self.held));
        Ok(last)
    }

    /// The stop text that was met.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    fn take(&mut self, text: &str) -> String {
        if self.stops.is_empty() {
            return text.to_string();
        }
        self.held.push_str(text);
        let met = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at, stop)));
        // The earliest, and of those that begin together the one that is complete first.
        if let Some((at, stop)) = met.min_by_key(|(at, stop)| (*at, stop.len())) {
            let end = if self.keep_stop { at + stop.len() } else { at };
            self.stopped_by = Some(stop.clone());
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.possible_beginning();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Length of the longest end of the text that a stop text begins with.
    fn possible_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        let starts = self.held.char_indices().map(|(at, _)| at).filter(|at| *at >= earliest);
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        starts.into_iter().find(begins).map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(stops: &[&str], keep: bool, texts: &[&str]) -> (Vec<String>, Option<String>) {
        let mut builder = TextBuilder::new(stops.iter().map(|stop| stop.to_string()).collect(), keep);
        let mut out = Vec::new();
        for text in texts {
            out.push(builder.take(text));
            if builder.stopped_by().is_some() {
                break;
            }
        }
        (out, builder.stopped_by)
    }

    #[test]
    fn a_stop_text_is_found_across_tokens_and_nothing_of_it_gets_out() {
        let (out, by) = pieces(&["</answer>"], false, &["RR", "D<", "/ans", "wer", "> and more"]);
        assert_eq!(out, ["RR", "D", "", "", ""]);
        assert_eq!(by.as_deref(), Some("</answer>"));
    }

    #[test]
    fn what_only_looked_like_a_stop_text_comes_out_later() {
        let (out, by) = pieces(&["abc"], false, &["a", "b", "a", "bd"]);
        assert_eq!(out, ["", "", "ab", "abd"]);
        assert_eq!(by, None);
    }

    #[test]
    fn the_earliest_stop_text_wins_and_can_be_kept() {
        assert_eq!(pieces(&["b", "a"], false, &["xay b"]).0, ["x"]);
        assert_eq!(pieces(&["b", "a"], true, &["xay b"]).0, ["xa"]);
        assert_eq!(pieces(&["é"], false, &["né"]).0, ["n"]);
    }
}
