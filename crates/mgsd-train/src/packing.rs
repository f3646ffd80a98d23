//! Samples laid end to end into micro-batches, with the rows that predict labelled tokens.

use crate::error::{Result, TrainError};
use mgsd_model::batch::Batch;
use mgsd_model::config::Config;
use mgsd_model::processor::Prompt;
use std::ops::Range;

/// One tokenised sample: a sequence, and which of its tokens are to be predicted.
pub(crate) struct Sample {
    /// For messages.
    pub(crate) name: String,
    pub(crate) prompt: Prompt,
    /// As long as `prompt.ids`.
    pub(crate) labelled: Vec<bool>,
}

impl Sample {
    /// Cuts off what goes beyond `limit` tokens.
    ///
    /// # Errors
    /// When that would cut into the question: nothing sensible would be left to learn.
    pub(crate) fn limit(&mut self, limit: usize) -> Result<()> {
        let first = self.labelled.iter().skip(1).position(|&labelled| labelled).map(|at| at + 1);
        if first.is_none_or(|first| first >= limit) {
            let begins =
                first.map_or("there is no answer".to_string(), |first| format!("the answer begins at token {first}"));
            return Err(TrainError::Sample {
                sample: self.name.clone(),
                what: format!(
                    "{} tokens, {begins}; expected an answer that begins within the first {limit}. \
                     Raise batch.max_tokens_per_sample or lower images.max_pixels",
                    self.prompt.ids.len()
                ),
            });
        }
        // A later picture must not lose part of its tokens, so only what follows the last label start is cut.
        let images_end = self.labelled.iter().rposition(|&labelled| !labelled).map_or(0, |last| last + 1);
        if self.prompt.ids.len() > limit && images_end > limit {
            return Err(TrainError::Sample {
                sample: self.name.clone(),
                what: format!(
                    "{} tokens, and a later question lies beyond {limit}; raise batch.max_tokens_per_sample",
                    self.prompt.ids.len()
                ),
            });
        }
        self.prompt.ids.truncate(limit);
        self.labelled.truncate(limit);
        Ok(())
    }
}

/// Packed sequences and the tokens to predict.
pub(crate) struct MicroBatch {
    pub(crate) batch: Batch,
    /// Rows of the batch whose hidden state predicts `targets`.
    pub(crate) rows: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    /// Where each sequence's predictions end in `rows` and `targets`.
    ends: Vec<usize>,
}

impl MicroBatch {
    pub(crate) fn new(config: &Config) -> Self {
        Self { batch: Batch::new(config), rows: Vec::new(), targets: Vec::new(), ends: Vec::new() }
    }

    /// The predictions of each sequence, as ranges of `rows` and `targets`.
    pub(crate) fn answers(&self) -> impl Iterator<Item = Range<usize>> {
        self.ends.iter().scan(0, |start, &end| Some(std::mem::replace(start, end)..end))
    }

    pub(crate) fn clear(&mut self) {
        self.batch.clear();
        self.rows.clear();
        self.targets.clear();
        self.ends.clear();
    }

    /// Appends a sample; every labelled token is predicted from the row before it.
    pub(crate) fn push(&mut self, sample: &Sample) -> Result<()> {
        let start = self.batch.push(&sample.prompt).map_err(|error| named(&sample.name, &error))?;
        for (at, _) in sample.labelled.iter().enumerate().skip(1).filter(|(_, labelled)| **labelled) {
            self.rows.push((start + at - 1) as u32);
            self.targets.push(sample.prompt.ids[at]);
        }
        self.ends.push(self.targets.len());
        Ok(())
    }

    /// Appends a prompt and a response; every token of the response is predicted.
    pub(crate) fn push_response(&mut self, name: &str, prompt: &Prompt, response: &[u32]) -> Result<()> {
        let start = self.batch.push_with(prompt, response).map_err(|error| named(name, &error))?;
        let first = start + prompt.ids.len() - 1;
        self.rows.extend((first..first + response.len()).map(|row| row as u32));
        self.targets.extend_from_slice(response);
        self.ends.push(self.targets.len());
        Ok(())
    }
}

fn named(name: &str, error: &dyn std::fmt::Display) -> TrainError {
    TrainError::Sample { sample: name.to_string(), what: error.to_string() }
}

