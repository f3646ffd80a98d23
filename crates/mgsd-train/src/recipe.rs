//! Training recipes: TOML files in which every key is known, documented and checked.
//!
//! A recipe is read with [`Recipe::load`], `--set key=value` changes are applied to the TOML before it is checked, so
//! that a changed recipe obeys the same rules as a written one.

use crate::error::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::path::Path;

mod check;
mod sections;

pub use sections::*;

/// Everything that decides a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Which loop: `pretrain`, `sft` or `opcd`.
    pub kind: Kind,
    /// Decides the shuffles, the generated boards, random initial weights and what is sampled.
    #[serde(default)]
    pub seed: u64,
    /// Optimiser steps to take. Give this or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the data file. Give this or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// What is trained and where it goes.
    pub model: Model,
    /// What it is trained on.
    #[serde(default)]
    pub data: Data,
    /// Which texts frame the boards.
    #[serde(default)]
    pub prompts: Prompts,
    /// How large pictures reach the vision tower.
    #[serde(default)]
    pub images: Images,
    /// AdamW.
    #[serde(default)]
    pub optimiser: Optimiser,
    /// Learning rate over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// How many samples a step takes, and how they are packed.
    #[serde(default)]
    pub batch: Batching,
    /// On-policy distillation; only for `kind = "opcd"`.
    #[serde(default)]
    pub opcd: Opcd,
    /// Measuring on held-out samples during training.
    #[serde(default)]
    pub eval: Eval,
    /// What is kept on disk.
    #[serde(default)]
    pub checkpoint: Checkpointing,
    /// What is written about the run.
    #[serde(default)]
    pub metrics: Metrics,
}

/// The three training loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Supervised from random weights.
    Pretrain,
    /// Supervised fine-tuning of a checkpoint.
    Sft,
    /// On-policy context distillation.
    Opcd,
}

impl Recipe {
    /// Reads a recipe file and applies `key=value` changes.
    ///
    /// # Errors
    /// Names the file, the key, its value and what was expected.
    pub fn load(path: &Path, changes: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io(path, "the recipe cannot be read"))?;
        Self::parse(&path.display().to_string(), &text, changes)
    }

    /// Like [`load`](Self::load) for a text in memory; `name` stands for the file in messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(name: &str, text: &str, changes: &[String]) -> Result<Self> {
        let mut table: toml::Table = toml::from_str(text).map_err(|error| TrainError::Recipe {
            file: name.to_string(),
            key: "(file)".to_string(),
            value: None,
            expected: format!("not valid TOML: {error}"),
        })?;
        let set: Vec<&str> = changes.iter().map(|change| change.split('=').next().unwrap_or_default().trim()).collect();
        for change in changes {
            apply_change(name, &mut table, change, &set)?;
        }
        let tree = toml::Value::Table(table);
        let recipe: Self =
            serde_path_to_error::deserialize(tree.clone()).map_err(|error| describe(name, &tree, &error))?;
        recipe.check(name)?;
        Ok(recipe)
    }

    /// The recipe as TOML with every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe holds nothing that TOML cannot say")
    }
}

/// `a.b.c=value`: the value is TOML when it reads as TOML, else a string. `set`: the keys of all changes.
fn apply_change(name: &str, table: &mut toml::Table, change: &str, set: &[&str]) -> Result<()> {
    let bad = |key: &str, expected: String| TrainError::Recipe {
        file: format!("{name} with --set"),
        key: key.to_string(),
        value: None,
        expected,
    };
    let Some((key, text)) = change.split_once('=') else {
        return Err(bad(change, "expected key=value, for example --set optimiser.lr=1e-4".to_string()));
    };
    let key = key.trim();
    let value = parse_value(text.trim());
    let mut parts: Vec<&str> = key.split('.').collect();
    let Some(last) = parts.pop().filter(|last| !last.is_empty() && parts.iter().all(|part| !part.is_empty())) else {
        return Err(bad(key, "expected a dotted key such as optimiser.lr".to_string()));
    };
    let mut here = Slot::Table(table);
    for part in &parts {
        here = here.enter(part).ok_or_else(|| bad(key, format!("`{part}` is not a section of this recipe")))?;
    }
    here.set(last, value).ok_or_else(|| bad(key, format!("`{last}` is not an entry of this list")))?;
    // They exclude each other, and the file has one of them.
    let other = if key == "steps" { "epochs" } else { "steps" };
    if ["steps", "epochs"].contains(&key) && !set.contains(&other) {
        table.remove(other);
    }
    Ok(())
}

