//! Several processes, one GPU each, that add up numbers: NCCL, loaded at run time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use cudarc::nccl::sys as nccl;

use super::Cuda;
use crate::{Dtype, Tensor};

/// One process's place among all.
pub struct Group {
    gpu: &'static Cuda,
    communicator: nccl::ncclComm_t,
    rank: usize,
    size: usize,
}

// SAFETY: calls are made by one thread at a time, as all work of a GPU.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

/// How long the first process is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

#[track_caller]
fn check(call: &str, status: nccl::ncclResult_t) {
    assert!(
        status == nccl::ncclResult_t::ncclSuccess,
        "NCCL: {call} failed: {status:?}; another process may have died"
    );
}

impl Group {
    /// Joins `size` processes. The process of rank 0 listens at `address` (`host:port`) and tells the others how to find
    /// each other.
    pub fn join(gpu: &'static Cuda, rank: usize, size: usize, address: &str) -> Result<Self, String> {
        // SAFETY: only looks whether the library can be loaded.
        if !unsafe { nccl::is_culib_present() } {
            return Err(
                "NCCL (libnccl) is not there; install it (for instance `pip install nvidia-nccl-cu13`) and put \
                        its folder on LD_LIBRARY_PATH"
                    .into(),
            );
        }
        let id = if rank == 0 { tell(size, address)? } else { ask(rank, address)? };
        gpu.enter();
        let mut communicator = std::ptr::null_mut();
        // SAFETY: `communicator` is a place for the result.
        let status = unsafe { nccl::ncclCommInitRank(&mut communicator, size as i32, id, rank as i32) };
        match status {
            nccl::ncclResult_t::ncclSuccess => Ok(Self { gpu, communicator, rank, size }),
            failed => Err(format!("NCCL cannot join {size} processes as rank {rank}: {failed:?}")),
        }
    }

    /// This process, counted from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Every tensor becomes its sum over all processes, the same bits everywhere. All call this with tensors of the same
    /// shapes in the same order.
    pub fn all_reduce<'a>(&self, tensors: impl IntoIterator<Item = &'a mut Tensor>) {
        self.together(tensors, |at, count, kind, stream| {
            let sum = nccl::ncclRedOp_t::ncclSum;
            // SAFETY: `at` points to `count` numbers on the device.
            unsafe { nccl::ncclAllReduce(at as *const _, at as *mut _, count, kind, sum, self.communicator, stream) }
        });
    }

    /// Every tensor becomes, at the process that owns it, its sum over all processes; elsewhere its contents are lost.
    pub fn reduce<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        self.together_owned(tensors, |at, count, kind, owner, stream| {
            let sum = nccl::ncclRedOp_t::ncclSum;
            let (from, to) = (at as *const _, at as *mut _);
            // SAFETY: `at` points to `count` numbers on the device.
            unsafe { nccl::ncclReduce(from, to, count, kind, sum, owner, self.communicator, stream) }
        });
    }

    /// Every tensor becomes what it is at the process that owns it.
    pub fn broadcast<'a>(&self, tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>) {
        self.together_owned(tensors, |at, count, kind, owner, stream| {
            // SAFETY: `at` points to `count` numbers on the device.
            unsafe { nccl::ncclBroadcast(at as *const _, at as *mut _, count, kind, owner, self.communicator, stream) }
        });
    }

    /// Sums of numbers on the host over all processes; also makes all wait for each other.
    pub fn sum(&self, numbers: &mut [f64]) {
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
        tensors: impl IntoIterator<Item = &'a mut Tensor>,
        mut call: impl FnMut(u64, usize, nccl::ncclDataType_t, nccl::cudaStream_t) -> nccl::ncclResult_t,
    ) {
        let owned = tensors.into_iter().map(|tensor| (tensor, 0));
        self.together_owned(owned, |at, count, kind, _, stream| call(at, count, kind, stream));
    }

    fn together_owned<'a>(
        &self,
        tensors: impl IntoIterator<Item = (&'a mut Tensor, usize)>,
        mut call: impl FnMut(u64, usize, nccl::ncclDataType_t, i32, nccl::cudaStream_t) -> nccl::ncclResult_t,
    ) {
        self.gpu.enter();
        // Zeros that were not written yet are written here, before the group begins.
        let all: Vec<(u64, usize, Dtype, usize)> =
            tensors.into_iter().map(|(t, owner)| (t.pointer(), t.len(), t.dtype(), owner)).collect();
        let stream = self.gpu.stream() as nccl::cudaStream_t;
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
}

impl Drop for Group {
    fn drop(&mut self) {
        self.gpu.enter();
        // SAFETY: made by ncclCommInitRank, and not used afterwards.
        unsafe { nccl::ncclCommDestroy(self.communicator) };
    }
}

type Id = [u8; 128];

fn from_bytes(bytes: Id) -> nccl::ncclUniqueId {
    nccl::ncclUniqueId { internal: bytes.map(|byte| byte as std::ffi::c_char) }
}

/// Rank 0: makes the group's id and hands it to everybody who asks.
fn tell(size: usize, address: &str) -> Result<nccl::ncclUniqueId, String> {
    let mut id = from_bytes([0; 128]);
    // SAFETY: `id` is a place for the result.
    let status = unsafe { nccl::ncclGetUniqueId(&mut id) };
    if status != nccl::ncclResult_t::ncclSuccess {
        return Err(format!("ncclGetUniqueId failed: {status:?}"));
    }
    let bytes: Id = id.internal.map(|byte| byte as u8);
    let failed = |what: &str, error: std::io::Error| format!("rank 0 cannot {what} at {address}: {error}");
    let port = address.rsplit(':').next().unwrap_or(address);
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).map_err(|error| failed("listen", error))?;
    for _ in 1..size {
        let (mut stream, _) = listener.accept().map_err(|error| failed("accept", error))?;
        stream.write_all(&bytes).map_err(|error| failed("answer", error))?;
    }
    Ok(id)
}

/// The others: ask until rank 0 is there.
fn ask(rank: usize, address: &str) -> Result<nccl::ncclUniqueId, String> {
    let started = Instant::now();
    loop {
        let mut bytes = [0u8; 128];
        let asked = TcpStream::connect(address).and_then(|mut stream| stream.read_exact(&mut bytes));
        match asked {
            Ok(()) => return Ok(from_bytes(bytes)),
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(format!("rank {rank} does not reach rank 0 at {address}: {error}; check MASTER_ADDR"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
