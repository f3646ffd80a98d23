//! A matrix on a device.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::{Pod, Zeroable};

use crate::cuda::{Buffer, Cuda, Kernel, Variant};
use crate::device::Device;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit IEEE float; all activations, gradients and trained weights on the CPU.
    F32,
    /// The upper half of an `F32`; read-only weights straight from a mapped file, and activations on a GPU.
    Bf16,
}

impl Dtype {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// Sixteen numbers on a cache line of their own: the unit in which storage grows.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([f32; LINE]);

const LINE: usize = 16;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that tensors have asked this thread's system or GPU for since the thread began, given back or not. A training
/// step in its steady state does not change it.
pub fn memory_taken() -> u64 {
    TAKEN.get()
}

pub(crate) fn count_taken(bytes: usize) {
    TAKEN.set(TAKEN.get() + bytes as u64);
}

/// Bytes that someone else owns, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Where the numbers live.
enum Storage {
    F32(Vec<Line>),
    Bf16 {
        bytes: SharedBytes,
        offset: usize,
    },
    Cuda {
        buffer: Buffer,
        dtype: Dtype,
        /// Set when all is to be zero and no memory was touched for it yet: what is written first may simply be written.
        zero: AtomicBool,
    },
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

impl Default for Tensor {
    /// The empty tensor.
    fn default() -> Self {
        Self::empty()
    }
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
            Storage::Cuda { dtype, .. } => dtype,
        }
    }

