//! NCCL, loaded at run time: several processes, one GPU each, that add up numbers.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys;
use cudarc::nccl::sys as nccl;

use super::Cuda;
use crate::{Dtype, Tensor};

/// The GPUs' side of [`Group`](crate::Group), which says what its methods do.
pub(crate) struct Communicator {
    gpu: &'static Cuda,
    communicator: nccl::ncclComm_t,
    aside: Aside,
}

/// Where sums of tensors are made beside the GPU's other work.
struct Aside {
    stream: sys::CUstream,
    /// The work that what is started next builds upon.
    ready: sys::CUevent,
    /// The last of what was started.
    done: sys::CUevent,
    /// Whether something was started that the GPU's other work does not wait for yet.
    started: AtomicBool,
}

/// Which work comes before and after a call of NCCL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// All that was asked for before comes before, all that is asked for later comes after.
    InTurn,
    /// All that was asked for before comes before; what comes after is what follows [`Communicator::finish`].
    Aside,
}

// SAFETY: calls are made by one thread at a time, as all work of a GPU.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

/// Bytes of an id.
const ID: usize = 128;

#[track_caller]
fn check(call: &str, status: nccl::ncclResult_t) {
    assert!(
        status == nccl::ncclResult_t::ncclSuccess,
        "NCCL: {call} failed: {status:?}; another process may have died"
    );
}

impl Communicator {
    /// Whether the library is there, or what to do.
    pub(crate) fn present() -> Result<(), String> {
        // SAFETY: only looks whether the library can be loaded.
        let present = unsafe { nccl::is_culib_present() };
        present.then_some(()).ok_or_else(|| {
            "NCCL (libnccl) is not there; install it (for instance `pip install nvidia-nccl-cu13`) and put its folder on \
             LD_LIBRARY_PATH"
                .into()
        })
    }

    /// What rank 0 makes and everybody must know.
    pub(crate) fn new_id() -> Result<Vec<u8>, String> {
        let mut id = nccl::ncclUniqueId { internal: [0; ID] };
        // SAFETY: `id` is a place for the result.
        match unsafe { nccl::ncclGetUniqueId(&mut id) } {
            nccl::ncclResult_t::ncclSuccess => Ok(id.internal.map(|byte| byte as u8).to_vec()),
            failed => Err(format!("ncclGetUniqueId failed: {failed:?}")),
        }
    }

    /// Joins the processes that have this id.
    pub(crate) fn join(gpu: &'static Cuda, rank: usize, size: usize, id: &[u8]) -> Result<Self, String> {
        let id: [u8; ID] = id.try_into().map_err(|_| format!("an id of NCCL has {ID} bytes, not {}", id.len()))?;
        let id = nccl::ncclUniqueId { internal: id.map(|byte| byte as std::ffi::c_char) };
        gpu.enter();
        let mut communicator = std::ptr::null_mut();
        // SAFETY: `communicator` is a place for the result.
        let status = unsafe { nccl::ncclCommInitRank(&mut communicator, size as i32, id, rank as i32) };
        match status {
            nccl::ncclResult_t::ncclSuccess => {
                Ok(Self { gpu, communicator, aside: Aside::open().map_err(|why| format!("GPU: {why}"))? })
            }
            failed => Err(format!("NCCL cannot join {size} processes as rank {rank}: {failed:?}")),
        }
    }

