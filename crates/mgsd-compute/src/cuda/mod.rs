//! The second implementation of the operations: one NVIDIA GPU.
//!
//! Everything of CUDA is loaded at run time, so that the same binary starts on a machine without it: the driver, NVRTC
//! (which compiles our kernels from the sources in `kernels/`, once, into a cache on disk) and cuBLASLt for the matrix
//! products. All work of a process goes to one stream of one device, in the order in which it was asked for, and one thread
//! at a time may ask: scratch memory is shared.
//!
//! Numbers: matrices are stored as bfloat16 (or as 32-bit floats, when the model asks for them), vectors (norm scales,
//! biases) and gradients of parameters as 32-bit floats; sums are always made in 32-bit floats.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys;

mod buffer;
mod clusters;
mod graph;
mod kernels;
mod lists;
mod nccl;
mod page_locked;
mod product;
mod staging;
mod tiles;

pub(crate) use buffer::Buffer;
pub(crate) use clusters::LARGEST as LARGEST_CLUSTER;
pub use graph::Graph;
pub(crate) use kernels::{Arg, FEW, Kernel, LARGE, THIN, Variant, sizes};
pub(crate) use nccl::Communicator;
pub(crate) use page_locked::PageLocked;
pub(crate) use product::own;
pub(crate) use product::{Operand, Product};
pub(crate) use tiles::Tiles;

/// One GPU: its context, its stream and what was compiled for it. Opened once, kept for the life of the process.
pub struct Cuda {
    ordinal: usize,
    context: sys::CUcontext,
    /// The stream of all work, and those of branches.
    streams: [sys::CUstream; BRANCHES],
    events: [sys::CUevent; BRANCHES],
    /// Which of the streams work goes to.
    branch: AtomicUsize,
    /// Counts the blocks of memory given back.
    epoch: AtomicU64,
    name: String,
    /// Major and minor compute capability.
    capability: (i32, i32),
    multiprocessors: u32,
    /// How many run at the same time, by size.
    clusters: OnceLock<[usize; LARGEST_CLUSTER]>,
    kernels: Mutex<kernels::Kernels>,
    product: Mutex<product::Planner>,
    lists: Mutex<lists::Lists>,
    scratch: Mutex<Vec<Scratch>>,
    staging: Mutex<staging::Staging>,
}

/// Pieces of work that can run side by side.
const BRANCHES: usize = 4;

/// A piece of device memory that operations use among themselves.
struct Scratch {
    what: &'static str,
    buffer: Buffer,
}

// SAFETY: the driver's handles may be used from any thread whose current context is this one; `enter` sees to that.
unsafe impl Send for Cuda {}
// SAFETY: as above; what changes lies behind locks.
unsafe impl Sync for Cuda {}

/// All GPUs opened so far, by number.
static OPEN: Mutex<Vec<&'static Cuda>> = Mutex::new(Vec::new());