/// Cuts a list of sequence lengths into runs of at most `limit` tokens; a longer sequence is a run of its own.
pub(crate) fn runs(lengths: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (i, &length) in lengths.iter().enumerate() {
        if i > start && tokens + length > limit {
            runs.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += length;
    }
    if start < lengths.len() {
        runs.push(start..lengths.len());
    }
    runs
}

/// A text of so many tokens that means nothing.
pub(crate) fn filler(tokens: usize) -> Prompt {
    Prompt { ids: vec![0; tokens], images: Vec::new() }
}

/// Which of `count` sequences of `tokens` each would make the largest batches when repeated: for each measure the one that
/// has most of it a token. With how often it fits into `limit` tokens, at most `count` times.
pub(crate) fn extremes(
    count: usize,
    tokens: impl Fn(usize) -> usize,
    measures: &[&dyn Fn(usize) -> usize],
    limit: usize,
) -> Vec<(usize, usize)> {
    let share = |measure: &dyn Fn(usize) -> usize, at: usize| measure(at) as f64 / tokens(at).max(1) as f64;
    let most = |measure: &&dyn Fn(usize) -> usize| {
        (0..count).max_by(|&one, &other| share(*measure, one).total_cmp(&share(*measure, other)))
    };
    let mut found: Vec<usize> = measures.iter().filter_map(most).collect();
    found.dedup();
    found.into_iter().map(|at| (at, (limit / tokens(at).max(1)).clamp(1, count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_all_sequences_in_order_and_respect_the_limit() {
        assert_eq!(runs(&[3, 3, 5, 1, 12, 2], 8), [0..2, 2..4, 4..5, 5..6]);
        assert!(runs(&[], 8).is_empty());
        assert_eq!(runs(&[20, 1], 8), [0..1, 1..2]);
    }

    #[test]
    fn the_densest_sequences_fill_the_largest_batches() {
        // Tokens, patches and labels of three sequences.
        let all = [(10, 40, 1), (20, 40, 10), (5, 0, 4)];
        let find = |limit| {
            let measures: [&dyn Fn(usize) -> usize; 2] = [&|at| all[at].1, &|at| all[at].2];
            extremes(all.len(), |at| all[at].0, &measures, limit)
        };
        assert_eq!(find(12), [(0, 1), (2, 2)], "what fits");
        assert_eq!(find(1_000), [(0, 3), (2, 3)], "no more sequences than a step has");
        assert_eq!(find(1), [(0, 1), (2, 1)], "one that is too long is a batch of its own");
        assert!(extremes(0, |_| 1, &[&|_| 1], 9).is_empty());
    }

    fn sample(labels: &str) -> Sample {
        let labelled: Vec<bool> = labels.chars().map(|c| c == 'x').collect();
        let prompt = Prompt { ids: (0..labelled.len() as u32).collect(), images: Vec::new() };
        Sample { name: "s".to_string(), prompt, labelled }
    }

    #[test]
    fn every_answer_of_a_micro_batch_is_found_again() {
        let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../mgsd-model/tests/data/tiny-qwen3vl");
        let mut micro = MicroBatch::new(&Config::open(&tiny).unwrap());
        for _ in 0..2 {
            for labels in ["..xx", ".x..xxx"] {
                micro.push(&sample(labels)).unwrap();
            }
            micro.push_response("r", &sample("...").prompt, &[7, 8]).unwrap();
            let targets: Vec<&[u32]> = micro.answers().map(|answer| &micro.targets[answer]).collect();
            assert_eq!(targets, [&[2, 3][..], &[1, 4, 5, 6], &[7, 8]]);
            micro.clear();
        }
        assert_eq!(micro.answers().count(), 0);
    }

    #[test]
    fn only_the_end_of_the_last_answer_is_cut() {
        let mut long = sample("..xxxx");
        long.limit(4).unwrap();
        assert_eq!((long.prompt.ids.len(), long.labelled.len()), (4, 4));
        assert!(sample("....xx").limit(4).unwrap_err().to_string().contains("begins at token 4"));
        assert!(sample("..x...xx").limit(4).unwrap_err().to_string().contains("later question"));
        assert!(sample("....").limit(10).is_err(), "a sample without labels teaches nothing");
    }
}
