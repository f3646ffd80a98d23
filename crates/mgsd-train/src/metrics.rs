//! Numbers of a run: JSON lines, TensorBoard events, and a progress bar on terminals.

use crate::error::{Result, TrainError};
use crate::tensorboard;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How the name of an event file begins, as TensorBoard wants it.
const EVENTS: &str = "events.out.tfevents.";
/// How the names of ours end.
const OURS: &str = ".mgsd";

/// Named numbers in the order in which they were put.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scalars(pub Vec<(&'static str, f64)>);

impl Scalars {
    /// Adds one number.
    pub fn put(&mut self, name: &'static str, value: f64) {
        self.0.push((name, value));
    }

    /// The number called `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// Whether numbers come from a training step or from a measurement on held-out samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A training step.
    Train,
    /// Held-out samples.
    Eval,
}

impl Phase {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Train => "train",
            Phase::Eval => "eval",
        }
    }
}

/// Writes `metrics.jsonl`, `tensorboard/` and the bar.
pub struct Recorder {
    path: PathBuf,
    lines: File,
    events: Option<(PathBuf, File)>,
    bar: ProgressBar,
}

impl Recorder {
    /// Opens the files in the run folder. `done` steps were taken before: later lines of an earlier attempt go away.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn open(out: &Path, with_tensorboard: bool, done: u64, steps: u64) -> Result<Self> {
        std::fs::create_dir_all(out).map_err(TrainError::io(out, "the run folder cannot be made"))?;
        let path = out.join("metrics.jsonl");
        keep_lines_until(&path, done)?;
        let lines = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path, "cannot be opened for writing"))?;
        if done == 0 {
            remove_events(out)?;
        }
        let events = if with_tensorboard { Some(open_events(out)?) } else { None };
        Ok(Self { path, lines, events, bar: bar(done, steps) })
    }

    /// One line, one event; the bar moves on training steps.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn record(&mut self, phase: Phase, step: u64, scalars: &Scalars) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".to_string(), step.into());
        line.insert("phase".to_string(), phase.name().into());
        for (name, value) in &scalars.0 {
            // JSON has no NaN; null says that a number was due.
            line.insert((*name).to_string(), Value::from(*value));
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        self.lines.write_all(text.as_bytes()).map_err(TrainError::io(&self.path, "cannot be written"))?;
        if let Some((path, file)) = &mut self.events {
            let tags: Vec<(String, f64)> =
                scalars.0.iter().map(|(name, value)| (format!("{}/{name}", phase.name()), *value)).collect();
            tensorboard::write_scalars(file, now(), step, tags.iter().map(|(tag, value)| (tag.as_str(), *value)))
                .map_err(TrainError::io(path, "cannot be written"))?;
        }
        if phase == Phase::Train {
            self.bar.set_position(step);
            self.bar.set_message(bar_message(scalars));
        }
        Ok(())
    }

    /// Makes sure that all lines are on disk; called before a checkpoint refers to them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<()> {
        self.lines.sync_all().map_err(TrainError::io(&self.path, "cannot be synced"))
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn bar_message(scalars: &Scalars) -> String {
    let mut parts = Vec::new();
    for (name, digits) in [("loss", 4), ("success", 3), ("tokens_per_second", 0)] {
        if let Some(value) = scalars.get(name) {
            parts.push(format!("{} {value:.digits$}", if name == "tokens_per_second" { "tokens/s" } else { name }));
        }
    }
    parts.join("  ")
}

fn bar(done: u64, steps: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  left {eta}").expect("a fixed template");
    bar.set_style(style);
    // The estimate of the time left must not count the steps of an earlier run.
    bar.set_position(done);
    bar.reset_eta();
    bar
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn open_events(out: &Path) -> Result<(PathBuf, File)> {
    let folder = out.join("tensorboard");
    std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder, "the folder cannot be made"))?;
    let path = folder.join(format!("{EVENTS}{:.0}.{}{OURS}", now() * 1000.0, std::process::id()));
    let mut file = File::create(&path).map_err(TrainError::io(&path, "cannot be made"))?;
    tensorboard::write_header(&mut file, now()).map_err(TrainError::io(&path, "cannot be written"))?;
    Ok((path, file))
}

/// Removes the event files that an earlier attempt wrote; those of other programs stay.
fn remove_events(out: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(out.join("tensorboard")) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(EVENTS) && name.ends_with(OURS)) {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(TrainError::io(&path, "cannot be removed for the new run"))?;
        }
    }
    Ok(())
}

/// Drops lines after step `done` and a torn last line.
fn keep_lines_until(path: &Path, done: u64) -> Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let mut kept = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(TrainError::io(path, "cannot be read"))?;
        let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
        if value["step"].as_u64().is_some_and(|step| step <= done) {
            kept.extend_from_slice(&line);
            kept.push(b'\n');
        }
    }
    crate::files::write_atomically(path, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_forgets_lines_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut scalars = Scalars::default();
        scalars.put("loss", 0.5);
        let mut recorder = Recorder::open(folder.path(), true, 0, 4).unwrap();
        for step in 1..=4 {
            recorder.record(Phase::Train, step, &scalars).unwrap();
        }
        let path = folder.path().join("metrics.jsonl");
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"step\":2,\"pha");
        std::fs::write(&path, torn).unwrap();
        drop(Recorder::open(folder.path(), true, 2, 4).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"phase\":\"train\",\"loss\":0.5}\n{\"step\":2,\"phase\":\"train\",\"loss\":0.5}\n"
        );
    }

    #[test]
    fn a_run_begun_anew_forgets_events_of_an_earlier_attempt_and_no_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("tensorboard");
        std::fs::create_dir(&events).unwrap();
        let (ours, other) = ("events.out.tfevents.1.2.mgsd", "events.out.tfevents.1.host");
        [ours, other].iter().for_each(|name| std::fs::write(events.join(name), "").unwrap());
        drop(Recorder::open(folder.path(), true, 2, 4).unwrap());
        assert!(events.join(ours).exists(), "a resumed run goes on");
        drop(Recorder::open(folder.path(), true, 0, 4).unwrap());
        assert!(!events.join(ours).exists() && events.join(other).exists());
        assert_eq!(std::fs::read_dir(&events).unwrap().count(), 2, "the new file and the other program's");
    }
}