    /// Where the numbers live.
    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cuda { buffer, .. } => Device::Cuda(buffer.gpu()),
            _ => Device::Cpu,
        }
    }

    /// New shape, contents unspecified; never gives memory back. The numbers stay where they are; see
    /// [`place`](Self::place).
    pub fn resize(&mut self, rows: usize, cols: usize) {
        match &mut self.storage {
            Storage::F32(lines) => {
                let need = (rows * cols).div_ceil(LINE);
                if lines.len() < need {
                    // Nothing has to survive, so the old block is freed before the new one is taken.
                    *lines = Vec::new();
                    *lines = vec![Line([0.0; LINE]); need];
                    count_taken(need * size_of::<Line>());
                }
            }
            Storage::Bf16 { .. } => panic!("Tensor::resize: a mapped Bf16 tensor is read-only"),
            Storage::Cuda { buffer, dtype, zero } => {
                *zero.get_mut() = false;
                buffer.reserve(rows * cols * dtype.size());
            }
        }
        self.rows = rows;
        self.cols = cols;
    }

    /// New shape, contents unspecified, on the device of `like` and, on a GPU, in its type. So outputs follow inputs:
    /// a buffer that was made [`empty`](Self::empty) goes where it is first used.
    pub fn place(&mut self, like: &Tensor, rows: usize, cols: usize) {
        self.place_on(like.device(), like.dtype(), rows, cols);
    }

    /// New shape, contents unspecified, on `device`; `dtype` counts on a GPU only, the CPU computes with `F32`.
    pub fn place_on(&mut self, device: Device, dtype: Dtype, rows: usize, cols: usize) {
        let stays = match (&self.storage, device) {
            (Storage::Cuda { buffer, dtype: own, .. }, Device::Cuda(gpu)) => {
                std::ptr::eq(buffer.gpu(), gpu) && *own == dtype
            }
            (Storage::Cuda { .. }, Device::Cpu) | (_, Device::Cuda(_)) => false,
            (_, Device::Cpu) => true,
        };
        if !stays {
            self.storage = match device {
                Device::Cpu => Storage::F32(Vec::new()),
                Device::Cuda(gpu) => Storage::Cuda { buffer: Buffer::empty(gpu), dtype, zero: AtomicBool::new(false) },
            };
        }
        self.resize(rows, cols);
    }

    /// All zeros on `device`; `dtype` counts on a GPU only.
    pub fn zeros_on(device: Device, dtype: Dtype, rows: usize, cols: usize) -> Self {
        let mut tensor = Self::empty();
        tensor.place_on(device, dtype, rows, cols);
        tensor.fill(0.0);
        tensor
    }

    /// A copy on `device`; `dtype` counts on a GPU only.
    pub fn to_device(&self, device: Device, dtype: Dtype) -> Self {
        let mut copy = Self::empty();
        copy.place_on(device, dtype, self.rows, self.cols);
        let from_mapped = match &self.storage {
            Storage::Bf16 { bytes, offset } if copy.dtype() == Dtype::Bf16 => Some((bytes, *offset)),
            _ => None,
        };
        match (from_mapped, &mut copy.storage) {
            (Some((bytes, offset)), Storage::Cuda { buffer, .. }) => {
                let all: &[u8] = (**bytes).as_ref();
                buffer.write(0, &all[offset..offset + self.rows * self.cols * 2]);
            }
            _ if self.device().is_cpu() && !device.is_cpu() => {
                // Few rows at a time, so that a large matrix needs no second copy on the host.
                let rows = (1_usize << 24).div_ceil(self.cols.max(1)).min(self.rows.max(1));
                let mut part = Vec::new();
                for start in (0..self.rows).step_by(rows) {
                    let count = rows.min(self.rows - start);
                    part.resize(count * self.cols, 0.0);
                    self.read_rows(start, count, &mut part);
                    copy.write_rows(start, &part);
                }
            }
            _ => copy.copy_from(self),
        }
        copy
    }

    /// Normal numbers with mean 0, made on `device` itself: a function of the shape, the seed and the kind of device.
    pub fn random_on(device: Device, dtype: Dtype, rows: usize, cols: usize, deviation: f32, seed: u64) -> Self {
        let mut tensor = Self::empty();
        let Device::Cuda(gpu) = device else {
            tensor.resize(rows, cols);
            // A Lehmer-like stream; the sum of twelve uniform numbers is close enough to normal.
            let mut state = seed.wrapping_mul(2).wrapping_add(1);
            tensor.as_mut_slice().fill_with(|| {
                let uniform = || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 40) as f32 / (1u64 << 24) as f32
                };
                (std::iter::repeat_with(uniform).take(12).sum::<f32>() - 6.0) * deviation
            });
            return tensor;
        };
        tensor.place_on(device, dtype, rows, cols);
        let args = [tensor.pointer().into(), seed.into(), deviation.into(), (tensor.len() as u64).into()];
        gpu.flat(tensor.kernel("random", "normal"), tensor.len(), 1, &args);
        tensor
    }

    /// Its GPU, if it lives on one.
    pub(crate) fn gpu(&self) -> Option<&'static Cuda> {
        match &self.storage {
            Storage::Cuda { buffer, .. } => Some(buffer.gpu()),
            _ => None,
        }
    }

    /// Where it begins in the memory of its GPU.
    #[track_caller]
    pub(crate) fn pointer(&self) -> u64 {
        match &self.storage {
            Storage::Cuda { buffer, dtype, zero } => {
                if zero.swap(false, Ordering::Relaxed) {
                    buffer.zero(self.len() * dtype.size());
                }
                buffer.pointer()
            }
            _ => panic!("this operand {:?} lies on the CPU, others on a GPU", self.shape()),
        }
    }

    /// Whether it is zero without its memory being so yet; from now on the caller sees to what is there.
    pub(crate) fn take_zero(&mut self) -> bool {
        match &mut self.storage {
            Storage::Cuda { zero, .. } => std::mem::take(zero.get_mut()),
            _ => false,
        }
    }

    /// [`pointer`](Self::pointer) of a tensor that must be `F32`: norm scales, biases, gradients of parameters.
    #[track_caller]
    pub(crate) fn pointer_f32(&self) -> u64 {
        assert!(self.dtype() == Dtype::F32, "on a GPU this operand {:?} must be F32", self.shape());
        self.pointer()
    }

    /// The kernel for tensors of this type.
    pub(crate) fn kernel(&self, operation: &'static str, function: &'static str) -> Kernel {
        let variant = Variant { bf16: self.dtype() == Dtype::Bf16, ..Variant::default() };
        Kernel { operation, function, variant }
    }

    /// Every number becomes `value`.
    pub fn fill(&mut self, value: f32) {
        let len = self.len();
        if let Storage::Cuda { buffer, dtype, zero } = &mut self.storage {
            *zero.get_mut() = value == 0.0;
            if value == 0.0 {
                return;
            }
            let function = match dtype {
                Dtype::F32 => "fill_f32",
                Dtype::Bf16 => "fill_bf16",
            };
            let gpu = buffer.gpu();
            gpu.flat(
                Kernel::plain("elementwise", function),
                len,
                8,
                &[buffer.pointer().into(), value.into(), (len as u64).into()],
            );
            return;
        }
        crate::par::chunks_mut(self.as_mut_slice(), |_, chunk| chunk.fill(value));
    }

    /// Same shape and contents as `other` (`other` may be `Bf16`).
    pub fn copy_from(&mut self, other: &Tensor) {
        if let Some(gpu) = other.gpu() {
            if self.gpu().is_none() {
                self.place(other, other.rows, other.cols);
            }
            self.resize(other.rows, other.cols);
            let (to, from, len) = (self.pointer(), other.pointer(), self.len());
            let function = match (self.dtype(), other.dtype()) {
                (Dtype::F32, Dtype::Bf16) => "copy_f32_bf16",
                (Dtype::Bf16, Dtype::F32) => "copy_bf16_f32",
                (same, _) => return gpu.copy(to, from, len * same.size()),
            };
            gpu.flat(Kernel::plain("elementwise", function), len, 8, &[to.into(), from.into(), (len as u64).into()]);
            return;
        }
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
        if let Some(gpu) = self.gpu() {
            let function = match (self.dtype(), other.dtype()) {
                (Dtype::F32, Dtype::F32) => "add_f32_f32",
                (Dtype::F32, Dtype::Bf16) => "add_f32_bf16",
                (Dtype::Bf16, Dtype::F32) => "add_bf16_f32",
                (Dtype::Bf16, Dtype::Bf16) => "add_bf16_bf16",
            };
            let args = [self.pointer().into(), other.pointer().into(), scale.into(), (self.len() as u64).into()];
            return gpu.flat(Kernel::plain("elementwise", function), self.len(), 8, &args);
        }
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
        self.read_rows(0, self.rows, &mut out);
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
        if self.gpu().is_some() {
            // So that a zero is there.
            self.pointer();
        }
        match &self.storage {
            Storage::Cuda { buffer, dtype: Dtype::F32, .. } => {
                buffer.read(start * self.cols * 4, bytemuck::cast_slice_mut(out))
            }
            Storage::Cuda { buffer, dtype: Dtype::Bf16, .. } => {
                let mut halves = vec![0u16; out.len()];
                buffer.read(start * self.cols * 2, bytemuck::cast_slice_mut(&mut halves));
                out.iter_mut().zip(halves).for_each(|(to, half)| *to = widen(half));
            }
            _ => self.values().read(start * self.cols, out),
        }
    }

    /// Host numbers written to rows `start..`; `data.len()` is a multiple of `cols`.
    pub fn write_rows(&mut self, start: usize, data: &[f32]) {
        let (shape, at) = (self.shape(), start * self.cols);
        assert!(
            data.len().is_multiple_of(self.cols.max(1)) && at + data.len() <= self.len(),
            "Tensor::write_rows: {} numbers at row {start} of {shape:?}",
            data.len()
        );
        if self.gpu().is_some() {
            self.pointer();
        }
        match &mut self.storage {
            Storage::Cuda { buffer, dtype: Dtype::F32, .. } => buffer.write(at * 4, bytemuck::cast_slice(data)),
            Storage::Cuda { buffer, dtype: Dtype::Bf16, .. } => buffer.write_bf16(at * 2, data),
            _ => self.as_mut_slice()[at..at + data.len()].copy_from_slice(data),
        }
    }

    /// CPU `F32` only: the numbers. (Ops use it; models should not need it.)
    pub fn as_slice(&self) -> &[f32] {
        match &self.storage {
            Storage::F32(lines) => &bytemuck::cast_slice(lines)[..self.rows * self.cols],
            Storage::Bf16 { .. } => {
                panic!("Tensor::as_slice: wants F32, this {:?} is Bf16", self.shape())
            }
            Storage::Cuda { .. } => panic!("Tensor::as_slice: wants host memory, this {:?} is on a GPU", self.shape()),
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
            Storage::Cuda { .. } => panic!("Tensor::as_mut_slice: wants host memory, this {shape:?} is on a GPU"),
        }
    }

    pub(crate) fn values(&self) -> Values<'_> {
        match &self.storage {
            Storage::F32(_) => Values::F32(self.as_slice()),
            Storage::Bf16 { bytes, offset } => {
                let all: &[u8] = (**bytes).as_ref();
                Values::Bf16(bytemuck::cast_slice(&all[*offset..*offset + self.len() * 2]))
            }
            Storage::Cuda { .. } => panic!("an operation on the CPU was given {:?} on a GPU", self.shape()),
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

/// The bfloat16 nearest to `x`, even among equals.
#[inline]
pub(crate) fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    let nan = bits >> 16 | u32::from(bits & 0x007f_0000 == 0);
    // Of a NaN the sum may be too large.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if x.is_nan() { nan } else { rounded }) as u16
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