thread_local! {
    static CURRENT: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

impl Cuda {
    /// The GPU with this number, or what is missing to use it.
    pub fn open(ordinal: usize) -> Result<&'static Cuda, String> {
        let mut open = OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(found) = open.iter().find(|gpu| gpu.ordinal == ordinal) {
            return Ok(found);
        }
        let gpu: &'static Cuda = Box::leak(Box::new(Self::start(ordinal)?));
        open.push(gpu);
        Ok(gpu)
    }

    /// How many GPUs the driver shows; an error says why there are none.
    pub fn count() -> Result<usize, String> {
        // SAFETY: only looks whether the library can be loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err("the NVIDIA driver (libcuda) is not there".into());
        }
        let mut count = 0;
        // SAFETY: plain calls of the driver's interface with places for their results.
        let status = unsafe {
            match sys::cuInit(0) {
                sys::CUresult::CUDA_SUCCESS => sys::cuDeviceGetCount(&mut count),
                failed => failed,
            }
        };
        match status {
            sys::CUresult::CUDA_SUCCESS => Ok(count as usize),
            failed => Err(format!("the NVIDIA driver does not start: {failed:?}")),
        }
    }

    fn start(ordinal: usize) -> Result<Self, String> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(format!("there is no GPU {ordinal}: the driver shows {count}"));
        }
        kernels::present()?;
        product::present()?;
        let mut device = 0;
        let mut context = std::ptr::null_mut();
        let (mut streams, mut events) = ([std::ptr::null_mut(); BRANCHES], [std::ptr::null_mut(); BRANCHES]);
        let mut name = [0u8; 128];
        let asked = [
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        ];
        let mut answers = [0; 3];
        // SAFETY: plain calls of the driver's interface with places for their results.
        unsafe {
            tried("cuDeviceGet", sys::cuDeviceGet(&mut device, ordinal as i32))?;
            tried("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            tried("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
            tried("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device))?;
            for (answer, attribute) in answers.iter_mut().zip(asked) {
                tried("cuDeviceGetAttribute", sys::cuDeviceGetAttribute(answer, attribute, device))?;
            }
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            for (stream, event) in streams.iter_mut().zip(&mut events) {
                tried("cuStreamCreate", sys::cuStreamCreate(stream, flags))?;
                let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
                tried("cuEventCreate", sys::cuEventCreate(event, flags))?;
            }
        }
        CURRENT.set(ordinal);
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(Self {
            ordinal,
            context,
            streams,
            events,
            branch: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            name: String::from_utf8_lossy(name).into_owned(),
            capability: (answers[0], answers[1]),
            multiprocessors: answers[2] as u32,
            clusters: OnceLock::new(),
            kernels: Mutex::default(),
            product: Mutex::new(product::Planner::start()?),
            lists: Mutex::default(),
            scratch: Mutex::default(),
            staging: Mutex::default(),
        })
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Free and total memory in bytes.
    pub fn memory(&self) -> (usize, usize) {
        self.enter();
        let (mut free, mut total) = (0, 0);
        // SAFETY: both places outlive the call.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) });
        (free, total)
    }

    /// Waits until everything asked for is done.
    pub fn synchronize(&self) {
        self.enter();
        // SAFETY: the stream lives as long as the process.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.streams[0]) });
    }

    /// Changes whenever memory was given back, so that what was recorded before may point nowhere.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    fn stream(&self) -> sys::CUstream {
        self.streams[self.branch.load(Ordering::Relaxed)]
    }

    /// Asks for pieces of work that do not depend on each other; the GPU may do them side by side. They must not use
    /// the same scratch memory.
    pub(crate) fn together(&self, pieces: &mut [&mut dyn FnMut()]) {
        assert!(pieces.len() <= BRANCHES, "{} pieces of work side by side; at most {BRANCHES}", pieces.len());
        self.enter();
        let (main, start) = (self.streams[0], self.events[0]);
        // SAFETY: streams and events live as long as the process.
        check("cuEventRecord", unsafe { sys::cuEventRecord(start, main) });
        for (index, piece) in pieces.iter_mut().enumerate().rev() {
            let stream = self.streams[index];
            if index > 0 {
                // SAFETY: as above.
                check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, start, 0) });
            }
            self.branch.store(index, Ordering::Relaxed);
            piece();
            self.branch.store(0, Ordering::Relaxed);
            if index > 0 {
                // SAFETY: as above.
                check("cuEventRecord", unsafe { sys::cuEventRecord(self.events[index], stream) });
            }
        }
        for event in &self.events[1..pieces.len()] {
            // SAFETY: as above.
            check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(main, *event, 0) });
        }
    }

    /// Whether it has the matrix instructions of compute capability 9.0.
    pub(crate) fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    pub(crate) fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Makes this GPU the calling thread's.
    fn enter(&self) {
        if CURRENT.get() != self.ordinal {
            // SAFETY: the context lives as long as the process.
            check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) });
            CURRENT.set(self.ordinal);
        }
    }

    /// At least `bytes` of memory that belongs to operations called `what` until they have run. It is zero when it is
    /// made.
    pub(crate) fn scratch(&'static self, what: &'static str, bytes: usize) -> u64 {
        let mut all = self.scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let at = all.iter().position(|scratch| scratch.what == what).unwrap_or_else(|| {
            all.push(Scratch { what, buffer: Buffer::empty(self) });
            all.len() - 1
        });
        let buffer = &mut all[at].buffer;
        if bytes > buffer.bytes() {
            buffer.reserve(bytes);
            // All of it: a later call may ask for a little more than this one.
            buffer.zero(buffer.bytes());
        }
        buffer.pointer()
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} ({})", self.ordinal, self.name)
    }
}

/// While a GPU is being opened: an error to report.
fn tried(call: &str, status: sys::CUresult) -> Result<(), String> {
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(format!("{call} failed: {failed:?}")),
    }
}

/// Afterwards: nothing can go on, and the message says what happened.
#[track_caller]
fn check(call: &str, status: sys::CUresult) {
    if status != sys::CUresult::CUDA_SUCCESS {
        panic!("CUDA: {call} failed: {status:?}");
    }
}
