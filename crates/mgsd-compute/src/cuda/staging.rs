//! Page-locked host memory for what goes to the device. From there the copy engine takes it while the host goes on; from
//! memory of another kind the driver would first wait for everything asked for before.

use cudarc::driver::sys;

use super::{Cuda, check};

/// Bytes of a piece.
const PIECE: usize = 4 << 20;
/// Pieces filled in turn: one is on its way while the next is filled.
const PIECES: usize = 4;

/// The pieces, taken when they are first wanted, kept for the life of the process.
#[derive(Default)]
pub(super) struct Staging {
    pieces: Vec<Piece>,
    next: usize,
}

struct Piece {
    memory: &'static mut [u8],
    /// Reached when the device has taken what lies here.
    taken: sys::CUevent,
}

// SAFETY: an event may be used from any thread whose current context is its own.
unsafe impl Send for Piece {}

impl Piece {
    fn make() -> Self {
        let (mut memory, mut taken) = (std::ptr::null_mut(), std::ptr::null_mut());
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: places for the results; the memory is [`PIECE`] bytes that nobody else has, never given back.
        let memory = unsafe {
            check("cuMemHostAlloc", sys::cuMemHostAlloc(&mut memory, PIECE, 0));
            check("cuEventCreate", sys::cuEventCreate(&mut taken, flags));
            std::ptr::write_bytes(memory.cast::<u8>(), 0, PIECE);
            std::slice::from_raw_parts_mut(memory.cast(), PIECE)
        };
        Self { memory, taken }
    }
}

impl Cuda {
    /// `bytes` bytes to device memory of at least that size: `fill(start, piece)` writes those from `start` on, piece by piece.
    pub(super) fn send(&self, to: u64, bytes: usize, mut fill: impl FnMut(usize, &mut [u8])) {
        assert!(
            !self.is_recording(),
            "{bytes} bytes of the host in recorded work, which would send what is there later"
        );
        self.enter();
        let mut staging = self.staging.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Staging { pieces, next } = &mut *staging;
        if pieces.is_empty() {
            *pieces = (0..PIECES).map(|_| Piece::make()).collect();
        }
        for start in (0..bytes).step_by(PIECE) {
            let Piece { memory, taken } = &mut pieces[*next];
            *next = (*next + 1) % PIECES;
            // SAFETY: the event lives as long as the process.
            check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(*taken) });
            let piece = &mut memory[..PIECE.min(bytes - start)];
            fill(start, piece);
            // SAFETY: the caller owns the device's range; the piece is not touched before the event.
            unsafe {
                let (to, from) = (to + start as u64, piece.as_ptr().cast());
                check("cuMemcpyHtoD", sys::cuMemcpyHtoDAsync_v2(to, from, piece.len(), self.stream()));
                check("cuEventRecord", sys::cuEventRecord(*taken, self.stream()));
            }
        }
    }
}