    pub(crate) fn start_all_reduce<'a>(&self, tensors: impl IntoIterator<Item = &'a mut Tensor>) {
        let tensors = tensors.into_iter().map(|tensor| (tensor, 0));
        self.together(Order::Aside, tensors, |at, count, kind, _, stream| {
            let sum = nccl::ncclRedOp_t::ncclSum;
            // SAFETY: `at` points to `count` numbers on the device.
            unsafe { nccl::ncclAllReduce(at as *const _, at as *mut _, count, kind, sum, self.communicator, stream) }
        });
    }

    pub(crate) fn start_reduce<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        self.together(Order::Aside, tensors, |at, count, kind, owner, stream| {
            let sum = nccl::ncclRedOp_t::ncclSum;
            let (from, to) = (at as *const _, at as *mut _);
            // SAFETY: `at` points to `count` numbers on the device.
            unsafe { nccl::ncclReduce(from, to, count, kind, sum, owner, self.communicator, stream) }
        });
    }

    pub(crate) fn finish(&self) {
        if self.aside.started.swap(false, Ordering::Relaxed) {
            self.gpu.enter();
            let Aside { stream, done, .. } = self.aside;
            // SAFETY: stream and event live as long as the group.
            super::check("cuEventRecord", unsafe { sys::cuEventRecord(done, stream) });
            // SAFETY: as above; the GPU's streams live as long as the process.
            super::check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.gpu.stream(), done, 0) });
        }
    }

    pub(crate) fn broadcast<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        self.together(Order::InTurn, tensors, |at, count, kind, owner, stream| {
            // SAFETY: `at` points to `count` numbers on the device.
            unsafe { nccl::ncclBroadcast(at as *const _, at as *mut _, count, kind, owner, self.communicator, stream) }
        });
    }

    pub(crate) fn sum(&self, numbers: &mut [f64]) {
        self.finish();
        let bytes = size_of_val(numbers);
        let at = self.gpu.scratch("sums over processes", bytes.max(8));
        self.gpu.copy_in(at, bytemuck::cast_slice(numbers));
        let (kind, sum) = (nccl::ncclDataType_t::ncclFloat64, nccl::ncclRedOp_t::ncclSum);
        let (from, to, stream) = (at as *const _, at as *mut _, self.gpu.stream() as nccl::cudaStream_t);
        // SAFETY: `at` points to as many doubles.
        let status = unsafe { nccl::ncclAllReduce(from, to, numbers.len(), kind, sum, self.communicator, stream) };
        check("ncclAllReduce", status);
        self.gpu.copy_out(at, bytemuck::cast_slice_mut(numbers));
    }

    fn together<'a>(
        &self,
        order: Order,
        tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>,
        mut call: impl FnMut(u64, usize, nccl::ncclDataType_t, i32, nccl::cudaStream_t) -> nccl::ncclResult_t,
    ) {
        self.gpu.enter();
        // Zeros that were not written yet are written here, before the group begins and before what it waits for is
        // noted.
        let all: Vec<(u64, usize, Dtype, usize)> =
            tensors.into_iter().map(|(t, owner)| (t.pointer(), t.len(), t.dtype(), owner)).collect();
        let stream = self.stream(order) as nccl::cudaStream_t;
        // SAFETY: begins a group of calls that ends below.
        check("ncclGroupStart", unsafe { nccl::ncclGroupStart() });
        for (at, count, dtype, owner) in all {
            let kind = match dtype {
                Dtype::F32 => nccl::ncclDataType_t::ncclFloat32,
                Dtype::Bf16 => nccl::ncclDataType_t::ncclBfloat16,
            };
            check("a collective call", call(at, count, kind, owner as i32, stream));
        }
        // SAFETY: ends the group.
        check("ncclGroupEnd", unsafe { nccl::ncclGroupEnd() });
    }

    /// The stream of calls in this order, which comes after all that was asked for so far. The communicator's own calls
    /// follow each other whichever stream they go to.
    fn stream(&self, order: Order) -> sys::CUstream {
        let main = self.gpu.stream();
        if order == Order::InTurn {
            self.finish();
            return main;
        }
        let Aside { stream, ready, .. } = self.aside;
        // An event may be used again at once: who waits for it waits for what it was when the wait was asked for.
        // SAFETY: the group's stream and events live as long as the group, the GPU's streams as long as the process.
        super::check("cuEventRecord", unsafe { sys::cuEventRecord(ready, main) });
        // SAFETY: as above.
        super::check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, ready, 0) });
        self.aside.started.store(true, Ordering::Relaxed);
        stream
    }
}

impl Aside {
    /// On the GPU that the calling thread has entered.
    fn open() -> Result<Self, String> {
        let mut stream = std::ptr::null_mut();
        let mut events = [std::ptr::null_mut(); 2];
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `stream` is a place for the result.
        super::tried("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        for event in &mut events {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: `event` is a place for the result.
            super::tried("cuEventCreate", unsafe { sys::cuEventCreate(event, flags) })?;
        }
        let [ready, done] = events;
        Ok(Self { stream, ready, done, started: AtomicBool::new(false) })
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.gpu.enter();
        // SAFETY: made by ncclCommInitRank, and not used afterwards.
        unsafe { nccl::ncclCommDestroy(self.communicator) };
        let Aside { stream, ready, done, .. } = self.aside;
        // SAFETY: made by `Aside::open`, and not used afterwards; the driver keeps them until work under way is done.
        unsafe {
            sys::cuEventDestroy_v2(ready);
            sys::cuEventDestroy_v2(done);
            sys::cuStreamDestroy_v2(stream);
        }
    }
}
