//! What goes to the device in large pieces goes through page-locked memory: from there the copy engine takes it while the
//! host goes on; from memory of another kind the driver would first wait for everything asked for before.

use cudarc::driver::sys;

use super::page_locked::PageLocked;
use super::{Cuda, check};

/// Bytes of a piece.
const PIECE: usize = 4 << 20;
/// Pieces filled in turn: one is on its way while the next is filled.
const PIECES: usize = 4;

/// The pieces, taken when they are first wanted, kept for the life of the process.
#[derive(Default)]
pub(super) struct Staging {
    pieces: Vec<PageLocked>,
    next: usize,
}

impl Cuda {
    /// `bytes` bytes to device memory of at least that size: `fill(start, piece)` writes those from `start` on, piece by piece.
    pub(super) fn send(&'static self, to: u64, bytes: usize, mut fill: impl FnMut(usize, &mut [u8])) {
        assert!(
            !self.is_recording(),
            "{bytes} bytes of the host in recorded work, which would send what is there later"
        );
        self.enter();
        let mut staging = self.staging.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Staging { pieces, next } = &mut *staging;
        if pieces.is_empty() {
            *pieces = (0..PIECES).map(|_| PageLocked::new(self, PIECE)).collect();
        }
        for start in (0..bytes).step_by(PIECE) {
            let place = &mut pieces[*next];
            *next = (*next + 1) % PIECES;
            let piece = &mut place.bytes_mut()[..PIECE.min(bytes - start)];
            fill(start, piece);
            let (to, from) = (to + start as u64, piece.as_ptr().cast());
            // SAFETY: the caller owns the device's range; the piece is not touched before its mark is reached.
            check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, piece.len(), self.stream()) });
            place.mark();
        }
    }
}
