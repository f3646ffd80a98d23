//! What the loops share: steps, schedule, clipping, measuring, checkpoints, resuming, stopping.

use crate::checkpoint::{self, Best, RunFolder, State};
use crate::error::{Result, TrainError};
use crate::files;
use crate::metrics::{Phase, Recorder, Scalars};
use crate::optim::{OptimiserState, array_of, copy_array};
use crate::recipe::Recipe;
use crate::student::Student;
use crate::{Control, Progress, Summary};
use mgsd_model::model::Qwen3Vl;
use mgsd_model::param::Parameter;
use mgsd_model::reduction::{Owners, Reduction};
use mgsd_model::weights::Array;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What a step's forward and backward passes report.
pub(crate) struct Gradients {
    /// The quantity that was differentiated.
    pub(crate) loss: f64,
    /// Tokens that went through the model.
    pub(crate) tokens: usize,
    /// Names of the samples, for messages.
    pub(crate) samples: Vec<String>,
    /// Further numbers of this kind of training.
    pub(crate) scalars: Scalars,
}

/// One kind of training: how gradients come about and how progress is measured.
pub(crate) trait Stage {
    /// Begins at `step`; called once, after a checkpoint was restored if there was one.
    fn start(&mut self, step: u64, steps: u64) -> Result<()>;
    /// Runs the largest batches that step `step` could have, for no gain, so that all memory is taken before the first
    /// step: what does not fit fails now, and nothing has to grow later.
    fn rehearse(&mut self, model: &mut Qwen3Vl, step: u64) -> Result<()>;
    /// Adds the gradients of step `step` (counted from 0) to those of the model, which are zero, and hands them to
    /// `reduction`, which is finished afterwards.
    fn gradients(&mut self, model: &mut Qwen3Vl, step: u64, reduction: &mut Reduction) -> Result<Gradients>;
    /// Called after the weights changed.
    fn updated(&mut self, model: &Qwen3Vl);
    /// Measures on held-out samples.
    fn evaluate(&mut self, model: &mut Qwen3Vl) -> Result<Scalars>;
    /// What makes a measurement the best one; larger is better.
    fn merit(&self, scalars: &Scalars) -> f64;
    /// State beyond weights and moments.
    fn store(&self, arrays: &mut BTreeMap<String, Array>);
    /// The reverse of [`store`](Self::store).
    fn restore(&mut self, path: &std::path::Path, arrays: &BTreeMap<String, Array>) -> Result<()>;
}

/// A run in progress.
pub(crate) struct Session<'a> {
    recipe: &'a Recipe,
    control: &'a Control<'a>,
    folder: RunFolder,
    steps: u64,
    done: u64,
    best: Option<Best>,
    evaluated: Option<(u64, Scalars)>,
}

/// Refuses to mix a new run into an old one, or finds the checkpoint to continue from.
pub(crate) fn open<'a>(
    recipe: &'a Recipe,
    control: &'a Control<'a>,
    steps: u64,
) -> Result<(Session<'a>, Option<PathBuf>)> {
    let model = &recipe.model;
    let base = model.base_name.clone().unwrap_or_else(|| model.base.to_string_lossy().into_owned());
    let folder = RunFolder { path: model.out.clone(), base, adapter: None, images: recipe.images };
    let latest = folder.latest();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let problem = match (&latest, folder.kept()) {
        (Some(found), _) if !control.resume => Some(format!(
            "holds a run already ({}); continue it with --resume, or choose another model.out",
            name(found)
        )),
        (None, Some(kept)) if !control.resume || kept != folder.best() => {
            Some(format!("holds a run already ({}), and no checkpoint; choose another model.out", name(&kept)))
        }
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(TrainError::file(&folder.path, problem));
    }
    // All have looked before anybody writes.
    control.world.sum([0.0]);
    std::fs::create_dir_all(&folder.path).map_err(TrainError::io(&folder.path, "the run folder cannot be made"))?;
    let session = Session { recipe, control, folder, steps, done: 0, best: None, evaluated: None };
    Ok((session, latest))
}

