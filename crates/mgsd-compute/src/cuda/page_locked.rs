//! Host memory that stays where it is, so that the device reads and writes it while the host goes on.

use cudarc::driver::sys;

use super::{Cuda, check};

/// Page-locked host memory, and a mark in the stream of work after which it may be touched again.
pub(crate) struct PageLocked {
    gpu: &'static Cuda,
    memory: *mut u8,
    bytes: usize,
    mark: sys::CUevent,
}

// SAFETY: the memory has one owner, and an event may be used from any thread whose current context is its own.
unsafe impl Send for PageLocked {}
// SAFETY: what changes is borrowed mutably, or written by the device before the mark that readers wait for.
unsafe impl Sync for PageLocked {}

impl PageLocked {
    /// `bytes` bytes, all zero.
    pub(crate) fn new(gpu: &'static Cuda, bytes: usize) -> Self {
        gpu.enter();
        let (mut memory, mut mark) = (std::ptr::null_mut(), std::ptr::null_mut());
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: places for the results; the memory is `bytes` bytes that nobody else has.
        unsafe {
            check("cuMemHostAlloc", sys::cuMemHostAlloc(&mut memory, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP));
            std::ptr::write_bytes(memory.cast::<u8>(), 0, bytes);
            check("cuEventCreate", sys::cuEventCreate(&mut mark, flags));
        }
        Self { gpu, memory: memory.cast(), bytes, mark }
    }

    /// Where the device finds it.
    pub(crate) fn pointer(&self) -> u64 {
        self.gpu.enter();
        let mut pointer = 0;
        // SAFETY: the memory was made for this.
        let status = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut pointer, self.memory.cast(), 0) };
        check("cuMemHostGetDevicePointer", status);
        pointer
    }

    /// Marks this place in the stream: what was asked for until now may use the memory, nothing later does.
    pub(crate) fn mark(&self) {
        self.gpu.enter();
        // SAFETY: event and stream live as long as `self`.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.mark, self.gpu.stream()) });
    }

    /// What lies there when the device has reached the last mark.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.wait();
        // SAFETY: nothing writes any more.
        unsafe { std::slice::from_raw_parts(self.memory, self.bytes) }
    }

    /// The same, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.wait();
        // SAFETY: nothing reads or writes any more.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }

    fn wait(&self) {
        self.gpu.enter();
        // SAFETY: the event lives as long as `self`; one that was never recorded is reached at once.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.mark) });
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        self.gpu.enter();
        // SAFETY: both are forgotten here; the device is done with them.
        unsafe {
            sys::cuEventSynchronize(self.mark);
            sys::cuEventDestroy_v2(self.mark);
            sys::cuMemFreeHost(self.memory.cast());
        }
    }
}
