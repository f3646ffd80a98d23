//! What the copy engine of compute capability 9.0 has to know about a matrix.

use cudarc::driver::sys;

use super::check;

/// A bfloat16 matrix of which a kernel copies boxes, [`COLUMNS`](Self::COLUMNS) columns by some rows if nothing else is
/// said, to shared memory, in rows of 128 bytes whose 16-byte pieces are exchanged (the 128-byte swizzle).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Tiles(pub(super) sys::CUtensorMap);

impl Tiles {
    /// Columns of a box.
    pub(crate) const COLUMNS: usize = 64;
    /// The copy engine's limit of rows of a box.
    pub(crate) const MOST_ROWS: usize = 256;

    /// `pointer` lies on the device and is a multiple of 16; `cols` is a multiple of 8.
    pub(crate) fn new(pointer: u64, rows: usize, cols: usize, box_rows: usize) -> Self {
        Self::with_columns(pointer, rows, cols, Self::COLUMNS, box_rows)
    }

    /// Boxes of 64 columns, or of 32, whose rows of 64 bytes have the 64-byte swizzle.
    pub(crate) fn with_columns(pointer: u64, rows: usize, cols: usize, box_cols: usize, box_rows: usize) -> Self {
        let swizzle = match box_cols {
            32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        // SAFETY: a zero pattern is a valid value of this plain structure of C.
        let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        let (size, stride) = ([cols as u64, rows as u64], [cols as u64 * 2]);
        let (of_box, step) = ([box_cols as u32, box_rows as u32], [1, 1]);
        // SAFETY: all places outlive the call; the matrix itself is not looked at.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                size.len() as u32,
                pointer as *mut std::ffi::c_void,
                size.as_ptr(),
                stride.as_ptr(),
                of_box.as_ptr(),
                step.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", status);
        Self(map)
    }

    /// As it lies in memory, for kernels that read it there.
    pub(crate) fn words(&self) -> [u64; 16] {
        self.0.opaque
    }
}