impl Session<'_> {
    /// Runs to the end.
    pub(crate) fn run(mut self, student: Student, stage: &mut dyn Stage, from: Option<PathBuf>) -> Result<Summary> {
        let started = Instant::now();
        let Student { mut model, adapter } = student;
        let model = &mut model;
        self.folder.adapter = adapter;
        let mut optimiser = OptimiserState::new(model.parameters(), self.recipe.optimiser, &self.control.world);
        let best = match from {
            Some(path) => self.restore(&path, model, &mut optimiser, stage)?,
            None => None,
        };
        // After a return to an older checkpoint the best weights may be of a step that is still to come.
        let kept = self.folder.best_step();
        let stale = kept != best.map(|best| best.step);
        if stale {
            self.best = None;
        }
        // All have looked, and nobody has refused, before anybody writes.
        self.control.world.sum([0.0]);
        let writes = self.control.world.writes();
        if writes {
            files::write_atomically(&self.folder.path.join("recipe.toml"), self.recipe.to_toml().as_bytes())?;
            if stale && kept.is_some() {
                files::remove_folder(&self.folder.best())?;
            }
        }
        let open = || Recorder::open(&self.folder.path, self.recipe.metrics.tensorboard, self.done, self.steps);
        let mut recorder = writes.then(open).transpose()?;
        stage.start(self.done, self.steps)?;
        if self.done < self.steps {
            stage.rehearse(model, self.done)?;
        }
        let owners = optimiser.owners();
        let mut last = Scalars::default();
        while self.done < self.steps {
            last = self.step(model, stage, &mut optimiser, owners.as_ref())?;
            self.report(&mut recorder, Phase::Train, &last, started)?;
            let every = self.recipe.eval.every;
            if every > 0 && (self.done.is_multiple_of(every) || self.done == self.steps) {
                self.measure(model, stage, &mut recorder, started)?;
            }
            let every = self.recipe.checkpoint.every;
            let due = every > 0 && (self.done.is_multiple_of(every) || self.done == self.steps);
            // One process that is told to stop stops all.
            let told = self.control.stop.load(Ordering::SeqCst);
            let stop = self.control.world.max(f64::from(u8::from(told))) > 0.0 && self.done < self.steps;
            if due || stop {
                recorder.as_mut().map_or(Ok(()), Recorder::sync)?;
                let checkpoint = self.save(model, &mut optimiser, stage)?;
                if stop {
                    recorder.iter().for_each(Recorder::finish);
                    // Who leaves earlier may take the one that writes along.
                    self.control.world.sum([0.0]);
                    return Err(TrainError::Interrupted { step: self.done, checkpoint });
                }
            }
        }
        if let Some(recorder) = &mut recorder {
            recorder.sync()?;
            recorder.finish();
        }
        let result = match writes {
            true => self.folder.write_result(model)?,
            false => self.folder.result(),
        };
        // Nobody leaves, and takes the others' connections along, before everything is written.
        self.control.world.sum([0.0]);
        Ok(Summary {
            steps: self.done,
            seconds: started.elapsed().as_secs_f64(),
            metrics: last,
            eval: self.evaluated.map(|(_, scalars)| scalars),
            best: self.best.map(|best| (best.step, self.folder.path.join("best"))),
            out: self.folder.path,
            result,
        })
    }

    /// `owners`: as [`OptimiserState::owners`] says.
    fn step(
        &mut self,
        model: &mut Qwen3Vl,
        stage: &mut dyn Stage,
        optimiser: &mut OptimiserState,
        owners: Option<&Owners>,
    ) -> Result<Scalars> {
        let began = Instant::now();
        model.parameters_mut().into_iter().for_each(|parameter| parameter.zero_grad());
        let world = &self.control.world;
        let mut start = |piece: &mut [&mut Parameter]| world.start_adding_up(piece, owners);
        let mut reduction = if world.size() > 1 { Reduction::new(&mut start) } else { Reduction::alone() };
        let gradients = stage.gradients(model, self.done, &mut reduction)?;
        assert!(reduction.is_finished(), "a stage must hand on the gradients of each step");
        world.finish();
        self.check_finite("the loss", gradients.loss, &gradients.samples)?;
        let update = Instant::now();
        let norm = optimiser.norm(model.parameters());
        self.check_finite("the gradient norm", norm, &gradients.samples)?;
        let rate = self.recipe.optimiser.lr * self.recipe.schedule.factor(self.done, self.steps);
        optimiser.step(model.parameters_mut(), rate, norm);
        stage.updated(model);
        self.done += 1;
        let seconds = began.elapsed().as_secs_f64();
        let mut scalars = Scalars::default();
        scalars.put("loss", gradients.loss);
        scalars.put("lr", rate);
        scalars.put("grad_norm", norm);
        scalars.put("tokens", gradients.tokens as f64);
        scalars.put("tokens_per_second", gradients.tokens as f64 / seconds);
        scalars.put("seconds", seconds);
        for (name, value) in gradients.scalars.0 {
            // The optimiser's time belongs to the update, wherever it was measured.
            let more = if name == "update_seconds" { update.elapsed().as_secs_f64() } else { 0.0 };
            scalars.put(name, value + more);
        }
        Ok(scalars)
    }

    fn check_finite(&self, quantity: &'static str, value: f64, samples: &[String]) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let checkpoint = self.folder.latest();
        Err(TrainError::NonFinite { step: self.done + 1, quantity, value, samples: samples.to_vec(), checkpoint })
    }

    fn measure(
        &mut self,
        model: &mut Qwen3Vl,
        stage: &mut dyn Stage,
        recorder: &mut Option<Recorder>,
        started: Instant,
    ) -> Result<()> {
        let scalars = stage.evaluate(model)?;
        self.report(recorder, Phase::Eval, &scalars, started)?;
        let merit = stage.merit(&scalars);
        if merit.is_finite() && self.best.is_none_or(|best| merit > best.merit) {
            let best = Best { step: self.done, merit };
            if self.control.world.writes() {
                self.folder.write_best(model, &best)?;
            }
            self.best = Some(best);
        }
        self.evaluated = Some((self.done, scalars));
        Ok(())
    }

    fn report(&self, recorder: &mut Option<Recorder>, phase: Phase, scalars: &Scalars, started: Instant) -> Result<()> {
        let Some(recorder) = recorder else { return Ok(()) };
        recorder.record(phase, self.done, scalars)?;
        if let Some(progress) = self.control.progress {
            let seconds = started.elapsed().as_secs_f64();
            progress(&Progress { kind: self.recipe.kind, phase, step: self.done, steps: self.steps, seconds, scalars });
        }
        Ok(())
    }

    fn save(&self, model: &Qwen3Vl, optimiser: &mut OptimiserState, stage: &dyn Stage) -> Result<PathBuf> {
        let mut arrays = BTreeMap::new();
        optimiser.store(&mut arrays);
        if !self.control.world.writes() {
            return Ok(self.folder.checkpoint(self.done));
        }
        // The trained weights once more in full precision: the model's own files may be bfloat16.
        for parameter in model.parameters().into_iter().filter(|parameter| parameter.is_trainable()) {
            arrays.insert(format!("param.{}", parameter.name), array_of(&parameter.value));
        }
        stage.store(&mut arrays);
        let state = State {
            step: self.done,
            next_sample: self.done * self.recipe.batch.samples_per_step as u64,
            seed: self.recipe.seed,
            best: self.best,
            recipe: self.recipe.clone(),
        };
        self.folder.write(model, &state, &arrays, self.recipe.checkpoint.keep)
    }

    /// Goes on from a checkpoint; returns the best measurement that it tells of.
    fn restore(
        &mut self,
        path: &std::path::Path,
        model: &mut Qwen3Vl,
        optimiser: &mut OptimiserState,
        stage: &mut dyn Stage,
    ) -> Result<Option<Best>> {
        let (state, arrays) = checkpoint::read(path, self.recipe)?;
        if state.step > self.steps {
            return Err(TrainError::file(
                path,
                format!(
                    "{} steps are done here, and the recipe ends after {} (`steps`, or what `epochs` come to); give at \
                     least {0}, or choose another model.out",
                    state.step, self.steps
                ),
            ));
        }
        for parameter in model.parameters_mut().into_iter().filter(|parameter| parameter.is_trainable()) {
            let name = format!("param.{}", parameter.name);
            copy_array(path, &arrays, &name, &mut parameter.value)?;
        }
        optimiser.restore(path, &arrays, state.step)?;
        stage.restore(path, &arrays)?;
        self.done = state.step;
        // A measurement of another kind cannot be compared with those to come; its weights stay until the first of them.
        self.best = state.best.filter(|_| checkpoint::measures_alike(&state.recipe, self.recipe));
        Ok(state.best)
    }
}
