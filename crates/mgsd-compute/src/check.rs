//! Shape checks: a mismatch is a bug of the caller, and the message names what was wanted.

use crate::Tensor;

#[track_caller]
pub(crate) fn shape(op: &str, name: &str, tensor: &Tensor, rows: usize, cols: usize) {
    assert!(tensor.shape() == [rows, cols], "{op}: {name} must be [{rows}, {cols}], is {:?}", tensor.shape());
}

#[track_caller]
pub(crate) fn same(op: &str, name: &str, tensor: &Tensor, other_name: &str, other: &Tensor) {
    assert!(
        tensor.shape() == other.shape(),
        "{op}: {name} {:?} must have the shape of {other_name} {:?}",
        tensor.shape(),
        other.shape()
    );
}

#[track_caller]
pub(crate) fn length(op: &str, name: &str, len: usize, wanted: usize) {
    assert!(len == wanted, "{op}: {name} must have {wanted} entries, has {len}");
}

/// How many groups of `group` columns a row has.
#[track_caller]
pub(crate) fn groups(op: &str, columns: usize, group: usize) -> usize {
    assert!(
        group > 0 && columns.is_multiple_of(group),
        "{op}: the {columns} columns of x must be a multiple of {group}"
    );
    columns / group
}

/// On a GPU eight numbers are read at once.
#[track_caller]
pub(crate) fn eights(op: &str, x: &Tensor) {
    assert!(x.cols().is_multiple_of(8), "{op} on a GPU: {:?} must have a multiple of 8 columns", x.shape());
}
