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
    /// Not used.
    pub unused: f32,
}

/// Where a GPU writes the tokens that it chose, and the logarithms of their probabilities under the unchanged logits.
pub struct Answer {
    rows: usize,
    memory: PageLocked,
}

impl Answer {
    /// Room for `rows` tokens.
    pub fn new(gpu: &'static Cuda, rows: usize) -> Self {
        Self { rows, memory: PageLocked::new(gpu, rows.max(1) * 8) }
    }

    /// What was asked for until now gives the answer. Not in recorded work, but after each start of it.
    pub fn expect(&self) {
        self.memory.mark();
    }

    /// Waits for what is expected: tokens and log-probabilities of all rows there is room for; those that were not asked for
    /// have no meaning.
    pub fn read(&self) -> (&[u32], &[f32]) {
        let (tokens, log_probs) = self.memory.bytes().split_at(self.rows * 4);
        (bytemuck::cast_slice(tokens), &bytemuck::cast_slice(log_probs)[..self.rows])
    }
}

/// Chooses a token for each of the first rows of `logits: [rows, vocab]` (F32, on a GPU); [`Answer::read`] has them after
/// [`Answer::expect`].
pub fn sample(answer: &Answer, logits: &Tensor, choices: &[Choice]) {
    let (rows, vocab) = (choices.len(), logits.cols());
    assert!(rows <= logits.rows(), "sample: {rows} choices for {:?}", logits.shape());
    assert!(rows <= answer.rows, "sample: {rows} choices, but the answer has room for {}", answer.rows);
    let Some(gpu) = logits.gpu() else { panic!("sample: the logits lie on the CPU") };
    assert!(logits.dtype() == Dtype::F32, "sample: logits must be F32");
    // Few rows would leave most multiprocessors idle: where blocks can form clusters, several share a row.
    let parts = if gpu.is_hopper() && vocab >= MOST_PARTS * 1024 { MOST_PARTS } else { 1 };
    let share = vocab.div_ceil(parts);
    let kept = share * 4 <= MOST_KEPT;
    let tokens = answer.memory.pointer();
    let mut args: Vec<Arg> = vec![tokens.into(), (tokens + 4 * answer.rows as u64).into(), logits.pointer().into()];
    args.push(gpu.list(choices).into());
    args.extend([vocab, parts, share, kept as usize].map(Arg::from));
    let (kernel, grid) = (Kernel::plain("sample", "sample"), [(rows * parts) as u32, 1, 1]);
    let shared = if kept { share * 4 } else { 0 };
    match gpu.is_hopper() {
        true => gpu.launch_early(kernel, grid, [1024, 1], shared as u32, parts as u32, &[], &args),
        false => gpu.launch(kernel, grid, [1024, 1], shared as u32, &args),
    }
}
