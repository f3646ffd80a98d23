//! The exact divergence between student and teacher at each token of an answer: what OPCD's loss sees.

use crate::error::{Error, Result};
use crate::reply::{ApiError, Reply};
use mgsd_compute::ops::loss::{self, Divergence, TokenStats};
use mgsd_model::batch::Batch;
use mgsd_model::linear::Adapter;
use mgsd_model::model::{Activations, Keep, Qwen3Vl};
use mgsd_model::processor::Prompt;
use serde::Serialize;

/// What is known of one token, natural logarithms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenScore {
    /// KL(student ‖ teacher) over the whole vocabulary at this place.
    pub kl: f32,
    /// The student's log-probability of the token.
    pub student_log_prob: f32,
    /// The teacher's.
    pub teacher_log_prob: f32,
    /// Entropy of the student's distribution.
    pub student_entropy: f32,
}

/// The answer where no teacher is loaded.
pub(super) fn no_teacher() -> ApiError {
    ApiError::not_found("no teacher is loaded; start the server with --teacher DIR")
}

/// One model's side, with buffers kept from answer to answer.
struct Side {
    batch: Batch,
    acts: Activations,
}

impl Side {
    fn new(model: &Qwen3Vl) -> Self {
        Self { batch: Batch::new(&model.config), acts: Activations::new(&model.config) }
    }

    /// The states that predict each token of the response.
    fn run(&mut self, model: &Qwen3Vl, prompt: &Prompt, response: &[u32]) -> mgsd_model::error::Result<()> {
        self.batch.clear();
        self.batch.push_with(prompt, response)?;
        let first = prompt.ids.len() as u32 - 1;
        let predicting: Vec<u32> = (first..first + response.len() as u32).collect();
        model.forward_rows(&self.batch, &predicting, &mut self.acts, Adapter::On, Keep::Nothing);
        Ok(())
    }
}

/// Student and teacher with their buffers.
pub(super) struct Scorer {
    student: Side,
    teacher: Side,
    stats: TokenStats,
    teacher_log_probs: Vec<f32>,
}

impl Scorer {
    /// Refuses a teacher with another vocabulary.
    pub fn new(model: &Qwen3Vl, teacher: &Qwen3Vl) -> Result<Self> {
        let (ours, theirs) = (model.config.text.vocab_size, teacher.config.text.vocab_size);
        if ours != theirs {
            return Err(Error::Option {
                option: "--teacher",
                value: teacher.origin.as_ref().map_or_else(|| "a model".into(), |dir| dir.display().to_string()),
                problem: format!("has a vocabulary of {theirs} tokens; expected the model's own, of {ours}"),
            });
        }
        let (stats, teacher_log_probs) = (TokenStats::default(), Vec::new());
        Ok(Self { student: Side::new(model), teacher: Side::new(teacher), stats, teacher_log_probs })
    }

    pub fn score(
        &mut self,
        model: &Qwen3Vl,
        teacher: &Qwen3Vl,
        student_prompt: &Prompt,
        teacher_prompt: &Prompt,
        response: &[u32],
    ) -> Reply<Vec<TokenScore>> {
        let vocab = model.config.text.vocab_size;
        if let Some(id) = response.iter().find(|id| **id as usize >= vocab) {
            return Err(ApiError::invalid("token_ids", format!("{id} is outside the vocabulary of {vocab} tokens")));
        }
        let wrong = |error: mgsd_model::error::Error| ApiError::invalid("messages", error.to_string());
        self.student.run(model, student_prompt, response).map_err(wrong)?;
        self.teacher.run(teacher, teacher_prompt, response).map_err(wrong)?;
        let other = loss::Teacher { hidden: self.teacher.acts.hidden(), head: &teacher.head().value, top_k: None };
        let weights = vec![1.0; response.len()];
        loss::distill(
            &mut self.stats,
            &mut self.teacher_log_probs,
            Divergence::ReverseKl,
            self.student.acts.hidden(),
            &model.head().value,
            &other,
            response,
            &weights,
            None,
        );
        let stats = &self.stats;
        let token = |at: usize| TokenScore {
            kl: stats.loss[at],
            student_log_prob: stats.log_prob[at],
            teacher_log_prob: self.teacher_log_probs[at],
            student_entropy: stats.entropy[at],
        };
        Ok((0..response.len()).map(token).collect())
    }
}
