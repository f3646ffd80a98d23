//! Cosines and sines of rotary positions, computed once per position and looked up afterwards.

use mgsd_compute::{Device, Dtype, Tensor};

/// The angles `position * base^(-2j / dim)` of every position met so far.
pub(crate) struct RopeTable {
    frequencies: Vec<f64>,
    /// `[positions, frequencies]`
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Host rows on their way into the tensors.
    rows_cos: Vec<f32>,
    rows_sin: Vec<f32>,
}

impl RopeTable {
    /// `dim / 2` frequencies.
    pub fn new(base: f64, dim: usize) -> Self {
        let frequencies = (0..dim / 2).map(|j| base.powf(-((2 * j) as f64) / dim as f64)).collect();
        Self { frequencies, cos: Vec::new(), sin: Vec::new(), rows_cos: Vec::new(), rows_sin: Vec::new() }
    }

    fn grow(&mut self, positions: usize) {
        let width = self.frequencies.len();
        for position in self.cos.len() / width..positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.sin.push(sin as f32);
                self.cos.push(cos as f32);
            }
        }
    }

    /// The first `positions` rows of the table on `device`.
    pub fn first(&mut self, device: Device, cos: &mut Tensor, sin: &mut Tensor, positions: usize) {
        self.grow(positions);
        let width = self.frequencies.len();
        for (tensor, rows) in [(cos, &self.cos), (sin, &self.sin)] {
            tensor.place_on(device, Dtype::F32, positions, width);
            tensor.write_rows(0, &rows[..positions * width]);
        }
    }

    /// Fills `cos, sin: [rows, picks.len()]` on `device`: column `j` of a row has frequency `picks[j].1` at the position on axis
    /// `picks[j].0` of that row.
    pub fn fill<const AXES: usize>(
        &mut self,
        device: Device,
        cos: &mut Tensor,
        sin: &mut Tensor,
        positions: &[[u32; AXES]],
        picks: &[(usize, usize)],
    ) {
        let highest = positions.iter().flatten().max().map_or(0, |&p| p as usize);
        self.grow(highest + 1);
        let width = self.frequencies.len();
        self.rows_cos.clear();
        self.rows_sin.clear();
        for position in positions {
            for &(axis, frequency) in picks {
                let at = position[axis] as usize * width + frequency;
                self.rows_cos.push(self.cos[at]);
                self.rows_sin.push(self.sin[at]);
            }
        }
        for (tensor, rows) in [(cos, &self.rows_cos), (sin, &self.rows_sin)] {
            tensor.place_on(device, Dtype::F32, positions.len(), picks.len());
            tensor.write_rows(0, rows);
        }
    }
}

/// Interleaved M-RoPE: frequency `j` turns with height for j = 1, 4, 7, … below `3 * section[1]`, with width for
/// j = 2, 5, 8, … below `3 * section[2]`, and with time otherwise.
pub(crate) fn text_picks(head_dim: usize, section: [usize; 3]) -> Vec<(usize, usize)> {
    (0..head_dim / 2)
        .map(|j| {
            let axis = j % 3;
            let axis = if axis > 0 && j < 3 * section[axis] { axis } else { 0 };
            (axis, j)
        })
        .collect()
}

/// Rows for the first half of the frequencies' columns, columns for the second, over `head_dim / 2` columns.
pub(crate) fn vision_picks(head_dim: usize) -> Vec<(usize, usize)> {
    let quarter = head_dim / 4;
    (0..2 * quarter).map(|j| (j / quarter, j % quarter)).collect()
}
