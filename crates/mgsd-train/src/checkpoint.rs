//! Checkpoints of a run: `checkpoint-<step>/` with the model (or adapter) as other programs load it, and beside it what
//! only this program needs to go on: `optimizer.safetensors` and `state.json`.

use crate::error::{Result, TrainError};
use crate::files;
use crate::pixels;
use crate::recipe::{Images, Kind, Recipe, Shape};
use mgsd_model::lora::LoraConfig;
use mgsd_model::model::Qwen3Vl;
use mgsd_model::weights::{Array, read_arrays, write_arrays};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const STATE: &str = "state.json";
const ARRAYS: &str = "optimizer.safetensors";
const BEST: &str = "best.json";

/// What `state.json` holds. Random numbers are drawn from counters, so seed and position are the random state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimiser steps done; the schedule's position.
    pub step: u64,
    /// Samples drawn from the data so far; the data's position.
    pub next_sample: u64,
    /// Seed of all draws.
    pub seed: u64,
    /// The best measurement so far.
    pub best: Option<Best>,
    /// The recipe of the run.
    pub recipe: Recipe,
}

/// A measurement that was the best when it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done then.
    pub step: u64,
    /// What was compared; larger is better.
    pub merit: f64,
}

/// The folder of a run.
pub(crate) struct RunFolder {
    pub(crate) path: PathBuf,
    /// Name or folder of the model that an adapter belongs to.
    pub(crate) base: String,
    /// Settings of the adapter, when one is trained.
    pub(crate) adapter: Option<LoraConfig>,
    /// How large pictures were in training.
    pub(crate) images: Images,
}

impl RunFolder {
    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        self.path.join(format!("checkpoint-{step}"))
    }

    /// Complete checkpoints, oldest first. Folders are renamed into place when complete, so a name is enough.
    pub(crate) fn checkpoints(&self) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Vec::new() };
        let mut found: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let step = entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
                entry.path().join(STATE).is_file().then(|| (step, entry.path()))
            })
            .collect();
        found.sort();
        found
    }

    pub(crate) fn latest(&self) -> Option<PathBuf> {
        self.checkpoints().pop().map(|(_, path)| path)
    }

    /// Writes the checkpoint of `state.step`, then removes all but the `keep` newest.
    pub(crate) fn write(
        &self,
        model: &Qwen3Vl,
        state: &State,
        arrays: &BTreeMap<String, Array>,
        keep: usize,
    ) -> Result<PathBuf> {
        let path = self.checkpoint(state.step);
        files::write_folder(&path, |folder| {
            self.write_model(model, folder)?;
            let file = folder.join(ARRAYS);
            write_arrays(&file, arrays).map_err(TrainError::other(format!("{}", file.display())))?;
            let text = serde_json::to_string_pretty(state).map_err(TrainError::other("writing state.json"))?;
            files::write_atomically(&folder.join(STATE), text.as_bytes())
        })?;
        let mut all = self.checkpoints();
        let newest = all.split_off(all.len().saturating_sub(keep));
        for (_, old) in all.iter().filter(|(step, _)| newest.iter().all(|(kept, _)| kept != step)) {
            files::remove_folder(old)?;
        }
        Ok(path)
    }

    /// Writes the weights of the best measurement to `best/`.
    pub(crate) fn write_best(&self, model: &Qwen3Vl, best: &Best) -> Result<PathBuf> {
        let path = self.best();
        files::write_folder(&path, |folder| {
            self.write_model(model, folder)?;
            let text = serde_json::to_string_pretty(best).map_err(TrainError::other("writing best.json"))?;
            files::write_atomically(&folder.join(BEST), text.as_bytes())
        })?;
        Ok(path)
    }

    /// Writes the result of the run to `model/` or `adapter/`.
    pub(crate) fn write_result(&self, model: &Qwen3Vl) -> Result<PathBuf> {
        let path = self.result();
        files::write_folder(&path, |folder| self.write_model(model, folder))?;
        Ok(path)
    }

    /// The step that `best/` is of.
    pub(crate) fn best_step(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.best().join(BEST)).ok()?;
        serde_json::from_str::<Best>(&text).ok().map(|best| best.step)
    }

    /// Where the weights of the best measurement go.
    pub(crate) fn best(&self) -> PathBuf {
        self.path.join("best")
    }

    /// What a run left here besides checkpoints, its result before its best weights.
    pub(crate) fn kept(&self) -> Option<PathBuf> {
        ["model", "adapter", "best"].map(|name| self.path.join(name)).into_iter().find(|path| path.is_dir())
    }

    /// Where the result goes.
    pub(crate) fn result(&self) -> PathBuf {
        self.path.join(if self.adapter.is_some() { "adapter" } else { "model" })
    }

    /// The adapter alone when there is one, else the whole model.
    fn write_model(&self, model: &Qwen3Vl, folder: &Path) -> Result<()> {
        let written = match &self.adapter {
            Some(config) => model.save_adapter(folder, &self.base, config),
            None => model.save(folder),
        };
        written.map_err(TrainError::other(format!("writing the weights to {}", folder.display())))?;
        // An adapter's folder says nothing of pictures.
        if self.adapter.is_none() { pixels::write(folder, self.images) } else { Ok(()) }
    }
}

