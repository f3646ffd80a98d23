//! A matrix on a device.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit IEEE float; all activations, gradients and trained weights on the CPU.
    F32,
    /// The upper half of an `F32`; read-only weights straight from a mapped file.
    Bf16,
}

/// Sixteen numbers on a cache line of their own: the unit in which storage grows.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// Bytes that someone else owns, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Where the numbers live. A CUDA buffer is to become a further variant.
enum Storage {
    F32(Vec<Line>),
    Bf16 { bytes: SharedBytes, offset: usize },
}

/// The numbers of a CPU tensor of either kind, for the operations.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

/// A `[rows, cols]` matrix, row-major and contiguous.
///
/// Activations are made once and [`resized`](Tensor::resize) for every batch; memory only ever grows, so that a
/// training step in its steady state allocates nothing.
pub struct Tensor {
    storage: Storage,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// A tensor of no rows; [`resize`](Tensor::resize) gives it a shape.
    pub fn empty() -> Self {
        Self { storage: Storage::F32(Vec::new()), rows: 0, cols: 0 }
    }

    /// All zeros, `F32`.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let mut tensor = Self::empty();
        tensor.resize(rows, cols);
        tensor.fill(0.0);
        tensor
    }

    /// The numbers of `data`, whose length is `rows * cols`, row by row. They are copied to aligned memory.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(
            data.len(),
            rows * cols,
            "Tensor::from_vec: [{rows}, {cols}] wants {} numbers, got {}",
            rows * cols,
            data.len()
        );
        let mut tensor = Self::empty();
        tensor.resize(rows, cols);
        tensor.as_mut_slice().copy_from_slice(&data);
        tensor
    }

    /// A read-only `Bf16` matrix that lies at `offset` bytes in a mapped file (no copy). `bytes` keeps the map alive.
    ///
    /// A matrix that begins at an odd address cannot be read in place and is copied instead.
    pub fn from_mapped_bf16(bytes: SharedBytes, offset: usize, rows: usize, cols: usize) -> Self {
        let size = rows * cols * 2;
        let all: &[u8] = (*bytes).as_ref();
        assert!(
            offset.checked_add(size).is_some_and(|end| end <= all.len()),
            "Tensor::from_mapped_bf16: [{rows}, {cols}] at byte {offset} ends past the {} bytes given",
            all.len()
        );
        let part = &all[offset..offset + size];
        if bytemuck::try_cast_slice::<u8, u16>(part).is_ok() {
            return Self { storage: Storage::Bf16 { bytes, offset }, rows, cols };
        }
        let copy: Vec<u16> = part.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect();
        Self { storage: Storage::Bf16 { bytes: Arc::new(Halves(copy)), offset: 0 }, rows, cols }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `rows * cols`
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it holds no number.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `[rows, cols]`
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// How the numbers are stored.
    pub fn dtype(&self) -> Dtype {
        match self.storage {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16 { .. } => Dtype::Bf16,
        }
    }

    /// New shape, contents unspecified; never gives memory back.
    pub fn resize(&mut self, rows: usize, cols: usize) {
        let Storage::F32(lines) = &mut self.storage else {
            panic!("Tensor::resize: a mapped Bf16 tensor is read-only");
        };
        let need = (rows * cols).div_ceil(LINE);
        if lines.len() < need {
            // Nothing has to survive, so the old block is freed before the new one is taken.
            *lines = Vec::new();
            *lines = vec![Line([0.0; LINE]); need];
        }
        self.rows = rows;
        self.cols = cols;
    }

    /// Every number becomes `value`.
    pub fn fill(&mut self, value: f32) {
        crate::par::chunks_mut(self.as_mut_slice(), |_, chunk| chunk.fill(value));
    }

    /// Same shape and contents as `other` (`other` may be `Bf16`).
    pub fn copy_from(&mut self, other: &Tensor) {
        self.resize(other.rows, other.cols);
        let values = other.values();
        crate::par::chunks_mut(self.as_mut_slice(), |start, chunk| {
            values.read(start, chunk);
        });
    }

    /// `self += scale * other`
    pub fn add_scaled(&mut self, other: &Tensor, scale: f32) {
        assert_eq!(
            self.shape(),
            other.shape(),
            "Tensor::add_scaled: {:?} += scale * {:?}",
            self.shape(),
            other.shape()
        );
        match other.values() {
            Values::F32(from) => crate::par::chunks_mut(self.as_mut_slice(), |start, to| {
                let from = &from[start..start + to.len()];
                for (to, from) in to.iter_mut().zip(from) {
                    *to += scale * from;
                }
            }),
            Values::Bf16(from) => crate::par::chunks_mut(self.as_mut_slice(), |start, to| {
                let from = &from[start..start + to.len()];
                for (to, from) in to.iter_mut().zip(from) {
                    *to += scale * widen(*from);
                }
            }),
        }
    }

    /// The numbers, host side, as `f32`.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.values().read(0, &mut out);
        out
    }

    /// Rows `start..start + rows` copied to `out` (host side).
    pub fn read_rows(&self, start: usize, rows: usize, out: &mut [f32]) {
        assert!(
            start + rows <= self.rows && out.len() == rows * self.cols,
            "Tensor::read_rows: rows {start}..{} of {:?} into {} numbers",
            start + rows,
            self.shape(),
            out.len()
        );
        self.values().read(start * self.cols, out);
    }

    /// Host numbers written to rows `start..`; `data.len()` is a multiple of `cols`.
    pub fn write_rows(&mut self, start: usize, data: &[f32]) {
        let (shape, at) = (self.shape(), start * self.cols);
        assert!(
            data.len().is_multiple_of(self.cols.max(1)) && at + data.len() <= self.len(),
            "Tensor::write_rows: {} numbers at row {start} of {shape:?}",
            data.len()
        );
        self.as_mut_slice()[at..at + data.len()].copy_from_slice(data);
    }

    /// CPU `F32` only: the numbers. (Ops use it; models should not need it.)
    pub fn as_slice(&self) -> &[f32] {
        match &self.storage {
            Storage::F32(lines) => &bytemuck::cast_slice(lines)[..self.rows * self.cols],
            Storage::Bf16 { .. } => {
                panic!("Tensor::as_slice: wants F32, this {:?} is Bf16", self.shape())
            }
        }
    }

    /// CPU `F32` only.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let shape = self.shape();
        match &mut self.storage {
            Storage::F32(lines) => &mut bytemuck::cast_slice_mut(lines.as_mut_slice())[..shape[0] * shape[1]],
            Storage::Bf16 { .. } => {
                panic!("Tensor::as_mut_slice: wants F32, this {shape:?} is Bf16, which is read-only")
            }
        }
    }

    pub(crate) fn values(&self) -> Values<'_> {
        match &self.storage {
            Storage::F32(_) => Values::F32(self.as_slice()),
            Storage::Bf16 { bytes, offset } => {
                let all: &[u8] = (**bytes).as_ref();
                Values::Bf16(bytemuck::cast_slice(&all[*offset..*offset + self.len() * 2]))
            }
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?} [{}, {}])", self.dtype(), self.rows, self.cols)
    }
}

/// Backing of a `Bf16` matrix that could not be read in place.
struct Halves(Vec<u16>);

impl AsRef<[u8]> for Halves {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// The `F32` whose upper half is `bits`.
#[inline(always)]
pub(crate) fn widen(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

impl<'a> Values<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Values::F32(from) => from.len(),
            Values::Bf16(from) => from.len(),
        }
    }

    /// All from `start` on.
    pub(crate) fn from(&self, start: usize) -> Values<'a> {
        match self {
            Values::F32(from) => Values::F32(&from[start..]),
            Values::Bf16(from) => Values::Bf16(&from[start..]),
        }
    }

    /// Numbers `start..start + out.len()` as `f32`.
    pub(crate) fn read(&self, start: usize, out: &mut [f32]) {
        match self {
            Values::F32(from) => out.copy_from_slice(&from[start..start + out.len()]),
            Values::Bf16(from) => {
                for (to, from) in out.iter_mut().zip(&from[start..]) {
                    *to = widen(*from);
                }
            }
        }
    }
}