/// A place in the TOML tree that a dotted key walks through; lists are entered by number.
enum Slot<'a> {
    Table(&'a mut toml::Table),
    List(&'a mut Vec<toml::Value>),
}

impl<'a> Slot<'a> {
    fn enter(self, part: &str) -> Option<Slot<'a>> {
        let value = match self {
            Slot::Table(table) => table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new())),
            Slot::List(list) => list.get_mut(part.parse::<usize>().ok()?)?,
        };
        match value {
            toml::Value::Table(table) => Some(Slot::Table(table)),
            toml::Value::Array(list) => Some(Slot::List(list)),
            _ => None,
        }
    }

    fn set(self, last: &str, value: toml::Value) -> Option<()> {
        match self {
            Slot::Table(table) => {
                table.insert(last.to_string(), value);
            }
            Slot::List(list) => *list.get_mut(last.parse::<usize>().ok()?)? = value,
        }
        Some(())
    }
}

fn parse_value(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_string()))
}

/// Turns serde's error into file, key, value and expectation.
fn describe(name: &str, tree: &toml::Value, error: &serde_path_to_error::Error<toml::de::Error>) -> TrainError {
    let message = error.inner().message().to_string();
    let mut value = Some(tree);
    let mut keys: Vec<String> = Vec::new();
    for segment in error.path().iter() {
        use serde_path_to_error::Segment;
        value = match segment {
            Segment::Map { key } => {
                keys.push(key.clone());
                value.and_then(|value| value.get(key))
            }
            Segment::Seq { index } => {
                keys.push(index.to_string());
                value.and_then(|value| value.get(*index))
            }
            _ => value,
        };
    }
    // An unknown or missing field is named in serde's message; make it the key that the reader must look for.
    for start in ["missing field `", "unknown field `"] {
        if let Some(field) = message.strip_prefix(start).and_then(|rest| rest.split('`').next())
            && keys.last().map(String::as_str) != Some(field)
        {
            keys.push(field.to_string());
            value = value.and_then(|value| value.get(field));
        }
    }
    let written = value.filter(|value| !value.is_table()).map(ToString::to_string);
    let key = if keys.is_empty() { "(file)".to_string() } else { keys.join(".") };
    TrainError::Recipe { file: name.to_string(), key, value: written, expected: message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
kind = "sft"
steps = 10
[model]
base = "base"
out = "out"
[[data.mix]]
kind = "sharegpt"
file = "sft.json"
"#;

    fn message(text: &str, changes: &[&str]) -> String {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_string()).collect();
        Recipe::parse("r.toml", text, &changes).unwrap_err().to_string()
    }

    #[test]
    fn a_change_reaches_sections_lists_and_strings() {
        let changes = ["optimiser.lr=3e-4", "model.out=runs/a b", "data.mix.0.weight=2", "opcd.teacher=self"];
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let recipe = Recipe::parse("r.toml", SMALL, &changes).unwrap();
        assert_eq!(recipe.optimiser.lr, 3e-4);
        assert_eq!(recipe.model.out, Path::new("runs/a b"));
        assert_eq!(recipe.data.mix[0].weight, 2.0);
        assert_eq!(recipe.opcd.teacher, TeacherKind::Student);
    }

    #[test]
    fn steps_that_are_set_take_the_place_of_the_epochs_of_the_file() {
        let parse = |text: &str, changes: &[&str]| {
            Recipe::parse("r.toml", text, &changes.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let recipe = parse(&SMALL.replace("steps = 10", "epochs = 2"), &["steps=5"]).unwrap();
        assert_eq!((recipe.steps, recipe.epochs), (Some(5), None));
        let recipe = parse(SMALL, &["epochs=2"]).unwrap();
        assert!(recipe.steps.is_none() && recipe.epochs.is_some());
        assert!(parse(SMALL, &["epochs=2", "steps=5"]).is_err());
    }

    #[test]
    fn a_recipe_survives_being_written_with_all_defaults() {
        let recipe = Recipe::parse("r.toml", SMALL, &[]).unwrap();
        assert_eq!(Recipe::parse("again", &recipe.to_toml(), &[]).unwrap(), recipe);
    }

    #[test]
    fn errors_name_file_key_value_and_expectation() {
        let text = message(SMALL, &["optimiser.lr=\"fast\""]);
        for part in ["r.toml", "`optimiser.lr`", "\"fast\"", "expected f64"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        let text = message(SMALL, &["optimiser.learning_rate=1"]);
        for part in ["`optimiser.learning_rate`", "the value 1", "unknown field", "`lr`"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        let text = message(SMALL, &["optimiser.lr=-1"]);
        assert_eq!(text, "r.toml: key `optimiser.lr` has the value -1: expected a number above 0");
        let text = message(SMALL, &["kind=ppo"]);
        for part in ["`kind`", "\"ppo\"", "`pretrain`, `sft`, `opcd`"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        let text = message("kind = \"sft\"\nsteps = 1\n[model]\nbase = \"b\"\n", &[]);
        assert!(text.contains("`model.out`") && text.contains("missing field"), "{text}");
        assert!(message(SMALL, &["epochs=2", "steps=5"]).contains("exactly one of"));
        assert!(message(SMALL, &["optimiser"]).contains("expected key=value"));
        assert!(message(SMALL, &["data.mix.3.weight=1"]).contains("not a section"));
        assert!(message("kind = sft", &[]).contains("not valid TOML"));
    }

    #[test]
    fn values_that_would_do_nothing_or_fail_late_are_refused() {
        let two = format!("{SMALL}[[data.mix]]\nkind = \"plan_text\"\n[data.tasks.maze]\nlevels = [3]\n");
        assert!(Recipe::parse("r.toml", &two, &[]).is_ok());
        for (change, key) in [
            ("opcd.top_k=1", "opcd.top_k"),
            ("opcd.beta=0", "opcd.beta"),
            ("opcd.beta=1", "opcd.beta"),
            ("eval.temperature=-1", "eval.temperature"),
            ("eval.top_p=0", "eval.top_p"),
            ("data.mix.0.weight=0.0001", "data.mix.0.weight"),
            ("data.mix.1.file=boards.json", "data.mix.1.file"),
            ("data.tasks.maze.difficulty=[]", "data.tasks.maze.difficulty"),
            ("data.tasks.maze.frozen_probability=0.5", "data.tasks.maze.frozen_probability"),
            ("data.train=rows.json", "data.train"),
            ("opcd.beta=0.3", "opcd.beta"),
            ("opcd.ema_decay=0.5", "opcd.ema_decay"),
            ("opcd.replay_weight=2", "opcd.replay_weight"),
            ("optimiser.lr=1e-50", "optimiser.lr"),
            ("optimiser.lr=1e50", "optimiser.lr"),
            ("optimiser.eps=1e-50", "optimiser.eps"),
            ("optimiser.eps=inf", "optimiser.eps"),
        ] {
            assert!(message(&two, &[change]).contains(&format!("`{key}`")), "{change}: {}", message(&two, &[change]));
        }
        let adapter = ["model.adapter.rank=8", "model.adapter.alpha=16", "model.random_weights=true"];
        assert!(message(SMALL, &adapter).contains("`model.random_weights`"));
        for (last, key) in [
            ("model.train.vision=false", "model.train"),
            ("model.adapter.targets=[\"q_proj\"]", "model.adapter.targets"),
        ] {
            let adapter = ["model.adapter.rank=8", "model.adapter.alpha=16", "model.adapter.from=a", last];
            assert!(message(SMALL, &adapter).contains(&format!("`{key}`")), "{last}: {}", message(SMALL, &adapter));
        }
        assert!(
            message(SMALL, &["schedule.shape=constant", "schedule.min_ratio=0.1"]).contains("`schedule.min_ratio`")
        );
    }

    #[test]
    fn the_policy_gradient_loss_samples_from_the_model_itself() {
        for (change, key) in [("opcd.temperature=0.7", "opcd.temperature"), ("opcd.top_p=0.9", "opcd.top_p")] {
            let text = message(SMALL, &["opcd.loss=policy-gradient", change]);
            assert!(text.contains(&format!("`{key}`")) && text.contains("reverse-kl"), "{text}");
            assert!(Recipe::parse("r.toml", SMALL, &[change.to_string()]).is_ok());
        }
    }

    #[test]
    fn every_recipe_of_the_repository_reads() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                Recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
                count += 1;
            }
        }
        assert!(count >= 7, "{count} recipes");
    }
}
