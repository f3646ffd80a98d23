//! Device memory.

use std::sync::atomic::Ordering;

use cudarc::driver::sys;

use super::{Cuda, check};
use crate::par;
use crate::tensor::narrow;

/// Bytes up to which the driver takes what the host sends without waiting for the device.
const DIRECT: usize = 64 << 10;

/// A block of memory of one GPU. Grows, never shrinks, and is freed when dropped.
pub(crate) struct Buffer {
    gpu: &'static Cuda,
    pointer: u64,
    bytes: usize,
}

impl Buffer {
    pub(crate) fn empty(gpu: &'static Cuda) -> Self {
        Self { gpu, pointer: 0, bytes: 0 }
    }

    pub(crate) fn gpu(&self) -> &'static Cuda {
        self.gpu
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Room for `bytes`; what was there is lost when it has to grow.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        if bytes <= self.bytes {
            return;
        }
        self.free();
        self.gpu.enter();
        let size = bytes.next_multiple_of(256);
        // SAFETY: `pointer` is a place for the result.
        let status = unsafe { sys::cuMemAlloc_v2(&mut self.pointer, size) };
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.gpu.memory();
            let mib = |bytes: usize| bytes >> 20;
            panic!(
                "GPU {} is out of memory: {} MiB were wanted, {} of {} MiB are free; lower \
                 batch.max_tokens_per_micro_batch or the number of rollouts or requests side by side, or recompute activations",
                self.gpu.ordinal(),
                mib(size),
                mib(free),
                mib(total)
            );
        }
        check("cuMemAlloc", status);
        self.bytes = size;
        crate::tensor::count_taken(size);
    }

    /// Every byte becomes zero.
    pub(crate) fn zero(&self, bytes: usize) {
        self.gpu.enter();
        if bytes > 0 {
            assert!(bytes <= self.bytes, "{bytes} bytes to clear of {}", self.bytes);
            // SAFETY: the range was just checked.
            check("cuMemsetD8", unsafe { sys::cuMemsetD8Async(self.pointer, 0, bytes, self.gpu.stream()) });
        }
    }

    /// Host bytes to `offset`.
    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.bytes, "{} bytes at {offset} of {}", from.len(), self.bytes);
        self.gpu.copy_in(self.pointer + offset as u64, from);
    }

    /// Host numbers to `offset` as bfloat16.
    pub(crate) fn write_bf16(&mut self, offset: usize, from: &[f32]) {
        assert!(offset + from.len() * 2 <= self.bytes, "{} halves at {offset} of {}", from.len(), self.bytes);
        self.gpu.send(self.pointer + offset as u64, from.len() * 2, |start, piece| {
            let from = &from[start / 2..][..piece.len() / 2];
            par::bytes_mut(piece, |start, piece| {
                let halves: &mut [u16] = bytemuck::cast_slice_mut(piece);
                let from = &from[start / 2..][..halves.len()];
                halves.iter_mut().zip(from).for_each(|(half, number)| *half = narrow(*number));
            });
        });
    }

    /// Bytes at `offset` to the host, after everything asked for is done.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= self.bytes, "{} bytes at {offset} of {}", to.len(), self.bytes);
        self.gpu.copy_out(self.pointer + offset as u64, to);
    }

    fn free(&mut self) {
        if self.pointer != 0 {
            self.gpu.enter();
            // SAFETY: came from cuMemAlloc, and is forgotten here. The driver waits for work under way.
            unsafe { sys::cuMemFree_v2(self.pointer) };
            self.gpu.epoch.fetch_add(1, Ordering::Relaxed);
            (self.pointer, self.bytes) = (0, 0);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.free();
    }
}

impl Cuda {
    /// Host bytes to device memory of at least that size. They may change as soon as this returns.
    pub(super) fn copy_in(&'static self, to: u64, from: &[u8]) {
        if from.len() > DIRECT {
            return self.send(to, from.len(), |start, piece| {
                let from = &from[start..][..piece.len()];
                par::bytes_mut(piece, |start, piece| piece.copy_from_slice(&from[start..][..piece.len()]));
            });
        }
        self.enter();
        if !from.is_empty() {
            // SAFETY: the caller owns both ranges; the driver has taken so few bytes when it returns.
            let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream()) };
            check("cuMemcpyHtoD", status);
        }
    }

    /// Device bytes to the host, after everything asked for is done.
    pub(crate) fn copy_out(&self, from: u64, to: &mut [u8]) {
        self.enter();
        if !to.is_empty() {
            // SAFETY: the caller owns both ranges.
            let status = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.stream()) };
            check("cuMemcpyDtoH", status);
        }
        self.synchronize();
    }

    /// Device bytes to device bytes.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) {
        self.enter();
        if bytes > 0 {
            // SAFETY: the caller owns both ranges.
            check("cuMemcpyDtoD", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream()) });
        }
    }
}