/// Reads a checkpoint's state and arrays, and refuses one of another recipe.
pub(crate) fn read(path: &Path, recipe: &Recipe) -> Result<(State, BTreeMap<String, Array>)> {
    let file = path.join(STATE);
    let text = std::fs::read_to_string(&file).map_err(TrainError::io(&file, "cannot be read"))?;
    let state: State = serde_json::from_str(&text).map_err(|error| {
        TrainError::file(&file, format!("not a state of a training run: {error}{}", way_back(path)))
    })?;
    let differing = differing_keys(&state.recipe, recipe);
    if !differing.is_empty() {
        return Err(TrainError::file(
            &file,
            format!(
                "the run was begun with other values of {}; resume with the recipe of the run ({}), or choose another model.out",
                differing.into_iter().collect::<Vec<_>>().join(", "),
                path.with_file_name("recipe.toml").display()
            ),
        ));
    }
    let file = path.join(ARRAYS);
    let arrays = read_arrays(&file).map_err(|error| TrainError::file(&file, format!("{error}{}", way_back(path))))?;
    Ok((state, arrays))
}

/// Whether measurements of two recipes of one run can be compared.
pub(crate) fn measures_alike(old: &Recipe, new: &Recipe) -> bool {
    let (one, other) = (&old.eval, &new.eval);
    let sampled = (one.temperature, one.top_p) == (other.temperature, other.top_p);
    // Supervised training samples nothing.
    one.samples == other.samples && (sampled || new.kind != Kind::Opcd)
}

/// What to do about a damaged checkpoint: there may be one before it.
fn way_back(path: &Path) -> String {
    let folder =
        RunFolder { path: path.with_file_name(""), base: String::new(), adapter: None, images: Images::default() };
    let mut older = folder.checkpoints();
    older.truncate(older.iter().position(|(_, other)| other.file_name() == path.file_name()).unwrap_or(0));
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    older.last().map_or_else(String::new, |(_, other)| {
        format!("; remove the folder {} to go on from {}", path.display(), name(other))
    })
}

/// Dotted keys whose values differ and would change the numbers of the run.
fn differing_keys(old: &Recipe, new: &Recipe) -> BTreeSet<String> {
    let flat = |recipe: &Recipe| {
        let mut keys = BTreeMap::new();
        if let Ok(value) = toml::Value::try_from(recipe) {
            flatten("", &value, &mut keys);
        }
        keys
    };
    let (old_keys, new_keys) = (flat(old), flat(new));
    let constant = new.schedule.shape == Shape::Constant && new.schedule.warmup_ratio.is_none();
    let harmless = |key: &str| {
        (key.starts_with("eval.") && key != "eval.held_out")
            || key.starts_with("checkpoint.")
            || key.starts_with("metrics.")
            || key == "model.out"
            // With a constant rate the length of the run changes nothing of what was done so far.
            || (constant && (key == "steps" || key == "epochs"))
    };
    // Where the hub's cache lies says nothing about the model in it.
    let within_cache = |value: &String| value.find("/models--").map_or(value.clone(), |at| value[at..].to_string());
    let same = |key: &str| {
        let (old, new) = (old_keys.get(key), new_keys.get(key));
        match key {
            "model.base" | "opcd.teacher_model" => old.map(within_cache) == new.map(within_cache),
            _ => old == new,
        }
    };
    let all: BTreeSet<&String> = old_keys.keys().chain(new_keys.keys()).collect();
    all.into_iter().filter(|key| !same(key) && !harmless(key)).cloned().collect()
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    let join = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| flatten(&join(key), value, out)),
        toml::Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| flatten(&join(&i.to_string()), value, out));
        }
        other => {
            out.insert(prefix.to_string(), other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(changes: &[&str]) -> Recipe {
        let text = "kind = \"sft\"\nsteps = 4\n[model]\nbase = \"b\"\nout = \"o\"\n[[data.mix]]\nkind = \"sharegpt\"\nfile = \"f\"\n";
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        Recipe::parse("r", text, &changes).unwrap()
    }

    #[test]
    fn measurements_of_other_samples_or_another_sampling_are_not_alike() {
        let old = recipe(&[]);
        assert!(measures_alike(&old, &recipe(&["eval.every=5", "eval.top_p=0.5"])), "nothing is sampled");
        assert!(!measures_alike(&old, &recipe(&["eval.samples=5"])));
        let opcd = |change: &str| recipe(&["kind=opcd", "data.train=rows.json", change]);
        assert!(measures_alike(&opcd("eval.every=5"), &opcd("eval.every=6")));
        for change in ["eval.samples=5", "eval.temperature=0", "eval.top_p=0.5"] {
            assert!(!measures_alike(&opcd("eval.every=5"), &opcd(change)), "{change}");
        }
    }

    #[test]
    fn only_changes_that_alter_the_numbers_forbid_resuming() {
        let old = recipe(&[]);
        assert!(
            differing_keys(&old, &recipe(&["eval.every=5", "checkpoint.keep=1", "model.out=elsewhere"])).is_empty()
        );
        let differing =
            differing_keys(&old, &recipe(&["optimiser.lr=1", "eval.held_out=0.5", "steps=9", "data.mix.0.weight=2"]));
        let names: Vec<&str> = differing.iter().map(String::as_str).collect();
        assert_eq!(names, ["data.mix.0.weight", "eval.held_out", "optimiser.lr", "steps"]);
        let cached = |cache: &str, commit: &str| {
            recipe(&[&format!("model.base={cache}/models--Qwen--Qwen3-VL-4B-Instruct/snapshots/{commit}")])
        };
        assert!(differing_keys(&cached("/a", "1f"), &cached("/b/hub", "1f")).is_empty());
        assert_eq!(differing_keys(&cached("/a", "1f"), &cached("/a", "2e")).len(), 1);
        let constant = recipe(&["schedule.shape=constant"]);
        assert!(differing_keys(&constant, &recipe(&["schedule.shape=constant", "steps=9"])).is_empty());
    }
}
