//! Rules between and within the keys of a recipe, checked before anything is loaded.

use super::*;

/// Collects the file name so that each rule is one line.
struct Checker<'a> {
    file: &'a str,
}

impl Checker<'_> {
    fn rule(&self, holds: bool, key: &str, value: impl std::fmt::Display, expected: &str) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(TrainError::Recipe {
            file: self.file.to_string(),
            key: key.to_string(),
            value: Some(value.to_string()),
            expected: format!("expected {expected}"),
        })
    }

    fn missing(&self, holds: bool, key: &str, expected: &str) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(TrainError::Recipe {
            file: self.file.to_string(),
            key: key.to_string(),
            value: None,
            expected: expected.to_string(),
        })
    }
}

impl Recipe {
    /// Checks values and combinations; `file` names the recipe in messages.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check(&self, file: &str) -> Result<()> {
        let to = Checker { file };
        self.check_length(&to)?;
        self.check_model(&to)?;
        self.check_optimiser(&to)?;
        self.check_data(&to)?;
        self.check_opcd(&to)?;
        let eval = &self.eval;
        to.rule((0.0..1.0).contains(&eval.held_out), "eval.held_out", eval.held_out, "a share from 0 to below 1")?;
        to.rule(
            eval.every == 0 || eval.samples > 0,
            "eval.samples",
            eval.samples,
            "at least 1 when eval.every is set",
        )?;
        let (temperature, top_p) = (eval.temperature, eval.top_p);
        to.rule(temperature >= 0.0 && temperature.is_finite(), "eval.temperature", temperature, "0 (greedy) or more")?;
        to.rule(top_p > 0.0 && top_p <= 1.0, "eval.top_p", top_p, "a number above 0, at most 1")?;
        to.rule(self.checkpoint.keep > 0, "checkpoint.keep", self.checkpoint.keep, "at least 1")
    }

    fn check_length(&self, to: &Checker) -> Result<()> {
        to.missing(
            self.steps.is_some() != self.epochs.is_some(),
            "steps",
            "give exactly one of `steps` (optimiser steps) and `epochs` (passes over the data file)",
        )?;
        to.rule(self.steps != Some(0), "steps", 0, "at least 1")?;
        if let Some(epochs) = self.epochs {
            to.rule(epochs > 0.0 && epochs.is_finite(), "epochs", epochs, "a number above 0")?;
        }
        let batch = &self.batch;
        to.rule(batch.samples_per_step > 0, "batch.samples_per_step", batch.samples_per_step, "at least 1")?;
        let (micro, sample) = (batch.max_tokens_per_micro_batch, batch.max_tokens_per_sample);
        to.rule(micro > 0, "batch.max_tokens_per_micro_batch", micro, "at least 1")?;
        to.rule(sample > 1, "batch.max_tokens_per_sample", sample, "at least 2")
    }

    fn check_model(&self, to: &Checker) -> Result<()> {
        let parts = &self.model.train;
        let Some(adapter) = &self.model.adapter else {
            return to.missing(
                parts.vision || parts.merger || parts.text || parts.embeddings,
                "model.train",
                "nothing is trained: set at least one of vision, merger, text, embeddings to true",
            );
        };
        to.missing(
            self.model.random_weights != Some(true),
            "model.random_weights",
            "an adapter belongs to weights that are kept: make them with `mgsd model init`, and leave this out",
        )?;
        to.missing(
            *parts == Parts::default(),
            "model.train",
            "beside model.adapter the adapter alone is trained: leave the section out",
        )?;
        to.missing(
            adapter.from.is_none() || adapter.targets == Targets::default(),
            "model.adapter.targets",
            "an adapter to go on from has its layers already: leave this out",
        )?;
        to.rule(adapter.rank > 0, "model.adapter.rank", adapter.rank, "at least 1")?;
        to.rule(adapter.alpha > 0.0, "model.adapter.alpha", adapter.alpha, "a number above 0")?;
        match &adapter.targets {
            Targets::Set(name) => to.rule(
                name == "all-linear",
                "model.adapter.targets",
                name,
                "\"all-linear\" or a list such as [\"q_proj\", \"v_proj\"]",
            )?,
            Targets::Names(names) => {
                to.rule(!names.is_empty(), "model.adapter.targets", "[]", "at least one layer name")?;
            }
        }
        to.rule(self.kind != Kind::Pretrain, "model.adapter", "given", "no adapter when pretraining")
    }

    fn check_optimiser(&self, to: &Checker) -> Result<()> {
        let o = &self.optimiser;
        to.rule(o.lr > 0.0 && o.lr.is_finite(), "optimiser.lr", o.lr, "a number above 0")?;
        to.rule(o.eps > 0.0, "optimiser.eps", o.eps, "a number above 0")?;
        for (key, value) in [("optimiser.lr", o.lr), ("optimiser.eps", o.eps)] {
            let single = value as f32;
            to.rule(single > 0.0 && single.is_finite(), key, value, "a number that is above 0 and finite in 32 bits")?;
        }
        for (i, beta) in o.betas.iter().enumerate() {
            to.rule((0.0..1.0).contains(beta), &format!("optimiser.betas.{i}"), beta, "a number from 0 to below 1")?;
        }
        to.rule(o.weight_decay >= 0.0, "optimiser.weight_decay", o.weight_decay, "0 or more")?;
        to.rule(o.clip >= 0.0, "optimiser.clip", o.clip, "0 (off) or more")?;
        let s = &self.schedule;
        to.missing(
            s.warmup_steps.is_none() || s.warmup_ratio.is_none(),
            "schedule.warmup_ratio",
            "give `warmup_steps` or `warmup_ratio`, not both",
        )?;
        let ratio = s.warmup_ratio.unwrap_or(0.0);
        to.rule((0.0..1.0).contains(&ratio), "schedule.warmup_ratio", ratio, "a share from 0 to below 1")?;
        to.rule((0.0..=1.0).contains(&s.min_ratio), "schedule.min_ratio", s.min_ratio, "a share from 0 to 1")?;
        to.rule(
            s.shape == Shape::Cosine || s.min_ratio == Schedule::default().min_ratio,
            "schedule.min_ratio",
            s.min_ratio,
            "it left out, or 0, with shape = \"constant\": only a cosine ends anywhere",
        )
    }

    fn check_data(&self, to: &Checker) -> Result<()> {
        for (name, options) in &self.data.tasks {
            let key = format!("data.tasks.{name}");
            to.rule(name.parse::<mgsd_tasks::Task>().is_ok(), &key, name, "a task: frozenlake, maze or minibehaviour")?;
            to.missing(!options.levels.is_empty(), &format!("{key}.levels"), "expected at least one grid side")?;
            let weight = options.weight;
            to.rule(weight > 0.0 && weight.is_finite(), &format!("{key}.weight"), weight, "a number above 0")?;
            let frozenlake = matches!(name.parse(), Ok(mgsd_tasks::Task::FrozenLake));
            let of_frozenlake = [
                ("frozen_probability", options.frozen_probability.is_some()),
                ("random_start_goal", options.random_start_goal.is_some()),
                ("min_path_length", options.min_path_length.is_some()),
            ];
            for (option, given) in of_frozenlake {
                to.missing(frozenlake || !given, &format!("{key}.{option}"), "this is an option of frozenlake alone")?;
            }
            let difficulty = options.difficulty.as_ref();
            to.missing(
                !frozenlake || difficulty.is_none(),
                &format!("{key}.difficulty"),
                "this is an option of maze and minibehaviour",
            )?;
            to.missing(
                difficulty.is_none_or(|list| !list.is_empty()),
                &format!("{key}.difficulty"),
                "expected at least one difficulty",
            )?;
        }
        if let Some(size) = self.data.image_size {
            to.rule((32..=4096).contains(&size), "data.image_size", size, "32 to 4096 pixels")?;
        }
        if self.kind == Kind::Opcd {
            to.missing(
                self.data.train.is_some() || !self.data.tasks.is_empty(),
                "data.train",
                "expected a rows file or task folder in data.train, or boards to generate in data.tasks",
            )?;
            to.missing(
                self.epochs.is_none() || self.data.train.is_some(),
                "epochs",
                "generated boards have no end: give `steps` instead",
            )?;
            return if self.opcd.replay_samples > 0 { self.check_mix(to).map(|_| ()) } else { Ok(()) };
        }
        for (key, given) in [("data.train", &self.data.train), ("data.validation", &self.data.validation)] {
            to.missing(given.is_none(), key, "this is of `mgsd train opcd`; here samples come from [[data.mix]]")?;
        }
        let has_file = self.check_mix(to)?;
        to.missing(
            self.epochs.is_none() || has_file,
            "epochs",
            "generated samples have no end: give `steps` instead, or add a sharegpt file",
        )
    }

    /// The supervised samples; whether a file is among them.
    fn check_mix(&self, to: &Checker) -> Result<bool> {
        to.missing(!self.data.mix.is_empty(), "data.mix", "expected at least one [[data.mix]] entry")?;
        let mut has_file = false;
        let total: f64 = self.data.mix.iter().map(|entry| entry.weight).sum();
        for (i, entry) in self.data.mix.iter().enumerate() {
            let key = format!("data.mix.{i}");
            to.rule(
                entry.weight > 0.0 && entry.weight.is_finite(),
                &format!("{key}.weight"),
                entry.weight,
                "a number above 0",
            )?;
            to.rule(
                entry.weight / total >= 1e-3,
                &format!("{key}.weight"),
                entry.weight,
                "at least a thousandth of all weights together",
            )?;
            to.missing(
                entry.file.is_none() || entry.kind == SampleKind::Sharegpt,
                &format!("{key}.file"),
                "files are of kind \"sharegpt\"; the other kinds are generated",
            )?;
            to.rule(
                entry.sides.is_none() || entry.kind == SampleKind::Shapes,
                &format!("{key}.sides"),
                format_args!("{:?} for {:?}", entry.sides.unwrap_or_default(), entry.kind),
                "it for `shapes` alone; boards have data.tasks.NAME.levels",
            )?;
            match entry.kind {
                SampleKind::Sharegpt => {
                    has_file = true;
                    to.missing(entry.file.is_some(), &format!("{key}.file"), "expected a LLaMA-Factory JSON file")?;
                }
                SampleKind::Shapes => {
                    let [least, most] = entry.sides.unwrap_or(mgsd_data::shapes::SIDES);
                    to.rule(
                        (2..=most).contains(&least) && most <= 100,
                        &format!("{key}.sides"),
                        format_args!("[{least}, {most}]"),
                        "fewest and most cells a side, from 2 to 100",
                    )?;
                }
                _ => to.missing(
                    !self.data.tasks.is_empty(),
                    &format!("{key}.kind"),
                    "generated boards need [data.tasks.NAME] with levels",
                )?,
            }
            for task in &entry.tasks {
                to.rule(
                    self.data.tasks.contains_key(task),
                    &format!("{key}.tasks"),
                    task,
                    "names that have a [data.tasks.NAME] section",
                )?;
            }
        }
        Ok(has_file)
    }

    fn check_opcd(&self, to: &Checker) -> Result<()> {
        let o = &self.opcd;
        to.rule(o.beta > 0.0 && o.beta < 1.0, "opcd.beta", o.beta, "a number above 0 and below 1")?;
        let top_k = o.top_k.unwrap_or(2);
        to.rule(top_k >= 2, "opcd.top_k", top_k, "at least 2: one token alone has probability 1 on both sides")?;
        to.rule((0.0..1.0).contains(&o.clip_low), "opcd.clip_low", o.clip_low, "a number from 0 to below 1")?;
        to.rule(o.clip_high >= 0.0, "opcd.clip_high", o.clip_high, "0 or more")?;
        to.rule(o.clip_dual > 1.0, "opcd.clip_dual", o.clip_dual, "a number above 1")?;
        to.rule(o.temperature > 0.0, "opcd.temperature", o.temperature, "a number above 0")?;
        to.rule(o.top_p > 0.0 && o.top_p <= 1.0, "opcd.top_p", o.top_p, "a number above 0, at most 1")?;
        to.rule(o.max_new_tokens > 0, "opcd.max_new_tokens", o.max_new_tokens, "at least 1")?;
        to.rule(o.replay_weight > 0.0, "opcd.replay_weight", o.replay_weight, "a number above 0")?;
        to.rule(o.rollout_batch > 0, "opcd.rollout_batch", o.rollout_batch, "at least 1")?;
        to.rule((0.0..1.0).contains(&o.ema_decay), "opcd.ema_decay", o.ema_decay, "a number from 0 to below 1")?;
        to.missing(
            (o.teacher == TeacherKind::Folder) == o.teacher_model.is_some(),
            "opcd.teacher_model",
            "expected with teacher = \"folder\", and only then",
        )?;
        to.missing(
            o.top_k.is_none() || o.loss != Loss::PolicyGradient,
            "opcd.top_k",
            "the policy-gradient loss looks at the sampled token only; leave top_k out",
        )?;
        // Its ratio and reward are those of the model's own distribution.
        for (key, value) in [("opcd.temperature", o.temperature), ("opcd.top_p", o.top_p)] {
            to.rule(
                value == 1.0 || o.loss != Loss::PolicyGradient,
                key,
                value,
                "1 with loss = \"policy-gradient\"; the losses exact over the vocabulary (reverse-kl, forward-kl, jsd) \
                 take others",
            )?;
        }
        self.check_unused_opcd(to)
    }

    /// Keys of one loss, teacher or extra that is not there.
    fn check_unused_opcd(&self, to: &Checker) -> Result<()> {
        let (o, usual) = (&self.opcd, Opcd::default());
        to.rule(
            o.loss == Loss::Jsd || o.beta == usual.beta,
            "opcd.beta",
            o.beta,
            "it with loss = \"jsd\" alone; leave it out",
        )?;
        to.rule(
            o.teacher == TeacherKind::Ema || o.ema_decay == usual.ema_decay,
            "opcd.ema_decay",
            o.ema_decay,
            "it with teacher = \"ema\" alone; leave it out",
        )?;
        to.rule(
            o.replay_samples > 0 || o.replay_weight == usual.replay_weight,
            "opcd.replay_weight",
            o.replay_weight,
            "it beside replay_samples of 1 or more; leave it out",
        )
    }
}
