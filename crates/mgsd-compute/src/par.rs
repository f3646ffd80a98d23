//! Spreading work over the cores, cut by shape alone.

use std::cell::RefCell;
use std::marker::PhantomData;

/// Numbers in one piece of an element-wise operation.
const CHUNK: usize = 16 * 1024;

/// Runs `task(0) .. task(count - 1)`, each once, in any order, on all cores.
pub(crate) fn tasks(count: usize, task: impl Fn(usize) + Sync) {
    crate::pool::run(count, &task);
}

/// Runs `work(start, piece)` on consecutive pieces of `data`.
pub(crate) fn chunks_mut(data: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    let len = data.len();
    let out = Out::new(data);
    tasks(len.div_ceil(CHUNK), |index| {
        let start = index * CHUNK;
        // SAFETY: pieces of different tasks do not overlap.
        let piece = unsafe { out.slice(start, CHUNK.min(len - start)) };
        work(start, piece);
    });
}

/// The same for bytes; a piece is a whole number of numbers.
pub(crate) fn bytes_mut(data: &mut [u8], work: impl Fn(usize, &mut [u8]) + Sync) {
    let whole = data.len() / 4 * 4;
    let (numbers, rest) = data.split_at_mut(whole);
    chunks_mut(bytemuck::cast_slice_mut(numbers), |start, piece| work(start * 4, bytemuck::cast_slice_mut(piece)));
    if !rest.is_empty() {
        work(whole, rest);
    }
}

/// Runs `work(first, rows)` on blocks of rows; a block holds about [`CHUNK`] numbers when a row holds `cols`.
pub(crate) fn row_blocks(rows: usize, cols: usize, work: impl Fn(usize, usize) + Sync) {
    let block = rows_per_block(cols);
    tasks(rows.div_ceil(block), |index| {
        let first = index * block;
        work(first, block.min(rows - first));
    });
}

/// How many rows of `cols` numbers [`row_blocks`] gives one task.
pub(crate) fn rows_per_block(cols: usize) -> usize {
    (CHUNK / cols.max(1)).max(1)
}

/// A slice that several tasks write at places of their own.
#[derive(Clone, Copy)]
pub(crate) struct Out<'a> {
    data: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: `Out` stands for a `&mut [f32]`, which may be sent; who uses `slice` promises that places do not overlap.
unsafe impl Send for Out<'_> {}
// SAFETY: as above; shared use is only through the unsafe `slice` and `pointer`.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), lifetime: PhantomData }
    }

    /// # Safety
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len, "{start} + {len} > {}", self.len);
        // SAFETY: inside the slice this was made from (asserted); not shared (caller).
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }

    /// The address of number `start`.
    pub(crate) fn pointer(&self, start: usize) -> *mut f32 {
        assert!(start <= self.len, "{start} > {}", self.len);
        self.data.wrapping_add(start)
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `work` a buffer of `len` numbers (contents unspecified) that this thread keeps for the next time.
pub(crate) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    // Buffers lie on a stack, so that nested loans get the same buffer at the same depth every time.
    let mut buffer = SCRATCH.with_borrow_mut(|stack| stack.pop()).unwrap_or_default();
    // Room for aligning the start to a cache line.
    if buffer.len() < len + 16 {
        buffer = vec![0.0; (len + 16).next_power_of_two()];
    }
    let skip = buffer.as_ptr().align_offset(64).min(16);
    let result = work(&mut buffer[skip..skip + len]);
    SCRATCH.with_borrow_mut(|stack| stack.push(buffer));
    result
}

/// [`row_blocks`] whose tasks also fill sums over rows (handed to them as zeros); the sums are added to `total` block by
/// block.
pub(crate) fn row_blocks_summed(
    rows: usize,
    cols: usize,
    total: &mut [f32],
    work: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let block = rows_per_block(cols);
    let width = total.len();
    with_scratch(rows.div_ceil(block) * width, |sums| {
        let out = Out::new(sums);
        row_blocks(rows, cols, |first, count| {
            // SAFETY: each block has a stretch of its own.
            let sums = unsafe { out.slice(first / block * width, width) };
            sums.fill(0.0);
            work(first, count, sums);
        });
        for sums in sums.chunks_exact(width.max(1)) {
            crate::math::add_scaled(total, sums, 1.0);
        }
    });
}
