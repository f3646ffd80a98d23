//! Logits for a few rows at a time, and the way back.

use super::{Grads, TokenStats};
use crate::ops::linear::cpu::{self, Size};
use crate::par::{self, Out};
use crate::{Tensor, Write, check};

/// Logits in memory at once: 4 MiB of them, or this many rows of a large vocabulary (fewer would leave the matrix
/// product waiting for the weights).
const NUMBERS: usize = 1024 * 1024;
const LEAST_ROWS: usize = 32;

/// What one row of logits gives.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    pub(super) loss: f32,
    pub(super) log_prob: f32,
    pub(super) entropy: f32,
    pub(super) correct: f32,
    /// Logarithm of the sum of exponentials.
    pub(super) lse: f32,
}

/// The vectors that are being filled.
pub(super) struct Results<'a> {
    pub(super) stats: &'a mut TokenStats,
}

/// Calls `work(row, logits, other logits, results)` for every row. `work` leaves the gradient of the logits in place of
/// them when there are `grads`.
pub(super) fn for_each_row(
    stats: &mut TokenStats,
    hidden: &Tensor,
    head: &Tensor,
    other: Option<(&Tensor, &Tensor)>,
    mut grads: Option<Grads>,
    work: impl Fn(usize, &mut [f32], &[f32], &mut Row) + Sync,
) {
    let (rows, width, vocab) = (hidden.rows(), hidden.cols(), head.rows());
    if let Some(grads) = &mut grads {
        grads.dhidden.resize(rows, width);
        if let Some(dhead) = &grads.dhead {
            check::same("loss", "dhead", dhead, "head", head);
        }
    }
    let results = stats.start(rows);
    let chunk = (NUMBERS / vocab.max(1)).max(LEAST_ROWS).min(rows.max(1));
    let their_len = if other.is_some() { chunk * vocab } else { 0 };
    let fields = size_of::<Row>() / size_of::<f32>();
    par::with_scratch(chunk * (vocab + fields) + their_len, |scratch| {
        let (logits, rest) = scratch.split_at_mut(chunk * vocab);
        let (theirs, places) = rest.split_at_mut(their_len);
        for first in (0..rows).step_by(chunk) {
            let count = chunk.min(rows - first);
            let logits = &mut logits[..count * vocab];
            project(logits, hidden, head, first, count);
            let theirs: &[f32] = match other {
                Some((hidden, head)) => {
                    project(&mut theirs[..count * vocab], hidden, head, first, count);
                    theirs
                }
                None => &[],
            };
            let (out, all) = (Out::new(places), Out::new(logits));
            par::row_blocks(count, 4 * vocab, |start, count| {
                for row in start..start + count {
                    // SAFETY: each row belongs to one task.
                    let (logits, place) = unsafe { (all.slice(row * vocab, vocab), out.slice(row * fields, fields)) };
                    let theirs = theirs.get(row * vocab..(row + 1) * vocab).unwrap_or(&[]);
                    let mut result = Row::default();
                    work(first + row, logits, theirs, &mut result);
                    place.copy_from_slice(&result.to_array());
                }
            });
            for place in places.chunks_exact(fields).take(count) {
                results.stats.loss.push(place[0]);
                results.stats.log_prob.push(place[1]);
                results.stats.entropy.push(place[2]);
                results.stats.correct.push(place[3] != 0.0);
            }
            if let Some(grads) = &mut grads {
                way_back(grads, logits, hidden, head, first, count);
            }
        }
    });
}

impl Row {
    fn to_array(self) -> [f32; 5] {
        [self.loss, self.log_prob, self.entropy, self.correct, self.lse]
    }
}

fn size(hidden: &Tensor, head: &Tensor, tokens: usize) -> Size {
    Size { tokens, inputs: hidden.cols(), outputs: head.rows() }
}

fn part(hidden: &Tensor, first: usize, count: usize) -> &[f32] {
    &hidden.as_slice()[first * hidden.cols()..(first + count) * hidden.cols()]
}

fn project(logits: &mut [f32], hidden: &Tensor, head: &Tensor, first: usize, count: usize) {
    let x = part(hidden, first, count);
    cpu::forward(logits, x, head.values(), size(hidden, head, count), 1.0, Write::Set);
}

fn way_back(grads: &mut Grads, dlogits: &[f32], hidden: &Tensor, head: &Tensor, first: usize, count: usize) {
    let size = size(hidden, head, count);
    let width = hidden.cols();
    let dhidden = &mut grads.dhidden.as_mut_slice()[first * width..(first + count) * width];
    cpu::backward_input(dhidden, dlogits, head.values(), size, 1.0, Write::Set);
    if let Some(dhead) = &mut grads.dhead {
        cpu::backward_weight(dhead.as_mut_slice(), dlogits, part(hidden, first, count), size, 1.0);
    }
}
