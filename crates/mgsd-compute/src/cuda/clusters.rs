//! How many clusters of blocks a GPU runs at the same time.

use cudarc::driver::sys;

use super::kernels::{Kernel, early};
use super::{Cuda, check};

/// Blocks of the largest cluster that every GPU of compute capability 9.0 takes.
pub(crate) const LARGEST: usize = 8;

impl Cuda {
    /// For clusters of one block, of two, and so on: how many run at the same time if no multiprocessor takes more than
    /// one of their blocks. For compute capability 9.0 and later; multiprocessors lie in groups of different sizes that a
    /// cluster cannot leave, so that only the driver knows.
    pub(crate) fn clusters(&self) -> [usize; LARGEST] {
        *self.clusters.get_or_init(|| {
            self.enter();
            // More than half of what a multiprocessor has.
            let shared = 120_000;
            let handle = self.handle(Kernel::plain("cluster", "cluster"), shared);
            std::array::from_fn(|index| {
                let size = index as u32 + 1;
                let mut attributes = early(size);
                let config = sys::CUlaunchConfig {
                    gridDimX: size,
                    gridDimY: 1,
                    gridDimZ: 1,
                    blockDimX: 128,
                    blockDimY: 1,
                    blockDimZ: 1,
                    sharedMemBytes: shared,
                    hStream: self.stream(),
                    attrs: attributes.as_mut_ptr(),
                    numAttrs: 1,
                };
                let mut count = 0;
                // SAFETY: `count` is a place for the result, `config` outlives the call.
                let status = unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, handle, &config) };
                check("cuOccupancyMaxActiveClusters", status);
                count as usize
            })
        })
    }
}
