//! A matrix on a device.

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit IEEE float; all activations, gradients and trained weights on the CPU.
    F32,
    /// The upper half of an `F32`; read-only weights straight from a mapped file.
    Bf16,
}

/// A `[rows, cols]` matrix, row-major and contiguous.
///
/// Activations are made once and [`resized`](Tensor::resize) for every batch; memory only ever grows, so that a
/// training step in its steady state allocates nothing.
pub struct Tensor {
    // CPU storage now; a CUDA buffer is the second variant later.
}

impl Tensor {
    /// A tensor of no rows; [`resize`](Tensor::resize) gives it a shape.
    pub fn empty() -> Self { todo!() }
    /// All zeros, `F32`.
    pub fn zeros(rows: usize, cols: usize) -> Self { todo!() }
    /// Takes over `data` of length `rows * cols`.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f32>) -> Self { todo!() }
    /// A read-only `Bf16` matrix that lies at `offset` bytes in a mapped file (no copy). `bytes` keeps the map alive.
    pub fn from_mapped_bf16(bytes: std::sync::Arc<dyn AsRef<[u8]> + Send + Sync>, offset: usize, rows: usize, cols: usize) -> Self { todo!() }
    pub fn rows(&self) -> usize { todo!() }
    pub fn cols(&self) -> usize { todo!() }
    pub fn len(&self) -> usize { todo!() }
    pub fn dtype(&self) -> Dtype { todo!() }
    /// New shape, contents unspecified; never gives memory back.
    pub fn resize(&mut self, rows: usize, cols: usize) { todo!() }
    pub fn fill(&mut self, value: f32) { todo!() }
    /// Same shape and contents as `other` (`other` may be `Bf16`).
    pub fn copy_from(&mut self, other: &Tensor) { todo!() }
    /// `self += scale * other`
    pub fn add_scaled(&mut self, other: &Tensor, scale: f32) { todo!() }
    /// The numbers, host side, as `f32`.
    pub fn to_vec(&self) -> Vec<f32> { todo!() }
    /// Rows `start..start + rows` copied to `out` (host side).
    pub fn read_rows(&self, start: usize, rows: usize, out: &mut [f32]) { todo!() }
    /// Host numbers written to rows `start..`; `data.len()` is a multiple of `cols`.
    pub fn write_rows(&mut self, start: usize, data: &[f32]) { todo!() }
    /// CPU `F32` only: the numbers. (Ops use it; models should not need it.)
    pub fn as_slice(&self) -> &[f32] { todo!() }
    /// CPU `F32` only.
    pub fn as_mut_slice(&mut self) -> &mut [f32] { todo!() }
}
