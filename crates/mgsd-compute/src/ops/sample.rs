//! The next token of many rows at once, where the logits are: on a GPU, which writes the tokens into the host's memory. On
//! the CPU the caller has the logits at hand and chooses for itself.

use crate::cuda::{Arg, Cuda, Kernel, PageLocked};
use crate::{Dtype, Tensor};

/// Blocks that share a row where they can.
const MOST_PARTS: usize = 8;
/// Bytes of a row that a block keeps in shared memory: with the kernel's own 5 KiB less than the 99 KiB that every GPU from
/// compute capability 8.0 on has.
const MOST_KEPT: usize = 80 << 10;

/// How the token of a row is chosen. Filters apply in the order of the fields; tokens as likely as the last one that a
/// filter keeps are kept too.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Choice {
    /// Divides the logits; 0 takes the likeliest token, the first among equals.
    pub temperature: f32,
    /// Only the k likeliest tokens; 0 is off.
    pub top_k: f32,
    /// Only the likeliest tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// A random number, at least 0 and less than 1: where in the distribution the token lies.
    pub uniform: f32,
    /// Which of an answer's places the token goes to ([`Answer::place`]).
    pub place: f32,
}

/// Where a GPU writes the tokens that it chose, and the logarithms of their probabilities under the unchanged logits. It has
/// two places, used in turn, so that one is asked for while the one before is read.
pub struct Answer {
    rows: usize,
    places: [PageLocked; 2],
    asked: usize,
    read: usize,
}

impl Answer {
    /// Room for `rows` tokens.
    pub fn new(gpu: &'static Cuda, rows: usize) -> Self {
        let places = [(); 2].map(|()| PageLocked::new(gpu, rows.max(1) * 8));
        Self { rows, places, asked: 0, read: 0 }
    }

    /// [`Choice::place`] of what is asked for next.
    pub fn place(&self) -> f32 {
        (self.asked % self.places.len()) as f32
    }

    /// What was asked for until now gives the next answer. Not in recorded work, but after each start of it.
    pub fn expect(&mut self) {
        self.places[self.asked % self.places.len()].mark();
        self.asked += 1;
        assert!(self.asked - self.read <= self.places.len(), "answers that nobody reads");
    }

    /// Waits for the oldest answer that is expected: tokens and log-probabilities of all rows there is room for; those that
    /// were not asked for have no meaning.
    pub fn read(&mut self) -> (&[u32], &[f32]) {
        assert!(self.read < self.asked, "no answer is expected");
        let place = &self.places[self.read % self.places.len()];
        self.read += 1;
        let (tokens, log_probs) = place.bytes().split_at(self.rows * 4);
        (bytemuck::cast_slice(tokens), &bytemuck::cast_slice(log_probs)[..self.rows])
    }

    /// Answers that are expected are not wanted any more.
    pub fn forget(&mut self) {
        self.read = self.asked;
    }
}

/// Chooses a token for each of the first rows of `logits: [rows, vocab]` (F32, on a GPU); [`Answer::read`] has them after
/// [`Answer::expect`]. They also go to the GPU's copy of `next`, which stands in front of the next step ([`Cuda::changed`] is the
/// caller's to tell).
pub fn sample(answer: &Answer, logits: &Tensor, choices: &[Choice], next: Option<&[u32]>) {
    let (rows, vocab) = (choices.len(), logits.cols());
    assert!(rows <= logits.rows(), "sample: {rows} choices for {:?}", logits.shape());
    assert!(rows <= answer.rows, "sample: {rows} choices, but the answer has room for {}", answer.rows);
    assert!(next.is_none_or(|next| next.len() == rows), "sample: {rows} choices for a next step of other rows");
    let Some(gpu) = logits.gpu() else { panic!("sample: the logits lie on the CPU") };
    assert!(logits.dtype() == Dtype::F32, "sample: logits must be F32");
    // Few rows would leave most multiprocessors idle: where blocks can form clusters, several share a row.
    let parts = if gpu.is_hopper() && vocab >= MOST_PARTS * 1024 { MOST_PARTS } else { 1 };
    let share = vocab.div_ceil(parts);
    let kept = share * 4 <= MOST_KEPT;
    let mut args: Vec<Arg> = answer.places.iter().map(|place| place.pointer().into()).collect();
    args.push(next.map_or(0, |next| gpu.list(next)).into());
    args.extend([logits.pointer(), gpu.list(choices)].map(Arg::from));
    args.extend([answer.rows, vocab, parts, share, kept as usize].map(Arg::from));
    let (kernel, grid) = (Kernel::plain("sample", "sample"), [(rows * parts) as u32, 1, 1]);
    let shared = if kept { share * 4 } else { 0 };
    match gpu.is_hopper() {
        true => gpu.launch_early(kernel, grid, [1024, 1], shared as u32, parts as u32, &[], &args),
        false => gpu.launch(kernel, grid, [1024, 1], shared as u32, &args),
    }
}
