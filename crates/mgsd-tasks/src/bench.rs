//! How fast this crate is, for `mgsd bench tasks`: one core, medians.

use crate::score::{BenchmarkCase, TrainingCase, benchmark, training};
use crate::{Error, GenerateOptions, Instance, RenderOptions, Result, Task, files, generate};
use std::path::Path;
use std::time::Instant;

/// One measured figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// Runs a measurement several times and takes the median of `count / seconds`.
fn rate(repeats: usize, count: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    // Once for the caches.
    run()?;
    let mut rates = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let start = Instant::now();
        run()?;
        rates.push(count as f64 / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[repeats / 2])
}

/// Samples generated, drawn and written (text and PNG) into `folder`, by task and level, on one thread.
///
/// The folder should be empty, and is left with the files.
///
/// # Errors
/// When the folder cannot be written.
pub fn generation(folder: &Path, samples: usize, repeats: usize) -> Result<Vec<Figure>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|e| Error::Io { path: folder.to_owned(), source: std::io::Error::other(e) })?;
    let cases = [(Task::FrozenLake, 4), (Task::FrozenLake, 8), (Task::Maze, 6), (Task::MiniBehaviour, 6)];
    let mut figures = Vec::new();
    for (task, level) in cases {
        let images = RenderOptions::default();
        let mut seed = 42;
        let mut run = 0;
        let value = pool.install(|| {
            rate(repeats, samples, || {
                // Fresh names each time: replacing a file makes some file systems flush it.
                run += 1;
                let folder = folder.join(format!("run{run}"));
                seed += 1_000_000_007;
                let options = GenerateOptions { seed, ..GenerateOptions::default() };
                let instances = generate(task, level, &options, 0..samples)?;
                files::write_instances(&folder, &instances, Some(&images), || ())
            })
        })?;
        let name = format!("{task}-{level} generate+render+write");
        figures.push(Figure { name, value, unit: "samples/s/core" });
    }
    Ok(figures)
}

/// Responses to one board: right, wrong, wordy, empty.
fn responses(instance: &Instance) -> Vec<String> {
    let task = instance.task();
    let right = instance.plan.answer(task);
    let words = instance.plan.actions().iter().map(|a| a.word()).collect::<Vec<_>>().join(", ");
    vec![
        format!("<answer>{right}</answer>"),
        format!("I go around what is in the way. <answer>{words}</answer>"),
        format!("<think>First up, then left?</think>\n<answer>U,{right}</answer>"),
        format!("<answer>{}</answer>", &right[..right.len() / 2]),
        "<answer>none</answer>".to_owned(),
        String::new(),
    ]
}

/// Responses scored by each rule, every instance read once, on one thread.
///
/// # Errors
/// When no instance can be made.
pub fn scoring(repeats: usize) -> Result<Vec<Figure>> {
    let mut rows: Vec<(Instance, Vec<String>)> = Vec::new();
    for (task, level) in [(Task::FrozenLake, 6), (Task::Maze, 5), (Task::MiniBehaviour, 6)] {
        for instance in generate(task, level, &GenerateOptions::default(), 0..20)? {
            let responses = responses(&instance);
            rows.push((instance, responses));
        }
    }
    let rounds = 100;
    let count = rounds * rows.iter().map(|(_, responses)| responses.len()).sum::<usize>();
    let benchmark_cases: Vec<BenchmarkCase> =
        rows.iter().map(|(instance, _)| BenchmarkCase::from_instance(instance)).collect();
    let training_cases: Vec<TrainingCase> =
        rows.iter().map(|(instance, _)| TrainingCase::from_instance(instance)).collect();
    let benchmark_rate = rate(repeats, count, || {
        for _ in 0..rounds {
            for (case, (_, responses)) in benchmark_cases.iter().zip(&rows) {
                for response in responses {
                    std::hint::black_box(benchmark::score(case, Some(response)));
                }
            }
        }
        Ok(())
    })?;
    let training_rate = rate(repeats, count, || {
        for _ in 0..rounds {
            for (case, (_, responses)) in training_cases.iter().zip(&rows) {
                for response in responses {
                    std::hint::black_box(training::score(case, Some(response)));
                }
            }
        }
        Ok(())
    })?;
    let figure = |name: &str, value| Figure { name: name.to_owned(), value, unit: "responses/s/core" };
    Ok(vec![figure("score benchmark", benchmark_rate), figure("score training", training_rate)])
}
