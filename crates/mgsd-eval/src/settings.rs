//! How a run asks, kept beside its rows, so that a resumed run does not mix answers to different questions.

use std::path::Path;

use mgsd_tasks::{GenerateOptions, RenderOptions, Task, generate};
use serde::{Deserialize, Serialize};

use crate::cases::EvalCase;
use crate::client::{Message, Part};
use crate::error::{Error, Result};
use crate::json;
use crate::run::{Resume, RunOptions};

/// The content of a `.run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The model's name or folder; it may change between the parts of a run (a moved folder, another endpoint).
    pub model: String,
    /// `image` or `text`.
    pub modality: String,
    /// Fingerprint of the texts around the boards.
    pub prompts: String,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token each time.
    pub temperature: f32,
    /// Only the likeliest tokens that together reach this probability.
    pub top_p: f32,
    /// Seed of sampling.
    pub seed: u64,
}

impl Settings {
    pub(crate) fn new(
        model: String,
        options: &RunOptions,
        question: &dyn Fn(&EvalCase) -> Result<Vec<Message>>,
    ) -> Result<Self> {
        Ok(Self {
            model,
            modality: options.modality.to_string(),
            prompts: fingerprint(question)?,
            max_new_tokens: options.max_new_tokens,
            temperature: options.temperature,
            top_p: options.top_p,
            seed: options.seed,
        })
    }

    /// Writes the file for a new run; for a resumed one, checks that it asks as the file says.
    ///
    /// # Errors
    /// When a resumed run would ask otherwise, or the file cannot be read or written.
    pub(crate) fn keep(&self, path: &Path, resume: Resume) -> Result<()> {
        if resume == Resume::Continue && path.exists() {
            let earlier: Self = json::read(path)?;
            let fields = |of: &Self| -> [(&'static str, String); 6] {
                [
                    ("modality", of.modality.clone()),
                    ("prompts", of.prompts.clone()),
                    ("max_new_tokens", of.max_new_tokens.to_string()),
                    ("temperature", of.temperature.to_string()),
                    ("top_p", of.top_p.to_string()),
                    ("seed", of.seed.to_string()),
                ]
            };
            for ((field, then), (_, now)) in fields(&earlier).into_iter().zip(fields(self)) {
                if then != now {
                    let expected = format!(
                        "the run to resume asked with {then:?} ({}); give the same, or another --out or --label",
                        path.display()
                    );
                    return Err(Error::Value { field, value: now, expected });
                }
            }
            return Ok(());
        }
        json::write(path, self)
    }
}

/// A hash (FNV-1a) of what is asked about one fixed board of each task.
fn fingerprint(question: &dyn Fn(&EvalCase) -> Result<Vec<Message>>) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for task in Task::ALL {
        let failed = |error: mgsd_tasks::Error| Error::Case { case_id: task.to_string(), message: error.to_string() };
        let boards = generate(task, 5, &GenerateOptions::default(), 0..1).map_err(failed)?;
        for board in &boards {
            let case = EvalCase::from_instance(task.to_string(), board, &RenderOptions::default().into());
            for part in question(&case)?.into_iter().flat_map(|message| message.parts) {
                let text = match part {
                    Part::Text(text) => text,
                    Part::Picture(_) => "<image>".to_string(),
                };
                for byte in text.bytes() {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        }
    }
    Ok(format!("{hash:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::Modality;
    use mgsd_data::prompts::Prompts;

    #[test]
    fn a_resumed_run_must_ask_as_before() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("m_image.run.json");
        let of = |prompts: &Prompts, options: &RunOptions| {
            Settings::new("m".into(), options, &|case| case.ask_for_plan(prompts, options.modality)).expect("settings")
        };
        let (compact, standard) = (Prompts::compact().expect("prompts"), Prompts::standard().expect("prompts"));
        let options = RunOptions::greedy(Modality::Image);
        of(&compact, &options).keep(&path, Resume::Fresh).expect("written");
        of(&compact, &options).keep(&path, Resume::Continue).expect("the same");
        let error = of(&standard, &options).keep(&path, Resume::Continue).expect_err("other prompts").to_string();
        assert!(error.starts_with("prompts:") && error.contains("m_image.run.json"), "{error}");
        let warm = RunOptions { temperature: 0.7, ..options };
        let error = of(&compact, &warm).keep(&path, Resume::Continue).expect_err("other sampling").to_string();
        assert!(error.contains("\"0.7\"") && error.contains("asked with \"0\""), "{error}");
        of(&compact, &warm).keep(&path, Resume::Fresh).expect("a new run");
    }
}
