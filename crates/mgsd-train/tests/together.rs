//! Runs that several processes share: the same steps as those of one. The processes are threads here, which talk over
//! sockets as processes on the CPU do.

mod common;

use common::{NEVER, contents, go, go_with, losses, recipe};
use mgsd_compute::{Device, free_port};
use mgsd_train::world::{Place, World};
use mgsd_train::{Recipe, Result, Scalars, Summary, TrainError};
use std::path::Path;

/// Runs in `size` processes; the last one is told to stop after step `stop_after` of the first. What each returns, and the
/// reports of the first.
fn together(recipe: &Recipe, size: usize, resume: bool, stop_after: u64) -> (Vec<Result<Summary>>, Vec<Scalars>) {
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let start = |rank| {
            let place = Place { rank, size, local: rank, beside: size, address: address.clone() };
            scope.spawn(move || go_with(recipe, resume, stop_after, World::join(&place, Device::Cpu).unwrap()))
        };
        let all: Vec<_> = (0..size).map(start).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let reports = std::mem::take(&mut all[0].1);
    assert!(all.iter().all(|(_, reports)| reports.is_empty()), "only rank 0 reports");
    (all.into_iter().map(|(summary, _)| summary).collect(), reports)
}

/// How far two numbers may be from each other, as a share of them: some eighty times 2^-23.
const NEAR: f64 = 1e-5;

/// The largest difference of `name` over the steps, as a share of it.
fn distance(one: &[Scalars], other: &[Scalars], name: &str) -> f64 {
    assert_eq!(one.len(), other.len());
    let of = |scalars: &Scalars| scalars.get(name).unwrap_or_else(|| panic!("{name} of {scalars:?}"));
    one.iter().zip(other).map(|(one, other)| apart(of(one), of(other))).fold(0.0, f64::max)
}

fn apart(one: f64, other: f64) -> f64 {
    (one - other).abs() / one.abs().max(1.0)
}

/// A sum of 32-bit floats in another order differs by some 2^-23 of its terms. AdamW divides a gradient by its own size, so
/// that one of nothing but such differences would become a whole step: with an `eps` larger than gradients are, steps
/// differ no more than gradients do.
const SMOOTH: [&str; 2] = ["optimiser.lr=0.1", "optimiser.eps=1"];

/// One, two and four processes take the same steps: same samples, same loss, same norm, but for the order of sums.
fn the_same_steps(kind: &str, changes: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let recipe = |name: &str, more: &[&str]| {
        let more = [changes, &SMOOTH, &["batch.samples_per_step=6", "eval.every=6", "eval.samples=7"], more].concat();
        recipe(kind, &folder.path().join(name), &more)
    };
    let (summary, alone) = go(&recipe("alone", &[]), false, NEVER);
    let measured = summary.unwrap().eval.unwrap();
    for size in [2, 4] {
        for shard in ["optimiser.shard=false", "optimiser.shard=true"] {
            let (mut summaries, reports) = together(&recipe(&format!("{size}-{shard}"), &[shard]), size, false, NEVER);
            for name in ["loss", "grad_norm"] {
                let far = distance(&alone, &reports, name);
                assert!(far < NEAR, "{name} of {size} processes, {shard}: {far}");
            }
            assert_eq!(distance(&alone, &reports, "tokens"), 0.0, "{size} processes, {shard}");
            let eval = summaries.swap_remove(0).unwrap().eval.unwrap();
            for (name, value) in &measured.0 {
                let far = apart(*value, eval.get(name).unwrap());
                assert!(far < NEAR, "{name} measured by {size} processes, {shard}: {far}");
            }
        }
    }
}

#[test]
fn sft_of_all_weights_takes_the_same_steps() {
    the_same_steps("sft", &[]);
}

#[test]
fn sft_of_an_adapter_takes_the_same_steps() {
    the_same_steps("sft", &["model.adapter={rank=4, alpha=8}"]);
}

#[test]
fn opcd_with_replay_takes_the_same_steps() {
    let mix = "data.mix=[{kind=\"plan_text\"}]";
    the_same_steps("opcd", &[mix, "opcd.replay_samples=3"]);
}

#[test]
fn processes_with_nothing_to_do_take_part() {
    // Three samples a step for four processes.
    let folder = tempfile::tempdir().unwrap();
    for kind in ["sft", "opcd"] {
        let recipe = |name: &str| recipe(kind, &folder.path().join(format!("{kind}-{name}")), &SMOOTH);
        let alone = go(&recipe("alone"), false, NEVER).1;
        let (summaries, four) = together(&recipe("four"), 4, false, NEVER);
        assert!(summaries.iter().all(Result::is_ok));
        let far = distance(&alone, &four, "loss");
        assert!(far < NEAR, "{kind}: {far}");
    }
}

/// The files of the trained model, and the losses.
fn outcome(summary: &Result<Summary>, reports: &[Scalars]) -> (Vec<(String, Vec<u8>)>, Vec<f64>) {
    (contents(&summary.as_ref().unwrap().result), losses(reports))
}

#[test]
fn one_that_is_told_to_stop_stops_all_and_a_sharded_run_resumes_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = |name: &str| recipe("sft", &folder.path().join(name), &["optimiser.lr=1e-3", "optimiser.shard=true"]);
    let (summaries, reports) = together(&recipe("straight"), 2, false, NEVER);
    let straight = outcome(&summaries[0], &reports);
    // Only rank 0 sees reports, so only it is told.
    let (stopped, mut first) = together(&recipe("stopped"), 2, false, 3);
    for result in stopped {
        assert!(matches!(result, Err(TrainError::Interrupted { step: 3, .. })), "{result:?}");
    }
    let (summaries, second) = together(&recipe("stopped"), 2, true, NEVER);
    first.extend(second);
    assert!(outcome(&summaries[0], &first) == straight, "the results differ");
}

#[test]
fn a_run_begun_by_two_processes_is_continued_by_one_or_four() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = |out: &Path| recipe("sft", out, &[&SMOOTH[..], &["optimiser.shard=true"]].concat());
    let alone = go(&recipe(&folder.path().join("alone")), false, NEVER).1;
    for size in [1, 4] {
        let out = folder.path().join(format!("two-{size}"));
        let mut reports = together(&recipe(&out), 2, false, 3).1;
        reports.extend(match size {
            1 => go(&recipe(&out), true, NEVER).1,
            size => together(&recipe(&out), size, true, NEVER).1,
        });
        let far = distance(&alone, &reports, "loss");
        assert!(far < NEAR, "continued by {size}: {far}");
    }
}
